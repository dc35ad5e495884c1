//! A remote that holds one file, and no other: for locations that name a file.
//!
//! It lists only that file, so neither side of a one-file copy is walked. Everything else is done by
//! the remote around it.

use std::sync::Arc;

use async_trait::async_trait;
use knarr_core::tree::TreeItem;
use knarr_core::{Entry, RelPath};
use knarr_remote::upload::Upload;
use knarr_remote::{
    Description, ListOptions, Listing, ReadOptions, Reader, Remote, RemoteError, Removal,
    RenameOptions, WriteOptions,
};

/// A remote of which only one path is seen.
#[derive(Debug)]
pub(crate) struct SingleFile {
    inner: Arc<dyn Remote>,
    path: RelPath,
    description: Description,
}

impl SingleFile {
    /// Only `path` of `inner`.
    pub(crate) fn new(inner: Arc<dyn Remote>, path: RelPath) -> Self {
        let mut description = inner.describe().clone();
        let separator = if description.location.ends_with('/') {
            ""
        } else {
            "/"
        };
        description.location = format!("{}{separator}{path}", description.location);
        Self {
            inner,
            path,
            description,
        }
    }
}

#[async_trait]
impl Remote for SingleFile {
    fn describe(&self) -> &Description {
        &self.description
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        let entry = self.inner.stat(&self.path).await?;
        let (sender, listing) = Listing::channel();
        tokio::spawn(async move {
            let items = entry
                .filter(|entry| options.takes(&entry.path, entry.kind))
                .map(TreeItem::Entry)
                .into_iter()
                .collect();
            // A reader that left needs no end either.
            if sender.send(items).await.is_ok() {
                sender.end().await;
            }
        });
        Ok(listing)
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
        self.inner.write(path, options).await
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
        self.inner.remove(removals).await
    }

    async fn abandon(&self, path: &RelPath, state: &str) -> Result<(), RemoteError> {
        self.inner.abandon(path, state).await
    }
}
