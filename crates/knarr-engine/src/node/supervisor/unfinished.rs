//! Runs that finish what the last process was publishing when it ended.

use knarr_core::schedule::Overlap;

use super::Supervisor;
use crate::error::EngineError;
use crate::node::control::Waiters;
use crate::pickup::Cause;

impl Supervisor {
    /// Runs the jobs of which something is half visible: others may be waiting for the rest of it. A job that
    /// is paused begins no run by itself, this one neither.
    pub(super) async fn finish_publications(&mut self) -> Result<(), EngineError> {
        self.finish_publications_of(None).await
    }

    /// The same for one job, which is new here, or all.
    pub(super) async fn finish_publications_of(
        &mut self,
        only: Option<&str>,
    ) -> Result<(), EngineError> {
        let store = &self.environment.store;
        let unfinished = store.read_async(|reader| reader.publishing_jobs()).await;
        let mut unfinished = unfinished.map_err(EngineError::Store)?;
        unfinished.retain(|name| only.is_none_or(|only| only == name));
        for name in unfinished {
            let paused = self.slots.get(&name).is_none_or(|slot| slot.paused);
            if !paused {
                self.ask(
                    &name,
                    Cause::Unfinished,
                    Overlap::Forbid,
                    Waiters::default(),
                );
            }
        }
        Ok(())
    }
}
