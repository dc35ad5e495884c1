//! Works off the dirty set of one lane.
//!
//! The set is the queue: what is ready is taken from the store, what is in flight is remembered here so
//! that no path is worked on twice at a time, and nothing else is held in memory. An edit that arrives
//! while its path is in flight bumps the path's generation; the path stays dirty and comes again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::job::Deletes;
use knarr_core::record::Action;
use knarr_core::{RelPath, Timestamp};
use knarr_remote::Retry;
use knarr_store::dirty::{Dirty, Next};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::error::EngineError;
use crate::node::deliver::{Deletions, Delivering, Outcome};
use crate::node::health::Circuit;
use crate::node::progress::Progress;
use crate::node::scan::ScanRequest;
use crate::put::PutError;

/// How many paths are in flight at most, staged ones included.
const WINDOW: usize = 1_024;
/// How many ready paths are read from the store at once.
const READY: usize = 512;
/// How long nothing is done when nothing is known to become ready.
const IDLE: Duration = Duration::from_secs(30);

/// The worker of one lane.
#[derive(Debug)]
pub(crate) struct Working {
    pub(crate) delivering: Arc<Delivering>,
    pub(crate) circuit: Circuit,
    pub(crate) progress: Arc<Progress>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) scans: mpsc::Sender<ScanRequest>,
}

struct Done {
    dirty: Dirty,
    outcome: Result<Outcome, EngineError>,
}

impl Working {
    /// Works until asked to stop; then what is in flight is finished or suspended.
    ///
    /// # Errors
    /// If the state could not be read or written.
    pub(crate) async fn run(self) -> Result<(), EngineError> {
        let cancel = self.delivering.context.cancel.clone();
        let mut flights: JoinSet<Done> = JoinSet::new();
        let mut in_flight: BTreeSet<Box<[u8]>> = BTreeSet::new();
        let mut after = Vec::new();
        let mut look = true;
        let mut looked_at = self.delivering.context.clock.now();
        while !cancel.is_cancelled() {
            if !self.circuit.is_up() {
                self.drain(&mut flights, &mut in_flight).await?;
                self.circuit.until_up().await;
                continue;
            }
            if look {
                looked_at = self.delivering.context.clock.now();
                look = self
                    .start_ready(looked_at, &mut flights, &mut in_flight, &mut after)
                    .await?;
                if look && in_flight.len() < WINDOW {
                    continue;
                }
            }
            let pause = if in_flight.len() < WINDOW {
                self.pause(looked_at).await?
            } else {
                IDLE
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = self.wake.notified() => look = true,
                () = tokio::time::sleep(pause) => look = true,
                Some(ended) = flights.join_next() => self.ended(ended, &mut in_flight).await?,
            }
            while let Some(ended) = flights.try_join_next() {
                self.ended(ended, &mut in_flight).await?;
            }
            // Every look reads from the store: not for each path that ends, but when there is room for many.
            look |= in_flight.len() <= WINDOW / 2;
        }
        self.drain(&mut flights, &mut in_flight).await
    }

    async fn drain(
        &self,
        flights: &mut JoinSet<Done>,
        in_flight: &mut BTreeSet<Box<[u8]>>,
    ) -> Result<(), EngineError> {
        while let Some(ended) = flights.join_next().await {
            self.ended(ended, in_flight).await?;
        }
        Ok(())
    }

    /// How long until something is ready that was not when the queue was last looked at.
    async fn pause(&self, looked_at: Timestamp) -> Result<Duration, EngineError> {
        let context = &self.delivering.context;
        let next = context.journal.next_ready_after(looked_at).await?;
        let now = context.clock.now();
        Ok(next.map_or(IDLE, |next| {
            next.since(now).clamp(Duration::from_millis(1), IDLE)
        }))
    }

    /// Starts what is ready and not in flight. Returns whether there may be more.
    async fn start_ready(
        &self,
        now: Timestamp,
        flights: &mut JoinSet<Done>,
        in_flight: &mut BTreeSet<Box<[u8]>>,
        after: &mut Vec<u8>,
    ) -> Result<bool, EngineError> {
        let context = &self.delivering.context;
        let room = WINDOW.saturating_sub(in_flight.len());
        if room == 0 {
            return Ok(true);
        }
        // From where the last look ended, and from the start again when that is the end.
        let ready = context
            .journal
            .ready(now, after.clone(), READY.min(room))
            .await?;
        *after = match ready.last() {
            Some(last) if ready.len() == READY.min(room) => {
                last.path.order_key(last.kind).into_owned()
            }
            _ => Vec::new(),
        };
        let gone = ready.iter().any(|dirty| dirty.observed.is_none());
        let deletions = if gone {
            self.deletions().await?
        } else {
            Deletions::Allowed
        };
        for dirty in ready {
            if !may_start(&dirty, in_flight) {
                continue;
            }
            in_flight.insert(dirty.path.as_bytes().into());
            if let Some(from) = &dirty.renamed_from {
                // The old name's own mark, that it is gone, waits until the rename has used it.
                in_flight.insert(from.as_bytes().into());
            }
            let delivering = Arc::clone(&self.delivering);
            flights.spawn(async move {
                let outcome = delivering.deliver(&dirty, deletions).await;
                Done { dirty, outcome }
            });
        }
        Ok(!after.is_empty())
    }

