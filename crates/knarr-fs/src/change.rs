//! Renames, removals, and the flush that makes them last.
//!
//! Nothing is replaced or removed that nobody looked at: the caller says what it saw ([`Replace`]),
//! and another thing in its place is left alone. Between that look and the act lies the time of one
//! system call; a rename to a free name has not even that gap where the file system offers
//! `RENAME_NOREPLACE` or hard links.
//!
//! A change is durable when [`Root::flush_directories`] (a few directories) or [`Root::flush_all`]
//! (many) returned, not before.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};

use knarr_core::entry::{Entry, Fingerprint, Kind};
use knarr_core::path::RelPath;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::error::{ErrorClass, FsError, ShownPath};
use crate::root::{Directory, Flushed, Replace, Root, flush};
use crate::sys::{self, split_name};

/// Why a rename or removal did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Something else is there than what was seen.
    #[error("\"{path}\" changed since it was looked at, so it was left alone")]
    NotAsSeen {
        /// Where.
        path: ShownPath,
        /// What is there now; nothing if it vanished.
        found: Option<Box<Entry>>,
    },
    /// The operating system said no.
    #[error("the change failed")]
    Io(#[source] FsError),
}

impl ChangeError {
    /// What it means for a retry.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotAsSeen { .. } => ErrorClass::Occupied,
            Self::Io(error) => error.class(),
        }
    }
}

