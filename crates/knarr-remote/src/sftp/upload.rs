//! Writes files: what is small waits until it is complete, what is large flows.
//!
//! Constraints: at most [`SMALL_BYTES`] wait to be sent, besides the window of the writer. A checkpoint
//! is due every [`CHECKPOINT_BYTES`], and no more than [`WINDOW_BYTES`] are ever sent beyond the last one
//! that was saved: that is what a second attempt may have to send again (K9).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join3;
use knarr_core::ContentHash;
use knarr_sftp::client::{Durability, FileWriter, WriteOptions as Requests};
use knarr_sftp::{Attributes, Handle, OpenFlags};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{ErrorKind, RemoteError};
use crate::remote::NewNode;
use crate::sftp::connection::Connection;
use crate::sftp::error;
use crate::sftp::joining::Opening;
use crate::sftp::small::{self, wrong_length};
use crate::sftp::staging::{self, Target};
use crate::sftp::state::{self, StagedState};
use crate::upload::{CheckpointSink, CheckpointUpdate, Staged, Upload};

/// Files up to this length are written on as few round trips as possible: what OpenSSH takes in one
/// request.
const SMALL_BYTES: usize = 255 * 1024;

/// Files whose length is known to be at most this are not worth a checkpoint.
const NO_CHECKPOINT_BYTES: u64 = 1024 * 1024;

/// Acknowledged bytes after which a checkpoint is due.
const CHECKPOINT_BYTES: u64 = 8 * 1024 * 1024;

/// How long a file that is complete waits for connections that were about to take a share.
const JOINING_LIMIT: Duration = Duration::from_secs(10);

/// Bytes that may be sent beyond the last checkpoint.
const WINDOW_BYTES: u64 = 32 * 1024 * 1024;

/// A file on its way.
pub(super) struct SftpUpload {
    target: Target,
    resumed_at: u64,
    /// How far the caller has come.
    position: u64,
    /// What waits to be sent, as long as the file may be a small one.
    waiting: Vec<Bytes>,
    /// What flows, once it is known not to be small.
    flow: Option<Flow>,
    /// How many bytes a small file sent.
    sent_small: u64,
}

/// A large file that flows.
struct Flow {
    connection: Arc<Connection>,
    writer: FileWriter,
    /// Where the writing began.
    began_at: u64,
    checkpoints: Option<Checkpoints>,
}

/// What saves the checkpoints of a large file.
struct Checkpoints {
    sink: Arc<dyn CheckpointSink>,
    /// Flushes the file where that is offered.
    flusher: Option<Arc<Flusher>>,
    saved: u64,
    /// The checkpoint that is being made.
    making: Option<Making>,
}

/// Flushes a staged file over a handle of its own, so that the task that flushes can hold it while the
/// writer goes on. The handle is opened when it is first needed: no byte waits for it.
struct Flusher {
    connection: Arc<Connection>,
    staged: Vec<u8>,
    handle: OnceCell<Handle>,
}

impl Flusher {
    async fn flush(&self) -> Result<(), knarr_sftp::Error> {
        let open = || {
            let (flags, attributes) = (OpenFlags::WRITE, Attributes::default());
            let client = self.connection.client();
            client.open(&self.staged, flags, attributes)
        };
        self.handle.get_or_try_init(open).await?.sync().await
    }
}

struct Making {
    offset: u64,
    task: AbortOnDropHandle<Result<(), CheckpointError>>,
}

enum CheckpointError {
    Flush(knarr_sftp::Error),
    Save(RemoteError),
}

