//! A local directory as a remote.
//!
//! * Everything goes through one [`Root`] handle, which cannot be left (K12). A root that is missing
//!   is made by the first commit or upload, never by looking.
//! * The root is looked at again around every listing, and whenever something is not there: a disk
//!   that was unmounted or replaced is an endpoint that is down, not a tree that was emptied (K5).
//! * System calls block, so they run on blocking threads; crossings between threads cost more than
//!   small files do. One crossing reads a small file or commits a batch; large files have one thread
//!   each, with at most [`CHUNKS_AHEAD`] chunks under way.
//! * Contents of small files wait in memory for the commit of their batch, at most
//!   [`WAITING_BYTES`] for one remote; what does not fit is staged on the disk at once.

mod change;
mod commit;
mod error;
mod reader;
mod upload;
mod writer;

use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::future::join_all;
use knarr_core::path::printable;
use knarr_core::tree::{Incomplete, TreeItem};
use knarr_core::{Entry, Kind, RelPath};
use knarr_fs::Root;
use knarr_fs::identity::RootIdentity;
use knarr_fs::walk::{WalkOptions, Walker};
use tokio::sync::{Semaphore, oneshot};

use self::commit::LocalCommitter;
use self::error::from_fs;
use crate::error::{ErrorKind, RemoteError};
use crate::listing::{BATCH_ENTRIES, ListOptions, Listing, ListingSender};
use crate::remote::{
    Capabilities, Description, MtimeSupport, ReadOptions, Reader, Remote, Removal, RenameOptions,
    WriteOptions,
};
use crate::upload::{Committer, Upload};

/// Files up to this length are read, and written, in one go.
pub const SMALL_BYTES: u64 = 256 << 10;
/// How many bytes of small files may wait for their commit, for one remote.
pub const WAITING_BYTES: usize = 32 << 20;
/// How many bytes of files that were read when they were looked at wait in memory.
pub const LOOK_BYTES: usize = 16 << 20;
/// How many paths are looked at one after the other.
const LOOKED_AT: usize = 32;
/// How many chunks of a large file may be under way between its thread and the caller.
pub const CHUNKS_AHEAD: usize = 4;

/// A local directory. Clones share it.
#[derive(Clone)]
pub struct LocalRemote {
    place: Arc<Place>,
    description: Arc<Description>,
    /// One for all clones and uploads, so that batches are recognised by its address.
    committer: Arc<dyn Committer>,
}

/// What the remote, its uploads and its committer share.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// The root as it was opened last. Uploads keep the one they began with.
    root: Mutex<Option<Arc<Root>>>,
    /// KiB of small files that may still wait in memory.
    waiting: Arc<Semaphore>,
    /// KiB of small files that may still be read when they are looked at.
    looking: Arc<Semaphore>,
}

/// What a root that is missing means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfMissing {
    /// It is an error.
    Fail,
    /// It is made, with everything above it.
    Make,
}

impl Place {
    /// The root, opened if it is not yet. Blocks.
    fn root(&self, if_missing: IfMissing) -> Result<Arc<Root>, RemoteError> {
        let mut current = self.lock();
        if let Some(root) = &*current {
            return Ok(Arc::clone(root));
        }
        let opened = match if_missing {
            IfMissing::Fail => Root::open(&self.path),
            IfMissing::Make => Root::create(&self.path),
        };
        let root = Arc::new(opened.map_err(|error| from_fs("open", None, error))?);
        *current = Some(Arc::clone(&root));
        Ok(root)
    }

