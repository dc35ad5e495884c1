//! Gives the files of a batch their final names.
//!
//! The order is what makes it safe:
//!
//! 1. Every final name is looked at: if one cannot be had, nothing is published.
//! 2. The decision is durable before the first name is given.
//! 3. Each page of files is on record before the next one is begun, and all of the first turn before the
//!    first of the last turn: when a manifest is visible, all that it speaks of is, and is on record.
//! 4. Sources go when the whole batch is published (K4).
//!
//! After a crash what was given and not recorded is recognised: by its identity, or by its content.

use std::sync::Arc;

use futures::StreamExt as _;
use knarr_core::entry::Kind;
use knarr_core::plan::{IfExists, Side};
use knarr_core::record::Action;
use knarr_core::{Entry, RelPath};
use knarr_remote::{ErrorKind, RemoteError, Removal, RenameOptions, Replace};
use knarr_store::batches::{BatchFile, BatchId, BatchState};

use super::item::{Item, Replaces, Role};
use crate::context::{Context, Tally};
use crate::dispose;
use crate::error::EngineError;
use crate::journal::Change;
use crate::observer::{Event, Trouble};
use crate::put;

/// How many files share a transaction.
const PAGE: usize = 256;
/// How many get their names at once.
const AT_ONCE: usize = 16;

/// Why a batch is not published, or not to its end.
#[derive(Debug)]
pub(crate) enum Stuck {
    /// Nothing of it is visible.
    Refused(String),
    /// It was decided: what is left is published by the next run.
    Halfway(RemoteError),
    /// It was decided, and something is in the way.
    Blocked(String),
    /// What was staged is gone, so that it is staged anew. What has no name yet can be taken back again.
    Lost(String),
    /// We were asked to stop.
    Stopped,
}

impl Stuck {
    /// For a person.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Refused(reason) | Self::Lost(reason) => reason.clone(),
            Self::Halfway(error) => format!(
                "the publication is under way and was interrupted; the next run goes on with it: {}",
                crate::error::chain(error)
            ),
            Self::Blocked(reason) => format!(
                "the publication is under way and cannot go on: {reason}; the next run tries it again"
            ),
            Self::Stopped => "the publication was stopped; the next run goes on with it".to_owned(),
        }
    }
}

/// Why one file did not get its name.
enum NoName {
    Error(RemoteError),
    /// Something else has the name.
    Taken(String),
    /// What was staged is gone.
    Lost,
}

/// A file that did not get its name.
struct Nameless {
    file: Box<BatchFile>,
    why: NoName,
}

impl Nameless {
    fn new(file: BatchFile, why: NoName) -> Self {
        let file = Box::new(file);
        Self { file, why }
    }
}

/// What was published: the row, and what it became.
struct Named {
    file: BatchFile,
    item: Item,
    entry: Entry,
}

/// Publishes a batch that is complete.
///
/// # Errors
/// If the state cannot be read or written.
pub(crate) async fn publish(
    context: &Arc<Context>,
    batch: BatchId,
    if_exists: IfExists,
) -> Result<Result<(), Stuck>, EngineError> {
    super::sweep::half_staged(context, batch).await?;
    let first = context
        .journal
        .batch_files(batch, BatchState::Staged, None, 1);
    if first.await?.is_empty() {
        return Ok(Ok(()));
    }
    if let Err(reason) = check_names(context, batch, if_exists).await? {
        return Ok(Err(Stuck::Refused(reason)));
    }
    if context.cancel.is_cancelled() {
        return Ok(Err(Stuck::Stopped));
    }
    context.journal.decide_batch(batch).await?;
    if let Err(stuck) = give_names(context, batch, if_exists).await? {
        return Ok(Err(stuck));
    }
    finish(context, batch).await?;
    // What of it could not be removed while it was half staged is no part of the publication.
    context.journal.undecide_batch(batch).await?;
    Ok(Ok(()))
}

