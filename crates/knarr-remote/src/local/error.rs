//! What errors of the local disk mean to whoever uses a remote.

use std::io;

use knarr_core::RelPath;
use knarr_fs::change::ChangeError;
use knarr_fs::commit::CommitError;
use knarr_fs::{ErrorClass, FsError};

use crate::error::{ErrorKind, RemoteError, Retry};
use crate::remote::Replace;

/// `operation` on `path` failed with `error`.
pub(super) fn from_fs(operation: &str, path: Option<&RelPath>, error: FsError) -> RemoteError {
    let (kind, retry, message) = meaning(&error);
    let translated = with_path(RemoteError::new(kind, operation, message), path).caused_by(error);
    match retry {
        Some(retry) => translated.with_retry(retry),
        None => translated,
    }
}

fn with_path(error: RemoteError, path: Option<&RelPath>) -> RemoteError {
    match path {
        Some(path) => error.at(path),
        None => error,
    }
}

fn meaning(error: &FsError) -> (ErrorKind, Option<Retry>, &'static str) {
    match error {
        FsError::NotAFile { .. } => {
            return (ErrorKind::WrongKind, None, "it is not a regular file");
        }
        FsError::Length { .. } => return (ErrorKind::Changed, None, "its length is wrong"),
        FsError::Replaced { .. } => {
            let message = "the directory was unmounted, moved or replaced; bring it back";
            return (ErrorKind::Unreachable, None, message);
        }
        FsError::Io { source, .. } => match source.kind() {
            io::ErrorKind::AlreadyExists => {
                return (ErrorKind::AlreadyExists, None, "something is there already");
            }
            io::ErrorKind::DirectoryNotEmpty => {
                return (ErrorKind::NotEmpty, None, "it is not empty");
            }
            _ => {}
        },
        FsError::NotOurs { .. } => {}
    }
    match error.class() {
        ErrorClass::Transient => (ErrorKind::Other, None, "it does not work at the moment"),
        ErrorClass::NoSpace => (
            ErrorKind::NoSpace,
            None,
            "the disk, the inodes or the quota are used up",
        ),
        ErrorClass::ReadOnly => (ErrorKind::ReadOnly, None, "the file system is read-only"),
        ErrorClass::Denied => (
            ErrorKind::PermissionDenied,
            None,
            "this user has no permission; check owner and mode",
        ),
        ErrorClass::Vanished => (ErrorKind::NotFound, None, "nothing is there"),
        ErrorClass::Occupied => (
            ErrorKind::WrongKind,
            None,
            "a file stands where a directory should, or the reverse",
        ),
        ErrorClass::Escapes => (
            ErrorKind::WrongKind,
            None,
            "it leads through a symbolic link or out of the directory, and that is never followed",
        ),
        ErrorClass::Name => (
            ErrorKind::InvalidName,
            None,
            "this disk cannot hold such a name",
        ),
        ErrorClass::Device => (ErrorKind::Other, None, "the device failed"),
        ErrorClass::Permanent => (
            ErrorKind::Other,
            Some(Retry::Never),
            "the system refused it",
        ),
    }
}

/// A rename or removal of `path` that `replace` was to guard failed.
pub(super) fn from_change(
    operation: &str,
    path: &RelPath,
    guarded: Guard,
    error: ChangeError,
) -> RemoteError {
    match error {
        ChangeError::NotAsSeen { .. } => not_as_seen(operation, path, guarded),
        ChangeError::Io(error) => from_fs(operation, Some(path), error),
    }
}

/// A commit of `path` failed.
pub(super) fn from_commit(path: &RelPath, guarded: Guard, error: CommitError) -> RemoteError {
    match error {
        CommitError::DestinationChanged { .. } => not_as_seen("commit", path, guarded),
        CommitError::DirectoryMoved { .. } => {
            let message = "its directory was moved or replaced meanwhile";
            RemoteError::new(ErrorKind::Changed, "commit", message).at(path)
        }
        CommitError::NotWhatWasStaged { .. } => {
            let message = "somebody else put another file in its place meanwhile";
            RemoteError::new(ErrorKind::Changed, "commit", message).at(path)
        }
        CommitError::Flush(error) => {
            // Whatever the class: it has to be written again.
            let (kind, _, _) = meaning(&error);
            let message = "the disk did not confirm what was written";
            RemoteError::new(kind, "commit", message)
                .at(path)
                .with_retry(Retry::Later)
                .caused_by(error)
        }
        CommitError::Io(error) => from_fs("commit", Some(path), error),
    }
}

/// What a change was guarded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// Nothing was to be there.
    Nothing,
    /// What was seen was to be there.
    Seen,
}

impl From<&Replace> for Guard {
    fn from(replace: &Replace) -> Self {
        match replace {
            Replace::Nothing => Self::Nothing,
            Replace::Seen(_) | Replace::Anything => Self::Seen,
        }
    }
}

fn not_as_seen(operation: &str, path: &RelPath, guarded: Guard) -> RemoteError {
    let (kind, message) = match guarded {
        Guard::Nothing => (ErrorKind::AlreadyExists, "something is there already"),
        Guard::Seen => (
            ErrorKind::Changed,
            "what is there is not what was seen before",
        ),
    };
    RemoteError::new(kind, operation, message).at(path)
}

/// `path` is a thing of the wrong kind.
pub(super) fn wrong_kind(operation: &str, path: &RelPath, message: &str) -> RemoteError {
    RemoteError::new(ErrorKind::WrongKind, operation, message).at(path)
}
