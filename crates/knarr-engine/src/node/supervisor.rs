//! Holds the jobs of a node: begins their runs and watches, and does what is asked for while they run.
//!
//! That a time was dealt with is on record before its run begins: a process that dies in between leaves
//! that run out, and never begins it twice. (The next one takes what it would have taken: the ledger says
//! what was delivered, not the schedule.)
//!
//! A job that is replaced or removed is *leaving* until what was running has ended; only then the next one
//! begins. So two versions of a job are never at work at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::Timestamp;
use knarr_core::run::RunState;
use knarr_core::schedule::Overlap;
use tokio::sync::{broadcast, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;
use crate::node::control::{Command, Commands, Reply, RunEnd, Waiters};
use crate::node::lane::Lane;
use crate::node::schedule::Busy;
use crate::node::told::{JobEvent, Told, What};
use crate::node::{NodeJob, ScheduledJob, WatchJob};
use crate::observer::{Event, Trouble};
use crate::oneshot::Environment;
use crate::pickup::{Cause, Ended};
use crate::turns::Turns;

mod commands;
mod pauses;
mod slot;
mod unfinished;

/// How often it is looked whether a job was paused, or the clock was set, at the latest.
const LOOK: Duration = Duration::from_secs(5);
/// How many runs are under way at once; the others wait for their turn.
const RUNS: usize = 32;

/// How many ends of runs are dealt with before the clock and commands are looked at again.
const ENDED_AT_ONCE: usize = 16;

/// The jobs of a node.
pub(crate) struct Supervisor {
    slots: BTreeMap<String, Slot>,
    environment: Environment,
    turns: Turns,
    tasks: JoinSet<Done>,
    events: broadcast::Sender<JobEvent>,
    commands: mpsc::Receiver<Command>,
    /// When the pauses were read last.
    looked: Option<Instant>,
}

struct Slot {
    work: Work,
    paused: bool,
    /// The endpoint that is paused and for which it waits, in words.
    waits: Option<String>,
    /// Whether it came when the node was running: then what is wrong with it ends nothing else.
    since: Since,
    /// Why it is not at work although it should be.
    problem: Option<String>,
    leaving: Option<Leaving>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Beginning,
    Later,
}

enum Work {
    Runs(Box<Runs>),
    Watches(Watches),
}

struct Runs {
    job: Arc<ScheduledJob>,
    fired_until: Timestamp,
    wakes: Option<Timestamp>,
    running: Option<Running>,
    /// What is to follow when the present run has ended.
    queued: Option<(Cause, Waiters)>,
    /// Something was uploaded since the last run began.
    uploaded: bool,
}

/// A run, or a watched directory.
struct Running {
    cancel: CancellationToken,
    told: Arc<Told>,
    cause: &'static str,
    /// What set off a run; nothing for a watch.
    asked: Option<Cause>,
    /// The values of its parameters that were given.
    given: BTreeMap<String, String>,
    since: Timestamp,
    waiters: Waiters,
}

struct Watches {
    job: Arc<WatchJob>,
    lanes: Vec<Running>,
    /// How many lanes have not ended.
    left: usize,
}

/// What happens to a slot when nothing of it is running any more.
struct Leaving {
    next: Option<NodeJob>,
    replies: Vec<Reply<()>>,
}

enum Done {
    Run(String, Result<Ended, EngineError>),
    Lane(String, Result<(), EngineError>),
}

impl Supervisor {
    pub(crate) fn new(environment: &Environment, commands: Commands) -> Self {
        let Commands { commands, events } = commands;
        Self {
            slots: BTreeMap::new(),
            environment: environment.clone(),
            turns: Turns::new(RUNS),
            tasks: JoinSet::new(),
            events,
            commands,
            looked: None,
        }
    }

    /// Works until asked to stop, and waits for what is under way.
    ///
    /// # Errors
    /// If the state cannot be read or written, or a job cannot be run as it is specified.
    pub(crate) async fn run(mut self, jobs: Vec<NodeJob>) -> Result<(), EngineError> {
        let cancel = self.environment.cancel.clone();
        let mut result = self.work(jobs).await;
        // What is under way ends in good order, whatever happened.
        cancel.cancel();
        self.commands.close();
        while let Some(done) = self.tasks.join_next().await {
            let ended = match done {
                Ok(Done::Run(_, ended)) => ended.map(drop),
                Ok(Done::Lane(_, ended)) => ended,
                Err(_panic) => Err(EngineError::Internal("a job ended in a panic")),
            };
            match ended {
                Ok(()) | Err(EngineError::Busy { .. } | EngineError::Look { .. }) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    async fn work(&mut self, jobs: Vec<NodeJob>) -> Result<(), EngineError> {
        let cancel = self.environment.cancel.clone();
        self.begin(jobs).await?;
        let mut asks = true;
        while !cancel.is_cancelled() {
            self.note_pauses().await?;
            let now = self.environment.clock.now();
            self.fire(now).await?;
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(self.pause(now)) => {}
                Some(done) = self.tasks.join_next() => {
                    self.ended(done).await?;
                    // Several at once, as what comes next looks at every job; but not all: commands wait.
                    for _ in 1..ENDED_AT_ONCE {
                        let Some(done) = self.tasks.try_join_next() else {
                            break;
                        };
                        self.ended(done).await?;
                    }
                }
                command = self.commands.recv(), if asks => match command {
                    Some(command) => self.obey(command).await?,
                    None => asks = false,
                },
            }
        }
        Ok(())
    }

    /// Takes up where the last process was. A job that is seen for the first time has missed nothing.
    async fn begin(&mut self, jobs: Vec<NodeJob>) -> Result<(), EngineError> {
        let (states, endpoints) = self.states().await?;
        let now = self.environment.clock.now();
        let mut new = Vec::new();
        for job in jobs {
            let name = job.name().to_owned();
            let known = states.binary_search_by(|state| state.name.as_str().cmp(&name));
            let known = known.ok().and_then(|index| states.get(index));
            let fired_until = known.and_then(|state| state.fired_until);
            if fired_until.is_none() && matches!(job, NodeJob::Runs(_)) {
                new.push((name.clone(), now));
            }
            let fired_until = fired_until.unwrap_or(now);
            let mut slot = Slot::new(job, fired_until, Since::Beginning);
            slot.paused = known.is_some_and(|state| state.paused.is_some());
            slot.waits = pauses::waits(slot.endpoints(), &endpoints);
            self.slots.insert(name.clone(), slot);
            self.watch(&name);
        }
        self.store_fired(new).await?;
        self.finish_publications().await
    }

    async fn store_fired(&self, fired: Vec<(String, Timestamp)>) -> Result<(), EngineError> {
        if fired.is_empty() {
            return Ok(());
        }
        let stored = self.environment.store.transact(move |tx| {
            fired
                .iter()
                .try_for_each(|(name, until)| tx.set_fired_until(name, *until))
        });
        stored.await.map_err(EngineError::Store)
    }

    /// Deals with the times of all jobs up to now.
    async fn fire(&mut self, now: Timestamp) -> Result<(), EngineError> {
        let (mut fired, mut begin) = (Vec::new(), Vec::new());
        for (name, slot) in &mut self.slots {
            let Work::Runs(runs) = &mut slot.work else {
                continue;
            };
            let set_back = runs.fired_until > now;
            let wakes = *runs
                .wakes
                .get_or_insert_with(|| runs.job.wakes(runs.fired_until, now));
            if slot.leaving.is_some() || !(set_back || wakes <= now) {
                continue;
            }
            runs.wakes = None;
            let busy = match runs.running {
                Some(_) => Busy::Yes,
                None => Busy::No,
            };
            let Some(due) = runs.job.due(runs.fired_until, now, busy) else {
                // It is looked at again when the run has ended.
                runs.wakes = Some(now.after(LOOK));
                continue;
            };
            runs.fired_until = due.until;
            runs.wakes = Some(runs.job.wakes(due.until, now));
            fired.push((name.clone(), due.until));
            if due.begins && !slot.paused {
                begin.push((name.clone(), runs.job.overlap()));
            }
        }
        self.store_fired(fired).await?;
        for (name, overlap) in begin {
            self.ask(&name, Cause::Schedule, overlap, Waiters::default());
        }
        Ok(())
    }

    /// Begins a run, or does what `overlap` says if one is under way. What has to wait is queued.
    fn ask(&mut self, name: &str, cause: Cause, overlap: Overlap, waiters: Waiters) {
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        let holds = slot.holds(cause);
        let Work::Runs(runs) = &mut slot.work else {
            return;
        };
        if slot.leaving.is_some() {
            return;
        }
        let Some(running) = &runs.running else {
            if holds {
                runs.queue(cause, waiters);
            } else {
                self.start(name, cause, waiters);
            }
            return;
        };
        match overlap {
            Overlap::Forbid => {
                let message =
                    format!("job `{name}`: the last run has not ended, so this time is left out");
                self.say(&message);
            }
            Overlap::Queue => runs.queue(cause, waiters),
            Overlap::Replace => {
                running.cancel.cancel();
                runs.queue(cause, waiters);
            }
        }
    }

    /// The runs of a job, and whether it is leaving.
    fn runs(&mut self, name: &str) -> Option<(&mut Runs, bool)> {
        let slot = self.slots.get_mut(name)?;
        match &mut slot.work {
            Work::Runs(runs) => Some((runs, slot.leaving.is_some())),
            Work::Watches(_) => None,
        }
    }

    fn start(&mut self, name: &str, cause: Cause, mut waiters: Waiters) {
        let running = self.running(name, cause.name());
        let environment = Environment {
            cancel: running.cancel.clone(),
            observer: Arc::<Told>::clone(&running.told),
            ..self.environment.clone()
        };
        let (turns, told) = (self.turns.clone(), Arc::clone(&running.told));
        let Some((runs, _leaving)) = self.runs(name) else {
            return;
        };
        let (job, name) = (Arc::clone(&runs.job), name.to_owned());
        let waiting = std::mem::take(&mut waiters.begun);
        let given = std::mem::take(&mut waiters.given);
        // Whatever set it off, what was uploaded is taken by it, or by the run that takes its place.
        let uploaded = std::mem::take(&mut runs.uploaded);
        let asked = Some(if uploaded { Cause::Upload } else { cause });
        runs.running = Some(Running {
            waiters,
            asked,
            given: given.clone(),
            ..running
        });
        self.tasks.spawn(async move {
            // Who is cancelled while it waits begins, and ends at once.
            let _turn = tokio::select! {
                () = environment.cancel.cancelled() => None,
                turn = turns.take(job.pickup.job.priority) => Some(turn),
            };
            let begun = |run| {
                told.begun(run, cause.name());
                for waiter in waiting {
                    // Whoever asked has gone.
                    let _gone: Result<(), u64> = waiter.send(run);
                }
            };
            let running = job.pickup.run_telling(&environment, cause, &given, begun);
            let ended = running.await;
            Done::Run(name, ended)
        });
    }

    fn running(&self, name: &str, cause: &'static str) -> Running {
        let observer = Arc::clone(&self.environment.observer);
        Running {
            cancel: self.environment.cancel.child_token(),
            told: Arc::new(Told::new(observer, self.events.clone(), name)),
            cause,
            asked: None,
            given: BTreeMap::new(),
            since: self.environment.clock.now(),
            waiters: Waiters::default(),
        }
    }

    /// Begins to watch, unless the job is paused, leaving, or has no directories.
    fn watch(&mut self, name: &str) {
        let Some(Slot {
            work: Work::Watches(watches),
            paused: false,
            waits: None,
            problem: None,
            leaving: None,
            ..
        }) = self.slots.get(name)
        else {
            return;
        };
        if watches.left > 0 {
            return;
        }
        let job = Arc::clone(&watches.job);
        let mut lanes = Vec::new();
        for source in &job.sources {
            let running = self.running(name, "watch");
            let environment = Environment {
                cancel: running.cancel.clone(),
                ..self.environment.clone()
            };
            let told = Arc::clone(&running.told);
            let lane = Lane::new(Arc::clone(&job), source.clone(), environment, told);
            let name = name.to_owned();
            self.tasks
                .spawn(async move { Done::Lane(name, lane.run().await) });
            lanes.push(running);
        }
        if let Some(slot) = self.slots.get_mut(name)
            && let Work::Watches(watches) = &mut slot.work
        {
            watches.left = lanes.len();
            watches.lanes = lanes;
        }
    }

    async fn ended(&mut self, done: Result<Done, JoinError>) -> Result<(), EngineError> {
        let done = done.map_err(|_panic| EngineError::Internal("a job ended in a panic"))?;
        let name = match done {
            Done::Run(name, ended) => {
                self.run_ended(&name, ended)?;
                name
            }
            Done::Lane(name, ended) => {
                self.lane_ended(&name, ended)?;
                name
            }
        };
        self.leave(&name).await
    }

    fn lane_ended(
        &mut self,
        name: &str,
        ended: Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let Some(slot) = self.slots.get_mut(name) else {
            return ended;
        };
        if let Work::Watches(watches) = &mut slot.work {
            watches.left = watches.left.saturating_sub(1);
            if watches.left == 0 {
                watches.lanes.clear();
                // A pause that ended meanwhile is looked at now.
                self.looked = None;
            }
            if ended.is_err() {
                watches.cancel();
            }
        }
        match ended {
            Ok(()) => Ok(()),
            Err(error @ EngineError::Store(_)) => Err(error),
            // One lane that cannot work must not go on pretending; nor must the others.
            Err(error) if slot.since == Since::Beginning => Err(error),
            Err(error) => {
                let message = crate::error::chain(&error);
                slot.problem = Some(message.clone());
                self.say(&format!("job `{name}`: {message}"));
                Ok(())
            }
        }
    }

    fn run_ended(
        &mut self,
        name: &str,
        ended: Result<Ended, EngineError>,
    ) -> Result<(), EngineError> {
        let (well, end) = match ended {
            Ok(ended) => {
                if let Some(message) = &ended.message {
                    let run = ended.report.run;
                    self.say(&format!("job `{name}`: run {run} failed: {message}"));
                }
                (ended.report.state == RunState::Done, RunEnd::Ended(ended))
            }
            // Somebody runs it by hand, or from another node with the same state.
            Err(
                error @ (EngineError::Busy { .. }
                | EngineError::Look { .. }
                | EngineError::Parameters { .. }),
            ) => {
                let message = crate::error::chain(&error);
                self.say(&format!("job `{name}`: {message}"));
                (false, RunEnd::Failed(message))
            }
            Err(error) => return Err(error),
        };
        if let Some((runs, _leaving)) = self.runs(name) {
            runs.wakes = None;
            if let Some(running) = runs.running.take() {
                running.told.tell(What::Ended(Arc::new(end.clone())));
                for waiter in running.waiters.ended {
                    // Whoever asked has gone.
                    let _gone: Result<(), RunEnd> = waiter.send(end.clone());
                }
            }
        }
        self.go_on(name);
        if well {
            for follower in self.followers(name) {
                let waiters = Waiters::default();
                self.ask(&follower, Cause::AfterJob, Overlap::Queue, waiters);
            }
        }
        Ok(())
    }

    fn followers(&self, name: &str) -> Vec<String> {
        let follows = |(_, slot): &(&String, &Slot)| match &slot.work {
            Work::Runs(runs) => runs.job.after_job.as_deref() == Some(name) && !slot.paused,
            Work::Watches(_) => false,
        };
        let followers = self.slots.iter().filter(follows);
        followers.map(|(name, _)| name.clone()).collect()
    }

    /// How long until something may be to do.
    fn pause(&self, now: Timestamp) -> Duration {
        let wakes = |slot: &Slot| match &slot.work {
            Work::Runs(runs) => runs.wakes,
            Work::Watches(_) => None,
        };
        let next = self.slots.values().filter_map(wakes).min();
        next.map_or(LOOK, |next| {
            next.since(now).clamp(Duration::from_millis(5), LOOK)
        })
    }

    fn say(&self, message: &str) {
        let (path, kind) = (None, Trouble::Notice);
        self.environment.observer.event(&Event::Trouble {
            path,
            kind,
            message,
        });
    }
}
