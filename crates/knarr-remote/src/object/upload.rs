//! Uploads: small ones wait in memory for their commit, larger ones go in parts as they come.
//!
//! The order that makes K9 hold: the upload's id is saved before its first part is sent; a part's
//! receipt is saved after the store gave it and before the part's place in memory is free again. Parts
//! are sent and saved beside each other, so neither waits for the other's round trip.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::job::Verify;
use knarr_core::{ContentHash, RelPath, Timestamp};
use object_store::path::Path;
use object_store::{PutMultipartOptions, PutPayload};
use tokio::task::JoinSet;

use super::commit::{Content, ObjectCommitter, StagedObject, check_replace};
use super::error::Failure;
use super::parts::{MAX_PARTS, PartPlan, SavedUpload, attributes, new_mark};
use super::resume::{self, Earlier, ListedPart, abort};
use super::send::{Begun, PartThere, SendPart};
use super::{Inner, PARTS_IN_FLIGHT};
use crate::error::{ErrorKind, RemoteError};
use crate::remote::{Replace, WriteOptions};
use crate::upload::{
    CheckpointSink, CheckpointUpdate, PartDone, ResumeState, Staged, StagedId, Upload,
};

/// How much of one file may be under way at once, in bytes; but at least one part.
const BYTES_IN_FLIGHT: u64 = 64 << 20;
/// How long a suspended upload waits for the parts that are under way.
const SUSPEND_LIMIT: Duration = Duration::from_secs(8);

/// A file on its way to a key.
pub(super) struct ObjectUpload {
    inner: Arc<Inner>,
    path: RelPath,
    key: Path,
    size: Option<u64>,
    staged_id: StagedId,
    mtime: Option<Timestamp>,
    replace: Replace,
    verify: Verify,
    sink: Option<Arc<dyn CheckpointSink>>,
    received: u64,
    sent: u64,
    resumed_at: u64,
    /// The part that is being filled.
    buffer: Vec<Bytes>,
    filled: u64,
    way: Way,
}

/// How the bytes get there.
enum Way {
    /// In one request, unless more come than that.
    Whole,
    /// In parts.
    Parts(Parts),
    /// An earlier attempt completed it, and nobody heard of it.
    Finished(SavedUpload),
}

struct Parts {
    saved: SavedUpload,
    begun: Begun,
    /// The number of the part that is being filled.
    number: u32,
    done: BTreeMap<u32, PartDone>,
    /// What the store has and nobody noted; compared before it is sent again.
    listed: BTreeMap<u32, ListedPart>,
    tasks: JoinSet<Result<PartThere, RemoteError>>,
}

impl fmt::Debug for ObjectUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectUpload")
            .field("path", &self.path)
            .field("received", &self.received)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

/// Begins an upload, or goes on with the one of `options.resume`.
pub(super) async fn begin(
    inner: Arc<Inner>,
    path: &RelPath,
    size: Option<u64>,
    options: WriteOptions,
) -> Result<Box<dyn Upload>, RemoteError> {
    let key = inner.prefix.key("write", path)?;
    let mut upload = ObjectUpload {
        path: path.clone(),
        key,
        size,
        staged_id: options.staged_id,
        mtime: options.mtime,
        replace: options.replace,
        verify: options.verify,
        sink: options.checkpoints,
        received: 0,
        sent: 0,
        resumed_at: 0,
        buffer: Vec::new(),
        filled: 0,
        way: Way::Whole,
        inner,
    };
    if let Some(resume) = options.resume {
        upload.resume(resume).await?;
    }
    let large = size.is_some_and(|size| size > upload.inner.part_size);
    if large && matches!(upload.way, Way::Whole) {
        // Better now than after sending everything.
        if upload.replace != Replace::Anything {
            let there = upload.inner.head(&upload.key).await;
            let there = there.map_err(|failure| failure.into_remote("write", Some(path)))?;
            check_replace("write", path, &upload.replace, there.as_ref())?;
        }
        upload.start_parts().await?;
    }
    Ok(Box::new(upload))
}

impl ObjectUpload {
    fn failed(&self, failure: Failure) -> RemoteError {
        failure.into_remote("write", Some(&self.path))
    }

    async fn save(&self, update: CheckpointUpdate) -> Result<(), RemoteError> {
        match &self.sink {
            Some(sink) => sink.save(update).await,
            None => Ok(()),
        }
    }

    async fn resume(&mut self, resume: ResumeState) -> Result<(), RemoteError> {
        match resume::look(&self.inner, &self.path, &self.key, self.size, resume).await? {
            Earlier::Gone => return self.save(CheckpointUpdate::Forgotten).await,
            Earlier::Finished(saved) => {
                self.resumed_at = self.size.unwrap_or(0);
                self.way = Way::Finished(saved);
            }
            Earlier::Parts {
                saved,
                done,
                listed,
            } => {
                self.resumed_at = (0..)
                    .map_while(|number| done.get(&number))
                    .map(|part| part.size)
                    .sum();
                self.way = Way::Parts(Parts {
                    saved,
                    begun: Begun::Earlier,
                    number: 0,
                    done,
                    listed,
                    tasks: JoinSet::new(),
                });
            }
        }
        Ok(())
    }

