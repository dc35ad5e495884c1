//! What a node is asked for while it runs.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use crate::error::EngineError;
use crate::node::NodeJob;
use crate::node::control::{Asked, Command, ControlError, JobNow, Reply, RunEnd, Waiters};
use crate::node::supervisor::{Leaving, Since, Slot, Supervisor, Work};
use crate::pickup::Cause;

use knarr_core::Timestamp;
use knarr_core::schedule::Overlap;

impl Supervisor {
    pub(super) async fn obey(&mut self, command: Command) -> Result<(), EngineError> {
        match command {
            Command::Start {
                job,
                cause,
                given,
                reply,
            } => {
                let asked = self.asked(&job, cause, given);
                answer(reply, asked);
            }
            Command::CancelJob { job, reply } => {
                let cancelled = self.cancel_job(&job);
                answer(reply, cancelled);
            }
            Command::CancelRun { run, reply } => {
                let cancelled = self.cancel_run(run);
                answer(reply, cancelled);
            }
            Command::Add { job, reply } => self.add(*job, reply).await?,
            Command::Replace { job, reply } => {
                let name = job.name().to_owned();
                self.part(&name, Some(*job), reply).await?;
            }
            Command::Remove { job, reply } => self.part(&job, None, reply).await?,
            Command::Pauses { reply } => {
                self.looked = None;
                self.note_pauses().await?;
                answer(reply, Ok(()));
            }
            Command::List { reply } => answer(reply, Ok(self.list())),
        }
        Ok(())
    }

    fn asked(
        &mut self,
        name: &str,
        cause: Cause,
        given: BTreeMap<String, String>,
    ) -> Result<Asked, ControlError> {
        let job = name.to_owned();
        let Some(slot) = self.slots.get(name) else {
            return Err(ControlError::Unknown { job });
        };
        let waits = slot.waits.clone();
        let Some((runs, leaving)) = self.runs(name) else {
            return Err(ControlError::Watches { job });
        };
        if leaving {
            return Err(ControlError::Leaving { job });
        }
        if let (Some(running), Cause::Manual) = (&runs.running, cause) {
            let run = running.told.run();
            return Err(ControlError::UnderWay { job, run });
        }
        if let (Some(reason), Cause::Manual) = (waits, cause) {
            return Err(ControlError::Waits { job, reason });
        }
        if let Err(reason) = runs.job.pickup.job.parameters.resolve(&given) {
            return Err(ControlError::Parameters { job, reason });
        }
        let (begun, begun_receiver) = oneshot::channel();
        let (ended, ended_receiver) = oneshot::channel::<RunEnd>();
        let waiters = Waiters {
            given,
            begun: vec![begun],
            ended: vec![ended],
        };
        self.ask(name, cause, Overlap::Queue, waiters);
        Ok(Asked {
            begun: begun_receiver,
            ended: ended_receiver,
        })
    }

    fn cancel_job(&mut self, name: &str) -> Result<bool, ControlError> {
        let job = name.to_owned();
        let slot = self
            .slots
            .get_mut(name)
            .ok_or_else(|| ControlError::Unknown { job: job.clone() })?;
        let Work::Runs(runs) = &mut slot.work else {
            return Err(ControlError::Watches { job });
        };
        runs.queued = None;
        let running = runs.running.as_ref();
        if let Some(running) = running {
            running.cancel.cancel();
        }
        Ok(running.is_some())
    }

