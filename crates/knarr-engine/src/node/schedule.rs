//! When the runs of a job begin by the clock.

use std::time::Duration;

use knarr_core::Timestamp;
use knarr_core::schedule::{Missed, Overlap, Schedule};

use crate::pickup::PickupJob;

/// A job, and when it runs.
#[derive(Debug, Clone)]
pub struct ScheduledJob {
    /// What it does.
    pub pickup: PickupJob,
    /// When it runs by itself; none: only when it is asked to.
    pub schedules: Vec<Schedule>,
    /// After which job it runs, too, if that went well.
    pub after_job: Option<String>,
}

/// Whether a run of the job is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    Yes,
    No,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fired {
    /// The latest time that is dealt with by it.
    pub(crate) until: Timestamp,
    /// Whether a run is to begin; otherwise the times are left out on purpose.
    pub(crate) begins: bool,
}

impl ScheduledJob {
    /// When to look at it again. What has no schedule is looked at in a year.
    pub(crate) fn wakes(&self, fired_until: Timestamp, now: Timestamp) -> Timestamp {
        let name = self.pickup.name();
        let next = |schedule: &Schedule| schedule.wakes(name, fired_until, now);
        let far = now.after(Duration::from_secs(365 * 86_400));
        self.schedules.iter().filter_map(next).min().unwrap_or(far)
    }

    /// What is due of the times up to now that were not dealt with.
    pub(crate) fn due(&self, fired_until: Timestamp, now: Timestamp, busy: Busy) -> Option<Fired> {
        let all = |schedule: &Schedule| schedule.missed() == Missed::All;
        if busy == Busy::Yes && self.schedules.iter().any(all) {
            // One run for each time, one after the other.
            return None;
        }
        let name = self.pickup.name();
        let due = |schedule: &Schedule| schedule.due(name, fired_until, now);
        let dues: Vec<_> = self.schedules.iter().filter_map(due).collect();
        Some(Fired {
            until: dues.iter().map(|due| due.fired_until).max()?,
            begins: dues.iter().any(|due| due.run_for.is_some()),
        })
    }

    /// What happens when it is time and the last run has not ended.
    pub(crate) fn overlap(&self) -> Overlap {
        self.schedules
            .first()
            .map_or(Overlap::Forbid, Schedule::overlap)
    }
}
