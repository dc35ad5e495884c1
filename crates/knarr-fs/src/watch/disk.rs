//! What the disk says about directories, and how the tree of watches is made to say the same.
//!
//! While there are events in the queue, the tree is what it was some time ago, and the disk is ahead of
//! it. So the disk only ever adds directories that are not in the tree; nothing that is there is moved or
//! removed by what the disk says. What does not fit is doubted ([`Doubt`]). Once the queue is empty,
//! doubted directories are listed again; if the tree is still wrong although nothing more happened, it is
//! made anew from the disk, keeping the watches, and everything is told as unknown.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use knarr_core::path::RelPath;
use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use crate::root::{OWN_PREFIX, Root};
use crate::sys;
use crate::watch::machine::{MASK, Machine};
use crate::watch::tree::{ROOT, Tree};
use crate::watch::{Degradation, WatchEvent};

/// More than this in one new directory is told as one directory to look at.
const CONTENTS_LIMIT: usize = 4096;

/// How many directories are doubted one by one.
const DOUBT_LIMIT: usize = 64;

/// How long an empty queue is waited for before the disk is asked all the same.
const DOUBT_PATIENCE: Duration = Duration::from_secs(2);

/// Watches by handle, so that no link in a path can lead elsewhere; by path where `/proc` is missing.
pub(crate) fn add_watch(
    queue: &OwnedFd,
    handle: BorrowedFd<'_>,
    mask: WatchFlags,
    root: &Root,
    path: Option<&RelPath>,
) -> rustix::io::Result<i32> {
    match inotify::add_watch(queue, sys::path_of_handle(handle), mask) {
        Err(Errno::NOENT) => {
            let path = path.map_or_else(|| root.display().to_path_buf(), |p| root.display_of(p));
            inotify::add_watch(queue, path, mask | WatchFlags::DONT_FOLLOW)
        }
        result => result,
    }
}

/// What became of a directory that was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// It is where the tree says.
    AsBefore,
    /// It was not in the tree.
    New(u32),
    /// The tree says something else, now or still.
    Different,
}

/// Whether what is found is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announce {
    Nothing,
    Contents,
}

/// Where the tree and the disk may differ. The disk is asked when the queue is empty: what stands in the
/// queue is about a state before the disk's, and the two must not be mixed. What is still in doubt then
/// is asked again, less and less often while nothing happens.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    /// Directories whose subdirectories may be others than the tree says.
    about: BTreeSet<u32>,
    /// Events were lost.
    everything: bool,
    since: Option<Instant>,
    /// How often the disk was asked since the last event.
    asked: u32,
    not_before: Option<Instant>,
    /// Making the tree anew takes long when it is large, and must not become all that is done.
    anew_not_before: Option<Instant>,
}

impl Doubt {
    pub(crate) fn add(&mut self, directory: u32) {
        if self.about.len() < DOUBT_LIMIT {
            self.about.insert(directory);
        } else {
            self.everything = true;
        }
        self.since.get_or_insert_with(Instant::now);
    }

    /// Adds a directory that is not what the tree says although the queue was empty. If nothing happened
    /// since it was doubted before, no event will set it right.
    fn add_again(&mut self, directory: u32) {
        self.add(directory);
        self.everything |= self.asked > 2;
    }

    pub(crate) fn add_everything(&mut self) {
        self.add(ROOT);
        self.everything = true;
    }

    /// Something happened: what could not be told may be told now.
    pub(crate) fn reset_patience(&mut self) {
        (self.asked, self.not_before) = (0, None);
    }

    pub(crate) const fn is_any(&self) -> bool {
        self.since.is_some()
    }

    /// How long to wait before the disk is asked, if there is anything to ask.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let wait = |at: Instant| at.saturating_duration_since(now);
        self.since
            .map(|_| self.not_before.map_or(Duration::ZERO, wait))
    }

    /// Whether to ask now. Without an empty queue only if there has not been one for long.
    pub(crate) fn is_due(&self, queue_is_empty: bool, now: Instant) -> bool {
        let is_old = self
            .since
            .is_some_and(|since| now.duration_since(since) > DOUBT_PATIENCE);
        self.wait(now).is_some_and(|wait| wait.is_zero()) && (queue_is_empty || is_old)
    }

    /// Takes the questions; those that come up again while they are answered have to wait.
    fn take(&mut self) -> (BTreeSet<u32>, bool) {
        let wait = Duration::from_millis(1 << self.asked.min(13));
        self.asked = self.asked.saturating_add(1);
        self.not_before = Some(Instant::now() + wait);
        self.since = None;
        (
            std::mem::take(&mut self.about),
            std::mem::take(&mut self.everything),
        )
    }
}