/// Finishes what an earlier run decided. What becomes of the sources, the look of this run finds out.
///
/// # Errors
/// If the state cannot be read or written.
pub(crate) async fn recover(
    context: &Arc<Context>,
    if_exists: IfExists,
) -> Result<Result<(), Stuck>, EngineError> {
    for batch in context.journal.decided_batches().await? {
        match give_names(context, batch, if_exists).await? {
            Ok(()) => {}
            Err(Stuck::Lost(reason)) => context.trouble(None, Trouble::Notice, &reason),
            Err(stuck) => return Ok(Err(stuck)),
        }
        forget_published(context, batch).await?;
        context.journal.undecide_batch(batch).await?;
        context.journal.forget_empty_batches().await?;
    }
    Ok(Ok(()))
}

/// Whether all final names can be had.
async fn check_names(
    context: &Arc<Context>,
    batch: BatchId,
    if_exists: IfExists,
) -> Result<Result<(), String>, EngineError> {
    let mut after = None;
    loop {
        let files = context
            .journal
            .batch_files(batch, BatchState::Staged, after, PAGE);
        let files = files.await?;
        let Some(last) = files.last() else {
            return Ok(Ok(()));
        };
        after = Some((last.begun_as.turn, last.id));
        let looks = files.into_iter().map(|file| async move {
            let item = item_of(&file)?;
            let path = &file.begun_as.path;
            let there = context.destination.stat(path).await;
            let there = there.map_err(|error| crate::error::chain(&error))?;
            if file.begun_as.staged.is_none() {
                return still_there(&item, path, there.as_ref());
            }
            replace_now(&item.replaces, path, there.as_ref(), if_exists).map(drop)
        });
        let mut looks = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some(looked) = looks.next().await {
            if let Err(reason) = looked {
                return Ok(Err(reason));
            }
        }
    }
}

fn item_of(file: &BatchFile) -> Result<Item, String> {
    let item = file.item.as_deref().and_then(Item::read);
    item.ok_or_else(|| {
        let path = &file.begun_as.path;
        format!("what was noted of \"{path}\" cannot be read; a later version of knarr may have written it")
    })
}

fn still_there(item: &Item, path: &RelPath, there: Option<&Entry>) -> Result<(), String> {
    let is_it = there.is_some_and(|there| item.staged.fingerprint().still_describes(there));
    if is_it {
        return Ok(());
    }
    Err(format!("what was at \"{path}\" was changed meanwhile"))
}

/// What may be replaced, as things are now.
fn replace_now(
    replaces: &Replaces,
    path: &RelPath,
    there: Option<&Entry>,
    if_exists: IfExists,
) -> Result<Replace, String> {
    let Some(there) = there else {
        return Ok(Replace::Nothing);
    };
    let is_seen = match replaces {
        Replaces::Nothing => false,
        Replaces::Seen(seen) => seen.still_describes(there),
        Replaces::Anything => true,
    };
    if (is_seen || if_exists == IfExists::Overwrite) && there.kind != Kind::Directory {
        return Ok(Replace::Seen(there.fingerprint()));
    }
    Err(format!(
        "a {} came to \"{path}\" meanwhile, and if_exists says nothing of replacing it",
        there.kind
    ))
}

async fn give_names(
    context: &Arc<Context>,
    batch: BatchId,
    if_exists: IfExists,
) -> Result<Result<(), Stuck>, EngineError> {
    loop {
        if context.cancel.is_cancelled() {
            return Ok(Err(Stuck::Stopped));
        }
        let files = context
            .journal
            .batch_files(batch, BatchState::Staged, None, PAGE);
        let files = files.await?;
        if files.is_empty() {
            return Ok(Ok(()));
        }
        let naming = files
            .into_iter()
            .map(|file| give_name(context, file, if_exists));
        let named: Vec<_> = futures::stream::iter(naming)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let (mut good, mut stuck, mut lost) = (Vec::new(), None, Vec::new());
        for named in named {
            match named {
                Ok(named) => good.push(*named),
                Err(Nameless { file, why }) => match why {
                    NoName::Error(error) => stuck = stuck.or(Some(Stuck::Halfway(error))),
                    NoName::Taken(reason) => stuck = stuck.or(Some(Stuck::Blocked(reason))),
                    NoName::Lost => lost.push(file),
                },
            }
        }
        record(context, good).await?;
        if let Some(file) = lost.first() {
            let path = &file.begun_as.path;
            let reason = format!("what was staged for \"{path}\" is gone, so it is delivered anew");
            let ids = lost.iter().map(|file| file.id).collect();
            context.journal.forget_batch_files(ids).await?;
            context.journal.undecide_batch(batch).await?;
            return Ok(Err(Stuck::Lost(reason)));
        }
        if let Some(stuck) = stuck {
            return Ok(Err(stuck));
        }
    }
}

