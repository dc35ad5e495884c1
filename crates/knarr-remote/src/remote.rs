//! The [`Remote`] trait: what every place can do.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::entry::{Fingerprint, Kind};
use knarr_core::job::Verify;
use knarr_core::{Entry, RelPath, Timestamp};
use knarr_fs::identity::RootIdentity;

use crate::error::RemoteError;
use crate::listing::{ListOptions, Listing};
use crate::upload::{CheckpointSink, ResumeState, StagedId, Upload};

/// One root somewhere, and all that Knarr ever does there.
///
/// Implementations are cheap to share and used from many tasks at once. Dropping a future cancels
/// its operation; what was staged stays under its staged name and is reused or cleaned up later.
/// Not guaranteed: that a listing sees a change made while it runs.
#[async_trait]
pub trait Remote: Send + Sync + fmt::Debug {
    /// What this place is and can do. Does not touch the network.
    fn describe(&self) -> &Description;

    /// Starts a listing in tree order.
    ///
    /// # Errors
    /// If nothing at all can be listed: the root is missing ([`crate::ErrorKind::NotFound`]) or out
    /// of reach. What goes wrong later is an item of the listing.
    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError>;

    /// What lies at `path` (links are not followed), or nothing.
    ///
    /// # Errors
    /// If that cannot be told; never as a way to say that nothing is there.
    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError>;

    /// Opens the file at `path` for reading.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Changed`] if it is not `options.expected` any more.
    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError>;

    /// Starts to write `options.node` for `path`, under a staged name; missing parents are made.
    /// Nothing is visible at `path` before the commit of what [`Upload::stage`] returns.
    ///
    /// # Errors
    /// If the place cannot take it.
    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError>;

    /// Gives `from`, a file or a directory, the name `to`; missing parents are made. Durable when done.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] where that would mean copying;
    /// [`crate::ErrorKind::AlreadyExists`] or [`crate::ErrorKind::Changed`] as `options.replace` says.
    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError>;

    /// Removes files and empty directories, in the given order as far as that matters. One result
    /// an item; what is gone already is removed. Durable when done.
    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>>;

    /// Removes what an earlier attempt at `path` left, of which only the saved text `state` (of
    /// [`crate::CheckpointUpdate::Started`]) is known: a staged file, a multipart upload and its parts.
    /// What is gone already is removed. The caller makes sure that no attempt at `path` is under way
    /// and that none will go on from `state`. A place that keeps nothing has nothing to do.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidName`] if this place never saved such a text, so that repeating does
    /// not help; anything else if the place could not be told, and keeps what it has.
    async fn abandon(&self, _path: &RelPath, _state: &str) -> Result<(), RemoteError> {
        Ok(())
    }

    /// Which directory the root is, if that can be told apart from another one in its place: an
    /// unmounted disk leaves an empty directory under the same path (K5).
    ///
    /// # Errors
    /// If the root is missing or cannot be looked at.
    async fn root_identity(&self) -> Result<Option<RootIdentity>, RemoteError> {
        Ok(None)
    }

    /// The local directory behind this remote, for the lane that copies between two of them.
    fn as_local(&self) -> Option<&crate::local::LocalRemote> {
        None
    }
}

/// What a place is and can do.
#[derive(Debug, Clone)]
pub struct Description {
    /// The location as a person writes it, without secrets: `sftp://acme@host/outbox`.
    pub location: String,
    /// The endpoint all locations on the same server share, for limits and health: `sftp://acme@host:22`.
    pub endpoint: String,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// What a place can do.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Whether and how exactly a file keeps the source's mtime.
    pub mtime: MtimeSupport,
    /// Whether directories exist by themselves (object stores have only keys).
    pub directories: bool,
    /// Whether symbolic links can be stored.
    pub symlinks: bool,
    /// Whether permission bits are kept.
    pub modes: bool,
    /// Whether [`Remote::rename`] works.
    pub rename: bool,
    /// Whether names that differ only by case are the same name.
    pub case_insensitive: bool,
    /// How many transfers at once make sense for small files, unless the user says otherwise.
    pub transfers: usize,
}

/// Whether and how exactly a file keeps the source's mtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtimeSupport {
    /// Kept, to this many nanoseconds.
    Kept {
        /// 1 for a modern local disk, 1,000,000,000 for SFTP version 3.
        precision_nanoseconds: u64,
    },
    /// The place sets its own time (object stores).
    OwnTime,
}

/// How to read.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// The first byte to deliver.
    pub offset: u64,
    /// What the caller believes to be there; another version is refused.
    pub expected: Option<Fingerprint>,
}

/// A file being read from its start (or offset) to its end.
#[async_trait]
pub trait Reader: Send {
    /// The file as it was when it was opened.
    fn entry(&self) -> &Entry;

    /// The next bytes, or nothing at the end. Reads ahead within a bounded window.
    ///
    /// # Errors
    /// Also if the file ended before the length it had when it was opened
    /// ([`crate::ErrorKind::Changed`]).
    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError>;

    /// The file as it is now, after the last byte: if it is not [`Reader::entry`] any more, what was
    /// read may be a mixture of versions. A place where that cannot be may tell what was read instead.
    ///
    /// # Errors
    /// If that cannot be told.
    async fn finish(&mut self) -> Result<Entry, RemoteError>;
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewNode {
    /// A file.
    File {
        /// Its length in bytes, if it is known before.
        size: Option<u64>,
    },
    /// A directory.
    Directory,
    /// A symbolic link with this target, kept as it is.
    Symlink {
        /// What the link says.
        target: Box<[u8]>,
    },
}

/// What may be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replace {
    /// Nothing: if something is there, that is an error.
    Nothing,
    /// Only what was seen there before; anything else is an error.
    Seen(Fingerprint),
    /// Whatever is there (a file or link; never a directory).
    Anything,
}

/// How to write.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// What to make.
    pub node: NewNode,
    /// What the staged name is made from; the same for every attempt at the same path, so that an
    /// attempt finds or overwrites what the one before it left.
    pub staged_id: StagedId,
    /// The mtime to give it.
    pub mtime: Option<Timestamp>,
    /// The permission bits to give it.
    pub mode: Option<u32>,
    /// What the commit may replace.
    pub replace: Replace,
    /// How the place should make sure that it holds the right bytes before the commit.
    pub verify: Verify,
    /// What an earlier attempt left, if it is to be continued.
    pub resume: Option<ResumeState>,
    /// Where to save what a later attempt needs. Without it nothing can be resumed.
    pub checkpoints: Option<Arc<dyn CheckpointSink>>,
}

impl WriteOptions {
    /// A new file of unknown length that replaces nothing.
    #[must_use]
    pub const fn new(node: NewNode, staged_id: StagedId) -> Self {
        Self {
            node,
            staged_id,
            mtime: None,
            mode: None,
            replace: Replace::Nothing,
            verify: Verify::Offered,
            resume: None,
            checkpoints: None,
        }
    }
}

/// How to rename.
#[derive(Debug, Clone)]
pub struct RenameOptions {
    /// What may be replaced at the new name.
    pub replace: Replace,
}

/// One thing to remove.
#[derive(Debug, Clone)]
pub struct Removal {
    /// Where.
    pub path: RelPath,
    /// What: a directory is removed only if it is empty, and nothing else in its place.
    pub kind: Kind,
    /// What was seen there; another version is not removed ([`crate::ErrorKind::Changed`]).
    pub seen: Option<Fingerprint>,
}
