//! A queue between one task that fills it and one that empties it, bounded by weight.
//!
//! Constraint: the lock is held for a few instructions and never across an await. Something heavier than the
//! limit gets in when the queue is empty, so that nothing is stuck for ever.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    limit: usize,
    /// Told when something was put in, or the end came.
    filled: Notify,
    /// Told when something was taken out, or the end came.
    emptied: Notify,
    /// Told when nobody takes anything out any more.
    abandoned: Notify,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(T, usize)>,
    weight: usize,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// Nothing more is put in; what is there is still taken out.
    Closed,
    /// What is there is not wanted any more.
    Abandoned,
}

/// Whether the queue goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// It does.
    On,
    /// Its other side has ended.
    Ended,
}

impl<T> Queue<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                weight: 0,
                end: End::Open,
            }),
            limit,
            filled: Notify::new(),
            emptied: Notify::new(),
            abandoned: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room.
    pub(crate) async fn room(&self) -> Flow {
        loop {
            {
                let state = self.state();
                if state.end != End::Open {
                    return Flow::Ended;
                }
                if state.weight < self.limit {
                    return Flow::On;
                }
            }
            self.emptied.notified().await;
        }
    }

    /// Whether there is room now.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.state();
        state.end == End::Open && state.weight < self.limit
    }

    /// Puts something in, whether there is room or not.
    pub(crate) fn put(&self, item: T, weight: usize) {
        let mut state = self.state();
        if state.end != End::Open {
            return;
        }
        state.items.push_back((item, weight));
        state.weight += weight;
        drop(state);
        self.filled.notify_one();
    }

    /// Takes something out if there is anything.
    pub(crate) fn try_take(&self) -> Option<T> {
        let mut state = self.state();
        let (item, weight) = state.items.pop_front()?;
        let was_full = state.weight >= self.limit;
        state.weight -= weight;
        if was_full {
            drop(state);
            self.emptied.notify_one();
        }
        Some(item)
    }

    /// Waits until there is something to take out.
    pub(crate) async fn ready(&self) -> Flow {
        loop {
            {
                let state = self.state();
                if !state.items.is_empty() {
                    return Flow::On;
                }
                if state.end != End::Open {
                    return Flow::Ended;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Takes something out, or nothing at the end.
    pub(crate) async fn take(&self) -> Option<T> {
        loop {
            if let Some(item) = self.try_take() {
                return Some(item);
            }
            if self.ready().await == Flow::Ended {
                return None;
            }
        }
    }

    /// How much waits in it.
    pub(crate) fn len(&self) -> usize {
        self.state().items.len()
    }

    /// Whether nothing waits in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().items.is_empty()
    }

    /// Nothing more is put in.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        if state.end == End::Open {
            state.end = End::Closed;
        }
        drop(state);
        self.filled.notify_one();
        self.emptied.notify_one();
    }

    /// Nothing more is taken out either.
    pub(crate) fn abandon(&self) {
        let mut state = self.state();
        state.end = End::Abandoned;
        state.items.clear();
        state.weight = 0;
        drop(state);
        self.filled.notify_one();
        self.emptied.notify_one();
        self.abandoned.notify_one();
    }

    /// Waits until nobody wants what is in it.
    pub(crate) async fn abandonment(&self) {
        loop {
            if self.state().end == End::Abandoned {
                return;
            }
            self.abandoned.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_put_in_is_taken_out_in_order_and_room_comes_back() {
        let queue = Queue::new(10);
        queue.put('a', 6);
        assert!(queue.has_room());
        queue.put('b', 6);
        assert!(!queue.has_room());
        assert_eq!(queue.take().await, Some('a'));
        assert_eq!(queue.room().await, Flow::On);
        queue.close();
        queue.put('c', 1);
        assert_eq!(queue.take().await, Some('b'));
        assert_eq!(queue.take().await, None);
        assert_eq!(queue.room().await, Flow::Ended);
    }

    #[tokio::test]
    async fn who_waits_for_room_is_told_when_nobody_wants_more() {
        let queue = std::sync::Arc::new(Queue::new(1));
        queue.put((), 1);
        let waiting = tokio::spawn({
            let queue = std::sync::Arc::clone(&queue);
            async move { queue.room().await }
        });
        tokio::task::yield_now().await;
        queue.abandon();
        assert_eq!(waiting.await.unwrap(), Flow::Ended);
        queue.abandonment().await;
        assert!(queue.is_empty());
    }
}
