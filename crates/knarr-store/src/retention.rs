//! Forgetting what is old: custody records, runs, events.
//!
//! Constraints:
//!
//! * One transaction takes at most [`BATCH`] rows, so that nobody waits long for it.
//! * The chain of custody stays a chain: its oldest records go, never one from the middle. In the transaction
//!   in which they go, a *checkpoint* is appended: a record with the action `pruned` that has the number of
//!   the last one that went as its size, and that one's hash as its hash. The record behind it carries on
//!   from that hash, so [`crate::Store::verify_chain`] goes on from there; a base that no checkpoint of the
//!   chain tells of is found.
//! * What a job still needs to know, that it delivered the version of a file that is at its source, is
//!   carried over: the record is appended once more, with a word on where it comes from, before it goes.
//! * The newest run of each job stays.

use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::{ContentHash, RelPath, Timestamp};

use crate::chain::ChainHead;
use crate::codec::Malformed;
use crate::custody::{COLUMNS, ChainedRecord, chained_record, split};
use crate::error::StoreError;
use crate::pairs::Pair;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// How many rows go in one transaction at most.
pub const BATCH: usize = 1_000;
/// Who decided it, in checkpoints and in records that were carried over.
pub const DECIDED_BY: &str = "retention";

/// Where the chain begins now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainBase {
    /// The last record that was pruned; nothing was if its number is 0.
    pub pruned: ChainHead,
    /// The number of the checkpoint that says so.
    pub checkpoint: u64,
    /// When the first record was made that is left, if any was pruned.
    pub kept_since: Option<Timestamp>,
}

/// What one step of pruning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Records that went.
    pub records: u64,
    /// Records that were appended once more, as they are still needed.
    pub carried: u64,
}

impl Reader<'_> {
    /// Where the chain begins now.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn chain_base(&self) -> Result<ChainBase, StoreError> {
        let broken = || StoreError::damaged("the beginning of the chain", Malformed::Short);
        let base = self.one(
            "read the beginning of the chain",
            "SELECT count, hash, checkpoint, kept_since FROM custody_base",
            [],
            |row| {
                let hash: [u8; 32] = row.blob(1)?.try_into().map_err(|_| broken())?;
                Ok(ChainBase {
                    pruned: ChainHead {
                        count: row.number(0)?,
                        hash: ContentHash::from_bytes(hash),
                    },
                    checkpoint: row.number(2)?,
                    kept_since: row.optional_time(3)?,
                })
            },
        )?;
        base.ok_or_else(broken)
    }

    /// The records that may go, the oldest first, at most [`BATCH`]: all those before the first that was
    /// made at `horizon` or later.
    fn oldest(
        &self,
        base: &ChainBase,
        horizon: Timestamp,
    ) -> Result<Vec<ChainedRecord>, StoreError> {
        let operation = "look for old custody records";
        let sql = format!(
            "SELECT {COLUMNS} FROM custody WHERE seq > ?1 AND seq < \
             coalesce((SELECT min(seq) FROM custody WHERE at >= ?2), 9223372036854775807) \
             ORDER BY seq LIMIT ?3"
        );
        let (from, limit) = (base.pruned.count.cast_signed(), BATCH);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all(
            operation,
            &sql,
            (from, horizon.nanoseconds(), limit),
            chained_record,
        )
    }

    /// Whether a job still has to know of this delivery: it is the last thing that is known of the file,
    /// and the file is one that the job has delivered and watches over.
    fn is_needed(&self, pairs: &[Pair], chained: &ChainedRecord) -> Result<bool, StoreError> {
        let record = &chained.record;
        if !matches!(record.action, Action::Created | Action::Updated) {
            return Ok(false);
        }
        let mut in_ledger = false;
        for pair in pairs {
            let known = &pair.known_as;
            if known.job.as_ref() == Some(&record.job)
                && record.source.starts_with(&known.source)
                && self.synced(pair.id, &record.path)?.is_some()
            {
                in_ledger = true;
                break;
            }
        }
        if !in_ledger {
            return Ok(false);
        }
        let (directory, name) = split(&record.path);
        let sql = format!(
            "SELECT {COLUMNS} FROM custody INDEXED BY custody_path \
             WHERE name = ?1 AND directory = ?2 AND seq > ?3 ORDER BY seq LIMIT 16"
        );
        let supersedes = |later: &ChainedRecord| {
            let later = &later.record;
            later.job == record.job
                && later.source == record.source
                && !matches!(later.action, Action::Failed | Action::Acknowledged)
        };
        // As a rule the next one does: a page at a time, however many follow.
        let mut after = chained.seq;
        loop {
            let later = self.all(
                "look for later custody records",
                &sql,
                (name, directory, after.cast_signed()),
                chained_record,
            )?;
            if later.iter().any(supersedes) {
                return Ok(false);
            }
            match later.last() {
                Some(last) => after = last.seq,
                None => return Ok(true),
            }
        }
    }
}

