//! Uploads that are not complete yet.
//!
//! Order: a staged file is opened and locked before anything in it is changed, so that two clients never write to
//! one. It is looked up again after the lock was taken: whoever held it may have published it meanwhile. It gets
//! its final name last, after its length was checked and its permissions set, and while it is still locked.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use knarr_sftp::codec::{Attributes, OpenFlags};
use knarr_sftp::server::FileError;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::files::attributes::{mode_of, size_of};
use crate::files::file::{LocalFile, truncate};
use crate::files::local::{Flush, Shared};
use crate::files::place::{LISTING, PLACE, STAGED_PREFIX, Spot, failed, retrying};
use crate::files::policy::Permission;

/// How a client wants to open a file.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) flags: OpenFlags,
    pub(crate) attributes: &'a Attributes,
    pub(crate) is_there: bool,
}

/// What may stand under the final name when the upload is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replace {
    Nothing,
    Anything,
}

/// An upload that is not complete.
#[derive(Debug)]
pub(crate) struct Staged {
    directory: OwnedFd,
    name: Vec<u8>,
    staged_name: Vec<u8>,
    replace: Replace,
    /// The permissions to give; nothing if the client has given them.
    mode: Option<Mode>,
    /// How long the client said that it would be, in bytes.
    declared_bytes: Option<u64>,
}

/// The staged name of `name`: always the same, so that the next connection finds it.
pub(crate) fn staged_name(name: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(name);
    let digits = hash.to_hex();
    let mut staged = STAGED_PREFIX.to_vec();
    staged.extend(digits.as_bytes().iter().take(32));
    staged.extend(b".part");
    staged
}

/// What the account gets back for a file of this kind that goes away.
pub(crate) fn freed_by(stat: &Stat) -> Option<u64> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    // Of a file with several names, only the last gives bytes back; a link never had any.
    let has_bytes = kind == FileType::RegularFile && stat.st_nlink <= 1;
    let bytes = if has_bytes { size_of(stat) } else { 0 };
    (kind != FileType::Directory).then_some(bytes)
}

/// Opens the staged file of an upload, new or to be continued.
pub(crate) fn open(
    shared: &Arc<Shared>,
    path: Vec<u8>,
    wanted: &Wanted<'_>,
) -> Result<LocalFile, FileError> {
    let flags = wanted.flags;
    let is_new = flags.contains(OpenFlags::TRUNCATE) || flags.contains(OpenFlags::EXCLUSIVE);
    if wanted.is_there && flags.contains(OpenFlags::EXCLUSIVE) {
        return Err(FileError::Refused {
            reason: "the file is there already",
        });
    }
    let spot = shared.place.entry(&path)?;
    if wanted.is_there {
        check_replaceable(&spot)?;
    }
    let staged_name = staged_name(&spot.name);
    let creates = flags.contains(OpenFlags::CREATE);
    let file = open_locked(shared, &spot, &staged_name, flags, creates)?;
    if is_new {
        truncate(shared, file.as_fd(), 0)?;
    }
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    let may_replace =
        !flags.contains(OpenFlags::EXCLUSIVE) && shared.policy.at(&path).has(Permission::Overwrite);
    let staged = Staged {
        directory: rustix::fs::openat(spot.at(), c".", PLACE, Mode::empty()).map_err(failed)?,
        staged_name,
        replace: if may_replace {
            Replace::Anything
        } else {
            Replace::Nothing
        },
        mode: Some(final_mode(shared, &spot, wanted)),
        // Zero is what clients send that have nothing to say.
        declared_bytes: wanted.attributes.size.filter(|size| *size > 0),
        name: spot.name,
    };
    let shared = Arc::clone(shared);
    let size = size_of(&stat);
    // Who appends goes on, wherever that is.
    let begins = is_new || size == 0 || flags.contains(OpenFlags::APPEND);
    let left_bytes = (!begins).then_some(size);
    Ok(LocalFile::staged(
        shared,
        path,
        file,
        staged,
        flags.contains(OpenFlags::APPEND),
        left_bytes,
    ))
}

