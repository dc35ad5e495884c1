//! Brings one entry from one side to the other: attempts, commit, record, and what follows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use knarr_core::job::Verify;
use knarr_core::plan::{
    Beside, Compare, Decision, Operation, Side, decide_existing, numbered_path,
};
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::tree::Synced;
use knarr_core::{ContentHash, Entry, Kind, RelPath, Timestamp};
use knarr_remote::{
    Committed, ErrorKind, NewNode, ReadOptions, Remote, RemoteError, Replace, Retry, WriteOptions,
};
use knarr_store::intents::IntentId;

use crate::context::{Context, Tally};
use crate::dispose;
use crate::error::EngineError;
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
    steps: Vec<knarr_core::record::StepRecord>,
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

    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::Transfer(error) => error.retry(),
            Self::Remote(error) => error.retry,
            Self::Damaged => Retry::Later,
            Self::Engine(_) => Retry::Never,
        }
    }

    pub(crate) const fn remote(&self) -> Option<&RemoteError> {
        match self {
            Self::Transfer(error) => error.remote(),
            Self::Remote(error) => Some(error),
            Self::Damaged | Self::Engine(_) => None,
        }
    }
}

/// Brings `put` over, with repetitions, and records the outcome. Returns whether the path is in order.
///
/// # Errors
/// Only if the state could not be recorded: then nothing may go on.
pub(crate) async fn put(context: &Arc<Context>, mut put: Put) -> Result<bool, EngineError> {
    let path = put.entry.path.clone();
    if put.entry.kind == Kind::File {
        context.observer.event(&Event::Started {
            path: &path,
            size: put.entry.size,
        });
    }
    let mut failed = 0;
    loop {
        let started = context.clock.now();
        let error = match attempt(context, &put).await {
            Ok(Attempt::Delivered(delivery)) => {
                deliver(context, &put, delivery, failed + 1, started).await?;
                return Ok(true);
            }
            Ok(Attempt::Same(there)) => {
                adopt(context, put.to, put.entry, there).await?;
                return Ok(true);
            }
            Ok(Attempt::Left) => {
                Tally::add(&context.tally.skipped, 1);
                return Ok(true);
            }
            Ok(Attempt::Stale) => match look_again(context, &mut put).await {
                Ok(true) => {
                    failed += 1;
                    if context.pause(failed, Retry::Later).await {
                        continue;
                    }
                    PutError::Transfer(TransferError::Changed)
                }
                Ok(false) => return Ok(true),
                Err(error) => PutError::Remote(error),
            },
            Err(PutError::Transfer(TransferError::Changed)) => {
                match look_again(context, &mut put).await {
                    Ok(true) => PutError::Transfer(TransferError::Changed),
                    Ok(false) => return Ok(true),
                    Err(error) => PutError::Remote(error),
                }
            }
            Err(error) => error,
        };
        failed += 1;
        if let PutError::Engine(error) = error {
            return Err(error);
        }
        let again = context.pause(failed, error.retry()).await;
        record_failure(context, &put, &error, failed, started, again).await?;
        if !again {
            return Ok(false);
        }
    }
}

async fn attempt(context: &Arc<Context>, put: &Put) -> Result<Attempt, PutError> {
    match put.entry.kind {
        Kind::File => attempt_file(context, put).await,
        Kind::Directory => attempt_node(context, put, NewNode::Directory).await,
        Kind::Symlink => {
            let target = put.entry.link_target.clone().unwrap_or_default();
            attempt_node(context, put, NewNode::Symlink { target }).await
        }
        Kind::Special => Ok(Attempt::Left),
    }
}

