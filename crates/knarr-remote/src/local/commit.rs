//! Committing batches: one crossing to a blocking thread, and a few flushes, for all of a batch.
//!
//! Directories come first, as files of the same batch may lie in them. Then small files and links are
//! staged on the disk and, with the large ones that are there already, handed to
//! [`knarr_fs::commit`], whose order of flushes and renames makes it safe. Not more at once than
//! [`open_limit`] allows: a staged file keeps handles open until it is committed.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::entry::Kind;
use knarr_core::record::Evidence;
use knarr_core::{ContentHash, RelPath};
use knarr_fs::Root;
use knarr_fs::commit::{CommitError, Durability, EACH_UP_TO};
use knarr_fs::root::{Attributes, Flushed, Replace as FsReplace};
use knarr_fs::stage::{self, Staged as FsStaged, StagedFile, Start, stage_link, staged_path};
use tokio::sync::OwnedSemaphorePermit;

use super::error::{Guard, from_commit, from_fs, wrong_kind};
use super::{IfMissing, Place, blocking};
use crate::error::{ErrorKind, RemoteError};
use crate::remote::Replace;
use crate::upload::{Committed, Committer, Staged, StagedId};

/// How many items a batch may usefully have.
const BATCH_LIMIT: usize = 1_000;

/// Something that waits for its commit.
#[derive(Debug)]
pub(super) struct LocalStaged {
    pub(super) place: Arc<Place>,
    /// The root it was staged in, if it was.
    pub(super) root: Option<Arc<Root>>,
    pub(super) id: StagedId,
    pub(super) attributes: Attributes,
    pub(super) replace: Replace,
    pub(super) hash: ContentHash,
    pub(super) content: Content,
}

/// What it holds.
#[derive(Debug)]
pub(super) enum Content {
    /// A small file; written by the commit.
    InMemory {
        chunks: Vec<Bytes>,
        /// Its share of what may wait in memory.
        _permit: OwnedSemaphorePermit,
    },
    /// A file under its staged name.
    OnDisk(FsStaged),
    Directory,
    Link(Box<[u8]>),
}

/// Commits everything staged in one local directory.
#[derive(Debug)]
pub(super) struct LocalCommitter;

#[async_trait]
impl Committer for LocalCommitter {
    async fn commit(&self, batch: Vec<Staged>) -> Vec<Result<Committed, RemoteError>> {
        let paths: Vec<RelPath> = batch.iter().map(|staged| staged.path.clone()).collect();
        let items = batch
            .into_iter()
            .map(|staged| (staged.path, staged.state))
            .collect();
        match blocking(move || Ok(commit_batch(items))).await {
            Ok(results) => results,
            Err(error) => paths
                .iter()
                .map(|path| Err(same_error(&error).at(path)))
                .collect(),
        }
    }

    fn batch_limit(&self) -> usize {
        BATCH_LIMIT
    }
}

/// The same rule in the words of the file system.
pub(super) fn replace_of(replace: &Replace) -> FsReplace {
    match replace {
        Replace::Nothing => FsReplace::Nothing,
        Replace::Seen(seen) => FsReplace::Seen(seen.clone()),
        Replace::Anything => FsReplace::Anything,
    }
}

/// Writes a small file under its staged name. Blocks.
pub(super) fn write_small(
    root: &Root,
    path: &RelPath,
    id: StagedId,
    chunks: &[Bytes],
    attributes: Attributes,
    replace: FsReplace,
) -> Result<FsStaged, RemoteError> {
    let failed = |error| from_fs("write", Some(path), error);
    let mut file = StagedFile::create(root, path, id.0, Start::New).map_err(failed)?;
    let mut length = 0;
    for chunk in chunks {
        if let Err(error) = file.write(chunk) {
            // It is small: better nothing left behind than something to continue.
            file.abort();
            return Err(failed(error));
        }
        length += chunk.len() as u64;
    }
    file.finish(length, attributes, replace).map_err(failed)
}

/// One error for each item that it hits.
fn same_error(error: &RemoteError) -> RemoteError {
    RemoteError::new(error.kind, "commit", error.message.clone()).with_retry(error.retry)
}

type CommitResult = Result<Committed, RemoteError>;

/// One item in the words of this module.
struct Item {
    place_in_batch: usize,
    path: RelPath,
    staged: LocalStaged,
}

/// What an item still needs to be told once it is committed.
struct Waiting {
    place_in_batch: usize,
    path: RelPath,
    id: StagedId,
    guard: Guard,
    evidence: Evidence,
}

/// Items staged below the same root, not yet committed.
struct Group {
    place: Arc<Place>,
    root: Arc<Root>,
    staged: Vec<FsStaged>,
    waiting: Vec<Waiting>,
}

