//! Makes missing directories above a path.
//!
//! They are not looked for before they are missed: nearly always they are there, and a file that
//! cannot be opened because they are not says so.

use futures::future::join_all;
use knarr_core::RelPath;
use knarr_core::entry::Kind;
use knarr_sftp::Attributes;

use crate::error::{ErrorKind, RemoteError};
use crate::sftp::connection::Connection;
use crate::sftp::{Root, entries, error};

/// The directory above a path on the server; nothing above a root or a bare name.
pub(super) fn parent(full: &[u8]) -> Option<&[u8]> {
    let slash = full.iter().rposition(|byte| *byte == b'/')?;
    (slash > 0).then(|| &full[..slash])
}

/// Makes all directories above `full` that are missing.
pub(super) async fn make(
    connection: &Connection,
    full: &[u8],
    path: &RelPath,
) -> Result<(), RemoteError> {
    let mut directories = Vec::new();
    let mut above = parent(full);
    while let Some(directory) = above {
        directories.push(directory);
        above = parent(directory);
    }
    directories.reverse();
    // All at once, the uppermost first: on most servers this is one round trip.
    let client = connection.client();
    let made = directories
        .iter()
        .map(|directory| client.create_directory(directory, Attributes::default()));
    let outcomes = join_all(made).await;
    match outcomes.into_iter().next_back() {
        None | Some(Ok(())) => return Ok(()),
        Some(Err(source)) if source.is_connection_lost() => {
            return Err(error::at(
                connection,
                "make the directory for",
                path,
                source,
            ));
        }
        Some(Err(_exists_or_worse)) => {}
    }
    // A failure says too little: the lowest one is looked at, and if it is not there all of them are
    // made one after the other, for servers that do not keep the order.
    if let Some(lowest) = directories.last()
        && is_directory(connection, lowest).await
    {
        return Ok(());
    }
    for directory in directories {
        if let Err(source) = client
            .create_directory(directory, Attributes::default())
            .await
            && !is_directory(connection, directory).await
        {
            return Err(explain(connection, directory, path, source).await);
        }
    }
    Ok(())
}

/// Whether a directory is there; a link to one will do.
async fn is_directory(connection: &Connection, full: &[u8]) -> bool {
    match connection.client().stat(full).await {
        Ok(attributes) => entries::kind(&attributes) == Some(Kind::Directory),
        Err(_) => false,
    }
}

async fn explain(
    connection: &Connection,
    directory: &[u8],
    path: &RelPath,
    source: knarr_sftp::Error,
) -> RemoteError {
    // The directory itself, or one above it, may be something else.
    let mut above = Some(directory);
    while let Some(candidate) = above {
        if let Ok(attributes) = connection.client().stat(candidate).await {
            if entries::kind(&attributes).is_some_and(|kind| kind != Kind::Directory) {
                let shown = knarr_core::path::printable(candidate).to_string();
                let message = format!("\"{shown}\" on the server is not a directory");
                let operation = "make the directory for";
                return RemoteError::new(ErrorKind::WrongKind, operation, message).at(path);
            }
            break;
        }
        above = parent(candidate);
    }
    let directory = parent(directory).unwrap_or(b".");
    error::while_writing(
        connection,
        directory,
        "make the directory for",
        path,
        source,
    )
    .await
}

/// Does `attempt`, and once more after making what is missing above it.
pub(super) async fn with_parents<T, Attempt, Attempted>(
    connection: &Connection,
    root: &Root,
    path: &RelPath,
    attempt: Attempt,
) -> Result<Result<T, knarr_sftp::Error>, RemoteError>
where
    Attempt: Fn() -> Attempted + Send + Sync,
    Attempted: Future<Output = Result<T, knarr_sftp::Error>> + Send,
    T: Send,
{
    match attempt().await {
        Err(source) if source.is_not_found() => {
            make(connection, &root.full(path), path).await?;
            Ok(attempt().await)
        }
        outcome => Ok(outcome),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_end_at_roots_and_bare_names() {
        for (path, above) in [
            (&b"/a/b"[..], Some(&b"/a"[..])),
            (b"/a", None),
            (b"a", None),
            (b"a/b/c", Some(b"a/b")),
        ] {
            assert_eq!(parent(path), above);
        }
    }
}
