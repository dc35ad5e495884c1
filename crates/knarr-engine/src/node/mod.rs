//! `knarr run`: all jobs, for ever.
//!
//! A job has a lane for each watched directory. A lane observes (a watcher thread, and scans at the
//! start, every hour with jitter and whenever events were lost), marks what it sees in the dirty set,
//! and works that off. If the directory is gone, replaced or unmounted, the lane ends and a new one
//! begins when a directory is there again; nothing is concluded from its absence.

mod compare;
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
mod unpack;
mod work;
mod write;

pub(crate) use crate::node::compare::{Comparing, Emptied, OTHER_PLACE, Scanned};
pub(crate) use crate::node::deliver::Deletions;
pub(crate) use crate::node::observe::Mark;
pub(crate) use crate::node::parts::Parts;
pub(crate) use crate::node::progress::Progress;
pub(crate) use crate::node::scans::Scans;
pub use crate::node::schedule::ScheduledJob;
pub use crate::node::spec::{Looks, WatchJob};
pub(crate) use crate::node::work::Until;

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::error::EngineError;
use crate::node::lane::Lane;
use crate::node::schedule::Scheduler;
use crate::oneshot::Environment;

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
    let mut lanes = JoinSet::new();
    lanes.spawn(Scheduler::new(scheduled, environment).run());
    for job in jobs {
        let job = Arc::new(job);
        for source in &job.sources {
            let lane = Lane::new(Arc::clone(&job), source.clone(), environment.clone());
            lanes.spawn(lane.run());
        }
    }
    let mut result = Ok(());
    while let Some(ended) = lanes.join_next().await {
        let ended = ended.map_err(|_panic| EngineError::Internal("a job ended in a panic"))?;
        if result.is_ok() && ended.is_err() {
            // One lane that cannot record must not go on pretending; nor must the others.
            environment.cancel.cancel();
            result = ended;
        }
    }
    result
}
