//! Compares what is in a watched directory with what was delivered from it, and marks the difference.
//!
//! This is the same plan as everywhere, with the synced tree in the place of the destination: a job
//! trusts it between drift checks. Absence is not deletion (K5): nothing is marked as gone unless the
//! directory is the one it was, could be listed completely there, and is not suspiciously empty.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use knarr_core::entry::{Entry, Fingerprint, Kind};
use knarr_core::job::After;
use knarr_core::plan::{self, Decision, Mode, Operation, Policy, RenameIndex, Side};
use knarr_core::tree::{Synced, TreeItem};
use knarr_core::{Clock, RelPath, Timestamp};
use knarr_fs::Root;
use knarr_fs::walk::{WalkOptions, Walker};

use knarr_store::dirty::Seen;

use crate::error::EngineError;
use crate::journal::Journal;
use crate::node::observe::Mark;
use crate::node::spec::WatchJob;
use crate::observer::{Event, Observer, Trouble};

/// How many marks go into one transaction.
const MARKS: usize = 4_096;
/// How many items the walk hands over at once.
const WALK_BATCH: usize = 1_024;

/// A wish to look at everything below a directory, or below the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScanRequest {
    pub(crate) below: Option<RelPath>,
}

/// What a scan needs.
#[derive(Debug)]
pub(crate) struct Scanning {
    pub(crate) job: Arc<WatchJob>,
    pub(crate) root: Root,
    pub(crate) journal: Journal,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) observer: Arc<dyn Observer>,
    /// Whether the directory is the one it was; otherwise nothing is taken for deleted.
    pub(crate) trusted: bool,
}

/// What a scan found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Entries that are there.
    pub(crate) entries: u64,
    /// Paths that were marked.
    pub(crate) marked: u64,
}

impl Scanning {
    /// Looks, compares and marks. Blocks.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub(crate) fn scan(&self, request: &ScanRequest) -> Result<Scanned, EngineError> {
        if let Err(error) = self.root.check_in_place() {
            self.say(&format!(
                "nothing is concluded from it: {}",
                crate::error::chain(&error)
            ));
            return Ok(Scanned::default());
        }
        let job = Arc::clone(&self.job);
        let takes = move |path: &RelPath, kind: Kind| job.takes_path(path, kind);
        let options = || WalkOptions {
            filter: Some(&takes),
            below: request.below.as_ref(),
            ..WalkOptions::default()
        };
        let walker = match Walker::new(&self.root, options()) {
            Ok(walker) => walker,
            Err(error) => {
                let gone = request.below.is_some() && self.root.check_in_place().is_ok();
                if !gone {
                    self.say(&format!(
                        "cannot be listed: {}",
                        crate::error::chain(&error)
                    ));
                    return Ok(Scanned::default());
                }
                // A directory below that is no more: what was delivered from it is gone.
                return self.compare(std::iter::empty(), request);
            }
        };
        let mut scanned = self.compare(Walked::new(walker), request)?;
        if self.job.after != After::Keep
            && let Ok(walker) = Walker::new(&self.root, options())
        {
            scanned.marked += self.mark_unfinished(Walked::new(walker))?;
        }
        Ok(scanned)
    }

    /// Marks what was delivered and is still there, though it should have been removed or moved aside:
    /// the process died in between, or it did not work.
    fn mark_unfinished(&self, seen: impl Iterator<Item = TreeItem>) -> Result<u64, EngineError> {
        let (now, mut marked, mut marks) = (self.clock.now(), 0, Vec::new());
        let mut seen = seen.fuse();
        loop {
            let item = seen.next();
            let is_end = item.is_none();
            if let Some(TreeItem::Entry(entry)) = item
                && entry.kind != Kind::Directory
                && let Some(synced) = self.journal.synced_blocking(&entry.path)?
                && synced.source.still_describes(&entry)
                && synced.source.identity == entry.identity
            {
                let because = "delivered before, and still there".to_owned();
                marks.extend(super::observe::mark_of(&self.job, entry, now, because));
            }
            if marks.len() >= MARKS || is_end {
                marked += marks.len() as u64;
                self.journal
                    .mark_blocking(std::mem::take(&mut marks), Seen::Scan)?;
            }
            if is_end {
                return Ok(marked);
            }
        }
    }

    fn compare(
        &self,
        seen: impl Iterator<Item = TreeItem>,
        request: &ScanRequest,
    ) -> Result<Scanned, EngineError> {
        let policy = Policy {
            renames: self.job.mirrors_paths(),
            directories: false,
            symlinks: self.job.symlinks,
            adopt: false,
            ..Policy::new(Mode::Mirror)
        };
        let now = self.clock.now();
        let mut failed = None;
        let cursor = self.journal.synced_cursor_below(request.below.clone());
        let (destination, synced) = tee(cursor.map_while(|synced| match synced {
            Ok(synced) => Some(synced),
            Err(error) => {
                failed = Some(error);
                None
            }
        }));
        let destination = destination.map(|synced| as_destination(&synced));
        let index = Index {
            journal: &self.journal,
            root: &self.root,
        };
        let mut plan = plan::plan(seen, destination, synced, &policy, &index);
        let mut scanned = Scanned::default();
        let (mut marks, mut gone) = (Vec::new(), Vec::new());
        for decision in plan.by_ref() {
            self.mark(decision, now, &mut marks, &mut gone);
            if marks.len() >= MARKS {
                scanned.marked += marks.len() as u64;
                self.journal
                    .mark_blocking(std::mem::take(&mut marks), Seen::Scan)?;
            }
        }
        let counts = plan.counts();
        drop(plan);
        if let Some(error) = failed {
            return Err(error);
        }
        scanned.entries = counts.source_entries;
        let emptied = request.below.is_none() && counts.source_entries == 0;
        if !gone.is_empty() && (emptied || !self.trusted) {
            if emptied {
                self.say(
                    "it is empty, although files were delivered from it: no deletion follows from \
                     that. If they were deleted on purpose, `knarr approve` the job",
                );
            }
            if self
                .journal
                .hold_unless_approved_blocking(gone.len() as u64)?
            {
                gone.clear();
            }
        }
        let approved = (emptied || !self.trusted) && !gone.is_empty();
        marks.append(&mut gone);
        scanned.marked += marks.len() as u64;
        for batch in marks.chunks(MARKS) {
            self.journal.mark_blocking(batch.to_vec(), Seen::Scan)?;
        }
        if approved {
            self.journal.use_approval_blocking()?;
        }
        Ok(scanned)
    }

    fn mark(
        &self,
        decision: Decision,
        now: Timestamp,
        marks: &mut Vec<Mark>,
        gone: &mut Vec<Mark>,
    ) {
        // Written to just now, by somebody who may still write: it has to come to rest first.
        let at_rest = |entry: &Entry| entry.mtime.unwrap_or(now).after(self.job.settle).max(now);
        let because = || super::observe::at_rest(&self.job);
        match decision {
            Decision::Operation(Operation::Put { entry, .. }) => {
                // A clock or mtime in the far future must not hold a file back for ever.
                let ready_at = at_rest(&entry).min(now.after(self.job.settle));
                marks.extend(super::observe::mark_of(
                    &self.job,
                    entry,
                    ready_at,
                    because(),
                ));
            }
            Decision::Operation(Operation::Rename { from, entry, .. }) => {
                let mark = super::observe::mark_of(&self.job, entry, now, "renamed".to_owned());
                marks.extend(mark.map(|mark| Mark {
                    renamed_from: Some(from.path),
                    ..mark
                }));
            }
            Decision::Operation(Operation::Remove { seen, .. }) => gone.push(Mark {
                path: seen.path,
                kind: seen.kind,
                observed: None,
                ready_at: now,
                because: None,
                renamed_from: None,
            }),
            Decision::Problem(problem) => {
                let (path, kind) = (Some(&problem.path), Trouble::Problem);
                self.observer.event(&Event::Trouble {
                    path,
                    kind,
                    message: &problem.message,
                });
            }
            Decision::Operation(Operation::Adopt { .. } | Operation::Forget { .. })
            | Decision::Conflict(_) => {}
        }
    }

    fn say(&self, message: &str) {
        let message = format!(
            "job `{}`: {}: {message}",
            self.job.name,
            self.root.display().display()
        );
        let (path, kind) = (None, Trouble::Notice);
        self.observer.event(&Event::Trouble {
            path,
            kind,
            message: &message,
        });
    }
}

