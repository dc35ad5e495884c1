//! The thread that writes one large file.
//!
//! It takes chunks from a bounded queue, so the caller reads, hashes and transforms while the disk
//! writes. A checkpoint is flushed by the same thread, in order: what it answers is on the disk (K9).
//! When the caller goes away, the thread ends and leaves the staged file for a later attempt.

use bytes::Bytes;
use knarr_core::RelPath;
use knarr_fs::root::{Attributes, Replace};
use knarr_fs::stage::{Staged, StagedFile};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::error::from_fs;
use super::{CHUNKS_AHEAD, lost};
use crate::error::{ErrorKind, RemoteError};

/// What the thread is told.
enum Command {
    Chunk(Bytes),
    /// Flush, and answer how many bytes from the start are on the disk.
    Checkpoint(oneshot::Sender<u64>),
    Finish {
        length: u64,
        attributes: Attributes,
        replace: Replace,
    },
    Abort,
}

/// The caller's side.
pub(super) struct Writer {
    commands: mpsc::Sender<Command>,
    thread: Option<JoinHandle<Result<Option<Staged>, RemoteError>>>,
}

impl Writer {
    /// Starts to write into `file`.
    pub(super) fn start(file: StagedFile) -> Self {
        let (commands, queue) = mpsc::channel(CHUNKS_AHEAD);
        let thread = tokio::task::spawn_blocking(move || run(file, queue));
        Self {
            commands,
            thread: Some(thread),
        }
    }

    /// Queues a chunk; waits while too many are queued.
    pub(super) async fn write(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        self.tell(Command::Chunk(chunk)).await
    }

    /// Queues a flush; the answer tells when it is done and how far.
    pub(super) async fn checkpoint(&mut self) -> Result<oneshot::Receiver<u64>, RemoteError> {
        let (answer, receiver) = oneshot::channel();
        self.tell(Command::Checkpoint(answer)).await?;
        Ok(receiver)
    }

    /// Checks the length, sets the attributes, ends the thread.
    pub(super) async fn finish(
        mut self,
        length: u64,
        attributes: Attributes,
        replace: Replace,
    ) -> Result<Staged, RemoteError> {
        self.tell(Command::Finish {
            length,
            attributes,
            replace,
        })
        .await?;
        match self.end().await? {
            Some(staged) => Ok(staged),
            None => Err(stopped()),
        }
    }

    /// Removes the staged file, ends the thread.
    pub(super) async fn abort(mut self) {
        // Whatever failed before does not matter any more.
        let told = self.tell(Command::Abort).await;
        if told.is_ok()
            && let Err(error) = self.end().await
        {
            tracing::debug!(%error, "a writer that was given up had failed");
        }
    }

    /// Ends the thread and keeps the staged file.
    pub(super) async fn leave(mut self) -> Result<(), RemoteError> {
        let (unused, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.commands, unused));
        self.end().await.map(drop)
    }

    async fn tell(&mut self, command: Command) -> Result<(), RemoteError> {
        if self.commands.send(command).await.is_ok() {
            return Ok(());
        }
        // The thread ended before it was told to: it has the reason.
        Err(self.end().await.err().unwrap_or_else(stopped))
    }

    async fn end(&mut self) -> Result<Option<Staged>, RemoteError> {
        match self.thread.take() {
            Some(thread) => thread.await.unwrap_or_else(|error| Err(lost(error))),
            None => Err(stopped()),
        }
    }
}

fn stopped() -> RemoteError {
    RemoteError::new(
        ErrorKind::Other,
        "write",
        "writing stopped after an earlier error",
    )
}

fn run(
    mut file: StagedFile,
    mut queue: mpsc::Receiver<Command>,
) -> Result<Option<Staged>, RemoteError> {
    let path: RelPath = file.path().clone();
    let failed = |error| from_fs("write", Some(&path), error);
    while let Some(command) = queue.blocking_recv() {
        match command {
            Command::Chunk(bytes) => file.write(&bytes).map_err(failed)?,
            Command::Checkpoint(answer) => match file.checkpoint() {
                // Who does not wait for the answer does not need it.
                Ok(offset) => drop(answer.send(offset)),
                Err(error) => {
                    // Never flushed again: see `knarr_fs::stage`.
                    file.abort();
                    return Err(failed(error));
                }
            },
            Command::Finish {
                length,
                attributes,
                replace,
            } => {
                return file
                    .finish(length, attributes, replace)
                    .map(Some)
                    .map_err(failed);
            }
            Command::Abort => {
                file.abort();
                return Ok(None);
            }
        }
    }
    Ok(None)
}
