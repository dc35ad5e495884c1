//! Brings the files of a batch to their hidden names, and notes what is to be recorded.

use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::tree::Synced;
use knarr_core::{ContentHash, Entry, RelPath, Timestamp};
use knarr_remote::{Committed, Replace};
use knarr_store::batches::{Claim, NewBatchFile};
use knarr_store::dirty::Dirty;

use super::item::{Item, NewItem, Replaces, Reused, Role};
use super::{Batches, COPY_LIMIT};
use crate::context::Tally;
use crate::error::EngineError;
use crate::journal::Change;
use crate::node::{Decided, Delivered, Delivering, Landed, Outcome, refused};
use crate::put::{self, PutError};

/// Where a file is written.
pub(crate) struct Written {
    pub(crate) path: RelPath,
    pub(crate) replace: Replace,
    /// It lies there already, complete.
    pub(crate) reused: Option<Reused>,
}

impl Delivering {
    /// Makes room for what is to be staged. Returns what was agreed on last, if it is at the destination still.
    pub(crate) async fn begin_staging(
        &self,
        entry: &Entry,
        synced: Option<Synced>,
    ) -> Result<Option<Synced>, PutError> {
        if !self.job.steps.is_empty() {
            let taken_back = self.context.journal.restage(&entry.path).await;
            taken_back.map_err(PutError::Engine)?;
            if let Some(batches) = self
                .context
                .batches
                .get()
                .filter(|_| self.job.steps.unpacks())
            {
                batches.begin_unpacking(&entry.path);
            }
        }
        let Some(known) = synced else {
            return Ok(None);
        };
        // No commit tells that somebody changed it there.
        let there = self.context.destination.stat(known.at_destination()).await;
        let there = there.map_err(PutError::Remote)?;
        let is_another = there.is_some_and(|there| !known.destination.still_describes(&there));
        Ok((!is_another).then_some(known))
    }

    /// Where what is to be visible at `path` is written: there, or under a hidden name beside it.
    pub(crate) async fn written_at(
        &self,
        entry: &Entry,
        path: RelPath,
        replace: Replace,
    ) -> Result<Written, PutError> {
        let Some(batches) = self.context.batches.get() else {
            return Ok(Written {
                path,
                replace,
                reused: None,
            });
        };
        let journal = &self.context.journal;
        let name = journal.waiting_id(&path).file_name();
        let staged = path.with_name(name.as_bytes());
        let staged = staged.map_err(|error| refused(error.to_string()))?;
        if self.job.steps.is_empty() && self.copies() && entry.size > COPY_LIMIT {
            let message = "an object store copies at most 5 GiB within itself, so longer files cannot be published \
                           together with others";
            return Err(refused(message.to_owned()));
        }
        let earlier = self
            .claim_name(batches, entry, &path, Some(&staged))
            .await?;
        let reused = match earlier {
            Some(item) => self.reusable(batches, entry, &staged, item).await?,
            None => None,
        };
        batches.begin(staged.clone(), path, replace);
        Ok(Written {
            path: staged,
            replace: Replace::Anything,
            reused,
        })
    }

    /// Whether a new name there means a copy.
    fn copies(&self) -> bool {
        let destination = self.context.destination.describe();
        !destination.capabilities.directories
    }

    async fn claim_name(
        &self,
        batches: &Batches,
        entry: &Entry,
        path: &RelPath,
        staged: Option<&RelPath>,
    ) -> Result<Option<Item>, PutError> {
        let Some(group) = batches.group(&entry.path) else {
            let error = EngineError::Internal("a file without a batch was staged");
            return Err(PutError::Engine(error));
        };
        if !batches.is_new_of(&entry.path, path) {
            return Err(refused(format!(
                "two of its files would be published as \"{path}\""
            )));
        }
        let new = NewBatchFile {
            batch: group.id,
            source: entry.path.clone(),
            path: path.clone(),
            staged: staged.cloned(),
            turn: batches.turn(&entry.path),
        };
        let claimed = self.context.journal.claim(new).await;
        match claimed.map_err(PutError::Engine)? {
            Claim::Free { earlier, .. } => Ok(earlier.as_deref().and_then(Item::read)),
            Claim::Taken { by } => Err(refused(format!(
                "\"{by}\" would be published as \"{path}\", too"
            ))),
        }
    }

    /// What an earlier run staged, if it is still what is wanted.
    async fn reusable(
        &self,
        batches: &Batches,
        entry: &Entry,
        staged: &RelPath,
        item: Item,
    ) -> Result<Option<Reused>, PutError> {
        let same_source = item.source.fingerprint().still_describes(entry)
            && item.source.identity == entry.identity;
        let compared = batches.expected(&entry.path).and_then(|(e, _)| e.text());
        // What steps and checks say may be another thing than it was then.
        let same_job = self.job.steps.is_empty()
            && self.job.checks.is_empty()
            && item.record.steps.is_empty()
            && item.compared == compared
            && item.staged.kind == entry.kind;
        if !same_source || !same_job {
            return Ok(None);
        }
        let there = self.context.destination.stat(staged).await;
        let there = there.map_err(PutError::Remote)?;
        let is_it = there.is_some_and(|there| {
            let known = item.staged.fingerprint();
            known.still_describes(&there) && known.identity == there.identity
        });
        Ok(is_it.then_some(Reused(item)))
    }

