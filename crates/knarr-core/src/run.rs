//! The life of a run, live and at recovery.

use serde::{Deserialize, Serialize};

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Looking at the trees and moving what was found.
    Running,
    /// Waiting for a person to approve a plan.
    Held,
    /// Everything was done.
    Done,
    /// Ended, but some files failed.
    Partial,
    /// Could not be carried out at all.
    Failed,
    /// The process ended before the run did; the next run goes on from there.
    Interrupted,
    /// It was not the time for it: a condition of the job did not hold. Nothing was looked at or moved.
    Skipped,
}

/// What happens to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunEvent {
    /// The brake on mass deletion held the rest of the plan.
    Held,
    /// All was tried; this many paths failed.
    Finished {
        /// Paths that failed.
        failed: u64,
    },
    /// It cannot go on at all.
    Failed,
    /// It was stopped, or its process is gone.
    Interrupted,
    /// A condition of the job does not hold.
    Skipped,
}

/// A run: its state, changed only through [`Run::apply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    state: RunState,
}

/// An event that cannot happen in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run that is {state:?} cannot be {event:?}")]
pub struct IllegalTransition {
    /// The state.
    pub state: RunState,
    /// The event.
    pub event: RunEvent,
}

impl Run {
    /// A run that has just begun.
    #[must_use]
    pub const fn begin() -> Self {
        Self {
            state: RunState::Running,
        }
    }

    /// A run as it was recorded.
    #[must_use]
    pub const fn recorded(state: RunState) -> Self {
        Self { state }
    }

    /// Where it stands.
    #[must_use]
    pub const fn state(self) -> RunState {
        self.state
    }

    /// What the run becomes by `event`.
    ///
    /// # Errors
    /// [`IllegalTransition`] if a run in this state cannot have it.
    pub const fn apply(self, event: RunEvent) -> Result<Self, IllegalTransition> {
        let state = match (self.state, event) {
            (RunState::Running, RunEvent::Held) => RunState::Held,
            (RunState::Running, RunEvent::Finished { failed: 0 }) => RunState::Done,
            (RunState::Running, RunEvent::Finished { .. }) => RunState::Partial,
            (RunState::Running, RunEvent::Failed) => RunState::Failed,
            (RunState::Running, RunEvent::Interrupted) => RunState::Interrupted,
            (RunState::Running, RunEvent::Skipped) => RunState::Skipped,
            (
                state @ (RunState::Held
                | RunState::Done
                | RunState::Partial
                | RunState::Failed
                | RunState::Interrupted
                | RunState::Skipped),
                event,
            ) => return Err(IllegalTransition { state, event }),
        };
        Ok(Self { state })
    }
}

impl RunState {
    /// The name in the database and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Held => "held",
            Self::Done => "done",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Skipped => "skipped",
        }
    }

    /// Reads [`RunState::name`] back.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Running,
            Self::Held,
            Self::Done,
            Self::Partial,
            Self::Failed,
            Self::Interrupted,
            Self::Skipped,
        ]
        .into_iter()
        .find(|state| state.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_once() {
        let run = Run::begin()
            .apply(RunEvent::Finished { failed: 2 })
            .unwrap();
        assert_eq!(run.state(), RunState::Partial);
        for event in [
            RunEvent::Held,
            RunEvent::Failed,
            RunEvent::Interrupted,
            RunEvent::Finished { failed: 0 },
        ] {
            let state = run.state();
            assert_eq!(run.apply(event), Err(IllegalTransition { state, event }));
        }
    }

    #[test]
    fn names_read_back() {
        for state in [
            RunState::Running,
            RunState::Held,
            RunState::Interrupted,
            RunState::Skipped,
        ] {
            assert_eq!(RunState::from_name(state.name()), Some(state));
        }
    }
}
