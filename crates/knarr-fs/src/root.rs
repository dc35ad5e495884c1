//! A directory that everything below it is reached through.
//!
//! * Every access is relative to one handle and cannot leave it: no symbolic link is followed, `..`
//!   does not exist in a [`RelPath`], and the kernel refuses what a rename in between would make of
//!   it (K12).
//! * No handle of a directory outlives the batch that it was opened for ([`Handles`]). A directory
//!   that somebody renames is found under its new name by the next batch, so nothing is deleted or
//!   written under a name that has moved on.
//! * Paths may be longer than the kernel takes in one call, and as deep as they like.
//!
//! Nothing here is durable by itself but [`Root::create`]: a rename or a new directory survives a
//! power cut once [`Root::flush_directories`] or a commit returned. Which directories are known to be
//! durable is remembered per root, at most [`DURABLE_LIMIT`] of them; forgetting one costs a flush.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use knarr_core::entry::{Entry, Fingerprint, Kind};
use knarr_core::path::RelPath;
use knarr_core::time::Timestamp;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{ErrorClass, FsError};
use crate::identity::{self, RootIdentity};
use crate::sys::{self, split_name};

/// How many directories a root remembers as durable.
pub const DURABLE_LIMIT: usize = 4096;

/// How many directory handles one [`Handles`] keeps open.
pub const HANDLES_LIMIT: usize = 64;

/// Everything that starts with these bytes belongs to Knarr: it is neither listed nor watched.
pub const OWN_PREFIX: &[u8] = b".knarr-";

/// An opened directory, and the path to show for it. Cloning shares the handle.
#[derive(Debug, Clone)]
pub struct Root(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Directory,
    display: PathBuf,
    /// Directories whose name in every directory above them is known to be on the disk.
    durable: Mutex<HashSet<Box<[u8]>>>,
}

/// An open directory below a root. Cloning shares the handle.
#[derive(Debug, Clone)]
pub struct Directory(Arc<OwnedFd>);

impl Directory {
    pub(crate) fn is_same_handle(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What may be replaced by a rename or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replace {
    /// Nothing: fails if anything is there.
    Nothing,
    /// Exactly what was seen there before: fails if it is another thing by now.
    Seen(Fingerprint),
    /// Whatever is there, without looking.
    Anything,
}

/// Times and permissions to give to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// When the content last changed.
    pub mtime: Option<Timestamp>,
    /// The permission bits. Set-user-id and set-group-id are never given to a file: its owner is not
    /// copied either.
    pub mode: Option<u32>,
}

/// What is left on a file system for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// The size of the file system in bytes.
    pub total_bytes: u64,
    /// How many files can still be created, where that is limited.
    pub free_inodes: Option<u64>,
}

/// Whether the disk confirmed that everything is on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flushed {
    /// Yes: a power cut now loses nothing of it.
    Durable,
    /// The file system cannot flush (some network and FUSE ones). To be shown, not hidden.
    Unsupported,
    /// It was not asked to.
    NotAsked,
}

impl Flushed {
    /// The weaker of the two.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Durable, weaker) | (weaker, Self::Durable) => weaker,
            (Self::Unsupported, _) | (_, Self::Unsupported) => Self::Unsupported,
            (Self::NotAsked, Self::NotAsked) => Self::NotAsked,
        }
    }
}

impl Root {
    /// Opens the directory at `path`; links in `path` itself are followed.
    ///
    /// # Errors
    /// If it is not there, no directory, or may not be entered.
    pub fn open(path: &Path) -> Result<Self, FsError> {
        let display = std::path::absolute(path)
            .map_err(|error| FsError::io("open directory", path, error))?;
        let handle = sys::open_given(path, sys::PLACE)
            .map_err(|errno| FsError::io("open directory", &display, errno))?;
        Ok(Self(Arc::new(Inner {
            handle: Directory(Arc::new(handle)),
            display,
            durable: Mutex::new(HashSet::new()),
        })))
    }

