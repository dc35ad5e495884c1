//! The outbox: what somebody outside is to be told or to do, until it was.
//!
//! A row is written in the transaction that records what it is about, so it is there exactly if that is
//! (K3, K8): a crash leaves both or none. It goes when the receiver has it. A crash between the two
//! repeats it, with the same key, by which the receiver knows it again.
//!
//! A *lane* is what is of one job for one target. In a lane the order is kept: behind a row that waits
//! for another attempt, the others of its lane wait too. A parked row holds up nobody.

use knarr_core::Timestamp;
use rusqlite::Row;

use crate::codec::Malformed;
use crate::error::StoreError;
use crate::read::{Columns as _, Reader};
use crate::runs::RunId;
use crate::transaction::Tx;

/// The most bytes of payload that one page holds, but for its first row.
pub const PAGE_BYTES: usize = 1 << 20;
/// The longest error that is kept, in bytes.
const ERROR_BYTES: usize = 4_000;

/// The number of a row; later ones are greater. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutboxId(pub i64);

impl OutboxId {
    /// Before all others, to begin a walk with.
    pub const FIRST: Self = Self(0);
}

/// What kind of message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// A hook after a file.
    AfterFile,
    /// A hook after a run.
    AfterRun,
    /// An alert.
    Alert,
}

impl MessageKind {
    /// Its name, as receivers see it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AfterFile => "after_file",
            Self::AfterRun => "after_run",
            Self::Alert => "alert",
        }
    }

    const fn code(self) -> i64 {
        match self {
            Self::AfterFile => 0,
            Self::AfterRun => 1,
            Self::Alert => 2,
        }
    }

    const fn of_code(code: i64) -> Option<Self> {
        match code {
            0 => Some(Self::AfterFile),
            1 => Some(Self::AfterRun),
            2 => Some(Self::Alert),
            _ => None,
        }
    }
}

/// A message to be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    /// The idempotency key: what is the same message has the same key, other messages and other targets
    /// have other keys.
    pub key: String,
    /// The name of the target.
    pub target: String,
    /// The job that it is about; empty if none.
    pub job: String,
    /// The run that it is about.
    pub run: Option<RunId>,
    /// What kind of message.
    pub kind: MessageKind,
    /// JSON. Never holds a secret.
    pub payload: String,
    /// Not delivered before.
    pub due_at: Timestamp,
}

/// A message, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub id: OutboxId,
    /// What it is.
    pub message: NewMessage,
    /// When it was written.
    pub created_at: Timestamp,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Why nothing more is tried until a person acts.
    pub parked: Option<String>,
}

/// What became of a message that was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// It is in the outbox.
    New(OutboxId),
    /// One with its key is there already.
    Known,
}

/// The first row of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub id: OutboxId,
    /// The job of the lane.
    pub job: String,
    /// When it is due.
    pub due_at: Timestamp,
}

/// Which rows are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboxFilter {
    /// All.
    All,
    /// Those that are tried.
    Waiting,
    /// The parked ones.
    Parked,
}

/// How many rows are in which state, for one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxCounts {
    /// The target.
    pub target: String,
    /// Rows that are tried.
    pub waiting: u64,
    /// Rows that wait for a person.
    pub parked: u64,
    /// When the oldest that is tried was written.
    pub oldest: Option<Timestamp>,
}

const COLUMNS: &str = "id, key, target, job, run, kind, payload, created_at, due_at, attempts, \
                       last_error, parked";

fn stored(row: &Row<'_>) -> Result<Stored, StoreError> {
    let broken = || StoreError::damaged("the outbox", Malformed::Value);
    let run: Option<i64> = row.column(4)?;
    Ok(Stored {
        id: OutboxId(row.column(0)?),
        message: NewMessage {
            key: row.column(1)?,
            target: row.column(2)?,
            job: row.column(3)?,
            run: run.map(|run| RunId(run.cast_unsigned())),
            kind: MessageKind::of_code(row.column(5)?).ok_or_else(broken)?,
            payload: row.column(6)?,
            due_at: row.time(8)?,
        },
        created_at: row.time(7)?,
        attempts: u32::try_from(row.column::<i64>(9)?).map_err(|_| broken())?,
        last_error: row.column(10)?,
        parked: row.column(11)?,
    })
}

