//! Checking and exporting the chain of custody. What the chain is and what it proves: [`crate::custody`].
//!
//! Memory: one page of [`PAGE_ROWS`] records at a time. Records that are appended meanwhile are left
//! for the next time.

use std::collections::VecDeque;

use knarr_core::ContentHash;
use knarr_core::record::Action;

use crate::Store;
use crate::custody::{COLUMNS, ChainedRecord, chained_record, with_link};
use crate::error::{StoreError, While as _};
use crate::read::{Columns as _, PAGE_ROWS, Reader};
use crate::retention::ChainBase;

/// An end of the chain, now or as it once was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChainHead {
    /// How many records it has.
    pub count: u64,
    /// The hash of the last one; 32 zero bytes if there is none.
    pub hash: ContentHash,
}

impl ChainHead {
    /// Where every chain begins.
    pub const EMPTY: Self = Self {
        count: 0,
        hash: ContentHash::from_bytes([0; 32]),
    };
}

/// What [`Store::verify_chain`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainVerdict {
    /// Every record is as it was written, from the first to this end.
    Intact(ChainHead),
    /// The record with this number is the first that is not as it was written.
    Broken {
        /// Its number.
        seq: u64,
        /// What is wrong.
        defect: ChainDefect,
    },
}

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainDefect {
    /// The record was changed, or one before it was exchanged.
    #[error("it was changed, or put there later")]
    Changed,
    /// The record was removed.
    #[error("it was removed")]
    Removed,
    /// The record cannot be read at all.
    #[error("it cannot be read")]
    Unreadable,
    /// The record was put behind the end without being part of the chain.
    #[error("it was put behind the end of the chain")]
    Added,
    /// The chain does not say that what is missing at its beginning was pruned.
    #[error("what comes after it was said to be pruned, but no checkpoint of the chain says so")]
    Checkpoint,
    /// The end that was noted lies in what was pruned since.
    #[error("it was pruned since its end was noted: note a newer one")]
    Pruned,
    /// The chain was made anew since its end was noted elsewhere.
    #[error("the chain is not the one whose end was noted")]
    Rewritten,
}

/// Whether a check of the chain goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Going {
    /// It does.
    On,
    /// Nobody waits for it any more.
    Away,
}

/// What [`Store::check_chain`] found, and from where on it looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Where the chain begins.
    pub base: ChainBase,
    /// What it is like from there on.
    pub verdict: ChainVerdict,
}

/// One walk over the chain, as it was when that began.
struct Check<'n> {
    head: ChainHead,
    last: u64,
    base: ChainBase,
    noted: Option<&'n ChainHead>,
}

impl Store {
    /// Checks every record up to the end, from the first or, if older ones were pruned, from the checkpoint
    /// on that says so. With `noted`, an end that was noted elsewhere at some time,
    /// also that the chain still passes through it: that is what finds a chain that was made anew.
    /// About a million records a second; blocks.
    ///
    /// # Errors
    /// If the database cannot be read. A broken chain is no error, but a [`ChainVerdict`].
    pub fn verify_chain(&self, noted: Option<&ChainHead>) -> Result<ChainVerdict, StoreError> {
        let checked = self.check_chain(noted, &mut |_walked| Going::On)?;
        Ok(checked.expect("nobody gave it up").verdict)
    }

    /// The same, and says behind each page which record was checked last, and is asked whether to go on:
    /// nothing comes of a check that is given up. If records are pruned meanwhile, it begins anew.
    ///
    /// # Errors
    /// As [`Store::verify_chain`].
    pub fn check_chain(
        &self,
        noted: Option<&ChainHead>,
        told: &mut dyn FnMut(u64) -> Going,
    ) -> Result<Option<Checked>, StoreError> {
        loop {
            let (head, last, base) = self.read(|reader| {
                let last = reader.one(
                    "read the end of the chain",
                    "SELECT coalesce(max(seq), 0) FROM custody",
                    [],
                    |row| row.number(0),
                )?;
                Ok((
                    reader.chain_head()?,
                    last.unwrap_or(0),
                    reader.chain_base()?,
                ))
            })?;
            let check = Check {
                head,
                last,
                base,
                noted,
            };
            let Some(verdict) = self.check_once(&check, told)? else {
                return Ok(None);
            };
            // What is missing may have been pruned since the check began.
            let is_pruned = || Ok(self.read(|reader| reader.chain_base())? != base);
            if matches!(verdict, ChainVerdict::Broken { .. }) && is_pruned()? {
                continue;
            }
            return Ok(Some(Checked { base, verdict }));
        }
    }

