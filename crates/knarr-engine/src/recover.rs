//! What an interrupted run did and could not record (K11).
//!
//! Between the rename at the destination and the record of it the process may die. Then both sides are
//! equal, no plan says anything about the file, and its record would be missing for ever. So every batch
//! is preceded by an intent (see [`knarr_store::intents`]), and whoever takes up the pair next comes here
//! first. What is found as it was to become is flushed, then recorded, saying how it was found; what is
//! not, was not done, and is planned anew. Without open intents this is one look at an empty table.

use std::sync::Arc;

use knarr_core::job::Verify;
use knarr_core::plan::Side;
use knarr_core::record::{Action, Evidence};
use knarr_core::{ContentHash, Entry, Kind};
use knarr_fs::identity::RootIdentity;
use knarr_remote::{ErrorKind, ListOptions, MtimeSupport, Remote, Retry};
use knarr_store::intents::{Intended, Intent, IntentId, Verb};

use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::{Change, intents};
use crate::observer::Event;
use crate::put::{self, PutError, hash_content};
use crate::transfer::TransferError;

/// How many intents are read at once. One of a batch of small files has some 200 KiB.
const INTENTS: usize = 16;

/// Which directories the roots of both sides are, as far as that can be told.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Roots {
    source: Option<RootIdentity>,
    destination: Option<RootIdentity>,
}

impl Roots {
    /// Looks, and notes what was not known.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub(crate) async fn note(context: &Context) -> Result<Self, EngineError> {
        let mut roots = Self::default();
        for side in [Side::Source, Side::Destination] {
            // Whether it is there at all is for the listing to say.
            let Ok(Some(identity)) = context.side(side).root_identity().await else {
                continue;
            };
            let text = identity.to_string();
            if !context.journal.is_other_root(side, &text).await? {
                context.journal.note_root(side, &text).await?;
            }
            *roots.of(side) = Some(identity);
        }
        Ok(roots)
    }

    const fn of(&mut self, side: Side) -> &mut Option<RootIdentity> {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }
}

/// Whose intents are looked into.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose {
    /// All there are, before a run begins.
    Earlier,
    /// Those of this run, which began with these roots.
    ThisRun(Roots),
}

/// Records what was done and not recorded.
///
/// # Errors
/// If the state cannot be read or written. A place that does not answer, is not there, or is another
/// one than it was leaves the question open for the next run.
pub(crate) async fn recover(context: &Arc<Context>, whose: Whose) -> Result<(), EngineError> {
    let mut after = IntentId::FIRST;
    let mut sides = Sides::default();
    loop {
        let found = context.journal.intents(after, INTENTS).await?;
        let Some(last) = found.last() else {
            return Ok(());
        };
        after = last.id;
        let this_run = context.journal.run();
        let meant = |intent: &&Intent| match whose {
            Whose::Earlier => true,
            Whose::ThisRun(_) => intent.run.0 == this_run,
        };
        for intent in found.iter().filter(meant) {
            match look(context, intent, whose, &mut sides).await {
                Ok(()) => {}
                Err(PutError::Engine(error)) => return Err(error),
                Err(error) => untold(&error),
            }
        }
    }
}

fn untold(error: &PutError) {
    let error = crate::error::chain(error);
    tracing::warn!(%error, "what an interrupted run did cannot be told yet");
}

/// Which sides can be asked, as far as that is known. The lack of a file in a place that is not there
/// says nothing of the file (K5).
#[derive(Debug, Default)]
struct Sides {
    source: Option<Answer>,
    destination: Option<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Answers,
    Silent,
}

