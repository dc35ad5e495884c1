//! What is being moved right now, for `knarr queue` in another process. Written at most once a second by
//! whoever moves; after a crash it is stale until the pair is taken up again, which clears it.

use knarr_core::{RelPath, Timestamp};

use crate::error::{StoreError, While as _};
use crate::pairs::PairId;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// One file in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The path below the source's root.
    pub path: RelPath,
    /// Bytes that arrived.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// When the attempt began.
    pub started_at: Timestamp,
}

impl Reader<'_> {
    /// What is in flight, in the order of paths.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn in_flight(&self, pair: PairId) -> Result<Vec<InFlight>, StoreError> {
        self.all(
            "read what is in flight",
            "SELECT path, bytes_done, bytes_total, started_at FROM in_flight \
             WHERE pair = ?1 ORDER BY path",
            [pair.0],
            |row| {
                Ok(InFlight {
                    path: row.path(0)?,
                    done_bytes: row.number(1)?,
                    total_bytes: row.number(2)?,
                    started_at: row.time(3)?,
                })
            },
        )
    }
}

impl Tx<'_> {
    /// Says what is in flight of a pair now, and that nothing else is. Nothing, at the start.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn set_in_flight(&mut self, pair: PairId, files: &[InFlight]) -> Result<(), StoreError> {
        let operation = "note what is in flight";
        self.run(operation, "DELETE FROM in_flight WHERE pair = ?1", [pair.0])?;
        let mut insert = self.prepare(
            operation,
            "INSERT OR REPLACE INTO in_flight (pair, path, bytes_done, bytes_total, started_at) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for file in files {
            insert
                .execute((
                    pair.0,
                    file.path.as_bytes(),
                    file.done_bytes.cast_signed(),
                    file.total_bytes.cast_signed(),
                    file.started_at.nanoseconds(),
                ))
                .trying(operation)?;
        }
        Ok(())
    }
}