    fn cancel_run(&mut self, run: u64) -> Result<bool, ControlError> {
        for (name, slot) in &self.slots {
            let mut under_way = slot.under_way().into_iter();
            if let Some(running) = under_way.find(|running| running.told.run() == run) {
                if matches!(slot.work, Work::Watches(_)) {
                    return Err(ControlError::Watches { job: name.clone() });
                }
                running.cancel.cancel();
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn add(&mut self, job: NodeJob, reply: Reply<()>) -> Result<(), EngineError> {
        let name = job.name().to_owned();
        if self.slots.contains_key(&name) {
            answer(reply, Err(ControlError::Known { job: name }));
            return Ok(());
        }
        self.put(name, job, None).await?;
        answer(reply, Ok(()));
        Ok(())
    }

    /// Puts a job into its slot. What is new has missed nothing; what replaces another goes on from there.
    async fn put(
        &mut self,
        name: String,
        job: NodeJob,
        before: Option<Slot>,
    ) -> Result<(), EngineError> {
        let (fired_until, queued) = match before.map(|slot| slot.work) {
            Some(Work::Runs(runs)) => (runs.fired_until, runs.queued),
            Some(Work::Watches(_)) | None => (self.fired(&name, &job).await?, None),
        };
        let (paused, waits) = self.pauses_of(&name, job.endpoints()).await?;
        let mut slot = Slot::new(job, fired_until, Since::Later);
        (slot.paused, slot.waits) = (paused, waits);
        if let Work::Runs(runs) = &mut slot.work {
            runs.uploaded = queued
                .as_ref()
                .is_some_and(|(cause, _)| *cause == Cause::Upload);
            runs.queued = queued;
        }
        self.slots.insert(name.clone(), slot);
        self.watch(&name);
        self.go_on(&name);
        self.finish_publications_of(Some(&name)).await
    }

    /// Until when the times of a job were dealt with. One that is seen for the first time has missed nothing.
    async fn fired(&self, name: &str, job: &NodeJob) -> Result<Timestamp, EngineError> {
        let now = self.environment.clock.now();
        if !matches!(job, NodeJob::Runs(_)) {
            return Ok(now);
        }
        let of = name.to_owned();
        let store = &self.environment.store;
        let state = store.read_async(move |reader| reader.job_state(&of)).await;
        let state = state.map_err(EngineError::Store)?;
        if let Some(until) = state.and_then(|state| state.fired_until) {
            return Ok(until);
        }
        self.store_fired(vec![(name.to_owned(), now)]).await?;
        Ok(now)
    }

    /// Has what is running of a job end; then `next` takes its place, or nothing does.
    async fn part(
        &mut self,
        name: &str,
        next: Option<NodeJob>,
        reply: Reply<()>,
    ) -> Result<(), EngineError> {
        let Some(slot) = self.slots.get_mut(name) else {
            let job = name.to_owned();
            answer(reply, Err(ControlError::Unknown { job }));
            return Ok(());
        };
        for running in slot.under_way() {
            running.cancel.cancel();
        }
        if let Work::Runs(runs) = &mut slot.work {
            // What was uploaded, or is half visible, waits for the next version of the job, too.
            let owed = runs.owed();
            runs.queued = None;
            if let Some(cause) = owed {
                runs.queue(cause, Waiters::default());
            }
        }
        let leaving = slot.leaving.get_or_insert_with(|| Leaving {
            next: None,
            replies: Vec::new(),
        });
        // The last one counts.
        leaving.next = next;
        leaving.replies.push(reply);
        self.leave(name).await
    }

    /// Lets go what is leaving, if nothing of it is running any more.
    pub(super) async fn leave(&mut self, name: &str) -> Result<(), EngineError> {
        let leaves = |slot: &Slot| slot.leaving.is_some() && slot.is_still();
        if !self.slots.get(name).is_some_and(leaves) {
            return Ok(());
        }
        let Some(mut slot) = self.slots.remove(name) else {
            return Ok(());
        };
        let Some(Leaving { next, replies }) = slot.leaving.take() else {
            return Ok(());
        };
        if let Some(next) = next {
            self.put(name.to_owned(), next, Some(slot)).await?;
        }
        for reply in replies {
            answer(reply, Ok(()));
        }
        Ok(())
    }

    fn list(&self) -> Vec<JobNow> {
        let now = |(name, slot): (&String, &Slot)| JobNow {
            name: name.clone(),
            running: slot.under_way().into_iter().map(|run| run.now()).collect(),
            problem: slot.problem.clone(),
            waits: slot.waits.clone(),
        };
        self.slots.iter().map(now).collect()
    }
}

fn answer<T>(reply: Reply<T>, with: Result<T, ControlError>) {
    // Whoever asked has gone; what was asked for is done all the same.
    let _gone: Result<(), Result<T, ControlError>> = reply.send(with);
}
