//! Brings one entry from one side to the other: attempts, commit, record, and what follows.

mod again;
mod content;
mod rest;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use knarr_core::plan::{Beside, Compare, Side, numbered_path};
use knarr_core::record::{Action, CustodyRecord};
use knarr_core::tree::Synced;
use knarr_core::{ContentHash, Entry, Kind, RelPath, Timestamp};
use knarr_remote::{
    Committed, ErrorKind, NewNode, Remote, RemoteError, Replace, Retry, WriteOptions,
};
use knarr_store::intents::IntentId;

use self::again::{Earlier, Mend, Trust};
pub(crate) use self::content::{hash_content, same_content, verify};
pub(crate) use self::rest::at_rest;
use crate::commit::Outcome;
use crate::context::{Context, Tally};
use crate::dispose;
use crate::error::EngineError;
use crate::inspect::Inspection;
use crate::journal::{Change, intents};
use crate::observer::{Event, Trouble};
use crate::transfer::{self, Moved, RESUMABLE_FROM_BYTES, Target, Transfer, TransferError};

/// How often a numbered name is looked for before giving up.
const NUMBERED_NAMES: u32 = 10_000;

/// One entry to bring over.
#[derive(Debug, Clone)]
pub(crate) struct Put {
    pub(crate) to: Side,
    pub(crate) entry: Entry,
    pub(crate) replaces: Option<Entry>,
    pub(crate) beside: Beside,
    pub(crate) compare: Compare,
}

/// What became of it.
#[derive(Debug)]
enum Attempt {
    /// It is there, durably.
    Delivered(Delivery),
    /// It was there already.
    Same(Entry),
    /// Policy says to leave it.
    Left,
    /// What it was planned on is not so any more: decide again.
    Stale,
}

#[derive(Debug)]
struct Delivery {
    path: RelPath,
    committed: Committed,
    /// What was noted before the commit.
    intent: Option<IntentId>,
    moved: Option<MovedFacts>,
}

/// What remains of [`Moved`] after the commit.
#[derive(Debug)]
struct MovedFacts {
    hash: ContentHash,
    sent: u64,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    #[error(transparent)]
    Transfer(TransferError),
    #[error(transparent)]
    Remote(RemoteError),
    #[error("what was read back from the destination is not what was sent")]
    Damaged,
    #[error(
        "what was read back from the destination is not what was sent, so it was removed there"
    )]
    Discarded,
    #[error(transparent)]
    Engine(EngineError),
}

impl PutError {
    /// Whether it only says that we were asked to stop.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Transfer(TransferError::Cancelled))
            || self
                .remote()
                .is_some_and(|error| error.kind == ErrorKind::Cancelled)
    }

    /// Whether the source moved under our eyes.
    pub(crate) const fn is_changed(&self) -> bool {
        matches!(self, Self::Transfer(TransferError::Changed))
    }

    /// Whether it is the source that failed.
    pub(crate) const fn is_at_source(&self) -> bool {
        matches!(self, Self::Transfer(TransferError::Source(_)))
    }

    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::Transfer(error) => error.retry(),
            Self::Remote(error) => error.retry,
            Self::Damaged | Self::Discarded => Retry::Later,
            Self::Engine(_) => Retry::Never,
        }
    }

    pub(crate) const fn remote(&self) -> Option<&RemoteError> {
        match self {
            Self::Transfer(error) => error.remote(),
            Self::Remote(error) => Some(error),
            Self::Damaged | Self::Discarded | Self::Engine(_) => None,
        }
    }
}

/// Brings `put` over, with repetitions, and records the outcome. Returns whether the path is in order.
///
/// # Errors
/// Only if the state could not be recorded: then nothing may go on.
pub(crate) async fn put(context: &Arc<Context>, put: Put) -> Result<bool, EngineError> {
    put_again(context, put, Vec::new()).await
}

