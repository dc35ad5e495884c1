//! Runs: when a job or a command looked and moved, and how that ended.
//!
//! Numbers grow and are never used again, also after a crash. A run whose process is gone is marked as
//! interrupted at the next opening.

use knarr_core::Timestamp;
use knarr_core::run::{Run, RunEvent, RunState};
use rusqlite::Row;
use serde::{Deserialize, Serialize};

use crate::Store;
use crate::codec::Malformed;
use crate::error::StoreError;
use crate::pairs::PairId;
use crate::process::{self, Life};
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// The number of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known when a run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRun {
    /// The pair it works on, if it is one.
    pub pair: Option<PairId>,
    /// The job, or the command for a one-shot run.
    pub job: String,
    /// What it does: `copy`, `move`, `mirror`, `sync`.
    pub kind: String,
    /// What set it off: `watch`, `scan`, `schedule`, `command`.
    pub cause: String,
}

/// What a run did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunCounts {
    /// Paths that were looked at.
    pub seen: u64,
    /// New at the destination.
    pub created: u64,
    /// Replaced at the destination.
    pub updated: u64,
    /// Renamed at the destination.
    pub renamed: u64,
    /// Deleted at the destination.
    pub deleted: u64,
    /// The same on both sides already.
    pub unchanged: u64,
    /// Left alone on purpose.
    pub skipped: u64,
    /// Conflicts.
    pub conflicts: u64,
    /// Paths that cannot be handled.
    pub problems: u64,
    /// Paths that failed.
    pub failed: u64,
    /// Bytes that went over the wire.
    pub moved_bytes: u64,
}

/// A run, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRun {
    /// Its number.
    pub id: RunId,
    /// What was known when it began.
    pub begun_as: NewRun,
    /// Where it stands.
    pub state: RunState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What it did.
    pub counts: RunCounts,
    /// Why it failed or was held, or a remark.
    pub message: Option<String>,
    /// The number of its process.
    pub process: u32,
}

/// Which runs are meant; all that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Of this job.
    pub job: Option<String>,
    /// In this state.
    pub state: Option<RunState>,
    /// Begun at this time or later.
    pub since: Option<Timestamp>,
    /// Begun before this time.
    pub until: Option<Timestamp>,
    /// Older than this run, to continue a list.
    pub before: Option<RunId>,
}

const COLUMNS: &str =
    "id, pair, job, kind, cause, state, started_at, finished_at, counts, message, process";

fn stored_run(row: &Row<'_>) -> Result<StoredRun, StoreError> {
    let broken = || StoreError::damaged("a run", Malformed::Value);
    let state: String = row.column(5)?;
    let counts: String = row.column(8)?;
    let process: String = row.column(10)?;
    Ok(StoredRun {
        id: RunId(row.number(0)?),
        begun_as: NewRun {
            pair: row.column::<Option<i64>>(1)?.map(PairId),
            job: row.column(2)?,
            kind: row.column(3)?,
            cause: row.column(4)?,
        },
        state: RunState::from_name(&state).ok_or_else(broken)?,
        started_at: row.time(6)?,
        finished_at: row.optional_time(7)?,
        counts: serde_json::from_str(&counts).map_err(|_| broken())?,
        message: row.column(9)?,
        process: process
            .split(' ')
            .next()
            .and_then(|pid| pid.parse().ok())
            .unwrap_or(0),
    })
}

impl Reader<'_> {
    /// One run.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn stored_run(&self, id: RunId) -> Result<Option<StoredRun>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM runs WHERE id = ?1");
        self.one("read a run", &sql, [id.0.cast_signed()], stored_run)
    }

    /// The runs behind a number, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn runs_after(&self, after: RunId, limit: usize) -> Result<Vec<StoredRun>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM runs WHERE id > ?1 ORDER BY id LIMIT ?2");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all(
            "list runs",
            &sql,
            (after.0.cast_signed(), limit),
            stored_run,
        )
    }

    /// Runs, the newest first, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn runs(&self, filter: &RunFilter, limit: usize) -> Result<Vec<StoredRun>, StoreError> {
        let mut sql = format!("SELECT {COLUMNS} FROM runs WHERE id < ?1");
        // A parameter may be given that the text does not use; SQLite wants them numbered for that.
        for (given, condition) in [
            (filter.job.is_some(), " AND job = ?2"),
            (filter.state.is_some(), " AND state = ?3"),
            // Clocks may be set back, so the limits of time are first turned into limits of numbers.
            (
                filter.since.is_some(),
                " AND id >= (SELECT coalesce(min(id), 0) FROM runs INDEXED BY runs_started WHERE started_at >= ?4) \
                 AND +started_at >= ?4",
            ),
            (
                filter.until.is_some(),
                " AND id <= (SELECT coalesce(max(id), 0) FROM runs INDEXED BY runs_started WHERE started_at < ?5) \
                 AND +started_at < ?5",
            ),
        ] {
            if given {
                sql.push_str(condition);
            }
        }
        // Uses all parameters, the last one being the highest.
        sql.push_str(" ORDER BY id DESC LIMIT ?6");
        self.all(
            "list runs",
            &sql,
            (
                filter.before.map_or(i64::MAX, |id| id.0.cast_signed()),
                &filter.job,
                filter.state.map(RunState::name),
                filter.since.map(Timestamp::nanoseconds),
                filter.until.map(Timestamp::nanoseconds),
                i64::try_from(limit).unwrap_or(i64::MAX),
            ),
            stored_run,
        )
    }
}

