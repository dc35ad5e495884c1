//! Writing: stage, then commit; and what a later process needs to go on.
//!
//! The order is what makes it safe (K1, K2, K3, K9):
//!
//! 1. [`crate::Remote::write`] opens a staged name (or a multipart upload), saves
//!    [`CheckpointUpdate::Started`] and only then lets bytes count.
//! 2. [`Upload::write`] sends; [`CheckpointUpdate::Advanced`] or [`CheckpointUpdate::PartDone`] is
//!    saved after the place acknowledged the bytes, so a checkpoint never runs ahead of them.
//! 3. [`Upload::stage`] checks the length and flushes.
//! 4. [`Committer::commit`] flips all staged things of a batch to their final names, durably.
//! 5. The caller records, in one transaction, and removes the checkpoints with it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::record::Evidence;
use knarr_core::{ContentHash, Entry, RelPath};
use serde::{Deserialize, Serialize};

use crate::error::RemoteError;

/// What a staged name is made from: `.knarr-<16 hexadecimal digits>.part`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StagedId(pub u64);

impl StagedId {
    /// The id for writing `path` on behalf of `owner` (this installation and this pair), so that
    /// neither two installations nor two paths meet, and every attempt finds the one before it.
    #[must_use]
    pub fn derive(owner: &[u8], path: &RelPath) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"knarr staged name 1\0");
        hasher.update(&(owner.len() as u64).to_le_bytes());
        hasher.update(owner);
        hasher.update(path.as_bytes());
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        Self(u64::from_le_bytes(first))
    }

    /// The file name.
    #[must_use]
    pub fn file_name(self) -> String {
        format!(".knarr-{:016x}.part", self.0)
    }
}

/// A file (or directory, or link) on its way.
#[async_trait]
pub trait Upload: Send + fmt::Debug {
    /// How many bytes from the start an earlier attempt brought over already. The caller still hands
    /// in everything from the first byte (it needs the hash), and the upload does not send these
    /// again; unless [`Upload::resumed_hash`] gave the hash.
    fn resumed_at(&self) -> u64;

    /// The hash over the bytes of [`Upload::resumed_at`], where the place can read them back without
    /// a network. The caller then hands in only what comes after them. Called at most once, before the
    /// first [`Upload::write`].
    ///
    /// # Errors
    /// If they cannot be read back; the caller then starts over.
    async fn resumed_hash(&mut self) -> Result<Option<blake3::Hasher>, RemoteError> {
        Ok(None)
    }

    /// How many bytes went over the wire in this attempt so far.
    fn sent(&self) -> u64;

    /// Takes the next bytes and waits while too many are under way.
    ///
    /// # Errors
    /// An error of this or an earlier chunk.
    async fn write(&mut self, chunk: Bytes) -> Result<(), RemoteError>;

    /// No more bytes come: waits for all acknowledgements, checks the length, flushes as far as a
    /// commit of a batch does not do it better.
    ///
    /// # Errors
    /// If the length is not `length`, or any byte did not arrive.
    async fn stage(self: Box<Self>, length: u64, hash: ContentHash) -> Result<Staged, RemoteError>;

    /// Stops in order to go on later: saves the last checkpoint and keeps what was staged.
    async fn suspend(self: Box<Self>);

    /// Gives up: removes what was staged, as far as it can.
    async fn abort(self: Box<Self>);
}

/// Something that is complete under its staged name and waits for the commit.
pub struct Staged {
    /// Who commits it. Things with the same committer (by address) may go into one batch.
    pub committer: Arc<dyn Committer>,
    /// The final path.
    pub path: RelPath,
    /// What the committer needs to know; its own type.
    pub state: Box<dyn Any + Send>,
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Flips staged things to their final names.
#[async_trait]
pub trait Committer: Send + Sync {
    /// Commits a batch; one result an item, in the same order. What is `Ok` is durable and visible.
    async fn commit(&self, batch: Vec<Staged>) -> Vec<Result<Committed, RemoteError>>;

    /// How many items a batch may usefully have (1 where a batch gains nothing).
    fn batch_limit(&self) -> usize {
        1
    }
}

/// What lies at the destination after a commit.
#[derive(Debug, Clone)]
pub struct Committed {
    /// What was seen there right after the commit.
    pub entry: Entry,
    /// How it is known to hold the right bytes.
    pub evidence: Evidence,
}

/// One finished part of a multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartDone {
    /// Its number, from 0.
    pub number: u32,
    /// Its length in bytes.
    pub size: u64,
    /// What the place gave for it (an ETag), needed to complete.
    pub receipt: String,
}

/// A change to what a later attempt needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointUpdate {
    /// An upload began; `state` is the backend's own text (staged name, upload id, part size).
    Started {
        /// The backend's own text, JSON.
        state: String,
    },
    /// All bytes before `offset` are acknowledged.
    Advanced {
        /// In bytes from the start.
        offset: u64,
    },
    /// A part is acknowledged.
    PartDone(PartDone),
    /// What was begun is gone (aborted or committed).
    Forgotten,
}

/// What an earlier attempt saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeState {
    /// The text of [`CheckpointUpdate::Started`].
    pub state: String,
    /// The last [`CheckpointUpdate::Advanced`], or 0.
    pub offset: u64,
    /// All [`CheckpointUpdate::PartDone`], by number.
    pub parts: Vec<PartDone>,
}

/// Where an upload saves its checkpoints, durably.
#[async_trait]
pub trait CheckpointSink: Send + Sync + fmt::Debug {
    /// Saves `update`; it is durable when this returns.
    ///
    /// # Errors
    /// If it could not be saved. The upload then must not count on being resumed.
    async fn save(&self, update: CheckpointUpdate) -> Result<(), RemoteError>;
}