fn limited(error: &str) -> &str {
    error
        .get(..error.floor_char_boundary(ERROR_BYTES))
        .unwrap_or_default()
}

impl Reader<'_> {
    /// The first rows of the lanes of a target, the one that is due first first, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn outbox_heads(&self, target: &str, limit: usize) -> Result<Vec<Head>, StoreError> {
        // Jumps from lane to lane through the index, however long each of them is.
        self.all(
            "look for what is due in the outbox",
            "WITH RECURSIVE heads (id, job, due_at) AS ( \
               SELECT id, job, due_at FROM (SELECT id, job, due_at FROM outbox \
                 WHERE target = ?1 AND parked IS NULL ORDER BY job, id LIMIT 1) \
               UNION ALL \
               SELECT next.id, next.job, next.due_at FROM heads JOIN outbox AS next ON next.id = ( \
                 SELECT id FROM outbox WHERE target = ?1 AND parked IS NULL AND job > heads.job \
                 ORDER BY job, id LIMIT 1)) \
             SELECT id, job, due_at FROM heads ORDER BY due_at, id LIMIT ?2",
            (target, i64::try_from(limit).unwrap_or(i64::MAX)),
            |row| {
                Ok(Head {
                    id: OutboxId(row.column(0)?),
                    job: row.column(1)?,
                    due_at: row.time(2)?,
                })
            },
        )
    }

    /// The first rows of a lane, in order, at most `limit` and at most [`PAGE_BYTES`] of payload.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn outbox_lane(
        &self,
        target: &str,
        job: &str,
        limit: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM outbox WHERE target = ?1 AND job = ?2 AND parked IS NULL \
             AND id <= coalesce((SELECT max(id) FROM (SELECT id, sum(length(payload)) OVER \
               (ORDER BY id) AS bytes FROM (SELECT id, payload FROM outbox WHERE target = ?1 AND \
               job = ?2 AND parked IS NULL ORDER BY id LIMIT ?3)) WHERE bytes <= ?4), \
               (SELECT min(id) FROM outbox WHERE target = ?1 AND job = ?2 AND parked IS NULL)) \
             ORDER BY id LIMIT ?3"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let bytes = i64::try_from(PAGE_BYTES).unwrap_or(i64::MAX);
        self.all("read the outbox", &sql, (target, job, limit, bytes), stored)
    }

    /// The rows behind `after`, in order, at most `limit`; of one target or of all.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn outbox(
        &self,
        filter: OutboxFilter,
        target: Option<&str>,
        after: OutboxId,
        limit: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        let condition = match filter {
            OutboxFilter::All => "TRUE",
            OutboxFilter::Waiting => "parked IS NULL",
            OutboxFilter::Parked => "parked IS NOT NULL",
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM outbox WHERE id > ?1 AND (?2 IS NULL OR target = ?2) \
             AND {condition} ORDER BY id LIMIT ?3"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all("list the outbox", &sql, (after.0, target, limit), stored)
    }

    /// How many rows there are, by target.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn outbox_counts(&self) -> Result<Vec<OutboxCounts>, StoreError> {
        self.all(
            "count the outbox",
            "SELECT target, count(*) FILTER (WHERE parked IS NULL), count(parked), \
             min(created_at) FILTER (WHERE parked IS NULL) FROM outbox GROUP BY target \
             ORDER BY target",
            [],
            |row| {
                Ok(OutboxCounts {
                    target: row.column(0)?,
                    waiting: row.number(1)?,
                    parked: row.number(2)?,
                    oldest: row.optional_time(3)?,
                })
            },
        )
    }
}

