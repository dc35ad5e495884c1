//! A tree in memory: the twin beside the trait, with faults on order.
//!
//! * Holds whole files; for tests and for trying things out.
//! * What it can do is what its [`Capabilities`] say, so it can stand in for an SFTP server (mtimes to
//!   the second), an object store (no directories, tags, its own time) or a disk that folds case.
//! * Staged bytes live beside the tree and outlive the [`Upload`] that brought them, as a file on a
//!   server outlives the process: [`MemoryRemote`] clones share them, so dropping a remote and going
//!   on with a clone is a restart of the process.
//! * [`Faults`] make the next or the nth call of a kind fail, or a listing break off.

mod faults;
mod tree;
mod upload;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::entry::{Fingerprint, Kind};
use knarr_core::time::SystemClock;
use knarr_core::tree::TreeItem;
use knarr_core::{Clock, Entry, RelPath};

pub use self::faults::{Fault, Faults};
use self::tree::Tree;
use self::upload::MemoryCommitter;
use crate::error::{ErrorKind, RemoteError};
use crate::listing::{BATCH_ENTRIES, ListOptions, Listing};
use crate::operation::Operation;
use crate::remote::{
    Capabilities, Description, MtimeSupport, NewNode, ReadOptions, Reader, Remote, Removal,
    RenameOptions, WriteOptions,
};
use crate::upload::{Committer, Upload};

/// How many bytes a reader hands out at once.
const READ_CHUNK: usize = 128 << 10;

/// A tree in memory. Clones share the tree.
#[derive(Clone)]
pub struct MemoryRemote {
    description: Arc<Description>,
    shared: Arc<Shared>,
    /// One for all clones and uploads, so that batches are recognised by its address.
    committer: Arc<dyn Committer>,
}

#[derive(Debug)]
struct Shared {
    tree: Mutex<Tree>,
    faults: Faults,
}

impl Shared {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryRemote {
    /// An empty tree that can do everything, named `memory`.
    #[must_use]
    pub fn new() -> Self {
        Self::with("memory", Self::all_capabilities(), Arc::new(SystemClock))
    }

    /// An empty tree that is the same disk as others are: names that differ only by case are one.
    #[must_use]
    pub fn case_insensitive() -> Self {
        let capabilities = Capabilities {
            case_insensitive: true,
            ..Self::all_capabilities()
        };
        Self::with("memory", capabilities, Arc::new(SystemClock))
    }

    /// An empty tree that behaves like an object store: keys without directories, links or modes,
    /// its own time, no renaming.
    #[must_use]
    pub fn object_store() -> Self {
        let capabilities = Capabilities {
            mtime: MtimeSupport::OwnTime,
            directories: false,
            symlinks: false,
            modes: false,
            rename: false,
            case_insensitive: false,
            transfers: 16,
        };
        Self::with("memory", capabilities, Arc::new(SystemClock))
    }

    /// An empty tree at `location` that can do what `capabilities` say and asks `clock` for the time.
    #[must_use]
    pub fn with(
        location: impl Into<String>,
        capabilities: Capabilities,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let location = location.into();
        let tree = Mutex::new(Tree::new(capabilities.clone(), clock));
        let shared = Arc::new(Shared {
            tree,
            faults: Faults::default(),
        });
        let committer = Arc::new(MemoryCommitter::new(Arc::clone(&shared)));
        let description = Arc::new(Description {
            endpoint: location.clone(),
            location,
            capabilities,
        });
        Self {
            description,
            shared,
            committer,
        }
    }

    /// What [`MemoryRemote::new`] can do.
    #[must_use]
    pub const fn all_capabilities() -> Capabilities {
        Capabilities {
            mtime: MtimeSupport::Kept {
                precision_nanoseconds: 1,
            },
            directories: true,
            symlinks: true,
            modes: true,
            rename: true,
            case_insensitive: false,
            transfers: 16,
        }
    }

    /// The faults it will have.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Puts a file there at once, as somebody else would who also uses this place.
    ///
    /// # Errors
    /// As a commit that may replace anything.
    pub fn put(&self, path: &RelPath, content: impl Into<Bytes>) -> Result<Entry, RemoteError> {
        self.shared.tree().put(path, content.into())
    }

    /// The content of the file at `path`, if there is one.
    #[must_use]
    pub fn content(&self, path: &RelPath) -> Option<Bytes> {
        let tree = self.shared.tree();
        tree.find(path)
            .filter(|node| node.kind == Kind::File)
            .map(|node| node.content.clone())
    }

    /// Everything that is there, in tree order.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.shared.tree().entries(&ListOptions::default())
    }

    /// How many things are staged and neither committed nor given up.
    #[must_use]
    pub fn staged_count(&self) -> usize {
        self.shared.tree().staged.len()
    }

    /// How many files have names of Knarr's own, which no listing shows.
    #[must_use]
    pub fn hidden_count(&self) -> usize {
        self.shared.tree().hidden_count()
    }

