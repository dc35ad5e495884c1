//! What may be replaced, decided in one place for those that decide it themselves.

use knarr_core::entry::Kind;
use knarr_core::{Entry, RelPath};

use crate::error::{ErrorKind, RemoteError};
use crate::remote::Replace;

/// Refuses to put a `kind` in the place of `existing` unless `replace` allows it.
pub(crate) fn check_replace(
    operation: &str,
    path: &RelPath,
    kind: Kind,
    existing: Option<&Entry>,
    replace: &Replace,
) -> Result<(), RemoteError> {
    match (existing, replace) {
        (None, Replace::Seen(_)) => Err(changed(operation, path)),
        (None, Replace::Nothing | Replace::Anything) => Ok(()),
        (Some(_), Replace::Nothing) => Err(RemoteError::new(
            ErrorKind::AlreadyExists,
            operation,
            "something is there already",
        )
        .at(path)),
        (Some(entry), Replace::Seen(seen)) if !seen.still_describes(entry) => {
            Err(changed(operation, path))
        }
        (Some(entry), Replace::Seen(_) | Replace::Anything)
            if entry.kind == Kind::Directory || kind == Kind::Directory =>
        {
            Err(wrong_kind(operation, path, entry.kind, kind))
        }
        (Some(_), Replace::Seen(_) | Replace::Anything) => Ok(()),
    }
}

/// Nothing is at `path`.
pub(crate) fn missing(operation: &str, path: &RelPath) -> RemoteError {
    RemoteError::new(ErrorKind::NotFound, operation, "nothing is there").at(path)
}

/// Another version is at `path` than was seen.
pub(crate) fn changed(operation: &str, path: &RelPath) -> RemoteError {
    let message = "what is there is not what was seen before";
    RemoteError::new(ErrorKind::Changed, operation, message).at(path)
}

/// A thing of another kind is at `path`.
pub(crate) fn wrong_kind(operation: &str, path: &RelPath, is: Kind, expected: Kind) -> RemoteError {
    let message = format!("it is a {is}, not a {expected}");
    RemoteError::new(ErrorKind::WrongKind, operation, message).at(path)
}
