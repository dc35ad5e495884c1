//! Observes one watched directory: events become dirty marks, and what events cannot tell becomes a scan.
//!
//! The watcher is a hint, the scan is the truth. The thread that runs this takes whatever events wait,
//! looks at the paths and marks them in one transaction, so that ten thousand events are one flush and
//! a lone one is marked at once. A mark is durable before the work on it begins.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use knarr_core::entry::{Fingerprint, Kind};
use knarr_core::{Clock, Entry, RelPath, Timestamp};
use knarr_fs::Root;
use knarr_fs::watch::{WatchEvent, WatchOptions, Watcher};
use knarr_store::dirty::Seen;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;
use crate::journal::Journal;
use crate::node::scans::Scans;
use crate::node::spec::{Completeness, WatchJob};
use crate::observer::{Event, Observer, Trouble};

/// How many events become one transaction at most.
const MARKS: usize = 4_096;
/// How often the thread looks whether it should stop.
const TICK: Duration = Duration::from_millis(200);

/// A path that needs work, as it was observed.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) path: RelPath,
    pub(crate) kind: Kind,
    /// What was seen; nothing if it is gone.
    pub(crate) observed: Option<Fingerprint>,
    /// When it may be worked on.
    pub(crate) ready_at: Timestamp,
    /// Why it counts as complete.
    pub(crate) because: Option<String>,
    /// What it was called before.
    pub(crate) renamed_from: Option<RelPath>,
}

impl Mark {
    /// As the store takes it.
    pub(crate) fn stored(self, seen: Seen, at: Timestamp) -> knarr_store::dirty::Mark {
        knarr_store::dirty::Mark {
            path: self.path,
            kind: self.kind,
            observed: self.observed,
            seen,
            at,
            ready_at: self.ready_at,
            complete_because: self.because,
            renamed_from: self.renamed_from,
        }
    }
}

/// What an observer of one directory needs.
#[derive(Debug)]
pub(crate) struct Observing {
    pub(crate) job: Arc<WatchJob>,
    pub(crate) root: Root,
    pub(crate) journal: Journal,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) cancel: CancellationToken,
    /// Wakes whoever works on marks.
    pub(crate) wake: Arc<Notify>,
    pub(crate) scans: Scans,
}

/// How observing ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Asked to stop.
    Cancelled,
    /// The directory is gone, moved or unmounted.
    RootGone,
}

impl Observing {
    /// Starts the watcher, if the system has one for this directory.
    pub(crate) fn start_watcher(&self) -> Option<(Watcher, Receiver<WatchEvent>)> {
        if self.root.is_network().unwrap_or(false) {
            self.degraded("it is on a network file system, where changes by others are not told");
            return None;
        }
        let job = Arc::clone(&self.job);
        let options = WatchOptions {
            filter: Some(Arc::new(move |path: &RelPath| {
                job.takes_path(path, Kind::Directory)
            })),
            ..WatchOptions::default()
        };
        match Watcher::start(&self.root, options) {
            Ok(started) => Some(started),
            Err(error) => {
                self.degraded(&crate::error::chain(&error));
                None
            }
        }
    }

