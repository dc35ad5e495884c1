//! Makes staged files visible under their final names, many with a few flushes, so that nothing torn
//! is ever seen and nothing that was reported is ever lost.
//!
//! # The order, and why it is safe
//!
//! 1. *The contents are flushed*, with lengths, times and permissions. Before this, a power cut after
//!    the rename could leave the final name with zero bytes (on ext4 for every new name).
//! 2. *The directories are looked up again* and must be those in which the files were staged.
//!    Otherwise a commit would go to wherever somebody moved the directory.
//! 3. *Each is renamed* within its directory. A rename is atomic for readers, and after a crash or
//!    power cut as well: the name leads to what was there before or to contents that step 1 put on the
//!    disk. This is K2.
//! 4. *The directories are flushed*, and the names of those above that may be new.
//! 5. *The result is looked at* and returned. Only now may the caller record it (K1, K3): a power cut
//!    from here on finds contents (step 1), names (step 4) and directories (step 4) on the disk.
//!
//! A crash before step 3 leaves a staged file, which the next attempt continues or replaces. A crash
//! between 3 and 5 leaves a complete file that nobody was told about; the next plan finds it.
//!
//! # Flushing
//!
//! Up to [`EACH_UP_TO`] files or directories are flushed one by one; for more, one `syncfs` is faster.
//! `syncfs` reports the errors that happened since *its handle* was opened, once per handle. It is
//! therefore given the handle of this batch that was opened first, before anything was written, and
//! that no other batch uses. Kernels before 5.8 do not report errors there and are not given it.
//!
//! A flush that failed is never repeated: the kernel marks the pages clean, so the second attempt
//! would find nothing to do and say yes. The staged file is removed and must be written again.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};

use knarr_core::entry::{Entry, Kind};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::change::ChangeError;
use crate::error::{ErrorClass, FsError, ShownPath};
use crate::root::{Directory, Flushed, Root, flush};
use crate::stage::{Seal, Staged, remove_staged};
use crate::sys::{self, split_name};

/// More files, or more directories, than this are flushed by one `syncfs`.
pub const EACH_UP_TO: usize = 8;

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Yes: what is returned survives a power cut.
    #[default]
    Durable,
    /// No: the caller does not claim that it does.
    Relaxed,
}

/// Something that is now under its final name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// What it is there, without a hash.
    pub entry: Entry,
    /// Whether the disk confirmed it.
    pub flushed: Flushed,
}

/// Why something is not under its final name, or may not stay there.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// What it would have replaced is not what was seen. The staged file was removed.
    #[error("\"{path}\" changed since it was looked at, so it was not replaced")]
    DestinationChanged {
        /// Where.
        path: ShownPath,
        /// What is there now; nothing if it vanished.
        found: Option<Box<Entry>>,
    },
    /// The directory was moved or replaced while the file was staged in it. The staged file was removed.
    #[error("the directory of \"{path}\" was moved or replaced meanwhile")]
    DirectoryMoved {
        /// Where.
        path: ShownPath,
    },
    /// The disk did not confirm it. It must be written again from the start.
    #[error("the disk did not confirm what was written")]
    Flush(#[source] FsError),
    /// What has the final name is not what was staged: somebody interfered, or an identifier was used
    /// for two files.
    #[error("\"{path}\" is not the file that was staged for it")]
    NotWhatWasStaged {
        /// Where.
        path: ShownPath,
    },
    /// It could not be renamed or looked at. If it was not renamed, the staged file stays.
    #[error("the staged file could not be put in place")]
    Io(#[source] FsError),
}

impl CommitError {
    /// What it means for a retry.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::DestinationChanged { .. } => ErrorClass::Occupied,
            Self::DirectoryMoved { .. } | Self::NotWhatWasStaged { .. } => ErrorClass::Transient,
            Self::Flush(error) | Self::Io(error) => error.class(),
        }
    }
}

/// Commits a batch. Every file has a result of its own, in the order of the batch; one that fails
/// does not hold up the others. All must have been staged below `root`.
#[must_use = "a file is only committed if its result says so"]
pub fn commit(
    root: &Root,
    batch: Vec<Staged>,
    durability: Durability,
) -> Vec<Result<Committed, CommitError>> {
    Batch::new(root, batch, durability, None).run()
}

/// Commits a batch whose contents are flushed through `guard`, a handle that was opened before the
/// first of them was written, if they have no handles of their own.
pub(crate) fn commit_guarded(
    root: &Root,
    batch: Vec<Staged>,
    durability: Durability,
    guard: &File,
) -> Vec<Result<Committed, CommitError>> {
    Batch::new(root, batch, durability, Some(guard)).run()
}

