//! What a run writes down: one transaction for all that belongs together.
//!
//! A transaction returns when it is on the disk. Whoever calls [`Journal::record`] has committed the data
//! before (K3) and calls nothing done before it returns (K1). Transactions of many tasks share flushes.

use std::sync::Arc;

use knarr_core::entry::{Fingerprint, Identity};
use knarr_core::plan::{MassDeletion, Side};
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::run::RunEvent;
use knarr_core::tree::Synced;
use knarr_core::{Clock, Entry, Kind, RelPath, Timestamp};
use knarr_remote::{CheckpointSink, ResumeState, StagedId};
use knarr_store::deletions::Deletion;
use knarr_store::dirty::{Dirty, Generation, Next, Seen};
use knarr_store::endpoints::Reachable;
use knarr_store::in_flight::InFlight;
use knarr_store::runs::{NewRun, RunCounts, RunId};
use knarr_store::synced::Recognise;
use knarr_store::{PairId, Store, StoreError, Tx};

use crate::apply::Applying;
use crate::checkpoint::{self, Checkpoints};
use crate::error::EngineError;
use crate::holds::{held_record, hold_or_approved, new_hold, take_approval};
use crate::node::Mark;
use crate::oneshot::{Environment, Report};
use crate::planning::Planned;

/// How a pair is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PairLabel {
    /// The job, or the command.
    pub(crate) job: String,
    /// The source as a person writes it.
    pub(crate) source: String,
    /// The destination as a person writes it.
    pub(crate) destination: String,
}

impl PairLabel {
    /// The location of one side.
    pub(crate) fn base(&self, side: Side) -> &str {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }
}

/// One change to the state. Those of one call are made together or not at all.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Both sides agree on this.
    Synced(Box<Synced>),
    /// Nothing is agreed on for this path any more.
    Forget { path: RelPath, kind: Kind },
    /// What was agreed on has another name on both sides.
    RenameSynced {
        from: RelPath,
        to: RelPath,
        source: Option<Fingerprint>,
        destination: Option<Fingerprint>,
    },
    /// A line of a path's story.
    Custody(Box<CustodyRecord>),
    /// A path needs no work any more, unless it was observed again.
    Settle {
        path: RelPath,
        generation: Generation,
    },
    /// An upload is through; what was saved to resume it is dropped.
    ClearCheckpoint { to: Side, path: RelPath },
}

/// What one run writes to.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    store: Store,
    pair: PairId,
    run: RunId,
    label: Arc<PairLabel>,
    two_way: bool,
    /// What staged names are derived from: this installation and this pair.
    owner: Arc<[u8]>,
    clock: Arc<dyn Clock>,
}

