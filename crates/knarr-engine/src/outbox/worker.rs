//! Delivers what is in the outbox.
//!
//! One task a target, so that no target waits for another. The task looks for lanes that are due, gives
//! each to a task of its own, at most so many at once, and otherwise sleeps until something is due, a lane
//! ends, or it is woken. Nothing is in memory that is not in the database, but for whether a target is
//! down: after a crash it is simply asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use knarr_core::{Clock, Timestamp};
use knarr_store::{Store, StoreError};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::outbox::lane::{Lane, LaneEnd};
use crate::outbox::{LONGEST_PAUSE, Target, TargetOptions};

/// How many messages of a lane are read at a time.
pub const PAGE: usize = 64;
/// How long it sleeps at most: another process may have written, and clocks are set.
const NAP: Duration = Duration::from_secs(5);
/// What waits longer than this for another attempt waits because the clock was set back.
const HORIZON: Duration = LONGEST_PAUSE.saturating_mul(2);

/// Says that something was written into the outbox. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Waker(Arc<Wakers>);

#[derive(Debug, Default)]
struct Wakers(Mutex<Vec<(Arc<Notify>, Arc<Circuit>)>>);

impl Waker {
    /// Has every target look. Called after the transaction was committed.
    pub fn wake(&self) {
        let wakers = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (notify, _) in wakers.iter() {
            notify.notify_one();
        }
    }

    /// Has every target look, those that are down, too: a person says that they are up again.
    pub fn ask_again(&self) {
        let wakers = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (notify, circuit) in wakers.iter() {
            circuit.close();
            notify.notify_one();
        }
    }

    fn subscribe(&self) -> (Arc<Notify>, Arc<Circuit>) {
        let subscribed = (Arc::new(Notify::new()), Arc::new(Circuit::default()));
        let mut wakers = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.retain(|(known, _)| Arc::strong_count(known) > 1);
        wakers.push(subscribed.clone());
        subscribed
    }
}

/// Delivers what is in the outbox until it is cancelled.
pub struct Worker {
    store: Store,
    clock: Arc<dyn Clock>,
    node: Arc<str>,
    targets: BTreeMap<String, (Arc<dyn Target>, TargetOptions)>,
    waker: Waker,
    cancel: CancellationToken,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker without targets. `node` is the name under which it writes to them.
    #[must_use]
    pub fn new(store: Store, clock: Arc<dyn Clock>, node: &str, cancel: CancellationToken) -> Self {
        Self {
            store,
            clock,
            node: node.into(),
            targets: BTreeMap::new(),
            waker: Waker::default(),
            cancel,
        }
    }

    /// The same, woken by `waker`: one for all workers that follow each other.
    #[must_use]
    pub fn woken_by(self, waker: Waker) -> Self {
        Self { waker, ..self }
    }

    /// Adds a target. What is in the outbox for one that is never added stays there.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        target: Arc<dyn Target>,
        options: TargetOptions,
    ) {
        self.targets.insert(name.into(), (target, options));
    }

    /// Wakes this worker.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Delivers until cancelled. What is under way then is given up, and repeated at the next start.
    pub async fn run(self) {
        self.warn_of_unknown().await;
        let mut tasks = JoinSet::new();
        for (name, (target, options)) in self.targets {
            let (notify, circuit) = self.waker.subscribe();
            let served = Served {
                name: name.into(),
                target,
                options,
                store: self.store.clone(),
                clock: Arc::clone(&self.clock),
                node: Arc::clone(&self.node),
                notify,
                cancel: self.cancel.clone(),
                circuit,
            };
            tasks.spawn(serve(served));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!("the delivery to a target stopped with a bug: {error}");
            }
        }
    }

    async fn warn_of_unknown(&self) {
        let counts = self.store.read_async(|reader| reader.outbox_counts()).await;
        for count in counts.unwrap_or_default() {
            if !self.targets.contains_key(&count.target) {
                let (target, waiting) = (&count.target, count.waiting + count.parked);
                tracing::warn!(
                    "{waiting} messages wait for the target `{target}`, which is not configured"
                );
            }
        }
    }
}

/// One target, and all that its task needs.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) name: Arc<str>,
    pub(super) target: Arc<dyn Target>,
    pub(super) options: TargetOptions,
    pub(super) store: Store,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) node: Arc<str>,
    notify: Arc<Notify>,
    pub(super) cancel: CancellationToken,
    pub(super) circuit: Arc<Circuit>,
}

/// Whether the target takes anything.
#[derive(Debug, Default)]
pub(super) struct Circuit(Mutex<Outage>);

#[derive(Debug, Clone, Copy, Default)]
struct Outage {
    /// How often in a row it could not be reached.
    failures: u32,
    /// Nothing is sent before.
    until: Option<Timestamp>,
}

