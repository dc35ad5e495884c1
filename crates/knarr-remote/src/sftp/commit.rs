//! Gives staged things their final names.
//!
//! Order: everything about a staged thing was answered well before its rename is sent (see the module's
//! constraints). What may be replaced decides which rename: a plain one refuses to replace (OpenSSH links
//! and unlinks), `posix-rename@openssh.com` replaces atomically. If the connection breaks between a
//! rename and its answer, the server is asked once more, on a new connection, what came of it.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use knarr_core::entry::Kind;
use knarr_core::{Entry, RelPath};
use knarr_sftp::Attributes;
use knarr_sftp::codec::Extension;

use crate::error::{ErrorKind, RemoteError};
use crate::remote::{NewNode, Replace};
use crate::sftp::connection::Connection;
use crate::sftp::endpoint::{ReplaceWithoutPosixRename, SftpEndpoint};
use crate::sftp::state::StagedState;
use crate::sftp::{Root, entries, error, is_replaceable, parents};
use crate::upload::{Committed, Committer, Staged};

/// Renames that travel together.
const BATCH: usize = 64;

/// Commits what was staged below one root.
#[derive(Debug)]
pub(super) struct SftpCommitter {
    endpoint: SftpEndpoint,
    root: Root,
}

/// What is to get a name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flip<'a> {
    pub(super) operation: &'static str,
    pub(super) from: &'a [u8],
    pub(super) to: &'a RelPath,
    pub(super) kind: Kind,
    pub(super) replace: &'a Replace,
}

impl SftpCommitter {
    pub(super) const fn new(endpoint: SftpEndpoint, root: Root) -> Self {
        Self { endpoint, root }
    }

    async fn commit_one(
        &self,
        connection: &Connection,
        staged: Staged,
    ) -> Result<Committed, RemoteError> {
        let Staged { path, state, .. } = staged;
        let state = state.downcast::<StagedState>().map_err(|_other| {
            let message = "it was staged at another place";
            RemoteError::new(ErrorKind::Other, "commit", message).at(&path)
        })?;
        let StagedState {
            staged,
            node,
            entry,
            attributes,
            replace,
            evidence,
        } = *state;
        let Some(staged) = staged else {
            let entry = self.make_directory(connection, &path, attributes).await?;
            return Ok(Committed { entry, evidence });
        };
        let kind = match node {
            NewNode::Symlink { .. } => Kind::Symlink,
            _ => Kind::File,
        };
        let flip = Flip {
            operation: "commit",
            from: &staged,
            to: &path,
            kind,
            replace: &replace,
        };
        match self.flip(connection, flip).await {
            Ok(()) => Ok(Committed { entry, evidence }),
            Err(error) if error.kind == ErrorKind::Unreachable => {
                if self.was_flipped(&staged, &entry).await {
                    return Ok(Committed { entry, evidence });
                }
                Err(error)
            }
            Err(error) => {
                // What is refused for good would lie there for ever.
                if matches!(
                    error.kind,
                    ErrorKind::AlreadyExists | ErrorKind::Changed | ErrorKind::WrongKind
                ) {
                    let removed = connection.client().remove(&staged).await;
                    if let Err(error) = removed {
                        tracing::debug!(%error, %path, "what was staged stays behind");
                    }
                }
                Err(error)
            }
        }
    }

    /// Renames, replacing only what may be replaced.
    pub(super) async fn flip(
        &self,
        connection: &Connection,
        flip: Flip<'_>,
    ) -> Result<(), RemoteError> {
        let to = self.root.full(flip.to);
        let posix = connection.has(Extension::PosixRename);
        // Only for a file, and only from a server that has another rename for replacing, is it certain
        // that the plain one replaces nothing.
        let trusted = posix && flip.kind == Kind::File;
        let look = match flip.replace {
            Replace::Nothing => !trusted,
            Replace::Seen(_) => true,
            Replace::Anything => !posix || flip.kind == Kind::Directory,
        };
        let found = if look {
            entries::look(connection, &to, flip.to).await?
        } else {
            None
        };
        if look {
            check_replaceable(flip, found.as_ref())?;
        }
        let client = connection.client();
        let attempt = async || match (flip.replace, found.as_ref()) {
            (Replace::Nothing, _) => client.rename(flip.from, &to).await,
            _ if posix => client.posix_rename(flip.from, &to).await,
            (_, None) => client.rename(flip.from, &to).await,
            (_, Some(_)) => {
                client.remove(&to).await?;
                client.rename(flip.from, &to).await
            }
        };
        if found.is_some() && !posix {
            self.allow_gap(flip)?;
        }
        let source = match attempt().await {
            Ok(()) => return Ok(()),
            Err(source) => source,
        };
        if source.is_connection_lost() {
            return Err(error::at(connection, flip.operation, flip.to, source));
        }
        // A file whose staged name lies beside it has its directory; what is renamed may not.
        if source.is_not_found() && client.lstat(flip.from).await.is_ok() {
            parents::make(connection, &to, flip.to).await?;
            match attempt().await {
                Ok(()) => return Ok(()),
                Err(source) => return Err(self.explain(connection, flip, &to, source).await),
            }
        }
        Err(self.explain(connection, flip, &to, source).await)
    }

