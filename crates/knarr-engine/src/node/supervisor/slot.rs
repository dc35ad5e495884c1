//! A job and what is under way of it.

use std::sync::Arc;

use knarr_core::Timestamp;

use crate::node::NodeJob;
use crate::node::control::{RunningNow, Waiters};
use crate::node::supervisor::{Running, Runs, Since, Slot, Watches, Work};
use crate::pickup::Cause;

impl Slot {
    pub(super) fn new(job: NodeJob, fired_until: Timestamp, since: Since) -> Self {
        let work = match job {
            NodeJob::Watch(job) => Work::Watches(Watches {
                job,
                lanes: Vec::new(),
                left: 0,
            }),
            NodeJob::Runs(job) => Work::Runs(Box::new(Runs {
                job: Arc::new(job),
                fired_until,
                wakes: None,
                running: None,
                queued: None,
                uploaded: false,
            })),
        };
        Self {
            work,
            paused: false,
            waits: None,
            since,
            problem: None,
            leaving: None,
        }
    }

    /// Whether a run of this cause has to wait: for an endpoint, or, if it is for what was uploaded, for the
    /// end of a pause. Other times that come during a pause are left out.
    pub(super) fn holds(&self, cause: Cause) -> bool {
        self.waits.is_some() || (self.paused && cause == Cause::Upload)
    }

    /// The names of its endpoints.
    pub(super) fn endpoints(&self) -> &[String] {
        match &self.work {
            Work::Runs(runs) => &runs.job.pickup.job.endpoints,
            Work::Watches(watches) => &watches.job.endpoints,
        }
    }

    /// What is under way.
    pub(super) fn under_way(&self) -> Vec<&Running> {
        match &self.work {
            Work::Runs(runs) => runs.running.iter().collect(),
            Work::Watches(watches) => watches.lanes.iter().collect(),
        }
    }

    pub(super) fn is_still(&self) -> bool {
        match &self.work {
            Work::Runs(runs) => runs.running.is_none(),
            Work::Watches(watches) => watches.left == 0,
        }
    }
}

impl Running {
    pub(super) fn now(&self) -> RunningNow {
        RunningNow {
            run: self.told.run(),
            cause: self.cause,
            since: self.since,
        }
    }
}

impl Runs {
    /// One run for all who ask meanwhile. What only an upload asked for could wait longer than the others.
    pub(super) fn queue(&mut self, cause: Cause, waiters: Waiters) {
        self.uploaded |= cause == Cause::Upload;
        let begin = || {
            let given = waiters.given.clone();
            let all = Waiters {
                given,
                ..Waiters::default()
            };
            (cause, all)
        };
        let (first, all) = self.queued.get_or_insert_with(begin);
        if *first == Cause::Upload {
            *first = cause;
        }
        // Who has gone is forgotten, however often somebody asks.
        all.begun.retain(|waiter| !waiter.is_closed());
        all.ended.retain(|waiter| !waiter.is_closed());
        all.begun.extend(waiters.begun);
        all.ended.extend(waiters.ended);
    }

    /// What is under way or queued and must not be lost with them: a run for what was uploaded, or one that
    /// finishes what is half visible.
    pub(super) fn owed(&self) -> Option<Cause> {
        let queued = self.queued.as_ref().map(|(cause, _)| *cause);
        let running = self.running.as_ref().and_then(|running| running.asked);
        let causes = [queued, running, self.uploaded.then_some(Cause::Upload)];
        let mut causes = causes.into_iter().flatten();
        causes.find(|cause| matches!(cause, Cause::Upload | Cause::Unfinished))
    }
}

impl Watches {
    pub(super) fn cancel(&self) {
        for lane in &self.lanes {
            lane.cancel.cancel();
        }
    }
}
