//! Looks at a watched directory, and has it compared with what was delivered from it.

use std::collections::VecDeque;
use std::sync::Arc;

use knarr_core::entry::{Entry, Kind};
use knarr_core::job::After;
use knarr_core::plan::{RenameIndex, Side};
use knarr_core::tree::{Synced, TreeItem};
use knarr_core::{Clock, RelPath};
use knarr_fs::Root;
use knarr_fs::walk::{WalkOptions, Walker};

use crate::error::EngineError;
use crate::journal::Journal;
use crate::node::compare::{Comparing, Emptied, Scanned};
use crate::node::spec::WatchJob;
use crate::observer::Observer;

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

impl Scanning {
    /// Looks, compares and marks. Blocks.
    ///
    /// # Errors
    /// If the state cannot be read or written.
    pub(crate) fn scan(&self, request: &ScanRequest) -> Result<Scanned, EngineError> {
        let shown = self.root.display().display().to_string();
        let index = Index {
            journal: &self.journal,
            root: &self.root,
        };
        let comparing = self.comparing(&index, &shown);
        if let Err(error) = self.root.check_in_place() {
            comparing.say(&format!(
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
                    comparing.say(&format!(
                        "cannot be listed: {}",
                        crate::error::chain(&error)
                    ));
                    return Ok(Scanned::default());
                }
                // A directory below that is no more: what was delivered from it is gone.
                return comparing.compare(std::iter::empty(), request.below.as_ref());
            }
        };
        let mut scanned = comparing.compare(Walked::new(walker), request.below.as_ref())?;
        if self.job.after != After::Keep
            && let Ok(walker) = Walker::new(&self.root, options())
        {
            scanned.marked += comparing.mark_unfinished(Walked::new(walker))?;
        }
        Ok(scanned)
    }

    fn comparing<'a>(&'a self, index: &'a Index<'a>, shown: &'a str) -> Comparing<'a> {
        Comparing {
            job: &self.job,
            journal: &self.journal,
            clock: self.clock.as_ref(),
            observer: self.observer.as_ref(),
            shown,
            trusted: self.trusted,
            renames: index,
            emptied: Emptied::Tells,
        }
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
