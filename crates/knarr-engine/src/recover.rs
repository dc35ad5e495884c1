//! What an interrupted run did and could not record (K11).
//!
//! Between the rename at the destination and the record of it the process may die. Then both sides are
//! equal, no plan says anything about the file, and its record would be missing for ever. So every batch
//! is preceded by an intent (see [`knarr_store::intents`]), and whoever takes up the pair next comes here
//! first. What is found as it was to become is flushed, then recorded, saying how it was found; what is
//! not, was not done, and is planned anew. Without open intents this is one look at an empty table.

use std::sync::Arc;

use knarr_core::plan::Side;
use knarr_core::record::{Action, Evidence};
use knarr_core::{ContentHash, Entry, Kind};
use knarr_remote::{ErrorKind, MtimeSupport, Remote};
use knarr_store::intents::{Intended, Intent, IntentId, Verb};

use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::{Change, intents};
use crate::observer::Event;
use crate::put::{self, PutError, hash_content};
use crate::transfer::TransferError;

/// How many intents are read at once. One of a batch of small files has some 200 KiB.
const INTENTS: usize = 16;
/// What is found at a remote place is read back up to this length; beyond, its size and time must do.
const READ_BACK_BYTES: u64 = 8 << 20;

/// Records what was done and not recorded.
///
/// # Errors
/// If the state cannot be read or written. A place that does not answer leaves the question open for
/// the next run.
pub(crate) async fn recover(context: &Arc<Context>) -> Result<(), EngineError> {
    let mut after = IntentId::FIRST;
    loop {
        let found = context.journal.intents(after, INTENTS).await?;
        let Some(last) = found.last() else {
            return Ok(());
        };
        after = last.id;
        for intent in &found {
            match look(context, intent).await {
                Ok(()) => {}
                Err(PutError::Engine(error)) => return Err(error),
                Err(error) => {
                    let error = crate::error::chain(&error);
                    tracing::warn!(%error, "what an interrupted run did cannot be told yet");
                }
            }
        }
    }
}

/// What was found of one intended thing.
struct Found {
    changes: [Change; 2],
    to: Side,
    entry: Entry,
    action: Action,
}

async fn look(context: &Arc<Context>, intent: &Intent) -> Result<(), PutError> {
    let mut all = Vec::new();
    for item in &intent.items {
        let found = match item.verb {
            Verb::Deliver => delivered(context, intent, item).await?,
            Verb::Remove => removed(context, intent, item).await?,
        };
        all.extend(found);
    }
    for side in [Side::Source, Side::Destination] {
        if all.iter().any(|found| found.to == side) {
            flush(context.side(side)).await?;
        }
    }
    let mut changes = vec![Change::ClearIntent(intent.id)];
    for found in &all {
        changes.extend(found.changes.iter().cloned());
    }
    context
        .journal
        .record(changes)
        .await
        .map_err(PutError::Engine)?;
    for Found { entry, action, .. } in &all {
        let counter = match action {
            Action::Deleted => &context.tally.deleted,
            _ => &context.tally.adopted,
        };
        Tally::add(counter, 1);
        context.observer.event(&Event::Finished {
            path: &entry.path,
            action: *action,
            bytes: 0,
        });
    }
    Ok(())
}

/// K1, K3: that a name is visible does not mean that it survives a power cut.
async fn flush(remote: &Arc<dyn Remote>) -> Result<(), PutError> {
    let Some(local) = remote.as_local() else {
        return Ok(());
    };
    let root = local.root().map_err(PutError::Remote)?;
    let flushed = tokio::task::spawn_blocking(move || root.flush_all()).await;
    match flushed {
        Ok(Ok(_flushed)) => Ok(()),
        Ok(Err(error)) => {
            let error = crate::error::chain(&error);
            let error = knarr_remote::RemoteError::new(ErrorKind::Other, "flush", error);
            Err(PutError::Remote(error))
        }
        Err(_panic) => Err(PutError::Engine(EngineError::Internal("a flush panicked"))),
    }
}

async fn delivered(
    context: &Context,
    intent: &Intent,
    item: &Intended,
) -> Result<Option<Found>, PutError> {
    let (to, entry) = intents::what(item);
    let at = item.at();
    let there = context.side(to).stat(at).await.map_err(PutError::Remote)?;
    let Some(there) = there else {
        return Ok(None);
    };
    if is_recorded(context, to, item, &there).await? {
        return Ok(None);
    }
    let Some(Proof {
        evidence,
        source_hash,
    }) = proof(context, to, item, &there).await?
    else {
        return Ok(None);
    };
    let action = match &item.replaces {
        Some(_) => Action::Updated,
        None => Action::Created,
    };
    let mut record = context.journal.custody(action, &entry, to);
    record.evidence = evidence;
    record.source_hash = source_hash;
    let mut message = format!(
        "run {} delivered it and was interrupted before the record; found after the interruption",
        intent.run
    );
    if *at != item.path {
        message.push_str(&format!(", beside what was there, as \"{at}\""));
    }
    record.message = Some(message);
    let synced = put::synced(to, &entry, &there, at, source_hash);
    Ok(Some(Found {
        changes: [
            Change::Synced(Box::new(synced)),
            Change::Custody(Box::new(record)),
        ],
        to,
        entry,
        action,
    }))
}

