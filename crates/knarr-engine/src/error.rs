//! What ends a run, as opposed to what a single file suffers.

use std::error::Error;
use std::path::PathBuf;

use knarr_remote::RemoteError;
use knarr_store::StoreError;

/// What ends a run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The state cannot be written or read. Nothing is called done without a record, so nothing goes on.
    #[error("the state directory does not work; nothing more is moved until it does")]
    Store(#[source] StoreError),
    /// One of the places cannot be looked at.
    #[error("cannot look at {location}")]
    Look {
        /// Which.
        location: String,
        /// Why.
        #[source]
        source: RemoteError,
    },
    /// What has to succeed before a run did not.
    #[error("not begun: {0}")]
    Before(String),
    /// Another command works on the same two places.
    #[error(
        "another knarr command works on the same two locations ({holder}): wait for it, or stop it"
    )]
    Busy {
        /// What is known of it.
        holder: String,
    },
    /// The lock file cannot be used.
    #[error("cannot use the lock {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The trees are not what a plan was made for.
    #[error(
        "the plan does not fit any more: \"{path}\" {difference}; nothing was done. Make a new plan and review it"
    )]
    PlanMoved {
        /// The first path that differs.
        path: String,
        /// What differs.
        difference: String,
    },
    /// A plan file cannot be read.
    #[error("line {line} of the plan is not valid: {reason}")]
    PlanFile {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// What was given for a run's parameters is not what the job allows.
    #[error("job `{job}` cannot be run like that")]
    Parameters {
        /// The job.
        job: String,
        /// What is wrong.
        #[source]
        source: knarr_core::parameters::ParameterError,
    },
    /// A job cannot be run as it is specified.
    #[error("job `{job}`: {reason}")]
    Job {
        /// The job.
        job: String,
        /// Why.
        reason: String,
    },
    /// The steps of a job cannot be used: a key is missing, expired or locked.
    #[error("the steps of the job cannot be used")]
    Steps(#[source] knarr_steps::StepError),
    /// A defect of ours.
    #[error("internal error: {0}. Please report it; nothing was lost")]
    Internal(&'static str),
}

impl EngineError {
    /// The error of a place below, if there is one.
    #[must_use]
    pub const fn remote(&self) -> Option<&RemoteError> {
        match self {
            Self::Look { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// An error with all that caused it, on one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}