    async fn start_parts(&mut self) -> Result<(), RemoteError> {
        let plan = PartPlan::new(self.size, self.inner.part_size);
        let mut mark = new_mark(self.staged_id);
        let options = PutMultipartOptions {
            attributes: attributes(self.mtime, mark.clone()),
            ..PutMultipartOptions::default()
        };
        let created = match self
            .inner
            .store
            .create_multipart_opts(&self.key, options)
            .await
        {
            // Azure takes no metadata for uploads in parts.
            Err(object_store::Error::NotSupported { .. }) => {
                mark.clear();
                self.inner.store.create_multipart(&self.key).await
            }
            created => created,
        };
        let upload_id = created.map_err(|error| self.failed(Failure::store(&error)))?;
        let saved = SavedUpload {
            key: self.key.to_string(),
            upload_id,
            mark,
            plan,
        };
        let state = serde_json::to_string(&saved).map_err(|error| {
            RemoteError::new(ErrorKind::Other, "write", "the state cannot be written")
                .at(&self.path)
                .caused_by(error)
        })?;
        if let Err(error) = self.save(CheckpointUpdate::Started { state }).await {
            abort(&self.inner, &saved).await.unwrap_or(());
            return Err(error);
        }
        self.way = Way::Parts(Parts {
            saved,
            begun: Begun::Now,
            number: 0,
            done: BTreeMap::new(),
            listed: BTreeMap::new(),
            tasks: JoinSet::new(),
        });
        Ok(())
    }

    /// The length of the part that is being filled.
    fn part_length(&self) -> u64 {
        match &self.way {
            Way::Parts(parts) => parts.saved.plan.length(parts.number),
            Way::Whole | Way::Finished(_) => self.inner.part_size,
        }
    }

    /// Sends the part that was filled, unless it is there already, and begins the next.
    async fn part_is_full(&mut self) -> Result<(), RemoteError> {
        let (buffer, length) = (
            std::mem::take(&mut self.buffer),
            std::mem::take(&mut self.filled),
        );
        let Way::Parts(parts) = &mut self.way else {
            return Ok(());
        };
        let number = parts.number;
        parts.number += 1;
        if parts.done.contains_key(&number) {
            return Ok(());
        }
        if number >= MAX_PARTS {
            let message = format!("it needs more than {MAX_PARTS} parts");
            return Err(RemoteError::new(ErrorKind::Unsupported, "write", message).at(&self.path));
        }
        let at_once = usize::try_from(BYTES_IN_FLIGHT / length.max(1)).unwrap_or(1);
        let at_once = at_once.clamp(1, self.inner.parts_at_once);
        while parts.tasks.len() >= at_once {
            take_part(parts, &mut self.sent, &self.path).await?;
        }
        let units = length
            .div_ceil(self.inner.part_size)
            .clamp(1, PARTS_IN_FLIGHT as u64);
        let slots = Arc::clone(&self.inner.part_slots)
            .acquire_many_owned(u32::try_from(units).unwrap_or(1))
            .await
            .map_err(|_closed| {
                RemoteError::new(ErrorKind::Cancelled, "write", "the remote is closed")
            })?;
        let sending = SendPart {
            inner: Arc::clone(&self.inner),
            path: self.path.clone(),
            key: self.key.clone(),
            saved: parts.saved.clone(),
            begun: parts.begun,
            number,
            length,
            chunks: buffer,
            listed: parts.listed.remove(&number),
            sink: self.sink.clone(),
            slots,
        };
        parts.tasks.spawn(sending.run());
        Ok(())
    }

    /// Waits for all parts under way.
    async fn all_parts(&mut self) -> Result<(), RemoteError> {
        if let Way::Parts(parts) = &mut self.way {
            while !parts.tasks.is_empty() {
                take_part(parts, &mut self.sent, &self.path).await?;
            }
        }
        Ok(())
    }

    /// Removes the multipart upload from the store and from what is saved.
    async fn give_up(&mut self) {
        if let Way::Parts(parts) = &mut self.way {
            parts.tasks.shutdown().await;
            match abort(&self.inner, &parts.saved).await {
                Ok(()) => {
                    if let Err(error) = self.save(CheckpointUpdate::Forgotten).await {
                        tracing::warn!(path = %self.path, %error, "an aborted upload is still noted");
                    }
                }
                Err(error) => {
                    tracing::warn!(path = %self.path, %error, "an upload was not aborted");
                }
            }
        }
        self.way = Way::Whole;
    }

    /// What is left of a failed attempt: with a record it is kept, else nobody would find it again.
    async fn give_up_if_nobody_knows(&mut self) {
        if self.sink.is_none() {
            self.give_up().await;
        }
    }

