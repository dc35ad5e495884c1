//! Moves the bytes of one file: read, hash, run the steps, hash again, write under a staged name.
//!
//! The attempt is void if the source is not, after the last byte, what it was before the first
//! what was read may be a mixture of two versions. Nothing is visible at the destination
//! before the caller commits what this returns.

mod through;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use knarr_core::job::Verify;
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_remote::{
    CheckpointSink, ErrorKind, NewNode, ReadOptions, Reader, Remote, RemoteError, Replace,
    ResumeState, Retry, Staged, StagedId, Upload, WriteOptions,
};
use knarr_steps::StepError;
use tokio_util::sync::CancellationToken;

pub(crate) use self::through::{Driven, Outputs, drive};
use crate::inspect::Inspection;
use crate::observer::{Event, Observer};
use crate::turns::Slot;

/// Below this length nothing is saved for resuming: sending it again is cheaper.
pub(crate) const RESUMABLE_FROM_BYTES: u64 = 4 << 20;

/// One file to move.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    /// Where it is.
    pub(crate) source: &'a dyn Remote,
    /// What was seen there.
    pub(crate) entry: &'a Entry,
    /// Where it goes.
    pub(crate) destination: &'a dyn Remote,
    /// How it is written; with steps each output has its own.
    pub(crate) target: Option<Target>,
    /// Who watches.
    pub(crate) observer: &'a dyn Observer,
    /// Asked to stop: what is under way is suspended.
    pub(crate) cancel: &'a CancellationToken,
    /// The content, if it was read when it was looked at.
    pub(crate) opened: Opened,
}

/// A reader that is there already, to be used once.
#[derive(Default)]
pub(crate) struct Opened(Mutex<Option<Box<dyn Reader>>>);

impl Opened {
    pub(crate) fn new(reader: Option<Box<dyn Reader>>) -> Self {
        Self(Mutex::new(reader))
    }

    fn take(&self) -> Option<Box<dyn Reader>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

/// How a file is written.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) path: RelPath,
    pub(crate) staged_id: StagedId,
    pub(crate) replace: Replace,
    pub(crate) verify: Verify,
    pub(crate) resume: Option<ResumeState>,
    pub(crate) checkpoints: Option<Arc<dyn CheckpointSink>>,
}

/// A file that is complete under its staged name.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) staged: Staged,
    /// Of the content.
    pub(crate) hash: ContentHash,
    /// Bytes sent in this attempt.
    pub(crate) sent: u64,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// The source changed while it was read, or is not what was seen.
    #[error("the source changed while it was read; it is taken again when it is at rest")]
    Changed,
    /// We were asked to stop.
    #[error("stopped before it was complete; it is resumed by the next run")]
    Cancelled,
    /// Trouble at the source.
    #[error("at the source")]
    Source(#[source] RemoteError),
    /// Trouble at the destination.
    #[error("at the destination")]
    Destination(#[source] RemoteError),
    /// A step refused the content.
    #[error("in the steps")]
    Step(#[source] StepError),
    /// What came out of the steps cannot wait for its last byte.
    #[error(
        "what came out of the steps has to wait in the state directory until it was verified, and cannot; \
         make room there"
    )]
    Quarantine(#[source] std::io::Error),
    /// What is at the destination has to stay, so nothing of it is delivered.
    #[error("{0}")]
    Left(String),
    /// Its content is not what it has to be.
    #[error("{0}; nothing of it was delivered, and the source stays")]
    Refused(String),
    /// Nobody could tell whether its content is what it has to be.
    #[error("{0}")]
    Unchecked(String),
    /// Something that belongs to it is not there yet.
    #[error("{0}")]
    Waiting(String),
    /// A defect of ours: nobody said where to write.
    #[error("internal error: a transfer without a target")]
    NoTarget,
}

impl TransferError {
    /// Whether repeating can help, and whom it concerns.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::Changed => Retry::Later,
            Self::Quarantine(_) | Self::Unchecked(_) | Self::Waiting(_) => Retry::Later,
            Self::Cancelled | Self::Left(_) | Self::Refused(_) | Self::NoTarget => Retry::Never,
            Self::Source(error) | Self::Destination(error) => error.retry,
            Self::Step(error) => {
                if error.is_permanent() {
                    Retry::Never
                } else {
                    Retry::Later
                }
            }
        }
    }

    /// The error of the place, if it is one.
    pub(crate) const fn remote(&self) -> Option<&RemoteError> {
        match self {
            Self::Source(error) | Self::Destination(error) => Some(error),
            Self::Changed
            | Self::Cancelled
            | Self::Step(_)
            | Self::Quarantine(_)
            | Self::Left(_)
            | Self::Refused(_)
            | Self::Unchecked(_)
            | Self::Waiting(_)
            | Self::NoTarget => None,
        }
    }
}

/// What remains of a transfer's slot when its bytes are staged. Where every commit is a request of its own,
/// as in an object store, the bytes of a small file travel with it.
pub(crate) fn after_staging<'s>(slot: Slot<'s>, staged: &Staged) -> Option<Slot<'s>> {
    (staged.committer.batch_limit() <= 1).then_some(slot)
}

