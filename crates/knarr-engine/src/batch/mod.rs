//! Publishes what a run delivers together, or not at all.
//!
//! Each file is delivered in the usual way, steps and checks and verification included, but to a hidden name
//! beside its final one. What that was is on record before the first byte of it is written, so nothing that a
//! crash leaves is unknown. When all is there, one transaction *decides*; then each file gets its final name,
//! those that come last when all others have theirs and are on record. What was decided is finished by the
//! next run, whatever happened in between; what was not is used again, or removed.
//!
//! Constraint: in memory are the files in flight, and with manifests what these list.

pub(crate) mod flip;
mod item;
mod stage;
pub(crate) mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use knarr_core::{Entry, RelPath};
use knarr_remote::Replace;
use knarr_store::batches::{BatchId, Turn};

pub(crate) use self::item::{Reused, Role};
use crate::conditions::Marker;
use crate::manifest::Expected;

/// When what a run delivers becomes visible at the destination.
#[derive(Debug, Clone, Default)]
pub enum Publish {
    /// Each file when it is delivered.
    #[default]
    Each,
    /// All files of a run together, when all are staged and verified; or none.
    Together {
        /// Those that become visible when all others are.
        last: Option<Box<Marker>>,
    },
}

/// The longest object that a store copies within itself, in bytes.
pub(crate) const COPY_LIMIT: u64 = 5 << 30;

/// The batches of a run.
#[derive(Debug)]
pub(crate) struct Batches {
    groups: Vec<Group>,
    members: Members,
    /// What is to be told of manifests of which nothing is taken.
    remark: Option<String>,
    /// What is being staged: for the hidden name the final one, and what may be replaced there.
    under_way: Mutex<BTreeMap<RelPath, (RelPath, Replace)>>,
    /// The final names of what comes out of each archive that is being unpacked.
    unpacked: Mutex<BTreeMap<RelPath, BTreeSet<RelPath>>>,
}

/// What belongs to a batch.
#[derive(Debug)]
pub(crate) enum Members {
    /// All files of the run, in one batch.
    All {
        /// Those that come last.
        last: Option<Box<Marker>>,
    },
    /// What manifests list, a batch for each.
    Listed(BTreeMap<RelPath, Member>),
}

/// A file that belongs to the batch of a manifest.
#[derive(Debug)]
pub(crate) struct Member {
    /// The place of its batch among all.
    pub(crate) group: usize,
    /// What is known of it.
    pub(crate) what: MemberKind,
}

/// What a file of a batch is.
#[derive(Debug)]
pub(crate) enum MemberKind {
    /// The manifest, as it was read.
    Manifest(Box<Entry>),
    /// What it lists.
    Listed(Expected),
}

/// One batch.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) id: BatchId,
    /// The manifest whose batch it is.
    pub(crate) manifest: Option<RelPath>,
    /// How many files have still to be staged, where that is known.
    due: Option<AtomicUsize>,
    /// Why nothing of it is published.
    failed: OnceLock<(Option<RelPath>, String)>,
}

impl Group {
    /// A batch of all files of a run.
    pub(crate) const fn of_run(id: BatchId) -> Self {
        Self {
            id,
            manifest: None,
            due: None,
            failed: OnceLock::new(),
        }
    }

    /// The batch of a manifest, with that many files.
    pub(crate) const fn of_manifest(id: BatchId, manifest: RelPath, due: usize) -> Self {
        Self {
            id,
            manifest: Some(manifest),
            due: Some(AtomicUsize::new(due)),
            failed: OnceLock::new(),
        }
    }

    /// Notes that one more source is staged.
    fn staged(&self) {
        if let Some(due) = &self.due {
            let less = |due: usize| Some(due.saturating_sub(1));
            due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .ok();
        }
    }

    /// Whether something that belongs to it was not staged, and did not fail either.
    pub(crate) fn lacks_something(&self) -> bool {
        let due = self.due.as_ref();
        due.is_some_and(|due| due.load(Ordering::Relaxed) > 0)
    }

    /// Says that nothing of it is to be published. The first reason counts.
    pub(crate) fn fail(&self, path: Option<&RelPath>, reason: &str) {
        self.failed
            .get_or_init(|| (path.cloned(), reason.to_owned()));
    }