    async fn take_in(&mut self, mut chunk: Bytes) -> Result<(), RemoteError> {
        self.received += chunk.len() as u64;
        if matches!(self.way, Way::Finished(_)) {
            return Ok(());
        }
        if let Way::Parts(parts) = &mut self.way {
            while let Some(ended) = parts.tasks.try_join_next() {
                note(parts, &mut self.sent, ended, &self.path)?;
            }
        }
        while !chunk.is_empty() {
            if matches!(self.way, Way::Whole) && self.filled == self.inner.part_size {
                self.start_parts().await?;
                self.part_is_full().await?;
            }
            let length = self.part_length();
            if length == 0 {
                let message = "more bytes were handed in than the file was said to have";
                return Err(RemoteError::new(ErrorKind::Changed, "write", message).at(&self.path));
            }
            let room = usize::try_from(length - self.filled).unwrap_or(usize::MAX);
            let piece = chunk.split_to(room.min(chunk.len()));
            self.filled += piece.len() as u64;
            let skipped = match &self.way {
                Way::Parts(parts) => parts.done.contains_key(&parts.number),
                Way::Whole | Way::Finished(_) => false,
            };
            if !skipped {
                self.buffer.push(piece);
            }
            if self.filled == length && matches!(self.way, Way::Parts(_)) {
                self.part_is_full().await?;
            }
        }
        Ok(())
    }

    async fn content(&mut self) -> Result<Content, RemoteError> {
        if let Way::Parts(parts) = &self.way
            && parts.number == 0
            && parts.done.is_empty()
        {
            // It turned out to be shorter than one part.
            self.give_up().await;
        }
        if self.filled > 0 && matches!(self.way, Way::Parts(_)) {
            self.part_is_full().await?;
        }
        self.all_parts().await?;
        Ok(match std::mem::replace(&mut self.way, Way::Whole) {
            Way::Whole => {
                self.sent += self.filled;
                let payload: PutPayload = std::mem::take(&mut self.buffer).into_iter().collect();
                Content::Whole(payload)
            }
            Way::Finished(saved) => Content::Finished {
                saved,
                sink: self.sink.clone(),
            },
            Way::Parts(parts) => {
                let complete = (0..parts.number).all(|number| parts.done.contains_key(&number));
                let total: u64 = parts.done.values().map(|part| part.size).sum();
                if !complete || total != self.received {
                    // An earlier attempt sent parts that this one does not have.
                    self.way = Way::Parts(parts);
                    self.give_up().await;
                    let message =
                        "the parts at the store are not those of this file, starting over";
                    let error = RemoteError::new(ErrorKind::Changed, "stage", message);
                    return Err(error.at(&self.path));
                }
                let receipts = parts.done.into_values().map(|part| part.receipt).collect();
                Content::Parts {
                    saved: parts.saved,
                    begun: parts.begun,
                    receipts,
                    sink: self.sink.clone(),
                }
            }
        })
    }
}

async fn take_part(parts: &mut Parts, sent: &mut u64, path: &RelPath) -> Result<(), RemoteError> {
    match parts.tasks.join_next().await {
        Some(ended) => note(parts, sent, ended, path),
        None => Ok(()),
    }
}

fn note(
    parts: &mut Parts,
    sent: &mut u64,
    ended: Result<Result<PartThere, RemoteError>, tokio::task::JoinError>,
    path: &RelPath,
) -> Result<(), RemoteError> {
    let part = ended.map_err(|error| {
        RemoteError::new(
            ErrorKind::Cancelled,
            "write",
            "sending a part was cut short",
        )
        .at(path)
        .caused_by(error)
    })??;
    *sent += part.sent;
    parts.done.insert(part.done.number, part.done);
    Ok(())
}

#[async_trait]
impl Upload for ObjectUpload {
    fn resumed_at(&self) -> u64 {
        self.resumed_at
    }

    fn sent(&self) -> u64 {
        self.sent
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        let taken = self.take_in(chunk).await;
        if taken.is_err() {
            self.give_up_if_nobody_knows().await;
        }
        taken
    }

    async fn stage(
        mut self: Box<Self>,
        length: u64,
        hash: ContentHash,
    ) -> Result<Staged, RemoteError> {
        if self.received != length {
            let message = format!("{} bytes were handed in, not {length}", self.received);
            self.give_up().await;
            return Err(RemoteError::new(ErrorKind::Changed, "stage", message).at(&self.path));
        }
        let content = match self.content().await {
            Ok(content) => content,
            Err(error) => {
                self.give_up_if_nobody_knows().await;
                return Err(error);
            }
        };
        let staged = StagedObject {
            key: self.key,
            length,
            hash,
            mtime: self.mtime,
            replace: self.replace,
            verify: self.verify,
            content,
        };
        let committer = Arc::new(ObjectCommitter::new(self.inner));
        Ok(Staged {
            committer,
            path: self.path,
            state: Box::new(staged),
        })
    }

    async fn suspend(mut self: Box<Self>) {
        // What is not through by then is sent again by the next attempt.
        match tokio::time::timeout(SUSPEND_LIMIT, self.all_parts()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(path = %self.path, %error, "a part was not finished"),
            Err(_elapsed) => tracing::debug!(path = %self.path, "parts were still under way"),
        }
    }

    async fn abort(mut self: Box<Self>) {
        self.give_up().await;
    }
}
