//! The delay line between the reader and the writer of one direction: a queue bounded by bytes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What travels on a line.
pub(super) enum Item {
    /// Bytes.
    Data(Vec<u8>),
    /// The sender has ended this direction.
    End,
    /// The sender's connection broke.
    Broken,
}

struct State {
    items: VecDeque<(Instant, Item)>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

/// A queue of items with their times of arrival.
pub(super) struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

impl Line {
    pub(super) fn new() -> Self {
        let state = State {
            items: VecDeque::new(),
            bytes: 0,
            spare: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item if fewer than `limit` bytes are on the line; else waits at most `patience` and
    /// gives it back.
    pub(super) fn push(&self, item: Item, limit: usize, patience: Duration) -> Result<(), Item> {
        let mut state = self.lock();
        if state.bytes >= limit {
            let (guard, _) = self
                .changed
                .wait_timeout(state, patience)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if state.bytes >= limit {
                return Err(item);
            }
        }
        if let Item::Data(data) = &item {
            state.bytes += data.len();
        }
        state.items.push_back((Instant::now(), item));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Takes the first item; `None` if there is none for as long as `patience`.
    pub(super) fn pop(&self, patience: Duration) -> Option<(Instant, Item)> {
        let mut state = self.lock();
        if state.items.is_empty() {
            let (guard, _) = self
                .changed
                .wait_timeout(state, patience)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
        state.items.pop_front()
    }

    /// Says that a buffer has left the line, and keeps it for the next reader.
    pub(super) fn give_back(&self, length: usize, buffer: Vec<u8>) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(length);
        if state.spare.len() < 16 {
            state.spare.push(buffer);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A buffer of exactly this length; its content is anything.
    pub(super) fn buffer(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.lock().spare.pop().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }
}