impl Root {
    /// Renames a file, link or directory. Not durable until both directories are flushed.
    ///
    /// # Errors
    /// [`ChangeError::NotAsSeen`] if `replace` does not allow to replace what is at `to`.
    pub fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        replace: &Replace,
    ) -> Result<(), ChangeError> {
        let failed =
            |path: &RelPath, errno| ChangeError::Io(self.error("rename", Some(path), errno));
        let (from_directory, from_name) = split_name(from);
        let (to_directory, to_name) = split_name(to);
        let source = self
            .directory_bytes(from_directory)
            .map_err(|errno| failed(from, errno))?;
        let target = if from_directory == to_directory {
            source.clone()
        } else {
            self.directory_bytes(to_directory)
                .map_err(|errno| failed(to, errno))?
        };
        self.move_name((&source, from_name), (&target, to_name), to, replace)?;
        // Whether it was a directory is not worth a call to find out.
        self.forget_all_durable();
        Ok(())
    }

    /// Moves one name to another, looking first at what would be replaced.
    pub(crate) fn move_name(
        &self,
        from: (&Directory, &[u8]),
        to: (&Directory, &[u8]),
        path: &RelPath,
        replace: &Replace,
    ) -> Result<(), ChangeError> {
        let failed = |errno| ChangeError::Io(self.error("rename to", Some(path), errno));
        let plainly =
            || sys::retrying(|| rustix::fs::renameat(from.0, from.1, to.0, to.1)).map_err(failed);
        match replace {
            Replace::Anything => plainly(),
            Replace::Seen(seen) => {
                let found = self.stat_in(to.0, path, to.1).map_err(ChangeError::Io)?;
                match found {
                    Some(entry) if seen.still_describes(&entry) => plainly(),
                    found => Err(self.not_as_seen(path, found)),
                }
            }
            Replace::Nothing => match rename_to_nothing(from, to) {
                Ok(()) => Ok(()),
                Err(Errno::EXIST) => {
                    let found = self.stat_in(to.0, path, to.1).map_err(ChangeError::Io)?;
                    Err(self.not_as_seen(path, found))
                }
                Err(errno) => Err(failed(errno)),
            },
        }
    }

    fn not_as_seen(&self, path: &RelPath, found: Option<Entry>) -> ChangeError {
        ChangeError::NotAsSeen {
            path: self.display_of(path).into(),
            found: found.map(Box::new),
        }
    }

    /// Removes a file, link or special file that still is what was seen. It is no error if nothing is
    /// there. Not durable until its directory is flushed.
    ///
    /// # Errors
    /// [`ChangeError::NotAsSeen`] if it is another thing by now; a directory is never removed here.
    pub fn remove(&self, path: &RelPath, seen: &Fingerprint) -> Result<(), ChangeError> {
        let (directory, name) = split_name(path);
        let directory = match self.directory_bytes(directory) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => {
                return Err(ChangeError::Io(self.error("remove", Some(path), errno)));
            }
        };
        let found = self
            .stat_in(&directory, path, name)
            .map_err(ChangeError::Io)?;
        let Some(found) = found else { return Ok(()) };
        if found.kind == Kind::Directory || !seen.still_describes(&found) {
            return Err(self.not_as_seen(path, Some(found)));
        }
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(ChangeError::Io(self.error("remove", Some(path), errno))),
        }
    }

    /// Removes an empty directory. It is no error if nothing is there. Not durable until the
    /// directory above is flushed.
    ///
    /// # Errors
    /// Of class [`ErrorClass::Occupied`] if it is not empty, or no directory.
    pub fn remove_directory(&self, path: &RelPath) -> Result<(), FsError> {
        let (directory, name) = split_name(path);
        let failed = |errno| self.error("remove directory", Some(path), errno);
        let directory = match self.directory_bytes(directory) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        match rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                self.forget_all_durable();
                Ok(())
            }
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Makes the names in these directories durable (`None` is the root itself), and those
    /// directories' own names up to the root. One that is gone is left out.
    ///
    /// # Errors
    /// If the disk does not confirm it.
    pub fn flush_directories<'p>(
        &self,
        directories: impl IntoIterator<Item = Option<&'p RelPath>>,
    ) -> Result<Flushed, FsError> {
        let paths = directories
            .into_iter()
            .map(|path| path.map_or(&[][..], RelPath::as_bytes));
        let pending = self.pending_flushes(paths);
        self.flush_each(&pending)
    }

    /// Makes everything durable that was changed on the root's file system so far, by whoever.
    ///
    /// # Errors
    /// If the disk does not confirm it.
    pub fn flush_all(&self) -> Result<Flushed, FsError> {
        let handle = sys::open_listing(self.as_fd())
            .map_err(|errno| self.error("open directory", None, errno))?;
        match sys::sync_file_system(handle.as_fd()) {
            Ok(()) => Ok(Flushed::Durable),
            Err(Errno::NOSYS | Errno::INVAL | Errno::NOTSUP) => Ok(Flushed::Unsupported),
            Err(errno) => Err(self.error("flush the file system of", None, errno)),
        }
    }

    /// The directories to flush so that names in `changed` last: they themselves, and what holds the
    /// name of each that is not known to be durable.
    pub(crate) fn pending_flushes<'p>(
        &self,
        changed: impl IntoIterator<Item = &'p [u8]>,
    ) -> BTreeSet<&'p [u8]> {
        let mut pending = BTreeSet::new();
        for path in changed {
            if !pending.insert(path) {
                continue;
            }
            let mut below = path;
            while !below.is_empty() && !self.is_durable(below) {
                let slash = below.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                below = below.get(..slash).unwrap_or_default();
                pending.insert(below);
            }
        }
        pending
    }

    /// Flushes each of these directories, and remembers them as durable.
    pub(crate) fn flush_each(&self, directories: &BTreeSet<&[u8]>) -> Result<Flushed, FsError> {
        let mut flushed = Flushed::Durable;
        for path in directories {
            let shown = || RelPath::new(*path).ok();
            let handle = match self.open_to_flush(path) {
                Ok(handle) => handle,
                Err(Errno::NOENT) => continue,
                // May be entered and written, but not read: there is no handle to flush it by.
                Err(Errno::ACCESS) => {
                    flushed = flushed.and(self.flush_all()?);
                    continue;
                }
                Err(errno) => {
                    return Err(self.error("open directory", shown().as_ref(), errno));
                }
            };
            let one = flush(handle.as_fd())
                .map_err(|errno| self.error("flush directory", shown().as_ref(), errno))?;
            flushed = flushed.and(one);
        }
        self.remember_all_durable(directories);
        Ok(flushed)
    }

    /// A set made by [`Root::pending_flushes`] is on the disk: so are the names of those directories.
    pub(crate) fn remember_all_durable(&self, directories: &BTreeSet<&[u8]>) {
        for path in directories.iter().filter(|path| !path.is_empty()) {
            self.remember_durable(path);
        }
    }

    fn open_to_flush(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        sys::open_below(self.as_fd(), path, sys::LISTING, rustix::fs::Mode::empty())
    }
}

/// Renames only if nothing is there: `EEXIST` if something is.
fn rename_to_nothing(from: (&Directory, &[u8]), to: (&Directory, &[u8])) -> rustix::io::Result<()> {
    let (source, target) = ((from.0.as_fd(), from.1), (to.0.as_fd(), to.1));
    match sys::retrying(|| sys::rename_to_nothing(source, target)) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
        result => return result,
    }
    // A second name fails if it exists, so it never replaces anything either.
    match rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()) {
        Ok(()) => return rustix::fs::unlinkat(from.0, from.1, AtFlags::empty()),
        Err(Errno::EXIST) => return Err(Errno::EXIST),
        // No second names here, or it is a directory.
        Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK | Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    match sys::stat_name(to.0.as_fd(), to.1) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => sys::retrying(|| rustix::fs::renameat(from.0, from.1, to.0, to.1)),
        Err(errno) => Err(errno),
    }
}