    /// What was staged by an earlier run, as if it had been delivered now.
    pub(crate) fn delivered_before(
        &self,
        at: RelPath,
        action: Action,
        reused: Reused,
    ) -> Delivered {
        let Reused(item) = reused;
        Delivered {
            source_hash: item.record.source_hash,
            main: Landed {
                path: at,
                committed: Committed {
                    entry: item.staged,
                    evidence: item.record.evidence,
                },
                action,
                hash: item.hash,
            },
            others: Vec::new(),
            sent: 0,
            steps: Vec::new(),
        }
    }

    /// What notes that an output is staged. `shared` is the record of all outputs of a source.
    pub(crate) async fn staged_change(
        &self,
        batches: &Batches,
        entry: &Entry,
        shared: &CustodyRecord,
        landed: Landed,
        role: Role,
        sha256: Option<String>,
    ) -> Result<Change, PutError> {
        let record = self.output_record(shared, &landed);
        let Landed {
            path: lies_at,
            committed,
            action,
            hash,
        } = landed;
        let (path, replaces) = match batches.end(&lies_at) {
            Some((path, replace)) => (path, Replaces::from(replace)),
            None => {
                // It is at its final place already.
                self.claim_name(batches, entry, &lies_at, None).await?;
                (lies_at, Replaces::Anything)
            }
        };
        if self.copies() && action != Action::Adopted && committed.entry.size > COPY_LIMIT {
            let message =
                "it has more than 5 GiB now, which an object store cannot copy within itself";
            return Err(refused(message.to_owned()));
        }
        let expected = batches.expected(&entry.path);
        let item = Item::new(NewItem {
            source: entry.clone(),
            role,
            record: CustodyRecord {
                destination: self.shown(&path),
                ..record
            },
            staged: committed.entry,
            replaces,
            hash,
            compared: expected.and_then(|(expected, _)| expected.text()),
            sha256,
        });
        let item = item.write().map_err(PutError::Engine)?;
        Ok(Change::Staged { path, item })
    }

    /// Notes that a file is staged, with all that the steps made of it.
    pub(crate) async fn record_staged(
        &self,
        batches: &Batches,
        dirty: &Dirty,
        entry: &Entry,
        delivered: Delivered,
        decided: &Decided,
        started: Timestamp,
    ) -> Result<Outcome, PutError> {
        let Delivered {
            main,
            others,
            source_hash,
            sent,
            steps,
        } = delivered;
        let mut record = self.custody(main.action, entry, dirty);
        record.duration_microseconds = put::microseconds(self.context.clock.now(), started);
        record.source_hash = source_hash;
        record.steps = steps;
        let mut changes = Vec::with_capacity(others.len() + 3);
        for other in others {
            let change = self.staged_change(batches, entry, &record, other, Role::Other, None);
            changes.push(change.await?);
        }
        record.moved_bytes = sent;
        changes.push(Change::ClearCheckpoint {
            to: knarr_core::plan::Side::Destination,
            path: main.path.clone(),
        });
        let sha256 = decided.sha256.clone();
        let main = self.staged_change(batches, entry, &record, main, Role::Main, sha256);
        changes.push(main.await?);
        Tally::add(&self.context.tally.sent, sent);
        let settled = self.settle(dirty, changes).await?;
        batches.end_unpacking(&entry.path);
        if let Some(group) = batches.group(&entry.path) {
            group.staged();
        }
        Ok(settled)
    }

    /// Notes that what is at the destination already belongs to the batch.
    pub(crate) async fn record_there(
        &self,
        batches: &Batches,
        dirty: &Dirty,
        entry: &Entry,
        there: Entry,
        sha256: Option<String>,
    ) -> Result<Outcome, PutError> {
        let record = self.custody(Action::Adopted, entry, dirty);
        let landed = Landed::as_is(there, entry.hash);
        let change = self.staged_change(batches, entry, &record, landed, Role::Main, sha256);
        let changes = vec![change.await?];
        let settled = self.settle(dirty, changes).await?;
        if let Some(group) = batches.group(&entry.path) {
            group.staged();
        }
        Ok(settled)
    }

    /// Notes that a file of a batch failed: nothing of that batch is published by this run, and the next
    /// one tries all of it again. Nothing if the file belongs to no batch.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn fail_batch(
        &self,
        dirty: &Dirty,
        reason: &str,
    ) -> Result<Option<()>, EngineError> {
        let batches = self.context.batches.get();
        let Some(group) = batches.and_then(|batches| batches.group(&dirty.path)) else {
            return Ok(None);
        };
        batches
            .into_iter()
            .for_each(|batches| batches.end_unpacking(&dirty.path));
        group.fail(Some(&dirty.path), reason);
        Tally::add(&self.context.tally.failed, 1);
        self.record_failure(dirty, Action::Failed, reason).await?;
        self.context.journal.settle(dirty).await?;
        Ok(Some(()))
    }
}

impl Landed {
    fn as_is(there: Entry, hash: Option<ContentHash>) -> Self {
        Self {
            path: there.path.clone(),
            committed: Committed {
                entry: there,
                evidence: Evidence::None,
            },
            action: Action::Adopted,
            hash,
        }
    }
}