impl Machine {
    /// Compares the tree with the disk where it is in doubt, and tells what may have been missed.
    pub(crate) fn ask_the_disk(&mut self) {
        let (about, everything) = self.doubt.take();
        if let Some((_, _, old)) = self.displaced.take() {
            self.unwatch(old);
        }
        if everything {
            self.make_anew();
            return;
        }
        for directory in about {
            if self.tree.is_same_or_above(ROOT, directory) && self.compare(directory) {
                let below = self.tree.path_of(directory);
                self.outbox.push(WatchEvent::Overflow { below });
            }
        }
    }

    /// Makes the tree from what is on the disk.
    fn make_anew(&mut self) {
        let begun = Instant::now();
        let Ok(handle) = sys::open_listing(self.root.as_fd()) else {
            self.doubt.add_everything();
            return;
        };
        let root_watch = self.tree.watch_of(ROOT);
        let old = std::mem::replace(&mut self.tree, Tree::new(root_watch));
        self.moved.clear();
        self.created.clear();
        self.watch_children_of_root(&handle);
        for watch in old.watches() {
            if self.tree.by_watch(watch).is_none() {
                inotify::remove_watch(&self.queue, watch).ok();
            }
        }
        let now = Instant::now();
        self.doubt.anew_not_before = Some(now + now.duration_since(begun) * 10);
        self.outbox.push(WatchEvent::Overflow { below: None });
    }

    /// Watches everything below the root.
    pub(crate) fn watch_children_of_root(&mut self, handle: &OwnedFd) {
        let mut pending = Vec::new();
        self.list(ROOT, handle, Announce::Nothing, &mut 0, &mut pending);
        self.watch_pending(&mut pending, Announce::Nothing);
    }

    /// Compares the subdirectories of one directory with the disk. Returns whether some were added.
    fn compare(&mut self, directory: u32) -> bool {
        let Some(handle) = self.open_node(directory) else {
            return false;
        };
        let mut pending = Vec::new();
        self.list(directory, &handle, Announce::Nothing, &mut 0, &mut pending);
        let found: HashSet<&[u8]> = pending.iter().map(|(_, name)| &**name).collect();
        let children = self.tree.children(directory);
        let is_missing = children
            .iter()
            .any(|child| !found.contains(self.tree.name_of(*child)));
        let (has_new, has_different) = self.watch_pending(&mut pending, Announce::Nothing);
        if is_missing || has_different {
            self.doubt.add_again(directory);
        }
        has_new
    }

    /// Opens a directory of the tree. If its path does not lead to it, something above it was renamed and
    /// the event is on its way; it is then doubted again.
    fn open_node(&mut self, node: u32) -> Option<OwnedFd> {
        let Some(path) = self.tree.path_of(node) else {
            return sys::open_listing(self.root.as_fd()).ok();
        };
        let Ok(handle) = self.open(&path) else {
            return None;
        };
        let watch = handle.as_ref().and_then(|handle| {
            add_watch(&self.queue, handle.as_fd(), MASK, &self.root, Some(&path)).ok()
        });
        match (watch, watch.and_then(|watch| self.tree.by_watch(watch))) {
            (Some(_), Some(found)) if found == node => return handle,
            (Some(watch), None) => {
                inotify::remove_watch(&self.queue, watch).ok();
            }
            _ => {}
        }
        self.doubt.add_again(node);
        None
    }

    /// Watches what is called `name` in a directory, if it is a directory, and what is below it.
    pub(crate) fn watch(&mut self, parent: u32, name: &[u8], announce: Announce) {
        self.watch_pending(&mut vec![(parent, Box::from(name))], announce);
    }

    /// Watches directories and what is below them. Returns whether some were new, and whether the tree
    /// said something else about some.
    fn watch_pending(
        &mut self,
        pending: &mut Vec<(u32, Box<[u8]>)>,
        mut announce: Announce,
    ) -> (bool, bool) {
        let (mut told, mut has_new, mut has_different) = (0, false, false);
        let top = pending
            .first()
            .and_then(|(parent, name)| self.tree.path_in(*parent, name));
        while let Some((parent, name)) = pending.pop() {
            let Some(path) = self.tree.path_in(parent, &name) else {
                let unwatched = self.tree.path_of(parent);
                let reason = Degradation::Other("the path is too long".to_owned());
                self.outbox.push(WatchEvent::Degraded { unwatched, reason });
                continue;
            };
            if self
                .options
                .filter
                .as_ref()
                .is_some_and(|wanted| !wanted(&path))
            {
                continue;
            }
            let handle = match self.open(&path) {
                Ok(Some(handle)) => handle,
                Ok(None) => {
                    // It was removed or renamed, or something above it was.
                    self.doubt.add(parent);
                    continue;
                }
                Err(reason) => {
                    self.degraded(path, announce, reason);
                    continue;
                }
            };
            let placed = match self.watch_one(parent, &name, &path, &handle) {
                Ok(placed) => placed,
                Err(reason) => {
                    self.degraded(path, announce, reason);
                    continue;
                }
            };
            if announce == Announce::Contents {
                told += 1;
                self.outbox.push(WatchEvent::DirectoryCreated(path));
            }
            match placed {
                Placed::AsBefore => {}
                Placed::Different => has_different = true,
                Placed::New(node) => {
                    has_new = true;
                    self.list(node, &handle, announce, &mut told, pending);
                }
            }
            if told > CONTENTS_LIMIT {
                announce = Announce::Nothing;
            }
        }
        if told > CONTENTS_LIMIT {
            self.outbox.push(WatchEvent::Overflow { below: top });
        }
        (has_new, has_different)
    }

