//! What is counted since the process began.
//!
//! Counts are made once what they count is on the disk. Memory: one entry for each job.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use knarr_core::record::{Action, CustodyRecord};
use knarr_core::run::RunState;

use super::transaction::is_delivery;

/// The upper ends, in seconds, of the classes that durations of runs are counted in.
pub const BUCKETS_SECONDS: [u32; 9] = [1, 5, 15, 60, 300, 900, 3_600, 14_400, 86_400];

/// What was counted for one job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobMeters {
    /// Files that were delivered.
    pub files: u64,
    /// Bytes that they have at the source.
    pub bytes: u64,
    /// Attempts that ended without success.
    pub failures: u64,
    /// Runs that ended, by how: `done`, `partial`, `failed`, `held`, `interrupted`.
    pub runs: BTreeMap<&'static str, u64>,
    /// How many runs took at most so long as [`BUCKETS_SECONDS`] says, each counted in one class; what took
    /// longer is in none.
    pub buckets: [u64; BUCKETS_SECONDS.len()],
    /// How long all runs took together, in microseconds.
    pub run_microseconds: u64,
}

/// What was counted, by job.
#[derive(Debug, Default)]
pub struct Meters(Mutex<BTreeMap<String, JobMeters>>);

impl Meters {
    /// What was counted so far.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, JobMeters> {
        self.lock().clone()
    }

    pub(super) fn record(&self, job: &str, record: &CustodyRecord) {
        let delivers = is_delivery(record.action);
        let fails = matches!(
            record.action,
            Action::Failed | Action::Parked | Action::Problem
        );
        if !delivers && !fails {
            return;
        }
        let mut all = self.lock();
        let meters = all.entry(job.to_owned()).or_default();
        if delivers {
            meters.files += 1;
            meters.bytes = meters.bytes.saturating_add(record.size);
        } else {
            meters.failures += 1;
        }
    }

    pub(super) fn run(&self, job: &str, state: RunState, took: Duration) {
        let mut all = self.lock();
        let meters = all.entry(job.to_owned()).or_default();
        *meters.runs.entry(state.name()).or_default() += 1;
        let fits = |end: &u32| took <= Duration::from_secs(u64::from(*end));
        if let Some(bucket) = BUCKETS_SECONDS.iter().position(fits)
            && let Some(count) = meters.buckets.get_mut(bucket)
        {
            *count += 1;
        }
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        meters.run_microseconds = meters.run_microseconds.saturating_add(microseconds);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, JobMeters>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