struct Batch<'a> {
    root: &'a Root,
    slots: Vec<Slot>,
    durability: Durability,
    guard: Option<&'a File>,
}

struct Slot {
    staged: Staged,
    flushed: Flushed,
    error: Option<CommitError>,
}

/// A directory of the batch, looked up again, and the handle last found to be the same.
struct Place {
    device_and_inode: (u64, u64),
    checked: Option<Directory>,
}

impl<'a> Batch<'a> {
    fn new(
        root: &'a Root,
        batch: Vec<Staged>,
        durability: Durability,
        guard: Option<&'a File>,
    ) -> Self {
        let slots = batch
            .into_iter()
            .map(|staged| Slot {
                staged,
                flushed: Flushed::NotAsked,
                error: None,
            })
            .collect();
        Self {
            root,
            slots,
            durability,
            guard,
        }
    }

    fn run(mut self) -> Vec<Result<Committed, CommitError>> {
        if self.durability == Durability::Durable {
            self.flush_contents();
        }
        let names = self.open_names();
        self.put_in_place();
        if self.durability == Durability::Durable {
            self.flush_names(names.as_ref());
        }
        let root = self.root;
        self.slots.into_iter().map(|slot| slot.look(root)).collect()
    }

    /// The handle through which `syncfs` reports every error since before the batch was written.
    fn sync_handle(&self) -> Option<BorrowedFd<'_>> {
        if !sync_reports_errors() {
            return None;
        }
        let first = self.slots.iter().filter(|slot| slot.staged.file.is_some());
        let first = first.min_by_key(|slot| slot.staged.opened);
        self.guard
            .or(first.and_then(|slot| slot.staged.file.as_ref()))
            .map(File::as_fd)
    }

    /// A handle that reports the errors of the renames, opened before them. The staged files are closed
    /// now: closed later, they would look to a watcher as if somebody had written under the final name.
    fn open_names(&mut self) -> Option<File> {
        for slot in &mut self.slots {
            slot.staged.file = None;
        }
        let many = self.slots.len() > EACH_UP_TO && self.durability == Durability::Durable;
        let handle = many
            .then(|| sys::open_listing(self.root.as_fd()).ok())
            .flatten();
        handle.map(File::from).filter(|_| sync_reports_errors())
    }

    fn flush_contents(&mut self) {
        let handle = self.sync_handle().filter(|_| self.slots.len() > EACH_UP_TO);
        let synced = handle.map(sys::sync_file_system);
        match synced {
            Some(Ok(())) => {
                for slot in &mut self.slots {
                    slot.flushed = Flushed::Durable;
                }
            }
            // Files that are open each say for themselves whether it was them. Others cannot know.
            Some(Err(errno)) if !is_unsupported(errno) => {
                for slot in &mut self.slots {
                    if slot.staged.file.is_some() {
                        slot.flush_content(self.root);
                    } else {
                        slot.fail_flush(self.root.error("flush", Some(&slot.staged.path), errno));
                    }
                }
            }
            Some(Err(_)) | None => {
                for slot in &mut self.slots {
                    slot.flush_content(self.root);
                }
            }
        }
    }

    fn put_in_place(&mut self) {
        let mut places: HashMap<Box<[u8]>, rustix::io::Result<Place>> = HashMap::new();
        for slot in &mut self.slots {
            if slot.error.is_some() {
                continue;
            }
            let (directory, _) = split_name(&slot.staged.path);
            if !places.contains_key(directory) {
                places.insert(directory.into(), Place::find(self.root, directory));
            }
            let there = match places.get_mut(directory) {
                Some(Ok(place)) => Ok(place.is(&slot.staged.directory)),
                Some(Err(Errno::NOENT | Errno::NOTDIR)) | None => Ok(false),
                Some(Err(errno)) => Err(*errno),
            };
            slot.error = match there {
                Ok(true) => slot.rename(self.root).err(),
                Ok(false) => {
                    remove_staged(&slot.staged.directory, slot.staged.name);
                    let path = self.root.display_of(&slot.staged.path).into();
                    Some(CommitError::DirectoryMoved { path })
                }
                Err(errno) => {
                    let path = Some(&slot.staged.path);
                    Some(CommitError::Io(self.root.error(
                        "open the directory of",
                        path,
                        errno,
                    )))
                }
            };
        }
    }

    fn flush_names(&mut self, names: Option<&File>) {
        let renamed = self.slots.iter().filter(|slot| slot.error.is_none());
        let pending = self
            .root
            .pending_flushes(renamed.map(|slot| split_name(&slot.staged.path).0));
        let handle = names
            .filter(|_| pending.len() > EACH_UP_TO)
            .map(File::as_fd);
        let result = match handle.map(sys::sync_file_system) {
            Some(Ok(())) => {
                self.root.remember_all_durable(&pending);
                Ok(Flushed::Durable)
            }
            Some(Err(errno)) if !is_unsupported(errno) => {
                Err(self.root.error("flush", None, errno))
            }
            Some(Err(_)) | None => self.root.flush_each(&pending),
        };
        let error = match result {
            Ok(flushed) => {
                for slot in &mut self.slots {
                    slot.flushed = slot.flushed.and(flushed);
                }
                return;
            }
            Err(error) => error,
        };
        for slot in self.slots.iter_mut().filter(|slot| slot.error.is_none()) {
            let source = errno_of(&error);
            let error = self
                .root
                .error("flush the directory of", Some(&slot.staged.path), source);
            slot.error = Some(CommitError::Flush(error));
        }
    }
}

