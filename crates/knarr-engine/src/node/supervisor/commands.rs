//! What a node is asked for while it runs.

use tokio::sync::oneshot;

use crate::error::EngineError;
use crate::node::NodeJob;
use crate::node::control::{Asked, Command, ControlError, JobNow, Reply, RunEnd, Waiters};
use crate::node::supervisor::{Leaving, Since, Slot, Supervisor, Work};
use crate::pickup::Cause;

use knarr_core::schedule::Overlap;

impl Supervisor {
    pub(super) async fn obey(&mut self, command: Command) -> Result<(), EngineError> {
        match command {
            Command::Start { job, cause, reply } => {
                let asked = self.asked(&job, cause);
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

    fn asked(&mut self, name: &str, cause: Cause) -> Result<Asked, ControlError> {
        let job = name.to_owned();
        if !self.slots.contains_key(name) {
            return Err(ControlError::Unknown { job });
        }
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
        let (begun, begun_receiver) = oneshot::channel();
        let (ended, ended_receiver) = oneshot::channel::<RunEnd>();
        let waiters = Waiters {
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
        let fired_until = match before.as_ref().map(|slot| &slot.work) {
            Some(Work::Runs(runs)) => runs.fired_until,
            Some(Work::Watches(_)) | None => {
                let now = self.environment.clock.now();
                if matches!(job, NodeJob::Runs(_)) {
                    self.store_fired(vec![(name.clone(), now)]).await?;
                }
                now
            }
        };
        let mut slot = Slot::new(job, fired_until, Since::Later);
        slot.paused = match before {
            Some(before) => before.paused,
            None => self.is_paused(&name).await?,
        };
        self.slots.insert(name.clone(), slot);
        self.watch(&name);
        Ok(())
    }

    async fn is_paused(&self, name: &str) -> Result<bool, EngineError> {
        let name = name.to_owned();
        let read = self
            .environment
            .store
            .read_async(move |reader| reader.job_state(&name));
        let state = read.await.map_err(EngineError::Store)?;
        Ok(state.is_some_and(|state| state.paused.is_some()))
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
            runs.queued = None;
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
        };
        self.slots.iter().map(now).collect()
    }
}

fn answer<T>(reply: Reply<T>, with: Result<T, ControlError>) {
    // Whoever asked has gone; what was asked for is done all the same.
    let _gone: Result<(), Result<T, ControlError>> = reply.send(with);
}