impl Tx<'_> {
    /// Removes the oldest custody records that were made before `horizon`, at most [`BATCH`], and says how
    /// many; call it again until it is none. `horizon` lies in the past: what is carried over is of now.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn prune_custody(&mut self, horizon: Timestamp) -> Result<Pruned, StoreError> {
        let base = self.chain_base()?;
        let old = self.oldest(&base, horizon)?;
        let Some(last) = old.last() else {
            return Ok(Pruned::default());
        };
        let upto = ChainHead {
            count: last.seq,
            hash: last.hash,
        };
        let (pairs, now) = (self.pairs()?, self.now());
        let mut appended = Vec::new();
        for chained in &old {
            if self.is_needed(&pairs, chained)? {
                appended.push(carried(chained, now));
            }
        }
        let pruned = Pruned {
            records: old.len() as u64,
            carried: appended.len() as u64,
        };
        appended.push(checkpoint(&base, &upto, pruned, now));
        let head = self.append_custody(&appended)?;
        let operation = "prune the custody record";
        self.run(
            operation,
            "UPDATE custody_base SET count = ?1, hash = ?2, checkpoint = ?3, \
             kept_since = (SELECT at FROM custody WHERE seq = ?1 + 1)",
            (
                upto.count.cast_signed(),
                upto.hash.as_bytes().as_slice(),
                head.count.cast_signed(),
            ),
        )?;
        self.run(
            operation,
            "DELETE FROM custody WHERE seq <= ?1",
            [upto.count.cast_signed()],
        )?;
        Ok(pruned)
    }

    /// Removes runs that ended before `horizon`, at most [`BATCH`], but for the newest of each job. Says how
    /// many; call it again until it is none.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn prune_runs(&mut self, horizon: Timestamp) -> Result<u64, StoreError> {
        let limit = i64::try_from(BATCH).unwrap_or(i64::MAX);
        self.run(
            "prune the runs",
            "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE finished_at < ?1 \
             AND state <> 'running' AND id NOT IN (SELECT max(id) FROM runs GROUP BY job) \
             ORDER BY id LIMIT ?2)",
            (horizon.nanoseconds(), limit),
        )
    }

    /// Removes events that were written before `horizon`, whoever has not taken them yet; at most
    /// [`BATCH`]. Says how many; call it again until it is none.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn prune_events(&mut self, horizon: Timestamp) -> Result<u64, StoreError> {
        let limit = i64::try_from(BATCH).unwrap_or(i64::MAX);
        self.run(
            "prune the events",
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ?1 \
             ORDER BY id LIMIT ?2)",
            (horizon.nanoseconds(), limit),
        )
    }
}

/// A record that goes and is still needed, as it is appended once more.
fn carried(chained: &ChainedRecord, now: Timestamp) -> CustodyRecord {
    let mut record = chained.record.clone();
    let said = record.message.take().map(|said| format!("; {said}"));
    // Of one that was carried over before, the first time counts.
    let said = match said {
        Some(said) if record.decided_by == DECIDED_BY => said.trim_start_matches("; ").to_owned(),
        said => format!(
            "carried over: it was recorded at {} as no. {}{}",
            record.at,
            chained.seq,
            said.unwrap_or_default()
        ),
    };
    record.message = Some(said);
    DECIDED_BY.clone_into(&mut record.decided_by);
    record.at = now;
    record
}

fn checkpoint(base: &ChainBase, upto: &ChainHead, pruned: Pruned, now: Timestamp) -> CustodyRecord {
    let (from, to) = (base.pruned.count + 1, upto.count);
    CustodyRecord {
        at: now,
        run: 0,
        job: String::new(),
        // About the whole record; a record has a path.
        path: RelPath::from_name(b"*").expect("a star is a name"),
        action: Action::Pruned,
        source: String::new(),
        destination: String::new(),
        size: upto.count,
        mtime: None,
        source_hash: Some(upto.hash),
        evidence: Evidence::None,
        seen_at: None,
        complete_because: None,
        steps: Vec::new(),
        attempt: 1,
        moved_bytes: 0,
        duration_microseconds: 0,
        message: Some(format!(
            "records no. {from} to {to} were pruned, {} carried over; the chain goes on from {to}:{}",
            pruned.carried, upto.hash
        )),
        decided_by: DECIDED_BY.to_owned(),
    }
}