fn commit_batch(batch: Vec<(RelPath, Box<dyn Any + Send>)>) -> Vec<CommitResult> {
    let mut results: Vec<Option<CommitResult>> = batch.iter().map(|_| None).collect();
    let mut directories = Vec::new();
    let mut others = Vec::new();
    for (place_in_batch, (path, state)) in batch.into_iter().enumerate() {
        match state.downcast::<LocalStaged>() {
            Ok(staged) => {
                let item = Item {
                    place_in_batch,
                    path,
                    staged: *staged,
                };
                if matches!(item.staged.content, Content::Directory) {
                    directories.push(item);
                } else {
                    others.push(item);
                }
            }
            Err(_other) => {
                let message = "it was staged at another place";
                let error = RemoteError::new(ErrorKind::Other, "commit", message).at(&path);
                set(&mut results, place_in_batch, Err(error));
            }
        }
    }
    make_directories(directories, &mut results);
    commit_others(others, &mut results);
    results
        .into_iter()
        .map(|result| result.expect("every item of the batch went one of the ways above"))
        .collect()
}

fn set(results: &mut [Option<CommitResult>], place_in_batch: usize, result: CommitResult) {
    if let Some(slot) = results.get_mut(place_in_batch) {
        *slot = Some(result);
    }
}

fn commit_others(items: Vec<Item>, results: &mut [Option<CommitResult>]) {
    let limit = open_limit();
    let mut groups: Vec<Group> = Vec::new();
    for item in items {
        let (place_in_batch, path) = (item.place_in_batch, item.path.clone());
        let place = Arc::clone(&item.staged.place);
        let (root, staged, waiting) = match stage_item(item) {
            Ok(staged) => staged,
            Err(error) => {
                set(results, place_in_batch, Err(with_path(error, &path)));
                continue;
            }
        };
        let at = match groups
            .iter()
            .position(|group| Arc::ptr_eq(&group.root, &root))
        {
            Some(at) => at,
            None => {
                groups.push(Group {
                    place,
                    root,
                    staged: Vec::new(),
                    waiting: Vec::new(),
                });
                groups.len() - 1
            }
        };
        let Some(group) = groups.get_mut(at) else {
            continue;
        };
        group.staged.push(staged);
        group.waiting.push(waiting);
        if group.staged.len() >= limit {
            let full = Group {
                place: Arc::clone(&group.place),
                root: Arc::clone(&group.root),
                staged: std::mem::take(&mut group.staged),
                waiting: std::mem::take(&mut group.waiting),
            };
            commit_group(full, results);
        }
    }
    for group in groups {
        commit_group(group, results);
    }
}

fn with_path(error: RemoteError, path: &RelPath) -> RemoteError {
    if error.path.is_some() {
        error
    } else {
        error.at(path)
    }
}

/// Brings what waits in memory to its staged name.
fn stage_item(item: Item) -> Result<(Arc<Root>, FsStaged, Waiting), RemoteError> {
    let Item {
        place_in_batch,
        path,
        staged,
    } = item;
    let LocalStaged {
        place,
        root,
        id,
        attributes,
        replace,
        hash,
        content,
    } = staged;
    let root = match root {
        Some(root) => root,
        None => place.root(IfMissing::Make)?,
    };
    let guard = Guard::from(&replace);
    let replace = replace_of(&replace);
    let (staged, evidence) = match content {
        Content::InMemory { chunks, .. } => {
            let staged = write_small(&root, &path, id, &chunks, attributes, replace)?;
            (staged, Evidence::Written { hash })
        }
        Content::OnDisk(staged) => (staged, Evidence::Written { hash }),
        Content::Link(target) => {
            let staged = stage_link(&root, &path, id.0, &target, replace)
                .map_err(|error| from_fs("stage the link", Some(&path), error))?;
            (staged, Evidence::None)
        }
        Content::Directory => {
            let message = "directories are made, not staged";
            return Err(RemoteError::new(ErrorKind::Other, "commit", message));
        }
    };
    Ok((
        root,
        staged,
        Waiting {
            place_in_batch,
            path,
            id,
            guard,
            evidence,
        },
    ))
}

fn commit_group(group: Group, results: &mut [Option<CommitResult>]) {
    let Group {
        place,
        root,
        staged,
        waiting,
    } = group;
    if staged.is_empty() {
        return;
    }
    // What is committed to a directory that nobody finds any more has not arrived.
    if let Err(error) = place.check_in_place(&root) {
        for Waiting {
            place_in_batch,
            path,
            ..
        } in waiting
        {
            set(results, place_in_batch, Err(same_error(&error).at(&path)));
        }
        return;
    }
    let committed = knarr_fs::commit::commit(&root, staged, Durability::Durable);
    for (waiting, result) in waiting.into_iter().zip(committed) {
        let Waiting {
            place_in_batch,
            path,
            id,
            guard,
            evidence,
        } = waiting;
        let result = match result {
            Ok(committed) => Ok(Committed {
                entry: committed.entry,
                evidence: confirmed(evidence, committed.flushed),
            }),
            Err(error) => {
                if matches!(error, CommitError::Io(_)) {
                    remove_left_over(&root, &path, id);
                }
                Err(from_commit(&path, guard, error))
            }
        };
        set(results, place_in_batch, result);
    }
}

