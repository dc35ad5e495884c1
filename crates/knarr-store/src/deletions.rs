//! The spool of deletions: what a run means to delete, counted before the first is done.
//!
//! In the order in which they were added. Whoever deletes directories too walks it backwards: what was
//! added in tree order then goes from the inside out.

use std::collections::VecDeque;

use knarr_core::RelPath;
use knarr_core::entry::Fingerprint;
use rusqlite::Row;

use crate::Store;
use crate::codec::Malformed;
use crate::codec::fingerprint_blob;
use crate::error::{StoreError, While as _};
use crate::read::{Columns as _, PAGE_ROWS, Reader};
use crate::roots::side_code;
use crate::runs::RunId;
use crate::synced::Side;
use crate::transaction::Tx;

/// A deletion that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// The side where it is deleted.
    pub side: Side,
    /// The path at the side where it is deleted.
    pub path: RelPath,
    /// What it looked like when that was planned; if it looks different, it stays.
    pub seen: Fingerprint,
}

/// Which way to walk the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// In the order in which the deletions were added.
    Forwards,
    /// In the opposite order.
    Backwards,
}

impl Reader<'_> {
    /// How many deletions a run has spooled.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn count_deletions(&self, run: RunId) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM deletions WHERE run = ?1";
        let count = self.one("count deletions", sql, [run.0.cast_signed()], |row| {
            row.number(0)
        })?;
        Ok(count.unwrap_or(0))
    }
}

/// Columns 1 to 3 of a row.
fn deletion(row: &Row<'_>) -> Result<Deletion, StoreError> {
    let side = match row.column::<i64>(1)? {
        0 => Side::Source,
        1 => Side::Destination,
        _ => {
            return Err(StoreError::damaged(
                "the spool of deletions",
                Malformed::Value,
            ));
        }
    };
    Ok(Deletion {
        side,
        path: row.path(2)?,
        seen: row.fingerprint(3)?,
    })
}

impl Tx<'_> {
    /// Takes deletions off the end of what a run has spooled, the last one first, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn take_deletions(
        &mut self,
        run: RunId,
        limit: usize,
    ) -> Result<Vec<Deletion>, StoreError> {
        let operation = "take from the spool of deletions";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let taken = self.all(
            operation,
            "SELECT position, side, path, seen FROM deletions WHERE run = ?1 \
             ORDER BY position DESC LIMIT ?2",
            (run.0.cast_signed(), limit),
            |row| Ok((row.column::<i64>(0)?, deletion(row)?)),
        )?;
        if let Some((last, _)) = taken.last() {
            self.run(
                operation,
                "DELETE FROM deletions WHERE run = ?1 AND position >= ?2",
                (run.0.cast_signed(), *last),
            )?;
        }
        Ok(taken.into_iter().map(|(_, deletion)| deletion).collect())
    }

    /// Adds deletions behind those that a run has spooled.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn spool_deletions<'d>(
        &mut self,
        run: RunId,
        deletions: impl IntoIterator<Item = &'d Deletion>,
    ) -> Result<(), StoreError> {
        let operation = "spool deletions";
        let last = self.one(
            operation,
            "SELECT coalesce(max(position), 0) FROM deletions WHERE run = ?1",
            [run.0.cast_signed()],
            |row| row.column::<i64>(0),
        )?;
        let mut insert = self.prepare(
            operation,
            "INSERT INTO deletions (run, position, side, path, seen) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let mut position = last.unwrap_or(0);
        for deletion in deletions {
            position += 1;
            insert
                .execute((
                    run.0.cast_signed(),
                    position,
                    side_code(deletion.side),
                    deletion.path.as_bytes(),
                    fingerprint_blob(&deletion.seen),
                ))
                .trying(operation)?;
        }
        Ok(())
    }

    /// Empties the spool of a run.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn clear_deletions(&mut self, run: RunId) -> Result<u64, StoreError> {
        self.run(
            "empty the spool of deletions",
            "DELETE FROM deletions WHERE run = ?1",
            [run.0.cast_signed()],
        )
    }

    /// Empties the spools of all runs that are no longer running or held.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn clear_stale_deletions(&mut self) -> Result<u64, StoreError> {
        self.run(
            "empty the spools of deletions",
            "DELETE FROM deletions WHERE run NOT IN \
             (SELECT id FROM runs WHERE state IN ('running', 'held'))",
            [],
        )
    }
}

impl Store {
    /// Walks the spool of a run. Blocks when it needs more.
    #[must_use]
    pub fn deletion_cursor(&self, run: RunId, direction: Direction) -> DeletionCursor {
        let at = match direction {
            Direction::Forwards => 0,
            Direction::Backwards => i64::MAX,
        };
        let page = VecDeque::new();
        DeletionCursor {
            store: self.clone(),
            run,
            direction,
            at,
            page,
            finished: false,
        }
    }
}

/// A walk over the spool, by pages of [`PAGE_ROWS`] rows. After an error it ends.
#[derive(Debug)]
pub struct DeletionCursor {
    store: Store,
    run: RunId,
    direction: Direction,
    at: i64,
    page: VecDeque<(i64, Deletion)>,
    finished: bool,
}

impl DeletionCursor {
    fn turn_page(&mut self) -> Result<(), StoreError> {
        let sql = match self.direction {
            Direction::Forwards => {
                "SELECT position, side, path, seen FROM deletions \
                 WHERE run = ?1 AND position > ?2 ORDER BY position LIMIT ?3"
            }
            Direction::Backwards => {
                "SELECT position, side, path, seen FROM deletions \
                 WHERE run = ?1 AND position < ?2 ORDER BY position DESC LIMIT ?3"
            }
        };
        let read = |row: &Row<'_>| Ok((row.column(0)?, deletion(row)?));
        let limit = i64::try_from(PAGE_ROWS).unwrap_or(i64::MAX);
        let params = (self.run.0.cast_signed(), self.at, limit);
        let rows = self
            .store
            .read(|reader| reader.all("walk the spool", sql, params, read))?;
        self.finished = rows.len() < PAGE_ROWS;
        self.at = rows.last().map_or(self.at, |(position, _)| *position);
        self.page = rows.into();
        Ok(())
    }
}

impl Iterator for DeletionCursor {
    type Item = Result<Deletion, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty()
            && !self.finished
            && let Err(error) = self.turn_page()
        {
            self.finished = true;
            return Some(Err(error));
        }
        self.page.pop_front().map(|(_, deletion)| Ok(deletion))
    }
}