impl Tx<'_> {
    /// Writes a message into the outbox, unless one with its key is there. Belongs into the transaction
    /// that records what it is about.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn enqueue(&mut self, new: &NewMessage) -> Result<Enqueued, StoreError> {
        let added = self.run(
            "write into the outbox",
            "INSERT INTO outbox (key, target, job, run, kind, payload, created_at, due_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (key) DO NOTHING",
            (
                &new.key,
                &new.target,
                &new.job,
                new.run.map(|run| run.0.cast_signed()),
                new.kind.code(),
                &new.payload,
                self.now().nanoseconds(),
                new.due_at.nanoseconds(),
            ),
        )?;
        Ok(match added {
            0 => Enqueued::Known,
            _ => Enqueued::New(OutboxId(self.connection.last_insert_rowid())),
        })
    }

    /// The receiver has it: it goes.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn outbox_done(&mut self, id: OutboxId) -> Result<(), StoreError> {
        self.run(
            "take a message from the outbox",
            "DELETE FROM outbox WHERE id = ?1",
            [id.0],
        )
        .map(drop)
    }

    /// It was tried in vain, and is tried again from `next` on.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn outbox_failed(
        &mut self,
        id: OutboxId,
        error: &str,
        next: Timestamp,
    ) -> Result<(), StoreError> {
        self.run(
            "note a failure in the outbox",
            "UPDATE outbox SET attempts = attempts + 1, last_error = ?2, due_at = ?3 WHERE id = ?1",
            (id.0, limited(error), next.nanoseconds()),
        )
        .map(drop)
    }

    /// Its target cannot be reached, which is not its own fault: it waits until `next`, and no attempt is
    /// counted.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn outbox_postponed(
        &mut self,
        id: OutboxId,
        error: &str,
        next: Timestamp,
    ) -> Result<(), StoreError> {
        self.run(
            "put off a message of the outbox",
            "UPDATE outbox SET last_error = ?2, due_at = ?3 WHERE id = ?1",
            (id.0, limited(error), next.nanoseconds()),
        )
        .map(drop)
    }

    /// It was tried in vain for the last time, for this reason; a person has to act.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn outbox_park(&mut self, id: OutboxId, reason: &str) -> Result<(), StoreError> {
        self.run(
            "park a message of the outbox",
            "UPDATE outbox SET attempts = attempts + 1, last_error = ?2, parked = ?2 WHERE id = ?1",
            (id.0, limited(reason)),
        )
        .map(drop)
    }

    /// Has one message, all of a target, or all tried again from now on. Says how many that were.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn outbox_retry(
        &mut self,
        id: Option<OutboxId>,
        target: Option<&str>,
    ) -> Result<u64, StoreError> {
        self.run(
            "retry messages of the outbox",
            "UPDATE outbox SET attempts = 0, parked = NULL, due_at = min(due_at, ?3) \
             WHERE (?1 IS NULL OR id = ?1) AND (?2 IS NULL OR target = ?2) \
             AND (parked IS NOT NULL OR attempts > 0 OR last_error IS NOT NULL)",
            (id.map(|id| id.0), target, self.now().nanoseconds()),
        )
    }

    /// Drops a parked message: a person does not want it any more. Says whether there was one.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn outbox_discard(&mut self, id: OutboxId) -> Result<bool, StoreError> {
        self.run(
            "drop a message of the outbox",
            "DELETE FROM outbox WHERE id = ?1 AND parked IS NOT NULL",
            [id.0],
        )
        .map(|rows| rows > 0)
    }

    /// Has what waits for another attempt, or for a target, until behind `horizon` wait until now only:
    /// nobody waits that long on purpose, so the clock was set back since.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn outbox_hasten_beyond(&mut self, horizon: Timestamp) -> Result<u64, StoreError> {
        self.run(
            "hasten what waits for a time far ahead in the outbox",
            "UPDATE outbox SET due_at = ?2 WHERE parked IS NULL AND due_at > ?1 \
             AND last_error IS NOT NULL",
            (horizon.nanoseconds(), self.now().nanoseconds()),
        )
    }
}
