//! Runs the planner on a thread of its own, fed by two listings and a cursor over the synced tree.

use std::sync::{Arc, Mutex, PoisonError};

use knarr_core::entry::Entry;
use knarr_core::filter::Filter;
use knarr_core::plan::{self, Decision, Mode, NoRenames, Policy, RenameIndex};
use knarr_core::tree::{Synced, TreeItem};
use knarr_core::{Kind, RelPath, Timestamp};
use knarr_remote::{ListOptions, Listing, Remote};
use tokio::sync::mpsc;

use crate::error::EngineError;
use crate::journal::Journal;

/// How many decisions travel together.
const BATCH: usize = 256;
/// How many batches the planner may be ahead.
const AHEAD: usize = 16;

/// What was planned.
#[derive(Debug, Clone, Default)]
pub struct Planned {
    /// How much was looked at.
    pub counts: plan::Counts,
    /// What could not be listed, with reasons; at most a hundred.
    pub incomplete: Vec<String>,
}

/// A plan in the making.
#[derive(Debug)]
pub(crate) struct Planning {
    decisions: mpsc::Receiver<Vec<Decision>>,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<Result<(), EngineError>>>,
}

#[derive(Debug, Default)]
struct Shared {
    planned: Mutex<Planned>,
    directories: Mutex<Option<Vec<Entry>>>,
}

impl Planning {
    /// The source's directories, if they were collected.
    pub(crate) fn take_source_directories(&self) -> Vec<Entry> {
        lock(&self.shared.directories).take().unwrap_or_default()
    }

    /// The next decisions, or nothing at the end.
    pub(crate) async fn next(&mut self) -> Option<Vec<Decision>> {
        self.decisions.recv().await
    }

    /// How it ended. Stops the planner if it has not.
    ///
    /// # Errors
    /// If the synced tree could not be read.
    pub(crate) fn finish(mut self) -> Result<Planned, EngineError> {
        self.decisions.close();
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .map_err(|_panic| EngineError::Internal("the planner panicked"))??;
        }
        Ok(lock(&self.shared.planned).clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to look at.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    pub(crate) journal: &'a Journal,
    pub(crate) source: &'a Arc<dyn Remote>,
    pub(crate) destination: &'a Arc<dyn Remote>,
    pub(crate) filter: &'a Arc<Filter>,
    pub(crate) policy: Policy,
    pub(crate) now: Timestamp,
    /// Also keep the source's directories, for a move that removes what it has emptied.
    pub(crate) collect_directories: bool,
}

/// Starts to look at both sides and to plan.
///
/// # Errors
/// If one of them cannot be listed at all.
pub(crate) async fn start(look: Look<'_>) -> Result<Planning, EngineError> {
    let Look {
        journal,
        source,
        destination,
        filter,
        policy,
        now,
        collect_directories,
    } = look;
    let (source, destination) = tokio::join!(listing(source, filter), listing(destination, filter));
    let source = source?;
    let destination = match destination {
        // Not there yet: it is made when the first file arrives. But a second location that was in
        // step once and is missing now is no reason to remove anything (K5).
        Err(EngineError::Look { source, .. })
            if source.is_not_found()
                && (policy.mode != Mode::TwoWay || journal.is_first_contact().await?) =>
        {
            Listing::empty()
        }
        other => other?,
    };
    let synced = journal.synced_cursor();
    let (sender, decisions) = mpsc::channel(AHEAD);
    let shared = Arc::new(Shared::default());
    *lock(&shared.directories) = collect_directories.then(Vec::new);
    let for_thread = Arc::clone(&shared);
    let limits = filter.limits_entries().then(|| (Arc::clone(filter), now));
    let thread = std::thread::Builder::new()
        .name("knarr-plan".to_owned())
        .spawn(move || {
            let mut failed = None;
            let synced = Cursor {
                inner: synced,
                failed: &mut failed,
            };
            let source = Items::new(source, limits.clone(), Arc::clone(&for_thread), true);
            let destination = Items::new(destination, limits, Arc::clone(&for_thread), false);
            let mut plan = plan::plan(source, destination, synced, &policy, rename_index());
            let mut batch = Vec::with_capacity(BATCH);
            for decision in plan.by_ref() {
                batch.push(decision);
                if batch.len() >= BATCH && sender.blocking_send(std::mem::take(&mut batch)).is_err()
                {
                    break;
                }
            }
            let counts = plan.counts();
            drop(plan);
            if !batch.is_empty() {
                // Whoever stopped listening does not want the rest.
                drop(sender.blocking_send(batch));
            }
            lock(&for_thread.planned).counts = counts;
            match failed {
                Some(error) => Err(error),
                None => Ok(()),
            }
        })
        .map_err(|_error| EngineError::Internal("no thread for the planner"))?;
    Ok(Planning {
        decisions,
        shared,
        thread: Some(thread),
    })
}

/// One-shot commands look at both sides and send again what was renamed.
fn rename_index() -> &'static dyn RenameIndex {
    &NoRenames
}

