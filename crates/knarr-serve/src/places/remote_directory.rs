//! A directory of another place that a client lists, and what it is told about what is there.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::entry::Kind;
use knarr_core::tree::TreeItem;
use knarr_core::{Entry, RelPath};
use knarr_remote::Listing;
use knarr_sftp::codec::{Attributes, FilesystemStatistics, NameEntry, Times};
use knarr_sftp::server::{DirectoryBatch, FileError, OpenDirectory};

use super::remote::{Shared, broken_off, root_attributes};
use crate::files::line_of;

/// What a client is told about something.
pub(super) fn attributes_of(entry: &Entry) -> Attributes {
    let kind = match entry.kind {
        Kind::File => 0o100_000,
        Kind::Directory => 0o040_000,
        Kind::Symlink => 0o120_000,
        Kind::Special => 0o010_000,
    };
    let usual = if entry.kind == Kind::Directory {
        0o755
    } else {
        0o644
    };
    let seconds = entry
        .mtime
        .map(|time| u32::try_from(time.seconds().max(0)).unwrap_or(u32::MAX));
    Attributes {
        size: Some(entry.size),
        owner: None,
        permissions: Some(kind | entry.mode.unwrap_or(usual)),
        times: seconds.map(|seconds| Times {
            accessed_seconds: seconds,
            modified_seconds: seconds,
        }),
        extended: Vec::new(),
    }
}

/// A directory that is being listed.
pub(super) struct Directory {
    shared: Arc<Shared>,
    listing: Listing,
    waiting: Vec<NameEntry>,
    /// Directories that were made and have nothing in them yet.
    made: BTreeSet<RelPath>,
}

impl Directory {
    pub(super) const fn new(
        shared: Arc<Shared>,
        listing: Listing,
        made: BTreeSet<RelPath>,
    ) -> Self {
        Self {
            shared,
            listing,
            waiting: Vec::new(),
            made,
        }
    }

    fn entry(&self, entry: &Entry) -> NameEntry {
        let (name, attributes) = (entry.path.name(), attributes_of(entry));
        NameEntry {
            name: Bytes::copy_from_slice(name),
            long_name: Bytes::from(line_of(name, &attributes, &self.shared.names)),
            attributes,
        }
    }
}

#[async_trait]
impl OpenDirectory for Directory {
    async fn next(&mut self, limit: usize) -> Result<DirectoryBatch, FileError> {
        while self.waiting.is_empty() {
            let Some(batch) = self.listing.next_batch().await else {
                let Some(path) = self.made.pop_first() else {
                    return Ok(DirectoryBatch::End);
                };
                self.waiting = vec![self.entry(&Entry::directory(path))];
                break;
            };
            for item in batch {
                match item {
                    TreeItem::Entry(entry) => {
                        self.made.remove(&entry.path);
                        let entry = self.entry(&entry);
                        self.waiting.push(entry);
                    }
                    TreeItem::Incomplete(_) => return Err(broken_off()),
                    TreeItem::Problem(_) | TreeItem::Excluded { .. } => {}
                }
            }
        }
        let some = self
            .waiting
            .drain(..limit.min(self.waiting.len()))
            .collect();
        Ok(DirectoryBatch::Names(some))
    }

    async fn stat(&mut self) -> Result<Attributes, FileError> {
        Ok(root_attributes())
    }

    async fn set_attributes(&mut self, _attributes: &Attributes) -> Result<(), FileError> {
        Err(FileError::Unsupported)
    }

    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError> {
        Err(FileError::Unsupported)
    }
}
