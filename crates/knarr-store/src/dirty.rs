//! The dirty set: the durable queue.
//!
//! It holds no work, but observations: paths that look different from what was agreed on. So it cannot
//! hold a path twice, edits of one path fall together by themselves, and after a crash it is exactly
//! what is still to be looked at.
//!
//! Every new observation gets a *generation*, a number that only ever grows in this state directory. Who
//! takes a path remembers its generation and gives it back when done: if another observation came
//! meanwhile, the numbers differ and the path stays. An edit that arrives in flight is never lost, and a
//! late answer about a path that was settled and came back means nothing.

mod count;
mod mark;

pub use count::DirtyLimit;
use knarr_core::entry::{Fingerprint, Kind};
use knarr_core::{RelPath, Timestamp};
use rusqlite::{Connection, Row};

use crate::codec::{Malformed, behind, keys_of, kind_code, kind_of_code};
use crate::dirty::mark::Marker;
use crate::error::{StoreError, While as _};
use crate::pairs::PairId;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// Which observation of a path; grows with every new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// How something was observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Something happened to it just now. Always a new observation, even if it looks the same: a write
    /// within one tick of the file system's clock looks the same.
    Event,
    /// It was looked at. A new observation only if it looks different from the last one.
    Scan,
}

/// What to mark as dirty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The path below the source's root.
    pub path: RelPath,
    /// What it is, or was if it is gone.
    pub kind: Kind,
    /// What it looked like; nothing if it is gone.
    pub observed: Option<Fingerprint>,
    /// How it was observed.
    pub seen: Seen,
    /// When it was observed.
    pub at: Timestamp,
    /// From when on it may be taken: when it will have been quiet for long enough. A scan that sees
    /// nothing new never puts it off.
    pub ready_at: Timestamp,
    /// Why it counts as complete, if that is known.
    pub complete_because: Option<String>,
    /// The path it was renamed from, if that was seen. A hint: the content may have changed since.
    pub renamed_from: Option<RelPath>,
}

/// A path of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirty {
    /// The path below the source's root.
    pub path: RelPath,
    /// What it is, or was if it is gone.
    pub kind: Kind,
    /// What it looked like last; nothing if it is gone.
    pub observed: Option<Fingerprint>,
    /// Which observation this is.
    pub generation: Generation,
    /// When it first became dirty.
    pub first_seen: Timestamp,
    /// When it was last observed.
    pub last_seen: Timestamp,
    /// From when on it may be taken.
    pub ready_at: Timestamp,
    /// How often this observation was tried in vain.
    pub attempts: u32,
    /// When it is tried again, after a failure.
    pub next_attempt_at: Option<Timestamp>,
    /// Why it counts as complete.
    pub complete_because: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Why nothing more is tried until it changes or a person acts.
    pub parked: Option<String>,
    /// The path it was renamed from.
    pub renamed_from: Option<RelPath>,
}

/// What is to happen after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is tried again, from then on.
    Retry(Timestamp),
    /// Nothing, for this reason, until it changes or a person acts.
    Park(String),
}

/// What became of an answer about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It was taken.
    Done,
    /// The path was observed again meanwhile; the queue is as it was.
    Newer,
    /// The path is not in the queue.
    Absent,
}

/// Which paths of the queue are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtyFilter {
    /// All.
    All,
    /// Those that may be taken at this time.
    Ready(Timestamp),
    /// Those that are neither parked nor may be taken yet at this time: still settling, or waiting for
    /// another attempt.
    Waiting(Timestamp),
    /// Those that were tried in vain, parked or not.
    Failed,
    /// The parked ones.
    Parked,
}

/// How many paths are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DirtyCounts {
    /// May be taken now.
    pub ready: u64,
    /// Will be taken later.
    pub waiting: u64,
    /// Wait for a change or a person.
    pub parked: u64,
}

/// How many paths of a queue wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    /// That are gone at the source.
    pub gone: u64,
    /// That are there, or have another name.
    pub others: u64,
}

const COLUMNS: &str = "key, kind, observed, generation, first_seen, last_seen, ready_at, attempts, \
                       next_attempt_at, complete_because, last_error, parked, renamed_from";

