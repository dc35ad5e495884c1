//! Delivers one dirty path: decide, move, commit, record, and what follows.
//!
//! The destination is not listed; it is known through the synced tree. What the job delivered itself
//! may be replaced by its next version. What it finds there and did not deliver is a matter of
//! `if_exists`, asked when the commit refuses to replace it.

use std::sync::Arc;

use futures::future::join_all;
use knarr_core::entry::{Entry, Kind};
use knarr_core::plan::{Side, SymlinkPolicy};
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::tree::Synced;
use knarr_core::{RelPath, Timestamp};
use knarr_remote::Reader;
use knarr_remote::local::Looked;
use knarr_store::dirty::{Dirty, Seen};

use crate::batch::Admission;
use crate::context::{Context, Tally};
use crate::duplicates::Checked;
use crate::error::EngineError;
use crate::journal::Change;
use crate::node::finish::Standing;
use crate::node::observe::{AT_REST, Mark};
use crate::node::place::Decided;
use crate::node::spec::{Looks, WatchJob};
use crate::node::write::Delivered;
use crate::observer::{Event, Trouble};
use crate::put::{self, PutError};
use crate::transfer::{Opened, TransferError};

/// What became of a dirty path.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// In order, and recorded.
    Settled,
    /// It needs a look at everything below it first.
    Rescan(RelPath),
    /// Not complete yet: look again after the job's settle time.
    Unsettled,
    /// A deletion that the brake has to let through.
    Braked,
    /// It cannot be handled, and stays as it is until a person or another version acts.
    Park(String),
    /// It did not work.
    Failed(PutError),
}

/// Why a source stays that was delivered before.
pub(crate) const CHANGED_THERE: &str = "what was delivered was changed at the destination, so the source stays: remove \
                                        it, or write it anew to have it delivered again";

/// Whether the brake lets deletions through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletions {
    /// Few enough, or approved.
    Allowed,
    /// Held until a person approves.
    Held,
}

/// A dirty path, and what is known of it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) dirty: Dirty,
    /// What was agreed on last.
    synced: Option<Synced>,
    /// What lies there now.
    looked: Looked,
}

/// One lane of a job: one watched directory.
#[derive(Debug)]
pub(crate) struct Delivering {
    pub(crate) job: Arc<WatchJob>,
    pub(crate) context: Arc<Context>,
}

impl Delivering {
    /// Looks at what lies at each of the paths now.
    pub(crate) async fn look(&self, ready: Vec<(Dirty, Option<Synced>)>) -> Vec<Found> {
        let paths: Vec<_> = ready.iter().map(|(dirty, _)| dirty.path.clone()).collect();
        let source = &self.context.source;
        let looked = match source.as_local() {
            Some(local) => local.look_each(&paths).await,
            None => {
                let look = async |path: &RelPath| Looked {
                    now: source.stat(path).await,
                    reader: None,
                };
                join_all(paths.iter().map(look)).await
            }
        };
        let found = |((dirty, synced), looked)| Found {
            dirty,
            synced,
            looked,
        };
        ready.into_iter().zip(looked).map(found).collect()
    }

    /// Does what a path needs. Returns it with what became of it.
    ///
    /// # Errors
    /// Only if the state could not be recorded.
    pub(crate) async fn deliver(
        &self,
        found: Found,
        deletions: Deletions,
    ) -> (Dirty, Result<Outcome, EngineError>) {
        let Found {
            dirty,
            synced,
            looked,
        } = found;
        let result = self.attempt(&dirty, synced, looked, deletions).await;
        let outcome = match result {
            Ok(outcome) => Ok(outcome),
            Err(PutError::Engine(error)) => Err(error),
            Err(error) => Ok(Outcome::Failed(error)),
        };
        (dirty, outcome)
    }

