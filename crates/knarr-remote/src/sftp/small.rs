//! Writes small files on two round trips before the rename, and stages directories and links.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join3;
use knarr_core::record::Evidence;
use knarr_core::{ContentHash, Entry};
use knarr_sftp::client::{Durability, FileWriter, WriteOptions as Requests};

use crate::error::{ErrorKind, RemoteError};
use crate::remote::NewNode;
use crate::sftp::connection::Connection;
use crate::sftp::staging::{self, Target};
use crate::sftp::state::StagedState;
use crate::sftp::{error, parents};
use crate::upload::{Staged, Upload};

/// Writes a small file under its staged name.
pub(super) async fn stage_file(
    target: &Target,
    chunks: Vec<Bytes>,
    hash: ContentHash,
) -> Result<StagedState, RemoteError> {
    let connection = target.endpoint.connection().await?;
    let handle = staging::create(target, &connection).await?;
    let length: usize = chunks.iter().map(Bytes::len).sum();
    let (found, flushed) = match write(target, &connection, handle, chunks, length).await {
        Ok(written) => written,
        Err(source) => return Err(target.failed(&connection, source).await),
    };
    let entry = match target.check_length(&found, length as u64) {
        Ok(entry) => entry,
        Err(error) => {
            staging::discard(target).await;
            return Err(error);
        }
    };
    tracing::trace!(path = %target.path, flushed, "staged");
    let evidence = target.evidence(&connection, length as u64, hash).await?;
    Ok(StagedState {
        staged: Some(Bytes::copy_from_slice(&target.staged)),
        node: target.options.node.clone(),
        entry,
        attributes: knarr_sftp::Attributes::default(),
        replace: target.options.replace.clone(),
        evidence,
    })
}

/// Writes everything, sets attributes, flushes and looks, on one round trip where it fits into one
/// request.
async fn write(
    target: &Target,
    connection: &Connection,
    handle: knarr_sftp::Handle,
    chunks: Vec<Bytes>,
    length: usize,
) -> Result<(knarr_sftp::Attributes, bool), knarr_sftp::Error> {
    let one_request = connection.client().limits().write_bytes as usize >= length;
    let mut requests = Requests::default();
    if one_request {
        // A request of exactly this length is sent when its last byte is handed in.
        requests.request_bytes = u32::try_from(length.max(1)).unwrap_or(u32::MAX);
    }
    let mut writer = FileWriter::new(vec![handle], &requests)?;
    for chunk in chunks {
        writer.write(chunk).await?;
    }
    if !one_request {
        writer.flush().await?;
    }
    // The WRITE is on its way: what is asked now comes after it.
    let flushes = target.flushes(connection);
    let attributes = target.attributes();
    let handle = writer.handle();
    let set = async {
        if attributes == knarr_sftp::Attributes::default() {
            return Ok(());
        }
        handle.set_attributes(attributes.clone()).await
    };
    let sync = async { if flushes { handle.sync().await } else { Ok(()) } };
    let (set, synced, found) = join3(set, sync, handle.stat()).await;
    writer.flush().await?;
    if let Err(error) = set {
        tolerate(target, error)?;
    }
    synced?;
    let mut found = found?;
    if found.size != Some(length as u64) || !target.is_set(&found) {
        // A server that does not keep the order of requests on a handle: once more, one by one.
        let handle = writer.handle();
        if attributes != knarr_sftp::Attributes::default()
            && let Err(error) = handle.set_attributes(attributes).await
        {
            tolerate(target, error)?;
        }
        if flushes {
            handle.sync().await?;
        }
        found = handle.stat().await?;
    }
    if flushes {
        // Nothing is left that closing could fail to write, so nobody waits for it.
        drop(writer);
    } else {
        writer.finish(Durability::Unflushed).await?;
    }
    Ok((found, flushes))
}

/// A server that does not let us set times or modes keeps its own; the entry says what came of it.
pub(super) fn tolerate(target: &Target, error: knarr_sftp::Error) -> Result<(), knarr_sftp::Error> {
    if error.is_connection_lost() {
        return Err(error);
    }
    tracing::debug!(%error, path = %target.path, "the server does not set attributes");
    Ok(())
}

/// A directory or link on its way.
pub(super) struct NodeUpload {
    target: Target,
}

impl NodeUpload {
    pub(super) const fn new(target: Target) -> Self {
        Self { target }
    }

    async fn make_link(
        &self,
        connection: &Connection,
        link_target: &[u8],
    ) -> Result<(), RemoteError> {
        let target = &self.target;
        let client = connection.client();
        let make = || client.symlink(link_target, &target.staged);
        let made = parents::with_parents(connection, &target.root, &target.path, make).await?;
        let Err(source) = made else { return Ok(()) };
        if source.is_connection_lost() || client.lstat(&target.staged).await.is_err() {
            return Err(target.failed(connection, source).await);
        }
        // An earlier attempt left it.
        staging::discard(target).await;
        match make().await {
            Ok(()) => Ok(()),
            Err(source) => Err(target.failed(connection, source).await),
        }
    }
}

impl fmt::Debug for NodeUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeUpload")
            .field("path", &self.target.path)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Upload for NodeUpload {
    fn resumed_at(&self) -> u64 {
        0
    }

    fn sent(&self) -> u64 {
        0
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        if chunk.is_empty() {
            return Ok(());
        }
        let message = "a directory or link holds no bytes";
        Err(RemoteError::new(ErrorKind::WrongKind, "write", message).at(&self.target.path))
    }

    async fn stage(
        self: Box<Self>,
        length: u64,
        _hash: ContentHash,
    ) -> Result<Staged, RemoteError> {
        let path = self.target.path.clone();
        if length > 0 {
            let message = format!("a directory or link of {length} bytes");
            return Err(RemoteError::new(ErrorKind::WrongKind, "stage", message).at(&path));
        }
        let (staged, entry) = match &self.target.options.node {
            NewNode::Symlink {
                target: link_target,
            } => {
                let connection = self.target.endpoint.connection().await?;
                self.make_link(&connection, link_target).await?;
                let staged = Bytes::copy_from_slice(&self.target.staged);
                (
                    Some(staged),
                    Entry::symlink(path.clone(), link_target.clone()),
                )
            }
            // A directory cannot be filled before it has its name, so it is made at the commit.
            _ => (None, Entry::directory(path.clone())),
        };
        let state = StagedState {
            staged,
            node: self.target.options.node.clone(),
            entry,
            attributes: self.target.attributes(),
            replace: self.target.options.replace.clone(),
            evidence: Evidence::None,
        };
        let committer = Arc::clone(&self.target.committer);
        Ok(Staged {
            committer,
            path,
            state: Box::new(state),
        })
    }

    async fn suspend(self: Box<Self>) {}

    async fn abort(self: Box<Self>) {}
}

/// The error for bytes that do not fit what was declared.
pub(super) fn wrong_length(target: &Target, arrived: u64, length: u64) -> RemoteError {
    let message = format!("{arrived} bytes were handed in instead of {length}");
    RemoteError::new(ErrorKind::Changed, "stage", message).at(&target.path)
}

/// The error of a step on `connection`.
pub(super) fn failed(
    connection: &Connection,
    target: &Target,
    operation: &str,
    source: knarr_sftp::Error,
) -> RemoteError {
    error::at(connection, operation, &target.path, source)
}