impl Journal {
    /// Opens the journal of a pair; with `kind` a run begins.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn open(
        environment: &Environment,
        label: &PairLabel,
        kind: Option<&str>,
    ) -> Result<Self, EngineError> {
        let store = environment.store.clone();
        let is_job = kind == Some("watch");
        let scope = if is_job { label.job.as_str() } else { "" };
        let key = knarr_store::pairs::PairKey {
            // One-shot commands share a pair, whatever the verb: what was agreed on is a fact.
            key: [scope, label.source.as_str(), label.destination.as_str()].join("\0"),
            source: label.source.clone(),
            destination: label.destination.clone(),
            job: is_job.then(|| label.job.clone()),
        };
        let owner_key = key.key.clone();
        let (job, kind) = (label.job.clone(), kind.map(str::to_owned));
        let (pair, run) = store
            .transact(move |tx| {
                let pair = tx.pair(&key)?;
                let begin = |kind: String| {
                    let cause = if kind == "watch" { "watch" } else { "command" }.to_owned();
                    NewRun {
                        pair: Some(pair),
                        job,
                        kind,
                        cause,
                    }
                };
                let run = kind.map(begin).map(|new| tx.begin_run(&new)).transpose()?;
                Ok((pair, run))
            })
            .await
            .map_err(EngineError::Store)?;
        let for_node = store.clone();
        let node = tokio::task::spawn_blocking(move || for_node.node_id())
            .await
            .map_err(|_panic| EngineError::Internal("the store panicked"))?
            .map_err(EngineError::Store)?;
        let owner = [node.0.as_slice(), owner_key.as_bytes()].concat().into();
        Ok(Self {
            store,
            pair,
            run: run.unwrap_or(RunId(0)),
            label: Arc::new(label.clone()),
            two_way: label.job == "sync",
            owner,
            clock: Arc::clone(&environment.clock),
        })
    }

    /// The number of the run.
    pub(crate) const fn run(&self) -> u64 {
        self.run.0
    }

    /// The id for staged names; the same for every attempt at the same path.
    pub(crate) fn staged_id(&self, path: &RelPath) -> StagedId {
        StagedId::derive(&self.owner, path)
    }

    /// Makes all of `changes` in one transaction.
    ///
    /// # Errors
    /// If they could not be made durable; then none of them was made.
    pub(crate) async fn record(&self, changes: Vec<Change>) -> Result<(), EngineError> {
        if changes.is_empty() {
            return Ok(());
        }
        let applying = Applying {
            pair: self.pair,
            recognise: if self.two_way {
                Recognise::Both
            } else {
                Recognise::Source
            },
            label: Arc::clone(&self.label),
        };
        self.store
            .transact(move |tx| applying.apply(tx, &changes))
            .await
            .map_err(EngineError::Store)
    }

    /// A custody record about `entry` on its way to side `to`, with what is known without moving it.
    pub(crate) fn custody(&self, action: Action, entry: &Entry, to: Side) -> CustodyRecord {
        CustodyRecord {
            at: self.clock.now(),
            run: self.run.0,
            job: self.label.job.clone(),
            path: entry.path.clone(),
            action,
            source: self.shown_at(to.other(), &entry.path),
            destination: self.shown_at(to, &entry.path),
            size: entry.size,
            mtime: entry.mtime,
            source_hash: entry.hash,
            evidence: Evidence::None,
            seen_at: None,
            complete_because: None,
            steps: Vec::new(),
            attempt: 1,
            moved_bytes: 0,
            duration_microseconds: 0,
            message: None,
            decided_by: "plan".to_owned(),
        }
    }

    /// Where `path` lies on one side, as a person writes it.
    pub(crate) fn shown_at(&self, side: Side, path: &RelPath) -> String {
        let base = self.label.base(side);
        if base.ends_with('/') {
            format!("{base}{path}")
        } else {
            format!("{base}/{path}")
        }
    }

    // The synced tree.

    /// All that was agreed on, in tree order. Blocks.
    pub(crate) fn synced_cursor(
        &self,
    ) -> impl Iterator<Item = Result<Synced, EngineError>> + Send + use<> {
        self.store
            .synced_cursor(self.pair, b"")
            .map(|synced| synced.map_err(EngineError::Store))
    }

    /// All that was agreed on below a directory, or everywhere, in tree order. Blocks.
    pub(crate) fn synced_cursor_below(
        &self,
        below: Option<RelPath>,
    ) -> impl Iterator<Item = Result<Synced, EngineError>> + use<> {
        let start = match &below {
            Some(directory) => directory.order_key(Kind::Directory).into_owned(),
            None => Vec::new(),
        };
        self.store
            .synced_cursor(self.pair, &start)
            .take_while(move |synced| match (synced, &below) {
                (Ok(synced), Some(directory)) => synced.path.is_below(directory),
                _ => true,
            })
            .map(|synced| synced.map_err(EngineError::Store))
    }

    /// What was agreed on for a path.
    pub(crate) async fn synced(&self, path: &RelPath) -> Result<Option<Synced>, EngineError> {
        let (pair, path) = (self.pair, path.clone());
        self.read(move |reader| reader.synced(pair, &path)).await
    }

    /// Whether nothing was ever agreed on.
    pub(crate) async fn is_first_contact(&self) -> Result<bool, EngineError> {
        let pair = self.pair;
        self.read(move |reader| {
            let mut first: Vec<Synced> = Vec::new();
            reader.synced_page(pair, b"", 1, &mut first)?;
            Ok(first.is_empty())
        })
        .await
    }

    /// Whether anything was agreed on below a directory.
    pub(crate) async fn has_synced_below(&self, directory: &RelPath) -> Result<bool, EngineError> {
        let (pair, directory) = (self.pair, directory.clone());
        self.read(move |reader| {
            let mut first: Vec<Synced> = Vec::new();
            reader.synced_page(pair, &directory.order_key(Kind::Directory), 1, &mut first)?;
            Ok(first
                .first()
                .is_some_and(|synced| synced.path.is_below(&directory)))
        })
        .await
    }

    /// What was agreed on for a thing with this identity. Blocks. An unreadable store knows of none.
    pub(crate) fn synced_by_identity_blocking(
        &self,
        side: Side,
        identity: &Identity,
    ) -> Vec<Synced> {
        let side = match side {
            Side::Source => knarr_store::synced::Side::Source,
            Side::Destination => knarr_store::synced::Side::Destination,
        };
        self.store
            .read(|reader| reader.synced_with_identity(self.pair, side, identity, 8))
            .unwrap_or_default()
    }

    // The dirty set.

    /// Marks paths as dirty. Blocks until that is durable.
    pub(crate) fn mark_blocking(&self, marks: Vec<Mark>, seen: Seen) -> Result<(), EngineError> {
        self.mark(marks, seen).wait().map_err(EngineError::Store)
    }

    /// Marks paths as dirty.
    pub(crate) fn mark(&self, marks: Vec<Mark>, seen: Seen) -> knarr_store::Pending<()> {
        let (pair, at) = (self.pair, self.clock.now());
        self.store.transact(move |tx| {
            let marks: Vec<knarr_store::dirty::Mark> = marks
                .into_iter()
                .map(|mark| knarr_store::dirty::Mark {
                    path: mark.path,
                    kind: mark.kind,
                    observed: mark.observed,
                    seen,
                    at,
                    ready_at: mark.ready_at,
                    complete_because: mark.because,
                    renamed_from: mark.renamed_from,
                })
                .collect();
            tx.mark_dirty(pair, &marks)
        })
    }

    /// Paths that may be worked on, behind the order key `after`.
    pub(crate) async fn ready(
        &self,
        now: Timestamp,
        after: Vec<u8>,
        limit: usize,
    ) -> Result<Vec<Dirty>, EngineError> {
        let pair = self.pair;
        self.read(move |reader| reader.ready(pair, now, &after, limit))
            .await
    }

    /// When the next path may be worked on that may not be yet, if any.
    pub(crate) async fn next_ready_after(
        &self,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, EngineError> {
        let pair = self.pair;
        self.read(move |reader| reader.next_ready_after(pair, now))
            .await
    }

    /// Takes a path from the queue, unless it was observed again.
    pub(crate) async fn settle(&self, dirty: &Dirty) -> Result<(), EngineError> {
        self.record(vec![Change::Settle {
            path: dirty.path.clone(),
            generation: dirty.generation,
        }])
        .await
    }

    /// Notes a failed attempt, and what is to happen.
    pub(crate) async fn fail(
        &self,
        dirty: &Dirty,
        error: &str,
        next: Next,
    ) -> Result<(), EngineError> {
        let (pair, path, generation) = (self.pair, dirty.path.clone(), dirty.generation);
        let error = error.to_owned();
        self.store
            .transact(move |tx| tx.fail(pair, &path, generation, &error, &next).map(drop))
            .await
            .map_err(EngineError::Store)
    }

    /// Has a path wait without counting an attempt.
    pub(crate) async fn postpone(
        &self,
        dirty: &Dirty,
        until: Timestamp,
    ) -> Result<(), EngineError> {
        let (pair, path, generation) = (self.pair, dirty.path.clone(), dirty.generation);
        self.store
            .transact(move |tx| tx.postpone(pair, &path, generation, until).map(drop))
            .await
            .map_err(EngineError::Store)
    }

    /// What an earlier attempt to write `path` from `entry` left, and where this one saves how far it is.
    pub(crate) async fn checkpoints(
        &self,
        to: Side,
        path: &RelPath,
        entry: &Entry,
    ) -> Result<(Option<ResumeState>, Arc<dyn CheckpointSink>), EngineError> {
        let sink = Checkpoints {
            store: self.store.clone(),
            pair: self.pair,
            endpoint: self.label.base(to).to_owned(),
            path: path.clone(),
            source: entry.fingerprint(),
            total_bytes: entry.size,
        };
        let found = checkpoint::find(&sink).await.map_err(EngineError::Store)?;
        Ok((found, Arc::new(sink)))
    }

    /// How many paths of the queue are gone at the source, and how many were delivered in all.
    pub(crate) async fn gone_and_known(&self) -> Result<(u64, u64), EngineError> {
        let pair = self.pair;
        self.read(move |reader| Ok((reader.count_gone(pair)?, reader.count_synced(pair)?)))
            .await
    }

    // Removals and holds.

    /// Adds removals to those the run has planned.
    pub(crate) async fn spool(&self, removals: Vec<(Side, Entry)>) -> Result<(), EngineError> {
        let run = self.run;
        self.write(move |tx, _| {
            let deletions: Vec<Deletion> = removals
                .into_iter()
                .map(|(side, entry)| Deletion {
                    side: store_side(side),
                    seen: entry.fingerprint(),
                    path: entry.path,
                })
                .collect();
            tx.spool_deletions(run, &deletions)
        })
        .await
    }

    /// Takes removals off the end of what the run has planned.
    pub(crate) async fn unspool(&self, limit: usize) -> Result<Vec<(Side, Entry)>, EngineError> {
        let run = self.run;
        let deletions = self
            .write(move |tx, _| tx.take_deletions(run, limit))
            .await?;
        let entry = |deletion: Deletion| {
            let Fingerprint {
                kind,
                size,
                mtime,
                identity,
                link_target,
            } = deletion.seen;
            let (path, hash, mode) = (deletion.path, None, None);
            Entry {
                path,
                kind,
                size,
                mtime,
                identity,
                hash,
                mode,
                link_target,
            }
        };
        Ok(deletions
            .into_iter()
            .map(|deletion| (engine_side(deletion.side), entry(deletion)))
            .collect())
    }

    /// Holds the removals of a run until a person approves.
    pub(crate) async fn hold(
        &self,
        removals: u64,
        planned: &Planned,
        reason: MassDeletion,
    ) -> Result<(), EngineError> {
        let counts = &planned.counts;
        let total = counts.destination_entries.max(counts.synced_entries);
        let new = new_hold(removals, total, reason);
        let (run, label, at) = (self.run, Arc::clone(&self.label), self.clock.now());
        self.write(move |tx, pair| {
            // The next run plans anew; what is kept is the fact, for `knarr approve` and `status`.
            tx.clear_deletions(run)?;
            tx.append_custody([&held_record(&label, run.0, at, &new)])?;
            tx.hold(pair, &new)
        })
        .await
    }

    /// Whether a person approved what is held; then it is held no more.
    pub(crate) async fn take_approval(&self) -> Result<Option<String>, EngineError> {
        self.write(take_approval).await
    }

    /// Holds a job's deletions, unless they are approved. Returns whether they are held.
    pub(crate) async fn hold_deletions(&self, gone: u64, known: u64) -> Result<bool, EngineError> {
        let (run, label, at) = (self.run, Arc::clone(&self.label), self.clock.now());
        self.write(move |tx, pair| {
            hold_or_approved(
                tx,
                pair,
                (run, &label, at),
                new_hold(gone, known, MassDeletion::TooMany),
            )
        })
        .await
    }

    /// The same for a scan that found a directory empty or exchanged. Blocks.
    pub(crate) fn hold_unless_approved_blocking(&self, gone: u64) -> Result<bool, EngineError> {
        let (pair, run, label) = (self.pair, self.run, Arc::clone(&self.label));
        let at = self.clock.now();
        let pending = self.store.transact(move |tx| {
            let new = new_hold(gone, gone, MassDeletion::SuspiciouslyEmpty);
            hold_or_approved(tx, pair, (run, &label, at), new)
        });
        pending.wait().map_err(EngineError::Store)
    }

    // Runs and lanes.

    /// Ends the run.
    pub(crate) async fn finish(&self, event: RunEvent, report: &Report) -> Result<(), EngineError> {
        let counts = RunCounts {
            seen: report.source_entries,
            created: report.created,
            updated: report.updated,
            renamed: report.renamed,
            deleted: report.deleted,
            unchanged: report.adopted,
            skipped: report.skipped,
            conflicts: report.conflicts,
            problems: report.problems,
            failed: report.failed,
            moved_bytes: report.sent_bytes,
        };
        let run = self.run;
        self.write(move |tx, _| tx.finish_run(run, event, &counts, None).map(drop))
            .await
    }

    /// Begins to work on a watched directory: what an earlier process had in flight is not any more.
    pub(crate) async fn begin_lane(&self) -> Result<(), EngineError> {
        self.write(|tx, pair| tx.set_in_flight(pair, &[])).await
    }

    /// Ends it.
    pub(crate) async fn finish_lane(&self) -> Result<(), EngineError> {
        let run = self.run;
        self.write(move |tx, pair| {
            tx.set_in_flight(pair, &[])?;
            tx.finish_run(
                run,
                RunEvent::Finished { failed: 0 },
                &RunCounts::default(),
                None,
            )
            .map(drop)
        })
        .await
    }

    /// Notes what is in flight, for `knarr queue`.
    pub(crate) async fn set_in_flight(&self, files: Vec<InFlight>) -> Result<(), EngineError> {
        self.write(move |tx, pair| tx.set_in_flight(pair, &files))
            .await
    }

    /// Whether the root of a side is the one it was; it is noted if it is the first or was approved.
    pub(crate) async fn check_root(&self, side: Side, identity: &str) -> Result<bool, EngineError> {
        let (side, identity) = (store_side(side), identity.to_owned());
        self.write(move |tx, pair| {
            match tx.known_root(pair, side)? {
                Some(known) if known.identity == identity => return Ok(true),
                Some(_) if take_approval(tx, pair)?.is_none() => return Ok(false),
                Some(_) | None => {}
            }
            tx.set_known_root(pair, side, &identity, None)?;
            Ok(true)
        })
        .await
    }

    /// Notes why a directory is polled instead of watched, or that it is watched. Blocks.
    pub(crate) fn set_degraded(&self, reason: Option<&str>) -> Result<(), EngineError> {
        let (name, reason) = (degraded_setting(self.pair), reason.map(str::to_owned));
        let pending = self.store.transact(move |tx| match reason {
            Some(reason) => tx.set_setting(&name, &reason),
            None => tx.remove_setting(&name),
        });
        pending.wait().map_err(EngineError::Store)
    }

    /// Whether a part of the directory is polled.
    pub(crate) async fn is_degraded(&self) -> Result<bool, EngineError> {
        let name = degraded_setting(self.pair);
        self.read(move |reader| Ok(reader.setting(&name)?.is_some()))
            .await
    }

    /// Notes that an endpoint is down.
    pub(crate) async fn endpoint_down(
        &self,
        name: &str,
        reason: &str,
        next_probe: Timestamp,
    ) -> Result<(), EngineError> {
        let (name, reason) = (name.to_owned(), reason.to_owned());
        self.write(move |tx, _| {
            tx.set_endpoint(&name, Reachable::Down, Some(&reason), Some(next_probe))
        })
        .await
    }

    /// Notes that an endpoint answers.
    pub(crate) async fn endpoint_up(&self, name: &str) -> Result<(), EngineError> {
        let name = name.to_owned();
        self.write(move |tx, _| tx.set_endpoint(&name, Reachable::Up, None, None))
            .await
    }

    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&knarr_store::Reader<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, EngineError> {
        self.store
            .read_async(look)
            .await
            .map_err(EngineError::Store)
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>, PairId) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let pair = self.pair;
        self.store
            .transact(move |tx| work(tx, pair))
            .await
            .map_err(EngineError::Store)
    }
}

/// The setting under which the reason stands why a pair's directory is polled.
#[must_use]
pub fn degraded_setting(pair: PairId) -> String {
    format!("degraded.{}", pair.number())
}

const fn store_side(side: Side) -> knarr_store::synced::Side {
    match side {
        Side::Source => knarr_store::synced::Side::Source,
        Side::Destination => knarr_store::synced::Side::Destination,
    }
}

const fn engine_side(side: knarr_store::synced::Side) -> Side {
    match side {
        knarr_store::synced::Side::Source => Side::Source,
        knarr_store::synced::Side::Destination => Side::Destination,
    }
}
