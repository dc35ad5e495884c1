//! What a run writes down: one transaction for all that belongs together.
//!
//! A transaction returns when it is on the disk. Whoever calls [`Journal::record`] has committed the data
//! before (K3) and calls nothing done before it returns (K1). Many tasks share transactions and flushes.

mod batches;
mod care;
mod group;
pub(crate) mod intents;
mod lanes;
pub(crate) mod notes;
mod queue;
mod removals;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use knarr_core::entry::{Fingerprint, Identity};
use knarr_core::plan::Side;
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::tree::Synced;
use knarr_core::{Clock, Entry, Kind, RelPath};
use knarr_remote::StagedId;
use knarr_store::batches::BatchFileId;
use knarr_store::dirty::Generation;
use knarr_store::intents::IntentId;
use knarr_store::runs::{NewRun, RunId};
use knarr_store::synced::Recognise;
use knarr_store::{PairId, Store, StoreError, Tx};

use crate::announce::Announcing;
use crate::apply::Applying;
use crate::error::EngineError;
use crate::oneshot::Environment;
use group::Group;

pub(crate) use care::Drifted;

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
    /// What was meant is on record.
    ClearIntent(IntentId),
    /// A file of a batch has its final name, and this is the record of it.
    Published(BatchFileId),
    /// A file of a batch is complete under its staged name.
    Staged {
        /// Its final path.
        path: RelPath,
        /// What is to be recorded when it is published.
        item: String,
    },
    /// Something is kept for later, or not any more.
    Note(Box<notes::Note>),
}

/// For whom a journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As<'a> {
    /// A job, whose pairs are its own; and what set its run off.
    Job { cause: &'a str },
    /// A command. Commands share what was agreed on between two places, whatever the verb.
    Command,
}

/// What one run writes to.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    store: Store,
    pair: PairId,
    run: RunId,
    label: Arc<PairLabel>,
    applying: Applying,
    /// What staged names are derived from: this installation and this pair.
    owner: Arc<[u8]>,
    clock: Arc<dyn Clock>,
    group: Arc<Group>,
    announcing: Announcing,
    /// How many intents of this run are not on record yet.
    open_intents: Arc<AtomicU64>,
    keep_unfinished: Duration,
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
        let as_what = match kind {
            Some("watch") => As::Job { cause: "watch" },
            _ => As::Command,
        };
        Self::open_as(environment, label, kind, as_what).await
    }

    /// The same for a job, or for a command.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn open_as(
        environment: &Environment,
        label: &PairLabel,
        kind: Option<&str>,
        as_what: As<'_>,
    ) -> Result<Self, EngineError> {
        let store = environment.store.clone();
        let (is_job, cause) = match as_what {
            As::Job { cause } => (true, cause.to_owned()),
            As::Command => (false, "command".to_owned()),
        };
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
                let begin = |kind: String| NewRun {
                    pair: Some(pair),
                    job,
                    kind,
                    cause,
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
        let (run, label) = (run.unwrap_or(RunId(0)), Arc::new(label.clone()));
        let applying = Applying {
            pair,
            recognise: if label.job == "sync" {
                Recognise::Both
            } else {
                Recognise::Source
            },
            label: Arc::clone(&label),
        };
        let announcing = if is_job && run != RunId(0) {
            environment
                .announcer
                .bind(&label.job, run, &label.destination)
        } else {
            Announcing::default()
        };
        let group = Group::new(store.clone(), run, applying.clone(), announcing.clone());
        Ok(Self {
            group: Arc::new(group),
            announcing,
            store,
            pair,
            run,
            label,
            applying,
            owner,
            clock: Arc::clone(&environment.clock),
            open_intents: Arc::default(),
            keep_unfinished: environment.keep_unfinished,
        })
    }

    /// How long what an interrupted transfer left is kept.
    pub(crate) const fn keep_unfinished(&self) -> Duration {
        self.keep_unfinished
    }

    /// Who is told of the run.
    pub(crate) const fn announcing(&self) -> &Announcing {
        &self.announcing
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
        let cleared = intents::clears(&changes);
        self.group.record(changes, Vec::new()).await?;
        self.cleared(cleared);
        Ok(())
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

    /// Where one side lies, as a person writes it.
    pub(crate) fn shown_root(&self, side: Side) -> &str {
        self.label.base(side)
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

    /// The same. Blocks.
    pub(crate) fn synced_blocking(&self, path: &RelPath) -> Result<Option<Synced>, EngineError> {
        let pair = self.pair;
        self.store
            .read(|reader| reader.synced(pair, path))
            .map_err(EngineError::Store)
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

/// The setting that stands as long as everything below a pair's directory is being looked at: until then
/// nobody knows whether the queue is complete.
#[must_use]
pub fn scanning_setting(pair: PairId) -> String {
    format!("scanning.{}", pair.number())
}

/// The entry that a fingerprint was taken of.
pub(crate) fn entry_of(path: RelPath, seen: Fingerprint) -> Entry {
    let Fingerprint {
        kind,
        size,
        mtime,
        identity,
        link_target,
    } = seen;
    let (hash, mode) = (None, None);
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