impl Tx<'_> {
    /// Begins a run of this process.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn begin_run(&mut self, new: &NewRun) -> Result<RunId, StoreError> {
        self.run(
            "begin a run",
            "INSERT INTO runs (pair, job, kind, cause, process, state, started_at, counts) \
             VALUES (?1, ?2, ?3, ?4, ?5, 'running', ?6, '{}')",
            (
                new.pair.map(|pair| pair.0),
                &new.job,
                &new.kind,
                &new.cause,
                process::token(),
                self.now().nanoseconds(),
            ),
        )?;
        Ok(RunId(self.connection.last_insert_rowid().cast_unsigned()))
    }

    /// Notes what a run did so far.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn count_run(&mut self, id: RunId, counts: &RunCounts) -> Result<(), StoreError> {
        let json = json(counts);
        self.run(
            "note what a run did",
            "UPDATE runs SET counts = ?2 WHERE id = ?1",
            (id.0.cast_signed(), json),
        )
        .map(drop)
    }

    /// Ends a run, or holds it.
    ///
    /// # Errors
    /// [`StoreError::Transition`] if it ended already, [`StoreError::Unknown`] if there is none.
    pub fn finish_run(
        &mut self,
        id: RunId,
        event: RunEvent,
        counts: &RunCounts,
        message: Option<&str>,
    ) -> Result<RunState, StoreError> {
        let run = self.stored_run(id)?.ok_or(StoreError::Unknown {
            what: "run",
            id: id.0,
        })?;
        let state = Run::recorded(run.state)
            .apply(event)
            .map_err(|source| StoreError::Transition { run: id.0, source })?
            .state();
        self.run(
            "finish a run",
            "UPDATE runs SET state = ?2, finished_at = ?3, counts = ?4, message = ?5 WHERE id = ?1",
            (
                id.0.cast_signed(),
                state.name(),
                self.now().nanoseconds(),
                json(counts),
                message,
            ),
        )?;
        Ok(state)
    }
}

fn json(counts: &RunCounts) -> String {
    serde_json::to_string(counts).expect("numbers under fixed names are always JSON")
}

impl Store {
    /// Marks the runs whose process is gone as interrupted, and says which.
    ///
    /// # Errors
    /// If the database cannot be read or written.
    pub fn interrupt_dead_runs(&self) -> Result<Vec<RunId>, StoreError> {
        let dead = self.read(|reader| {
            let running = reader.all(
                "look for runs of dead processes",
                "SELECT id, process FROM runs WHERE state = 'running'",
                [],
                |row| Ok((RunId(row.number(0)?), row.column::<String>(1)?)),
            )?;
            let dead = running
                .into_iter()
                .filter(|(_, token)| process::life_of(token) == Life::Dead);
            Ok(dead.map(|(id, _)| id).collect::<Vec<_>>())
        })?;
        if dead.is_empty() {
            return Ok(dead);
        }
        self.transact(move |tx| {
            let mut interrupted = Vec::with_capacity(dead.len());
            for id in dead {
                // Another process may have been quicker.
                let Some(run) = tx
                    .stored_run(id)?
                    .filter(|run| run.state == RunState::Running)
                else {
                    continue;
                };
                tx.finish_run(
                    id,
                    RunEvent::Interrupted,
                    &run.counts,
                    Some("its process is gone"),
                )?;
                interrupted.push(id);
            }
            Ok(interrupted)
        })
        .wait()
    }
}