    /// Takes events until asked to stop or the directory is gone. Blocks.
    ///
    /// # Errors
    /// If marks could not be recorded.
    pub(crate) fn run(&self, events: &Receiver<WatchEvent>) -> Result<Ended, EngineError> {
        loop {
            if self.cancel.is_cancelled() {
                return Ok(Ended::Cancelled);
            }
            let first = match events.recv_timeout(TICK) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(Ended::RootGone),
            };
            let mut marks = Vec::new();
            let mut root_gone = self.observe(first, &mut marks);
            while marks.len() < MARKS
                && !root_gone
                && let Ok(event) = events.try_recv()
            {
                root_gone = self.observe(event, &mut marks);
            }
            if !marks.is_empty() {
                self.journal.mark_blocking(marks, Seen::Event)?;
                self.wake.notify_one();
            }
            if root_gone {
                return Ok(Ended::RootGone);
            }
        }
    }

    /// Turns one event into marks or a scan. Returns whether the directory is gone.
    fn observe(&self, event: WatchEvent, marks: &mut Vec<Mark>) -> bool {
        let now = self.clock.now();
        let settled = now.after(self.job.settle);
        match event {
            WatchEvent::Closed(path) => {
                self.look(path, now, "closed after write", marks);
            }
            WatchEvent::MovedIn(path, Kind::Directory) => self.scans.want(Some(path)),
            WatchEvent::MovedIn(path, _) => self.look(path, now, "moved in", marks),
            WatchEvent::Appeared(path) => {
                let because = at_rest(&self.job);
                self.look(path, settled, &because, marks);
            }
            WatchEvent::AttributesChanged(path) => {
                self.look(path, now, "attributes changed", marks);
            }
            WatchEvent::Renamed { from, to, kind } => self.renamed(from, to, kind, now, marks),
            WatchEvent::MovedOut(path, kind) | WatchEvent::Deleted(path, kind) => {
                self.gone(path, kind, now, marks);
            }
            WatchEvent::DirectoryCreated(_) => {}
            WatchEvent::Overflow { below } => {
                tracing::info!(?below, "events were lost; looking at everything there");
                self.scans.want(below);
            }
            WatchEvent::Degraded { unwatched, reason } => {
                let place = unwatched
                    .as_ref()
                    .map_or_else(String::new, |path| format!("\"{path}\": "));
                self.degraded(&format!("{place}{reason}"));
            }
            WatchEvent::RootGone => return true,
        }
        false
    }

    /// Only the new name is marked: who works on it uses the old one, or marks that as gone.
    fn renamed(
        &self,
        from: RelPath,
        to: RelPath,
        kind: Kind,
        now: Timestamp,
        marks: &mut Vec<Mark>,
    ) {
        if !self.job.takes_path_from_root(&to, kind) {
            self.gone(from, kind, now, marks);
            return;
        }
        if kind == Kind::Directory {
            let observed = self
                .root
                .stat(&to)
                .ok()
                .flatten()
                .map(|entry| entry.fingerprint());
            if observed.is_none() {
                self.gone(from, kind, now, marks);
                return;
            }
            marks.push(Mark {
                path: to,
                kind,
                observed,
                ready_at: now,
                because: Some("renamed".to_owned()),
                renamed_from: Some(from),
            });
            return;
        }
        let before = marks.len();
        self.look(to, now, "renamed", marks);
        match marks.get_mut(before) {
            Some(mark) => mark.renamed_from = Some(from),
            // Gone again, or something that is not handled.
            None => self.gone(from, kind, now, marks),
        }
    }

    fn look(&self, path: RelPath, ready_at: Timestamp, because: &str, marks: &mut Vec<Mark>) {
        match self.root.stat(&path) {
            Ok(Some(entry)) => {
                marks.extend(mark_of(&self.job, entry, ready_at, because.to_owned()));
            }
            // Gone again: if it was ever delivered, its deletion is told, too.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%path, %error, "cannot look at a changed path; scanning instead");
                self.scans.want(path.parent());
            }
        }
    }

    fn gone(&self, path: RelPath, kind: Kind, now: Timestamp, marks: &mut Vec<Mark>) {
        if kind != Kind::Directory && !self.job.takes_path_from_root(&path, kind) {
            return;
        }
        marks.push(Mark {
            path,
            kind,
            observed: None,
            ready_at: now,
            because: None,
            renamed_from: None,
        });
    }

    fn degraded(&self, reason: &str) {
        let message = format!(
            "job `{}`: {} is polled every {}: {reason}",
            self.job.name,
            self.root.display().display(),
            knarr_core::units::Span(self.job.poll)
        );
        let (path, kind) = (None, Trouble::Notice);
        self.observer.event(&Event::Trouble {
            path,
            kind,
            message: &message,
        });
        if let Err(error) = self.journal.set_degraded(Some(reason)) {
            tracing::warn!(%error, "cannot record that a directory is polled");
        }
        self.scans.want(None);
    }
}

/// The beginning of the verdict for which nothing better than time stands in.
pub(crate) const AT_REST: &str = "unchanged for";

/// The verdict for a file that nobody has told to be complete.
pub(crate) fn at_rest(job: &WatchJob) -> String {
    match job.complete {
        Completeness::Uploaded if job.settle.is_zero() => "uploaded".to_owned(),
        _ => format!("{AT_REST} {}", knarr_core::units::Span(job.settle)),
    }
}

/// The mark for what was seen, if the job means it.
pub(crate) fn mark_of(
    job: &WatchJob,
    entry: Entry,
    ready_at: Timestamp,
    because: String,
) -> Option<Mark> {
    if entry.kind == Kind::Directory || !job.takes_path_from_root(&entry.path, entry.kind) {
        return None;
    }
    Some(Mark {
        kind: entry.kind,
        observed: Some(entry.fingerprint()),
        ready_at,
        because: Some(because),
        renamed_from: None,
        path: entry.path,
    })
}