    /// Whether the brake lets deletions through.
    async fn deletions(&self) -> Result<Deletions, EngineError> {
        let (job, journal) = (&self.delivering.job, &self.delivering.context.journal);
        if job.deletes == Deletes::Keep {
            return Ok(Deletions::Allowed);
        }
        let (gone, known) = journal.gone_and_known().await?;
        if job
            .brake
            .holds(gone, known, known.saturating_sub(gone).max(1))
            .is_none()
        {
            return Ok(Deletions::Allowed);
        }
        if journal.hold_deletions(gone, known).await? {
            Ok(Deletions::Held)
        } else {
            Ok(Deletions::Allowed)
        }
    }

    async fn ended(
        &self,
        ended: Result<Done, tokio::task::JoinError>,
        in_flight: &mut BTreeSet<Box<[u8]>>,
    ) -> Result<(), EngineError> {
        let Done { dirty, outcome } =
            ended.map_err(|_panic| EngineError::Internal("a delivery ended in a panic"))?;
        in_flight.remove(dirty.path.as_bytes());
        self.progress.ended(&dirty.path);
        if let Some(from) = &dirty.renamed_from {
            in_flight.remove(from.as_bytes());
        }
        let context = &self.delivering.context;
        let journal = &context.journal;
        let now = context.clock.now();
        match outcome? {
            Outcome::Settled => Ok(()),
            Outcome::Rescan(below) => {
                journal.settle(&dirty).await?;
                // A full queue of scans already looks at more than this.
                drop(self.scans.try_send(ScanRequest { below: Some(below) }));
                Ok(())
            }
            Outcome::Unsettled => {
                let at = now.after(self.delivering.job.settle.max(Duration::from_secs(1)));
                journal.postpone(&dirty, at).await
            }
            Outcome::Braked => journal.postpone(&dirty, now.after(IDLE)).await,
            Outcome::Park(reason) => {
                self.delivering
                    .record_failure(&dirty, Action::Parked, &reason)
                    .await?;
                journal
                    .fail(&dirty, &reason, Next::Park(reason.clone()))
                    .await
            }
            Outcome::Failed(error) => self.failed(&dirty, &error, now).await,
        }
    }

    async fn failed(
        &self,
        dirty: &Dirty,
        error: &PutError,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        let journal = &self.delivering.context.journal;
        if error.is_cancelled() {
            return Ok(());
        }
        let message = crate::error::chain(error);
        if error.retry() == Retry::EndpointDown {
            // The endpoint's fault, not the file's: it does not count as an attempt.
            if let Some(remote) = error.remote() {
                journal.postpone(dirty, now).await?;
                let circuit = self.circuit.clone();
                let cause = remote.summary();
                self.delivering.context.tasks.spawn(async move {
                    if let Err(error) = circuit.opened(&cause).await {
                        tracing::error!(%error, "cannot record the state of an endpoint");
                    }
                });
                // Let the circuit open before anything else is started.
                tokio::task::yield_now().await;
                return Ok(());
            }
        }
        if error.is_changed() {
            // Still being written: the close, or the next look, says when it is at rest.
            let settle = self.delivering.job.settle.max(Duration::from_millis(100));
            return journal.postpone(dirty, now.after(settle)).await;
        }
        let failures = dirty.attempts + 1;
        let chance = f64::from(failures % 7) / 7.0;
        match (
            error.retry(),
            self.delivering.job.retry.pause(failures, chance),
        ) {
            (Retry::Never, _) | (_, None) => {
                self.delivering
                    .record_failure(dirty, Action::Parked, &message)
                    .await?;
                journal
                    .fail(dirty, &message, Next::Park(message.clone()))
                    .await
            }
            (_, Some(pause)) => {
                self.delivering
                    .record_failure(dirty, Action::Failed, &message)
                    .await?;
                journal
                    .fail(dirty, &message, Next::Retry(now.after(pause)))
                    .await
            }
        }
    }
}

/// Operations on one path, and on a directory and what lies below it, are ordered: a path has to wait
/// while itself, or anything above or below it, is in flight.
fn may_start(dirty: &Dirty, in_flight: &BTreeSet<Box<[u8]>>) -> bool {
    let blocked = |path: &RelPath| {
        let mut above = Some(path.clone());
        while let Some(ancestor) = above {
            if in_flight.contains(ancestor.as_bytes()) {
                return true;
            }
            above = ancestor.parent();
        }
        let below = [path.as_bytes(), b"/"].concat();
        let first = in_flight.range::<[u8], _>((
            std::ops::Bound::Included(below.as_slice()),
            std::ops::Bound::Unbounded,
        ));
        first.take(1).any(|other| other.starts_with(&below))
    };
    if blocked(&dirty.path) {
        return false;
    }
    // A rename also concerns the old name.
    dirty
        .renamed_from
        .as_ref()
        .is_none_or(|from| !blocked(from))
}
