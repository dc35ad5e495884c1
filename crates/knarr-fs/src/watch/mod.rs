//! Tells what changes below a root, as far as the system tells.
//!
//! * A watcher is a hint; the scan is the truth. Whatever could not be followed is said
//!   ([`WatchEvent::Overflow`], [`WatchEvent::Degraded`]) and is for the caller to look at.
//! * The thread that reads the kernel's queue never waits for the consumer. At most
//!   [`WatchOptions::channel_capacity`] events wait in the channel and [`outbox::BACKLOG_LIMIT`]
//!   behind it; beyond that, events become "look at this directory", at most
//!   [`outbox::MARKERS_LIMIT`] of them, and then "look at everything".
//! * About 150 bytes per watched directory, nothing per file.
//!
//! # Nothing falls between watch and scan
//!
//! [`Watcher::start`] returns when every directory is watched, so a scan that starts then misses
//! nothing: what changed before is seen by the scan, what changes after is told. For a directory that
//! appears later, the watch is added first and the content listed afterwards, and what is inside is
//! told as [`WatchEvent::Appeared`]. A file may so be told twice, never not at all.
//!
//! Renames of directories move one node of a tree of names; the watches below stay, as they belong to
//! the directories and not to the paths. Where the queue and the tree disagree (events were lost, or
//! names were exchanged), the disk is asked again.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use knarr_core::entry::Kind;
use knarr_core::path::RelPath;

use crate::error::FsError;
use crate::root::Root;

#[cfg(target_os = "linux")]
mod disk;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
pub mod outbox;
#[cfg(target_os = "linux")]
mod tree;

/// Something that happened below the root. Where a [`Kind`] stands, it is `Directory` or `File`; the
/// latter for everything that is no directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A file that was open for writing was closed. It is complete if nobody else still writes.
    Closed(RelPath),
    /// A file, link or special file is there that was not told before: a link, a second name of a file,
    /// something in a new directory, or a file that is still being written. It needs a look; this says
    /// nothing about completeness.
    Appeared(RelPath),
    /// It was moved here from outside of the tree, complete. What is below a directory is not told.
    MovedIn(RelPath, Kind),
    /// It was renamed within the tree, with all that is below it.
    Renamed {
        /// Its name before.
        from: RelPath,
        /// Its name now.
        to: RelPath,
        /// What it is.
        kind: Kind,
    },
    /// It was moved out of the tree, with all that is below it.
    MovedOut(RelPath, Kind),
    /// It was removed.
    Deleted(RelPath, Kind),
    /// A directory was made. What it holds is told, too.
    DirectoryCreated(RelPath),
    /// Times or permissions of something that is no directory changed.
    AttributesChanged(RelPath),
    /// Events were lost. Everything below this directory (or the root) must be looked at.
    Overflow {
        /// The directory; `None` is the root.
        below: Option<RelPath>,
    },
    /// This directory, and everything below it, is not watched and must be polled.
    Degraded {
        /// The directory; `None` is the root.
        unwatched: Option<RelPath>,
        /// Why.
        reason: Degradation,
    },
    /// The root was removed, moved or unmounted. Nothing more will be told.
    RootGone,
}

/// Why a directory is not watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Degradation {
    /// The system's limit of watches is reached.
    WatchLimit,
    /// The directory may not be read.
    Denied,
    /// Anything else, in words.
    Other(String),
}

/// What to do about it stands in the text.
impl fmt::Display for Degradation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WatchLimit => f.write_str(
                "the limit of watches is reached; raise it with `sysctl fs.inotify.max_user_watches`",
            ),
            Self::Denied => f.write_str("the directory may not be read"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// Why watching could not begin.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// This system has no watcher here; poll instead.
    #[error("this system cannot watch directories; they are polled instead")]
    Unsupported,
    /// No further watcher can be made.
    #[error("no further watcher can be made; raise `fs.inotify.max_user_instances`")]
    Instances,
    /// The root cannot be watched.
    #[error("the root cannot be watched")]
    Root(#[source] FsError),
    /// The thread could not be started.
    #[error("the watching thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// Says whether a directory is to be watched.
pub type DirectoryFilter = dyn Fn(&RelPath) -> bool + Send + Sync;

/// How to watch.
#[derive(Clone)]
pub struct WatchOptions {
    /// How many directories are watched at most; the others are told as degraded.
    pub max_watches: usize,
    /// How many events may wait for the consumer.
    pub channel_capacity: usize,
    /// How long the second half of a rename, or the close of a new file, is waited for.
    pub pairing: Duration,
    /// Which directories to watch; all if not given.
    pub filter: Option<Arc<DirectoryFilter>>,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            max_watches: usize::MAX,
            channel_capacity: 16 * 1024,
            pairing: Duration::from_millis(10),
            filter: None,
        }
    }
}

impl fmt::Debug for WatchOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchOptions")
            .field("max_watches", &self.max_watches)
            .field("channel_capacity", &self.channel_capacity)
            .field("pairing", &self.pairing)
            .field("filter", &self.filter.as_ref().map(|_| ".."))
            .finish()
    }
}

/// A running watcher; stops when dropped.
#[derive(Debug)]
pub struct Watcher {
    #[cfg(target_os = "linux")]
    running: machine::Running,
    #[cfg(not(target_os = "linux"))]
    never: std::convert::Infallible,
}

impl Watcher {
    /// Starts to watch everything below the root. Returns when all of it is watched.
    ///
    /// # Errors
    /// [`WatchError::Unsupported`] where the system has no watcher.
    #[cfg(target_os = "linux")]
    pub fn start(
        root: &Root,
        options: WatchOptions,
    ) -> Result<(Self, Receiver<WatchEvent>), WatchError> {
        let (running, events) = machine::start(root, options)?;
        Ok((Self { running }, events))
    }

    /// Starts to watch everything below the root.
    ///
    /// # Errors
    /// Always [`WatchError::Unsupported`]: this system has no watcher here yet.
    #[cfg(not(target_os = "linux"))]
    pub fn start(
        _root: &Root,
        _options: WatchOptions,
    ) -> Result<(Self, Receiver<WatchEvent>), WatchError> {
        Err(WatchError::Unsupported)
    }

    /// How many directories are watched.
    #[must_use]
    pub fn watches(&self) -> usize {
        #[cfg(target_os = "linux")]
        return self.running.watches();
        #[cfg(not(target_os = "linux"))]
        match self.never {}
    }

    /// Whether everything that happened before the event received last is told. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn is_settled(&self) -> bool {
        #[cfg(target_os = "linux")]
        return self.running.is_settled();
        #[cfg(not(target_os = "linux"))]
        match self.never {}
    }

    /// Stops taking events from the kernel, so that its queue overflows. For tests.
    #[doc(hidden)]
    pub fn pause(&self) {
        #[cfg(target_os = "linux")]
        self.running.pause(true);
    }

    /// Goes on after [`Watcher::pause`].
    #[doc(hidden)]
    pub fn resume(&self) {
        #[cfg(target_os = "linux")]
        self.running.pause(false);
    }
}