    /// Opens the directory at `path` and makes it, and what is missing above it, durably.
    ///
    /// # Errors
    /// If a directory cannot be made, opened or flushed.
    pub fn create(path: &Path) -> Result<Self, FsError> {
        match Self::open(path) {
            Err(error) if error.class() == ErrorClass::Vanished => {}
            result => return result,
        }
        let path = std::path::absolute(path)
            .map_err(|error| FsError::io("make directory", path, error))?;
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|path| matches!(rustix::fs::stat(*path), Err(Errno::NOENT)))
            .collect();
        for directory in missing.into_iter().rev() {
            match rustix::fs::mkdirat(CWD, directory, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(FsError::io("make directory", directory, errno)),
            }
            let parent = directory.parent().unwrap_or(directory);
            let handle = sys::open_given(parent, sys::LISTING)
                .map_err(|errno| FsError::io("open directory", parent, errno))?;
            flush(handle.as_fd()).map_err(|errno| FsError::io("flush directory", parent, errno))?;
        }
        Self::open(&path)
    }

    /// The absolute path that it was opened by, for messages.
    #[must_use]
    pub fn display(&self) -> &Path {
        &self.0.display
    }

    /// The path of something below, for messages and for programs that are given a path.
    #[must_use]
    pub fn display_of(&self, path: &RelPath) -> PathBuf {
        self.0.display.join(path.as_os_str())
    }

    /// Which directory this is.
    ///
    /// # Errors
    /// If the operating system does not tell.
    pub fn identity(&self) -> Result<RootIdentity, FsError> {
        let stat = rustix::fs::fstat(self).map_err(|errno| self.error("look at", None, errno))?;
        RootIdentity::of(self.as_fd(), &stat).map_err(|errno| self.error("look at", None, errno))
    }

    /// Whether other machines can change what lies below, unseen by a watcher on this one.
    ///
    /// # Errors
    /// If the operating system does not tell what the file system is.
    pub fn is_network(&self) -> Result<bool, FsError> {
        Ok(identity::is_network(&self.identity()?))
    }

    /// Looks whether the path of the root still leads to this directory.
    ///
    /// # Errors
    /// [`FsError::Replaced`] if it leads to another, or nowhere: the disk was unmounted, or the
    /// directory was moved or replaced. What lies below must then not be taken for deleted.
    pub fn check_in_place(&self) -> Result<(), FsError> {
        let replaced = || FsError::Replaced {
            path: self.0.display.clone().into(),
        };
        let now = match rustix::fs::stat(&self.0.display) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(replaced()),
            Err(errno) => return Err(self.error("look at", None, errno)),
        };
        let then = rustix::fs::fstat(self).map_err(|errno| self.error("look at", None, errno))?;
        let same = (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino);
        // A deleted directory keeps its numbers for whoever has it open, but has no name any more.
        if same && then.st_nlink > 0 {
            Ok(())
        } else {
            Err(replaced())
        }
    }

    /// How much room is left.
    ///
    /// # Errors
    /// If the operating system does not tell.
    pub fn space(&self) -> Result<Space, FsError> {
        let stat = rustix::fs::fstatvfs(self)
            .map_err(|errno| self.error("ask for the free space of", None, errno))?;
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
        })
    }

    /// What lies at `path`, or nothing. The link itself if it is a symbolic link.
    ///
    /// Nothing is there, too, if a directory above is missing or is no directory. Whether the root
    /// itself is still the right one is for the caller to ask ([`Root::check_in_place`]).
    ///
    /// # Errors
    /// If it cannot be told whether something is there.
    pub fn stat(&self, path: &RelPath) -> Result<Option<Entry>, FsError> {
        let (directory, name) = split_name(path);
        let directory = match self.directory_bytes(directory) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(self.error("look at", Some(path), errno)),
        };
        self.stat_in(&directory, path, name)
    }

    pub(crate) fn stat_in(
        &self,
        directory: &Directory,
        path: &RelPath,
        name: &[u8],
    ) -> Result<Option<Entry>, FsError> {
        let stat = match sys::stat_name(directory.as_fd(), name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.error("look at", Some(path), errno)),
        };
        let mut entry = sys::entry_of(path.clone(), &stat);
        if entry.kind == Kind::Symlink {
            match sys::link_target(directory.as_fd(), name) {
                Ok(target) => entry.link_target = Some(target),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(errno) => return Err(self.error("read the link", Some(path), errno)),
            }
        }
        Ok(Some(entry))
    }

    /// Opens a regular file for reading, and tells what it is at that moment. Never blocks on a FIFO.
    ///
    /// # Errors
    /// If it is not there or may not be read; [`FsError::NotAFile`] if it is anything else.
    pub fn open_file(&self, path: &RelPath) -> Result<(File, Entry), FsError> {
        let (directory, name) = split_name(path);
        let directory = self
            .directory_bytes(directory)
            .map_err(|errno| self.error("open", Some(path), errno))?;
        self.open_file_in(&directory, path, name)
    }

    pub(crate) fn open_file_in(
        &self,
        directory: &Directory,
        path: &RelPath,
        name: &[u8],
    ) -> Result<(File, Entry), FsError> {
        let not_a_file = || FsError::NotAFile {
            path: self.display_of(path).into(),
        };
        let opened =
            sys::retrying(|| rustix::fs::openat(directory, name, sys::READING, Mode::empty()));
        let file = match opened {
            Ok(file) => File::from(file),
            // A link, or a socket.
            Err(Errno::LOOP | Errno::NXIO) => return Err(not_a_file()),
            Err(errno) => return Err(self.error("open", Some(path), errno)),
        };
        let stat =
            rustix::fs::fstat(&file).map_err(|errno| self.error("look at", Some(path), errno))?;
        if sys::kind_of(&stat) != Kind::File {
            return Err(not_a_file());
        }
        Ok((file, sys::entry_of(path.clone(), &stat)))
    }

    /// Makes the directory at `path` and what is missing above it. Not durable until it is flushed;
    /// commits do that for the directories above what they commit.
    ///
    /// # Errors
    /// If one cannot be made, or something else than a directory is in the way.
    pub fn make_directories(&self, path: &RelPath) -> Result<(), FsError> {
        self.directory_or_make(path.as_bytes()).map(drop)
    }

    /// Gives times and permissions to a file or directory; a symbolic link is refused.
    ///
    /// # Errors
    /// If it is not there, or it does not belong to this user.
    pub fn set_attributes(&self, path: &RelPath, to: Attributes) -> Result<(), FsError> {
        let failed = |errno| self.error("set the attributes of", Some(path), errno);
        let handle = sys::open_below(
            self.as_fd(),
            path.as_bytes(),
            sys::ATTRIBUTES,
            Mode::empty(),
        )
        .map_err(failed)?;
        let kind = sys::kind_of(&rustix::fs::fstat(&handle).map_err(failed)?);
        if kind == Kind::Symlink {
            return Err(failed(Errno::LOOP));
        }
        if let Some(mode) = to.mode {
            let allowed = if kind == Kind::Directory {
                0o7777
            } else {
                0o1777
            };
            sys::set_mode(handle.as_fd(), mode & allowed).map_err(failed)?;
        }
        if let Some(mtime) = to.mtime {
            let (directory, name) = split_name(path);
            let directory = self.directory_bytes(directory).map_err(failed)?;
            let times = sys::modified_at(mtime);
            rustix::fs::utimensat(&directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed)?;
        }
        Ok(())
    }

    pub(crate) fn error(
        &self,
        operation: &'static str,
        path: Option<&RelPath>,
        errno: Errno,
    ) -> FsError {
        let path = path.map_or_else(|| self.0.display.clone(), |path| self.display_of(path));
        FsError::io(operation, path, errno)
    }

    /// The directory at `path`; the root itself for an empty one.
    pub(crate) fn directory_bytes(&self, path: &[u8]) -> rustix::io::Result<Directory> {
        if path.is_empty() {
            return Ok(self.0.handle.clone());
        }
        let handle = sys::open_below(self.as_fd(), path, sys::PLACE, Mode::empty())?;
        Ok(Directory(Arc::new(handle)))
    }

    /// The directory at `path`, made where it is missing.
    pub(crate) fn directory_or_make(&self, path: &[u8]) -> Result<Directory, FsError> {
        let failed = |operation, end: usize, errno| {
            let path = RelPath::new(path.get(..end).unwrap_or(path)).ok();
            self.error(operation, path.as_ref(), errno)
        };
        match self.directory_bytes(path) {
            Err(Errno::NOENT) => {}
            result => return result.map_err(|errno| failed("open directory", path.len(), errno)),
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let ends: Vec<usize> = slashes.map(|(at, _)| at).chain([path.len()]).collect();
        // The deepest directory that is there; most often the parent.
        let mut depth = ends.len() - 1;
        let mut reached = loop {
            let end = depth
                .checked_sub(1)
                .and_then(|last| ends.get(last))
                .copied()
                .unwrap_or(0);
            match self.directory_bytes(path.get(..end).unwrap_or_default()) {
                Ok(directory) => break directory,
                Err(Errno::NOENT) if depth > 0 => depth -= 1,
                Err(errno) => return Err(failed("open directory", end, errno)),
            }
        };
        let mut start = if depth == 0 { 0 } else { ends[depth - 1] + 1 };
        for &end in ends.get(depth..).unwrap_or_default() {
            let name = path.get(start..end).unwrap_or_default();
            match rustix::fs::mkdirat(&reached, name, Mode::from_raw_mode(0o777)) {
                Ok(()) => self.forget_durable(path.get(..end).unwrap_or_default()),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("make directory", end, errno)),
            }
            let next = sys::open_below(reached.as_fd(), name, sys::PLACE, Mode::empty())
                .map_err(|errno| failed("open directory", end, errno))?;
            reached = Directory(Arc::new(next));
            start = end + 1;
        }
        Ok(reached)
    }

    fn forget_durable(&self, path: &[u8]) {
        let mut durable = self
            .0
            .durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // It was removed and made again by others: what is known about those below is void, too.
        if durable.contains(path) {
            durable.clear();
        }
    }

    /// Forgets which directories are durable, as names of directories changed.
    pub(crate) fn forget_all_durable(&self) {
        self.0
            .durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    pub(crate) fn is_durable(&self, path: &[u8]) -> bool {
        self.0
            .durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(path)
    }

    pub(crate) fn remember_durable(&self, path: &[u8]) {
        let mut durable = self
            .0
            .durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if durable.len() >= DURABLE_LIMIT {
            durable.clear();
        }
        durable.insert(path.into());
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.handle.as_fd()
    }
}

