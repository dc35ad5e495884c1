//! A prefix in a bucket: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.
//!
//! Constraints:
//!
//! * There are only keys. A directory exists as long as something lies below it, so a listing has
//!   files only (a shallow one also shows the directories that they imply).
//! * Nothing is staged under another name: small files wait in memory and go in one request, larger
//!   ones in parts that nobody sees. The commit is that request, or the completion of the parts; the
//!   store makes both atomic (K2).
//! * The id of a multipart upload is saved before its first part counts, and each part's receipt
//!   after the store gave it; so the record never runs ahead of the store (K3), and what has a receipt
//!   is not sent again (K9).
//! * After an answer that leaves open what happened, the object is looked at: it carries a mark of
//!   the upload in its metadata. Only if it is not ours the commit counts as failed.
//! * A condition (`If-None-Match`, `If-Match`) is a hint until the store has once refused by it: some
//!   ignore it. Until then the object is looked at before, which leaves a window as long as a request.
//!
//! Names are UTF-8, at most 1,024 bytes with the prefix, and without control characters.

mod commit;
mod conditions;
mod credentials;
mod error;
mod http;
mod keys;
mod list;
mod options;
mod parts;
mod proof;
mod read;
mod rename;
mod resume;
mod s3;
mod send;
mod upload;
mod xml;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use async_trait::async_trait;
use knarr_core::entry::{Identity, Kind};
use knarr_core::{Entry, RelPath, Timestamp};
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Attributes, GetOptions, ObjectMeta, ObjectStore};
use tokio::sync::Semaphore;

use self::error::Failure;
use self::keys::Prefix;
pub use self::options::{
    Addressing, AzurePlace, Checksum, GcsPlace, MIN_PART_SIZE, ObjectOptions, ObjectPlace,
    PayloadSigning, S3Credentials, S3Place,
};
use self::s3::S3Api;
use crate::error::{ErrorKind, RemoteError};
use crate::listing::{ListOptions, Listing};
use crate::remote::{
    Capabilities, Description, MtimeSupport, NewNode, ReadOptions, Reader, Remote, Removal,
    RenameOptions, WriteOptions,
};
use crate::upload::Upload;

/// Parts that wait for their answers, in all uploads of a remote together.
const PARTS_IN_FLIGHT: usize = 8;

/// What a store has to offer.
pub(crate) trait Store: ObjectStore + MultipartStore + PaginatedListStore {}

impl<T: ObjectStore + MultipartStore + PaginatedListStore> Store for T {}

/// A prefix in a bucket.
#[derive(Clone)]
pub struct ObjectRemote {
    inner: Arc<Inner>,
}

/// What a remote, its readers, uploads and commits share.
pub(crate) struct Inner {
    store: Arc<dyn Store>,
    /// What is asked of S3 directly; nothing for other stores.
    s3: Option<S3Api>,
    prefix: Prefix,
    description: Description,
    part_size: u64,
    parts_at_once: usize,
    patience: Duration,
    part_slots: Arc<Semaphore>,
    /// See [`conditions::Conditions`].
    conditions: AtomicU8,
}

/// The adapter's own output may hold credentials and is not shown (H-25).
impl fmt::Debug for ObjectRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectRemote")
            .field("location", &self.inner.description.location)
            .field("endpoint", &self.inner.description.endpoint)
            .finish_non_exhaustive()
    }
}

impl ObjectRemote {
    /// Opens the place of `options`. Sends nothing to it.
    ///
    /// # Errors
    /// If the options contradict each other or the place.
    pub async fn open(options: ObjectOptions) -> Result<Self, RemoteError> {
        let prefix = Prefix::new(&options.prefix)?;
        let opened = options::open(&options).await?;
        let mut location = format!("{}/{}", opened.location, prefix.as_str());
        location.truncate(location.trim_end_matches('/').len());
        let description = Description {
            location,
            endpoint: opened.endpoint,
            capabilities: Capabilities {
                mtime: MtimeSupport::OwnTime,
                directories: false,
                symlinks: false,
                modes: false,
                rename: true,
                case_insensitive: false,
                transfers: options.transfers.max(1),
            },
        };
        let parts_at_once = options.parts_at_once.max(1);
        Ok(Self {
            inner: Arc::new(Inner {
                store: opened.store,
                s3: opened.s3,
                prefix,
                description,
                part_size: options.part_size,
                parts_at_once,
                patience: options.patience,
                part_slots: Arc::new(Semaphore::new(PARTS_IN_FLIGHT.max(parts_at_once))),
                conditions: AtomicU8::new(0),
            }),
        })
    }
}

/// What looking at one key gives.
#[derive(Debug)]
pub(crate) struct Head {
    meta: ObjectMeta,
    attributes: Attributes,
}

impl Inner {
    /// Looks at a key.
    async fn head(&self, key: &Path) -> Result<Option<Head>, Failure> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match self.store.get_opts(key, options).await {
            Ok(found) => Ok(Some(Head {
                meta: found.meta,
                attributes: found.attributes,
            })),
            Err(error) => {
                let failure = Failure::store(&error);
                if failure.is_not_found() {
                    Ok(None)
                } else {
                    Err(failure)
                }
            }
        }
    }
}

/// The entry for what a store says of the object at `path`.
fn entry_of(path: RelPath, meta: &ObjectMeta) -> Entry {
    let mut entry = Entry::file(path, meta.size);
    // The epoch stands for a header that was not there.
    let seconds = meta.last_modified.timestamp();
    entry.mtime = (seconds != 0).then(|| Timestamp::from_seconds(seconds));
    entry.identity = meta
        .e_tag
        .as_deref()
        .map(|etag| Identity::Tag(s3::bare(etag).into()));
    entry
}

#[async_trait]
impl Remote for ObjectRemote {
    fn describe(&self) -> &Description {
        &self.inner.description
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        list::list(Arc::clone(&self.inner), options).await
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        // What no key can name is not there.
        let Ok(key) = self.inner.prefix.key("look at", path) else {
            return Ok(None);
        };
        match self.inner.head(&key).await {
            Ok(head) => Ok(head.map(|head| entry_of(path.clone(), &head.meta))),
            Err(failure) => Err(failure.into_remote("look at", Some(path))),
        }
    }

    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        Ok(Box::new(
            read::open(Arc::clone(&self.inner), path, options).await?,
        ))
    }

    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        match options.node {
            NewNode::File { size } => {
                upload::begin(Arc::clone(&self.inner), path, size, options).await
            }
            NewNode::Directory => Err(unsupported(
                path,
                "an object store has no directories by themselves",
            )),
            NewNode::Symlink { .. } => {
                Err(unsupported(path, "an object store has no symbolic links"))
            }
        }
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        rename::rename(&self.inner, from, to, &options.replace).await
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        rename::remove(&self.inner, removals).await
    }

    async fn abandon(&self, path: &RelPath, state: &str) -> Result<(), RemoteError> {
        resume::abandon(&self.inner, path, state).await
    }
}

fn unsupported(path: &RelPath, message: &str) -> RemoteError {
    RemoteError::new(ErrorKind::Unsupported, "write", message).at(path)
}

/// Whether a removal is about something that an object store can hold.
fn is_object(kind: Kind) -> bool {
    kind == Kind::File
}