async fn attempt_file(context: &Arc<Context>, put: &Put) -> Result<Attempt, PutError> {
    let (from, into) = context.sides(put.to);
    let Ok(slot) = context.slots.acquire().await else {
        return Err(PutError::Transfer(TransferError::Cancelled));
    };
    if let (Compare::First, Some(there)) = (put.compare, &put.replaces)
        && same_content(context, from, into, &put.entry, there).await?
    {
        return Ok(Attempt::Same(there.clone()));
    }
    let (path, replace) = target_name(into, put).await?;
    let staged_id = context.journal.staged_id(&path);
    let resumable = put.entry.size >= RESUMABLE_FROM_BYTES;
    let (resume, checkpoints) = if resumable {
        let found = context.checkpoints(put.to, &path, &put.entry).await;
        let (resume, sink) = found.map_err(PutError::Engine)?;
        (resume, Some(sink))
    } else {
        (None, None)
    };
    let target = Target {
        path: path.clone(),
        staged_id,
        replace,
        verify: context.verify,
        resume,
        checkpoints,
    };
    let transfer = Transfer {
        source: from.as_ref(),
        entry: &put.entry,
        destination: into.as_ref(),
        target: Some(target),
        steps: &[],
        observer: context.observer.as_ref(),
        cancel: &context.cancel,
    };
    let Moved {
        staged,
        source_hash,
        sent,
        steps,
        ..
    } = transfer::plain(&transfer)
        .await
        .map_err(PutError::Transfer)?;
    drop(slot);
    let replaces = put.replaces.as_ref().filter(|_| put.beside == Beside::No);
    let intended = intents::delivery(put.to, &put.entry, &path, replaces, Some(source_hash));
    let committed = context.commits.commit_intended(staged, Some(intended));
    let (mut committed, intent) = match committed.await {
        Ok(committed) => committed,
        Err(error) if matches!(error.kind, ErrorKind::Changed | ErrorKind::AlreadyExists) => {
            return Ok(Attempt::Stale);
        }
        Err(error) => return Err(PutError::Remote(error)),
    };
    verify(context, into, &path, source_hash, &mut committed).await?;
    let moved = Some(MovedFacts {
        hash: source_hash,
        sent,
        steps,
    });
    Ok(Attempt::Delivered(Delivery {
        path,
        committed,
        intent,
        moved,
    }))
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
    let written = async {
        let upload = into.write(&path, options).await?;
        let staged = upload.stage(0, ContentHash::of(b"")).await?;
        context.commits.commit_intended(staged, intended).await
    };
    match written.await {
        Ok((committed, intent)) => Ok(Attempt::Delivered(Delivery {
            path,
            committed,
            intent,
            moved: None,
        })),
        Err(error) if matches!(error.kind, ErrorKind::Changed | ErrorKind::AlreadyExists) => {
            Ok(Attempt::Stale)
        }
        Err(error) => Err(PutError::Remote(error)),
    }
}

/// Whether both sides hold the same bytes; reads both.
pub(crate) async fn same_content(
    context: &Context,
    from: &Arc<dyn Remote>,
    into: &Arc<dyn Remote>,
    ours: &Entry,
    theirs: &Entry,
) -> Result<bool, PutError> {
    if ours.size != theirs.size {
        return Ok(false);
    }
    let (left, right) = tokio::join!(
        hash_content(context, from.as_ref(), ours),
        hash_content(context, into.as_ref(), theirs)
    );
    let left = left.map_err(|error| PutError::Transfer(TransferError::Source(error)))?;
    let right = right.map_err(|error| PutError::Transfer(TransferError::Destination(error)))?;
    Ok(left == right)
}

/// Reads a file to its end for its hash.
pub(crate) async fn hash_content(
    context: &Context,
    remote: &dyn Remote,
    entry: &Entry,
) -> Result<ContentHash, RemoteError> {
    let options = ReadOptions {
        offset: 0,
        expected: Some(entry.fingerprint()),
    };
    let mut reader = remote.read(&entry.path, options).await?;
    let mut hasher = blake3::Hasher::new();
    while let Some(chunk) = reader.next().await? {
        if context.cancel.is_cancelled() {
            return Err(RemoteError::new(ErrorKind::Cancelled, "read", "stopped").at(&entry.path));
        }
        hasher.update(&chunk);
    }
    Ok(hasher.finalize().into())
}