async fn give_name(
    context: &Arc<Context>,
    file: BatchFile,
    if_exists: IfExists,
) -> Result<Box<Named>, Nameless> {
    let item = match item_of(&file) {
        Ok(item) => item,
        Err(reason) => {
            let why = NoName::Taken(reason);
            return Err(Nameless::new(file, why));
        }
    };
    let mut failed = 0;
    loop {
        let why = match try_name(context, &file, &item, if_exists).await {
            Ok(entry) => return Ok(Box::new(Named { file, item, entry })),
            Err(why) => why,
        };
        failed += 1;
        let again = match &why {
            NoName::Error(error) => context.pause(failed, error.retry).await,
            NoName::Taken(_) | NoName::Lost => false,
        };
        if !again {
            return Err(Nameless::new(file, why));
        }
    }
}

async fn try_name(
    context: &Arc<Context>,
    file: &BatchFile,
    item: &Item,
    if_exists: IfExists,
) -> Result<Entry, NoName> {
    let path = &file.begun_as.path;
    let destination = &context.destination;
    let there = destination.stat(path).await.map_err(NoName::Error)?;
    let Some(staged) = &file.begun_as.staged else {
        return match there {
            Some(there) if item.staged.fingerprint().still_describes(&there) => Ok(there),
            _ => Err(NoName::Lost),
        };
    };
    let replace = match replace_now(&item.replaces, path, there.as_ref(), if_exists) {
        Ok(replace) => replace,
        Err(reason) => {
            // By a process that died, or over a connection that did.
            let Some(there) = there else {
                return Err(NoName::Taken(reason));
            };
            if !is_ours(context, item, &there).await? {
                return Err(NoName::Taken(reason));
            }
            remove_staged(context, staged, item.staged.kind)
                .await
                .map_err(NoName::Error)?;
            return Ok(there);
        }
    };
    let options = RenameOptions { replace };
    let error = match destination.rename(staged, path, options).await {
        Ok(entry) => return Ok(entry),
        Err(error) => error,
    };
    if error.kind != ErrorKind::NotFound {
        return Err(NoName::Error(error));
    }
    let there = destination.stat(path).await.map_err(NoName::Error)?;
    match there {
        Some(there) if is_ours(context, item, &there).await? => Ok(there),
        _ => Err(NoName::Lost),
    }
}

/// Whether what has the final name is what was staged.
async fn is_ours(context: &Arc<Context>, item: &Item, there: &Entry) -> Result<bool, NoName> {
    if item.staged.kind != there.kind {
        return Ok(false);
    }
    if there.kind == Kind::Symlink {
        return Ok(item.source.link_target == there.link_target);
    }
    if item.staged.size != there.size {
        return Ok(false);
    }
    if item.staged.identity.is_some() && item.staged.identity == there.identity {
        return Ok(true);
    }
    match item.hash {
        Some(hash) => {
            let read = put::hash_content(context, context.destination.as_ref(), there).await;
            Ok(read.map_err(NoName::Error)? == hash)
        }
        None => Ok(item.staged.mtime == there.mtime),
    }
}

