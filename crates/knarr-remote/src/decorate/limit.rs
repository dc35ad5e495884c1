//! Limits bytes a second and calls at once.
//!
//! * A [`Bandwidth`] may be shared by many remotes; their bytes add up. Wrap one side of a copy, or
//!   both with a bandwidth each: with the same one around both sides every byte counts twice.
//! * Bytes that an earlier attempt brought over already are free.
//! * After a pause at most [`BURST`] worth of bytes goes at once.
//! * The limit of calls counts calls, not open files: a permit is held while a call runs and never
//!   between calls, so a reader that waits for a writer on the same endpoint cannot lock it up. How
//!   many files are open at once is for the caller to decide ([`crate::Capabilities::transfers`]).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_fs::identity::RootIdentity;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::{Committers, unwrap};
use crate::error::RemoteError;
use crate::listing::{ListOptions, Listing};
use crate::local::LocalRemote;
use crate::remote::{
    Description, ReadOptions, Reader, Remote, Removal, RenameOptions, WriteOptions,
};
use crate::upload::{Committed, Committer, Staged, Upload};

/// How much unused time is kept for later.
pub const BURST: Duration = Duration::from_millis(125);
/// No piece of an upload is smaller, however low the limit.
const SMALLEST_PIECE: u64 = 16 << 10;

/// A number of bytes a second, shared by all who hold it.
#[derive(Debug)]
pub struct Bandwidth {
    /// 0 for no limit.
    bytes_per_second: AtomicU64,
    began: Instant,
    schedule: Mutex<Schedule>,
}

/// When the next byte may go, since the beginning.
#[derive(Debug, Default)]
struct Schedule {
    free_at: Duration,
}

impl Schedule {
    /// Books `bytes` and tells how long they have to wait.
    fn book(&mut self, now: Duration, bytes: u64, bytes_per_second: u64) -> Duration {
        let start = self.free_at.max(now.saturating_sub(BURST));
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.free_at = start.saturating_add(takes);
        start.saturating_sub(now)
    }
}