    fn allow_gap(&self, flip: Flip<'_>) -> Result<(), RemoteError> {
        match self.endpoint.options().replace_without_posix_rename {
            ReplaceWithoutPosixRename::Allow => Ok(()),
            ReplaceWithoutPosixRename::Refuse => {
                let message = "the server cannot replace a file in one step (no posix-rename@openssh.com). To have it removed first, which leaves a moment without any file, set `replace_without_posix_rename: allow` for this endpoint";
                let error = RemoteError::new(ErrorKind::Unsupported, flip.operation, message);
                Err(error.at(flip.to))
            }
        }
    }

    /// Why a rename was refused: servers say "failure" to nearly everything.
    async fn explain(
        &self,
        connection: &Connection,
        flip: Flip<'_>,
        to: &[u8],
        source: knarr_sftp::Error,
    ) -> RemoteError {
        if let Ok(Some(found)) = entries::look(connection, to, flip.to).await
            && let Err(error) = check_replaceable(flip, Some(&found))
        {
            return error;
        }
        error::at(connection, flip.operation, flip.to, source)
    }

    /// Whether a rename whose answer was lost was carried out.
    async fn was_flipped(&self, staged: &[u8], entry: &Entry) -> bool {
        let Ok(connection) = self.endpoint.connection().await else {
            return false;
        };
        let staged_is_gone = match connection.client().lstat(staged).await {
            Ok(_) => false,
            Err(source) => source.is_not_found(),
        };
        if !staged_is_gone {
            return false;
        }
        let full = self.root.full(&entry.path);
        let found = entries::look(&connection, &full, &entry.path).await;
        matches!(found, Ok(Some(found)) if entry.fingerprint().still_describes(&found))
    }

    async fn make_directory(
        &self,
        connection: &Connection,
        path: &RelPath,
        attributes: Attributes,
    ) -> Result<Entry, RemoteError> {
        let full = self.root.full(path);
        let client = connection.client();
        let make = || client.create_directory(&full, Attributes::default());
        let made = parents::with_parents(connection, &self.root, path, make).await?;
        if let Err(source) = made {
            match entries::look(connection, &full, path).await {
                Ok(Some(found)) if found.kind == Kind::Directory => {}
                Ok(Some(found)) => {
                    let message = format!("a {} is there, not a directory", found.kind);
                    let error = RemoteError::new(ErrorKind::WrongKind, "make directory", message);
                    return Err(error.at(path));
                }
                _ => {
                    let above = parents::parent(&full).unwrap_or(b".");
                    let operation = "make directory";
                    return Err(
                        error::while_writing(connection, above, operation, path, source).await,
                    );
                }
            }
        }
        if attributes != Attributes::default()
            && let Err(source) = client.set_attributes(&full, attributes).await
        {
            if source.is_connection_lost() {
                return Err(error::at(connection, "set attributes of", path, source));
            }
            tracing::debug!(error = %source, %path, "the server does not set attributes");
        }
        match entries::look(connection, &full, path).await? {
            Some(found) => Ok(found),
            None => {
                let message = "it was removed as soon as it was made";
                Err(RemoteError::new(ErrorKind::Changed, "make directory", message).at(path))
            }
        }
    }
}

fn check_replaceable(flip: Flip<'_>, found: Option<&Entry>) -> Result<(), RemoteError> {
    let refused =
        |kind, message: String| Err(RemoteError::new(kind, flip.operation, message).at(flip.to));
    match (flip.replace, found) {
        (Replace::Seen(seen), found) => {
            entries::check_seen(flip.operation, flip.to, found, seen)?;
        }
        (Replace::Nothing, Some(found)) => {
            return refused(
                ErrorKind::AlreadyExists,
                format!("a {} is there already", found.kind),
            );
        }
        _ => {}
    }
    match found {
        Some(found) if !is_replaceable(found.kind) || flip.kind == Kind::Directory => {
            refused(ErrorKind::WrongKind, format!("a {} is there", found.kind))
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl Committer for SftpCommitter {
    async fn commit(&self, batch: Vec<Staged>) -> Vec<Result<Committed, RemoteError>> {
        let connection: Arc<Connection> = match self.endpoint.connection().await {
            Ok(connection) => connection,
            Err(error) => {
                let failure = |path: &RelPath| {
                    let message = error::told(&error);
                    RemoteError::new(error.kind, "commit", message)
                        .with_retry(error.retry)
                        .at(path)
                };
                return batch
                    .iter()
                    .map(|staged| Err(failure(&staged.path)))
                    .collect();
            }
        };
        join_all(
            batch
                .into_iter()
                .map(|staged| self.commit_one(&connection, staged)),
        )
        .await
    }

    fn batch_limit(&self) -> usize {
        BATCH
    }
}