    /// Opens a directory for watching and listing; nothing if it is gone or is none.
    fn open(&self, path: &RelPath) -> Result<Option<OwnedFd>, Degradation> {
        let flags = sys::LISTING;
        match sys::open_below(self.root.as_fd(), path.as_bytes(), flags, Mode::empty()) {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(Errno::ACCESS | Errno::PERM) => Err(Degradation::Denied),
            Err(errno) => Err(Degradation::Other(errno.to_string())),
        }
    }

    /// Adds one watch, and a node for it if the tree has none for this directory or this name.
    fn watch_one(
        &mut self,
        parent: u32,
        name: &[u8],
        path: &RelPath,
        handle: &OwnedFd,
    ) -> Result<Placed, Degradation> {
        let found = self.tree.find(parent, name);
        if found.is_none() && self.tree.len() >= self.options.max_watches {
            return Err(Degradation::WatchLimit);
        }
        let watch = match add_watch(&self.queue, handle.as_fd(), MASK, &self.root, Some(path)) {
            Ok(watch) => watch,
            Err(Errno::NOSPC) => return Err(Degradation::WatchLimit),
            Err(Errno::ACCESS | Errno::PERM) => return Err(Degradation::Denied),
            Err(errno) => return Err(Degradation::Other(errno.to_string())),
        };
        match (self.tree.by_watch(watch), found) {
            (None, None) => Ok(Placed::New(self.tree.insert(parent, name.into(), watch))),
            (Some(known), Some(found)) if known == found => Ok(Placed::AsBefore),
            (Some(known), _) => {
                if self.is_still_there(known, handle) {
                    let reason = "it is mounted at two places".to_owned();
                    return Err(Degradation::Other(reason));
                }
                self.doubt.add(parent);
                self.tree
                    .parent_of(known)
                    .into_iter()
                    .for_each(|other| self.doubt.add(other));
                Ok(Placed::Different)
            }
            (None, Some(_)) => {
                inotify::remove_watch(&self.queue, watch).ok();
                self.doubt.add(parent);
                Ok(Placed::Different)
            }
        }
    }

    /// Whether the directory of a node still has the node's name, and is the one that `handle` is, too.
    fn is_still_there(&self, node: u32, handle: &OwnedFd) -> bool {
        let at_node = self
            .tree
            .path_of(node)
            .and_then(|path| self.open(&path).ok().flatten());
        let numbers = |handle: &OwnedFd| {
            rustix::fs::fstat(handle)
                .ok()
                .map(|stat| (stat.st_dev, stat.st_ino))
        };
        at_node.is_some_and(|at_node| numbers(&at_node) == numbers(handle))
    }

    fn degraded(&mut self, path: RelPath, announce: Announce, reason: Degradation) {
        if announce == Announce::Contents {
            self.outbox.push(WatchEvent::DirectoryCreated(path.clone()));
        }
        self.outbox.push(WatchEvent::Degraded {
            unwatched: Some(path),
            reason,
        });
    }

    /// Lists a directory: what is a directory is pending, what is none is told.
    pub(crate) fn list(
        &mut self,
        node: u32,
        handle: &OwnedFd,
        announce: Announce,
        told: &mut usize,
        pending: &mut Vec<(u32, Box<[u8]>)>,
    ) {
        let Self {
            names,
            tree,
            outbox,
            ..
        } = self;
        let result = sys::read_names(handle.as_fd(), names, |name, file_type| {
            let bytes = name.to_bytes();
            if bytes.starts_with(OWN_PREFIX) {
                return true;
            }
            let file_type = match file_type {
                FileType::Unknown => sys::stat_name(handle.as_fd(), name)
                    .map_or(FileType::Unknown, |stat| {
                        FileType::from_raw_mode(stat.st_mode)
                    }),
                known => known,
            };
            if file_type == FileType::Directory {
                pending.push((node, bytes.into()));
            } else if announce == Announce::Contents && *told <= CONTENTS_LIMIT {
                *told += 1;
                if let Some(path) = tree.path_in(node, bytes) {
                    outbox.push(WatchEvent::Appeared(path));
                }
            }
            true
        });
        if let Err(errno) = result
            && errno != Errno::NOENT
        {
            let reason = Degradation::Other(format!("it cannot be listed: {errno}"));
            let unwatched = self.tree.path_of(node);
            self.outbox.push(WatchEvent::Degraded { unwatched, reason });
        }
    }
}
