//! Compares what is at a source with what was delivered from it, and marks the difference.
//!
//! This is the same plan as everywhere, with the synced tree in the place of the destination: a job
//! trusts it between drift checks. Absence is not deletion (K5): nothing is marked as gone unless the
//! source is the one it was, could be listed completely there, and is not suspiciously empty.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use knarr_core::choose::Chooser;
use knarr_core::entry::{Entry, Fingerprint, Kind};
use knarr_core::plan::{self, Decision, Mode, Operation, Policy, RenameIndex};
use knarr_core::tree::{Synced, TreeItem};
use knarr_core::{Clock, RelPath, Timestamp};
use knarr_store::dirty::Seen;

use crate::error::EngineError;
use crate::journal::Journal;
use crate::node::observe::{self, Mark};
use crate::node::spec::WatchJob;
use crate::observer::{Event, Observer, Trouble};

/// How many marks go into one transaction.
const MARKS: usize = 4_096;

/// What is told of a source that is not the one it was.
pub(crate) const OTHER_PLACE: &str = "it is another directory than before (replaced, or another file system is mounted): \
     no deletion follows from what it lacks. If that is right, `knarr approve` the job";

/// What is compared.
pub(crate) struct Comparing<'a> {
    pub(crate) job: &'a WatchJob,
    pub(crate) journal: &'a Journal,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) observer: &'a dyn Observer,
    /// The source, as a person writes it.
    pub(crate) shown: &'a str,
    /// Whether the source is the one it was; otherwise nothing is taken for deleted.
    pub(crate) trusted: bool,
    pub(crate) renames: &'a dyn RenameIndex,
    pub(crate) emptied: Emptied,
}

/// What it means that nothing at all is at a source from which something was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emptied {
    /// That something may be wrong, which a person has to look at.
    Tells,
    /// Nothing: whoever fills it may empty it, too.
    IsUsual,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Entries that are there.
    pub(crate) entries: u64,
    /// Paths that were marked.
    pub(crate) marked: u64,
    /// Parts that could not be listed.
    pub(crate) incomplete: u64,
    /// Paths that cannot be handled.
    pub(crate) problems: u64,
}

impl Comparing<'_> {
    /// Compares what is seen below a directory, or everywhere, and marks what differs. Blocks.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub(crate) fn compare(
        &self,
        seen: impl Iterator<Item = TreeItem>,
        below: Option<&RelPath>,
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
        let cursor = self.journal.synced_cursor_below(below.cloned());
        let (destination, synced) = tee(cursor.map_while(|synced| match synced {
            Ok(synced) => Some(synced),
            Err(error) => {
                failed = Some(error);
                None
            }
        }));
        let destination = destination.map(|synced| as_destination(&synced));
        let mut plan = plan::plan(seen, destination, synced, &policy, self.renames);
        let mut scanned = Scanned::default();
        let (mut marks, mut gone) = (Vec::new(), Vec::new());
        let choice = self.job.choice;
        let mut first = choice.limit.map(Chooser::new);
        for decision in plan.by_ref() {
            scanned.problems += u64::from(matches!(decision, Decision::Problem(_)));
            self.mark(decision, now, &mut marks, &mut gone);
            if let Some(chooser) = &mut first {
                // The others come with the next run.
                for mark in marks.drain(..) {
                    if self.journal.is_parked_blocking(&mark)? {
                        continue;
                    }
                    let rank = choice.order.rank_of(&mark.path, mark.observed.as_ref());
                    chooser.offer(rank, mark);
                }
            }
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
        scanned.incomplete = counts.source_incomplete;
        let emptied = below.is_none() && counts.source_entries == 0;
        if emptied && self.emptied == Emptied::IsUsual {
            // What was taken is remembered: should it be there again as it was, it is not taken twice.
            gone.clear();
        }
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
        marks.extend(first.map(Chooser::into_chosen).unwrap_or_default());
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

    /// Marks what was delivered and is still there, though it should have been removed or moved aside:
    /// the process died in between, or it did not work.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub(crate) fn mark_unfinished(
        &self,
        seen: impl Iterator<Item = TreeItem>,
    ) -> Result<u64, EngineError> {
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
                marks.extend(observe::mark_of(self.job, entry, now, because));
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

    fn mark(
        &self,
        decision: Decision,
        now: Timestamp,
        marks: &mut Vec<Mark>,
        gone: &mut Vec<Mark>,
    ) {
        // Written to just now, by somebody who may still write: it has to come to rest first.
        let at_rest = |entry: &Entry| entry.mtime.unwrap_or(now).after(self.job.settle).max(now);
        let because = || observe::at_rest(self.job);
        match decision {
            Decision::Operation(Operation::Put { entry, .. }) => {
                // A clock or mtime in the far future must not hold a file back for ever.
                let ready_at = at_rest(&entry).min(now.after(self.job.settle));
                marks.extend(observe::mark_of(self.job, entry, ready_at, because()));
            }
            Decision::Operation(Operation::Rename { from, entry, .. }) => {
                let mark = observe::mark_of(self.job, entry, now, "renamed".to_owned());
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

    pub(crate) fn say(&self, message: &str) {
        let message = format!("job `{}`: {}: {message}", self.job.name, self.shown);
        let (path, kind) = (None, Trouble::Notice);
        self.observer.event(&Event::Trouble {
            path,
            kind,
            message: &message,
        });
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
