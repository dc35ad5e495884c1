//! Staged files that are not whole yet, at destinations that can be written at an offset.

use knarr_core::entry::Fingerprint;
use knarr_core::{RelPath, Timestamp};
use rusqlite::Row;

use crate::codec::fingerprint_blob;
use crate::error::StoreError;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// A staged file and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// The canonical text of the endpoint, so that only the same place is ever resumed.
    pub endpoint: String,
    /// The final path at the destination.
    pub path: RelPath,
    /// The staged path at the destination.
    pub staged: RelPath,
    /// What the source looked like; if it looks different, the partial file is worthless.
    pub source: Fingerprint,
    /// How many bytes there are in all.
    pub total_bytes: u64,
    /// So many bytes from the start are there for certain.
    pub acknowledged_bytes: u64,
    /// When this was noted; set by the store.
    pub updated_at: Timestamp,
}

const COLUMNS: &str = "endpoint, path, staged, source, total_bytes, acknowledged, updated_at";

fn partial(row: &Row<'_>) -> Result<Partial, StoreError> {
    Ok(Partial {
        endpoint: row.column(0)?,
        path: row.path(1)?,
        staged: row.path(2)?,
        source: row.fingerprint(3)?,
        total_bytes: row.number(4)?,
        acknowledged_bytes: row.number(5)?,
        updated_at: row.time(6)?,
    })
}

impl Reader<'_> {
    /// What is staged for a path of an endpoint.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn partial(&self, endpoint: &str, path: &RelPath) -> Result<Option<Partial>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM partials WHERE endpoint = ?1 AND path = ?2");
        self.one(
            "find a partial file",
            &sql,
            (endpoint, path.as_bytes()),
            partial,
        )
    }

    /// Partial files that nobody went on with since `before`, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn expired_partials(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<Partial>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM partials WHERE updated_at < ?1 ORDER BY updated_at LIMIT ?2"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all(
            "find old partial files",
            &sql,
            (before.nanoseconds(), limit),
            partial,
        )
    }
}

impl Tx<'_> {
    /// Notes how far a staged file is, now.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn upsert_partial(&mut self, partial: &Partial) -> Result<(), StoreError> {
        self.run(
            "note a partial file",
            "INSERT OR REPLACE INTO partials (endpoint, path, staged, source, total_bytes, \
             acknowledged, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (
                &partial.endpoint,
                partial.path.as_bytes(),
                partial.staged.as_bytes(),
                fingerprint_blob(&partial.source),
                partial.total_bytes.cast_signed(),
                partial.acknowledged_bytes.cast_signed(),
                self.now().nanoseconds(),
            ),
        )
        .map(drop)
    }

    /// Forgets a staged file: it was committed or removed.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove_partial(&mut self, endpoint: &str, path: &RelPath) -> Result<(), StoreError> {
        self.run(
            "forget a partial file",
            "DELETE FROM partials WHERE endpoint = ?1 AND path = ?2",
            (endpoint, path.as_bytes()),
        )
        .map(drop)
    }
}