/// The same after attempts elsewhere of which nobody knows whether they were carried out. What they
/// meant is cleared with the record of what is there in the end.
///
/// # Errors
/// As [`put`].
pub(crate) async fn put_again(
    context: &Arc<Context>,
    mut put: Put,
    unclear: Vec<IntentId>,
) -> Result<bool, EngineError> {
    if put.entry.kind == Kind::File {
        context.observer.event(&Event::Started {
            path: &put.entry.path,
            size: put.entry.size,
        });
    }
    let mut earlier = Earlier::new(unclear);
    let mut failed = 0;
    loop {
        let started = context.clock.now();
        let result = attempt(context, &put, &mut earlier).await;
        let (error, looked) = match result {
            Ok(Attempt::Delivered(delivery)) => {
                let cleared = earlier.take_all().collect();
                deliver(context, &put, delivery, cleared, failed + 1, started).await?;
                return Ok(true);
            }
            Ok(Attempt::Same(there)) => {
                let cleared = earlier.take_all().collect();
                adopt_and_clear(context, put.to, put.entry, there, cleared).await?;
                return Ok(true);
            }
            Ok(Attempt::Left) => {
                Tally::add(&context.tally.skipped, 1);
                return Ok(true);
            }
            Ok(Attempt::Stale) => match again::look(context, &mut put, earlier.trust).await {
                Ok(true) => {
                    failed += 1;
                    if context.pause(failed, Retry::Later).await {
                        continue;
                    }
                    (PutError::Transfer(TransferError::Changed), true)
                }
                Ok(false) => return settled(context, &put, &mut earlier, failed, started).await,
                Err(error) => (PutError::Remote(error), true),
            },
            Err(PutError::Transfer(TransferError::Changed)) => {
                match again::look(context, &mut put, earlier.trust).await {
                    Ok(true) => (PutError::Transfer(TransferError::Changed), true),
                    Ok(false) => {
                        return settled(context, &put, &mut earlier, failed, started).await;
                    }
                    Err(error) => (PutError::Remote(error), true),
                }
            }
            Err(error) => (error, false),
        };
        failed += 1;
        if let PutError::Engine(error) = error {
            return Err(error);
        }
        let again = context.pause(failed, error.retry()).await
            && (looked || earlier.goes_on(context, &mut put).await);
        let error = if again || !earlier.discard(context, put.to).await {
            error
        } else {
            PutError::Discarded
        };
        let cleared = earlier.take_refuted().collect();
        record_failure(context, &put, &error, cleared, failed, started, again).await?;
        if !again {
            return Ok(false);
        }
    }
}

/// Ends the attempts where nothing is left to do. After damage, that is no good end: what is there may
/// be what an attempt brought, whatever its length and time say.
async fn settled(
    context: &Arc<Context>,
    put: &Put,
    earlier: &mut Earlier,
    failed: u32,
    started: Timestamp,
) -> Result<bool, EngineError> {
    let cleared = earlier.take_refuted().collect();
    if earlier.trust == Trust::Policy {
        context.journal.record(cleared).await?;
        return Ok(true);
    }
    let (error, again) = (PutError::Damaged, false);
    record_failure(context, put, &error, cleared, failed + 1, started, again).await?;
    Ok(false)
}

async fn attempt(
    context: &Arc<Context>,
    put: &Put,
    earlier: &mut Earlier,
) -> Result<Attempt, PutError> {
    match put.entry.kind {
        Kind::File => attempt_file(context, put, earlier).await,
        Kind::Directory => attempt_node(context, put, earlier, NewNode::Directory).await,
        Kind::Symlink => {
            let target = put.entry.link_target.clone().unwrap_or_default();
            attempt_node(context, put, earlier, NewNode::Symlink { target }).await
        }
        Kind::Special => Ok(Attempt::Left),
    }
}

async fn attempt_file(
    context: &Arc<Context>,
    put: &Put,
    earlier: &mut Earlier,
) -> Result<Attempt, PutError> {
    let (from, into) = context.sides(put.to);
    at_rest(context, std::iter::once(&put.entry)).await;
    let Ok(slot) = context.slots.acquire().await else {
        return Err(PutError::Transfer(TransferError::Cancelled));
    };
    if let (Compare::First, Some(there)) = (put.compare, &put.replaces)
        && same_content(context, from, into, &put.entry, there).await?
    {
        return Ok(Attempt::Same(there.clone()));
    }
    let target = target(context, put, earlier.mend.as_ref()).await?;
    let path = target.path.clone();
    let transfer = Transfer {
        source: from.as_ref(),
        entry: &put.entry,
        destination: into.as_ref(),
        target: Some(target),
        observer: context.observer.as_ref(),
        cancel: &context.cancel,
        opened: transfer::Opened::default(),
    };
    let moved = transfer::plain(&transfer, &mut Inspection::default()).await;
    let Moved { staged, hash, sent } = moved.map_err(PutError::Transfer)?;
    let slot = transfer::after_staging(slot, &staged);
    let replaces = put.replaces.as_ref().filter(|_| put.beside == Beside::No);
    let intended = intents::delivery(put.to, &put.entry, &path, replaces, Some(hash));
    let outcome = context.commits.commit_intended(staged, Some(intended));
    let Outcome { committed, intent } = outcome.await;
    drop(slot);
    let mut committed = match committed {
        Ok(committed) => committed,
        Err(error) => return not_committed(earlier, error, intent),
    };
    match verify(context, into, &path, hash, &mut committed).await {
        Ok(()) => {}
        Err(PutError::Damaged) => {
            let there = committed.entry.fingerprint();
            earlier.damaged(Mend { path, there }, intent);
            return Err(PutError::Damaged);
        }
        Err(error) => {
            earlier.unverified(intent);
            return Err(error);
        }
    }
    let moved = Some(MovedFacts { hash, sent });
    Ok(Attempt::Delivered(Delivery {
        path,
        committed,
        intent,
        moved,
    }))
}

