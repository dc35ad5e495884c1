//! Pairs: a source and a destination that are kept in step.
//!
//! A pair is known by its key: the canonical text of a job's source and destination, or of a one-shot
//! command's two locations. Its number is never used again, so what belongs to a forgotten pair can
//! never be taken for another's.

use knarr_core::Timestamp;

use crate::error::StoreError;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// The number of a pair in this state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PairId(pub(crate) i64);

impl PairId {
    /// The number, for logs.
    #[must_use]
    pub const fn number(self) -> i64 {
        self.0
    }
}

/// How a pair is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairKey {
    /// The canonical text that identifies it.
    pub key: String,
    /// The source as a person would write it, without secrets.
    pub source: String,
    /// The destination as a person would write it, without secrets.
    pub destination: String,
    /// The job it belongs to; nothing for one-shot commands.
    pub job: Option<String>,
}

/// A pair, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Its number.
    pub id: PairId,
    /// How it is known.
    pub known_as: PairKey,
    /// When it was first met.
    pub created_at: Timestamp,
}

const COLUMNS: &str = "id, key, source, destination, job, created_at";

fn pair(row: &rusqlite::Row<'_>) -> Result<Pair, StoreError> {
    Ok(Pair {
        id: PairId(row.column(0)?),
        known_as: PairKey {
            key: row.column(1)?,
            source: row.column(2)?,
            destination: row.column(3)?,
            job: row.column(4)?,
        },
        created_at: row.time(5)?,
    })
}

impl Reader<'_> {
    /// The pair with this key.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn find_pair(&self, key: &str) -> Result<Option<Pair>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM pairs WHERE key = ?1");
        self.one("find a pair", &sql, [key], pair)
    }

    /// All pairs, in the order in which they were met.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn pairs(&self) -> Result<Vec<Pair>, StoreError> {
        self.all(
            "list the pairs",
            &format!("SELECT {COLUMNS} FROM pairs ORDER BY id"),
            [],
            pair,
        )
    }
}

impl Tx<'_> {
    /// The number of the pair with this key, which is made if it is new. The labels are brought up to
    /// date.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn pair(&mut self, known_as: &PairKey) -> Result<PairId, StoreError> {
        let PairKey {
            key,
            source,
            destination,
            job,
        } = known_as;
        if let Some(found) = self.find_pair(key)? {
            if found.known_as != *known_as {
                self.run(
                    "relabel a pair",
                    "UPDATE pairs SET source = ?2, destination = ?3, job = ?4 WHERE id = ?1",
                    (found.id.0, source, destination, job),
                )?;
            }
            return Ok(found.id);
        }
        self.run(
            "make a pair",
            "INSERT INTO pairs (key, source, destination, job, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            (key, source, destination, job, self.now().nanoseconds()),
        )?;
        Ok(PairId(self.connection.last_insert_rowid()))
    }

    /// Forgets a pair and all that is known about it, but for runs and custody records.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn forget_pair(&mut self, pair: PairId) -> Result<(), StoreError> {
        for sql in [
            "DELETE FROM synced WHERE pair = ?1",
            "DELETE FROM dirty WHERE pair = ?1",
            "DELETE FROM in_flight WHERE pair = ?1",
            "DELETE FROM intents WHERE pair = ?1",
            "DELETE FROM uploads WHERE pair = ?1",
            "DELETE FROM holds WHERE pair = ?1",
            "DELETE FROM roots WHERE pair = ?1",
            "DELETE FROM batch_files WHERE pair = ?1",
            "DELETE FROM batches WHERE pair = ?1",
            "DELETE FROM pairs WHERE id = ?1",
        ] {
            self.run("forget a pair", sql, [pair.0])?;
        }
        Ok(())
    }
}
