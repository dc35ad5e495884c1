//! Writes a file under a staged name, beside where it will be.
//!
//! * The staged name is `.knarr-<16 hexadecimal digits>.part`, in the directory of the final name, so
//!   that the rename at the end never crosses file systems.
//! * The identifier comes from the caller and is the same at every attempt. What an attempt that was
//!   killed left behind is continued or replaced by the next one, and never found by chance.
//! * A staged file is always a new one of ours ([`Start::New`] removes the name and creates it
//!   exclusively) or one that only we can have written ([`Start::Resume`] checks owner and link
//!   count), so a link planted under its name leads nowhere.
//! * Dropping a [`StagedFile`] leaves the file for a later attempt; [`StagedFile::abort`] removes it.
//!
//! Nothing staged is visible under a final name. That is what [`crate::commit`] does.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use knarr_core::entry::Kind;
use knarr_core::path::RelPath;
use knarr_core::time::Timestamp;
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::FsError;
use crate::identity;
use crate::root::{Attributes, Directory, NEW_FILE, OWN_PREFIX, Replace, Root};
use crate::sys::{self, split_name};

/// Runs of zeros of this many bytes, at multiples of it, become holes where [`Holes::Skip`] is chosen.
pub const HOLE_BYTES: usize = 64 * 1024;

/// Files of at least this size have their space reserved when their size is told beforehand.
pub const RESERVE_FROM_BYTES: u64 = 1024 * 1024;

static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// Counts opened staged files: a flush through the handle opened first reports every error since.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// Where writing starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the beginning; what an earlier attempt left is removed.
    New,
    /// Behind what an earlier attempt wrote, which is cut to this length.
    Resume {
        /// How many bytes are kept.
        offset: u64,
    },
}

/// What becomes of long runs of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Holes {
    /// They are written.
    #[default]
    Fill,
    /// They are skipped, so that a sparse file stays sparse.
    Skip,
}

/// The name of a staged file, without allocating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StagedName([u8; 28]);

impl StagedName {
    pub(crate) fn new(id: u64) -> Self {
        let mut name = *b".knarr-0000000000000000.part";
        for (place, digit) in name.iter_mut().skip(OWN_PREFIX.len()).take(16).enumerate() {
            let nibble = (id >> (60 - 4 * place)) & 0xf;
            *digit = b"0123456789abcdef"
                .get(nibble as usize)
                .copied()
                .unwrap_or(b'0');
        }
        Self(name)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Where a file with this identifier is staged on its way to `path`.
#[must_use]
pub fn staged_path(path: &RelPath, id: u64) -> Option<RelPath> {
    path.with_name(StagedName::new(id).as_bytes()).ok()
}

/// The identifier in a staged name, if it is one.
#[must_use]
pub fn staged_id(name: &[u8]) -> Option<u64> {
    let digits = name.strip_prefix(OWN_PREFIX)?.strip_suffix(b".part")?;
    let digits = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// A file being written under its staged name.
#[derive(Debug)]
pub struct StagedFile {
    root: Root,
    path: RelPath,
    directory: Directory,
    name: StagedName,
    file: File,
    position: u64,
    opened: u64,
    holes: Holes,
}

/// A finished staged file or link, ready for [`crate::commit::commit`].
#[derive(Debug)]
pub struct Staged {
    pub(crate) path: RelPath,
    pub(crate) directory: Directory,
    pub(crate) name: StagedName,
    /// Open until the commit, so that a failed flush of exactly this file is reported. Links have
    /// none, and the bulk copy flushes through one handle for all.
    pub(crate) file: Option<File>,
    pub(crate) opened: u64,
    /// What it was when it was finished, to be found again under the final name. Inode numbers are given
    /// to the next file at once when one is removed, so they do not say enough.
    pub(crate) seal: Seal,
    pub(crate) replace: Replace,
}

/// What tells a finished staged file from another that took its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal {
    inode: u64,
    size: i64,
    mtime: Timestamp,
}

impl Seal {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: stat.st_size,
            mtime: sys::mtime_of(stat),
        }
    }
}

impl Staged {
    /// Where it will be.
    #[must_use]
    pub const fn path(&self) -> &RelPath {
        &self.path
    }