/// Only a regular file, or a link to whatever it is, is replaced by an upload.
fn check_replaceable(spot: &Spot<'_>) -> Result<(), FileError> {
    let stat = rustix::fs::statat(spot.at(), &*spot.name, AtFlags::SYMLINK_NOFOLLOW);
    let kind = FileType::from_raw_mode(stat.map_err(failed)?.st_mode);
    if matches!(kind, FileType::RegularFile | FileType::Symlink) {
        Ok(())
    } else {
        Err(FileError::Refused {
            reason: "that is no regular file",
        })
    }
}

/// The permissions that the file would have if it were written under its name.
fn final_mode(shared: &Shared, spot: &Spot<'_>, wanted: &Wanted<'_>) -> Mode {
    let before = rustix::fs::statat(spot.at(), &*spot.name, AtFlags::SYMLINK_NOFOLLOW)
        .ok()
        .filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    match before {
        Some(stat) => mode_of(&shared.place, stat.st_mode),
        None => {
            let wanted = mode_of(
                &shared.place,
                wanted.attributes.permissions.unwrap_or(0o666),
            );
            wanted - Mode::from_raw_mode(umask())
        }
    }
}

/// The permission bits that new files of this process do not get.
fn umask() -> u32 {
    static UMASK: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    // Asking by `umask(2)` would change it for a moment, for every thread.
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let digits = status
            .lines()
            .find_map(|line| line.strip_prefix("Umask:"))
            .map(str::trim);
        digits
            .and_then(|digits| u32::from_str_radix(digits, 8).ok())
            .unwrap_or(0o022)
    })
}

fn open_locked(
    shared: &Shared,
    spot: &Spot<'_>,
    staged_name: &[u8],
    flags: OpenFlags,
    creates: bool,
) -> Result<OwnedFd, FileError> {
    let access = if flags.contains(OpenFlags::READ) {
        OFlags::RDWR
    } else {
        OFlags::WRONLY
    };
    let mut how = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if flags.contains(OpenFlags::APPEND) {
        how |= OFlags::APPEND;
    }
    let mode = Mode::from_raw_mode(0o600);
    for _ in 0..16 {
        let opened = retrying(|| rustix::fs::openat(spot.at(), staged_name, how, mode));
        let file = match opened {
            Err(Errno::NOENT) if creates => {
                if let Some(account) = shared.policy.account() {
                    account.take_file()?;
                }
                let exclusively = how | OFlags::CREATE | OFlags::EXCL;
                let made =
                    retrying(|| rustix::fs::openat(spot.at(), staged_name, exclusively, mode));
                if let (Err(_), Some(account)) = (&made, shared.policy.account()) {
                    account.give_file();
                }
                match made {
                    Err(Errno::EXIST) => continue,
                    made => made.map_err(failed)?,
                }
            }
            opened => opened.map_err(failed)?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(FileError::Refused {
                    reason: "this file is being uploaded by somebody else at this moment",
                });
            }
            Err(errno) => return Err(failed(errno)),
        }
        if is_ours(spot.at(), staged_name, file.as_fd())? {
            return Ok(file);
        }
    }
    Err(FileError::Refused {
        reason: "this file is being uploaded by somebody else at this moment",
    })
}

/// Whether the staged name still leads to the open file, which nobody else has a name for.
fn is_ours(
    directory: BorrowedFd<'_>,
    staged_name: &[u8],
    file: BorrowedFd<'_>,
) -> Result<bool, FileError> {
    let open = rustix::fs::fstat(file).map_err(failed)?;
    match rustix::fs::statat(directory, staged_name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (open.st_dev, open.st_ino)
            && open.st_nlink == 1
            && FileType::from_raw_mode(open.st_mode) == FileType::RegularFile),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(failed(errno)),
    }
}

impl Staged {
    /// The client has given permissions: they are not changed any more.
    pub(crate) const fn keep_permissions(&mut self) {
        self.mode = None;
    }

