//! What differs between systems, and the few calls everything else is made of.
//!
//! Constraint: nothing here follows a symbolic link, and nothing here leaves the directory handle
//! that it is given: see [`crate::below`].

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use knarr_core::entry::{Entry, Identity, Kind};
use knarr_core::path::RelPath;
use knarr_core::time::Timestamp;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::below::{self, Links};
pub(crate) use crate::below::{LISTING, PLACE, retrying};

/// How many bytes of path are given to the kernel at once; below its limit of 4,096.
const LONGEST_CALL: usize = 4000;

/// Opens `path` below `at`, without following any symbolic link and without leaving `at`. An empty
/// path is `at` itself. Paths of any length work.
pub(crate) fn open_below(
    at: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let mut rest = path;
    let mut reached: Option<OwnedFd> = None;
    while rest.len() > LONGEST_CALL {
        let head = rest.get(..LONGEST_CALL).unwrap_or(rest);
        let slash = head
            .iter()
            .rposition(|byte| *byte == b'/')
            .ok_or(Errno::NAMETOOLONG)?;
        let (head, tail) = rest.split_at(slash);
        let from = reached.as_ref().map_or(at, AsFd::as_fd);
        reached = Some(open_short(from, head, PLACE, Mode::empty())?);
        rest = tail.get(1..).unwrap_or_default();
    }
    open_short(reached.as_ref().map_or(at, AsFd::as_fd), rest, flags, mode)
}

fn open_short(
    at: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if path.is_empty() {
        return rustix::fs::openat(at, c".", flags, mode);
    }
    if !path.contains(&b'/') {
        // One name cannot lead anywhere else (`RelPath` has no `..`), so the older call is enough.
        return retrying(|| rustix::fs::openat(at, path, flags, mode));
    }
    below::open(at, path, flags, mode, Links::Refused)
}

/// The part before the last slash (empty for none) and the last component.
pub(crate) fn split_name(path: &RelPath) -> (&[u8], &[u8]) {
    let bytes = path.as_bytes();
    match bytes.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (
            bytes.get(..slash).unwrap_or_default(),
            bytes.get(slash + 1..).unwrap_or_default(),
        ),
        None => (&[], bytes),
    }
}

/// What lies at `name` in a directory, without following it.
pub(crate) fn stat_name<P: rustix::path::Arg>(
    at: BorrowedFd<'_>,
    name: P,
) -> rustix::io::Result<Stat> {
    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// The kind that a `stat` tells.
pub(crate) fn kind_of(stat: &Stat) -> Kind {
    kind_of_type(FileType::from_raw_mode(stat.st_mode))
}

/// The kind that a file type means.
pub(crate) const fn kind_of_type(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Special,
    }
}

/// The modification time that a `stat` tells.
pub(crate) fn mtime_of(stat: &Stat) -> Timestamp {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Timestamp::from_parts(stat.st_mtime, nanoseconds)
}

/// The length in bytes that a `stat` tells.
pub(crate) fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// The entry of `path` with what `stat` tells; the target of a link is for the caller to add.
pub(crate) fn entry_of(path: RelPath, stat: &Stat) -> Entry {
    let kind = kind_of(stat);
    Entry {
        path,
        kind,
        size: if kind == Kind::File { size_of(stat) } else { 0 },
        mtime: Some(mtime_of(stat)),
        identity: Some(Identity::Inode(stat.st_ino)),
        hash: None,
        mode: Some(stat.st_mode & 0o7777),
        link_target: None,
    }
}

/// Where the link `name` points, as it stands in the link.
pub(crate) fn link_target<P: rustix::path::Arg>(
    at: BorrowedFd<'_>,
    name: P,
) -> rustix::io::Result<Box<[u8]>> {
    Ok(rustix::fs::readlinkat(at, name, Vec::new())?
        .into_bytes()
        .into_boxed_slice())
}

/// The pair for `utimensat`: the access time is left alone.
pub(crate) fn modified_at(mtime: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds(),
            tv_nsec: mtime.subsecond_nanoseconds(),
        },
    }
}