/// What a commit that failed means for the attempt.
fn not_committed(
    earlier: &mut Earlier,
    error: RemoteError,
    intent: Option<IntentId>,
) -> Result<Attempt, PutError> {
    earlier.failed(&error, intent);
    if matches!(error.kind, ErrorKind::Changed | ErrorKind::AlreadyExists) {
        // What was to be mended is not there any more.
        earlier.mend = None;
        return Ok(Attempt::Stale);
    }
    Err(PutError::Remote(error))
}

/// Where and how to write a file.
async fn target(
    context: &Arc<Context>,
    put: &Put,
    mend: Option<&Mend>,
) -> Result<Target, PutError> {
    let (path, replace) = match mend {
        Some(mend) => (mend.path.clone(), Replace::Seen(mend.there.clone())),
        None => target_name(context.side(put.to), put).await?,
    };
    let (resume, checkpoints) = if put.entry.size >= RESUMABLE_FROM_BYTES {
        let found = context.checkpoints(put.to, &path, &put.entry).await;
        let (resume, sink) = found.map_err(PutError::Engine)?;
        (resume, Some(sink))
    } else {
        (None, None)
    };
    Ok(Target {
        staged_id: context.journal.staged_id(&path),
        path,
        replace,
        verify: context.verify,
        resume,
        checkpoints,
    })
}

/// Where to write, and what may be replaced there.
async fn target_name(into: &Arc<dyn Remote>, put: &Put) -> Result<(RelPath, Replace), PutError> {
    let path = put.entry.path.clone();
    match (put.beside, &put.replaces) {
        (Beside::No, Some(seen)) => Ok((path, Replace::Seen(seen.fingerprint()))),
        (Beside::No, None) => Ok((path, Replace::Nothing)),
        (Beside::Numbered, _) => {
            let free = free_name(into.as_ref(), &path)
                .await
                .map_err(PutError::Remote)?;
            Ok((free, Replace::Nothing))
        }
    }
}

/// The first numbered name beside `path` that nothing has.
pub(crate) async fn free_name(remote: &dyn Remote, path: &RelPath) -> Result<RelPath, RemoteError> {
    for number in 2..NUMBERED_NAMES {
        let candidate = numbered_path(path, number);
        if remote.stat(&candidate).await?.is_none() {
            return Ok(candidate);
        }
    }
    let message = "there are too many numbered files beside it already";
    Err(RemoteError::new(ErrorKind::AlreadyExists, "find a free name for", message).at(path))
}

async fn attempt_node(
    context: &Arc<Context>,
    put: &Put,
    earlier: &mut Earlier,
    node: NewNode,
) -> Result<Attempt, PutError> {
    let into = context.side(put.to);
    let path = put.entry.path.clone();
    let replace = match &put.replaces {
        Some(seen) => Replace::Seen(seen.fingerprint()),
        None => Replace::Nothing,
    };
    let options = WriteOptions {
        mode: put.entry.mode,
        mtime: put.entry.mtime,
        replace,
        ..WriteOptions::new(node, context.journal.staged_id(&path))
    };
    // What a directory is, its files' records say.
    let intended = (put.entry.kind == Kind::Symlink)
        .then(|| intents::delivery(put.to, &put.entry, &path, put.replaces.as_ref(), None));
    let staged = async {
        let upload = into.write(&path, options).await?;
        upload.stage(0, ContentHash::of(b"")).await
    };
    let Outcome { committed, intent } = match staged.await {
        Ok(staged) => context.commits.commit_intended(staged, intended).await,
        Err(error) => Outcome::not_begun(error),
    };
    match committed {
        Ok(committed) => Ok(Attempt::Delivered(Delivery {
            path,
            committed,
            intent,
            moved: None,
        })),
        Err(error) => not_committed(earlier, error, intent),
    }
}