    /// Removes it.
    pub fn abort(self) {
        remove_staged(&self.directory, self.name);
    }
}

impl StagedFile {
    /// Starts or continues the staged file `id` on its way to `path`. Makes missing directories.
    ///
    /// # Errors
    /// If it cannot be created. When continuing: of class `Vanished` if there is nothing to continue,
    /// [`FsError::Length`] if it is shorter than the offset, [`FsError::NotOurs`] if another may have
    /// written it.
    pub fn create(root: &Root, path: &RelPath, id: u64, start: Start) -> Result<Self, FsError> {
        let directory = root.directory_or_make(split_name(path).0)?;
        let name = StagedName::new(id);
        // Before the file is opened: see `crate::commit`.
        let opened = OPENED.fetch_add(1, Ordering::Relaxed);
        let (file, position) = match start {
            Start::New => {
                // Nobody else may read what is not finished.
                let file = create_staged(&directory, name, 0o600)
                    .map_err(|errno| root.error("stage", Some(path), errno))?;
                (file, 0)
            }
            Start::Resume { offset } => (
                continue_staged(root, path, &directory, name, offset)?,
                offset,
            ),
        };
        Ok(Self {
            root: root.clone(),
            path: path.clone(),
            directory,
            name,
            file,
            position,
            opened,
            holes: Holes::Fill,
        })
    }

    /// Chooses what becomes of long runs of zeros in what is written from here on.
    pub const fn set_holes(&mut self, holes: Holes) {
        self.holes = holes;
    }

    /// Where it will be.
    #[must_use]
    pub const fn path(&self) -> &RelPath {
        &self.path
    }

    /// How many bytes were written in order, those of earlier attempts included.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Reserves the space for a file of `size` bytes, if that is worth it and the file system can.
    ///
    /// # Errors
    /// Of class `NoSpace` if there is no room: better now than after hours.
    pub fn reserve(&mut self, size: u64) -> Result<(), FsError> {
        if size < RESERVE_FROM_BYTES || self.holes == Holes::Skip || size <= self.position {
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        {
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            let length = size - self.position;
            if let Some(free) = identity::free_in_memory(self.file.as_fd()) {
                // There every page would be allocated and cleared now, and there is no disk to lay it
                // out on.
                let room = length <= free;
                return if room {
                    Ok(())
                } else {
                    Err(self.failed("reserve space for", Errno::NOSPC))
                };
            }
            let reserved =
                sys::retrying(|| rustix::fs::fallocate(&self.file, flags, self.position, length));
            // Any other error means that it cannot be reserved here, not that it cannot be written.
            if let Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) = reserved {
                return Err(self.failed("reserve space for", errno));
            }
        }
        Ok(())
    }

    /// Hands what earlier attempts wrote to `sink`, in order, for hashing it.
    ///
    /// # Errors
    /// If it cannot be read, or is shorter than it was.
    pub fn read_back(&mut self, mut sink: impl FnMut(&[u8])) -> Result<(), FsError> {
        let mut buffer = vec![0; 256 * 1024];
        let mut read = 0;
        while read < self.position {
            let want = usize::try_from(self.position - read).unwrap_or(usize::MAX);
            let space = buffer.len().min(want);
            let into = buffer.get_mut(..space).unwrap_or_default();
            let count = self
                .file
                .read_at(into, read)
                .map_err(|error| FsError::io("read back", self.shown(), error))?;
            if count == 0 {
                return Err(self.length_is(self.position, read));
            }
            sink(buffer.get(..count).unwrap_or_default());
            read += count as u64;
        }
        Ok(())
    }