/// A walk as an iterator.
struct Walked<'a> {
    walker: Walker<'a>,
    batch: VecDeque<TreeItem>,
    buffer: Vec<TreeItem>,
    ended: bool,
}

impl<'a> Walked<'a> {
    fn new(walker: Walker<'a>) -> Self {
        Self {
            walker,
            batch: VecDeque::new(),
            buffer: Vec::new(),
            ended: false,
        }
    }
}

impl Iterator for Walked<'_> {
    type Item = TreeItem;

    fn next(&mut self) -> Option<TreeItem> {
        while self.batch.is_empty() && !self.ended {
            self.ended = !self.walker.next_batch(&mut self.buffer, WALK_BATCH);
            self.batch.extend(self.buffer.drain(..));
        }
        self.batch.pop_front()
    }
}

/// One iterator as two, of which neither gets far ahead of the other.
fn tee<I: Iterator<Item = Synced>>(inner: I) -> (Tee<I>, Tee<I>) {
    let shared = Rc::new(RefCell::new(Shared {
        inner,
        waiting: [VecDeque::new(), VecDeque::new()],
    }));
    (
        Tee {
            shared: Rc::clone(&shared),
            which: 0,
        },
        Tee { shared, which: 1 },
    )
}

struct Shared<I> {
    inner: I,
    waiting: [VecDeque<Synced>; 2],
}

struct Tee<I> {
    shared: Rc<RefCell<Shared<I>>>,
    which: usize,
}

impl<I: Iterator<Item = Synced>> Iterator for Tee<I> {
    type Item = Synced;

    fn next(&mut self) -> Option<Synced> {
        let mut shared = self.shared.borrow_mut();
        let waiting = shared.waiting.get_mut(self.which)?.pop_front();
        waiting.or_else(|| {
            let synced = shared.inner.next()?;
            shared
                .waiting
                .get_mut(1 - self.which)?
                .push_back(synced.clone());
            Some(synced)
        })
    }
}

/// What was delivered, as if the destination had been listed.
fn as_destination(synced: &Synced) -> TreeItem {
    let Fingerprint {
        kind,
        size,
        mtime,
        identity,
        link_target,
    } = synced.destination.clone();
    TreeItem::Entry(Entry {
        path: synced.path.clone(),
        kind,
        size,
        mtime,
        identity,
        hash: None,
        mode: None,
        link_target,
    })
}

/// Finds under which name a new file was delivered before.
#[derive(Debug)]
struct Index<'a> {
    journal: &'a Journal,
    root: &'a Root,
}

impl RenameIndex for Index<'_> {
    fn renamed_from(&self, side: Side, entry: &Entry) -> Option<Synced> {
        let identity = entry.identity.as_ref()?;
        // Several, where files have several names: the one whose name is free was renamed.
        self.journal
            .synced_by_identity_blocking(side, identity)
            .into_iter()
            .find(|found| {
                found.path != entry.path
                    && found.source.still_describes(entry)
                    && matches!(self.root.stat(&found.path), Ok(None))
            })
    }
}