    async fn attempt(
        &self,
        dirty: &Dirty,
        synced: Option<Synced>,
        looked: Looked,
        deletions: Deletions,
    ) -> Result<Outcome, PutError> {
        let path = &dirty.path;
        let Looked { now, reader } = looked;
        let at_source = |error| PutError::Transfer(TransferError::Source(error));
        let now = now.map_err(at_source)?;
        let entry = now.filter(|entry| is_meant(&self.job, entry, dirty.kind));
        if let Some(from) = &dirty.renamed_from {
            if let Some(entry) = &entry
                && let Some(outcome) = self.renamed(from, entry, dirty).await?
            {
                return Ok(outcome);
            }
            // It becomes a new path and one that is gone.
            let marked = self.context.journal.mark_gone(from, dirty.kind).await;
            marked.map_err(PutError::Engine)?;
        }
        let Some(entry) = entry else {
            let is_batched = self.context.batches.get().is_some();
            if is_batched && synced.is_none() && dirty.observed.is_some() {
                let message = "it went away from the source before it was taken";
                return Ok(Outcome::Park(message.to_owned()));
            }
            return self.gone(dirty, synced, deletions).await;
        };
        match entry.kind {
            // Somebody saw it come or go; what is in it now, only a look can tell.
            Kind::Directory => Ok(Outcome::Rescan(path.clone())),
            Kind::Special => Ok(Outcome::Park(
                "a FIFO, socket or device is not copied".to_owned(),
            )),
            Kind::File | Kind::Symlink => self.put(dirty, entry, synced, reader).await,
        }
    }

    async fn put(
        &self,
        dirty: &Dirty,
        entry: Entry,
        synced: Option<Synced>,
        opened: Option<Box<dyn Reader>>,
    ) -> Result<Outcome, PutError> {
        if let Some(outcome) = self
            .needs_no_delivery(dirty, &entry, synced.as_ref())
            .await?
        {
            return Ok(outcome);
        }
        let batches = self.context.batches.get();
        match batches.map_or(Admission::Staged, |batches| batches.admit(&entry)) {
            Admission::Staged => {}
            Admission::Left => return self.settle(dirty, Vec::new()).await,
            Admission::Wrong(reason) => return Ok(Outcome::Park(reason)),
        }
        // What could not be told afterwards is not begun.
        self.owed(&entry, None)?;
        let _claim = match self.check_content(&entry).await? {
            Checked::New(claim) => claim,
            Checked::Duplicate(known, hash) => {
                return self.skip_duplicate(dirty, &entry, *known, hash).await;
            }
        };
        let started = self.context.clock.now();
        self.context.observer.event(&Event::Started {
            path: &entry.path,
            size: entry.size,
        });
        let mut decided = Decided {
            synced: match batches {
                Some(_) => self.begin_staging(&entry, synced).await?,
                None => synced,
            },
            // Where a file waits for the others, no commit tells what has its name.
            look: batches.is_some(),
            left: None,
            same: None,
            replaced: false,
            sha256: None,
            opened: Opened::new(opened),
            reused: None,
        };
        let delivered = match entry.kind {
            Kind::Symlink => self.put_link(&entry, &mut decided).await?,
            _ if self.job.steps.unpacks() => {
                let record = self.custody(Action::Created, &entry, dirty);
                Some(self.unpack(&entry, &mut decided, &record).await?)
            }
            _ => self.put_file(&entry, &mut decided).await?,
        };
        match (delivered, decided.same.take(), batches) {
            (Some(delivered), _, Some(batches)) => {
                let staged =
                    self.record_staged(batches, dirty, &entry, delivered, &decided, started);
                staged.await
            }
            (Some(delivered), _, None) => {
                let delivered = self.record_delivery(dirty, &entry, delivered, &decided, started);
                delivered.await
            }
            (None, Some(there), Some(batches)) => {
                let sha256 = decided.sha256;
                self.record_there(batches, dirty, &entry, there, sha256)
                    .await
            }
            (None, Some(there), None) => {
                let sha256 = decided.sha256.as_deref();
                self.adopt(dirty, &entry, &there, sha256).await
            }
            (None, None, _) => {
                let reason = decided.left.unwrap_or_else(|| "it was left".to_owned());
                Ok(Outcome::Park(reason))
            }
        }
    }

