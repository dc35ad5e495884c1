//! What is about to be done: durable before the batch is flipped, gone with its record (K11).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use knarr_core::plan::Side;
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_store::intents::{Intended, Intent, IntentId, Verb};

use super::{Change, Journal, engine_side, entry_of, store_side};
use crate::error::EngineError;

impl Journal {
    /// Notes that all of `items` is about to be done; durable when this returns.
    ///
    /// # Errors
    /// If it could not be made durable; then nothing of it may be done.
    pub(crate) async fn intend(&self, items: Vec<Intended>) -> Result<IntentId, EngineError> {
        let run = self.run;
        let id = self
            .write(move |tx, pair| tx.intend(pair, run, &items))
            .await?;
        self.open_intents.fetch_add(1, Ordering::Relaxed);
        Ok(id)
    }

    /// The same for things that are recorded one by one: an intent for each, in one transaction.
    ///
    /// # Errors
    /// As [`Journal::intend`].
    pub(crate) async fn intend_each(
        &self,
        items: Vec<Option<Intended>>,
    ) -> Result<Vec<Option<IntentId>>, EngineError> {
        if items.iter().all(Option::is_none) {
            return Ok(vec![None; items.len()]);
        }
        let is_intended: Vec<bool> = items.iter().map(Option::is_some).collect();
        let intended = items.into_iter().flatten().collect();
        let mut ids = self.group.record(Vec::new(), intended).await?.into_iter();
        let ids: Vec<Option<IntentId>> = is_intended
            .into_iter()
            .map(|is_intended| is_intended.then(|| ids.next()).flatten())
            .collect();
        let made = ids.iter().flatten().count() as u64;
        self.open_intents.fetch_add(made, Ordering::Relaxed);
        Ok(ids)
    }

    /// Makes all of `changes` and notes each of `items` as an intent of its own, in one transaction.
    ///
    /// # Errors
    /// If that could not be made durable; then nothing of it was made.
    pub(crate) async fn record_and_intend(
        &self,
        changes: Vec<Change>,
        items: Vec<Intended>,
    ) -> Result<Vec<IntentId>, EngineError> {
        let cleared = clears(&changes);
        let ids = self.group.record(changes, items).await?;
        self.cleared(cleared);
        self.open_intents
            .fetch_add(ids.len() as u64, Ordering::Relaxed);
        Ok(ids)
    }

    /// Makes all of `changes` in one transaction that leaves of `intent` only `left` open, or nothing.
    ///
    /// # Errors
    /// If that could not be made durable; then nothing of it was made.
    pub(crate) async fn record_leaving(
        &self,
        mut changes: Vec<Change>,
        intent: IntentId,
        left: Vec<Intended>,
    ) -> Result<(), EngineError> {
        if left.is_empty() {
            changes.push(Change::ClearIntent(intent));
            return self.record(changes).await;
        }
        let (applying, announcing) = (self.applying.clone(), self.announcing.clone());
        let changes = Arc::new(changes);
        let applied = Arc::clone(&changes);
        self.write(move |tx, _| {
            applying.apply(tx, &applied)?;
            announcing.record(tx, applied.iter())?;
            tx.narrow_intent(intent, &left)
        })
        .await?;
        self.announcing.recorded(changes.iter());
        Ok(())
    }

    /// Open intents of the pair behind `after`, the oldest first, at most `limit`.
    pub(crate) async fn intents(
        &self,
        after: IntentId,
        limit: usize,
    ) -> Result<Vec<Intent>, EngineError> {
        let pair = self.pair;
        self.read(move |reader| reader.intents(pair, after, limit))
            .await
    }

    /// Whether something this run meant to do was not recorded, so that it has to be looked for.
    pub(crate) fn has_open_intents(&self) -> bool {
        self.open_intents.load(Ordering::Relaxed) > 0
    }

    pub(super) fn cleared(&self, intents: u64) {
        // Also those of earlier runs are cleared, which were never counted.
        let less = |open: u64| Some(open.saturating_sub(intents));
        self.open_intents
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .ok();
    }
}

/// How many intents are cleared by `changes`.
pub(super) fn clears(changes: &[Change]) -> u64 {
    let is_intent = |change: &&Change| matches!(change, Change::ClearIntent(_));
    changes.iter().filter(is_intent).count() as u64
}

/// That `entry` is about to be visible at side `to`, as `written_as` if that is another name.
pub(crate) fn delivery(
    to: Side,
    entry: &Entry,
    written_as: &RelPath,
    replaces: Option<&Entry>,
    hash: Option<ContentHash>,
) -> Intended {
    Intended {
        verb: Verb::Deliver,
        to: store_side(to),
        path: entry.path.clone(),
        written_as: (*written_as != entry.path).then(|| written_as.clone()),
        seen: entry.fingerprint(),
        replaces: replaces.map(Entry::fingerprint),
        hash,
    }
}

/// That `entry` is about to be removed at side `to`.
pub(crate) fn removal(to: Side, entry: &Entry) -> Intended {
    Intended {
        verb: Verb::Remove,
        ..delivery(to, entry, &entry.path, None, None)
    }
}

/// The side that is written, and what is brought or removed, as it was seen.
pub(crate) fn what(item: &Intended) -> (Side, Entry) {
    let entry = entry_of(item.path.clone(), item.seen.clone());
    (engine_side(item.to), entry)
}