/// Where the file system cannot flush, the record must not say that it did.
fn confirmed(evidence: Evidence, flushed: Flushed) -> Evidence {
    match (evidence, flushed) {
        (Evidence::Written { .. }, Flushed::Unsupported | Flushed::NotAsked) => {
            Evidence::SizeOnly {
                reason: "the file system cannot flush".to_owned(),
            }
        }
        (evidence, _) => evidence,
    }
}

/// A staged file that could not be put in place is in the way of removing its directory.
fn remove_left_over(root: &Root, path: &RelPath, id: StagedId) {
    let Some(staged) = staged_path(path, id.0) else {
        return;
    };
    debug_assert!(
        stage::staged_id(staged.name()).is_some(),
        "only our own names are removed"
    );
    if let Ok(Some(found)) = root.stat(&staged)
        && found.kind != Kind::Directory
        && let Err(error) = root.remove(&staged, &found.fingerprint())
    {
        tracing::debug!(%error, path = %staged, "a staged file was left behind");
    }
}

fn make_directories(items: Vec<Item>, results: &mut [Option<CommitResult>]) {
    let mut made: Vec<(usize, RelPath, Arc<Root>, Committed)> = Vec::new();
    for item in items {
        let Item {
            place_in_batch,
            path,
            staged,
        } = item;
        let result = staged.place.root(IfMissing::Make).and_then(|root| {
            staged.place.check_in_place(&root)?;
            let entry = make_directory(&root, &path, staged.attributes, &staged.replace)?;
            Ok((
                root,
                Committed {
                    entry,
                    evidence: Evidence::None,
                },
            ))
        });
        match result {
            Ok((root, committed)) => made.push((place_in_batch, path, root, committed)),
            Err(error) => set(results, place_in_batch, Err(with_path(error, &path))),
        }
    }
    let Some((_, _, root, _)) = made.first() else {
        return;
    };
    let directories: BTreeSet<&RelPath> = made.iter().map(|(_, path, ..)| path).collect();
    let flushed = if directories.len() > EACH_UP_TO {
        root.flush_all()
    } else {
        root.flush_directories(directories.into_iter().map(Some))
    };
    let failed = flushed.err().map(|error| from_fs("make", None, error));
    for (place_in_batch, path, _, committed) in made {
        let result = match &failed {
            None => Ok(committed),
            Some(error) => {
                let message = "the disk did not confirm it";
                Err(RemoteError::new(error.kind, "make the directory", message)
                    .with_retry(error.retry)
                    .at(&path))
            }
        };
        set(results, place_in_batch, result);
    }
}

fn make_directory(
    root: &Root,
    path: &RelPath,
    attributes: Attributes,
    replace: &Replace,
) -> Result<knarr_core::Entry, RemoteError> {
    const OPERATION: &str = "make the directory";
    let failed = |error| from_fs(OPERATION, Some(path), error);
    match (root.stat(path).map_err(failed)?, replace) {
        (Some(found), _) if found.kind == Kind::Directory => {}
        (Some(_), Replace::Nothing) => {
            let message = "something else is there already";
            return Err(RemoteError::new(ErrorKind::AlreadyExists, OPERATION, message).at(path));
        }
        (Some(found), _) => {
            let message = format!("a {} is there; remove it first", found.kind);
            return Err(wrong_kind(OPERATION, path, &message));
        }
        (None, Replace::Seen(_)) => {
            let message = "what was seen there is gone";
            return Err(RemoteError::new(ErrorKind::Changed, OPERATION, message).at(path));
        }
        (None, Replace::Nothing | Replace::Anything) => {
            root.make_directories(path).map_err(failed)?;
        }
    }
    if attributes != Attributes::default() {
        root.set_attributes(path, attributes).map_err(failed)?;
    }
    root.stat(path).map_err(failed)?.ok_or_else(|| {
        RemoteError::new(
            ErrorKind::Changed,
            OPERATION,
            "it vanished right after it was made",
        )
        .at(path)
    })
}

/// How many staged files may be open at once: each has a handle of its own and one of its directory,
/// and others need some, too.
fn open_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let handles = limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    (handles.saturating_sub(256) / 4).clamp(32, BATCH_LIMIT)
}