impl Circuit {
    fn get(&self) -> Outage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It took something. Says whether it was down before.
    pub(super) fn close(&self) -> bool {
        let mut outage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *outage).failures > 0
    }

    /// It could not be reached: nothing is sent before the time that this returns.
    pub(super) fn open(
        &self,
        now: Timestamp,
        options: &TargetOptions,
        asked: Option<Duration>,
    ) -> Timestamp {
        let mut outage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Others that were under way say the same; only the first counts.
        if let Some(until) = outage.until.filter(|until| *until > now) {
            return until;
        }
        outage.failures = outage.failures.saturating_add(1);
        let pause = options.retry.backoff(outage.failures, chance());
        let pause = pause.max(asked.unwrap_or_default()).min(LONGEST_PAUSE);
        let until = now.after(pause);
        outage.until = Some(until);
        until
    }

    /// Whether nothing may be sent at this time.
    pub(super) fn is_down(&self, now: Timestamp) -> bool {
        self.get().until.is_some_and(|until| until > now)
    }
}

impl Served {
    /// Has the task of this target look again.
    pub(super) fn look_again(&self) {
        self.notify.notify_one();
    }
}

async fn serve(served: Served) {
    let mut lanes: JoinSet<(String, LaneEnd)> = JoinSet::new();
    let mut busy: BTreeSet<String> = BTreeSet::new();
    let mut last = hasten(&served, None).await;
    while !served.cancel.is_cancelled() {
        let now = served.clock.now();
        if now < last {
            last = hasten(&served, Some(last)).await;
        } else {
            last = now;
        }
        let next = match start_lanes(&served, now, &mut lanes, &mut busy).await {
            Ok(next) => next,
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::error!("cannot read the outbox: {error}");
                None
            }
        };
        let nap = next.map_or(NAP, |due| due.since(now).min(NAP));
        tokio::select! {
            () = served.cancel.cancelled() => break,
            () = served.notify.notified() => {}
            () = tokio::time::sleep(nap.max(Duration::from_millis(1))) => {}
            Some(ended) = lanes.join_next(), if !lanes.is_empty() => match ended {
                Ok((job, end)) => {
                    busy.remove(&job);
                    if let LaneEnd::Store(error) = end {
                        let error = crate::error::chain(&error);
                        tracing::error!("cannot record what was delivered: {error}");
                        // What was delivered and not recorded is repeated; not at once, not for ever.
                        pause(&served, Duration::from_secs(1)).await;
                    }
                }
                Err(error) => {
                    tracing::error!("a delivery to `{}` stopped with a bug: {error}", served.name);
                    // Nobody knows whose it was: all that are left come to an end, then all is free.
                    while lanes.join_next().await.is_some() {}
                    busy.clear();
                    pause(&served, Duration::from_secs(1)).await;
                }
            },
        }
    }
    // Each of them sees the cancel itself, and leaves nothing running.
    while lanes.join_next().await.is_some() {}
}

async fn pause(served: &Served, pause: Duration) {
    tokio::select! {
        () = served.cancel.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
    }
}

/// Starts what is due and says when the next is, if that is known.
async fn start_lanes(
    served: &Served,
    now: Timestamp,
    lanes: &mut JoinSet<(String, LaneEnd)>,
    busy: &mut BTreeSet<String>,
) -> Result<Option<Timestamp>, StoreError> {
    let outage = served.circuit.get();
    let room = match outage.until {
        Some(until) if until > now => return Ok(Some(until)),
        // One asks whether it is back; until then no other does.
        Some(_) => usize::from(busy.is_empty()),
        None => served.options.at_once.max(1).saturating_sub(busy.len()),
    };
    if room == 0 {
        return Ok(None);
    }
    let (name, limit) = (Arc::clone(&served.name), busy.len() + room + 1);
    let heads = served
        .store
        .read_async(move |reader| reader.outbox_heads(&name, limit))
        .await?;
    let mut started = 0;
    for head in heads {
        if busy.contains(&head.job) {
            continue;
        }
        if head.due_at > now || started == room {
            return Ok((head.due_at > now).then_some(head.due_at));
        }
        busy.insert(head.job.clone());
        started += 1;
        let lane = Lane {
            served: served.clone(),
            job: head.job,
        };
        lanes.spawn(lane.run());
    }
    Ok(None)
}

/// What waits for a time that nobody meant, because the clock was set back, is due now.
async fn hasten(served: &Served, was: Option<Timestamp>) -> Timestamp {
    let now = served.clock.now();
    let horizon = now.after(HORIZON);
    let hastened = served
        .store
        .transact(move |tx| tx.outbox_hasten_beyond(horizon))
        .await;
    match hastened {
        Ok(0) => {}
        Ok(count) => tracing::warn!("{count} messages waited for a time far ahead: due now"),
        Err(error) => tracing::error!("cannot write the outbox: {}", crate::error::chain(&error)),
    }
    if was.is_some_and(|was| was.since(now) > Duration::from_secs(1)) {
        served.circuit.close();
    }
    now
}

/// A number in 0..1, by which pauses differ.
pub(super) fn chance() -> f64 {
    let mut byte = [0_u8; 1];
    // Without randomness all pauses are the longest: no harm.
    if aws_lc_rs::rand::fill(&mut byte).is_err() {
        return 1.0;
    }
    f64::from(byte[0]) / 255.0
}
