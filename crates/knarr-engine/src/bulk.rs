//! The lane for many small files between two local directories.
//!
//! Whole batches are read, staged and committed in one blocking call each, with one flush a batch; two
//! batches at a time, so that one waits for the disk while the other reads. What a batch is about to make
//! is noted before, in one row (K11). What fails there goes the ordinary way, with its repetitions and
//! its messages.

use std::sync::Arc;

use knarr_core::Kind;
use knarr_core::job::Verify;
use knarr_core::plan::{Beside, Compare, Side};
use knarr_core::record::{Action, Evidence};
use knarr_fs::copy::{Copied, CopyError, CopyObserver, CopyOptions, CopyRequest, copy_batch};
use knarr_store::intents::{Intended, IntentId};
use tokio::sync::Semaphore;

use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::{Change, intents};
use crate::observer::Event;
use crate::put::{self, Put};

/// Files up to this length go through the lane.
const SMALL_BYTES: u64 = 1 << 20;
/// How many files a batch has at most.
const BATCH_FILES: usize = 2_000;
/// How many bytes a batch has at most.
const BATCH_BYTES: u64 = 128 << 20;

/// Gathers small files into batches.
#[derive(Debug)]
pub(crate) struct Bulk {
    waiting: Vec<Put>,
    bytes: u64,
    turns: Arc<Semaphore>,
}

/// A batch that is ready to be copied.
pub(crate) type Batch = Vec<Put>;

impl Bulk {
    /// The lane, if both sides are local and nothing needs the ordinary way.
    pub(crate) fn between(context: &Context) -> Option<Self> {
        context.source.as_local()?;
        context.destination.as_local()?;
        Some(Self {
            waiting: Vec::new(),
            bytes: 0,
            turns: Arc::new(Semaphore::new(2)),
        })
    }

    /// Whether `put` may go through the lane.
    pub(crate) fn takes(put: &Put) -> bool {
        put.entry.kind == Kind::File
            && put.entry.size <= SMALL_BYTES
            && put.to == Side::Destination
            && put.beside == Beside::No
            && put.compare == Compare::No
    }

    /// Adds a file; returns a batch when one is full.
    pub(crate) fn add(&mut self, put: Put) -> Option<Batch> {
        self.bytes += put.entry.size;
        self.waiting.push(put);
        (self.waiting.len() >= BATCH_FILES || self.bytes >= BATCH_BYTES).then(|| self.take())
    }

    /// What is waiting.
    pub(crate) fn take(&mut self) -> Batch {
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    /// Who may copy a batch now.
    pub(crate) fn turns(&self) -> Arc<Semaphore> {
        Arc::clone(&self.turns)
    }
}

struct Watch<'a>(&'a Context);

impl CopyObserver for Watch<'_> {
    fn copied_bytes(&self, count: u64) {
        self.0.observer.event(&Event::Progress {
            path: None,
            bytes: count,
        });
    }

    fn is_cancelled(&self) -> bool {
        self.0.cancel.is_cancelled()
    }
}

