//! Small files of Knarr's own: written whole and durably, read whole and with a limit.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::error::FsError;
use crate::root::{NEW_FILE, flush};
use crate::sys;

/// Counts the files staged by this process, so that two threads never share a staged name.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Writes `bytes` to the file at `path` with the permission bits `mode`, replacing what is there.
/// Readers see the old or the new content, whole; after this returned, a power cut keeps the new one.
///
/// # Errors
/// If the directory is missing or the disk does not confirm it. The old content is then still there,
/// or the new one is but may not survive a power cut.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FsError> {
    let failed = |operation| move |errno: Errno| FsError::io(operation, path, errno);
    let name = path
        .file_name()
        .ok_or_else(|| failed("write")(Errno::ISDIR))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = sys::open_given(parent, sys::LISTING).map_err(failed("write"))?;
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let staged = format!(".knarr-{}-{number}.new", std::process::id());
    let mode = Mode::from_raw_mode(mode);
    let create = || sys::retrying(|| rustix::fs::openat(&directory, &*staged, NEW_FILE, mode));
    let file = match create() {
        // Left by a process that was killed and had the same number.
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(&directory, &*staged, AtFlags::empty())
                .map_err(failed("replace"))?;
            create()
        }
        result => result,
    };
    let mut file = File::from(file.map_err(failed("write"))?);
    let written = file
        .write_all(bytes)
        .and_then(|()| rustix::fs::fchmod(&file, mode).map_err(Into::into))
        .and_then(|()| flush(file.as_fd()).map_err(Into::into))
        .and_then(|_| {
            sys::retrying(|| rustix::fs::renameat(&directory, &*staged, &directory, name))
                .map_err(Into::into)
        });
    if let Err(error) = written {
        if let Err(errno) = rustix::fs::unlinkat(&directory, &*staged, AtFlags::empty()) {
            tracing::warn!(%errno, "a staged file could not be removed");
        }
        return Err(FsError::io("write", path, error));
    }
    flush(directory.as_fd())
        .map(drop)
        .map_err(failed("flush the directory of"))
}

/// Reads the file at `path`, which must not be longer than `limit` bytes; nothing if it is not there.
///
/// # Errors
/// If it cannot be read, [`FsError::Length`] if it is longer, [`FsError::NotAFile`] if it is none.
pub fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FsError> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let file = match sys::open_given(path, flags) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(FsError::io("open", path, errno)),
    };
    let metadata = file
        .metadata()
        .map_err(|error| FsError::io("look at", path, error))?;
    if !metadata.is_file() {
        return Err(FsError::NotAFile {
            path: path.to_path_buf().into(),
        });
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| FsError::io("read", path, error))?;
    if bytes.len() as u64 > limit {
        let found = metadata.len().max(bytes.len() as u64);
        return Err(FsError::Length {
            path: path.to_path_buf().into(),
            expected: limit,
            found,
        });
    }
    Ok(Some(bytes))
}