fn dirty(row: &Row<'_>) -> Result<Dirty, StoreError> {
    let broken = |source| StoreError::damaged("the queue", source);
    let path =
        RelPath::from_order_key(row.blob(0)?).map_err(|source| broken(Malformed::Path(source)))?;
    let kind = u8::try_from(row.column::<i64>(1)?)
        .ok()
        .and_then(kind_of_code);
    let observed: Option<Vec<u8>> = row.column(2)?;
    let renamed_from: Option<Vec<u8>> = row.column(12)?;
    Ok(Dirty {
        path,
        kind: kind.ok_or_else(|| broken(Malformed::Value))?,
        observed: observed
            .map(|bytes| crate::codec::fingerprint_of_blob(&bytes))
            .transpose()
            .map_err(broken)?,
        generation: Generation(row.number(3)?),
        first_seen: row.time(4)?,
        last_seen: row.time(5)?,
        ready_at: row.time(6)?,
        attempts: u32::try_from(row.column::<i64>(7)?).unwrap_or(u32::MAX),
        next_attempt_at: row.optional_time(8)?,
        complete_because: row.column(9)?,
        last_error: row.column(10)?,
        parked: row.column(11)?,
        renamed_from: renamed_from
            .map(|bytes| crate::codec::path_of(&bytes))
            .transpose()
            .map_err(broken)?,
    })
}

/// Looks at the rows of one pair, and at those of no other.
const COUNT: &str = "SELECT count(*) FILTER (WHERE parked IS NULL AND due_at <= ?2), \
     count(*) FILTER (WHERE parked IS NULL AND due_at > ?2), \
     count(*) FILTER (WHERE parked IS NOT NULL) FROM dirty WHERE pair = ?1";

impl Reader<'_> {
    /// The queue's row for a path.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn dirty(&self, pair: PairId, path: &RelPath) -> Result<Option<Dirty>, StoreError> {
        let (plain, directory) = keys_of(path);
        // Not `IN`: for that SQLite builds a table each time.
        let sql = format!(
            "SELECT {COLUMNS} FROM dirty WHERE pair = ?1 AND key = ?2 \
             UNION ALL SELECT {COLUMNS} FROM dirty WHERE pair = ?1 AND key = ?3"
        );
        self.one("read the queue", &sql, (pair.0, plain, &directory), dirty)
    }

    /// Paths that may be taken at `now`, in tree order behind the order key `after` (from the start: an
    /// empty key), at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn ready(
        &self,
        pair: PairId,
        now: Timestamp,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<Dirty>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // Few that are due among many that are not: by time, then sorted. Many: in order, as they lie.
        let few = limit.saturating_mul(2).max(1_024);
        let due = self.one(
            "read the queue",
            "SELECT count(*) FROM (SELECT 1 FROM dirty INDEXED BY dirty_due \
             WHERE pair = ?1 AND parked IS NULL AND due_at <= ?2 LIMIT ?3)",
            (pair.0, now.nanoseconds(), few),
            |row| row.column::<i64>(0),
        )?;
        let index = match due.unwrap_or(0) {
            0 => return Ok(Vec::new()),
            due if due < few => "INDEXED BY dirty_due",
            _ => "NOT INDEXED",
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM dirty {index} WHERE pair = ?1 AND parked IS NULL \
             AND due_at <= ?2 AND key > ?3 ORDER BY key LIMIT ?4"
        );
        self.all(
            "read the queue",
            &sql,
            (pair.0, now.nanoseconds(), after, limit),
            dirty,
        )
    }

    /// When the next path may be taken that may not be yet at `now`. Nothing, if there is none.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn next_ready_after(
        &self,
        pair: PairId,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let sql = "SELECT min(due_at) FROM dirty INDEXED BY dirty_due \
                   WHERE pair = ?1 AND parked IS NULL AND due_at > ?2";
        let next = self.one("read the queue", sql, (pair.0, now.nanoseconds()), |row| {
            row.optional_time(0)
        })?;
        Ok(next.flatten())
    }

    /// How many paths wait that are not parked. Looks at the whole queue of the pair.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn waiting(&self, pair: PairId) -> Result<Waiting, StoreError> {
        let sql = "SELECT count(*) FILTER (WHERE observed IS NULL AND renamed_from IS NULL), count(*) \
                   FROM dirty WHERE pair = ?1 AND parked IS NULL";
        let found = self.one("read the queue", sql, [pair.0], |row| {
            let (gone, all) = (row.number(0)?, row.number(1)?);
            Ok(Waiting {
                gone,
                others: all.saturating_sub(gone),
            })
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Whether a path waits for a time behind `horizon`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn waits_beyond(&self, pair: PairId, horizon: Timestamp) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM dirty INDEXED BY dirty_due \
                   WHERE pair = ?1 AND parked IS NULL AND due_at > ?2 LIMIT 1";
        let found = self.one(
            "read the queue",
            sql,
            (pair.0, horizon.nanoseconds()),
            |row| row.column::<i64>(0),
        )?;
        Ok(found.is_some())
    }

    /// How many paths of the queue are gone at the source. Looks at the whole queue.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn count_gone(&self, pair: PairId) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM dirty \
                   WHERE pair = ?1 AND observed IS NULL AND renamed_from IS NULL AND kind != ?2";
        let directory = kind_code(Kind::Directory);
        let count = self.one("read the queue", sql, (pair.0, directory), |row| {
            row.number(0)
        })?;
        Ok(count.unwrap_or(0))
    }

    /// When the next path may be taken: in the past, if there is one already. Nothing, if there is none.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn next_ready_at(&self, pair: PairId) -> Result<Option<Timestamp>, StoreError> {
        let sql = "SELECT min(due_at) FROM dirty INDEXED BY dirty_due \
                   WHERE pair = ?1 AND parked IS NULL";
        Ok(self
            .one("read the queue", sql, [pair.0], |row| row.optional_time(0))?
            .flatten())
    }

    /// When the path was first seen that waits longest and is not parked.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn oldest_dirty(&self, pair: PairId) -> Result<Option<Timestamp>, StoreError> {
        let sql = "SELECT min(first_seen) FROM dirty WHERE pair = ?1 AND parked IS NULL";
        let oldest = self.one("look for what waits longest", sql, [pair.0], |row| {
            row.optional_time(0)
        })?;
        Ok(oldest.flatten())
    }

    /// How many paths are in which state at `now`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn count_dirty(&self, pair: PairId, now: Timestamp) -> Result<DirtyCounts, StoreError> {
        let sql = COUNT;
        let counts = self.one("count the queue", sql, (pair.0, now.nanoseconds()), |row| {
            Ok(DirtyCounts {
                ready: row.number(0)?,
                waiting: row.number(1)?,
                parked: row.number(2)?,
            })
        })?;
        Ok(counts.unwrap_or_default())
    }

    /// Paths of the queue in tree order behind the order key `after` (from the start: an empty key), at
    /// most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn list_dirty(
        &self,
        pair: PairId,
        filter: DirtyFilter,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<Dirty>, StoreError> {
        // `?4` stands in each text, so that all take the same parameters.
        let (condition, now) = match filter {
            DirtyFilter::All => ("?4 IS NOT NULL", Timestamp::from_nanoseconds(0)),
            DirtyFilter::Ready(now) => ("parked IS NULL AND due_at <= ?4", now),
            DirtyFilter::Waiting(now) => ("parked IS NULL AND due_at > ?4", now),
            DirtyFilter::Failed => (
                "(attempts > 0 OR parked IS NOT NULL) AND ?4 IS NOT NULL",
                Timestamp::from_nanoseconds(0),
            ),
            DirtyFilter::Parked => (
                "parked IS NOT NULL AND ?4 IS NOT NULL",
                Timestamp::from_nanoseconds(0),
            ),
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM dirty WHERE pair = ?1 AND key > ?2 AND {condition} \
             ORDER BY key LIMIT ?3"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all(
            "list the queue",
            &sql,
            (pair.0, after, limit, now.nanoseconds()),
            dirty,
        )
    }
}

