//! Directories on SFTP servers.
//!
//! Constraints:
//!
//! * A server is shared: every [`SftpRemote`] on the same [`SftpEndpoint`] uses the same few connections,
//!   whose requests in flight are limited in number and bytes.
//! * What is written is written under a staged name beside its final one, created so that nothing that
//!   is there already is followed or touched.
//! * Whatever a server says is data: a name is no path before [`RelPath`] has accepted it.
//!
//! Order of a small file, on three round trips: open; then WRITE, FSETSTAT, FSYNC and FSTAT together;
//! then, when all four have been answered well, the rename. Servers carry out requests on one handle in
//! the order in which they come, so the FSYNC covers the WRITE and the FSTAT sees it. A rename is
//! never sent before the answer to a write is there: a failed WRITE would not stop it.
//!
//! Order of a large file: the checkpoint "started" is saved before the first byte; a checkpoint
//! "advanced" only after the bytes before it were acknowledged *and* flushed with `fsync@openssh.com`,
//! where the server offers it. Without that extension a crash of the *server* can lose acknowledged
//! bytes; the length is compared before it is gone on, and `verify: full` finds the rest.
//!
//! Not guaranteed: SFTP has no way to flush a directory, so a crash of the server right after a commit
//! can undo the rename (never tear the file); and version 3 of the protocol has no compare-and-swap, so
//! what somebody else does between our look and our rename is overwritten where replacing was allowed.

mod commit;
mod connection;
pub mod endpoint;
mod entries;
mod error;
mod joining;
mod listing;
mod parents;
mod reader;
mod removing;
mod renaming;
mod small;
mod staging;
mod state;
mod upload;

use std::sync::Arc;

use async_trait::async_trait;
use knarr_core::entry::Kind;
use knarr_core::{Entry, RelPath};

use crate::error::RemoteError;
use crate::listing::{ListOptions, Listing};
use crate::remote::{
    Capabilities, Description, MtimeSupport, ReadOptions, Reader, Remote, Removal, RenameOptions,
    WriteOptions,
};
use crate::upload::Upload;

pub use endpoint::{Flush, ReplaceWithoutPosixRename, SftpEndpoint, SftpOptions};

/// Files that are worked on at once: small ones gain from many, and large ones share the windows.
const TRANSFERS: usize = 64;

/// A directory on an SFTP server.
#[derive(Debug, Clone)]
pub struct SftpRemote {
    place: Arc<Place>,
}

/// What everything that works on a root shares.
#[derive(Debug)]
struct Place {
    endpoint: SftpEndpoint,
    root: Box<[u8]>,
    description: Description,
    committer: Arc<commit::SftpCommitter>,
}

/// Where a root lies on its server; what turns paths below it into paths there.
#[derive(Debug, Clone)]
struct Root(Box<[u8]>);

impl Root {
    /// The path on the server.
    fn full(&self, path: &RelPath) -> Vec<u8> {
        full_path(&self.0, path)
    }
}

fn full_path(root: &[u8], path: &RelPath) -> Vec<u8> {
    let mut full = Vec::with_capacity(root.len() + 1 + path.as_bytes().len());
    full.extend_from_slice(root);
    if !root.is_empty() && !root.ends_with(b"/") {
        full.push(b'/');
    }
    full.extend_from_slice(path.as_bytes());
    full
}

impl SftpRemote {
    /// The directory `root` of `endpoint`'s server: absolute, or relative to where the server puts
    /// us (an empty root is that directory itself). Does not touch the network.
    #[must_use]
    pub fn new(endpoint: &SftpEndpoint, root: impl Into<Box<[u8]>>) -> Self {
        let mut root: Box<[u8]> = root.into();
        while root.len() > 1 && root.ends_with(b"/") {
            root = root[..root.len() - 1].into();
        }
        let separator = if root.starts_with(b"/") { "" } else { "/~/" };
        let shown = knarr_core::path::printable(&root).to_string();
        let description = Description {
            location: format!("{}{separator}{shown}", endpoint.location()),
            endpoint: endpoint.name().to_owned(),
            capabilities: Capabilities {
                mtime: MtimeSupport::Kept {
                    precision_nanoseconds: 1_000_000_000,
                },
                directories: true,
                symlinks: true,
                modes: true,
                rename: true,
                case_insensitive: false,
                transfers: TRANSFERS,
            },
        };
        let committer = Arc::new(commit::SftpCommitter::new(
            endpoint.clone(),
            Root(root.clone()),
        ));
        let endpoint = endpoint.clone();
        Self {
            place: Arc::new(Place {
                endpoint,
                root,
                description,
                committer,
            }),
        }
    }

    /// The endpoint it lies on.
    #[must_use]
    pub fn endpoint(&self) -> &SftpEndpoint {
        &self.place.endpoint
    }

    /// Bytes that may still be written there, if the server tells.
    ///
    /// # Errors
    /// If the server cannot be reached, or the root is missing.
    pub async fn available_bytes(&self) -> Result<Option<u64>, RemoteError> {
        let connection = self.place.endpoint.connection().await?;
        let root: &[u8] = if self.place.root.is_empty() {
            b"."
        } else {
            &self.place.root
        };
        match connection.client().filesystem_statistics(root).await {
            Ok(statistics) => Ok(Some(statistics.available_bytes())),
            Err(error) if error.is_unsupported() => Ok(None),
            Err(source) => Err(error::translate(
                &connection,
                "ask for the free space of",
                source,
            )),
        }
    }
}

impl Place {
    fn root(&self) -> Root {
        Root(self.root.clone())
    }
}

#[async_trait]
impl Remote for SftpRemote {
    fn describe(&self) -> &Description {
        &self.place.description
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        listing::start(&self.place, options).await
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        let connection = self.place.endpoint.connection().await?;
        let full = self.place.root().full(path);
        entries::look(&connection, &full, path).await
    }

    async fn read(
        &self,
        path: &RelPath,
        options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        let reader = reader::open(&self.place, path, options).await?;
        Ok(Box::new(reader))
    }

    async fn write(
        &self,
        path: &RelPath,
        options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        staging::begin(&self.place, path, options).await
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        renaming::rename(&self.place, from, to, &options.replace).await
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        removing::remove(&self.place, removals).await
    }

    async fn abandon(&self, path: &RelPath, state: &str) -> Result<(), RemoteError> {
        staging::abandon(&self.place, path, state).await
    }
}

/// Whether something is a file or link, which a rename may replace.
const fn is_replaceable(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Symlink | Kind::Special)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_to_roots_of_all_shapes() {
        let path = RelPath::new(*b"a/b").unwrap();
        for (root, full) in [
            (&b""[..], &b"a/b"[..]),
            (b"/", b"/a/b"),
            (b"/srv", b"/srv/a/b"),
            (b"srv/x", b"srv/x/a/b"),
        ] {
            assert_eq!(full_path(root, &path), full);
        }
    }
}