/// Flushes a file or directory. Says which file systems cannot.
pub(crate) fn flush(handle: BorrowedFd<'_>) -> rustix::io::Result<Flushed> {
    match sys::sync_file(handle) {
        Ok(()) => Ok(Flushed::Durable),
        Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => Ok(Flushed::Unsupported),
        Err(errno) => Err(errno),
    }
}

/// The directory handles of one batch, at most [`HANDLES_LIMIT`], the least recently used closed
/// first. Opening a long path costs a lookup of each component; a batch in tree order does it once
/// per directory. To be dropped with the batch: see the module's documentation.
#[derive(Debug)]
pub struct Handles {
    root: Root,
    /// The most recently used one last.
    recent: Vec<(Box<[u8]>, Directory)>,
}

impl Handles {
    /// With none open yet.
    #[must_use]
    pub fn new(root: &Root) -> Self {
        Self {
            root: root.clone(),
            recent: Vec::new(),
        }
    }

    /// The root they belong to.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// The directory at `path`; the root itself for an empty one.
    pub(crate) fn directory(&mut self, path: &[u8]) -> rustix::io::Result<Directory> {
        if let Some(directory) = self.find(path) {
            return Ok(directory);
        }
        let directory = self.root.directory_bytes(path)?;
        self.keep(path, &directory);
        Ok(directory)
    }

    /// The directory at `path`, made where it is missing.
    pub(crate) fn directory_or_make(&mut self, path: &[u8]) -> Result<Directory, FsError> {
        if let Some(directory) = self.find(path) {
            return Ok(directory);
        }
        let directory = self.root.directory_or_make(path)?;
        self.keep(path, &directory);
        Ok(directory)
    }

    fn find(&mut self, path: &[u8]) -> Option<Directory> {
        let at = self
            .recent
            .iter()
            .rposition(|(known, _)| **known == *path)?;
        if at + 1 < self.recent.len() {
            let used = self.recent.remove(at);
            self.recent.push(used);
        }
        self.recent.last().map(|(_, directory)| directory.clone())
    }

    fn keep(&mut self, path: &[u8], directory: &Directory) {
        if self.recent.len() >= HANDLES_LIMIT {
            drop(self.recent.remove(0));
        }
        self.recent.push((path.into(), directory.clone()));
    }
}

/// Flags for a file that must not be there yet.
pub(crate) const NEW_FILE: OFlags = OFlags::RDWR
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
