//! Hands events to the consumer without ever waiting for it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::{SyncSender, TrySendError};

use knarr_core::path::RelPath;

use crate::watch::WatchEvent;

/// How many events are kept when the channel is full.
pub const BACKLOG_LIMIT: usize = 4096;

/// How many directories are remembered as "to be looked at" when the backlog is full, too.
pub const MARKERS_LIMIT: usize = 64;

/// The events on their way to the consumer.
#[derive(Debug)]
pub(crate) struct Outbox {
    sender: SyncSender<WatchEvent>,
    backlog: VecDeque<WatchEvent>,
    /// Directories in which events were dropped; `None` is the root and stands for all.
    markers: BTreeSet<Option<RelPath>>,
    closed: bool,
}

impl Outbox {
    pub(crate) const fn new(sender: SyncSender<WatchEvent>) -> Self {
        Self {
            sender,
            backlog: VecDeque::new(),
            markers: BTreeSet::new(),
            closed: false,
        }
    }

    /// Whether the consumer is gone.
    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether something waits for room.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.backlog.is_empty() || !self.markers.is_empty()
    }

    pub(crate) fn push(&mut self, event: WatchEvent) {
        if self.is_waiting() {
            self.backlog.push_back(event);
            if self.backlog.len() > BACKLOG_LIMIT {
                self.collapse();
            }
        } else if let Some(event) = self.send(event) {
            self.backlog.push_back(event);
        }
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn flush(&mut self) {
        // A marker stands for what was dropped before the backlog was filled again.
        while let Some(below) = self.markers.pop_first() {
            if let Some(WatchEvent::Overflow { below }) = self.send(WatchEvent::Overflow { below })
            {
                self.markers.insert(below);
                return;
            }
        }
        while let Some(event) = self.backlog.pop_front() {
            if let Some(event) = self.send(event) {
                self.backlog.push_front(event);
                return;
            }
        }
        self.backlog.shrink_to(64);
    }

    /// Gives the event back if there is no room.
    fn send(&mut self, event: WatchEvent) -> Option<WatchEvent> {
        match self.sender.try_send(event) {
            Ok(()) => None,
            Err(TrySendError::Full(event)) => Some(event),
            Err(TrySendError::Disconnected(_)) => {
                self.closed = true;
                None
            }
        }
    }

    /// Turns the backlog into directories to look at. What is no change of a path is kept.
    fn collapse(&mut self) {
        let mut kept = VecDeque::new();
        for event in self.backlog.drain(..) {
            match event {
                WatchEvent::Closed(path)
                | WatchEvent::Appeared(path)
                | WatchEvent::MovedIn(path, _)
                | WatchEvent::MovedOut(path, _)
                | WatchEvent::Deleted(path, _)
                | WatchEvent::DirectoryCreated(path)
                | WatchEvent::AttributesChanged(path) => {
                    self.markers.insert(path.parent());
                }
                WatchEvent::Renamed { from, to, .. } => {
                    self.markers.insert(from.parent());
                    self.markers.insert(to.parent());
                }
                WatchEvent::Overflow { below } => {
                    self.markers.insert(below);
                }
                WatchEvent::Degraded { .. } if kept.len() >= BACKLOG_LIMIT / 2 => {
                    // Too many to tell one by one: the root stands for them.
                    kept.clear();
                    kept.push_back(WatchEvent::Degraded {
                        unwatched: None,
                        reason: crate::watch::Degradation::WatchLimit,
                    });
                }
                event @ (WatchEvent::Degraded { .. } | WatchEvent::RootGone) => {
                    kept.push_back(event);
                }
            }
            if self.markers.len() > MARKERS_LIMIT {
                self.markers.clear();
                self.markers.insert(None);
            }
        }
        if self.markers.contains(&None) {
            self.markers = BTreeSet::from([None]);
        }
        self.backlog = kept;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn k10_a_consumer_that_does_not_read_costs_bounded_memory_and_learns_where_to_look() {
        let (sender, receiver) = sync_channel(2);
        let mut outbox = Outbox::new(sender);
        for number in 0..3 * BACKLOG_LIMIT {
            outbox.push(WatchEvent::Closed(path(&format!(
                "d{}/f{number}",
                number % 3
            ))));
            assert!(outbox.backlog.len() <= BACKLOG_LIMIT + 1);
        }
        let mut told = BTreeSet::new();
        while outbox.is_waiting() {
            while let Ok(event) = receiver.try_recv() {
                if let WatchEvent::Overflow { below } = event {
                    told.insert(below);
                }
            }
            outbox.flush();
        }
        let expected: BTreeSet<_> = (0..3).map(|d| Some(path(&format!("d{d}")))).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn k10_too_many_directories_to_look_at_become_the_root() {
        let (sender, receiver) = sync_channel(1);
        let mut outbox = Outbox::new(sender);
        for number in 0..2 * BACKLOG_LIMIT {
            outbox.push(WatchEvent::Closed(path(&format!("d{number}/f"))));
        }
        assert_eq!(outbox.markers, BTreeSet::from([None]));
        drop(receiver);
        outbox.flush();
        assert!(outbox.is_closed());
    }
}