impl Bandwidth {
    /// At most `bytes_per_second`; 0 for no limit.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes_per_second: AtomicU64::new(bytes_per_second),
            began: Instant::now(),
            schedule: Mutex::default(),
        })
    }

    /// From now on at most `bytes_per_second`; 0 for no limit.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second
            .store(bytes_per_second, Ordering::Relaxed);
    }

    /// The limit in bytes a second; 0 for none.
    #[must_use]
    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` may go. Who asks first goes first.
    pub async fn take(&self, bytes: u64) {
        let rate = self.bytes_per_second();
        if rate == 0 || bytes == 0 {
            return;
        }
        let wait = {
            let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
            schedule.book(self.began.elapsed(), bytes, rate)
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// How many bytes to hand on at once, so that they flow instead of coming in gushes.
    fn piece(&self) -> usize {
        match self.bytes_per_second() {
            0 => usize::MAX,
            rate => usize::try_from((rate / 8).max(SMALLEST_PIECE)).unwrap_or(usize::MAX),
        }
    }
}

/// What is limited.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Bytes a second of content, read and written.
    pub bandwidth: Option<Arc<Bandwidth>>,
    /// Calls at once; to be shared by all remotes of an endpoint.
    pub calls: Option<Arc<Semaphore>>,
}

impl Limits {
    async fn call(&self) -> Option<SemaphorePermit<'_>> {
        match &self.calls {
            // Nobody closes it; if somebody did, there would be no limit any more.
            Some(calls) => calls.acquire().await.ok(),
            None => None,
        }
    }

    async fn bytes(&self, bytes: u64) {
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.take(bytes).await;
        }
    }
}

/// A remote with limits.
pub struct Limited {
    inner: Arc<dyn Remote>,
    limits: Limits,
    committers: Arc<Committers>,
}

impl Limited {
    /// `inner` within `limits`.
    #[must_use]
    pub fn new(inner: Arc<dyn Remote>, limits: Limits) -> Self {
        Self {
            inner,
            limits,
            committers: Arc::default(),
        }
    }
}

impl fmt::Debug for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited")
            .field("inner", &self.inner)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Remote for Limited {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        let _permit = self.limits.call().await;
        self.inner.list(options).await
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        let _permit = self.limits.call().await;
        self.inner.stat(path).await
    }

    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        let _permit = self.limits.call().await;
        let reader = self.inner.read(path, options).await?;
        Ok(Box::new(LimitedReader {
            reader,
            limits: self.limits.clone(),
        }))
    }

    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        let _permit = self.limits.call().await;
        let upload = self.inner.write(path, options).await?;
        Ok(Box::new(LimitedUpload {
            upload,
            limits: self.limits.clone(),
            committers: Arc::clone(&self.committers),
            position: 0,
        }))
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        let _permit = self.limits.call().await;
        self.inner.rename(from, to, options).await
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        let _permit = self.limits.call().await;
        self.inner.remove(removals).await
    }

    async fn root_identity(&self) -> Result<Option<RootIdentity>, RemoteError> {
        self.inner.root_identity().await
    }

    async fn abandon(&self, path: &RelPath, state: &str) -> Result<(), RemoteError> {
        let _permit = self.limits.call().await;
        self.inner.abandon(path, state).await
    }

    fn as_local(&self) -> Option<&LocalRemote> {
        // A copy past this decorator would not be limited.
        let unlimited = self.limits.bandwidth.is_none() && self.limits.calls.is_none();
        if unlimited {
            self.inner.as_local()
        } else {
            None
        }
    }
}

struct LimitedReader {
    reader: Box<dyn Reader>,
    limits: Limits,
}

#[async_trait]
impl Reader for LimitedReader {
    fn entry(&self) -> &Entry {
        self.reader.entry()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        let chunk = {
            let _permit = self.limits.call().await;
            self.reader.next().await?
        };
        // They are here already; while they are held back, the window below fills and the sender waits.
        self.limits
            .bytes(chunk.as_ref().map_or(0, Bytes::len) as u64)
            .await;
        Ok(chunk)
    }

    async fn finish(&mut self) -> Result<Entry, RemoteError> {
        let _permit = self.limits.call().await;
        self.reader.finish().await
    }
}

#[derive(Debug)]
struct LimitedUpload {
    upload: Box<dyn Upload>,
    limits: Limits,
    committers: Arc<Committers>,
    position: u64,
}

#[async_trait]
impl Upload for LimitedUpload {
    fn resumed_at(&self) -> u64 {
        self.upload.resumed_at()
    }

    async fn resumed_hash(&mut self) -> Result<Option<blake3::Hasher>, RemoteError> {
        let hasher = {
            let _permit = self.limits.call().await;
            self.upload.resumed_hash().await?
        };
        if hasher.is_some() {
            self.position = self.upload.resumed_at();
        }
        Ok(hasher)
    }

    fn sent(&self) -> u64 {
        self.upload.sent()
    }

    async fn write(&mut self, mut chunk: Bytes) -> Result<(), RemoteError> {
        let largest = self
            .limits
            .bandwidth
            .as_ref()
            .map_or(usize::MAX, |limit| limit.piece());
        while !chunk.is_empty() {
            let piece = chunk.split_to(largest.min(chunk.len()));
            let end = self.position + piece.len() as u64;
            let known = self.upload.resumed_at().clamp(self.position, end) - self.position;
            self.limits.bytes(piece.len() as u64 - known).await;
            let _permit = self.limits.call().await;
            self.upload.write(piece).await?;
            self.position = end;
        }
        Ok(())
    }

    async fn stage(self: Box<Self>, length: u64, hash: ContentHash) -> Result<Staged, RemoteError> {
        let Self {
            upload,
            limits,
            committers,
            ..
        } = *self;
        let staged = {
            let _permit = limits.call().await;
            upload.stage(length, hash).await?
        };
        let calls = limits.calls.clone();
        Ok(committers.wrap(staged, |inner| Arc::new(LimitedCommitter { inner, calls })))
    }

    async fn suspend(self: Box<Self>) {
        // Not limited: it has to end soon, and takes no more than was under way.
        self.upload.suspend().await;
    }

    async fn abort(self: Box<Self>) {
        self.upload.abort().await;
    }
}

struct LimitedCommitter {
    inner: Arc<dyn Committer>,
    calls: Option<Arc<Semaphore>>,
}

#[async_trait]
impl Committer for LimitedCommitter {
    async fn commit(&self, batch: Vec<Staged>) -> Vec<Result<Committed, RemoteError>> {
        let limits = Limits {
            bandwidth: None,
            calls: self.calls.clone(),
        };
        let _permit = limits.call().await;
        self.inner.commit(unwrap(batch, &self.inner)).await
    }

    fn batch_limit(&self) -> usize {
        self.inner.batch_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bytes_flow_at_the_rate_whatever_the_pieces() {
        for pieces in [1, 10, 1_000] {
            let mut schedule = Schedule::default();
            let mut now = 10 * SECOND;
            for _ in 0..pieces {
                now += schedule.book(now, 10_000 / pieces, 1_000);
            }
            // The last piece goes when those before it are through, less what the pause before gave.
            let through = schedule.free_at.saturating_sub(10 * SECOND);
            assert_eq!(through, 10 * SECOND - BURST, "{pieces} pieces");
            assert!(now < 20 * SECOND, "{pieces} pieces");
        }
    }

    #[test]
    fn a_pause_gives_no_more_than_a_burst() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.book(SECOND, 125, 1_000), Duration::ZERO);
        assert_eq!(schedule.book(SECOND, 1_000, 1_000), Duration::ZERO);
        assert_eq!(schedule.book(SECOND, 1_000, 1_000), SECOND);
        assert_eq!(
            schedule.book(100 * SECOND, 125, 1_000),
            Duration::ZERO,
            "long after"
        );
        assert_eq!(schedule.book(100 * SECOND, 500, 1_000), Duration::ZERO);
        assert_eq!(schedule.book(100 * SECOND, 1, 1_000), SECOND / 2);
    }

    #[test]
    fn two_who_share_a_bandwidth_get_half_each() {
        let mut schedule = Schedule::default();
        let mut waits = [Duration::ZERO; 2];
        for turn in 0..20 {
            // Both ask at the same time, and again when their bytes went.
            let at = waits[turn % 2];
            waits[turn % 2] = at + schedule.book(at, 1_000, 1_000);
        }
        assert!(waits.iter().all(|wait| *wait >= 17 * SECOND), "{waits:?}");
    }
}
