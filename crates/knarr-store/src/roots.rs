//! What the roots of a pair looked like, so that another file system mounted in their place, or none, is
//! noticed before its emptiness is taken for deletions.

use knarr_core::Timestamp;

use crate::error::StoreError;
use crate::pairs::PairId;
use crate::read::{Columns as _, Reader};
use crate::synced::Side;
use crate::transaction::Tx;

/// What a root looked like last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRoot {
    /// What identifies it, as its backend writes that.
    pub identity: String,
    /// The content of the marker in it, if there is one.
    pub marker: Option<String>,
    /// When this was noted.
    pub seen_at: Timestamp,
}

pub(crate) const fn side_code(side: Side) -> u8 {
    match side {
        Side::Source => 0,
        Side::Destination => 1,
    }
}

impl Reader<'_> {
    /// What a root looked like last.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn known_root(&self, pair: PairId, side: Side) -> Result<Option<KnownRoot>, StoreError> {
        self.one(
            "read what a root looked like",
            "SELECT identity, marker, seen_at FROM roots WHERE pair = ?1 AND side = ?2",
            (pair.0, side_code(side)),
            |row| {
                Ok(KnownRoot {
                    identity: row.column(0)?,
                    marker: row.column(1)?,
                    seen_at: row.time(2)?,
                })
            },
        )
    }
}

impl Tx<'_> {
    /// Notes what a root looks like now.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn set_known_root(
        &mut self,
        pair: PairId,
        side: Side,
        identity: &str,
        marker: Option<&str>,
    ) -> Result<(), StoreError> {
        self.run(
            "note what a root looks like",
            "INSERT OR REPLACE INTO roots (pair, side, identity, marker, seen_at) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (
                pair.0,
                side_code(side),
                identity,
                marker,
                self.now().nanoseconds(),
            ),
        )
        .map(drop)
    }
}
