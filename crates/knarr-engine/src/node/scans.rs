//! What is to be looked at: directories, or everything.
//!
//! No wish is ever lost: one that is contained in another is dropped, and more than [`DIRECTORIES`] become
//! everything. Who has to know waits for the scan that began after the wish.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use knarr_core::RelPath;
use tokio::sync::{Notify, oneshot};

use crate::node::scan::ScanRequest;

/// How many directories are remembered one by one.
const DIRECTORIES: usize = 64;

/// The wishes of one lane.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scans {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Wanted {
    everything: bool,
    below: BTreeSet<RelPath>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Wanted {
    fn add(&mut self, below: Option<RelPath>) {
        let Some(directory) = below else {
            self.everything = true;
            self.below.clear();
            return;
        };
        let contained = std::iter::successors(Some(directory.clone()), RelPath::parent)
            .any(|above| self.below.contains(&above));
        if self.everything || contained {
            return;
        }
        self.below.insert(directory);
        if self.below.len() > DIRECTORIES {
            self.add(None);
        }
    }
}

/// What is scanned in one go.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) requests: Vec<ScanRequest>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Round {
    /// Whether it is about all there is.
    pub(crate) fn is_everything(&self) -> bool {
        self.requests.iter().any(|request| request.below.is_none())
    }

    /// Tells those who wait that all of it was looked at and marked.
    pub(crate) fn finished(self) {
        for waiting in self.waiting {
            // Who was cancelled does not listen any more.
            waiting.send(()).unwrap_or_default();
        }
    }
}

impl Scans {
    /// Has everything below a directory, or below the root, be looked at.
    pub(crate) fn want(&self, below: Option<RelPath>) {
        self.wanted().add(below);
        self.shared.added.notify_one();
    }

    /// The same; the receiver is told when it was done, and sees an error if it never is.
    pub(crate) fn want_and_wait(&self, below: RelPath) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut wanted = self.wanted();
        wanted.add(Some(below));
        // One for each path in flight at most.
        wanted.waiting.push(sender);
        drop(wanted);
        self.shared.added.notify_one();
        receiver
    }

    /// Waits until something is wanted, and takes all of it. For one consumer.
    pub(crate) async fn next(&self) -> Round {
        loop {
            if let Some(round) = self.take() {
                return round;
            }
            self.shared.added.notified().await;
        }
    }

    fn take(&self) -> Option<Round> {
        let Wanted {
            everything,
            below,
            waiting,
        } = std::mem::take(&mut *self.wanted());
        let requests: Vec<ScanRequest> = if everything {
            vec![ScanRequest { below: None }]
        } else {
            let one = |directory| ScanRequest {
                below: Some(directory),
            };
            below.into_iter().map(one).collect()
        };
        (!requests.is_empty()).then_some(Round { requests, waiting })
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.shared
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    fn taken(scans: &Scans) -> Vec<Option<RelPath>> {
        let round = scans.take();
        round.map_or_else(Vec::new, |round| {
            round.requests.into_iter().map(|r| r.below).collect()
        })
    }

    #[test]
    fn k7_k10_wishes_for_more_directories_than_are_remembered_become_everything() {
        let scans = Scans::default();
        for number in 0..DIRECTORIES {
            scans.want(Some(path(&format!("{number}"))));
            scans.want(Some(path(&format!("{number}/below"))));
        }
        assert_eq!(taken(&scans).len(), DIRECTORIES);
        assert_eq!(taken(&scans), []);
        for number in 0..=DIRECTORIES {
            scans.want(Some(path(&format!("{number}"))));
        }
        scans.want(Some(path("another")));
        assert_eq!(taken(&scans), [None]);
    }

    #[tokio::test]
    async fn k7_who_waits_is_told_after_the_scan_that_began_after_the_wish() {
        let scans = Scans::default();
        scans.want(None);
        let first = scans.next().await;
        let mut waits = scans.want_and_wait(path("a"));
        assert!(first.is_everything());
        first.finished();
        assert!(waits.try_recv().is_err(), "that scan began before");
        scans.next().await.finished();
        waits.await.unwrap();
    }
}
