//! Reads as it is and changes nothing.
//!
//! * [`DryRunMode::Refuse`] fails every change: for code that must not make one.
//! * [`DryRunMode::Pretend`] looks whether the change would be allowed, answers as if it had been
//!   made, and remembers it. What was pretended is not there afterwards: reading shows the place as
//!   it is. Content that is handed in is counted and thrown away.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::entry::Kind;
use knarr_core::record::Evidence;
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_fs::identity::RootIdentity;

use crate::error::{ErrorKind, RemoteError};
use crate::guard::{changed, check_replace, missing, wrong_kind};
use crate::listing::{ListOptions, Listing};
use crate::remote::{
    Description, MtimeSupport, NewNode, ReadOptions, Reader, Remote, Removal, RenameOptions,
    WriteOptions,
};
use crate::upload::{Committed, Committer, Staged, Upload};

/// How many changes are remembered.
pub const CHANGES_LIMIT: usize = 10_000;

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DryRunMode {
    /// It is an error.
    Refuse,
    /// It is answered as if it had been made.
    Pretend,
}

/// A change that was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PretendedChange {
    /// This would have been committed.
    Put {
        /// Where.
        path: RelPath,
        /// What kind of thing.
        kind: Kind,
        /// Its length in bytes.
        size: u64,
    },
    /// This would have been renamed.
    Rename {
        /// The old path.
        from: RelPath,
        /// The new path.
        to: RelPath,
    },
    /// This would have been removed.
    Remove {
        /// Where.
        path: RelPath,
    },
}

/// A remote that changes nothing.
#[derive(Clone)]
pub struct DryRun {
    inner: Arc<dyn Remote>,
    mode: DryRunMode,
    pretended: Arc<Mutex<Vec<PretendedChange>>>,
    committer: Arc<dyn Committer>,
}

impl DryRun {
    /// `inner` without changes.
    #[must_use]
    pub fn new(inner: Arc<dyn Remote>, mode: DryRunMode) -> Self {
        let pretended = Arc::<Mutex<Vec<PretendedChange>>>::default();
        let committer = Arc::new(PretendingCommitter {
            inner: Arc::clone(&inner),
            pretended: Arc::clone(&pretended),
        });
        Self {
            inner,
            mode,
            pretended,
            committer,
        }
    }

    /// The first changes that were not made, in order.
    #[must_use]
    pub fn pretended(&self) -> Vec<PretendedChange> {
        self.pretended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn check_mode(&self, operation: &str, path: &RelPath) -> Result<(), RemoteError> {
        match self.mode {
            DryRunMode::Pretend => Ok(()),
            DryRunMode::Refuse => {
                let message = "nothing is changed in a dry run";
                Err(RemoteError::new(ErrorKind::Unsupported, operation, message).at(path))
            }
        }
    }

    async fn pretend_remove(&self, removal: &Removal) -> Result<(), RemoteError> {
        let path = &removal.path;
        self.check_mode("remove", path)?;
        let Some(found) = self.inner.stat(path).await? else {
            return Ok(());
        };
        if found.kind != removal.kind {
            return Err(wrong_kind("remove", path, found.kind, removal.kind));
        }
        if removal
            .seen
            .as_ref()
            .is_some_and(|seen| !seen.still_describes(&found))
        {
            return Err(changed("remove", path));
        }
        remember(
            &self.pretended,
            PretendedChange::Remove { path: path.clone() },
        );
        Ok(())
    }
}

fn remember(pretended: &Mutex<Vec<PretendedChange>>, change: PretendedChange) {
    let mut pretended = pretended.lock().unwrap_or_else(PoisonError::into_inner);
    if pretended.len() < CHANGES_LIMIT {
        pretended.push(change);
    }
}

impl fmt::Debug for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DryRun")
            .field("inner", &self.inner)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Remote for DryRun {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        self.inner.list(options).await
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        self.inner.stat(path).await
    }

    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        self.inner.read(path, options).await
    }

    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        self.check_mode("write", path)?;
        Ok(Box::new(PretendedUpload {
            path: path.clone(),
            options,
            committer: Arc::clone(&self.committer),
            length: 0,
        }))
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        self.check_mode("rename", from)?;
        let Some(found) = self.inner.stat(from).await? else {
            return Err(missing("rename", from));
        };
        let there = self.inner.stat(to).await?;
        check_replace("rename", to, found.kind, there.as_ref(), &options.replace)?;
        let change = PretendedChange::Rename {
            from: from.clone(),
            to: to.clone(),
        };
        remember(&self.pretended, change);
        Ok(Entry {
            path: to.clone(),
            ..found
        })
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        let mut results = Vec::with_capacity(removals.len());
        for removal in removals {
            results.push(self.pretend_remove(removal).await);
        }
        results
    }

    async fn root_identity(&self) -> Result<Option<RootIdentity>, RemoteError> {
        self.inner.root_identity().await
    }

    async fn abandon(&self, path: &RelPath, _state: &str) -> Result<(), RemoteError> {
        // What is staged has no final name, so nobody has to hear that it would be removed.
        self.check_mode("give up what is staged for", path)
    }
}