/// Removes what lies under a hidden name. What is gone is removed.
pub(super) async fn remove_staged(
    context: &Context,
    staged: &RelPath,
    kind: Kind,
) -> Result<(), RemoteError> {
    let removal = Removal {
        path: staged.clone(),
        kind,
        seen: None,
    };
    let mut removed = context
        .destination
        .remove(std::slice::from_ref(&removal))
        .await;
    match removed.pop().unwrap_or(Ok(())) {
        Err(error) if error.kind == ErrorKind::WrongKind && kind == Kind::File => {
            let kind = Kind::Symlink;
            let removal = Removal { kind, ..removal };
            let mut removed = context.destination.remove(&[removal]).await;
            removed.pop().unwrap_or(Ok(()))
        }
        removed => removed,
    }
}

/// Records what has its name (K3, K11), then shows it.
async fn record(context: &Arc<Context>, named: Vec<Named>) -> Result<(), EngineError> {
    let mut changes = Vec::with_capacity(named.len() * 3);
    for Named { file, item, entry } in &named {
        let path = &file.begun_as.path;
        let mut record = item.record.clone();
        record.at = context.clock.now();
        if record.run != context.journal.run() {
            record.run = context.journal.run();
            record.message = Some("staged by an earlier run".to_owned());
        }
        if item.role == Role::Main {
            let hash = record.source_hash;
            let synced = put::synced(Side::Destination, &item.source, entry, path, hash);
            changes.push(Change::Synced(Box::new(synced)));
            changes.extend(owed(context, item));
        }
        changes.push(Change::Custody(Box::new(record)));
        changes.push(Change::Published(file.id));
    }
    context.journal.record(changes).await?;
    context.acknowledging.hurry();
    for Named { item, .. } in named.iter().filter(|named| named.item.role == Role::Main) {
        match item.record.action {
            Action::Adopted => {
                Tally::add(&context.tally.adopted, 1);
                context.observer.event(&Event::Finished {
                    path: &item.source.path,
                    action: Action::Adopted,
                    bytes: item.source.size,
                });
            }
            action => put::delivered(context, &item.source, action),
        }
    }
    Ok(())
}

/// What whoever a file came from is to be told of its delivery. It was asked before the file was staged
/// whether that can be said.
fn owed(context: &Arc<Context>, item: &Item) -> Option<Change> {
    let sha256 = item.sha256.as_deref();
    let owed = context.acknowledging.owe(context, &item.source, sha256);
    owed.unwrap_or_else(|error| {
        let error = crate::error::chain(&error);
        let message = format!("its delivery is not acknowledged: {error}");
        context.trouble(Some(&item.source.path), Trouble::Error, &message);
        None
    })
}

/// Takes care of the sources of a batch that is published, those of the last turn last.
async fn finish(context: &Arc<Context>, batch: BatchId) -> Result<(), EngineError> {
    loop {
        let files = context
            .journal
            .batch_files(batch, BatchState::Published, None, PAGE);
        let files = files.await?;
        if files.is_empty() {
            break;
        }
        if context.removes_source() {
            let sources = files.iter().filter_map(|file| item_of(file).ok());
            let sources = sources.filter(|item| item.role == Role::Main);
            let sources: Vec<Entry> = sources.map(|item| item.source).collect();
            let disposing = sources
                .into_iter()
                .map(|source| async move { dispose::dispose(context, &source).await });
            let mut disposing = futures::stream::iter(disposing).buffer_unordered(AT_ONCE);
            while let Some(disposed) = disposing.next().await {
                disposed?;
            }
        }
        let ids = files.iter().map(|file| file.id).collect();
        context.journal.forget_batch_files(ids).await?;
    }
    context.journal.forget_empty_batches().await
}

async fn forget_published(context: &Arc<Context>, batch: BatchId) -> Result<(), EngineError> {
    loop {
        let files = context
            .journal
            .batch_files(batch, BatchState::Published, None, PAGE);
        let ids: Vec<_> = files.await?.iter().map(|file| file.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        context.journal.forget_batch_files(ids).await?;
    }
}
