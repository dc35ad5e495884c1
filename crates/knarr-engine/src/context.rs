//! What all operations of a run share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use knarr_core::job::{After, Verify};
use knarr_core::plan::{Policy, Side};
use knarr_core::retry::RetryPolicy;
use knarr_core::{Clock, Entry, RelPath};
use knarr_remote::{CheckpointSink, Remote, RemoteError, ResumeState, Retry};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acknowledge::Acknowledging;
use crate::batch::Batches;
use crate::commit::CommitQueue;
use crate::duplicates::Contents;
use crate::error::EngineError;
use crate::inspect::{FileChecks, SideFiles};
use crate::journal::Journal;
use crate::observer::{Event, Observer, Trouble};
use crate::turns::Slots;

/// What all operations of a run share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) source: Arc<dyn Remote>,
    pub(crate) destination: Arc<dyn Remote>,
    pub(crate) journal: Journal,
    pub(crate) policy: Policy,
    pub(crate) verify: Verify,
    pub(crate) after: After,
    /// What is asked of each file's content.
    pub(crate) checks: Arc<FileChecks>,
    /// The files with checksums that were read for them.
    pub(crate) side_files: SideFiles,
    /// What whoever a file came from is told of its delivery.
    pub(crate) acknowledging: Acknowledging,
    /// Contents that are on their way.
    pub(crate) contents: Contents,
    pub(crate) retry: RetryPolicy,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) cancel: CancellationToken,
    pub(crate) commits: CommitQueue,
    /// How many files are read and written at once.
    pub(crate) slots: Slots,
    pub(crate) tally: Tally,
    /// What is published together; unset where each file is by itself.
    pub(crate) batches: OnceLock<Batches>,
    /// What was started and has to end before the process does.
    pub(crate) tasks: TaskTracker,
}

impl Context {
    /// The side things come from and the side they go to, when `to` is written.
    pub(crate) fn sides(&self, to: Side) -> (&Arc<dyn Remote>, &Arc<dyn Remote>) {
        match to {
            Side::Destination => (&self.source, &self.destination),
            Side::Source => (&self.destination, &self.source),
        }
    }

    /// The remote of one side.
    pub(crate) fn side(&self, side: Side) -> &Arc<dyn Remote> {
        self.sides(side).1
    }

    /// Whether the source loses the file afterwards.
    pub(crate) const fn removes_source(&self) -> bool {
        !matches!(self.after, After::Keep)
    }

    /// What an earlier attempt to write `path` from `entry` left to go on from, and where this one saves
    /// how far it is. What attempts at other versions left is given up.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub(crate) async fn checkpoints(
        &self,
        to: Side,
        path: &RelPath,
        entry: &Entry,
    ) -> Result<(Option<ResumeState>, Arc<dyn CheckpointSink>), EngineError> {
        let (earlier, sink) = self.journal.checkpoints(to, path, entry).await?;
        if earlier.resume.is_none() {
            for state in &earlier.worthless {
                if let Err(error) = self.side(to).abandon(path, state).await {
                    tracing::warn!(%path, %error, "what an earlier attempt left cannot be removed");
                }
            }
        }
        Ok((earlier.resume, sink))
    }

    /// Tells the observer about trouble.
    pub(crate) fn trouble(&self, path: Option<&RelPath>, kind: Trouble, message: &str) {
        self.observer.event(&Event::Trouble {
            path,
            kind,
            message,
        });
    }

    /// Waits before the next attempt, or says that there is none: not for an error that repeating
    /// cannot help, not after the last attempt, not when asked to stop.
    pub(crate) async fn pause(&self, failed: u32, retry: Retry) -> bool {
        if retry == Retry::Never || self.cancel.is_cancelled() {
            return false;
        }
        let chance = f64::from(failed % 7) / 7.0;
        let Some(pause) = self.retry.pause(failed, chance) else {
            return false;
        };
        self.sleep(pause).await
    }

    async fn sleep(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.cancel.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// What was done so far, counted from many tasks.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) created: AtomicU64,
    pub(crate) updated: AtomicU64,
    pub(crate) renamed: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) adopted: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) problems: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) skipped: AtomicU64,
    /// Bytes of the sources of what was created and updated.
    pub(crate) bytes: AtomicU64,
    /// Bytes that went over the wire.
    pub(crate) sent: AtomicU64,
    /// Whether an endpoint could not be reached.
    pub(crate) unreachable: AtomicBool,
}

impl Tally {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn note_error(&self, error: &RemoteError) {
        if error.retry == Retry::EndpointDown {
            self.unreachable.store(true, Ordering::Relaxed);
        }
    }
}
