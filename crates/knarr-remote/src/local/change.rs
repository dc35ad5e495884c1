//! Renaming and removing, durably.
//!
//! The flush comes last and covers all items of a call: what is reported as done survives a power
//! cut. If it fails, nothing is reported as done, although it may be.

use std::collections::BTreeSet;

use knarr_core::entry::Kind;
use knarr_core::{Entry, RelPath};
use knarr_fs::change::ChangeError;
use knarr_fs::commit::EACH_UP_TO;
use knarr_fs::{ErrorClass, FsError, Root};

use super::commit::replace_of;
use super::error::{Guard, from_change, from_fs, wrong_kind};
use crate::error::{ErrorKind, RemoteError};
use crate::remote::{Removal, Replace};

/// Gives `from` the name `to`. Blocks.
pub(super) fn rename(
    root: &Root,
    from: &RelPath,
    to: &RelPath,
    replace: &Replace,
) -> Result<Entry, RemoteError> {
    if to.strip_directory(from).is_some() {
        return Err(wrong_kind(
            "rename",
            from,
            "a directory cannot be moved into itself",
        ));
    }
    let found = root
        .stat(from)
        .map_err(|error| from_fs("rename", Some(from), error))?;
    if found.is_none() {
        return Err(RemoteError::new(ErrorKind::NotFound, "rename", "nothing is there").at(from));
    }
    let there = root
        .stat(to)
        .map_err(|error| from_fs("rename", Some(to), error))?;
    if *replace != Replace::Nothing && there.is_some_and(|entry| entry.kind == Kind::Directory) {
        // The system would replace an empty one without a word.
        return Err(wrong_kind(
            "rename to",
            to,
            "a directory is there, and none is replaced",
        ));
    }
    let parent = to.parent();
    if let Some(parent) = &parent {
        root.make_directories(parent)
            .map_err(|error| from_fs("make the directory of", Some(to), error))?;
    }
    root.rename(from, to, &replace_of(replace))
        .map_err(|error| match error {
            ChangeError::Io(error) if error.class() == ErrorClass::Escapes => {
                let message =
                    "the new name is on another file system, so it would have to be copied";
                RemoteError::new(ErrorKind::Unsupported, "rename", message)
                    .at(from)
                    .caused_by(error)
            }
            error => from_change("rename to", to, Guard::from(replace), error),
        })?;
    let old_parent = from.parent();
    root.flush_directories([old_parent.as_ref(), parent.as_ref()])
        .map_err(|error| from_fs("rename to", Some(to), error))?;
    match root.stat(to) {
        Ok(Some(entry)) => Ok(entry),
        Ok(None) => {
            let message = "it vanished right after it was renamed";
            Err(RemoteError::new(ErrorKind::Changed, "rename to", message).at(to))
        }
        Err(error) => Err(from_fs("rename to", Some(to), error)),
    }
}

/// Removes in the given order, then flushes once. Blocks.
pub(super) fn remove(root: &Root, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
    let mut results: Vec<Result<(), RemoteError>> = removals
        .iter()
        .map(|removal| remove_one(root, removal))
        .collect();
    let parents: BTreeSet<Option<RelPath>> = removals
        .iter()
        .zip(&results)
        .filter(|(_, result)| result.is_ok())
        .map(|(removal, _)| removal.path.parent())
        .collect();
    let flushed = if parents.len() > EACH_UP_TO {
        root.flush_all()
    } else {
        root.flush_directories(parents.iter().map(Option::as_ref))
    };
    if let Err(error) = flushed {
        let class = from_fs("remove", None, error);
        for (removal, result) in removals.iter().zip(&mut results) {
            if result.is_ok() {
                let message = "the disk did not confirm it";
                *result = Err(RemoteError::new(class.kind, "remove", message)
                    .with_retry(class.retry)
                    .at(&removal.path));
            }
        }
    }
    results
}

fn remove_one(root: &Root, removal: &Removal) -> Result<(), RemoteError> {
    let path = &removal.path;
    if removal.kind == Kind::Directory {
        return root
            .remove_directory(path)
            .or_else(|error| gone_is_removed(root, path, error));
    }
    let found = root
        .stat(path)
        .map_err(|error| from_fs("remove", Some(path), error))?;
    let Some(found) = found else { return Ok(()) };
    if found.kind != removal.kind {
        let message = format!("it is a {}, not a {}", found.kind, removal.kind);
        return Err(wrong_kind("remove", path, &message));
    }
    let seen = removal.seen.clone().unwrap_or_else(|| found.fingerprint());
    root.remove(path, &seen).or_else(|error| match error {
        ChangeError::Io(error) => gone_is_removed(root, path, error),
        error @ ChangeError::NotAsSeen { .. } => {
            Err(from_change("remove", path, Guard::Seen, error))
        }
    })
}

/// What lies below something that is no directory is not there.
fn gone_is_removed(root: &Root, path: &RelPath, error: FsError) -> Result<(), RemoteError> {
    match root.stat(path) {
        Ok(None) => Ok(()),
        // Some systems say "exists" of a directory that is not empty.
        Ok(Some(found)) if found.kind == Kind::Directory => {
            let error = from_fs("remove", Some(path), error);
            Err(match error.kind {
                ErrorKind::AlreadyExists => RemoteError {
                    kind: ErrorKind::NotEmpty,
                    ..error
                },
                _ => error,
            })
        }
        _ => Err(from_fs("remove", Some(path), error)),
    }
}