/// Whether a record says already what is there now.
async fn is_recorded(
    context: &Context,
    to: Side,
    item: &Intended,
    there: &Entry,
) -> Result<bool, PutError> {
    let synced = context
        .journal
        .synced(&item.path)
        .await
        .map_err(PutError::Engine)?;
    Ok(synced.is_some_and(|synced| {
        let (known, at) = match to {
            Side::Destination => (&synced.destination, synced.at_destination()),
            Side::Source => (&synced.source, &synced.path),
        };
        at == item.at() && known.still_describes(there) && known.identity == there.identity
    }))
}

struct Proof {
    evidence: Evidence,
    source_hash: Option<ContentHash>,
}

/// Whether what is there is what was to be there.
async fn proof(
    context: &Context,
    to: Side,
    item: &Intended,
    there: &Entry,
) -> Result<Option<Proof>, PutError> {
    let into = context.side(to);
    match (item.seen.kind, there.kind) {
        (Kind::File, Kind::File) => {}
        (Kind::Symlink, Kind::Symlink) if item.seen.link_target == there.link_target => {
            return Ok(Some(Proof {
                evidence: Evidence::None,
                source_hash: None,
            }));
        }
        _ => return Ok(None),
    }
    let as_before = item
        .replaces
        .as_ref()
        .is_some_and(|before| before.still_describes(there));
    let untouched = as_before
        && there.identity.is_some()
        && item.replaces.as_ref().and_then(|r| r.identity.as_ref()) == there.identity.as_ref();
    if untouched || item.seen.size != there.size || !has_its_time(context, into, item, there) {
        return Ok(None);
    }
    let readable = there.size <= READ_BACK_BYTES || into.as_local().is_some();
    let expected = match item.hash {
        None if readable => hash_at_source(context, to, item).await?,
        known => known,
    };
    if let (Some(expected), true) = (expected, readable) {
        let hash = hash_content(context, into.as_ref(), there).await;
        let hash = hash.map_err(PutError::Remote)?;
        return Ok((hash == expected).then_some(Proof {
            evidence: Evidence::ReadBack { hash },
            source_hash: Some(expected),
        }));
    }
    // Nothing but size and time speaks, and they speak for what was there before, too.
    if as_before {
        return Ok(None);
    }
    let reason = "found after an interruption; only its size and time were compared".to_owned();
    Ok(Some(Proof {
        evidence: Evidence::SizeOnly { reason },
        source_hash: item.hash,
    }))
}

/// Whether it has the time that was to be given to it, where the place keeps times.
fn has_its_time(context: &Context, into: &Arc<dyn Remote>, item: &Intended, there: &Entry) -> bool {
    if into.describe().capabilities.mtime == MtimeSupport::OwnTime {
        return true;
    }
    match (item.seen.mtime, there.mtime) {
        (Some(meant), Some(found)) => meant.distance(found) <= context.policy.mtime_tolerance,
        _ => false,
    }
}

/// The hash of what was to be delivered, if that is still there to be read.
async fn hash_at_source(
    context: &Context,
    to: Side,
    item: &Intended,
) -> Result<Option<ContentHash>, PutError> {
    let from = context.side(to.other());
    let now = from.stat(&item.path).await.map_err(PutError::Remote)?;
    let Some(entry) = now.filter(|entry| item.seen.still_describes(entry)) else {
        return Ok(None);
    };
    match hash_content(context, from.as_ref(), &entry).await {
        Ok(hash) => Ok(Some(hash)),
        Err(error) if matches!(error.kind, ErrorKind::Changed | ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(PutError::Transfer(TransferError::Source(error))),
    }
}

async fn removed(
    context: &Context,
    intent: &Intent,
    item: &Intended,
) -> Result<Option<Found>, PutError> {
    let (to, entry) = intents::what(item);
    let there = context.side(to).stat(&entry.path).await;
    if there.map_err(PutError::Remote)?.is_some() {
        return Ok(None);
    }
    let action = Action::Deleted;
    let mut record = context.journal.custody(action, &entry, to);
    record.message = Some(format!(
        "run {} was about to delete it and was interrupted before the record; found gone",
        intent.run
    ));
    let forget = Change::Forget {
        path: entry.path.clone(),
        kind: entry.kind,
    };
    Ok(Some(Found {
        changes: [forget, Change::Custody(Box::new(record))],
        to,
        entry,
        action,
    }))
}
