//! The dirty set of a pair, and what is saved to resume its uploads.

use std::sync::Arc;
use std::time::Duration;

use knarr_core::entry::Fingerprint;
use knarr_core::plan::Side;
use knarr_core::tree::Synced;
use knarr_core::{Entry, Kind, RelPath, Timestamp};
use knarr_remote::CheckpointSink;
use knarr_store::dirty::{Dirty, Next, Seen};
use knarr_store::{PairId, StoreError, Tx};

use super::{Change, Journal, entry_of};
use crate::checkpoint::{self, Checkpoints, Earlier};
use crate::error::EngineError;
use crate::node::Mark;

impl Journal {
    /// Marks paths as dirty. Blocks until that is durable.
    pub(crate) fn mark_blocking(&self, marks: Vec<Mark>, seen: Seen) -> Result<(), EngineError> {
        self.mark(marks, seen).wait().map_err(EngineError::Store)
    }

    /// Marks paths as dirty.
    pub(crate) fn mark(&self, marks: Vec<Mark>, seen: Seen) -> knarr_store::Pending<()> {
        let (pair, at) = (self.pair, self.clock.now());
        let announcing = self.announcing.clone();
        self.store.transact(move |tx| {
            if announcing.writes_events() {
                let new = not_waiting_yet(tx, pair, &marks)?;
                announcing.enqueued(tx, &new, at)?;
            }
            let mut waiting = Vec::with_capacity(marks.len());
            for mark in marks {
                if mark.renamed_from.is_some() || mark.observed.is_none() {
                    tx.mark_dirty(pair, &std::mem::take(&mut waiting))?;
                    keep_older_name(tx, pair, &mark, at)?;
                }
                waiting.push(mark.stored(seen, at));
            }
            tx.mark_dirty(pair, &waiting)
        })
    }

    /// Whether what is to be marked waits for a person already, just as it is. Blocks.
    pub(crate) fn is_parked_blocking(&self, mark: &Mark) -> Result<bool, EngineError> {
        let waiting = self
            .store
            .read(|reader| reader.dirty(self.pair, &mark.path))
            .map_err(EngineError::Store)?;
        Ok(waiting.is_some_and(|dirty| dirty.parked.is_some() && dirty.observed == mark.observed))
    }

    /// Marks a path as gone, unless it is to be looked at anyway: that knows more.
    pub(crate) async fn mark_gone(&self, path: &RelPath, kind: Kind) -> Result<(), EngineError> {
        let (path, at) = (path.clone(), self.clock.now());
        self.write(move |tx, pair| mark_gone(tx, pair, path, kind, at))
            .await
    }

    /// Paths that may be worked on, behind the order key `after`, with what was agreed on for them.
    pub(crate) async fn ready(
        &self,
        now: Timestamp,
        after: Vec<u8>,
        limit: usize,
    ) -> Result<Vec<(Dirty, Option<Synced>)>, EngineError> {
        let pair = self.pair;
        self.read(move |reader| {
            let ready = reader.ready(pair, now, &after, limit)?;
            let with_synced = |dirty: Dirty| {
                let synced = reader.synced(pair, &dirty.path)?;
                Ok((dirty, synced))
            };
            ready.into_iter().map(with_synced).collect()
        })
        .await
    }

    /// When the next path may be worked on that may not be yet at `looked_at`, if any. What would have to
    /// wait for longer than `longest_wait` waits no more: the clock was set back.
    pub(crate) async fn next_ready_after(
        &self,
        looked_at: Timestamp,
        longest_wait: Duration,
    ) -> Result<Option<Timestamp>, EngineError> {
        let (pair, now) = (self.pair, self.clock.now());
        let horizon = now.after(longest_wait);
        let read = self.read(move |reader| {
            let next = reader.next_ready_after(pair, looked_at)?;
            Ok((next, reader.waits_beyond(pair, horizon)?))
        });
        let (next, waits_too_long) = read.await?;
        if !waits_too_long {
            return Ok(next);
        }
        let hastened = self
            .write(move |tx, pair| tx.hasten_beyond(pair, horizon, now))
            .await?;
        tracing::info!(
            hastened,
            "the clock was set back: nothing waits for the time it was"
        );
        Ok(Some(now))
    }