/// Moves a file without steps. It can be resumed.
pub(crate) async fn plain(
    transfer: &Transfer<'_>,
    inspection: &mut Inspection,
) -> Result<Moved, TransferError> {
    let Some(target) = transfer.target.clone() else {
        return Err(TransferError::NoTarget);
    };
    let mut upload = open_target(transfer, target, Some(transfer.entry.size)).await?;
    let mut hasher = blake3::Hasher::new();
    let mut offset = 0;
    // What has to see every byte reads all of them again.
    if upload.resumed_at() > 0 && !inspection.is_needed() {
        match upload.resumed_hash().await {
            Ok(Some(prefix)) => {
                offset = upload.resumed_at();
                hasher = prefix;
            }
            Ok(None) => {}
            Err(error) => {
                upload.abort().await;
                return Err(TransferError::Destination(error.with_retry(Retry::Later)));
            }
        }
    }
    let pumped = pump_plain(transfer, inspection, upload.as_mut(), &mut hasher, offset).await;
    let length = match pumped {
        Ok(length) => length,
        Err(error) => return Err(give_up(upload, error).await),
    };
    let hash = ContentHash::from(hasher.finalize());
    let sent = length.saturating_sub(upload.resumed_at());
    let staged = upload
        .stage(length, hash)
        .await
        .map_err(TransferError::Destination)?;
    Ok(Moved { staged, hash, sent })
}

/// Reads the source to its end for its checks alone.
pub(crate) async fn inspect(
    transfer: &Transfer<'_>,
    inspection: &mut Inspection,
) -> Result<(), TransferError> {
    let mut reader = open_reader(transfer, 0).await?;
    while let Some(chunk) = next_chunk(transfer, reader.as_mut()).await? {
        inspection.update(&chunk).await?;
    }
    unchanged(transfer, reader.as_mut()).await?;
    inspection.finish().await
}

async fn pump_plain(
    transfer: &Transfer<'_>,
    inspection: &mut Inspection,
    upload: &mut dyn Upload,
    hasher: &mut blake3::Hasher,
    offset: u64,
) -> Result<u64, TransferError> {
    let mut reader = open_reader(transfer, offset).await?;
    if offset > 0 {
        progress(transfer, offset);
    }
    let mut length = offset;
    while let Some(chunk) = next_chunk(transfer, reader.as_mut()).await? {
        hasher.update(&chunk);
        inspection.update(&chunk).await?;
        length += chunk.len() as u64;
        progress(transfer, chunk.len() as u64);
        upload
            .write(chunk)
            .await
            .map_err(TransferError::Destination)?;
    }
    unchanged(transfer, reader.as_mut()).await?;
    if length != transfer.entry.size {
        return Err(TransferError::Changed);
    }
    inspection.finish().await?;
    Ok(length)
}

async fn open_target(
    transfer: &Transfer<'_>,
    target: Target,
    size: Option<u64>,
) -> Result<Box<dyn Upload>, TransferError> {
    let Target {
        path,
        staged_id,
        replace,
        verify,
        resume,
        checkpoints,
    } = target;
    let options = WriteOptions {
        mtime: transfer.entry.mtime,
        mode: transfer.entry.mode,
        replace,
        verify,
        resume,
        checkpoints,
        ..WriteOptions::new(NewNode::File { size }, staged_id)
    };
    transfer
        .destination
        .write(&path, options)
        .await
        .map_err(TransferError::Destination)
}

async fn open_reader(
    transfer: &Transfer<'_>,
    offset: u64,
) -> Result<Box<dyn Reader>, TransferError> {
    let opened = transfer.opened.take().filter(|_| offset == 0);
    if let Some(reader) = opened.filter(|reader| reader.entry() == transfer.entry) {
        return Ok(reader);
    }
    let options = ReadOptions {
        offset,
        expected: Some(transfer.entry.fingerprint()),
    };
    transfer
        .source
        .read(&transfer.entry.path, options)
        .await
        .map_err(from_source)
}

async fn next_chunk(
    transfer: &Transfer<'_>,
    reader: &mut dyn Reader,
) -> Result<Option<Bytes>, TransferError> {
    tokio::select! {
        biased;
        () = transfer.cancel.cancelled() => Err(TransferError::Cancelled),
        chunk = reader.next() => chunk.map_err(from_source),
    }
}

async fn unchanged(transfer: &Transfer<'_>, reader: &mut dyn Reader) -> Result<(), TransferError> {
    let now = reader.finish().await.map_err(from_source)?;
    let same = transfer.entry.fingerprint().still_describes(&now)
        && (transfer.entry.identity.is_none() || transfer.entry.identity == now.identity);
    if same {
        Ok(())
    } else {
        Err(TransferError::Changed)
    }
}

fn from_source(error: RemoteError) -> TransferError {
    match error.kind {
        // Gone, replaced or turned into a directory between the look and the read.
        ErrorKind::Changed | ErrorKind::NotFound | ErrorKind::WrongKind => TransferError::Changed,
        _ => TransferError::Source(error),
    }
}

fn progress(transfer: &Transfer<'_>, bytes: u64) {
    transfer.observer.event(&Event::Progress {
        path: Some(&transfer.entry.path),
        bytes,
    });
}

/// Keeps what can be resumed, removes what cannot.
async fn give_up(upload: Box<dyn Upload>, error: TransferError) -> TransferError {
    match error.retry() {
        _ if matches!(error, TransferError::Cancelled) => upload.suspend().await,
        Retry::EndpointDown => upload.suspend().await,
        Retry::Later if !matches!(error, TransferError::Changed) => upload.suspend().await,
        Retry::Later | Retry::Never => upload.abort().await,
    }
    error
}