    /// Fails if the path of the root leads elsewhere by now; the next call opens it anew. Whether
    /// what it finds then is the right disk is for the caller to compare ([`Root::identity`]).
    fn check_in_place(&self, root: &Arc<Root>) -> Result<(), RemoteError> {
        root.check_in_place().map_err(|error| {
            let mut current = self.lock();
            if current
                .as_ref()
                .is_some_and(|known| Arc::ptr_eq(known, root))
            {
                *current = None;
            }
            from_fs("look at", None, error)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Root>>> {
        self.root.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalRemote {
    /// The directory at `path`, which need not be there yet. Touches nothing.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let capabilities = Capabilities {
            mtime: MtimeSupport::Kept {
                precision_nanoseconds: 1,
            },
            directories: true,
            symlinks: true,
            modes: true,
            rename: true,
            case_insensitive: cfg!(target_os = "macos"),
            transfers: 64,
        };
        let location = printable(path.as_os_str().as_bytes()).to_string();
        let description = Description {
            location,
            endpoint: "local".to_owned(),
            capabilities,
        };
        let waiting = Arc::new(Semaphore::new(WAITING_BYTES >> 10));
        let looking = Arc::new(Semaphore::new(LOOK_BYTES >> 10));
        let place = Arc::new(Place {
            path,
            root: Mutex::new(None),
            waiting,
            looking,
        });
        Self {
            place,
            description: Arc::new(description),
            committer: Arc::new(LocalCommitter),
        }
    }

    /// The path it was made with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// The directory itself. Opens it if that was not done yet; blocks.
    ///
    /// # Errors
    /// If it is missing ([`ErrorKind::NotFound`]) or cannot be opened.
    pub fn root(&self) -> Result<Root, RemoteError> {
        self.place
            .root(IfMissing::Fail)
            .map(|root| Root::clone(&root))
    }

    /// The directory itself, made durably if it is missing; blocks.
    ///
    /// # Errors
    /// If it cannot be made or opened.
    pub fn root_or_make(&self) -> Result<Root, RemoteError> {
        self.place
            .root(IfMissing::Make)
            .map(|root| Root::clone(&root))
    }

    /// What [`Remote::stat`] says of each of `paths`, and [`Remote::read`] of the small files among them,
    /// for few changes of threads. As long as [`LOOK_BYTES`] that were read so are held by their readers,
    /// the others are only looked at.
    pub async fn look_each(&self, paths: &[RelPath]) -> Vec<Looked> {
        let looking = paths.chunks(LOOKED_AT).map(|paths| {
            let (place, paths) = (Arc::clone(&self.place), paths.to_vec());
            tokio::task::spawn_blocking(move || {
                let look = |path| look(&place, path);
                paths.iter().map(look).collect::<Vec<_>>()
            })
        });
        let mut looked = Vec::with_capacity(paths.len());
        for part in join_all(looking).await {
            looked.extend(part.unwrap_or_else(|error| {
                vec![Looked {
                    now: Err(lost(error)),
                    reader: None,
                }]
            }));
        }
        looked
    }
}

/// What lies at a path.
pub struct Looked {
    /// What it is, or that nothing is there.
    pub now: Result<Option<Entry>, RemoteError>,
    /// Its content, read already.
    pub reader: Option<Box<dyn Reader>>,
}

impl fmt::Debug for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Looked")
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

/// Blocks.
fn look(place: &Place, path: &RelPath) -> Looked {
    let now = stat(place, path).or_else(missing_root_is_nothing);
    let reader = match &now {
        // Not before it is known what it is: to open a pipe or a device is felt at its other end.
        Ok(Some(entry)) if entry.kind == Kind::File => read_small(place, entry),
        _ => None,
    };
    Looked { now, reader }
}

/// The content of a small file; nothing if there is no room for it, or it cannot be read: then the ordinary
/// way says why. Blocks.
fn read_small(place: &Place, entry: &Entry) -> Option<Box<dyn Reader>> {
    if entry.size > SMALL_BYTES {
        return None;
    }
    let kib = u32::try_from(entry.size.div_ceil(1 << 10)).ok()?.max(1);
    let room = Arc::clone(&place.looking)
        .try_acquire_many_owned(kib)
        .ok()?;
    let root = place.root(IfMissing::Fail).ok()?;
    let reader = reader::read_small(root, entry, room)?;
    Some(Box::new(reader))
}

/// Blocks.
fn stat(place: &Place, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
    let root = place.root(IfMissing::Fail)?;
    let found = root
        .stat(path)
        .map_err(|error| from_fs("look at", Some(path), error))?;
    if found.is_none() {
        place.check_in_place(&root)?;
    }
    Ok(found)
}

impl fmt::Debug for LocalRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalRemote")
            .field(&self.place.path)
            .finish()
    }
}

/// Runs `work` on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
) -> Result<T, RemoteError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(lost(error)),
    }
}

/// A blocking task that ended without a result: its panic goes on here.
fn lost(error: tokio::task::JoinError) -> RemoteError {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_cancelled) => RemoteError::new(
            ErrorKind::Cancelled,
            "go on",
            "the program is shutting down",
        ),
    }
}

#[async_trait]
impl Remote for LocalRemote {
    fn describe(&self) -> &Description {
        &self.description
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        let place = Arc::clone(&self.place);
        let (sender, listing) = Listing::channel();
        let (started, start) = oneshot::channel();
        // Ends by itself: at the end of the tree, or when nobody reads any more.
        let _walk = tokio::task::spawn_blocking(move || walk(&place, &options, sender, started));
        match start.await {
            Ok(Ok(())) => Ok(listing),
            Ok(Err(error)) => Err(error),
            Err(_gone) => Err(RemoteError::new(
                ErrorKind::Cancelled,
                "list",
                "the program is shutting down",
            )),
        }
    }

