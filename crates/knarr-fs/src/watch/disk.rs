//! What the disk says about directories, and how the tree of watches is made to say the same.
//!
//! While there are events in the queue, the tree is what it was some time ago, and the disk is ahead of
//! it. A directory that an event tells of is then added, but nothing that the tree knows is changed by
//! what the disk says; what does not fit is doubted ([`Doubt`]), and the disk decides once the queue is
//! empty.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use knarr_core::path::RelPath;
use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use crate::root::{OWN_PREFIX, Root};
use crate::sys;
use crate::watch::machine::{MASK, Machine};
use crate::watch::tree::ROOT;
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

/// Which directories are looked into.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Descend {
    /// Those that were not watched before.
    IntoNew,
    /// All, as events were lost.
    IntoAll,
}

/// Whether the disk is asked because of an event, or because the queue is empty.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Queue,
    Disk,
}

/// What became of a directory that was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    AsBefore,
    Moved,
    New,
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
    /// Makes the tree what the disk says, and tells what may have been missed meanwhile.
    pub(crate) fn ask_the_disk(&mut self) {
        let (about, everything) = self.doubt.take();
        self.round = self.round.wrapping_add(1);
        if let Some((_, _, old)) = self.displaced.take() {
            self.unwatch(old);
        }
        if everything {
            self.moved.clear();
            self.created.clear();
            self.compare(ROOT, Descend::IntoAll);
            for node in self.tree.not_found(self.round) {
                self.unwatch(node);
            }
            self.unwatch_nameless();
            self.outbox.push(WatchEvent::Overflow { below: None });
            return;
        }
        for directory in about {
            if !self.tree.is_same_or_above(ROOT, directory) {
                // Without a name now, but perhaps not for long.
                if self.tree.is_watched(directory) {
                    self.doubt.add(directory);
                }
            } else if self.compare(directory, Descend::IntoNew) {
                let below = self.tree.path_of(directory);
                self.outbox.push(WatchEvent::Overflow { below });
            }
        }
        self.unwatch_nameless();
    }

    fn unwatch_nameless(&mut self) {
        for node in std::mem::take(&mut self.nameless) {
            if self.tree.parent_of(node).is_none() {
                self.unwatch(node);
            }
        }
    }

    /// Makes the subdirectories of one directory what the disk says. Returns whether they were others.
    fn compare(&mut self, directory: u32, descend: Descend) -> bool {
        let Some(handle) = self.open_node(directory) else {
            return false;
        };
        let before = self.tree.children(directory);
        let mut pending = Vec::new();
        self.list(directory, &handle, Announce::Nothing, &mut 0, &mut pending);
        let mut changed =
            self.watch_pending(&mut pending, Source::Disk, descend, Announce::Nothing);
        for child in before {
            // It has its name no more, and was not found under another.
            if !self.tree.was_found(child, self.round) {
                self.unwatch(child);
                changed = true;
            }
        }
        changed
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
        self.doubt.add(node);
        None
    }

    /// Watches what is called `name` in a directory, if it is a directory, and what is below it.
    pub(crate) fn watch(&mut self, parent: u32, name: &[u8], announce: Announce) {
        let mut pending = vec![(parent, Box::from(name))];
        self.watch_pending(&mut pending, Source::Queue, Descend::IntoNew, announce);
    }

    /// Watches directories and what is below them. Returns whether the tree changed.
    pub(crate) fn watch_pending(
        &mut self,
        pending: &mut Vec<(u32, Box<[u8]>)>,
        source: Source,
        descend: Descend,
        mut announce: Announce,
    ) -> bool {
        let (mut told, mut changed) = (0, false);
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
            let (node, placed) = match self.watch_one(parent, &name, &path, &handle, source) {
                Ok(placed) => placed,
                Err(reason) => {
                    self.degraded(path, announce, reason);
                    continue;
                }
            };
            changed |= placed != Placed::AsBefore;
            if announce == Announce::Contents {
                told += 1;
                self.outbox.push(WatchEvent::DirectoryCreated(path));
            }
            if placed == Placed::New || descend == Descend::IntoAll {
                self.list(node, &handle, announce, &mut told, pending);
            }
            if told > CONTENTS_LIMIT {
                announce = Announce::Nothing;
            }
        }
        if told > CONTENTS_LIMIT {
            self.outbox.push(WatchEvent::Overflow { below: top });
        }
        changed
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

    /// Adds one watch and gives it its place.
    ///
    /// While there are events in the queue, the tree is what it was some time ago, and the disk is
    /// ahead of it. What is in the tree then stays where it is until the events move it.
    fn watch_one(
        &mut self,
        parent: u32,
        name: &[u8],
        path: &RelPath,
        handle: &OwnedFd,
        source: Source,
    ) -> Result<(u32, Placed), Degradation> {
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
        let known = self.tree.by_watch(watch);
        let (node, placed) = match (known, found) {
            (Some(node), found) if Some(node) == found => (node, Placed::AsBefore),
            (Some(node), _) if self.tree.is_same_or_above(node, parent) => {
                let reason = "it is mounted below itself".to_owned();
                return Err(Degradation::Other(reason));
            }
            (Some(node), _) if source == Source::Queue => {
                self.doubt.add(parent);
                self.tree
                    .parent_of(node)
                    .into_iter()
                    .for_each(|parent| self.doubt.add(parent));
                (node, Placed::AsBefore)
            }
            (None, Some(other)) if source == Source::Queue => {
                inotify::remove_watch(&self.queue, watch).ok();
                self.doubt.add(parent);
                (other, Placed::AsBefore)
            }
            (known, found) => {
                match known {
                    Some(node) if self.is_still_there(node, handle) => {
                        let reason = "it is mounted at two places".to_owned();
                        return Err(Degradation::Other(reason));
                    }
                    _ => {}
                }
                if let Some(other) = found {
                    self.tree.detach(other);
                    self.nameless.push(other);
                }
                match known {
                    Some(node) => {
                        self.tree
                            .parent_of(node)
                            .into_iter()
                            .for_each(|at| self.doubt.add(at));
                        self.tree.reparent(node, parent, name);
                        (node, Placed::Moved)
                    }
                    None => {
                        let round = self.round;
                        (
                            self.tree.insert(parent, name.into(), watch, round),
                            Placed::New,
                        )
                    }
                }
            }
        };
        self.tree.found(node, self.round);
        Ok((node, placed))
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
