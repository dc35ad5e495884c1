//! Plans that wait for a person, because they delete too much.
//!
//! An approval is for one plan, named by its digest. If the plan is held again with another digest, the
//! approval is gone: nobody ever approves what they did not see.

use knarr_core::{ContentHash, Timestamp};
use rusqlite::Row;

use crate::codec::Malformed;
use crate::error::StoreError;
use crate::pairs::PairId;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// A plan that is to be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHold {
    /// What kind of guard held it, such as `mass deletion`.
    pub kind: String,
    /// How many files it would delete.
    pub deletes: u64,
    /// How many files there are.
    pub total: u64,
    /// Why it is held, for a person.
    pub reason: String,
    /// Names the plan.
    pub digest: ContentHash,
}

/// A held plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The pair.
    pub pair: PairId,
    /// What is held.
    pub held: NewHold,
    /// Since when.
    pub held_at: Timestamp,
    /// Who approved it, and when.
    pub approval: Option<Approval>,
}

/// Somebody's approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// What became of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approved {
    /// The plan is approved.
    Done,
    /// Another plan is held now; look at that one.
    AnotherPlan,
    /// Nothing is held.
    NothingHeld,
}

const COLUMNS: &str =
    "pair, kind, deletes, total, reason, digest, held_at, approved_by, approved_at";

fn hold(row: &Row<'_>) -> Result<Hold, StoreError> {
    let digest: [u8; 32] = row
        .blob(5)?
        .try_into()
        .map_err(|_| StoreError::damaged("a held plan", Malformed::Short))?;
    let by: Option<String> = row.column(7)?;
    Ok(Hold {
        pair: PairId(row.column(0)?),
        held: NewHold {
            kind: row.column(1)?,
            deletes: row.number(2)?,
            total: row.number(3)?,
            reason: row.column(4)?,
            digest: ContentHash::from_bytes(digest),
        },
        held_at: row.time(6)?,
        approval: by
            .zip(row.optional_time(8)?)
            .map(|(by, at)| Approval { by, at }),
    })
}

impl Reader<'_> {
    /// What is held of a pair.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn held(&self, pair: PairId) -> Result<Option<Hold>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM holds WHERE pair = ?1");
        self.one("read a held plan", &sql, [pair.0], hold)
    }

    /// All held plans.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        self.all(
            "list held plans",
            &format!("SELECT {COLUMNS} FROM holds ORDER BY pair"),
            [],
            hold,
        )
    }
}

impl Tx<'_> {
    /// Holds a plan. If the same plan is held already, it stays as it is, with its approval.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn hold(&mut self, pair: PairId, new: &NewHold) -> Result<(), StoreError> {
        if self
            .held(pair)?
            .is_some_and(|hold| hold.held.digest == new.digest)
        {
            return Ok(());
        }
        self.run(
            "hold a plan",
            "INSERT OR REPLACE INTO holds (pair, kind, deletes, total, reason, digest, held_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (
                pair.0,
                &new.kind,
                new.deletes.cast_signed(),
                new.total.cast_signed(),
                &new.reason,
                new.digest.as_bytes().as_slice(),
                self.now().nanoseconds(),
            ),
        )
        .map(drop)
    }

    /// Approves the plan with this digest.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn approve(
        &mut self,
        pair: PairId,
        digest: &ContentHash,
        by: &str,
    ) -> Result<Approved, StoreError> {
        match self.held(pair)? {
            None => return Ok(Approved::NothingHeld),
            Some(hold) if hold.held.digest != *digest => return Ok(Approved::AnotherPlan),
            Some(_) => {}
        }
        self.run(
            "approve a plan",
            "UPDATE holds SET approved_by = ?2, approved_at = ?3 WHERE pair = ?1",
            (pair.0, by, self.now().nanoseconds()),
        )?;
        Ok(Approved::Done)
    }

    /// Holds nothing of a pair any more: the plan was carried out, or is no longer needed.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn clear_hold(&mut self, pair: PairId) -> Result<(), StoreError> {
        self.run(
            "release a held plan",
            "DELETE FROM holds WHERE pair = ?1",
            [pair.0],
        )
        .map(drop)
    }
}
