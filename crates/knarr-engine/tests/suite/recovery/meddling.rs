//! A place where something goes wrong that the place itself does not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::{Entry, RelPath};
use knarr_remote::memory::MemoryRemote;
use knarr_remote::{
    Description, ErrorKind, ListOptions, Listing, ReadOptions, Reader, Remote, RemoteError,
    Removal, RenameOptions, Upload, WriteOptions,
};

/// An object store in memory that does what it is told and has the wrong bytes, other writers, and
/// answers that get lost.
#[derive(Debug)]
pub(super) struct Meddling {
    pub(super) memory: MemoryRemote,
    /// How many of the next reads give other bytes.
    pub(super) damaged_reads: AtomicU64,
    /// Of how many of the next removals the answer is lost.
    pub(super) lost_removals: AtomicU64,
    /// What somebody else puts where an upload has just begun, once.
    pub(super) other: std::sync::Mutex<Option<Bytes>>,
}

impl Meddling {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryRemote::object_store(),
            damaged_reads: AtomicU64::new(0),
            lost_removals: AtomicU64::new(0),
            other: std::sync::Mutex::default(),
        })
    }
}

fn takes(counter: &AtomicU64) -> bool {
    let less = |left: u64| left.checked_sub(1);
    counter
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok()
}

struct Damaged(Box<dyn Reader>);

#[async_trait]
impl Reader for Damaged {
    fn entry(&self) -> &Entry {
        self.0.entry()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        let chunk = self.0.next().await?;
        Ok(chunk.map(|chunk| chunk.iter().map(|byte| !byte).collect()))
    }

    async fn finish(&mut self) -> Result<Entry, RemoteError> {
        self.0.finish().await
    }
}

#[async_trait]
impl Remote for Meddling {
    fn describe(&self) -> &Description {
        self.memory.describe()
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        self.memory.list(options).await
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        self.memory.stat(path).await
    }

    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        let reader = self.memory.read(path, options).await?;
        if takes(&self.damaged_reads) {
            return Ok(Box::new(Damaged(reader)));
        }
        Ok(reader)
    }

    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        let upload = self.memory.write(path, options).await?;
        let other = self.other.lock().unwrap().take();
        if let Some(content) = other {
            self.memory.put(path, content)?;
        }
        Ok(upload)
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        self.memory.rename(from, to, options).await
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        let results = self.memory.remove(removals).await;
        let lose = |result: Result<(), RemoteError>| {
            if takes(&self.lost_removals) {
                let message = "the connection broke before the answer";
                return Err(RemoteError::new(ErrorKind::Unreachable, "remove", message));
            }
            result
        };
        results.into_iter().map(lose).collect()
    }
}