    async fn root_identity(&self) -> Result<Option<RootIdentity>, RemoteError> {
        let place = Arc::clone(&self.place);
        blocking(move || {
            let identity = place.root(IfMissing::Fail)?.identity();
            identity
                .map(Some)
                .map_err(|error| from_fs("look at", None, error))
        })
        .await
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        let (place, path) = (Arc::clone(&self.place), path.clone());
        blocking(move || stat(&place, &path))
            .await
            .or_else(missing_root_is_nothing)
    }

    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        let (place, path) = (Arc::clone(&self.place), path.clone());
        blocking(move || {
            let root = place.root(IfMissing::Fail)?;
            reader::open(root, path, &options)
        })
        .await
    }

    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        upload::begin(
            Arc::clone(&self.place),
            Arc::clone(&self.committer),
            path,
            options,
        )
        .await
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        let (place, from, to) = (Arc::clone(&self.place), from.clone(), to.clone());
        blocking(move || {
            let root = place.root(IfMissing::Fail)?;
            place.check_in_place(&root)?;
            change::rename(&root, &from, &to, &options.replace)
        })
        .await
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        if removals.is_empty() {
            return Vec::new();
        }
        let (place, owned) = (Arc::clone(&self.place), removals.to_vec());
        let work = move || {
            let root = place.root(IfMissing::Fail)?;
            // On a disk that went away everything would count as removed already.
            place.check_in_place(&root)?;
            Ok(change::remove(&root, &owned))
        };
        match blocking(work).await {
            Ok(results) => results,
            Err(error) => removals
                .iter()
                .map(|removal| {
                    Err(
                        RemoteError::new(error.kind, "remove", error.message.clone())
                            .with_retry(error.retry)
                            .at(&removal.path),
                    )
                })
                .collect(),
        }
    }

    async fn abandon(&self, path: &RelPath, state: &str) -> Result<(), RemoteError> {
        let (place, path, state) = (Arc::clone(&self.place), path.clone(), state.to_owned());
        blocking(move || {
            let root = place.root(IfMissing::Fail)?;
            // On a disk that went away everything would count as removed already.
            place.check_in_place(&root)?;
            upload::abandon(&root, &path, &state)
        })
        .await
    }

    fn as_local(&self) -> Option<&LocalRemote> {
        Some(self)
    }
}

/// In a root that is missing lies nothing: a one-shot copy to a new directory has to get this far.
/// A listing says that the root itself is missing.
fn missing_root_is_nothing(error: RemoteError) -> Result<Option<Entry>, RemoteError> {
    if error.is_not_found() && error.path.is_none() {
        Ok(None)
    } else {
        Err(error)
    }
}

/// Walks and sends until the tree ends or nobody reads any more.
fn walk(
    place: &Place,
    options: &ListOptions,
    sender: ListingSender,
    started: oneshot::Sender<Result<(), RemoteError>>,
) {
    let below = options.below.as_ref();
    let depth = |path: &RelPath| path.components().count();
    let children = below.map_or(1, |below| depth(below) + 1);
    let wanted = |path: &RelPath, kind| {
        !(options.shallow && depth(path) > children) && options.takes(path, kind)
    };
    let walk_options = WalkOptions {
        below,
        filter: Some(&wanted),
        ..WalkOptions::default()
    };
    let opened = place.root(IfMissing::Fail).and_then(|root| {
        place.check_in_place(&root)?;
        match Walker::new(&root, walk_options) {
            Ok(walker) => Ok((root, walker)),
            Err(error) => Err(from_fs("list", below, error)),
        }
    });
    let (root, mut walker) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // Without anybody waiting there is nobody to tell.
            let _unread: Result<(), _> = started.send(Err(error));
            return;
        }
    };
    if started.send(Ok(())).is_err() {
        return;
    }
    loop {
        let mut batch = Vec::with_capacity(BATCH_ENTRIES);
        let more = walker.next_batch(&mut batch, BATCH_ENTRIES);
        if options.shallow {
            // What lies deeper was not asked for, so it is not missed either.
            batch.retain(|item| !is_deeper(item, children));
        }
        if sender.blocking_send(batch).is_err() {
            return;
        }
        if !more {
            break;
        }
    }
    if let Err(error) = place.check_in_place(&root) {
        let reason = error.message;
        let incomplete = TreeItem::Incomplete(Incomplete {
            below: None,
            reason,
        });
        if sender.blocking_send(vec![incomplete]).is_err() {
            return;
        }
    }
    sender.blocking_end();
}

fn is_deeper(item: &TreeItem, children: usize) -> bool {
    match item {
        TreeItem::Incomplete(incomplete) => incomplete
            .below
            .as_ref()
            .is_some_and(|below| below.components().count() >= children),
        TreeItem::Entry(_) | TreeItem::Problem(_) | TreeItem::Excluded { .. } => false,
    }
}