struct PretendedUpload {
    path: RelPath,
    options: WriteOptions,
    committer: Arc<dyn Committer>,
    length: u64,
}

impl fmt::Debug for PretendedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PretendedUpload")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Upload for PretendedUpload {
    fn resumed_at(&self) -> u64 {
        0
    }

    fn sent(&self) -> u64 {
        0
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        self.length += chunk.len() as u64;
        Ok(())
    }

    async fn stage(
        self: Box<Self>,
        length: u64,
        _hash: ContentHash,
    ) -> Result<Staged, RemoteError> {
        let Self {
            path,
            options,
            committer,
            length: handed_in,
        } = *self;
        if handed_in != length {
            let message = format!("{handed_in} bytes were written instead of {length}");
            return Err(RemoteError::new(ErrorKind::Changed, "stage", message).at(&path));
        }
        Ok(Staged {
            committer,
            path,
            state: Box::new(Pretended { options, length }),
        })
    }

    async fn suspend(self: Box<Self>) {}

    async fn abort(self: Box<Self>) {}
}

/// What would be committed.
struct Pretended {
    options: WriteOptions,
    length: u64,
}

struct PretendingCommitter {
    inner: Arc<dyn Remote>,
    pretended: Arc<Mutex<Vec<PretendedChange>>>,
}

#[async_trait]
impl Committer for PretendingCommitter {
    async fn commit(&self, batch: Vec<Staged>) -> Vec<Result<Committed, RemoteError>> {
        let mut results = Vec::with_capacity(batch.len());
        for staged in batch {
            results.push(self.pretend(staged).await);
        }
        results
    }

    fn batch_limit(&self) -> usize {
        1_000
    }
}

impl PretendingCommitter {
    async fn pretend(&self, staged: Staged) -> Result<Committed, RemoteError> {
        let Staged { path, state, .. } = staged;
        let state = state.downcast::<Pretended>().map_err(|_other| {
            let message = "it was staged at another place";
            RemoteError::new(ErrorKind::Other, "commit", message).at(&path)
        })?;
        let Pretended { options, length } = *state;
        let there = self.inner.stat(&path).await?;
        let mut entry = match options.node {
            NewNode::File { .. } => Entry::file(path, length),
            NewNode::Directory => Entry::directory(path),
            NewNode::Symlink { target } => Entry::symlink(path, target),
        };
        let again = entry.kind == Kind::Directory
            && there
                .as_ref()
                .is_some_and(|there| there.kind == Kind::Directory);
        if !again {
            check_replace(
                "commit",
                &entry.path,
                entry.kind,
                there.as_ref(),
                &options.replace,
            )?;
        }
        let capabilities = &self.inner.describe().capabilities;
        entry.mode = options.mode.filter(|_| capabilities.modes);
        if capabilities.mtime != MtimeSupport::OwnTime {
            entry.mtime = options.mtime;
        }
        let (path, kind, size) = (entry.path.clone(), entry.kind, entry.size);
        remember(&self.pretended, PretendedChange::Put { path, kind, size });
        Ok(Committed {
            entry,
            evidence: Evidence::None,
        })
    }
}