    /// Forgets everything, as a disk that was unmounted or emptied behind our back.
    pub fn clear(&self) {
        self.shared.tree().clear();
    }

    fn unsupported(&self, operation: Operation, what: &str) -> RemoteError {
        let message = format!("{} has no {what}", self.description.location);
        RemoteError::new(ErrorKind::Unsupported, operation.name(), message)
    }
}

impl fmt::Debug for MemoryRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRemote")
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

impl Default for MemoryRemote {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Remote for MemoryRemote {
    fn describe(&self) -> &Description {
        &self.description
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        self.shared
            .faults
            .check(Operation::List, options.below.as_ref())?;
        let entries = {
            let tree = self.shared.tree();
            if let Some(below) = &options.below {
                tree.expect_directory(below)?;
            }
            tree.entries(&options)
        };
        let break_after = self.shared.faults.take_listing_break();
        let (sender, listing) = Listing::channel();
        // It ends by itself: when everything is sent, or when nobody reads any more.
        tokio::spawn(async move {
            let limit = break_after.unwrap_or(usize::MAX);
            let items: Vec<TreeItem> = entries
                .into_iter()
                .take(limit)
                .map(TreeItem::Entry)
                .collect();
            for batch in items.chunks(BATCH_ENTRIES) {
                if sender.send(batch.to_vec()).await.is_err() {
                    return;
                }
            }
            if break_after.is_none() {
                sender.end().await;
            }
        });
        Ok(listing)
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        self.shared.faults.check(Operation::Stat, Some(path))?;
        Ok(self.shared.tree().entry(path))
    }

    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        self.shared.faults.check(Operation::Read, Some(path))?;
        let tree = self.shared.tree();
        let (entry, content) = tree.open(path)?;
        drop(tree);
        check_expected(&entry, options.expected.as_ref())?;
        let offset = usize::try_from(options.offset).unwrap_or(usize::MAX);
        if offset > content.len() {
            let message = format!("it has {} bytes, fewer than {offset}", content.len());
            return Err(RemoteError::new(ErrorKind::Changed, "open", message).at(path));
        }
        let rest = content.slice(offset..);
        Ok(Box::new(MemoryReader {
            shared: Arc::clone(&self.shared),
            entry,
            rest,
        }))
    }

    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        self.shared.faults.check(Operation::Write, Some(path))?;
        let capabilities = &self.description.capabilities;
        match options.node {
            NewNode::Directory if !capabilities.directories => Err(self
                .unsupported(Operation::Write, "directories of their own")
                .at(path)),
            NewNode::Symlink { .. } if !capabilities.symlinks => Err(self
                .unsupported(Operation::Write, "symbolic links")
                .at(path)),
            _ => {
                let shared = Arc::clone(&self.shared);
                upload::begin(shared, Arc::clone(&self.committer), path, options).await
            }
        }
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        self.shared.faults.check(Operation::Rename, Some(from))?;
        if !self.description.capabilities.rename {
            return Err(self
                .unsupported(Operation::Rename, "way to rename")
                .at(from));
        }
        self.shared.tree().rename(from, to, &options.replace)
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        removals
            .iter()
            .map(|removal| {
                self.shared
                    .faults
                    .check(Operation::Remove, Some(&removal.path))?;
                self.shared.tree().remove(removal)
            })
            .collect()
    }

    async fn abandon(&self, path: &RelPath, state: &str) -> Result<(), RemoteError> {
        self.shared.faults.check(Operation::Remove, Some(path))?;
        let mut tree = self.shared.tree();
        tree.staged.retain(|id, _bytes| id.file_name() != state);
        Ok(())
    }
}

/// Refuses `entry` if it is not what was expected.
fn check_expected(entry: &Entry, expected: Option<&Fingerprint>) -> Result<(), RemoteError> {
    match expected {
        Some(expected) if !expected.still_describes(entry) => Err(RemoteError::new(
            ErrorKind::Changed,
            "open",
            "it is not the version that was seen before",
        )
        .at(&entry.path)),
        _ => Ok(()),
    }
}

struct MemoryReader {
    shared: Arc<Shared>,
    entry: Entry,
    rest: Bytes,
}

#[async_trait]
impl Reader for MemoryReader {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        self.shared
            .faults
            .check(Operation::ReadChunk, Some(&self.entry.path))?;
        if self.rest.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.rest.split_to(READ_CHUNK.min(self.rest.len()))))
    }

    async fn finish(&mut self) -> Result<Entry, RemoteError> {
        self.shared
            .faults
            .check(Operation::ReadFinish, Some(&self.entry.path))?;
        self.shared.tree().entry(&self.entry.path).ok_or_else(|| {
            RemoteError::new(
                ErrorKind::NotFound,
                "look again at",
                "it was removed meanwhile",
            )
            .at(&self.entry.path)
        })
    }
}