/// Copies and records a batch.
///
/// # Errors
/// Only if the state could not be recorded.
pub(crate) async fn copy(
    context: &Arc<Context>,
    batch: Batch,
    turns: Arc<Semaphore>,
) -> Result<(), EngineError> {
    if batch.is_empty() {
        return Ok(());
    }
    // Before the turn comes: the store may be at the records of the batch before, and a turn that waits
    // for it would leave the disk idle.
    let intent = context
        .journal
        .intend(batch.iter().map(intended).collect())
        .await?;
    let Ok(_turn) = turns.acquire_owned().await else {
        return Ok(());
    };
    put::at_rest(context, batch.iter().map(|put| &put.entry)).await;
    let started = context.clock.now();
    let shared = Arc::clone(context);
    let copied = tokio::task::spawn_blocking(move || {
        let results = copy_blocking(&shared, &batch);
        (batch, results)
    });
    let Ok((batch, results)) = copied.await else {
        return Err(EngineError::Internal("a batch of copies ended in a panic"));
    };
    let each = put::microseconds(context.clock.now(), started) / (batch.len() as u64).max(1);
    let mut changes = Vec::with_capacity(batch.len() * 2 + 1);
    let (mut done, mut again) = (Vec::with_capacity(batch.len()), Vec::new());
    let (mut unclear, mut left) = (Vec::new(), Vec::new());
    for (put, result) in batch.into_iter().zip(results) {
        match result {
            Ok(copied) => {
                let action = if put.replaces.is_some() {
                    Action::Updated
                } else {
                    Action::Created
                };
                record(context, &put, &copied, action, each, &mut changes);
                done.push((put, action));
            }
            Err(CopyError::Cancelled) if context.cancel.is_cancelled() => {}
            Err(error) => {
                tracing::debug!(path = %put.entry.path, %error, "goes the ordinary way");
                // What failed at its commit may have its name already.
                if matches!(error, CopyError::Commit(_)) {
                    left.push(intended(&put));
                    unclear.push(put);
                } else {
                    again.push(put);
                }
            }
        }
    }
    // What was done is on record now, so nothing of it may be looked for: in a move its source goes.
    changes.push(Change::ClearIntent(intent));
    let left = context.journal.record_and_intend(changes, left).await?;
    for (put, action) in &done {
        put::delivered(context, &put.entry, *action);
    }
    if context.removes_source() {
        for (put, _) in done {
            crate::dispose::dispose(context, &put.entry).await?;
        }
    }
    ordinarily(context, again, unclear.into_iter().zip(left)).await
}

/// Takes what failed in a batch the ordinary way; some of it has an intent of its own.
async fn ordinarily(
    context: &Arc<Context>,
    again: Vec<Put>,
    unclear: impl Iterator<Item = (Put, IntentId)> + Send,
) -> Result<(), EngineError> {
    for put in again {
        put::put(context, put).await?;
    }
    for (put, intent) in unclear {
        put::put_again(context, put, vec![intent]).await?;
    }
    Ok(())
}

fn intended(put: &Put) -> Intended {
    let replaces = put.replaces.as_ref();
    intents::delivery(put.to, &put.entry, &put.entry.path, replaces, None)
}

fn copy_blocking(context: &Context, batch: &[Put]) -> Vec<Result<Copied, CopyError>> {
    let (Some(source), Some(destination)) =
        (context.source.as_local(), context.destination.as_local())
    else {
        return Vec::new();
    };
    let (Ok(source), Ok(destination)) = (source.root(), destination.root_or_make()) else {
        // The ordinary way says what is wrong with them.
        return batch.iter().map(|_| Err(CopyError::Cancelled)).collect();
    };
    let requests: Vec<CopyRequest> = batch
        .iter()
        .map(|put| CopyRequest {
            source: put.entry.path.clone(),
            destination: put.entry.path.clone(),
            id: context.journal.staged_id(&put.entry.path).0,
            replace: match &put.replaces {
                Some(seen) => knarr_fs::root::Replace::Seen(seen.fingerprint()),
                None => knarr_fs::root::Replace::Nothing,
            },
        })
        .collect();
    let options = CopyOptions {
        verify: match context.verify {
            Verify::Full => knarr_fs::copy::Verify::ReadBack,
            Verify::Offered | Verify::Size => knarr_fs::copy::Verify::Length,
        },
        ..CopyOptions::default()
    };
    let watch = Watch(context);
    copy_batch(&source, &destination, &requests, &options, &watch)
}

fn record(
    context: &Context,
    put: &Put,
    copied: &Copied,
    action: Action,
    microseconds: u64,
    changes: &mut Vec<Change>,
) {
    let mut custody = context
        .journal
        .custody(action, &copied.source, Side::Destination);
    custody.moved_bytes = copied.source.size;
    custody.duration_microseconds = microseconds;
    custody.source_hash = copied.source.hash;
    if let Some(hash) = copied.source.hash {
        custody.evidence = match context.verify {
            Verify::Full => Evidence::ReadBack { hash },
            Verify::Offered | Verify::Size => Evidence::Written { hash },
        };
    }
    Tally::add(&context.tally.sent, copied.source.size);
    let there = &copied.destination.entry;
    let synced = put::synced(
        Side::Destination,
        &copied.source,
        there,
        &put.entry.path,
        copied.source.hash,
    );
    changes.push(Change::Synced(Box::new(synced)));
    changes.push(Change::Custody(Box::new(custody)));
}