    /// Why nothing of it is published, for a person.
    pub(crate) fn why_not(&self) -> Option<String> {
        let (path, reason) = self.failed.get()?;
        let what = match &self.manifest {
            Some(manifest) => format!("nothing of the manifest \"{manifest}\" was published"),
            None => "nothing was published".to_owned(),
        };
        Some(match path {
            Some(path) => format!("{what}: \"{path}\": {reason}"),
            None => format!("{what}: {reason}"),
        })
    }
}

/// What becomes of a file that is about to be delivered.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It is staged.
    Staged,
    /// It belongs to no batch of this run.
    Left,
    /// It is not what it has to be.
    Wrong(String),
}

impl Batches {
    pub(crate) const fn new(groups: Vec<Group>, members: Members, remark: Option<String>) -> Self {
        Self {
            groups,
            members,
            remark,
            under_way: Mutex::new(BTreeMap::new()),
            unpacked: Mutex::new(BTreeMap::new()),
        }
    }

    /// All batches, in the order in which they are published.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// What is to be told of manifests of which nothing is taken.
    pub(crate) fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    /// Whether a file that `if_exists` says to leave keeps back nothing else.
    pub(crate) const fn may_leave(&self) -> bool {
        matches!(self.members, Members::All { .. })
    }

    /// The batch of a path at the source.
    pub(crate) fn group(&self, source: &RelPath) -> Option<&Group> {
        match &self.members {
            Members::All { .. } => self.groups.first(),
            Members::Listed(members) => self.groups.get(members.get(source)?.group),
        }
    }

    /// Whether a file is staged.
    pub(crate) fn admit(&self, entry: &Entry) -> Admission {
        // Also where something of the batch failed already: the next run finds the rest staged.
        if self.group(&entry.path).is_none() {
            return Admission::Left;
        }
        let Members::Listed(members) = &self.members else {
            return Admission::Staged;
        };
        match members.get(&entry.path).map(|member| &member.what) {
            Some(MemberKind::Manifest(seen))
                if !seen.fingerprint().still_describes(entry)
                    || seen.identity != entry.identity =>
            {
                Admission::Wrong("the manifest was changed after it was read".to_owned())
            }
            Some(MemberKind::Listed(expected)) => match expected.size {
                Some(size) if size != entry.size => Admission::Wrong(format!(
                    "it has {} bytes, and the manifest says {size}",
                    entry.size
                )),
                _ => Admission::Staged,
            },
            _ => Admission::Staged,
        }
    }

    /// What the content of a file has to be, as its manifest says.
    pub(crate) fn expected(&self, source: &RelPath) -> Option<(&Expected, &RelPath)> {
        let Members::Listed(members) = &self.members else {
            return None;
        };
        let manifest = self.group(source)?.manifest.as_ref()?;
        match &members.get(source)?.what {
            MemberKind::Listed(expected) => Some((expected, manifest)),
            MemberKind::Manifest(_) => None,
        }
    }

    fn turn(&self, source: &RelPath) -> Turn {
        let is_last = match &self.members {
            Members::All { last } => last.as_ref().is_some_and(|last| last.is(source)),
            Members::Listed(members) => members
                .get(source)
                .is_some_and(|member| matches!(member.what, MemberKind::Manifest(_))),
        };
        if is_last { Turn::Last } else { Turn::First }
    }

    /// An archive begins to be unpacked, maybe once more.
    fn begin_unpacking(&self, source: &RelPath) {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        unpacked.insert(source.clone(), BTreeSet::new());
    }

    /// Says whether nothing else of the same archive goes to `path`.
    fn is_new_of(&self, source: &RelPath, path: &RelPath) -> bool {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let names = unpacked.get_mut(source);
        names.is_none_or(|names| names.insert(path.clone()))
    }

    fn end_unpacking(&self, source: &RelPath) {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        unpacked.remove(source);
    }

    fn begin(&self, staged: RelPath, path: RelPath, replace: Replace) {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        under_way.insert(staged, (path, replace));
    }

    fn end(&self, staged: &RelPath) -> Option<(RelPath, Replace)> {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        under_way.remove(staged)
    }
}