/// A path under which an open handle of this process can be reached by calls that take only paths.
#[cfg(target_os = "linux")]
pub(crate) fn path_of_handle(handle: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// Sets the permission bits of what an open handle stands for, even one that is only a place.
#[cfg(target_os = "linux")]
pub(crate) fn set_mode(handle: BorrowedFd<'_>, mode: u32) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::chmodat(CWD, path_of_handle(handle), mode, AtFlags::empty())
}

/// Sets the permission bits of what an open handle stands for.
#[cfg(not(target_os = "linux"))]
pub(crate) fn set_mode(handle: BorrowedFd<'_>, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::fchmod(handle, Mode::from_raw_mode(mode as rustix::fs::RawMode))
}

/// The flags for a handle through which times and permissions of anything can be set.
#[cfg(target_os = "linux")]
pub(crate) const ATTRIBUTES: OFlags = OFlags::PATH;
/// The flags for a handle through which times and permissions can be set.
#[cfg(not(target_os = "linux"))]
pub(crate) const ATTRIBUTES: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK);

/// Calls `each` for every name in the directory but `.` and `..`, in no particular order. `each` may
/// say no, which ends the reading without an error.
#[cfg(target_os = "linux")]
pub(crate) fn read_names(
    directory: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(&CStr, FileType) -> bool,
) -> rustix::io::Result<()> {
    buffer.clear();
    let space: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut entries = rustix::fs::RawDir::new(directory, space);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") && !each(name, entry.file_type()) {
            return Ok(());
        }
    }
    Ok(())
}

/// Calls `each` for every name in the directory but `.` and `..`, in no particular order.
#[cfg(not(target_os = "linux"))]
pub(crate) fn read_names(
    directory: BorrowedFd<'_>,
    _buffer: &mut Vec<u8>,
    mut each: impl FnMut(&CStr, FileType) -> bool,
) -> rustix::io::Result<()> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") && !each(name, entry.file_type()) {
            return Ok(());
        }
    }
    Ok(())
}

/// Renames only if nothing is there. `EINVAL` or `ENOSYS` where the file system cannot promise it.
pub(crate) fn rename_to_nothing(
    from: (BorrowedFd<'_>, &[u8]),
    to: (BorrowedFd<'_>, &[u8]),
) -> rustix::io::Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    return rustix::fs::renameat_with(
        from.0,
        from.1,
        to.0,
        to.1,
        rustix::fs::RenameFlags::NOREPLACE,
    );
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    Err(Errno::NOSYS)
}

/// Flushes everything of the file system that `handle` lies on.
pub(crate) fn sync_file_system(handle: BorrowedFd<'_>) -> rustix::io::Result<()> {
    #[cfg(target_os = "linux")]
    return rustix::fs::syncfs(handle);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = handle;
        Err(Errno::NOSYS)
    }
}

/// Flushes one file with its times and permissions.
pub(crate) fn sync_file(file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    #[cfg(target_vendor = "apple")]
    if rustix::fs::fcntl_fullfsync(file).is_ok() {
        // Apple's fsync leaves the data in the drive's cache; this does not.
        return Ok(());
    }
    retrying(|| rustix::fs::fsync(file))
}

/// The permission bits that new files of this process do not get, if that can be known.
pub(crate) fn umask() -> Option<u32> {
    static UMASK: OnceLock<Option<u32>> = OnceLock::new();
    // Asking by `umask(2)` would change it for a moment, for every thread.
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Umask:"))?;
        u32::from_str_radix(line.trim(), 8).ok()
    })
}

/// Flags for opening a file for reading: a FIFO does not block, a link is not followed.
pub(crate) const READING: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens the directory behind a place for listing or flushing.
pub(crate) fn open_listing(place: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(place, c".", LISTING, Mode::empty())
}

/// Opens whatever the operating system finds at a path that a person gave, following links.
pub(crate) fn open_given(path: &std::path::Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    retrying(|| rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()))
}
