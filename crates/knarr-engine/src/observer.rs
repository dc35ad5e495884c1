//! How the engine tells what it does: progress and trouble that does not end a run.

use std::fmt;

use knarr_core::RelPath;
use knarr_core::record::Action;

/// Something worth showing. Never a substitute for the record.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// So much more was found to do.
    Planned {
        /// Files (and directories, links, removals).
        items: u64,
        /// Bytes to read.
        bytes: u64,
    },
    /// A file is being moved.
    Started {
        /// Which.
        path: &'a RelPath,
        /// Its length in bytes.
        size: u64,
    },
    /// Bytes were taken over.
    Progress {
        /// Of which file; nothing for a batch of small ones.
        path: Option<&'a RelPath>,
        /// How many more bytes.
        bytes: u64,
    },
    /// An attempt ended without success; another follows.
    Retry {
        /// Of which path.
        path: &'a RelPath,
        /// Why.
        error: &'a str,
    },
    /// Done with a path, recorded.
    Finished {
        /// Which.
        path: &'a RelPath,
        /// What was done.
        action: Action,
        /// Bytes of the source.
        bytes: u64,
    },
    /// Something a person should see.
    Trouble {
        /// Which path, if it is about one.
        path: Option<&'a RelPath>,
        /// What kind.
        kind: Trouble,
        /// What, why and what to do.
        message: &'a str,
    },
}

/// The three words that are kept apart, and a fourth for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Two legitimate histories; both were kept.
    Conflict,
    /// A path that cannot be handled here.
    Problem,
    /// Something failed.
    Error,
    /// Worth knowing.
    Notice,
}

/// Whoever wants to see what happens.
pub trait Observer: Send + Sync + fmt::Debug {
    /// Called often and from many tasks: has to be quick and may not block.
    fn event(&self, event: &Event<'_>);

    /// Who watches one run of a job instead, if that is to be told apart.
    fn for_run(&self, _job: &str, _run: u64) -> Option<std::sync::Arc<dyn Observer>> {
        None
    }
}

/// Looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Void;

impl Observer for Void {
    fn event(&self, _event: &Event<'_>) {}
}

/// Keeps what happened as lines of text; for tests.
#[derive(Debug, Default)]
pub struct Collecting(std::sync::Mutex<Vec<String>>);

impl Collecting {
    /// What happened so far, without progress.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().map(|lines| lines.clone()).unwrap_or_default()
    }
}

impl Observer for Collecting {
    fn event(&self, event: &Event<'_>) {
        let line = match event {
            Event::Planned { .. } | Event::Progress { .. } => return,
            Event::Started { path, .. } => format!("started {path}"),
            Event::Retry { path, error } => format!("retry {path}: {error}"),
            Event::Finished { path, action, .. } => format!("{} {path}", action.name()),
            Event::Trouble {
                path: Some(path),
                kind,
                message,
            } => {
                format!("{kind:?} {path}: {message}")
            }
            Event::Trouble {
                path: None,
                kind,
                message,
            } => format!("{kind:?}: {message}"),
        };
        if let Ok(mut lines) = self.0.lock() {
            lines.push(line);
        }
    }
}
