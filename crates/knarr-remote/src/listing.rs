//! Listings as bounded streams of batches, in tree order.

use std::fmt;
use std::sync::Arc;

use knarr_core::entry::Kind;
use knarr_core::tree::{Incomplete, TreeItem};
use knarr_core::{Entry, RelPath};
use tokio::sync::mpsc;

/// How many entries a backend should put into one batch.
pub const BATCH_ENTRIES: usize = 512;
/// How many batches may wait for a slow reader.
const BATCHES_AHEAD: usize = 8;

/// Decides which paths a listing contains. Given a directory, `false` leaves out all below it.
pub type PathFilter = Arc<dyn Fn(&RelPath, Kind) -> bool + Send + Sync>;

/// What a listing should contain.
#[derive(Clone, Default)]
pub struct ListOptions {
    /// List only below this directory (its own entry is not part of the listing).
    pub below: Option<RelPath>,
    /// Only the direct children instead of the whole tree.
    pub shallow: bool,
    /// Leaves paths out. Names of Knarr's own staged files (`.knarr-*`) are always left out.
    pub filter: Option<PathFilter>,
}

impl fmt::Debug for ListOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListOptions")
            .field("below", &self.below)
            .field("shallow", &self.shallow)
            .field("filtered", &self.filter.is_some())
            .finish()
    }
}

impl ListOptions {
    /// Whether a listing with these options contains `path`.
    #[must_use]
    pub fn takes(&self, path: &RelPath, kind: Kind) -> bool {
        !path.name().starts_with(b".knarr-")
            && self.filter.as_ref().is_none_or(|filter| filter(path, kind))
    }
}

/// A listing in tree order. It has ended well only if no [`TreeItem::Incomplete`] was among its items.
#[derive(Debug)]
pub struct Listing {
    batches: mpsc::Receiver<Vec<TreeItem>>,
    /// Set once the sender said that it is through; a sender that vanished is an incomplete listing.
    ended: bool,
}

/// The side of a [`Listing`] that a backend fills.
#[derive(Debug, Clone)]
pub struct ListingSender(mpsc::Sender<Vec<TreeItem>>);

/// Nobody reads the listing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListingClosed;

impl Listing {
    /// A listing and the sender that fills it. The sender has to call [`ListingSender::end`].
    #[must_use]
    pub fn channel() -> (ListingSender, Self) {
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        (
            ListingSender(sender),
            Self {
                batches,
                ended: false,
            },
        )
    }

    /// A complete listing of nothing.
    #[must_use]
    pub fn empty() -> Self {
        let (_sender, batches) = mpsc::channel(1);
        Self {
            batches,
            ended: true,
        }
    }

    /// The next items, or nothing at the end. Never an empty batch.
    pub async fn next_batch(&mut self) -> Option<Vec<TreeItem>> {
        if self.ended {
            return None;
        }
        let batch = self.batches.recv().await;
        self.take(batch)
    }

    /// The same for a thread that may block.
    pub fn blocking_next_batch(&mut self) -> Option<Vec<TreeItem>> {
        if self.ended {
            return None;
        }
        let batch = self.batches.blocking_recv();
        self.take(batch)
    }

    /// All items at once; for small listings and tests.
    pub async fn collect(mut self) -> Vec<TreeItem> {
        let mut items = Vec::new();
        while let Some(batch) = self.next_batch().await {
            items.extend(batch);
        }
        items
    }

    fn take(&mut self, batch: Option<Vec<TreeItem>>) -> Option<Vec<TreeItem>> {
        match batch {
            Some(batch) if batch.is_empty() => {
                self.ended = true;
                None
            }
            Some(batch) => Some(batch),
            // The sender is gone without having said that this is all: absence is not deletion.
            None => {
                self.ended = true;
                let reason = "the listing broke off".to_owned();
                Some(vec![TreeItem::Incomplete(Incomplete {
                    below: None,
                    reason,
                })])
            }
        }
    }
}

impl ListingSender {
    /// Hands over a batch and waits while the reader is behind.
    ///
    /// # Errors
    /// [`ListingClosed`] if nobody reads any more.
    pub async fn send(&self, batch: Vec<TreeItem>) -> Result<(), ListingClosed> {
        if batch.is_empty() {
            return Ok(());
        }
        self.0.send(batch).await.map_err(|_closed| ListingClosed)
    }

    /// The same for a thread that may block.
    ///
    /// # Errors
    /// [`ListingClosed`] if nobody reads any more.
    pub fn blocking_send(&self, batch: Vec<TreeItem>) -> Result<(), ListingClosed> {
        if batch.is_empty() {
            return Ok(());
        }
        self.0.blocking_send(batch).map_err(|_closed| ListingClosed)
    }

    /// Says that everything was sent. Without it the listing counts as incomplete.
    pub async fn end(self) {
        // A reader that left does not need to know.
        let _left: Result<(), _> = self.0.send(Vec::new()).await;
    }

    /// The same for a thread that may block.
    pub fn blocking_end(self) {
        let _left: Result<(), _> = self.0.blocking_send(Vec::new());
    }
}

/// The entries of a listing that has no incomplete part; for tests and small listings.
///
/// # Errors
/// The first [`Incomplete`].
pub fn complete_entries(items: Vec<TreeItem>) -> Result<Vec<Entry>, Incomplete> {
    let mut entries = Vec::with_capacity(items.len());
    for item in items {
        match item {
            TreeItem::Entry(entry) => entries.push(entry),
            TreeItem::Incomplete(incomplete) => return Err(incomplete),
            TreeItem::Problem(_) | TreeItem::Excluded { .. } => {}
        }
    }
    Ok(entries)
}
