//! Repeats what failed for the moment, where repeating cannot do harm.
//!
//! * Repeated: listing (its start), looking, opening, reading (opened again at the byte that was
//!   reached, and only if it still is the same version), beginning an upload (the same staged name),
//!   and removing (what is gone is removed).
//! * Not repeated: chunks, staging and commits, as only the backend knows what arrived; and renames,
//!   as after an unclear answer the old name may be gone because the first attempt worked. Those come
//!   back to the planner, which looks before it tries again.
//! * Only [`Retry::Later`] of the kinds that pass by themselves within seconds. A full disk or a file
//!   that changed needs a new plan, and a place that is down is asked by one probe, not by every file.
//! * At most [`RetryPolicy::attempts`] attempts an operation. The delays grow twofold and differ from
//!   path to path, so that many that failed together do not come back together.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::{Entry, RelPath};
use knarr_fs::identity::RootIdentity;

use crate::error::{ErrorKind, RemoteError, Retry};
use crate::listing::{ListOptions, Listing};
use crate::local::LocalRemote;
use crate::remote::{
    Description, ReadOptions, Reader, Remote, Removal, RenameOptions, WriteOptions,
};
use crate::upload::Upload;

/// How often and how soon to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many attempts in all; 1 repeats nothing.
    pub attempts: u32,
    /// The longest delay before the second attempt; the shortest is half of it.
    pub first_delay: Duration,
    /// No delay is longer.
    pub longest_delay: Duration,
}

impl Default for RetryPolicy {
    /// Four attempts within about two seconds.
    fn default() -> Self {
        Self {
            attempts: 4,
            first_delay: Duration::from_millis(200),
            longest_delay: Duration::from_secs(5),
        }
    }
}

impl RetryPolicy {
    /// How long to wait after the failed attempt number `attempt` (from 1), or nothing if it was the
    /// last. The same `seed` always waits the same.
    #[must_use]
    pub fn delay_after(&self, attempt: u32, seed: &[u8]) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let longest = self
            .first_delay
            .saturating_mul(doubled)
            .min(self.longest_delay);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&attempt.to_le_bytes());
        hasher.update(seed);
        let [byte, ..] = *hasher.finalize().as_bytes();
        Some(longest / 2 + longest.saturating_mul(u32::from(byte)) / 512)
    }
}

/// A remote that repeats.
#[derive(Debug, Clone)]
pub struct Retrying {
    inner: Arc<dyn Remote>,
    policy: RetryPolicy,
}

impl Retrying {
    /// `inner`, repeating as `policy` says.
    #[must_use]
    pub const fn new(inner: Arc<dyn Remote>, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }

    async fn repeat<T, Attempt>(
        &self,
        seed: &[u8],
        attempt: impl Fn() -> Attempt + Send + Sync,
    ) -> Result<T, RemoteError>
    where
        T: Send,
        Attempt: Future<Output = Result<T, RemoteError>> + Send,
    {
        let mut number = 1;
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => wait(&self.policy, number, seed, error).await?,
            }
            number += 1;
        }
    }
}

/// Waits before the next attempt, or gives `error` back if there is to be none.
async fn wait(
    policy: &RetryPolicy,
    attempt: u32,
    seed: &[u8],
    error: RemoteError,
) -> Result<(), RemoteError> {
    if !passes_by_itself(&error) {
        return Err(error);
    }
    let Some(delay) = policy.delay_after(attempt, seed) else {
        return Err(error);
    };
    tracing::debug!(%error, attempt, ?delay, "trying again");
    tokio::time::sleep(delay).await;
    Ok(())
}

fn passes_by_itself(error: &RemoteError) -> bool {
    error.retry == Retry::Later
        && matches!(
            error.kind,
            ErrorKind::Throttled | ErrorKind::Protocol | ErrorKind::Other
        )
}

#[async_trait]
impl Remote for Retrying {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        let seed = options.below.as_ref().map_or(&[][..], RelPath::as_bytes);
        self.repeat(seed, || self.inner.list(options.clone())).await
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        self.repeat(path.as_bytes(), || self.inner.stat(path)).await
    }

    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        let open = || self.inner.read(path, options.clone());
        let reader = self.repeat(path.as_bytes(), open).await?;
        let entry = reader.entry().clone();
        let remote = self.clone();
        Ok(Box::new(RetryingReader {
            remote,
            reader,
            entry,
            position: options.offset,
        }))
    }

    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        self.repeat(path.as_bytes(), || self.inner.write(path, options.clone()))
            .await
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        self.inner.rename(from, to, options).await
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        let mut results = self.inner.remove(removals).await;
        let mut attempt = 1;
        loop {
            let again = to_repeat(&results);
            let Some(first) = again.first() else {
                return results;
            };
            let seed = removals
                .get(*first)
                .map_or(&[][..], |removal| removal.path.as_bytes());
            let Some(delay) = self.policy.delay_after(attempt, seed) else {
                return results;
            };
            tracing::debug!(items = again.len(), attempt, ?delay, "removing again");
            tokio::time::sleep(delay).await;
            let items: Vec<Removal> = again
                .iter()
                .filter_map(|at| removals.get(*at).cloned())
                .collect();
            for (at, result) in again.into_iter().zip(self.inner.remove(&items).await) {
                if let Some(slot) = results.get_mut(at) {
                    *slot = result;
                }
            }
            attempt += 1;
        }
    }

    async fn root_identity(&self) -> Result<Option<RootIdentity>, RemoteError> {
        self.inner.root_identity().await
    }

    async fn abandon(&self, path: &RelPath, state: &str) -> Result<(), RemoteError> {
        self.repeat(path.as_bytes(), || self.inner.abandon(path, state))
            .await
    }

    fn as_local(&self) -> Option<&LocalRemote> {
        self.inner.as_local()
    }
}

