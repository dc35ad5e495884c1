//! Begins the runs of jobs that look at their source in runs: when it is time, and after other jobs.
//!
//! That a time was dealt with is on record before its run begins: a process that dies in between leaves
//! that run out, and never begins it twice. (The next one takes what it would have taken: the ledger says
//! what was delivered, not the schedule.)

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::Timestamp;
use knarr_core::run::RunState;
use knarr_core::schedule::{Missed, Overlap, Schedule};
use knarr_store::jobs::JobState;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;
use crate::observer::{Event, Trouble};
use crate::oneshot::Environment;
use crate::pickup::{Cause, Ended, PickupJob};

/// How often it is looked whether a job was paused, or the clock was set, at the latest.
const LOOK: Duration = Duration::from_secs(5);
/// How many runs are under way at once; the others wait for their turn.
const RUNS: usize = 32;

/// A job, and when it runs.
#[derive(Debug, Clone)]
pub struct ScheduledJob {
    /// What it does.
    pub pickup: PickupJob,
    /// When it runs by itself; none: only when it is asked to.
    pub schedules: Vec<Schedule>,
    /// After which job it runs, too, if that went well.
    pub after_job: Option<String>,
}

/// Begins runs.
pub(crate) struct Scheduler {
    jobs: BTreeMap<String, Slot>,
    environment: Environment,
    turns: Arc<Semaphore>,
}

struct Slot {
    job: Arc<ScheduledJob>,
    fired_until: Timestamp,
    wakes: Option<Timestamp>,
    paused: bool,
    running: Option<CancellationToken>,
    /// What is to follow when the present run has ended.
    queued: Option<Cause>,
}

struct Done {
    name: String,
    ended: Result<Ended, EngineError>,
}

impl Scheduler {
    pub(crate) fn new(jobs: Vec<ScheduledJob>, environment: &Environment) -> Self {
        let now = environment.clock.now();
        let slot = |job: ScheduledJob| {
            let name = job.pickup.name().to_owned();
            let slot = Slot {
                job: Arc::new(job),
                fired_until: now,
                wakes: None,
                paused: false,
                running: None,
                queued: None,
            };
            (name, slot)
        };
        Self {
            jobs: jobs.into_iter().map(slot).collect(),
            environment: environment.clone(),
            turns: Arc::new(Semaphore::new(RUNS)),
        }
    }

