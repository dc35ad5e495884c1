//! Works off the dirty set of one lane.
//!
//! The set is the queue: what is ready is taken from the store, what is in flight is remembered here so
//! that no path is worked on twice at a time, and nothing else is held in memory. An edit that arrives
//! while its path is in flight bumps the path's generation; the path stays dirty and comes again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use knarr_core::job::Deletes;
use knarr_core::record::Action;
use knarr_core::{RelPath, Timestamp};
use knarr_remote::{ErrorKind, RemoteError, Retry};
use knarr_store::dirty::{Dirty, Next};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::batch::Batches;
use crate::error::EngineError;
use crate::holds::Verdict;
use crate::node::deliver::{CHANGED_THERE, Deletions, Delivering, Found, Outcome};
use crate::node::health::Circuit;
use crate::node::progress::Progress;
use crate::node::room::LEFT;
use crate::node::scans::Scans;
use crate::node::spec::Looks;
use crate::observer::Trouble;
use crate::put::PutError;
use crate::transfer::TransferError;

/// How many paths are in flight at most, staged ones included.
const WINDOW: usize = 1_024;
/// How many ready paths are read from the store at once.
const READY: usize = 512;
/// How long nothing is done when nothing is known to become ready.
const IDLE: Duration = Duration::from_secs(30);
/// How often it is looked whether what is held is to be held still.
const JUDGE: Duration = Duration::from_secs(5);

/// How long after something that belongs to a file was not there it is looked for again, at least.
const COMPANY: Duration = Duration::from_secs(2);

/// How long a run waits for a destination that is down.
const DOWN_LIMIT: Duration = Duration::from_secs(900);

/// How much longer than its longest wait a path may have to wait before the clock is taken to have been
/// set back.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// The worker of one lane.
#[derive(Debug)]
pub(crate) struct Working {
    pub(crate) delivering: Arc<Delivering>,
    pub(crate) circuit: Circuit,
    pub(crate) progress: Arc<Progress>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) scans: Scans,
    pub(crate) guard: Guard,
    /// Which place does not answer any more, and why, once a run cannot go on because of that.
    pub(crate) given_up: Arc<OnceLock<RemoteError>>,
}

/// How long a worker works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Until it is asked to stop.
    Asked,
    /// Until nothing is left to do but what a person has to act on, too.
    Drained,
}

/// What the worker knows of held and approved deletions.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Whether anything is held, or was approved and is not carried out yet.
    is_open: AtomicBool,
    /// When that was looked into last, in nanoseconds since 1970.
    judged_at: AtomicI64,
    /// Until when approved deletions were seen first, in nanoseconds since 1970; nothing: [`i64::MIN`].
    approved_until: AtomicI64,
    /// Approved deletions that were carried out since.
    done: AtomicU64,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            // Of an earlier process, for all that is known.
            is_open: AtomicBool::new(true),
            judged_at: AtomicI64::new(i64::MIN),
            approved_until: AtomicI64::new(i64::MIN),
            done: AtomicU64::new(0),
        }
    }
}

struct Done {
    dirty: Dirty,
    outcome: Result<Outcome, EngineError>,
}