    /// Gives a complete upload its name. Returns its length in bytes.
    pub(crate) fn publish(self, shared: &Shared, file: &OwnedFd) -> Result<u64, FileError> {
        let stat = rustix::fs::fstat(file).map_err(failed)?;
        let length_bytes = size_of(&stat);
        if self
            .declared_bytes
            .is_some_and(|declared| length_bytes < declared)
        {
            return Err(FileError::Refused {
                reason: "the file is shorter than was declared: it is kept to be continued",
            });
        }
        if !is_ours(self.directory.as_fd(), &self.staged_name, file.as_fd())? {
            return Err(FileError::Refused {
                reason: "the upload was removed or replaced on the server: send it again",
            });
        }
        if let Some(mode) = self.mode {
            rustix::fs::fchmod(file, mode).map_err(failed)?;
        }
        if shared.flush == Flush::AtClose {
            retrying(|| rustix::fs::fsync(file)).map_err(failed)?;
        }
        let (at, from, to) = (self.directory.as_fd(), &self.staged_name, &self.name);
        match self.replace {
            Replace::Nothing => match rename_exclusively(at, from, at, to) {
                Err(Errno::EXIST) => {
                    return Err(FileError::Refused {
                        reason: "a file of this name came meanwhile, and is not replaced",
                    });
                }
                outcome => outcome.map_err(failed)?,
            },
            Replace::Anything => {
                let replaced = rustix::fs::statat(at, to.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
                rustix::fs::renameat(at, from.as_slice(), at, to.as_slice()).map_err(failed)?;
                let freed = replaced.ok().as_ref().and_then(freed_by);
                if let (Some(account), Some(bytes)) = (shared.policy.account(), freed) {
                    account.give_bytes(bytes);
                    account.give_file();
                }
            }
        }
        if shared.flush == Flush::AtClose {
            let directory = rustix::fs::openat(at, c".", LISTING, Mode::empty()).map_err(failed)?;
            retrying(|| rustix::fs::fsync(&directory)).map_err(failed)?;
        }
        Ok(length_bytes)
    }
}

/// Removes the staged file of a name that has no other.
pub(crate) fn discard(shared: &Shared, spot: &Spot<'_>) -> Result<(), FileError> {
    remove_staged(shared, spot.at(), &staged_name(&spot.name))
}

/// Removes every staged file of a directory, if nothing else is in it.
pub(crate) fn discard_all(shared: &Shared, directory: OwnedFd) -> Result<(), FileError> {
    let mut listing = Dir::read_from(&directory).map_err(failed)?;
    while let Some(entry) = listing.read() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && !name.starts_with(STAGED_PREFIX) {
            return Err(failed(Errno::NOTEMPTY));
        }
    }
    listing.rewind();
    while let Some(entry) = listing.read() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name.starts_with(STAGED_PREFIX) {
            remove_staged(shared, directory.as_fd(), name)?;
        }
    }
    Ok(())
}

fn remove_staged(shared: &Shared, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), FileError> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    rustix::fs::unlinkat(directory, name, AtFlags::empty()).map_err(failed)?;
    if let (Some(account), Some(bytes)) = (shared.policy.account(), freed_by(&stat)) {
        account.give_bytes(bytes);
        account.give_file();
    }
    Ok(())
}

/// Renames, and fails with EXIST if something is there. File systems that cannot do that in one step get a link
/// and a removal, which keeps the promise for files.
pub(crate) fn rename_exclusively(
    from_at: BorrowedFd<'_>,
    from: &[u8],
    to_at: BorrowedFd<'_>,
    to: &[u8],
) -> rustix::io::Result<()> {
    match rustix::fs::renameat_with(from_at, from, to_at, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {}
        outcome => return outcome,
    }
    let stat = rustix::fs::statat(from_at, from, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        rustix::fs::linkat(from_at, from, to_at, to, AtFlags::empty())?;
        return rustix::fs::unlinkat(from_at, from, AtFlags::empty());
    }
    match rustix::fs::statat(to_at, to, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => rustix::fs::renameat(from_at, from, to_at, to),
        Err(errno) => Err(errno),
        Ok(_) => Err(Errno::EXIST),
    }
}