/// Records a delivery together with `changes`, then removes or moves the source if that is wanted (K3,
/// K4: in this order).
async fn deliver(
    context: &Arc<Context>,
    put: &Put,
    delivery: Delivery,
    mut changes: Vec<Change>,
    attempt: u32,
    started: Timestamp,
) -> Result<(), EngineError> {
    let Delivery {
        path,
        committed,
        intent,
        moved,
    } = delivery;
    let action = match (&put.replaces, put.beside) {
        (Some(_), Beside::No) => Action::Updated,
        _ => Action::Created,
    };
    let mut record = context.journal.custody(action, &put.entry, put.to);
    if path != put.entry.path {
        record.message = Some(format!("kept beside what was there, as \"{path}\""));
    }
    record.attempt = attempt;
    record.duration_microseconds = microseconds(context.clock.now(), started);
    record.evidence = committed.evidence.clone();
    let hash = moved.as_ref().map(|moved| moved.hash);
    record.source_hash = hash;
    if let Some(moved) = moved {
        record.moved_bytes = moved.sent;
        Tally::add(&context.tally.sent, moved.sent);
    }
    let synced = synced(put.to, &put.entry, &committed.entry, &path, hash);
    changes.extend([
        Change::Synced(Box::new(synced)),
        Change::Custody(Box::new(record)),
        Change::ClearCheckpoint { to: put.to, path },
    ]);
    changes.extend(intent.map(Change::ClearIntent));
    context.journal.record(changes).await?;
    delivered(context, &put.entry, action);
    if context.removes_source() && put.to == Side::Destination {
        dispose::dispose(context, &put.entry).await?;
    }
    Ok(())
}

/// Counts and shows a delivery that is on record.
pub(crate) fn delivered(context: &Context, entry: &Entry, action: Action) {
    let counter = match action {
        Action::Updated => &context.tally.updated,
        _ => &context.tally.created,
    };
    Tally::add(counter, 1);
    Tally::add(&context.tally.bytes, entry.size);
    context.observer.event(&Event::Finished {
        path: &entry.path,
        action,
        bytes: entry.size,
    });
}

/// What both sides agree on after a delivery.
pub(crate) fn synced(
    to: Side,
    entry: &Entry,
    committed: &Entry,
    path: &RelPath,
    hash: Option<ContentHash>,
) -> Synced {
    let (source, destination) = match to {
        Side::Destination => (entry.fingerprint(), committed.fingerprint()),
        Side::Source => (committed.fingerprint(), entry.fingerprint()),
    };
    let destination_path = (*path != entry.path).then(|| path.clone());
    Synced {
        path: entry.path.clone(),
        source,
        destination,
        destination_path,
        hash,
    }
}

/// Records that both sides have it already.
pub(crate) async fn adopt(
    context: &Arc<Context>,
    to: Side,
    entry: Entry,
    there: Entry,
) -> Result<(), EngineError> {
    adopt_and_clear(context, to, entry, there, Vec::new()).await
}

async fn adopt_and_clear(
    context: &Arc<Context>,
    to: Side,
    entry: Entry,
    there: Entry,
    mut changes: Vec<Change>,
) -> Result<(), EngineError> {
    let record = context.journal.custody(Action::Adopted, &entry, to);
    let synced = synced(to, &entry, &there, &entry.path, entry.hash);
    changes.extend([
        Change::Synced(Box::new(synced)),
        Change::Custody(Box::new(record)),
    ]);
    context.journal.record(changes).await?;
    Tally::add(&context.tally.adopted, 1);
    let (path, action) = (&entry.path, Action::Adopted);
    context.observer.event(&Event::Finished {
        path,
        action,
        bytes: entry.size,
    });
    if context.removes_source() && to == Side::Destination {
        dispose::dispose(context, &entry).await?;
    }
    Ok(())
}

async fn record_failure(
    context: &Arc<Context>,
    put: &Put,
    error: &PutError,
    mut changes: Vec<Change>,
    attempt: u32,
    started: Timestamp,
    again: bool,
) -> Result<(), EngineError> {
    let message = crate::error::chain(error);
    let mut record: CustodyRecord = context.journal.custody(Action::Failed, &put.entry, put.to);
    record.attempt = attempt;
    record.duration_microseconds = microseconds(context.clock.now(), started);
    record.message = Some(message.clone());
    changes.push(Change::Custody(Box::new(record)));
    context.journal.record(changes).await?;
    let path = &put.entry.path;
    if again {
        context.observer.event(&Event::Retry {
            path,
            error: &message,
        });
    } else {
        if let Some(remote) = error.remote() {
            context.tally.note_error(remote);
        }
        context.tally.failed.fetch_add(1, Ordering::Relaxed);
        context.trouble(Some(path), Trouble::Error, &message);
    }
    Ok(())
}

pub(crate) fn microseconds(now: Timestamp, started: Timestamp) -> u64 {
    u64::try_from(now.since(started).as_micros()).unwrap_or(u64::MAX)
}
