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
        let store = &self.environment.store;
        let unfinished = store.read_async(|reader| reader.publishing_jobs()).await;
        for name in unfinished.map_err(EngineError::Store)? {
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
