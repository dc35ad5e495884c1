//! Puts together what works off a dirty set, whatever looks for what is dirty.

use std::sync::Arc;

use knarr_core::plan::{Mode, Policy};
use knarr_remote::Remote;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::acknowledge::Acknowledging;
use crate::commit::CommitQueue;
use crate::context::{Context, Tally};
use crate::duplicates::Contents;
use crate::inspect::SideFiles;
use crate::journal::Journal;
use crate::node::deliver::Delivering;
use crate::node::health::Circuit;
use crate::node::progress::Progress;
use crate::node::scans::Scans;
use crate::node::spec::WatchJob;
use crate::node::work::{Guard, Working};
use crate::observer::Observer;
use crate::oneshot::{Environment, adjusted_policy};
use crate::turns::Slots;

/// What a worker is made of.
pub(crate) struct Parts<'a> {
    pub(crate) job: &'a Arc<WatchJob>,
    pub(crate) source: Arc<dyn Remote>,
    pub(crate) journal: &'a Journal,
    /// With the token that ends this worker.
    pub(crate) environment: &'a Environment,
    pub(crate) tasks: &'a TaskTracker,
    pub(crate) progress: Arc<Progress>,
}

impl Parts<'_> {
    /// The worker. What is to be looked at again it wishes for in `scans`; `wake` tells it of new work.
    pub(crate) fn working(self, wake: &Arc<Notify>, scans: &Scans) -> Working {
        let Self {
            job,
            source,
            journal,
            environment,
            tasks,
            progress,
        } = self;
        let circuit = Circuit::new(
            Arc::clone(&job.destination),
            journal.clone(),
            job.retry,
            environment,
        );
        let policy = Policy {
            symlinks: job.symlinks,
            ..Policy::new(Mode::Copy)
        };
        let policy = adjusted_policy(policy, &source, &job.destination, &job.after);
        let of = |remote: &Arc<dyn Remote>| remote.describe().capabilities.transfers;
        let suited = match source.as_local() {
            Some(_) => of(&job.destination),
            None => of(&job.destination).max(of(&source)),
        };
        let context = Arc::new(Context {
            source,
            destination: Arc::clone(&job.destination),
            journal: journal.clone(),
            policy,
            verify: job.verify,
            after: job.after.clone(),
            checks: Arc::clone(&job.checks),
            side_files: SideFiles::default(),
            acknowledging: Acknowledging::new(job.acknowledge.as_ref()),
            contents: Contents::default(),
            retry: job.retry,
            observer: Arc::clone(&progress) as Arc<dyn Observer>,
            clock: Arc::clone(&environment.clock),
            cancel: environment.cancel.clone(),
            commits: CommitQueue::start(tasks, journal),
            slots: Slots::new(job.transfers.unwrap_or(suited), &environment.cancel)
                .sharing(&job.turns, job.priority),
            tally: Tally::default(),
            batches: std::sync::OnceLock::new(),
            tasks: tasks.clone(),
        });
        Working {
            delivering: Arc::new(Delivering {
                job: Arc::clone(job),
                context,
            }),
            circuit,
            progress,
            wake: Arc::clone(wake),
            scans: scans.clone(),
            guard: Guard::default(),
            given_up: Arc::default(),
        }
    }
}