    /// Writes behind what was written before.
    ///
    /// # Errors
    /// If not all of it can be written; the position then still tells what is certain.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        match self.holes {
            Holes::Fill => self.write_plainly(bytes),
            Holes::Skip => self.write_around_holes(bytes),
        }
    }

    fn write_plainly(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        self.file
            .write_all(bytes)
            .map_err(|error| FsError::io("write", self.shown(), error))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn write_around_holes(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let into_block = usize::try_from(self.position % HOLE_BYTES as u64).unwrap_or(0);
            let (block, tail) = rest.split_at(rest.len().min(HOLE_BYTES - into_block));
            if ZEROS.get(..block.len()) == Some(block) && block.len() == HOLE_BYTES {
                self.position += block.len() as u64;
                self.seek()?;
            } else {
                self.write_plainly(block)?;
            }
            rest = tail;
        }
        Ok(())
    }

    fn seek(&mut self) -> Result<(), FsError> {
        let sought = self.file.seek(SeekFrom::Start(self.position));
        sought
            .map(drop)
            .map_err(|error| FsError::io("seek in", self.shown(), error))
    }

    /// Writes at `offset`, for what arrives out of order. Does not move the position: tell
    /// [`StagedFile::advance_to`] once everything before an offset has arrived.
    ///
    /// # Errors
    /// If not all of it can be written.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), FsError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| FsError::io("write", self.shown(), error))
    }

    /// Everything before `position` was written by [`StagedFile::write_at`].
    ///
    /// # Errors
    /// If the position cannot be set.
    pub fn advance_to(&mut self, position: u64) -> Result<(), FsError> {
        self.position = position;
        self.seek()
    }

    /// Flushes what was written, so that an attempt after a power cut can continue here (K9).
    /// Returns the offset to continue at.
    ///
    /// # Errors
    /// If the disk does not confirm it. What was written since the last flush is then lost: the file
    /// must be aborted and written anew, never flushed again, as the second flush would find nothing
    /// to write and say yes.
    pub fn checkpoint(&mut self) -> Result<u64, FsError> {
        self.end_in_data()?;
        match sys::retrying(|| rustix::fs::fdatasync(&self.file)) {
            Ok(()) | Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => Ok(self.position),
            Err(errno) => Err(self.failed("flush", errno)),
        }
    }

    /// Its length on the disk, in bytes.
    ///
    /// # Errors
    /// If the operating system does not tell.
    pub fn length(&self) -> Result<u64, FsError> {
        let stat = rustix::fs::fstat(&self.file).map_err(|errno| self.failed("look at", errno))?;
        Ok(sys::size_of(&stat))
    }

    /// A hole at the end has a length only once it is given.
    fn end_in_data(&mut self) -> Result<(), FsError> {
        if self.holes == Holes::Skip && self.length()? < self.position {
            rustix::fs::ftruncate(&self.file, self.position)
                .map_err(|errno| self.failed("extend", errno))?;
        }
        Ok(())
    }

    /// Checks the length, sets times and permissions, and makes it ready to be committed.
    ///
    /// # Errors
    /// [`FsError::Length`] if it does not hold `length` bytes; it is then removed, as the bytes in it
    /// cannot be trusted. After any other error it stays.
    pub fn finish(
        mut self,
        length: u64,
        attributes: Attributes,
        replace: Replace,
    ) -> Result<Staged, FsError> {
        self.end_in_data()?;
        let found = self.length()?;
        if found != length || self.position != length {
            let error = self.length_is(length, found);
            self.abort();
            return Err(error);
        }
        let mode = attributes.mode.map_or_else(
            || 0o666 & !sys::umask().unwrap_or(0o022),
            |mode| mode & 0o1777,
        );
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode))
            .or_else(unsupported_is_fine)
            .map_err(|errno| self.failed("set the permissions of", errno))?;
        if let Some(mtime) = attributes.mtime {
            rustix::fs::futimens(&self.file, &sys::modified_at(mtime))
                .map_err(|errno| self.failed("set the time of", errno))?;
        }
        let stat = rustix::fs::fstat(&self.file).map_err(|errno| self.failed("look at", errno))?;
        Ok(Staged {
            path: self.path,
            directory: self.directory,
            name: self.name,
            file: Some(self.file),
            opened: self.opened,
            seal: Seal::of(&stat),
            replace,
        })
    }

    /// Removes it.
    pub fn abort(self) {
        remove_staged(&self.directory, self.name);
    }

    fn shown(&self) -> std::path::PathBuf {
        let staged = self.path.with_name(self.name.as_bytes());
        self.root.display_of(staged.as_ref().unwrap_or(&self.path))
    }

    fn failed(&self, operation: &'static str, errno: Errno) -> FsError {
        FsError::io(operation, self.shown(), errno)
    }

    fn length_is(&self, expected: u64, found: u64) -> FsError {
        FsError::Length {
            path: self.shown().into(),
            expected,
            found,
        }
    }
}

