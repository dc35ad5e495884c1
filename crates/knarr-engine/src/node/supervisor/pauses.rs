//! Pauses of jobs and of endpoints: what they hold back, and what follows them.
//!
//! A time of a schedule that comes while a job is paused is left out; what was uploaded waits for the end of
//! the pause. While an endpoint of a job is paused everything waits: what is under way ends in good order,
//! and one run follows when the endpoint is resumed, for all that would have run.

use knarr_store::jobs::JobState;
use knarr_store::pauses::PausedEndpoint;
use tokio::time::Instant;

use crate::error::EngineError;
use crate::node::control::Waiters;
use crate::node::supervisor::{LOOK, Slot, Supervisor, Work};
use crate::pickup::Cause;

/// For which of its endpoints a job waits, in words.
pub(super) fn waits(endpoints: &[String], paused: &[PausedEndpoint]) -> Option<String> {
    let of_job = |paused: &&PausedEndpoint| endpoints.contains(&paused.name);
    paused.iter().find(of_job).map(ToString::to_string)
}

impl Supervisor {
    pub(super) async fn states(&self) -> Result<(Vec<JobState>, Vec<PausedEndpoint>), EngineError> {
        let store = &self.environment.store;
        let read =
            store.read_async(|reader| Ok((reader.job_states()?, reader.paused_endpoints()?)));
        read.await.map_err(EngineError::Store)
    }

    /// Whether a job is paused, and for which endpoint it waits.
    pub(super) async fn pauses_of(
        &self,
        name: &str,
        endpoints: &[String],
    ) -> Result<(bool, Option<String>), EngineError> {
        let name = name.to_owned();
        let store = &self.environment.store;
        let read = store
            .read_async(move |reader| Ok((reader.job_state(&name)?, reader.paused_endpoints()?)));
        let (state, paused) = read.await.map_err(EngineError::Store)?;
        let is_paused = state.is_some_and(|state| state.paused.is_some());
        Ok((is_paused, waits(endpoints, &paused)))
    }

    /// Reads the pauses, unless that was done just now. A watch that is paused ends; a resumed one begins.
    pub(super) async fn note_pauses(&mut self) -> Result<(), EngineError> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return Ok(());
        }
        let (states, endpoints) = self.states().await?;
        self.looked = Some(Instant::now());
        let mut resumed = Vec::new();
        for (name, slot) in &mut self.slots {
            let state = states.binary_search_by(|state| state.name.as_str().cmp(name));
            let state = state.ok().and_then(|index| states.get(index));
            slot.paused = state.is_some_and(|state| state.paused.is_some());
            let waited = slot.waits.is_some();
            slot.waits = waits(slot.endpoints(), &endpoints);
            let (paused, waits) = (slot.paused, slot.waits.is_some());
            match &mut slot.work {
                Work::Watches(watches) if paused || waits => watches.cancel(),
                Work::Watches(watches) if watches.left == 0 => resumed.push(name.clone()),
                Work::Runs(runs) if waits && !waited => {
                    // What is under way is taken up again afterwards.
                    if let Some(running) = &runs.running {
                        running.cancel.cancel();
                        let asked = running.asked.unwrap_or(Cause::Schedule);
                        let again = Waiters {
                            given: running.given.clone(),
                            ..Waiters::default()
                        };
                        runs.queue(asked, again);
                    }
                }
                Work::Runs(runs) if runs.queued.is_some() => resumed.push(name.clone()),
                Work::Watches(_) | Work::Runs(_) => {}
            }
        }
        for name in resumed {
            self.watch(&name);
            self.go_on(&name);
        }
        Ok(())
    }

    /// Begins what is queued, unless something is under way or holds it back.
    pub(super) fn go_on(&mut self, name: &str) {
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        if let Some((cause, waiters)) = next_of(slot) {
            self.start(name, cause, waiters);
        }
    }
}

fn next_of(slot: &mut Slot) -> Option<(Cause, Waiters)> {
    let Work::Runs(runs) = &slot.work else {
        return None;
    };
    let (cause, _) = runs.queued.as_ref()?;
    let cause = *cause;
    if slot.leaving.is_some() || runs.running.is_some() || slot.holds(cause) {
        return None;
    }
    let paused = slot.paused;
    let Work::Runs(runs) = &mut slot.work else {
        return None;
    };
    let next = runs.queued.take();
    if !paused || !matches!(cause, Cause::Schedule | Cause::AfterJob) {
        return next;
    }
    // That time is left out; what was uploaded beside it waits.
    if runs.uploaded {
        runs.queue(Cause::Upload, Waiters::default());
    }
    None
}
