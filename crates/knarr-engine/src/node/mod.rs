//! `knarr run`: all jobs, for ever.
//!
//! A job has a lane for each watched directory. A lane observes (a watcher thread, and scans at the
//! start, every hour with jitter and whenever events were lost), marks what it sees in the dirty set,
//! and works that off. If the directory is gone, replaced or unmounted, the lane ends and a new one
//! begins when a directory is there again; nothing is concluded from its absence.

mod compare;
mod control;
mod deliver;
mod drift;
mod finish;
mod gone;
mod health;
mod lane;
mod observe;
mod parts;
mod place;
mod progress;
mod quarantine;
mod room;
mod scan;
mod scans;
mod schedule;
mod spec;
mod streamed;
mod supervisor;
mod told;
mod unpack;
mod work;
mod write;

pub(crate) use crate::node::compare::{Comparing, Emptied, OTHER_PLACE, Scanned};
pub use crate::node::control::{
    Asked, Commands, Control, ControlError, JobNow, RunEnd, RunningNow, control,
};
pub(crate) use crate::node::deliver::{Deletions, Delivering, Outcome};
pub(crate) use crate::node::observe::Mark;
pub(crate) use crate::node::parts::Parts;
pub(crate) use crate::node::place::Decided;
pub(crate) use crate::node::progress::Progress;
pub(crate) use crate::node::room::{Landed, refused};
pub(crate) use crate::node::scans::Scans;
pub use crate::node::schedule::ScheduledJob;
pub use crate::node::spec::{Completeness, Looks, WatchJob};
pub use crate::node::told::{JobEvent, What};
pub(crate) use crate::node::work::Until;
pub(crate) use crate::node::write::Delivered;

use std::sync::Arc;

use crate::error::EngineError;
use crate::node::supervisor::Supervisor;
use crate::oneshot::Environment;

/// A job of a node.
#[derive(Debug, Clone)]
pub enum NodeJob {
    /// It watches directories all the time.
    Watch(Arc<WatchJob>),
    /// It looks at its source in runs.
    Runs(ScheduledJob),
}

impl NodeJob {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Watch(job) => &job.name,
            Self::Runs(job) => job.pickup.name(),
        }
    }

    /// The names of the endpoints that it uses, as the configuration has them.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        match self {
            Self::Watch(job) => &job.endpoints,
            Self::Runs(job) => &job.pickup.job.endpoints,
        }
    }
}

/// Runs all jobs until `environment.cancel` is cancelled; then what is in flight is finished or suspended.
///
/// # Errors
/// If a job cannot be run as it is specified, or the state cannot be written. Trouble with files,
/// directories and endpoints is shown, recorded and repeated instead.
pub async fn run(
    jobs: Vec<WatchJob>,
    scheduled: Vec<ScheduledJob>,
    environment: &Environment,
) -> Result<(), EngineError> {
    let watching = jobs.into_iter().map(|job| NodeJob::Watch(Arc::new(job)));
    let all = watching.chain(scheduled.into_iter().map(NodeJob::Runs));
    let (_control, commands) = control();
    supervise(all.collect(), environment, commands).await
}

/// The same, and does what the [`Control`] to which `commands` belong asks for.
///
/// # Errors
/// As [`run`]. What is wrong with a job that was added later is told, and ends nothing else.
pub async fn supervise(
    jobs: Vec<NodeJob>,
    environment: &Environment,
    commands: Commands,
) -> Result<(), EngineError> {
    Supervisor::new(environment, commands).run(jobs).await
}