    /// What becomes of a path that is not to be delivered now: it was before, or is not meant, or moves.
    async fn needs_no_delivery(
        &self,
        dirty: &Dirty,
        entry: &Entry,
        synced: Option<&Synced>,
    ) -> Result<Option<Outcome>, PutError> {
        if self.still_moves(dirty, entry).await? {
            return Ok(Some(Outcome::Unsettled));
        }
        let delivered = synced.filter(|synced| {
            synced.source.still_describes(entry) && synced.source.identity == entry.identity
        });
        if let Some(synced) = delivered {
            if !self.context.removes_source() {
                return self.settle(dirty, Vec::new()).await.map(Some);
            }
            // What counts as delivered because of another file stands by that one's delivery.
            if let Checked::Duplicate(known, hash) = self.check_content(entry).await? {
                let skipped = self.skip_duplicate(dirty, entry, *known, hash);
                return skipped.await.map(Some);
            }
            match self.standing(entry, synced).await? {
                Standing::Proven => return self.finish(dirty, entry).await.map(Some),
                Standing::Changed => {
                    return Ok(Some(Outcome::Park(CHANGED_THERE.to_owned())));
                }
                Standing::Unproven => {}
            }
        }
        let now = self.context.clock.now();
        if !self.job.filter.takes_entry(entry, now) {
            return Ok(Some(match (self.job.filter.min_age, self.job.looks) {
                // It gets older by itself.
                (Some(_), Looks::Always) => Outcome::Unsettled,
                // The next run looks again.
                _ => self.settle(dirty, Vec::new()).await?,
            }));
        }
        if entry.kind == Kind::Symlink && self.job.symlinks != SymlinkPolicy::Keep {
            return self.settle(dirty, Vec::new()).await.map(Some);
        }
        Ok(None)
    }

    /// Records what is at the destination now, then takes care of the source (K3, K4: in this order).
    async fn record_delivery(
        &self,
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
        let action = main.action;
        let mut record = self.custody(action, entry, dirty);
        record.duration_microseconds = put::microseconds(self.context.clock.now(), started);
        record.source_hash = source_hash;
        record.steps = steps;
        let mut changes: Vec<Change> = others
            .iter()
            .map(|other| Change::Custody(Box::new(self.output_record(&record, other))))
            .collect();
        let mut record = self.output_record(&record, &main);
        record.moved_bytes = sent;
        Tally::add(&self.context.tally.sent, sent);
        let synced = put::synced(
            Side::Destination,
            entry,
            &main.committed.entry,
            &main.path,
            source_hash,
        );
        changes.extend([
            Change::Synced(Box::new(synced)),
            Change::Custody(Box::new(record)),
            Change::ClearCheckpoint {
                to: Side::Destination,
                path: main.path.clone(),
            },
        ]);
        changes.extend(self.owed(entry, decided.sha256.as_deref())?);
        changes.extend(
            self.remember_content(entry, &main.committed.entry, source_hash)
                .await?,
        );
        let outcome = self.settle(dirty, changes).await?;
        self.context.acknowledging.hurry();
        put::delivered(&self.context, entry, action);
        if self.context.removes_source() {
            crate::dispose::dispose(&self.context, entry)
                .await
                .map_err(PutError::Engine)?;
        }
        Ok(outcome)
    }

    /// Records what an earlier attempt delivered and could not record.
    async fn adopt(
        &self,
        dirty: &Dirty,
        entry: &Entry,
        there: &Entry,
        sha256: Option<&str>,
    ) -> Result<Outcome, PutError> {
        let mut record = self.custody(Action::Adopted, entry, dirty);
        record.destination = self.shown(&there.path);
        let synced = put::synced(Side::Destination, entry, there, &there.path, entry.hash);
        let mut changes = vec![
            Change::Synced(Box::new(synced)),
            Change::Custody(Box::new(record)),
        ];
        changes.extend(self.owed(entry, sha256)?);
        changes.extend(self.remember_content(entry, there, entry.hash).await?);
        let outcome = self.settle(dirty, changes).await?;
        self.context.acknowledging.hurry();
        Tally::add(&self.context.tally.adopted, 1);
        let (path, action) = (&dirty.path, Action::Adopted);
        self.context.observer.event(&Event::Finished {
            path,
            action,
            bytes: entry.size,
        });
        if self.context.removes_source() {
            crate::dispose::dispose(&self.context, entry)
                .await
                .map_err(PutError::Engine)?;
        }
        Ok(outcome)
    }

