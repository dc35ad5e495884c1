//! Begins to write: chooses how, and opens staged names.

use std::sync::Arc;

use knarr_core::record::Evidence;
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_sftp::codec::Extension;
use knarr_sftp::{Attributes, Handle, OpenFlags};

use crate::error::{ErrorKind, RemoteError};
use crate::remote::{NewNode, WriteOptions};
use crate::sftp::connection::Connection;
use crate::sftp::endpoint::Flush;
use crate::sftp::joining::Opening;
use crate::sftp::upload::SftpUpload;
use crate::sftp::{Place, Root, entries, error, parents, small, state};
use crate::upload::Upload;

/// Where something is to be written, and how.
pub(super) struct Target {
    pub(super) endpoint: crate::sftp::SftpEndpoint,
    pub(super) root: Root,
    pub(super) committer: Arc<crate::sftp::commit::SftpCommitter>,
    pub(super) path: RelPath,
    /// The staged path on the server, beside the final one.
    pub(super) staged: Vec<u8>,
    pub(super) options: WriteOptions,
}

impl Target {
    fn new(place: &Place, path: &RelPath, options: WriteOptions) -> Result<Self, RemoteError> {
        let beside = path.with_name(options.staged_id.file_name().as_bytes());
        let beside = beside.map_err(|reason| {
            RemoteError::new(ErrorKind::InvalidName, "write", reason.to_string()).at(path)
        })?;
        Ok(Self {
            endpoint: place.endpoint.clone(),
            root: place.root(),
            committer: Arc::clone(&place.committer),
            path: path.clone(),
            staged: place.root().full(&beside),
            options,
        })
    }

    /// What is set once the bytes are there.
    pub(super) fn attributes(&self) -> Attributes {
        Attributes {
            permissions: self.options.mode.map(|mode| mode & 0o7777),
            times: self.options.mtime.map(entries::times),
            ..Attributes::default()
        }
    }

    /// Whether `found` has what was to be set, as far as the server says.
    pub(super) fn is_set(&self, found: &Attributes) -> bool {
        let wanted = self.attributes();
        let times = wanted.times.is_none_or(|times| {
            found
                .modified_seconds()
                .is_none_or(|seconds| seconds == times.modified_seconds)
        });
        let mode = wanted
            .permissions
            .is_none_or(|mode| found.permissions.is_none_or(|found| found & 0o7777 == mode));
        times && mode
    }

    pub(super) fn flushes(&self, connection: &Connection) -> bool {
        self.endpoint.options().flush == Flush::Offered && connection.has(Extension::Fsync)
    }

    /// The error of a step of the writing.
    pub(super) async fn failed(
        &self,
        connection: &Connection,
        source: knarr_sftp::Error,
    ) -> RemoteError {
        let directory = parents::parent(&self.staged).unwrap_or(b".");
        error::while_writing(connection, directory, "write", &self.path, source).await
    }

    /// Refuses a length that is not the one that was staged.
    pub(super) fn check_length(
        &self,
        found: &Attributes,
        length: u64,
    ) -> Result<Entry, RemoteError> {
        let entry = entries::entry(self.path.clone(), found);
        match found.size {
            Some(size) if size == length => Ok(entry),
            Some(size) => {
                let message = format!("{size} bytes arrived instead of {length}");
                Err(RemoteError::new(ErrorKind::Changed, "stage", message).at(&self.path))
            }
            None => {
                let message = "the server does not say how long the file is";
                Err(RemoteError::new(ErrorKind::Protocol, "stage", message).at(&self.path))
            }
        }
    }

    /// How it is known that the right bytes are there: what reading back gave, or only the length.
    pub(super) async fn evidence(
        &self,
        connection: &Arc<Connection>,
        length: u64,
        hash: ContentHash,
    ) -> Result<Evidence, RemoteError> {
        if self.options.verify != knarr_core::job::Verify::Full {
            return Ok(Evidence::SizeOnly {
                reason: "SFTP offers no checksum; `verify: full` reads everything back".to_owned(),
            });
        }
        let found = read_back(self, connection, length).await?;
        if found == hash {
            return Ok(Evidence::ReadBack { hash });
        }
        let message =
            "what was read back is not what was written: the server, or the way to it, damaged it";
        Err(RemoteError::new(ErrorKind::Protocol, "verify", message).at(&self.path))
    }
}

/// Begins to write something.
pub(super) async fn begin(
    place: &Place,
    path: &RelPath,
    options: WriteOptions,
) -> Result<Box<dyn Upload>, RemoteError> {
    let target = Target::new(place, path, options)?;
    match target.options.node {
        NewNode::Directory | NewNode::Symlink { .. } => {
            Ok(Box::new(small::NodeUpload::new(target)))
        }
        NewNode::File { .. } => {
            let upload = SftpUpload::begin(target).await?;
            Ok(Box::new(upload))
        }
    }
}