impl Tx<'_> {
    /// Marks paths as dirty. A new observation of a path gets a new generation; one that looks different
    /// from the last also starts anew: no attempts, not parked.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn mark_dirty<'m>(
        &mut self,
        pair: PairId,
        marks: impl IntoIterator<Item = &'m Mark>,
    ) -> Result<(), StoreError> {
        let mut marker = Marker::new(self, pair)?;
        for mark in marks {
            marker.mark(mark)?;
        }
        marker.finish(self)
    }

    /// Takes a path from the queue, if it is still the observation that the caller took.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn settle(
        &mut self,
        pair: PairId,
        path: &RelPath,
        generation: Generation,
    ) -> Result<Settled, StoreError> {
        let (plain, directory) = keys_of(path);
        let mut removed = 0;
        for key in [plain, &directory] {
            // A path is in the queue once, as a directory or as anything else.
            if removed == 0 {
                removed = self.run(
                    "take a path from the queue",
                    "DELETE FROM dirty WHERE pair = ?1 AND key = ?2 AND generation = ?3",
                    (pair.0, key, generation.0.cast_signed()),
                )?;
            }
        }
        self.settled(pair, path, removed)
    }

    /// Records that an attempt failed, if the path is still the observation that the caller took.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn fail(
        &mut self,
        pair: PairId,
        path: &RelPath,
        generation: Generation,
        error: &str,
        next: &Next,
    ) -> Result<Settled, StoreError> {
        let (plain, directory) = keys_of(path);
        let (next_attempt_at, parked) = match next {
            Next::Retry(at) => (Some(at.nanoseconds()), None),
            Next::Park(reason) => (None, Some(reason)),
        };
        let changed = self.run(
            "note a failure in the queue",
            "UPDATE dirty SET attempts = attempts + 1, last_error = ?5, next_attempt_at = ?6, \
             parked = ?7 WHERE pair = ?1 AND key IN (?2, ?3) AND generation = ?4",
            (
                pair.0,
                plain,
                &directory,
                generation.0.cast_signed(),
                error,
                next_attempt_at,
                parked,
            ),
        )?;
        self.settled(pair, path, changed)
    }

    /// Has a path wait until then without counting an attempt, if it is still the observation that the
    /// caller took: it is not at rest, or it is not its own fault.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn postpone(
        &mut self,
        pair: PairId,
        path: &RelPath,
        generation: Generation,
        until: Timestamp,
    ) -> Result<Settled, StoreError> {
        let (plain, directory) = keys_of(path);
        let changed = self.run(
            "put off a path of the queue",
            "UPDATE dirty SET next_attempt_at = ?5 \
             WHERE pair = ?1 AND key IN (?2, ?3) AND generation = ?4",
            (
                pair.0,
                plain,
                &directory,
                generation.0.cast_signed(),
                until.nanoseconds(),
            ),
        )?;
        self.settled(pair, path, changed)
    }

    /// Has what is gone, was first seen until then and was only put off wait no more: it was approved.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn hasten_removals(
        &mut self,
        pair: PairId,
        seen_until: Timestamp,
    ) -> Result<(), StoreError> {
        self.run(
            "hasten the removals of the queue",
            "UPDATE dirty SET next_attempt_at = NULL WHERE pair = ?1 AND first_seen <= ?2 \
             AND observed IS NULL AND attempts = 0 AND next_attempt_at IS NOT NULL AND parked IS NULL",
            (pair.0, seen_until.nanoseconds()),
        )?;
        Ok(())
    }

    /// Has what waits for a time behind `horizon` wait until `now` only: nobody waits that long on
    /// purpose, so the clock was set back since.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn hasten_beyond(
        &mut self,
        pair: PairId,
        horizon: Timestamp,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.run(
            "hasten what waits for a time far ahead",
            "UPDATE dirty SET ready_at = min(ready_at, ?3), \
             next_attempt_at = CASE WHEN next_attempt_at > ?3 THEN ?3 ELSE next_attempt_at END \
             WHERE pair = ?1 AND parked IS NULL AND due_at > ?2",
            (pair.0, horizon.nanoseconds(), now.nanoseconds()),
        )
    }

    fn settled(&self, pair: PairId, path: &RelPath, rows: u64) -> Result<Settled, StoreError> {
        Ok(match rows {
            0 if self.dirty(pair, path)?.is_some() => Settled::Newer,
            0 => Settled::Absent,
            _ => Settled::Done,
        })
    }

    /// Has a path, or all paths, tried again from now on: neither parked nor waiting for a time after a
    /// failure. Says how many that were.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn retry_now(&mut self, pair: PairId, path: Option<&RelPath>) -> Result<u64, StoreError> {
        let operation = "retry paths of the queue";
        let sql = "UPDATE dirty SET attempts = 0, next_attempt_at = NULL, parked = NULL \
                   WHERE pair = ?1 AND (parked IS NOT NULL OR next_attempt_at IS NOT NULL)";
        match path {
            None => self.run(operation, sql, [pair.0]),
            Some(path) => {
                let (plain, directory) = keys_of(path);
                let sql = format!("{sql} AND key IN (?2, ?3)");
                self.run(operation, &sql, (pair.0, plain, &directory))
            }
        }
    }

    /// Takes a directory and everything below it from the queue, whatever the generation: the whole of
    /// it was dealt with, by a rename for instance. Only rows that are not newer than `up_to` go.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn settle_tree(
        &mut self,
        pair: PairId,
        directory: &RelPath,
        up_to: Generation,
    ) -> Result<u64, StoreError> {
        let (_, key) = keys_of(directory);
        self.run(
            "take a directory from the queue",
            "DELETE FROM dirty WHERE pair = ?1 AND key >= ?2 AND key < ?3 AND generation <= ?4",
            (pair.0, &key, &behind(&key), up_to.0.cast_signed()),
        )
    }
}

/// Whether every row can be read.
pub(crate) fn read_all(connection: &Connection) -> Result<(), StoreError> {
    let operation = "read the queue";
    let mut statement = connection
        .prepare(&format!("SELECT {COLUMNS} FROM dirty"))
        .trying(operation)?;
    let mut rows = statement.query([]).trying(operation)?;
    while let Some(row) = rows.next().trying(operation)? {
        dirty(row)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::read::plan_of;

    #[test]
    fn what_waits_of_a_pair_is_counted_through_an_index() {
        let plan = plan_of(super::COUNT);
        assert!(
            plan.contains("SEARCH dirty USING PRIMARY KEY (pair=?)"),
            "{plan}"
        );
        assert!(!plan.contains("SCAN"), "{plan}");
    }
}