    /// Begins runs until asked to stop, and waits for those that are under way.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub(crate) async fn run(mut self) -> Result<(), EngineError> {
        if self.jobs.is_empty() {
            self.environment.cancel.cancelled().await;
            return Ok(());
        }
        let cancel = self.environment.cancel.clone();
        let mut runs: JoinSet<Done> = JoinSet::new();
        let mut result = self.turns(&mut runs).await;
        // Those that are under way end in good order, whatever happened.
        cancel.cancel();
        while let Some(done) = runs.join_next().await {
            let ended = match done {
                Ok(Done { ended, .. }) => ended,
                Err(_panic) => Err(EngineError::Internal("a run ended in a panic")),
            };
            match ended {
                Ok(_) | Err(EngineError::Busy { .. } | EngineError::Look { .. }) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    async fn turns(&mut self, runs: &mut JoinSet<Done>) -> Result<(), EngineError> {
        let cancel = self.environment.cancel.clone();
        self.begin().await?;
        while !cancel.is_cancelled() {
            self.note_pauses().await?;
            let now = self.environment.clock.now();
            for name in self.due(now) {
                self.fire(&name, now, runs).await?;
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(self.pause(now)) => {}
                Some(done) = runs.join_next() => self.ended(done, runs)?,
            }
        }
        Ok(())
    }

    /// Takes up where the last process was. A job that is seen for the first time has missed nothing.
    async fn begin(&mut self) -> Result<(), EngineError> {
        let states = self.states().await?;
        let now = self.environment.clock.now();
        let mut new = Vec::new();
        for (name, slot) in &mut self.jobs {
            let known = states.iter().find(|state| state.name == *name);
            match known.and_then(|state| state.fired_until) {
                Some(until) => slot.fired_until = until,
                None => new.push(name.clone()),
            }
        }
        self.store_fired(new, now).await
    }

    async fn states(&self) -> Result<Vec<JobState>, EngineError> {
        let read = self
            .environment
            .store
            .read_async(|reader| reader.job_states());
        read.await.map_err(EngineError::Store)
    }

    async fn store_fired(&self, names: Vec<String>, until: Timestamp) -> Result<(), EngineError> {
        if names.is_empty() {
            return Ok(());
        }
        let stored = self.environment.store.transact(move |tx| {
            names
                .iter()
                .try_for_each(|name| tx.set_fired_until(name, until))
        });
        stored.await.map_err(EngineError::Store)
    }

    async fn note_pauses(&mut self) -> Result<(), EngineError> {
        let states = self.states().await?;
        for (name, slot) in &mut self.jobs {
            let state = states.iter().find(|state| state.name == *name);
            slot.paused = state.is_some_and(|state| state.paused.is_some());
        }
        Ok(())
    }

    /// The jobs for which it is time.
    fn due(&mut self, now: Timestamp) -> Vec<String> {
        let mut due = Vec::new();
        for (name, slot) in &mut self.jobs {
            let set_back = slot.fired_until > now;
            let wakes = *slot
                .wakes
                .get_or_insert_with(|| wakes(name, slot.job.as_ref(), slot.fired_until, now));
            if set_back || wakes <= now {
                due.push(name.clone());
            }
        }
        due
    }

    /// Deals with the times of a job up to now.
    async fn fire(
        &mut self,
        name: &str,
        now: Timestamp,
        runs: &mut JoinSet<Done>,
    ) -> Result<(), EngineError> {
        let Some(slot) = self.jobs.get_mut(name) else {
            return Ok(());
        };
        let schedules = &slot.job.schedules;
        let each = schedules
            .iter()
            .any(|schedule| schedule.missed() == Missed::All);
        slot.wakes = None;
        if each && slot.running.is_some() {
            // One run for each time, one after the other.
            return Ok(());
        }
        let dues: Vec<_> = schedules
            .iter()
            .filter_map(|schedule| schedule.due(name, slot.fired_until, now))
            .collect();
        let Some(until) = dues.iter().map(|due| due.fired_until).max() else {
            return Ok(());
        };
        let begins = dues.iter().any(|due| due.run_for.is_some()) && !slot.paused;
        let overlap = schedules.first().map_or(Overlap::Forbid, Schedule::overlap);
        slot.fired_until = until;
        slot.wakes = Some(wakes(name, &slot.job, until, now));
        self.store_fired(vec![name.to_owned()], until).await?;
        if begins {
            self.ask(name, Cause::Schedule, overlap, runs);
        }
        Ok(())
    }

    /// Begins a run, or does what `overlap` says if one is under way.
    fn ask(&mut self, name: &str, cause: Cause, overlap: Overlap, runs: &mut JoinSet<Done>) {
        let Some(slot) = self.jobs.get_mut(name) else {
            return;
        };
        let Some(running) = &slot.running else {
            let cancel = self.environment.cancel.child_token();
            slot.running = Some(cancel.clone());
            let environment = Environment {
                cancel,
                ..self.environment.clone()
            };
            let (job, turns) = (Arc::clone(&slot.job), Arc::clone(&self.turns));
            let name = name.to_owned();
            runs.spawn(async move {
                // The semaphore is never closed.
                let _turn = turns.acquire().await;
                let ended = job.pickup.run(&environment, cause).await;
                Done { name, ended }
            });
            return;
        };
        match overlap {
            Overlap::Forbid => {
                let message =
                    format!("job `{name}`: the last run has not ended, so this time is left out");
                self.say(&message);
            }
            Overlap::Queue => slot.queued = Some(cause),
            Overlap::Replace => {
                running.cancel();
                slot.queued = Some(cause);
            }
        }
    }

    fn ended(
        &mut self,
        done: Result<Done, tokio::task::JoinError>,
        runs: &mut JoinSet<Done>,
    ) -> Result<(), EngineError> {
        let Done { name, ended } =
            done.map_err(|_panic| EngineError::Internal("a run ended in a panic"))?;
        let queued = self.jobs.get_mut(&name).and_then(|slot| {
            slot.running = None;
            slot.queued.take()
        });
        let well = match ended {
            Ok(Ended { report, message }) => {
                if let Some(message) = message {
                    self.say(&format!(
                        "job `{name}`: run {} failed: {message}",
                        report.run
                    ));
                }
                report.state == RunState::Done
            }
            // Somebody runs it by hand, or from another node with the same state.
            Err(error @ (EngineError::Busy { .. } | EngineError::Look { .. })) => {
                self.say(&format!("job `{name}`: {}", crate::error::chain(&error)));
                false
            }
            Err(error) => return Err(error),
        };
        let paused = self.jobs.get(&name).is_some_and(|slot| slot.paused);
        if let Some(cause) = queued.filter(|_| !paused) {
            self.ask(&name, cause, Overlap::Queue, runs);
        }
        if well {
            let follows = |slot: &&Slot| slot.job.after_job.as_ref() == Some(&name) && !slot.paused;
            let followers: Vec<String> = self
                .jobs
                .values()
                .filter(follows)
                .map(|slot| slot.job.pickup.name().to_owned())
                .collect();
            for follower in followers {
                self.ask(&follower, Cause::AfterJob, Overlap::Queue, runs);
            }
        }
        Ok(())
    }

    /// How long until something may be to do.
    fn pause(&self, now: Timestamp) -> Duration {
        let next = self.jobs.values().filter_map(|slot| slot.wakes).min();
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

/// When to look at a job again. What has no schedule is looked at in a year.
fn wakes(name: &str, job: &ScheduledJob, fired_until: Timestamp, now: Timestamp) -> Timestamp {
    let next = |schedule: &Schedule| schedule.wakes(name, fired_until, now);
    let far = now.after(Duration::from_secs(365 * 86_400));
    job.schedules.iter().filter_map(next).min().unwrap_or(far)
}