impl fmt::Debug for SftpUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SftpUpload")
            .field("path", &self.target.path)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl SftpUpload {
    pub(super) async fn begin(target: Target) -> Result<Self, RemoteError> {
        let resume = state::resumable(&target.options);
        let mut upload = Self {
            target,
            resumed_at: 0,
            position: 0,
            waiting: Vec::new(),
            flow: None,
            sent_small: 0,
        };
        let size = upload.known_size();
        if let Some(offset) = resume
            && size.is_none_or(|size| offset <= size)
        {
            upload.resume(offset).await?;
        } else if size.is_some_and(|size| size > SMALL_BYTES as u64) {
            upload.start_flow().await?;
        }
        Ok(upload)
    }

    fn known_size(&self) -> Option<u64> {
        match self.target.options.node {
            NewNode::File { size } => size,
            _ => None,
        }
    }

    /// Goes on where an earlier attempt was, or starts over if that is gone.
    async fn resume(&mut self, offset: u64) -> Result<(), RemoteError> {
        let connection = self.target.endpoint.connection().await?;
        match staging::reopen(&self.target, &connection, offset).await? {
            Some(handle) => {
                self.resumed_at = offset;
                self.open_flow(connection, handle, offset).await
            }
            None => self.start_flow().await,
        }
    }

    async fn start_flow(&mut self) -> Result<(), RemoteError> {
        let connection = self.target.endpoint.connection().await?;
        let handle = staging::create(&self.target, &connection).await?;
        if self.wants_checkpoints()
            && let Some(sink) = &self.target.options.checkpoints
        {
            let state = staging::started_state(&self.target);
            sink.save(CheckpointUpdate::Started { state }).await?;
        }
        self.open_flow(connection, handle, 0).await
    }

    fn wants_checkpoints(&self) -> bool {
        self.known_size()
            .is_none_or(|size| size > NO_CHECKPOINT_BYTES)
    }

    async fn open_flow(
        &mut self,
        connection: Arc<Connection>,
        handle: Handle,
        offset: u64,
    ) -> Result<(), RemoteError> {
        let target = &self.target;
        let checkpoints = match &target.options.checkpoints {
            Some(sink) if self.wants_checkpoints() => {
                let flusher = || Flusher {
                    connection: Arc::clone(&connection),
                    staged: target.staged.clone(),
                    handle: OnceCell::new(),
                };
                Some(Checkpoints {
                    sink: Arc::clone(sink),
                    flusher: target.flushes(&connection).then(|| Arc::new(flusher())),
                    saved: offset,
                    making: None,
                })
            }
            _ => None,
        };
        let requests = Requests {
            offset,
            ..Requests::default()
        };
        let writer = FileWriter::new(vec![handle], &requests)
            .map_err(|source| small::failed(&connection, target, "write", source))?;
        let opening = Opening {
            path: target.staged.clone(),
            flags: OpenFlags::WRITE,
            looks: None,
        };
        // What is of unknown length may be long.
        let left = self.known_size().unwrap_or(u64::MAX).saturating_sub(offset);
        let writer = writer.joined_by(opening.beside(&connection, &target.endpoint, left));
        self.flow = Some(Flow {
            connection,
            writer,
            began_at: offset,
            checkpoints,
        });
        Ok(())
    }

    /// Hands what waits to the flow.
    async fn overflow(&mut self) -> Result<(), RemoteError> {
        self.start_flow().await?;
        for chunk in std::mem::take(&mut self.waiting) {
            self.send(chunk).await?;
        }
        Ok(())
    }

    async fn send(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        let Some(flow) = &mut self.flow else {
            return Ok(());
        };
        if let Err(source) = flow.writer.write(chunk).await {
            return Err(self.target.failed(&flow.connection, source).await);
        }
        let position = flow.writer.position();
        let Some(checkpoints) = &mut flow.checkpoints else {
            return Ok(());
        };
        let outcome = checkpoints
            .advance(flow.writer.acknowledged(), position)
            .await;
        match outcome {
            Ok(Room::Enough) => Ok(()),
            Ok(Room::None) => {
                // Everything that was sent is waited for, so that a checkpoint can be made of it.
                if let Err(source) = flow.writer.flush().await {
                    return Err(self.target.failed(&flow.connection, source).await);
                }
                let acknowledged = flow.writer.acknowledged();
                let saved = checkpoints.catch_up(acknowledged).await;
                saved.map_err(|error| error.at_path(&flow.connection, &self.target))
            }
            Err(error) => Err(error.at_path(&flow.connection, &self.target)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Enough,
    None,
}

impl Checkpoints {
    /// Takes note of acknowledged bytes; begins a checkpoint if one is due.
    async fn advance(&mut self, acknowledged: u64, position: u64) -> Result<Room, CheckpointError> {
        if self
            .making
            .as_ref()
            .is_some_and(|making| making.task.is_finished())
        {
            self.finish_making().await?;
        }
        if position.saturating_sub(self.saved) < WINDOW_BYTES {
            if self.making.is_none() && acknowledged.saturating_sub(self.saved) >= CHECKPOINT_BYTES
            {
                self.begin_making(acknowledged);
            }
            return Ok(Room::Enough);
        }
        self.finish_making().await?;
        let room = position.saturating_sub(self.saved) < WINDOW_BYTES;
        Ok(if room { Room::Enough } else { Room::None })
    }

    /// Saves everything up to `acknowledged`.
    async fn catch_up(&mut self, acknowledged: u64) -> Result<(), CheckpointError> {
        self.finish_making().await?;
        if acknowledged > self.saved {
            self.begin_making(acknowledged);
            self.finish_making().await?;
        }
        Ok(())
    }

    fn begin_making(&mut self, offset: u64) {
        let (sink, flusher) = (Arc::clone(&self.sink), self.flusher.clone());
        let task = tokio::spawn(async move {
            if let Some(flusher) = flusher {
                flusher.flush().await.map_err(CheckpointError::Flush)?;
            }
            let saved = sink.save(CheckpointUpdate::Advanced { offset }).await;
            saved.map_err(CheckpointError::Save)
        });
        self.making = Some(Making {
            offset,
            task: AbortOnDropHandle::new(task),
        });
    }

    async fn finish_making(&mut self) -> Result<(), CheckpointError> {
        let Some(Making { offset, task }) = self.making.take() else {
            return Ok(());
        };
        let outcome = task.await.unwrap_or_else(|broken| {
            let error = RemoteError::new(ErrorKind::Other, "save a checkpoint", broken.to_string());
            Err(CheckpointError::Save(error))
        });
        outcome?;
        self.saved = offset;
        Ok(())
    }
}

impl CheckpointError {
    fn at_path(self, connection: &Connection, target: &Target) -> RemoteError {
        match self {
            Self::Flush(source) => error::at(connection, "flush", &target.path, source),
            Self::Save(error) => error,
        }
    }
}

#[async_trait]
impl Upload for SftpUpload {
    fn resumed_at(&self) -> u64 {
        self.resumed_at
    }

    fn sent(&self) -> u64 {
        let flowed = self
            .flow
            .as_ref()
            .map_or(0, |flow| flow.writer.position() - flow.began_at);
        flowed + self.sent_small
    }

    async fn write(&mut self, mut chunk: Bytes) -> Result<(), RemoteError> {
        let known = self.resumed_at.saturating_sub(self.position);
        self.position += chunk.len() as u64;
        let known = usize::try_from(known)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        let chunk = chunk.split_off(known);
        if chunk.is_empty() {
            return Ok(());
        }
        if self.flow.is_some() {
            return self.send(chunk).await;
        }
        self.waiting.push(chunk);
        let waiting: usize = self.waiting.iter().map(Bytes::len).sum();
        if waiting > SMALL_BYTES {
            self.overflow().await?;
        }
        Ok(())
    }

    async fn stage(
        mut self: Box<Self>,
        length: u64,
        hash: ContentHash,
    ) -> Result<Staged, RemoteError> {
        if self.position != length {
            return Err(wrong_length(&self.target, self.position, length));
        }
        let state = match self.flow.take() {
            None => {
                let waiting = std::mem::take(&mut self.waiting);
                self.sent_small = length;
                small::stage_file(&self.target, waiting, hash).await?
            }
            Some(flow) => flow.stage(&self.target, length, hash).await?,
        };
        let committer = Arc::clone(&self.target.committer);
        Ok(Staged {
            committer,
            path: self.target.path.clone(),
            state: Box::new(state),
        })
    }

    async fn suspend(mut self: Box<Self>) {
        let Some(mut flow) = self.flow.take() else {
            return;
        };
        // What cannot be acknowledged any more is not part of the checkpoint.
        let flushed = flow.writer.flush().await;
        let acknowledged = flow.writer.acknowledged();
        if let Err(error) = flushed {
            tracing::debug!(%error, path = %self.target.path, "suspended without the last bytes");
        }
        if let Some(checkpoints) = &mut flow.checkpoints
            && let Err(error) = checkpoints.catch_up(acknowledged).await
        {
            let error = error.at_path(&flow.connection, &self.target);
            tracing::warn!(%error, path = %self.target.path, "the last checkpoint was not saved");
        }
    }

    async fn abort(mut self: Box<Self>) {
        let Some(flow) = self.flow.take() else { return };
        let saved = flow
            .checkpoints
            .as_ref()
            .map(|checkpoints| Arc::clone(&checkpoints.sink));
        drop(flow);
        staging::discard(&self.target).await;
        if let Some(sink) = saved
            && let Err(error) = sink.save(CheckpointUpdate::Forgotten).await
        {
            tracing::warn!(%error, path = %self.target.path, "a checkpoint was not removed");
        }
    }
}

impl Flow {
    async fn stage(
        self,
        target: &Target,
        length: u64,
        hash: ContentHash,
    ) -> Result<StagedState, RemoteError> {
        let connection = Arc::clone(&self.connection);
        let found = match self.complete(target).await {
            Ok(found) => found,
            Err(source) => return Err(target.failed(&connection, source).await),
        };
        let entry = target.check_length(&found, length)?;
        let evidence = target.evidence(&connection, length, hash).await?;
        Ok(StagedState {
            staged: Some(Bytes::copy_from_slice(&target.staged)),
            node: target.options.node.clone(),
            entry,
            attributes: Attributes::default(),
            replace: target.options.replace.clone(),
            evidence,
        })
    }

    /// Waits for all bytes, sets attributes, flushes and looks.
    async fn complete(mut self, target: &Target) -> Result<Attributes, knarr_sftp::Error> {
        // Also over the other connections: what is set comes after the last byte.
        self.writer.flush().await?;
        // Some servers rename no file that is open for writing somewhere.
        let ended = timeout(JOINING_LIMIT, self.writer.end_joining()).await;
        if ended.is_err() {
            tracing::debug!(path = %target.path, "a further connection does not answer");
        }
        let flushes = target.flushes(&self.connection);
        let attributes = target.attributes();
        let handle = self.writer.handle();
        let set = async {
            if attributes == Attributes::default() {
                return Ok(());
            }
            handle.set_attributes(attributes.clone()).await
        };
        let sync = async { if flushes { handle.sync().await } else { Ok(()) } };
        let (set, synced, found) = join3(set, sync, handle.stat()).await;
        if let Err(error) = set {
            small::tolerate(target, error)?;
        }
        synced?;
        let mut found = found?;
        if !target.is_set(&found) {
            if let Err(error) = handle.set_attributes(attributes).await {
                small::tolerate(target, error)?;
            }
            found = handle.stat().await?;
        }
        if !flushes {
            // Some servers say only now that they could not write.
            self.writer.finish(Durability::Unflushed).await?;
        }
        Ok(found)
    }
}