impl Working {
    /// Works; what is in flight at the end is finished or suspended.
    ///
    /// # Errors
    /// If the state could not be read or written.
    pub(crate) async fn run(self, until: Until) -> Result<(), EngineError> {
        let cancel = self.delivering.context.cancel.clone();
        let mut flights: JoinSet<Done> = JoinSet::new();
        let mut in_flight: BTreeSet<Box<[u8]>> = BTreeSet::new();
        let mut after = Vec::new();
        let mut look = true;
        let mut looked_at = self.delivering.context.clock.now();
        while !cancel.is_cancelled() {
            if !self.circuit.is_up() {
                self.drain(&mut flights, &mut in_flight).await?;
                if until == Until::Drained {
                    self.wait_for_destination().await;
                } else {
                    self.circuit.until_up().await;
                }
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
            if until == Until::Drained && in_flight.is_empty() && self.is_drained().await? {
                break;
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

    /// Waits for a destination that is down, for as long as a run may: it keeps others from their turn.
    async fn wait_for_destination(&self) {
        let waited = tokio::time::timeout(DOWN_LIMIT, self.circuit.until_up()).await;
        if waited.is_err() {
            let message = "it is down; what is left is delivered by the next run";
            let error = RemoteError::new(ErrorKind::Unreachable, "deliver", message);
            self.given_up.get_or_init(|| error);
            self.delivering.context.cancel.cancel();
        }
    }

    /// Whether nothing is left but what is parked, and deletions that are held.
    async fn is_drained(&self) -> Result<bool, EngineError> {
        let held = self.delivering.job.deletes != Deletes::Keep
            && self.guard.is_open.load(Ordering::Relaxed);
        self.delivering.context.journal.is_drained(held).await
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
        let job = &self.delivering.job;
        let longest = job.settle.max(job.retry.to).max(IDLE) + CLOCK_SLACK;
        let next = context.journal.next_ready_after(looked_at, longest).await?;
        let now = context.clock.now();
        // Nobody tells the worker of an approval.
        let waits = self.delivering.job.deletes != Deletes::Keep
            && self.guard.is_open.load(Ordering::Relaxed);
        let idle = if waits { JUDGE } else { IDLE };
        Ok(next.map_or(idle, |next| {
            next.since(now).clamp(Duration::from_millis(1), idle)
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
            Some((last, _)) if ready.len() == READY.min(room) => {
                last.path.order_key(last.kind).into_owned()
            }
            _ => Vec::new(),
        };
        let gone = ready.iter().any(|(dirty, _)| dirty.observed.is_none());
        let verdict = self.verdict(gone, now).await?;
        let mut starting = Vec::with_capacity(ready.len());
        for (dirty, synced) in ready {
            if !may_start(&dirty, in_flight) {
                continue;
            }
            in_flight.insert(dirty.path.as_bytes().into());
            if let Some(from) = &dirty.renamed_from {
                // The old name's own mark, that it is gone, waits until the rename has used it.
                in_flight.insert(from.as_bytes().into());
            }
            starting.push((dirty, synced));
        }
        if starting.is_empty() {
            return Ok(!after.is_empty());
        }
        for found in self.delivering.look(starting).await {
            let dirty = &found.dirty;
            let deletions = match verdict.approved_until {
                Some(until) if dirty.first_seen <= until => Deletions::Allowed,
                _ => verdict.others,
            };
            let (delivering, scans) = (Arc::clone(&self.delivering), self.scans.clone());
            flights.spawn(deliver(delivering, scans, found, deletions));
        }
        Ok(!after.is_empty())
    }

    /// What the brake says of deletions.
    async fn verdict(&self, gone: bool, now: Timestamp) -> Result<Verdict, EngineError> {
        let (job, guard) = (&self.delivering.job, &self.guard);
        let judged_at = Timestamp::from_nanoseconds(guard.judged_at.load(Ordering::Relaxed));
        let is_due = guard.is_open.load(Ordering::Relaxed)
            && (now < judged_at || now.since(judged_at) >= JUDGE);
        if job.deletes == Deletes::Keep || !(gone || is_due) {
            return Ok(Verdict::ALLOWED);
        }
        let done = guard.done.swap(0, Ordering::Relaxed);
        let journal = &self.delivering.context.journal;
        let verdict = journal.judge_deletions(job.brake, done).await?;
        guard.is_open.store(verdict.is_open, Ordering::Relaxed);
        guard.judged_at.store(now.nanoseconds(), Ordering::Relaxed);
        let until = verdict
            .approved_until
            .map_or(i64::MIN, Timestamp::nanoseconds);
        let before = guard.approved_until.swap(until, Ordering::Relaxed);
        if let Some(until) = verdict.approved_until
            && until.nanoseconds() > before
        {
            journal.hasten_removals(until).await?;
            self.wake.notify_one();
        }
        Ok(verdict)
    }

    /// Counts what was carried out of an approved plan: so much of the approval is used up.
    fn note_deletion(&self, dirty: &Dirty) {
        let until = self.guard.approved_until.load(Ordering::Relaxed);
        if dirty.observed.is_none() && dirty.first_seen.nanoseconds() <= until {
            self.guard.done.fetch_add(1, Ordering::Relaxed);
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
            Outcome::Settled => {
                self.note_deletion(&dirty);
                Ok(())
            }
            // It was looked at; or we were asked to stop, and it stays in the queue.
            Outcome::Rescan(_) if context.cancel.is_cancelled() => Ok(()),
            Outcome::Rescan(_) => journal.settle(&dirty).await,
            // The next run looks again.
            Outcome::Unsettled if self.delivering.job.looks == Looks::InRuns => {
                let still = "it is still being written";
                match self.delivering.fail_batch(&dirty, still).await? {
                    Some(()) => Ok(()),
                    None => journal.settle(&dirty).await,
                }
            }
            Outcome::Unsettled => {
                let at = now.after(self.delivering.job.settle.max(Duration::from_secs(1)));
                journal.postpone(&dirty, at).await
            }
            Outcome::Braked => journal.postpone(&dirty, now.after(IDLE)).await,
            Outcome::Park(reason) => self.park(&dirty, &reason).await,
            Outcome::Failed(error) => self.failed(&dirty, &error, now).await,
        }
    }

    /// Nothing more is tried until a person acts; or, in a batch, until the next run tries all of it.
    async fn park(&self, dirty: &Dirty, reason: &str) -> Result<(), EngineError> {
        let delivering = &self.delivering;
        // What `if_exists` says to leave keeps nothing else back.
        let batches = delivering.context.batches.get();
        let may_leave = batches.is_none_or(Batches::may_leave);
        let is_left = (reason == LEFT && may_leave) || reason == CHANGED_THERE;
        if !is_left && delivering.fail_batch(dirty, reason).await?.is_some() {
            return Ok(());
        }
        let recorded = delivering.record_failure(dirty, Action::Parked, reason);
        recorded.await?;
        let journal = &delivering.context.journal;
        let parked = Next::Park(reason.to_owned());
        journal.fail(dirty, reason, parked).await
    }

    /// What belongs to a file is not there yet: a run leaves it to the next one, a watch looks again.
    async fn wait_for_company(
        &self,
        dirty: &Dirty,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        let context = &self.delivering.context;
        if self.delivering.fail_batch(dirty, reason).await?.is_some() {
            return Ok(());
        }
        if self.delivering.job.looks == Looks::InRuns {
            let message = format!("{reason}; the next run looks again");
            context.trouble(Some(&dirty.path), Trouble::Notice, &message);
            return context.journal.settle(dirty).await;
        }
        let pause = self.delivering.job.settle.max(COMPANY);
        context.journal.postpone(dirty, now.after(pause)).await
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
        if error.retry() == Retry::EndpointDown
            && error.is_at_source()
            && let Some(remote) = error.remote()
        {
            // Nothing else will go better until it is back.
            journal.postpone(dirty, now).await?;
            self.given_up.get_or_init(|| remote.summary());
            self.delivering.context.cancel.cancel();
            return Ok(());
        }
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
        if let PutError::Transfer(TransferError::Waiting(reason)) = error {
            return self.wait_for_company(dirty, reason, now).await;
        }
        if let PutError::Transfer(TransferError::Left(reason)) = error {
            return self.park(dirty, reason).await;
        }
        if error.is_changed() && self.delivering.job.looks == Looks::InRuns {
            return match self.delivering.fail_batch(dirty, &message).await? {
                Some(()) => Ok(()),
                None => journal.settle(dirty).await,
            };
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
            (Retry::Never, _) | (_, None) => self.park(dirty, &message).await,
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

/// Does what a path needs. Where that is a look at everything below it, the path is in flight until that
/// was done: as long as something may be missing, the queue is not empty.
async fn deliver(
    delivering: Arc<Delivering>,
    scans: Scans,
    found: Found,
    deletions: Deletions,
) -> Done {
    let (dirty, outcome) = delivering.deliver(found, deletions).await;
    // A run looks once, at everything.
    if let Ok(Outcome::Rescan(below)) = &outcome
        && delivering.job.looks == Looks::Always
    {
        let looked_at = scans.want_and_wait(below.clone());
        tokio::select! {
            () = delivering.context.cancel.cancelled() => {}
            // An error says that it never will be: then we are asked to stop, too.
            _done = looked_at => {}
        }
    }
    Done { dirty, outcome }
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
