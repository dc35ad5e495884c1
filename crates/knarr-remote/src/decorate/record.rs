//! Counts and remembers what a remote is asked, so that a test can say "one listing and no write".
//!
//! Counts are exact; of the calls themselves the first [`CALLS_LIMIT`] are remembered, chunks not at
//! all.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_fs::identity::RootIdentity;

use super::{Committers, unwrap};
use crate::error::RemoteError;
use crate::listing::{ListOptions, Listing};
use crate::operation::Operation;
use crate::remote::{
    Description, ReadOptions, Reader, Remote, Removal, RenameOptions, WriteOptions,
};
use crate::upload::{Committed, Committer, Staged, Upload};

/// How many calls are remembered.
pub const CALLS_LIMIT: usize = 10_000;

/// One call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub operation: Operation,
    /// About what; nothing for a listing of the whole tree.
    pub path: Option<RelPath>,
}

/// What was asked so far.
#[derive(Debug, Default)]
pub struct Record {
    counts: [AtomicU64; Operation::ALL.len()],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    calls: Mutex<Vec<Call>>,
}

impl Record {
    /// How often `operation` was asked for (items, for commits and removals).
    #[must_use]
    pub fn count(&self, operation: Operation) -> u64 {
        self.counts
            .get(operation.index())
            .map_or(0, |count| count.load(Ordering::SeqCst))
    }

    /// How many calls could have changed something.
    #[must_use]
    pub fn changes(&self) -> u64 {
        [
            Operation::Write,
            Operation::Commit,
            Operation::Rename,
            Operation::Remove,
        ]
        .into_iter()
        .map(|operation| self.count(operation))
        .sum()
    }

    /// How many bytes of content were read.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::SeqCst)
    }

    /// How many bytes of content were handed to uploads.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::SeqCst)
    }

    /// The first calls, in the order in which they began.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Forgets everything.
    pub fn reset(&self) {
        for count in self
            .counts
            .iter()
            .chain([&self.bytes_read, &self.bytes_written])
        {
            count.store(0, Ordering::SeqCst);
        }
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn count_one(&self, operation: Operation) {
        if let Some(count) = self.counts.get(operation.index()) {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn call(&self, operation: Operation, path: Option<&RelPath>) {
        self.count_one(operation);
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.len() < CALLS_LIMIT {
            calls.push(Call {
                operation,
                path: path.cloned(),
            });
        }
    }
}

/// A remote that keeps a [`Record`].
pub struct Recording {
    inner: Arc<dyn Remote>,
    record: Arc<Record>,
    committers: Arc<Committers>,
}

impl Recording {
    /// `inner` with an empty record.
    #[must_use]
    pub fn new(inner: Arc<dyn Remote>) -> Self {
        Self {
            inner,
            record: Arc::default(),
            committers: Arc::default(),
        }
    }

    /// What was asked so far.
    #[must_use]
    pub const fn record(&self) -> &Arc<Record> {
        &self.record
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Remote for Recording {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        self.record.call(Operation::List, options.below.as_ref());
        self.inner.list(options).await
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        self.record.call(Operation::Stat, Some(path));
        self.inner.stat(path).await
    }

    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        self.record.call(Operation::Read, Some(path));
        let reader = self.inner.read(path, options).await?;
        Ok(Box::new(RecordingReader {
            reader,
            record: Arc::clone(&self.record),
        }))
    }

    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        self.record.call(Operation::Write, Some(path));
        let upload = self.inner.write(path, options).await?;
        Ok(Box::new(RecordingUpload {
            upload,
            path: path.clone(),
            record: Arc::clone(&self.record),
            committers: Arc::clone(&self.committers),
        }))
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        self.record.call(Operation::Rename, Some(from));
        self.inner.rename(from, to, options).await
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        for removal in removals {
            self.record.call(Operation::Remove, Some(&removal.path));
        }
        self.inner.remove(removals).await
    }

    async fn root_identity(&self) -> Result<Option<RootIdentity>, RemoteError> {
        self.inner.root_identity().await
    }

    async fn abandon(&self, path: &RelPath, state: &str) -> Result<(), RemoteError> {
        // It removes something, if nothing that has a final name.
        self.record.call(Operation::Remove, Some(path));
        self.inner.abandon(path, state).await
    }
}

struct RecordingReader {
    reader: Box<dyn Reader>,
    record: Arc<Record>,
}

#[async_trait]
impl Reader for RecordingReader {
    fn entry(&self) -> &Entry {
        self.reader.entry()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        self.record.count_one(Operation::ReadChunk);
        let chunk = self.reader.next().await?;
        let length = chunk.as_ref().map_or(0, Bytes::len) as u64;
        self.record.bytes_read.fetch_add(length, Ordering::SeqCst);
        Ok(chunk)
    }

    async fn finish(&mut self) -> Result<Entry, RemoteError> {
        self.record
            .call(Operation::ReadFinish, Some(&self.reader.entry().path));
        self.reader.finish().await
    }
}

#[derive(Debug)]
struct RecordingUpload {
    upload: Box<dyn Upload>,
    path: RelPath,
    record: Arc<Record>,
    committers: Arc<Committers>,
}

#[async_trait]
impl Upload for RecordingUpload {
    fn resumed_at(&self) -> u64 {
        self.upload.resumed_at()
    }

    async fn resumed_hash(&mut self) -> Result<Option<blake3::Hasher>, RemoteError> {
        self.upload.resumed_hash().await
    }

    fn sent(&self) -> u64 {
        self.upload.sent()
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        self.record.count_one(Operation::WriteChunk);
        self.record
            .bytes_written
            .fetch_add(chunk.len() as u64, Ordering::SeqCst);
        self.upload.write(chunk).await
    }

    async fn stage(self: Box<Self>, length: u64, hash: ContentHash) -> Result<Staged, RemoteError> {
        let Self {
            upload,
            path,
            record,
            committers,
        } = *self;
        record.call(Operation::Stage, Some(&path));
        let staged = upload.stage(length, hash).await?;
        Ok(committers.wrap(staged, |inner| {
            Arc::new(RecordingCommitter { inner, record })
        }))
    }

    async fn suspend(self: Box<Self>) {
        self.upload.suspend().await;
    }

    async fn abort(self: Box<Self>) {
        self.upload.abort().await;
    }
}

struct RecordingCommitter {
    inner: Arc<dyn Committer>,
    record: Arc<Record>,
}

#[async_trait]
impl Committer for RecordingCommitter {
    async fn commit(&self, batch: Vec<Staged>) -> Vec<Result<Committed, RemoteError>> {
        for staged in &batch {
            self.record.call(Operation::Commit, Some(&staged.path));
        }
        self.inner.commit(unwrap(batch, &self.inner)).await
    }

    fn batch_limit(&self) -> usize {
        self.inner.batch_limit()
    }
}
