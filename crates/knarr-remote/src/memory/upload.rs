//! Staging and committing in memory, with checkpoints as exact as those of a server.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::record::Evidence;
use knarr_core::{ContentHash, RelPath};

use super::Shared;
use super::tree::Attributes;
use crate::error::{ErrorKind, RemoteError};
use crate::operation::Operation;
use crate::remote::{NewNode, Replace, WriteOptions};
use crate::upload::{
    CheckpointSink, CheckpointUpdate, Committed, Committer, ResumeState, Staged, StagedId, Upload,
};

/// After how many bytes a checkpoint is saved.
const CHECKPOINT_BYTES: u64 = 1 << 20;

/// Commits all staged things of one tree.
#[derive(Debug)]
pub(super) struct MemoryCommitter {
    shared: Arc<Shared>,
}

impl MemoryCommitter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// What the committer needs to know.
#[derive(Debug)]
struct StagedNode {
    id: StagedId,
    node: NewNode,
    attributes: Attributes,
    replace: Replace,
    hash: ContentHash,
}

struct MemoryUpload {
    shared: Arc<Shared>,
    committer: Arc<dyn Committer>,
    path: RelPath,
    id: StagedId,
    node: NewNode,
    attributes: Attributes,
    replace: Replace,
    checkpoints: Option<Arc<dyn CheckpointSink>>,
    resumed_at: u64,
    /// How far the caller has come.
    position: u64,
    sent: u64,
    checkpoint: u64,
}

impl fmt::Debug for MemoryUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryUpload")
            .field("path", &self.path)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// Opens the staged bytes of `options.staged_id`: what an earlier attempt left, or none.
pub(super) async fn begin(
    shared: Arc<Shared>,
    committer: Arc<dyn Committer>,
    path: &RelPath,
    options: WriteOptions,
) -> Result<Box<dyn Upload>, RemoteError> {
    let id = options.staged_id;
    let state = id.file_name();
    let resumed_at = {
        let mut tree = shared.tree();
        let staged = tree.staged.entry(id).or_default();
        let arrived = match &options.resume {
            Some(ResumeState {
                state: earlier,
                offset,
                ..
            }) if *earlier == state => usize::try_from(*offset).unwrap_or(usize::MAX),
            _ => 0,
        };
        // What came after the last checkpoint is not trusted, as after a crash.
        if arrived <= staged.len() {
            staged.truncate(arrived);
        } else {
            staged.clear();
        }
        staged.len() as u64
    };
    let upload = MemoryUpload {
        shared,
        committer,
        path: path.clone(),
        id,
        node: options.node,
        attributes: Attributes {
            mtime: options.mtime,
            mode: options.mode,
        },
        replace: options.replace,
        checkpoints: options.checkpoints,
        resumed_at,
        position: 0,
        sent: 0,
        checkpoint: resumed_at,
    };
    if resumed_at == 0 {
        upload.save(CheckpointUpdate::Started { state }).await?;
    }
    Ok(Box::new(upload))
}

impl MemoryUpload {
    async fn save(&self, update: CheckpointUpdate) -> Result<(), RemoteError> {
        match &self.checkpoints {
            Some(sink) => sink.save(update).await,
            None => Ok(()),
        }
    }

    /// Takes over the part of `chunk` that is not there yet; gives how many bytes are there then.
    fn append(&mut self, chunk: &Bytes) -> Result<u64, RemoteError> {
        let mut tree = self.shared.tree();
        let Some(staged) = tree.staged.get_mut(&self.id) else {
            let message = "what was staged was removed meanwhile";
            return Err(RemoteError::new(ErrorKind::Changed, "write", message).at(&self.path));
        };
        let known = usize::try_from((staged.len() as u64).saturating_sub(self.position))
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        staged.extend_from_slice(&chunk[known..]);
        self.sent += (chunk.len() - known) as u64;
        self.position += chunk.len() as u64;
        let arrived = staged.len() as u64;
        drop(tree);
        Ok(arrived)
    }
}

#[async_trait]
impl Upload for MemoryUpload {
    fn resumed_at(&self) -> u64 {
        self.resumed_at
    }

    async fn resumed_hash(&mut self) -> Result<Option<blake3::Hasher>, RemoteError> {
        let mut hasher = blake3::Hasher::new();
        if let Some(staged) = self.shared.tree().staged.get(&self.id) {
            hasher.update(staged);
        }
        self.position = self.resumed_at;
        Ok(Some(hasher))
    }

    fn sent(&self) -> u64 {
        self.sent
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        self.shared
            .faults
            .check(Operation::WriteChunk, Some(&self.path))?;
        let arrived = self.append(&chunk)?;
        if arrived >= self.checkpoint + CHECKPOINT_BYTES {
            self.checkpoint = arrived;
            self.save(CheckpointUpdate::Advanced { offset: arrived })
                .await?;
        }
        Ok(())
    }

    async fn stage(self: Box<Self>, length: u64, hash: ContentHash) -> Result<Staged, RemoteError> {
        self.shared
            .faults
            .check(Operation::Stage, Some(&self.path))?;
        let arrived = self.shared.tree().staged.get(&self.id).map_or(0, Vec::len) as u64;
        if arrived != length || self.position != length {
            let message = format!("{arrived} bytes arrived instead of {length}");
            return Err(RemoteError::new(ErrorKind::Changed, "stage", message).at(&self.path));
        }
        Ok(Staged {
            committer: self.committer,
            path: self.path,
            state: Box::new(StagedNode {
                id: self.id,
                node: self.node,
                attributes: self.attributes,
                replace: self.replace,
                hash,
            }),
        })
    }

    async fn suspend(self: Box<Self>) {
        let arrived = self.shared.tree().staged.get(&self.id).map_or(0, Vec::len) as u64;
        if let Err(error) = self
            .save(CheckpointUpdate::Advanced { offset: arrived })
            .await
        {
            tracing::warn!(%error, path = %self.path, "the last checkpoint was not saved");
        }
    }

    async fn abort(self: Box<Self>) {
        self.shared.tree().staged.remove(&self.id);
        if let Err(error) = self.save(CheckpointUpdate::Forgotten).await {
            tracing::warn!(%error, path = %self.path, "a checkpoint was not removed");
        }
    }
}

#[async_trait]
impl Committer for MemoryCommitter {
    async fn commit(&self, batch: Vec<Staged>) -> Vec<Result<Committed, RemoteError>> {
        batch
            .into_iter()
            .map(|staged| self.commit_one(staged))
            .collect()
    }

    fn batch_limit(&self) -> usize {
        1_000
    }
}

impl MemoryCommitter {
    fn commit_one(&self, staged: Staged) -> Result<Committed, RemoteError> {
        let Staged { path, state, .. } = staged;
        self.shared.faults.check(Operation::Commit, Some(&path))?;
        let state = state.downcast::<StagedNode>().map_err(|_other| {
            let message = "it was staged at another place";
            RemoteError::new(ErrorKind::Other, "commit", message).at(&path)
        })?;
        let mut tree = self.shared.tree();
        let content: Bytes = tree.staged.remove(&state.id).unwrap_or_default().into();
        let is_file = matches!(state.node, NewNode::File { .. });
        let entry = tree.place(
            &path,
            &state.node,
            content,
            &state.attributes,
            &state.replace,
        )?;
        drop(tree);
        let evidence = if is_file {
            Evidence::Written { hash: state.hash }
        } else {
            Evidence::None
        };
        Ok(Committed { entry, evidence })
    }
}
