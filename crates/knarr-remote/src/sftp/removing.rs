//! Removes files, links and empty directories.
//!
//! Each is looked at before it is removed: a REMOVE takes a link for a file, and only a look can tell
//! another version. Many travel together; a directory waits for what lies below it.

use futures::StreamExt as _;
use knarr_core::entry::Kind;
use knarr_core::{Entry, RelPath};
use knarr_sftp::client::DirectoryOptions;

use crate::error::{ErrorKind, RemoteError};
use crate::remote::Removal;
use crate::sftp::connection::Connection;
use crate::sftp::{Place, Root, entries, error};

/// Removals that travel together.
const AT_ONCE: usize = 64;

pub(super) async fn remove(place: &Place, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
    let connection = match place.endpoint.connection().await {
        Ok(connection) => connection,
        Err(error) => {
            let failure = |path: &RelPath| {
                let message = error::told(&error);
                RemoteError::new(error.kind, "remove", message)
                    .with_retry(error.retry)
                    .at(path)
            };
            return removals
                .iter()
                .map(|removal| Err(failure(&removal.path)))
                .collect();
        }
    };
    let root = place.root();
    let mut results = Vec::with_capacity(removals.len());
    let mut rest = removals;
    while !rest.is_empty() {
        let (group, behind) = rest.split_at(independent(rest));
        let removing = futures::stream::iter(0..group.len())
            .map(|index| remove_one(&connection, &root, &group[index]))
            .buffered(AT_ONCE);
        results.extend(removing.collect::<Vec<_>>().await);
        rest = behind;
    }
    results
}

/// How many of `removals`, from the first, do not have to wait for each other: up to a directory that
/// has something before it below it. At least one.
fn independent(removals: &[Removal]) -> usize {
    let mut before: std::collections::HashSet<RelPath> = std::collections::HashSet::new();
    for (index, removal) in removals.iter().enumerate() {
        if removal.kind == Kind::Directory && before.contains(&removal.path) {
            return index;
        }
        let mut above = removal.path.parent();
        while let Some(directory) = above {
            above = directory.parent();
            if !before.insert(directory) {
                break;
            }
        }
    }
    removals.len()
}

async fn remove_one(
    connection: &Connection,
    root: &Root,
    removal: &Removal,
) -> Result<(), RemoteError> {
    let path = &removal.path;
    let full = root.full(path);
    let client = connection.client();
    let needs_target = removal.kind == Kind::Symlink && removal.seen.is_some();
    let found = if needs_target {
        entries::look(connection, &full, path).await?
    } else {
        match client.lstat(&full).await {
            Ok(attributes) => Some(entries::entry(path.clone(), &attributes)),
            Err(source) if source.is_not_found() => None,
            Err(source) => return Err(error::at(connection, "look at", path, source)),
        }
    };
    let Some(found) = found else { return Ok(()) };
    check(removal, &found)?;
    let removed = match removal.kind {
        Kind::Directory => client.remove_directory(&full).await,
        Kind::File | Kind::Symlink | Kind::Special => client.remove(&full).await,
    };
    match removed {
        Ok(()) => Ok(()),
        Err(source) if source.is_not_found() => Ok(()),
        Err(source) => Err(explain(connection, &full, removal, source).await),
    }
}

fn check(removal: &Removal, found: &Entry) -> Result<(), RemoteError> {
    if found.kind != removal.kind {
        let message = format!("it is a {}, not a {}", found.kind, removal.kind);
        return Err(RemoteError::new(ErrorKind::WrongKind, "remove", message).at(&removal.path));
    }
    match &removal.seen {
        Some(seen) => entries::check_seen("remove", &removal.path, Some(found), seen),
        None => Ok(()),
    }
}

/// Why a removal was refused: OpenSSH says "failure" to a directory that is not empty.
async fn explain(
    connection: &Connection,
    full: &[u8],
    removal: &Removal,
    source: knarr_sftp::Error,
) -> RemoteError {
    let error = error::at(connection, "remove", &removal.path, source);
    if removal.kind != Kind::Directory || error.kind != ErrorKind::Other {
        return error;
    }
    let options = DirectoryOptions::default();
    let Ok(mut names) = connection.client().open_directory(full, options).await else {
        return error;
    };
    while let Ok(Some(batch)) = names.next_batch().await {
        if batch
            .iter()
            .any(|entry| !matches!(&*entry.name, b"." | b".."))
        {
            let message = "the directory is not empty";
            return RemoteError::new(ErrorKind::NotEmpty, "remove", message).at(&removal.path);
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_waits_for_what_lies_below_it() {
        let removal = |path: &str, kind| {
            let path = RelPath::new(path.as_bytes()).unwrap();
            Removal {
                path,
                kind,
                seen: None,
            }
        };
        let removals = [
            removal("a/1", Kind::File),
            removal("c", Kind::Directory),
            removal("a/b/2", Kind::File),
            removal("a/b", Kind::Directory),
            removal("d", Kind::Directory),
            removal("a", Kind::Directory),
        ];
        assert_eq!(independent(&removals), 3);
        assert_eq!(independent(&removals[3..]), 2);
        assert_eq!(independent(&removals[5..]), 1);
    }
}
