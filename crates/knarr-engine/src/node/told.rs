//! Tells whoever listens what happens in the runs of a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use knarr_core::RelPath;
use knarr_core::record::Action;
use tokio::sync::broadcast;

use crate::node::control::RunEnd;
use crate::observer::{Event, Observer, Trouble};

/// How many events are kept for a listener that is slow; then it is told that it missed some.
pub(crate) const KEPT_EVENTS: usize = 4_096;

/// Something that happens in a run. For showing; never a substitute for the record.
#[derive(Debug, Clone)]
pub struct JobEvent {
    /// The job.
    pub job: Arc<str>,
    /// The run.
    pub run: u64,
    /// What happens.
    pub what: What,
}

/// What happens in a run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum What {
    /// It begins.
    Begun {
        /// What set it off, as it stands in the history.
        cause: &'static str,
    },
    /// So much more was found to do.
    Planned {
        /// Files, links, removals.
        items: u64,
        /// Bytes to read.
        bytes: u64,
    },
    /// A file is being moved.
    Started {
        /// Which.
        path: RelPath,
        /// Its length in bytes.
        size: u64,
    },
    /// Bytes were taken over.
    Progress {
        /// Of which file; nothing for a batch of small ones.
        path: Option<RelPath>,
        /// How many more bytes.
        bytes: u64,
    },
    /// An attempt ended without success; another follows.
    Retry {
        /// Of which path.
        path: RelPath,
        /// Why.
        error: String,
    },
    /// Done with a path, recorded.
    Finished {
        /// Which.
        path: RelPath,
        /// What was done.
        action: Action,
        /// Bytes of the source.
        bytes: u64,
    },
    /// Something a person should see.
    Trouble {
        /// Which path, if it is about one.
        path: Option<RelPath>,
        /// What kind.
        kind: Trouble,
        /// What, why and what to do.
        message: String,
    },
    /// It ended.
    Ended(Arc<RunEnd>),
}

/// The observer of one job: hands everything on, and tells it with the numbers of job and run.
#[derive(Debug)]
pub(crate) struct Told {
    inner: Arc<dyn Observer>,
    events: broadcast::Sender<JobEvent>,
    job: Arc<str>,
    run: AtomicU64,
}

impl Told {
    pub(crate) fn new(
        inner: Arc<dyn Observer>,
        events: broadcast::Sender<JobEvent>,
        job: &str,
    ) -> Self {
        Self {
            inner,
            events,
            job: job.into(),
            run: AtomicU64::new(0),
        }
    }

    /// The run has a number now.
    pub(crate) fn begun(&self, run: u64, cause: &'static str) {
        self.run.store(run, Ordering::Relaxed);
        self.tell(What::Begun { cause });
    }

    /// The number of the run; 0 before it has one.
    pub(crate) fn run(&self) -> u64 {
        self.run.load(Ordering::Relaxed)
    }

    pub(crate) fn tell(&self, what: What) {
        let (job, run) = (Arc::clone(&self.job), self.run());
        // Nobody listens any more: then nobody misses it.
        let _unheard: Result<usize, _> = self.events.send(JobEvent { job, run, what });
    }
}

impl Observer for Told {
    fn event(&self, event: &Event<'_>) {
        self.inner.event(event);
        if self.events.receiver_count() > 0 {
            self.tell(owned(event));
        }
    }

    fn for_run(&self, job: &str, run: u64) -> Option<Arc<dyn Observer>> {
        Some(Arc::new(Self {
            inner: self.inner.for_run(job, run)?,
            events: self.events.clone(),
            job: Arc::clone(&self.job),
            run: AtomicU64::new(run),
        }))
    }
}

fn owned(event: &Event<'_>) -> What {
    match *event {
        Event::Planned { items, bytes } => What::Planned { items, bytes },
        Event::Started { path, size } => What::Started {
            path: path.clone(),
            size,
        },
        Event::Progress { path, bytes } => What::Progress {
            path: path.cloned(),
            bytes,
        },
        Event::Retry { path, error } => What::Retry {
            path: path.clone(),
            error: error.to_owned(),
        },
        Event::Finished {
            path,
            action,
            bytes,
        } => What::Finished {
            path: path.clone(),
            action,
            bytes,
        },
        Event::Trouble {
            path,
            kind,
            message,
        } => What::Trouble {
            path: path.cloned(),
            kind,
            message: message.to_owned(),
        },
    }
}