impl Slot {
    fn flush_content(&mut self, root: &Root) {
        let result = match &self.staged.file {
            Some(file) => flush(file.as_fd()),
            None => self.flush_closed(),
        };
        match result {
            Ok(flushed) => self.flushed = flushed,
            Err(errno) => self.fail_flush(root.error("flush", Some(&self.staged.path), errno)),
        }
    }

    /// A file that was closed is opened again. An error that nobody was told yet is then told here.
    fn flush_closed(&self) -> rustix::io::Result<Flushed> {
        let (directory, name) = (&self.staged.directory, self.staged.name);
        let flags = sys::READING | OFlags::NOFOLLOW;
        match rustix::fs::openat(directory, name.as_bytes(), flags, Mode::empty()) {
            Ok(file) => flush(file.as_fd()),
            // A link has no content but its directory entry, which is flushed with the directory.
            Err(Errno::LOOP) => Ok(Flushed::Durable),
            Err(errno) => Err(errno),
        }
    }

    fn fail_flush(&mut self, error: FsError) {
        remove_staged(&self.staged.directory, self.staged.name);
        self.error = Some(CommitError::Flush(error));
    }

    fn rename(&self, root: &Root) -> Result<(), CommitError> {
        let Staged {
            path,
            directory,
            name,
            replace,
            ..
        } = &self.staged;
        let to = (directory, split_name(path).1);
        match root.move_name((directory, name.as_bytes()), to, path, replace) {
            Ok(()) => Ok(()),
            Err(ChangeError::NotAsSeen { path, found }) => {
                remove_staged(directory, *name);
                Err(CommitError::DestinationChanged { path, found })
            }
            Err(ChangeError::Io(error)) => Err(CommitError::Io(error)),
        }
    }

    fn look(self, root: &Root) -> Result<Committed, CommitError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let path = &self.staged.path;
        let failed = |operation, errno| CommitError::Io(root.error(operation, Some(path), errno));
        let (directory, name) = (&self.staged.directory, split_name(path).1);
        let stat = sys::stat_name(directory.as_fd(), name).map_err(|e| failed("find again", e))?;
        if Seal::of(&stat) != self.staged.seal {
            return Err(CommitError::NotWhatWasStaged {
                path: root.display_of(path).into(),
            });
        }
        let mut entry = sys::entry_of(path.clone(), &stat);
        if entry.kind == Kind::Symlink {
            let target = sys::link_target(directory.as_fd(), name);
            entry.link_target = Some(target.map_err(|errno| failed("read the link", errno))?);
        }
        Ok(Committed {
            entry,
            flushed: self.flushed,
        })
    }
}

impl Place {
    fn find(root: &Root, path: &[u8]) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(root.directory_bytes(path)?)?;
        Ok(Self {
            device_and_inode: (stat.st_dev, stat.st_ino),
            checked: None,
        })
    }

    /// Whether `directory` is what the path leads to now.
    fn is(&mut self, directory: &Directory) -> bool {
        if self
            .checked
            .as_ref()
            .is_some_and(|checked| checked.is_same_handle(directory))
        {
            return true;
        }
        let stat = rustix::fs::fstat(directory);
        let same = stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.device_and_inode);
        if same {
            self.checked = Some(directory.clone());
        }
        same
    }
}

fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::NOSYS | Errno::INVAL | Errno::NOTSUP)
}

fn errno_of(error: &FsError) -> Errno {
    match error {
        FsError::Io { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        _ => Errno::IO,
    }
}

/// Whether this kernel's `syncfs` tells about failed writes (Linux 5.8 and later).
fn sync_reports_errors() -> bool {
    static REPORTS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *REPORTS.get_or_init(|| {
        let system = rustix::system::uname();
        let release = system.release().to_string_lossy().into_owned();
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(str::parse::<u32>);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return false;
        };
        cfg!(target_os = "linux") && (major, minor) >= (5, 8)
    })
}