    fn check_once(
        &self,
        check: &Check<'_>,
        told: &mut dyn FnMut(u64) -> Going,
    ) -> Result<Option<ChainVerdict>, StoreError> {
        let Check {
            head,
            last,
            base,
            noted,
        } = check;
        let mut walked = base.pruned;
        let broken = |seq, defect| Ok(Some(ChainVerdict::Broken { seq, defect }));
        if let Some(noted) = noted.filter(|noted| 0 < noted.count && noted.count < walked.count) {
            return broken(noted.count, ChainDefect::Pruned);
        }
        let rewritten = |walked: &ChainHead| {
            noted.is_some_and(|noted| noted.count == walked.count && noted.hash != walked.hash)
        };
        if rewritten(&walked) {
            return broken(0, ChainDefect::Rewritten);
        }
        while walked.count < head.count {
            let before = walked.count;
            let defect =
                self.read(|reader| walk_page(reader, &mut walked, head.count, &rewritten))?;
            if let Some(defect) = defect {
                let place = if defect == ChainDefect::Rewritten {
                    0
                } else {
                    1
                };
                return broken(walked.count + place, defect);
            }
            if walked.count == before {
                return broken(walked.count + 1, ChainDefect::Removed);
            }
            if told(walked.count) == Going::Away {
                return Ok(None);
            }
        }
        if walked.hash != head.hash {
            return broken(walked.count, ChainDefect::Changed);
        }
        if base.pruned.count > 0 && !self.read(|reader| is_checkpoint(reader, base))? {
            return broken(base.pruned.count, ChainDefect::Checkpoint);
        }
        if *last > head.count {
            return broken(head.count + 1, ChainDefect::Added);
        }
        if noted.is_some_and(|noted| noted.count > walked.count) {
            return broken(walked.count + 1, ChainDefect::Removed);
        }
        Ok(Some(ChainVerdict::Intact(walked)))
    }

    /// The records from number `from` on (from the first: 1), in order. Blocks when it needs more.
    #[must_use]
    pub fn custody_cursor(&self, from: u64) -> CustodyCursor {
        CustodyCursor {
            store: self.clone(),
            after: from.saturating_sub(1),
            page: VecDeque::new(),
            finished: false,
        }
    }
}

/// Whether the chain itself says that it was pruned like this.
fn is_checkpoint(reader: &Reader<'_>, base: &ChainBase) -> Result<bool, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM custody WHERE seq = ?1");
    let number = base.checkpoint.cast_signed();
    let found = reader.one("read a checkpoint", &sql, [number], chained_record)?;
    Ok(found.is_some_and(|found| {
        let record = &found.record;
        record.action == Action::Pruned
            && record.size == base.pruned.count
            && record.source_hash == Some(base.pruned.hash)
    }))
}

/// Checks the next page behind `walked` and moves it on, up to the record before the first broken one.
fn walk_page(
    reader: &Reader<'_>,
    walked: &mut ChainHead,
    end: u64,
    rewritten: &impl Fn(&ChainHead) -> bool,
) -> Result<Option<ChainDefect>, StoreError> {
    let operation = "check the chain";
    let mut statement = reader.prepare(
        operation,
        &format!(
            "SELECT {COLUMNS} FROM custody WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3"
        ),
    )?;
    let page = i64::try_from(PAGE_ROWS).unwrap_or(i64::MAX);
    let mut rows = statement
        .query((walked.count.cast_signed(), end.cast_signed(), page))
        .trying(operation)?;
    let mut buffer = Vec::new();
    while let Some(row) = rows.next().trying(operation)? {
        if row.number(0)? != walked.count + 1 {
            return Ok(Some(ChainDefect::Removed));
        }
        let hashes = with_link(row, |link, stored| {
            Ok((link.hash(&walked.hash, &mut buffer), stored))
        });
        match hashes {
            Ok((computed, stored)) if computed == stored => {
                *walked = ChainHead {
                    count: walked.count + 1,
                    hash: computed,
                };
            }
            Ok(_) => return Ok(Some(ChainDefect::Changed)),
            Err(_) => return Ok(Some(ChainDefect::Unreadable)),
        }
        if rewritten(walked) {
            return Ok(Some(ChainDefect::Rewritten));
        }
    }
    Ok(None)
}

/// A walk over the custody records. After an error it ends.
#[derive(Debug)]
pub struct CustodyCursor {
    store: Store,
    after: u64,
    page: VecDeque<ChainedRecord>,
    finished: bool,
}

impl CustodyCursor {
    fn turn_page(&mut self) -> Result<(), StoreError> {
        let after = self.after.cast_signed();
        let limit = i64::try_from(PAGE_ROWS).unwrap_or(i64::MAX);
        let rows = self.store.read(|reader| {
            let sql = format!("SELECT {COLUMNS} FROM custody WHERE seq > ?1 ORDER BY seq LIMIT ?2");
            reader.all(
                "read the custody record",
                &sql,
                (after, limit),
                chained_record,
            )
        })?;
        self.finished = rows.len() < PAGE_ROWS;
        self.after = rows.last().map_or(self.after, |record| record.seq);
        self.page = rows.into();
        Ok(())
    }
}

impl Iterator for CustodyCursor {
    type Item = Result<ChainedRecord, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty()
            && !self.finished
            && let Err(error) = self.turn_page()
        {
            self.finished = true;
            return Some(Err(error));
        }
        self.page.pop_front().map(Ok)
    }
}