impl Sides {
    const fn of(&mut self, side: Side) -> &mut Option<Answer> {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    async fn ask(
        &mut self,
        context: &Context,
        side: Side,
        whose: Whose,
    ) -> Result<Answer, EngineError> {
        if let Some(known) = *self.of(side) {
            return Ok(known);
        }
        let answer = ask(context, side, whose).await?;
        *self.of(side) = Some(answer);
        Ok(answer)
    }
}

async fn ask(context: &Context, side: Side, whose: Whose) -> Result<Answer, EngineError> {
    let remote = context.side(side);
    let is_other = match remote.root_identity().await {
        Ok(Some(now)) => match whose {
            // A root that was not there yet is one that the run made.
            Whose::ThisRun(mut roots) => roots
                .of(side)
                .is_some_and(|before| !before.is_same_root(&now)),
            Whose::Earlier => {
                let now = now.to_string();
                context.journal.is_other_root(side, &now).await?
            }
        },
        Ok(None) => match remote.list(ListOptions::default()).await {
            Ok(_listing) => false,
            Err(error) => {
                untold(&PutError::Remote(error));
                return Ok(Answer::Silent);
            }
        },
        Err(error) => {
            untold(&PutError::Remote(error));
            return Ok(Answer::Silent);
        }
    };
    if is_other {
        let location = context.side(side).describe().location.as_str();
        tracing::warn!(
            location,
            "what an interrupted run did cannot be told: this is another directory, or its disk is not mounted"
        );
        return Ok(Answer::Silent);
    }
    Ok(Answer::Answers)
}

/// What can be told of an intent, and the items of which nothing can be told yet.
async fn tell_all(
    context: &Context,
    intent: &Intent,
    whose: Whose,
    sides: &mut Sides,
) -> Result<(Vec<Found>, Vec<Intended>), PutError> {
    let (mut all, mut left) = (Vec::new(), Vec::new());
    for item in &intent.items {
        let (to, entry) = intents::what(item);
        // Without a hash it is the other side that tells what was meant.
        let compares =
            item.verb == Verb::Deliver && item.hash.is_none() && entry.kind == Kind::File;
        let asked = [Some(to), compares.then_some(to.other())];
        let mut answer = Answer::Answers;
        for side in asked.into_iter().flatten() {
            let said = sides.ask(context, side, whose).await;
            if said.map_err(PutError::Engine)? == Answer::Silent {
                answer = Answer::Silent;
            }
        }
        if answer == Answer::Silent {
            left.push(item.clone());
            continue;
        }
        match tell(context, intent, item).await {
            Ok(found) => all.extend(found),
            Err(PutError::Engine(error)) => return Err(PutError::Engine(error)),
            // What can be told of the others does not wait for it.
            Err(error) => {
                untold(&error);
                left.push(item.clone());
                if error.retry() == Retry::EndpointDown {
                    *sides.of(to) = Some(Answer::Silent);
                }
            }
        }
    }
    Ok((all, left))
}

async fn tell(
    context: &Context,
    intent: &Intent,
    item: &Intended,
) -> Result<Option<Found>, PutError> {
    match item.verb {
        Verb::Deliver => delivered(context, intent, item).await,
        Verb::Remove => removed(context, intent, item).await,
    }
}

async fn look(
    context: &Arc<Context>,
    intent: &Intent,
    whose: Whose,
    sides: &mut Sides,
) -> Result<(), PutError> {
    let (all, left) = tell_all(context, intent, whose, sides).await?;
    if left.len() == intent.items.len() && !left.is_empty() {
        return Ok(());
    }
    for side in [Side::Source, Side::Destination] {
        if all.iter().any(|found| found.to == side) {
            flush(context.side(side)).await?;
        }
    }
    let found = all.iter().flat_map(|found| found.changes.iter().cloned());
    let recorded = context
        .journal
        .record_leaving(found.collect(), intent.id, left);
    recorded.await.map_err(PutError::Engine)?;
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

/// What was found of one intended thing.
struct Found {
    changes: [Change; 2],
    to: Side,
    entry: Entry,
    action: Action,
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
    // Whatever its length: what a run proved to be damaged, or what somebody else put there, may have
    // the same size and time (K3).
    let expected = match item.hash {
        None => hash_at_source(context, to, item).await?,
        known => known,
    };
    if let Some(expected) = expected {
        let hash = hash_content(context, into.as_ref(), there).await;
        let hash = hash.map_err(PutError::Remote)?;
        return Ok((hash == expected).then_some(Proof {
            evidence: Evidence::ReadBack { hash },
            source_hash: Some(expected),
        }));
    }
    // Nothing but size and time speaks, and they speak for what was there before, too.
    if as_before || context.verify == Verify::Full {
        return Ok(None);
    }
    let reason = "found after an interruption; only its size and time were compared".to_owned();
    Ok(Some(Proof {
        evidence: Evidence::SizeOnly { reason },
        source_hash: None,
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