/// Which removals to try again: those that may pass, and with them directories that were not empty,
/// as what failed may lie in them.
fn to_repeat(results: &[Result<(), RemoteError>]) -> Vec<usize> {
    let failed = |meant: &dyn Fn(&RemoteError) -> bool| -> Vec<usize> {
        results
            .iter()
            .enumerate()
            .filter(|(_, result)| result.as_ref().is_err_and(meant))
            .map(|(at, _)| at)
            .collect()
    };
    if failed(&passes_by_itself).is_empty() {
        return Vec::new();
    }
    failed(&|error| passes_by_itself(error) || error.kind == ErrorKind::NotEmpty)
}

/// Opens the file again where reading it failed.
struct RetryingReader {
    remote: Retrying,
    reader: Box<dyn Reader>,
    /// What was opened first, and has to be there whenever it is opened again.
    entry: Entry,
    position: u64,
}

impl fmt::Debug for RetryingReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryingReader")
            .field("path", &self.entry.path)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl RetryingReader {
    /// What is left, from a reader of the same version.
    async fn open_again(&mut self) -> Result<(), RemoteError> {
        let options = ReadOptions {
            offset: self.position,
            expected: Some(self.entry.fingerprint()),
        };
        self.reader = self.remote.inner.read(&self.entry.path, options).await?;
        Ok(())
    }
}

#[async_trait]
impl Reader for RetryingReader {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        let mut attempt = 1;
        let mut result = self.reader.next().await;
        loop {
            match result {
                Ok(chunk) => {
                    self.position += chunk.as_ref().map_or(0, Bytes::len) as u64;
                    return Ok(chunk);
                }
                Err(error) => {
                    let seed = self.entry.path.as_bytes();
                    wait(&self.remote.policy, attempt, seed, error).await?;
                }
            }
            attempt += 1;
            result = match self.open_again().await {
                Ok(()) => self.reader.next().await,
                Err(error) => Err(error),
            };
        }
    }

    async fn finish(&mut self) -> Result<Entry, RemoteError> {
        let mut attempt = 1;
        loop {
            match self.reader.finish().await {
                Ok(entry) => return Ok(entry),
                Err(error) => {
                    let seed = self.entry.path.as_bytes();
                    wait(&self.remote.policy, attempt, seed, error).await?;
                }
            }
            attempt += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_twofold_up_to_the_longest_and_end_with_the_attempts() {
        let policy = RetryPolicy {
            attempts: 6,
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_millis(500),
        };
        for (attempt, longest) in [(1, 100), (2, 200), (3, 400), (4, 500), (5, 500)] {
            let delay = policy.delay_after(attempt, b"path").unwrap();
            let longest = Duration::from_millis(longest);
            assert!(
                (longest / 2..longest).contains(&delay),
                "{attempt}: {delay:?}"
            );
        }
        assert_eq!(policy.delay_after(6, b"path"), None);
        assert_eq!(
            RetryPolicy {
                attempts: 1,
                ..policy
            }
            .delay_after(1, b"path"),
            None
        );
    }

    #[test]
    fn paths_that_failed_together_do_not_come_back_together() {
        let policy = RetryPolicy::default();
        let delays: std::collections::BTreeSet<Duration> = (0_u8..64)
            .filter_map(|path| policy.delay_after(1, &[path]))
            .collect();
        assert!(delays.len() > 32, "{delays:?}");
    }

    #[test]
    fn neither_a_full_disk_nor_a_place_that_is_down_is_tried_again_here() {
        for (kind, repeated) in [
            (ErrorKind::Throttled, true),
            (ErrorKind::Other, true),
            (ErrorKind::NoSpace, false),
            (ErrorKind::Changed, false),
            (ErrorKind::Unreachable, false),
            (ErrorKind::NotFound, false),
        ] {
            assert_eq!(
                passes_by_itself(&RemoteError::new(kind, "test", "")),
                repeated,
                "{kind:?}"
            );
        }
    }
}