/// Stages a symbolic link to `target`, to be committed like a file. Makes missing directories.
///
/// # Errors
/// If it cannot be made.
pub fn stage_link(
    root: &Root,
    path: &RelPath,
    id: u64,
    target: &[u8],
    replace: Replace,
) -> Result<Staged, FsError> {
    let directory = root.directory_or_make(split_name(path).0)?;
    let name = StagedName::new(id);
    remove_staged(&directory, name);
    rustix::fs::symlinkat(target, &directory, name.as_bytes())
        .map_err(|errno| root.error("stage the link", Some(path), errno))?;
    let stat = sys::stat_name(directory.as_fd(), name.as_bytes())
        .map_err(|errno| root.error("look at the link", Some(path), errno))?;
    Ok(Staged {
        path: path.clone(),
        directory,
        name,
        file: None,
        opened: OPENED.fetch_add(1, Ordering::Relaxed),
        seal: Seal::of(&stat),
        replace,
    })
}

/// A new file under a staged name, which is freed first. The optimistic order costs one call less.
pub(crate) fn create_staged(
    directory: &Directory,
    name: StagedName,
    mode: u32,
) -> rustix::io::Result<File> {
    let create = || {
        sys::retrying(|| {
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::openat(directory, name.as_bytes(), NEW_FILE, mode)
        })
    };
    match create() {
        Err(Errno::EXIST) => {
            remove_staged(directory, name);
            create().map(File::from)
        }
        result => result.map(File::from),
    }
}

/// Removes a staged file; what cannot be removed is found by the next walk.
pub(crate) fn remove_staged(directory: &Directory, name: StagedName) {
    if let Err(errno) = rustix::fs::unlinkat(directory, name.as_bytes(), AtFlags::empty())
        && errno != Errno::NOENT
    {
        tracing::warn!(%errno, "a staged file could not be removed");
    }
}

fn continue_staged(
    root: &Root,
    path: &RelPath,
    directory: &Directory,
    name: StagedName,
    offset: u64,
) -> Result<File, FsError> {
    let failed = |errno| root.error("continue", Some(path), errno);
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened =
        sys::retrying(|| rustix::fs::openat(directory, name.as_bytes(), flags, Mode::empty()));
    let mut file = File::from(opened.map_err(failed)?);
    let stat = rustix::fs::fstat(file.as_fd()).map_err(failed)?;
    let shown = || root.display_of(&path.with_name(name.as_bytes()).unwrap_or(path.clone()));
    let ours = rustix::process::geteuid().as_raw() == stat.st_uid;
    if sys::kind_of(&stat) != Kind::File || stat.st_nlink != 1 || !ours {
        return Err(FsError::NotOurs {
            path: shown().into(),
        });
    }
    let found = sys::size_of(&stat);
    if found < offset {
        return Err(FsError::Length {
            path: shown().into(),
            expected: offset,
            found,
        });
    }
    rustix::fs::ftruncate(&file, offset).map_err(failed)?;
    file.seek(SeekFrom::Start(offset))
        .map_err(|error| FsError::io("seek in", shown(), error))?;
    Ok(file)
}

/// File systems without permissions (FAT, some network ones) refuse to set them.
pub(crate) fn unsupported_is_fine(errno: Errno) -> rustix::io::Result<()> {
    if matches!(errno, Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) {
        Ok(())
    } else {
        Err(errno)
    }
}

/// Reads from a staged file that was reopened, for verifying it.
pub(crate) fn read_some(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_staged_name_carries_the_identifier() {
        let name = StagedName::new(0x0123_4567_89ab_cdef);
        assert_eq!(name.as_bytes(), b".knarr-0123456789abcdef.part");
        assert_eq!(staged_id(name.as_bytes()), Some(0x0123_4567_89ab_cdef));
        assert_eq!(staged_id(b".knarr-root"), None);
        assert_eq!(staged_id(b".knarr-123.part"), None);
    }
}