    /// Whether nothing waits but what is parked, and, if deletions are held, those.
    pub(crate) async fn is_drained(&self, deletions_are_held: bool) -> Result<bool, EngineError> {
        let pair = self.pair;
        self.read(move |reader| {
            let left = reader.waiting(pair)?;
            Ok(left.others == 0 && (left.gone == 0 || deletions_are_held))
        })
        .await
    }

    /// How many deletions wait for a person's approval.
    pub(crate) async fn held_deletions(&self) -> Result<u64, EngineError> {
        let pair = self.pair;
        self.read(move |reader| {
            let held = reader.held(pair)?;
            let waits = held.is_some_and(|hold| hold.approval.is_none());
            Ok(if waits { reader.waiting(pair)?.gone } else { 0 })
        })
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

    /// Has removals that were seen until then and only waited for approval wait no more.
    pub(crate) async fn hasten_removals(&self, seen_until: Timestamp) -> Result<(), EngineError> {
        self.write(move |tx, pair| tx.hasten_removals(pair, seen_until))
            .await
    }

    /// What an earlier attempt to write `path` from `entry` left, and where this one saves how far it is.
    pub(crate) async fn checkpoints(
        &self,
        to: Side,
        path: &RelPath,
        entry: &Entry,
    ) -> Result<(Earlier, Arc<dyn CheckpointSink>), EngineError> {
        let sink = Checkpoints {
            store: self.store.clone(),
            pair: self.pair,
            endpoint: self.label.base(to).to_owned(),
            path: path.clone(),
            source: entry.fingerprint(),
            total_bytes: entry.size,
            keep: self.keep_unfinished,
        };
        let found = checkpoint::find(&sink).await.map_err(EngineError::Store)?;
        Ok((found, Arc::new(sink)))
    }
}

/// The files among `marks` that are not in the queue yet and are not as they were delivered, and their lengths.
fn not_waiting_yet(
    tx: &Tx<'_>,
    pair: PairId,
    marks: &[Mark],
) -> Result<Vec<(RelPath, u64)>, StoreError> {
    let mut new = Vec::new();
    for mark in marks {
        if mark.kind == Kind::File
            && let Some(observed) = &mark.observed
            && tx.dirty(pair, &mark.path)?.is_none()
            && !is_delivered(tx, pair, &mark.path, observed)?
        {
            new.push((mark.path.clone(), observed.size));
        }
    }
    Ok(new)
}

/// Whether it is what was delivered: it is only looked at again.
fn is_delivered(
    tx: &Tx<'_>,
    pair: PairId,
    path: &RelPath,
    observed: &Fingerprint,
) -> Result<bool, StoreError> {
    let entry = entry_of(path.clone(), observed.clone());
    let synced = tx.synced(pair, path)?;
    Ok(synced.is_some_and(|synced| synced.source.still_describes(&entry)))
}

/// A path has one hint of what it was called before. If that is about to be replaced, the older name must
/// not be forgotten: nothing else says that it is gone.
fn keep_older_name(
    tx: &mut Tx<'_>,
    pair: PairId,
    mark: &Mark,
    at: Timestamp,
) -> Result<(), StoreError> {
    let Some(before) = tx.dirty(pair, &mark.path)? else {
        return Ok(());
    };
    match before.renamed_from {
        Some(older) if mark.renamed_from.as_ref() != Some(&older) && older != mark.path => {
            mark_gone(tx, pair, older, before.kind, at)
        }
        Some(_) | None => Ok(()),
    }
}

fn mark_gone(
    tx: &mut Tx<'_>,
    pair: PairId,
    path: RelPath,
    kind: Kind,
    at: Timestamp,
) -> Result<(), StoreError> {
    if tx.dirty(pair, &path)?.is_some() {
        return Ok(());
    }
    let mark = Mark {
        path,
        kind,
        observed: None,
        ready_at: at,
        because: None,
        renamed_from: None,
    };
    tx.mark_dirty(pair, &[mark.stored(Seen::Event, at)])
}