/// Makes the staged file, new and empty, and opens it.
///
/// It is made exclusively, so that a link of the same name is not followed; what an earlier attempt
/// left is removed first.
pub(super) async fn create(
    target: &Target,
    connection: &Connection,
) -> Result<Handle, RemoteError> {
    let client = connection.client();
    let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
    // What will be private is so from the first byte.
    let attributes = match target.options.mode {
        Some(mode) => Attributes::with_permissions((mode & 0o700) | 0o600),
        None => Attributes::default(),
    };
    let open = || client.open(&target.staged, flags, attributes.clone());
    let opened = parents::with_parents(connection, &target.root, &target.path, open).await?;
    let source = match opened {
        Ok(handle) => return Ok(handle),
        Err(source) => source,
    };
    if source.is_connection_lost() || client.lstat(&target.staged).await.is_err() {
        return Err(target.failed(connection, source).await);
    }
    if let Err(source) = client.remove(&target.staged).await
        && !source.is_not_found()
    {
        return Err(error::at(
            connection,
            "remove an earlier attempt at",
            &target.path,
            source,
        ));
    }
    match open().await {
        Ok(handle) => Ok(handle),
        Err(source) => Err(target.failed(connection, source).await),
    }
}

/// Opens what an earlier attempt left, cut off behind `offset`; nothing if it is not there or shorter.
pub(super) async fn reopen(
    target: &Target,
    connection: &Connection,
    offset: u64,
) -> Result<Option<Handle>, RemoteError> {
    let client = connection.client();
    match client.lstat(&target.staged).await {
        Ok(found)
            if entries::kind_or_guess(&found) == knarr_core::Kind::File
                && found.size.is_some_and(|size| size >= offset) => {}
        Ok(_) => return Ok(None),
        Err(source) if source.is_connection_lost() => {
            return Err(target.failed(connection, source).await);
        }
        Err(_) => return Ok(None),
    }
    // It is ours to write to, or it is made anew.
    let handle = match client
        .open(&target.staged, OpenFlags::WRITE, Attributes::default())
        .await
    {
        Ok(handle) => handle,
        Err(source) if source.is_connection_lost() => {
            return Err(target.failed(connection, source).await);
        }
        Err(_) => return Ok(None),
    };
    // Behind the offset lies what was not acknowledged, or not flushed: it is not trusted.
    let cut = Attributes {
        size: Some(offset),
        ..Attributes::default()
    };
    match handle.set_attributes(cut).await {
        Ok(()) => Ok(Some(handle)),
        Err(source) if source.is_connection_lost() => Err(target.failed(connection, source).await),
        Err(_) => Ok(None),
    }
}

/// The hash of what is staged.
async fn read_back(
    target: &Target,
    connection: &Arc<Connection>,
    length: u64,
) -> Result<ContentHash, RemoteError> {
    let failed = |source| error::at(connection, "read back", &target.path, source);
    let client = connection.client();
    let opened = client
        .open(&target.staged, OpenFlags::READ, Attributes::default())
        .await;
    let handle = opened.map_err(failed)?;
    let requests = knarr_sftp::client::ReadOptions {
        end: Some(length),
        ..knarr_sftp::client::ReadOptions::default()
    };
    let reader = knarr_sftp::client::FileReader::new(vec![handle], &requests).map_err(failed)?;
    let opening = Opening {
        path: target.staged.clone(),
        flags: OpenFlags::READ,
        looks: None,
    };
    let mut reader = reader.joined_by(opening.beside(connection, &target.endpoint, length));
    let mut hasher = blake3::Hasher::new();
    while let Some(chunk) = reader.next().await.map_err(failed)? {
        hasher.update(&chunk);
    }
    Ok(hasher.finalize().into())
}

/// Removes what is staged, as far as that is possible.
pub(super) async fn discard(target: &Target) {
    let Ok(connection) = target.endpoint.connection().await else {
        return;
    };
    if let Err(error) = connection.client().remove(&target.staged).await
        && !error.is_not_found()
    {
        tracing::warn!(%error, path = %target.path, "what was staged could not be removed");
    }
}

/// Removes the staged file that `state` names, beside `path`.
pub(super) async fn abandon(place: &Place, path: &RelPath, state: &str) -> Result<(), RemoteError> {
    const OPERATION: &str = "give up what is staged for";
    let invalid =
        |message: String| RemoteError::new(ErrorKind::InvalidName, OPERATION, message).at(path);
    let name = state::staged_name(state)
        .ok_or_else(|| invalid("what was saved does not name a staged file".to_owned()))?;
    let staged = path
        .with_name(name.as_bytes())
        .map_err(|reason| invalid(reason.to_string()))?;
    let connection = place.endpoint.connection().await?;
    match connection
        .client()
        .remove(&place.root().full(&staged))
        .await
    {
        Err(source) if !source.is_not_found() => {
            Err(error::at(&connection, OPERATION, path, source))
        }
        _ => Ok(()),
    }
}

/// The "started" text of a target.
pub(super) fn started_state(target: &Target) -> String {
    state::started(target.options.staged_id)
}