async fn listing(remote: &Arc<dyn Remote>, filter: &Arc<Filter>) -> Result<Listing, EngineError> {
    let mut options = ListOptions::default();
    if !filter.is_empty() {
        let filter = Arc::clone(filter);
        options.filter = Some(Arc::new(move |path: &RelPath, kind: Kind| {
            filter.takes_path(path, kind)
        }));
    }
    remote
        .list(options)
        .await
        .map_err(|source| EngineError::Look {
            location: remote.describe().location.clone(),
            source,
        })
}

/// A listing as an iterator for the planner's thread.
struct Items {
    listing: Listing,
    batch: std::vec::IntoIter<TreeItem>,
    limits: Option<(Arc<Filter>, Timestamp)>,
    shared: Arc<Shared>,
    is_source: bool,
}

impl Items {
    fn new(
        listing: Listing,
        limits: Option<(Arc<Filter>, Timestamp)>,
        shared: Arc<Shared>,
        is_source: bool,
    ) -> Self {
        Self {
            listing,
            batch: Vec::new().into_iter(),
            limits,
            shared,
            is_source,
        }
    }

    fn note(&self, item: &TreeItem) {
        match item {
            TreeItem::Incomplete(incomplete) => {
                let mut planned = lock(&self.shared.planned);
                if planned.incomplete.len() < 100 {
                    let below = match &incomplete.below {
                        Some(path) => format!("\"{path}\""),
                        None => "the rest".to_owned(),
                    };
                    planned
                        .incomplete
                        .push(format!("{below}: {}", incomplete.reason));
                }
            }
            TreeItem::Entry(entry) if self.is_source && entry.kind == Kind::Directory => {
                if let Some(directories) = lock(&self.shared.directories).as_mut() {
                    directories.push(entry.clone());
                }
            }
            TreeItem::Entry(_) | TreeItem::Problem(_) | TreeItem::Excluded { .. } => {}
        }
    }
}

impl Iterator for Items {
    type Item = TreeItem;

    fn next(&mut self) -> Option<TreeItem> {
        loop {
            let Some(item) = self.batch.next() else {
                self.batch = self.listing.blocking_next_batch()?.into_iter();
                continue;
            };
            if let (TreeItem::Entry(entry), Some((filter, now))) = (&item, &self.limits)
                && !filter.takes_entry(entry, *now)
            {
                let (path, kind) = (entry.path.clone(), entry.kind);
                return Some(TreeItem::Excluded { path, kind });
            }
            if !matches!(&item, TreeItem::Entry(entry) if entry.kind == Kind::File) {
                self.note(&item);
            }
            return Some(item);
        }
    }
}

/// The synced tree as an iterator; an error ends it and is kept.
struct Cursor<'a, I> {
    inner: I,
    failed: &'a mut Option<EngineError>,
}

impl<I: Iterator<Item = Result<Synced, EngineError>>> Iterator for Cursor<'_, I> {
    type Item = Synced;

    fn next(&mut self) -> Option<Synced> {
        match self.inner.next()? {
            Ok(synced) => Some(synced),
            Err(error) => {
                *self.failed = Some(error);
                None
            }
        }
    }
}
