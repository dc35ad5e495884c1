//! What the cases share: test data, whole-file sugar, a sink that remembers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::entry::Kind;
use knarr_core::path::tree_order;
use knarr_core::tree::TreeItem;
use knarr_core::{ContentHash, Entry, RelPath};

use crate::error::{ErrorKind, RemoteError};
use crate::listing::ListOptions;
use crate::remote::{NewNode, ReadOptions, Remote, Removal, Replace, WriteOptions};
use crate::upload::{
    CheckpointSink, CheckpointUpdate, Committed, Committer, ResumeState, Staged, StagedId,
};

/// An odd chunk length, so that no boundary of a backend falls on ours.
pub(super) const ODD_CHUNK: usize = 300_007;

/// The path `text`.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn relative(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).expect("the suite's paths are valid")
}

/// `length` bytes that look random and are the same for the same `seed`.
#[must_use]
pub fn pattern(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Options for a new file of `size` bytes at `path` that may replace what `replace` says.
pub(super) fn file_options(path: &RelPath, size: usize, replace: Replace) -> WriteOptions {
    let node = NewNode::File {
        size: Some(size as u64),
    };
    let mut options = WriteOptions::new(node, StagedId::derive(b"conformance", path));
    options.replace = replace;
    options
}

/// Options for a new directory or link.
pub(super) fn node_options(path: &RelPath, node: NewNode, replace: Replace) -> WriteOptions {
    let mut options = WriteOptions::new(node, StagedId::derive(b"conformance", path));
    options.replace = replace;
    options
}

/// Writes and stages `content`, in chunks of `chunk` bytes.
pub(super) async fn stage(
    remote: &dyn Remote,
    path: &RelPath,
    options: WriteOptions,
    content: &Bytes,
    chunk: usize,
) -> Result<Staged, RemoteError> {
    let mut upload = remote.write(path, options).await?;
    let mut rest = content.clone();
    while !rest.is_empty() {
        let next = rest.split_to(chunk.min(rest.len()));
        if let Err(error) = upload.write(next).await {
            upload.abort().await;
            return Err(error);
        }
    }
    upload
        .stage(content.len() as u64, ContentHash::of(content))
        .await
}

/// Writes, stages and commits `content` with `options`.
///
/// # Errors
/// The first error of any of the three.
pub async fn try_put(
    remote: &dyn Remote,
    path: &RelPath,
    options: WriteOptions,
    content: &Bytes,
) -> Result<Committed, RemoteError> {
    let staged = stage(remote, path, options, content, ODD_CHUNK).await?;
    commit_one(staged).await
}

/// Puts a file with `content` at `path`, whatever was there.
///
/// # Panics
/// If that fails.
pub async fn put(remote: &dyn Remote, path: &str, content: impl Into<Bytes>) -> Committed {
    let (path, content) = (relative(path), content.into());
    let options = file_options(&path, content.len(), Replace::Anything);
    match try_put(remote, &path, options, &content).await {
        Ok(committed) => committed,
        Err(error) => panic!("writing \"{path}\" failed: {}", chain(&error)),
    }
}

/// Makes a directory or a link at `path`.
pub(super) async fn try_make(
    remote: &dyn Remote,
    path: &str,
    node: NewNode,
    replace: Replace,
) -> Result<Committed, RemoteError> {
    let path = relative(path);
    try_put(
        remote,
        &path,
        node_options(&path, node, replace),
        &Bytes::new(),
    )
    .await
}

/// The same where it has to succeed.
pub(super) async fn make(remote: &dyn Remote, path: &str, node: NewNode) -> Committed {
    match try_make(remote, path, node.clone(), Replace::Nothing).await {
        Ok(committed) => committed,
        Err(error) => panic!("making {node:?} at \"{path}\" failed: {}", chain(&error)),
    }
}

/// Commits one staged thing.
pub(super) async fn commit_one(staged: Staged) -> Result<Committed, RemoteError> {
    let path = staged.path.clone();
    let committer = Arc::clone(&staged.committer);
    let mut results = committer.commit(vec![staged]).await;
    assert_eq!(
        results.len(),
        1,
        "one result an item, committing \"{path}\""
    );
    results.pop().expect("there is one, as was just checked")
}

/// Commits many, in batches as their committers want them; the results in the order of the paths.
pub(super) async fn commit_all(
    staged: Vec<Staged>,
) -> BTreeMap<RelPath, Result<Committed, RemoteError>> {
    let mut groups: Vec<(Arc<dyn Committer>, Vec<Staged>)> = Vec::new();
    for item in staged {
        match groups.iter_mut().find(|(committer, batch)| {
            Arc::ptr_eq(committer, &item.committer) && batch.len() < committer.batch_limit()
        }) {
            Some((_, batch)) => batch.push(item),
            None => groups.push((Arc::clone(&item.committer), vec![item])),
        }
    }
    let mut all = BTreeMap::new();
    for (committer, batch) in groups {
        let paths: Vec<RelPath> = batch.iter().map(|item| item.path.clone()).collect();
        let results = committer.commit(batch).await;
        assert_eq!(
            results.len(),
            paths.len(),
            "a commit gives one result an item"
        );
        all.extend(paths.into_iter().zip(results));
    }
    all
}

/// All bytes of the file at `path`.
///
/// # Errors
/// Those of the reader.
pub async fn read_all(
    remote: &dyn Remote,
    path: &RelPath,
    options: ReadOptions,
) -> Result<Vec<u8>, RemoteError> {
    let mut reader = remote.read(path, options).await?;
    let mut content = Vec::new();
    while let Some(chunk) = reader.next().await? {
        assert!(
            !chunk.is_empty(),
            "a reader gives no empty chunks, reading \"{path}\""
        );
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

/// Checks that `path` holds exactly `expected`.
pub(super) async fn assert_content(remote: &dyn Remote, path: &str, expected: &[u8]) {
    let content = match read_all(remote, &relative(path), ReadOptions::default()).await {
        Ok(content) => content,
        Err(error) => panic!("reading \"{path}\" failed: {}", chain(&error)),
    };
    let first = content
        .iter()
        .zip(expected)
        .position(|(is, should)| is != should);
    assert!(
        content == expected,
        "\"{path}\" holds {} bytes instead of {}; the first different byte is {first:?}",
        content.len(),
        expected.len()
    );
}

/// What lies at `path`, or nothing.
pub(super) async fn stat(remote: &dyn Remote, path: &str) -> Option<Entry> {
    match remote.stat(&relative(path)).await {
        Ok(found) => found,
        Err(error) => panic!("looking at \"{path}\" failed: {}", chain(&error)),
    }
}

/// A complete listing in checked tree order.
pub(super) async fn list(remote: &dyn Remote, options: ListOptions) -> Vec<Entry> {
    let listing = match remote.list(options.clone()).await {
        Ok(listing) => listing,
        Err(error) => panic!("listing {options:?} failed: {}", chain(&error)),
    };
    let mut entries: Vec<Entry> = Vec::new();
    for item in listing.collect().await {
        match item {
            TreeItem::Entry(entry) => {
                if let Some(last) = entries.last() {
                    assert!(
                        tree_order((&last.path, last.kind), (&entry.path, entry.kind)).is_lt(),
                        "\"{}\" ({}) is listed after \"{}\" ({}), against the order of trees",
                        entry.path,
                        entry.kind,
                        last.path,
                        last.kind
                    );
                }
                entries.push(entry);
            }
            other => panic!("listing {options:?} gave {other:?}"),
        }
    }
    entries
}

/// The paths of all files and links of the whole tree, escaped for messages.
pub(super) async fn listed_files(remote: &dyn Remote) -> Vec<String> {
    paths_but_directories(&list(remote, ListOptions::default()).await)
}

pub(super) fn paths_but_directories(entries: &[Entry]) -> Vec<String> {
    entries
        .iter()
        .filter(|entry| entry.kind != Kind::Directory)
        .map(|entry| entry.path.to_string())
        .collect()
}

/// Removes one thing.
pub(super) async fn remove(remote: &dyn Remote, path: &str, kind: Kind) -> Result<(), RemoteError> {
    let mut results = remote
        .remove(&[Removal {
            path: relative(path),
            kind,
            seen: None,
        }])
        .await;
    assert_eq!(results.len(), 1, "one result an item, removing \"{path}\"");
    results.pop().expect("there is one, as was just checked")
}

/// Checks that `result` is an error of one of `kinds`.
#[track_caller]
pub(super) fn assert_refused<T>(result: Result<T, RemoteError>, kinds: &[ErrorKind], what: &str) {
    match result {
        Ok(_) => panic!("{what} succeeded, where {kinds:?} was due"),
        Err(error) => assert!(
            kinds.contains(&error.kind),
            "{what} gave {:?} ({}), where {kinds:?} was due",
            error.kind,
            chain(&error)
        ),
    }
}

/// An error with all its causes.
pub(super) fn chain(error: &RemoteError) -> String {
    let mut text = format!("{:?}: {error}", error.kind);
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A sink that keeps in memory what a later attempt needs, and what was saved in which order.
///
/// It checks the order: nothing advances that did not start, and nothing goes backwards.
#[derive(Debug, Default)]
pub struct RecordingSink(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    state: Option<ResumeState>,
    updates: usize,
}

impl RecordingSink {
    /// An empty sink.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What a later attempt would be given.
    #[must_use]
    pub fn state(&self) -> Option<ResumeState> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .state
            .clone()
    }

    /// How many updates were saved.
    #[must_use]
    pub fn updates(&self) -> usize {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .updates
    }
}

#[async_trait]
impl CheckpointSink for RecordingSink {
    async fn save(&self, update: CheckpointUpdate) -> Result<(), RemoteError> {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.updates += 1;
        match update {
            CheckpointUpdate::Started { state } => {
                recorded.state = Some(ResumeState {
                    state,
                    offset: 0,
                    parts: Vec::new(),
                });
            }
            CheckpointUpdate::Advanced { offset } => {
                let state = recorded
                    .state
                    .as_mut()
                    .expect("an upload starts before it advances");
                assert!(state.offset <= offset, "a checkpoint never goes backwards");
                state.offset = offset;
            }
            CheckpointUpdate::PartDone(part) => {
                let state = recorded
                    .state
                    .as_mut()
                    .expect("an upload starts before its parts");
                state.parts.retain(|known| known.number != part.number);
                state.parts.push(part);
                state.parts.sort_by_key(|known| known.number);
            }
            CheckpointUpdate::Forgotten => recorded.state = None,
        }
        drop(recorded);
        Ok(())
    }
}