    /// What whoever the file came from is to be told of its delivery.
    fn owed(&self, entry: &Entry, sha256: Option<&str>) -> Result<Option<Change>, PutError> {
        let owed = self.context.acknowledging.owe(&self.context, entry, sha256);
        owed.map_err(|error| {
            let error = crate::error::chain(&error);
            let message = format!("its delivery could not be acknowledged: {error}");
            PutError::Transfer(TransferError::Left(message))
        })
    }

    /// Where only rest says that a file is complete, it must be what was observed when the rest began.
    async fn still_moves(&self, dirty: &Dirty, entry: &Entry) -> Result<bool, PutError> {
        let by_rest = dirty
            .complete_because
            .as_ref()
            .is_some_and(|because| because.starts_with(AT_REST));
        let moved = dirty
            .observed
            .as_ref()
            .is_some_and(|observed| !observed.still_describes(entry));
        // A run does not wait for who goes on writing: the next one looks again.
        if by_rest && moved && self.job.looks == Looks::Always {
            let mark = Mark {
                path: dirty.path.clone(),
                kind: entry.kind,
                observed: Some(entry.fingerprint()),
                ready_at: self.context.clock.now().after(self.job.settle),
                because: dirty.complete_because.clone(),
                renamed_from: None,
            };
            let marked = self.context.journal.mark(vec![mark], Seen::Scan).await;
            marked.map_err(|error| PutError::Engine(EngineError::Store(error)))?;
        }
        Ok(by_rest && moved)
    }

    pub(crate) async fn settle(
        &self,
        dirty: &Dirty,
        mut changes: Vec<Change>,
    ) -> Result<Outcome, PutError> {
        changes.push(Change::Settle {
            path: dirty.path.clone(),
            generation: dirty.generation,
        });
        self.context
            .journal
            .record(changes)
            .await
            .map_err(PutError::Engine)?;
        Ok(Outcome::Settled)
    }

    pub(crate) fn custody(&self, action: Action, entry: &Entry, dirty: &Dirty) -> CustodyRecord {
        let mut record = self
            .context
            .journal
            .custody(action, entry, Side::Destination);
        record.seen_at = Some(dirty.first_seen);
        record.complete_because.clone_from(&dirty.complete_because);
        record.attempt = dirty.attempts + 1;
        record
    }

    pub(crate) fn shown(&self, path: &RelPath) -> String {
        self.context.journal.shown_at(Side::Destination, path)
    }

    /// Records an attempt that failed.
    ///
    /// # Errors
    /// If the state could not be recorded.
    pub(crate) async fn record_failure(
        &self,
        dirty: &Dirty,
        action: Action,
        message: &str,
    ) -> Result<(), EngineError> {
        let mut entry = Entry::file(
            dirty.path.clone(),
            dirty.observed.as_ref().map_or(0, |o| o.size),
        );
        entry.kind = dirty.kind;
        entry.mtime = dirty.observed.as_ref().and_then(|observed| observed.mtime);
        let mut record = self.custody(action, &entry, dirty);
        if !self.job.mirrors_paths() {
            // Its name there is known when the steps have seen its content, and it was not delivered.
            let root = self.context.journal.shown_root(Side::Destination);
            root.clone_into(&mut record.destination);
        }
        record.message = Some(message.to_owned());
        record.evidence = Evidence::None;
        self.context
            .journal
            .record(vec![Change::Custody(Box::new(record))])
            .await?;
        if action == Action::Parked {
            Tally::add(&self.context.tally.failed, 1);
        }
        let kind = match action {
            Action::Problem | Action::Parked => Trouble::Problem,
            _ => Trouble::Error,
        };
        self.context.trouble(Some(&dirty.path), kind, message);
        Ok(())
    }
}

/// Whether what is there now is what the observation was about.
fn is_meant(job: &WatchJob, entry: &Entry, kind: Kind) -> bool {
    let same_family = (entry.kind == Kind::Directory) == (kind == Kind::Directory);
    same_family && job.takes_path_from_root(&entry.path, entry.kind)
}