/// K4: before the source goes, the length alone is not enough, unless the user said so. `hash` is that
/// of what was written.
pub(crate) async fn verify(
    context: &Context,
    into: &Arc<dyn Remote>,
    path: &RelPath,
    hash: ContentHash,
    committed: &mut Committed,
) -> Result<(), PutError> {
    let weak = matches!(committed.evidence, Evidence::SizeOnly { .. });
    let needed = match context.verify {
        Verify::Full => !matches!(committed.evidence, Evidence::ReadBack { .. }),
        Verify::Offered => weak && context.removes_source(),
        Verify::Size => false,
    };
    if !needed {
        return Ok(());
    }
    let entry = Entry {
        path: path.clone(),
        ..committed.entry.clone()
    };
    let there = hash_content(context, into.as_ref(), &entry)
        .await
        .map_err(PutError::Remote)?;
    if there != hash {
        return Err(PutError::Damaged);
    }
    committed.evidence = Evidence::ReadBack { hash: there };
    Ok(())
}

/// Records a delivery, then removes or moves the source if that is wanted (K3, K4: in this order).
async fn deliver(
    context: &Arc<Context>,
    put: &Put,
    delivery: Delivery,
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
        record.steps = moved.steps;
        Tally::add(&context.tally.sent, moved.sent);
    }
    let synced = synced(put.to, &put.entry, &committed.entry, &path, hash);
    let mut changes = vec![
        Change::Synced(Box::new(synced)),
        Change::Custody(Box::new(record)),
        Change::ClearCheckpoint { to: put.to, path },
    ];
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
    let record = context.journal.custody(Action::Adopted, &entry, to);
    let synced = synced(to, &entry, &there, &entry.path, entry.hash);
    let changes = vec![
        Change::Synced(Box::new(synced)),
        Change::Custody(Box::new(record)),
    ];
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

/// Looks at both sides again and decides anew. `false` if there is nothing left to do.
async fn look_again(context: &Context, put: &mut Put) -> Result<bool, RemoteError> {
    let (from, into) = context.sides(put.to);
    let path = put.entry.path.clone();
    let Some(entry) = from.stat(&path).await? else {
        return Ok(false);
    };
    if entry.kind != put.entry.kind {
        // It is another thing now; the next run plans it.
        return Ok(false);
    }
    put.entry = entry;
    let Some(there) = into.stat(&path).await? else {
        put.replaces = None;
        return Ok(true);
    };
    let policy = knarr_core::plan::Policy {
        adopt: false,
        ..context.policy.clone()
    };
    match decide_existing(put.entry.clone(), there, &policy) {
        Some(Decision::Operation(Operation::Put {
            replaces,
            beside,
            compare,
            ..
        })) => {
            (put.replaces, put.beside, put.compare) = (replaces, beside, compare);
            Ok(true)
        }
        Some(Decision::Problem(problem)) => {
            context.trouble(Some(&problem.path), Trouble::Problem, &problem.message);
            Tally::add(&context.tally.problems, 1);
            Ok(false)
        }
        Some(Decision::Operation(_) | Decision::Conflict(_)) | None => Ok(false),
    }
}

async fn record_failure(
    context: &Arc<Context>,
    put: &Put,
    error: &PutError,
    attempt: u32,
    started: Timestamp,
    again: bool,
) -> Result<(), EngineError> {
    let message = crate::error::chain(error);
    let mut record: CustodyRecord = context.journal.custody(Action::Failed, &put.entry, put.to);
    record.attempt = attempt;
    record.duration_microseconds = microseconds(context.clock.now(), started);
    record.message = Some(message.clone());
    context
        .journal
        .record(vec![Change::Custody(Box::new(record))])
        .await?;
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
