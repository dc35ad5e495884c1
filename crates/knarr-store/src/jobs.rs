//! What is known of each job that its configuration does not say: whether it is paused, and up to when
//! its schedule was dealt with.

use knarr_core::Timestamp;
use rusqlite::Row;

use crate::error::StoreError;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// The state of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobState {
    /// Its name.
    pub name: String,
    /// Since when it is paused, and who paused it.
    pub paused: Option<(Timestamp, String)>,
    /// The latest time of its schedule that was dealt with: run, or left out on purpose.
    pub fired_until: Option<Timestamp>,
}

const COLUMNS: &str = "name, paused_at, paused_by, fired_until";

fn job_state(row: &Row<'_>) -> Result<JobState, StoreError> {
    let by: Option<String> = row.column(2)?;
    Ok(JobState {
        name: row.column(0)?,
        paused: row.optional_time(1)?.map(|at| (at, by.unwrap_or_default())),
        fired_until: row.optional_time(3)?,
    })
}

impl Reader<'_> {
    /// The states of all jobs that have one, by name.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn job_states(&self) -> Result<Vec<JobState>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM job_states ORDER BY name");
        self.all("read the jobs", &sql, (), job_state)
    }

    /// The state of a job, if it has one.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn job_state(&self, name: &str) -> Result<Option<JobState>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM job_states WHERE name = ?1");
        self.one("read a job", &sql, [name], job_state)
    }
}

impl Tx<'_> {
    /// Notes that all times of a job's schedule up to this one are dealt with.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn set_fired_until(&mut self, name: &str, until: Timestamp) -> Result<(), StoreError> {
        self.run(
            "note the schedule of a job",
            "INSERT INTO job_states (name, fired_until) VALUES (?1, ?2) \
             ON CONFLICT (name) DO UPDATE SET fired_until = excluded.fired_until",
            (name, until.nanoseconds()),
        )
        .map(drop)
    }

    /// Pauses a job: its runs begin no more by themselves. Says whether it was not paused before.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn pause_job(&mut self, name: &str, by: &str) -> Result<bool, StoreError> {
        let now = self.now();
        let changed = self.run(
            "pause a job",
            "INSERT INTO job_states (name, paused_at, paused_by) VALUES (?1, ?2, ?3) \
             ON CONFLICT (name) DO UPDATE SET paused_at = excluded.paused_at, paused_by = excluded.paused_by \
             WHERE paused_at IS NULL",
            (name, now.nanoseconds(), by),
        )?;
        Ok(changed > 0)
    }

    /// Ends a pause. Says whether there was one. What would have run meanwhile is dealt with by that.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn resume_job(&mut self, name: &str) -> Result<bool, StoreError> {
        let now = self.now();
        let changed = self.run(
            "resume a job",
            "UPDATE job_states SET paused_at = NULL, paused_by = NULL, \
             fired_until = CASE WHEN fired_until < ?2 THEN ?2 ELSE fired_until END \
             WHERE name = ?1 AND paused_at IS NOT NULL",
            (name, now.nanoseconds()),
        )?;
        Ok(changed > 0)
    }
}
