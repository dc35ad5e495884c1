//! Turns that are shared by jobs: how many files are on their way from or to an endpoint at once, and whose
//! is next.
//!
//! While jobs of different priorities wait, they get turns in proportion to their weights, 16 : 4 : 1, spread
//! evenly; among those of one priority, who came first goes first. So a low one waits long and not for ever:
//! of 21 turns one is its own. Nobody who is waited for waits himself: whoever takes turns of several
//! endpoints takes them in the order of their names.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use knarr_core::job::Priority;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

/// How many priorities there are.
const LEVELS: usize = 3;

/// A number of turns. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    limit: usize,
    taken: usize,
    waiting: [VecDeque<oneshot::Sender<Turn>>; LEVELS],
    /// What each priority has saved up.
    credit: [i64; LEVELS],
}

/// Somebody's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            let mut state = turns.lock();
            state.taken = state.taken.saturating_sub(1);
            turns.hand_out(&mut state);
        }
    }
}

impl Turns {
    /// So many at once; at least one.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            limit: limit.max(1),
            taken: 0,
            waiting: Default::default(),
            credit: [0; LEVELS],
        })))
    }

    /// From now on so many at once; at least one. Turns that were given stay given.
    pub fn set_limit(&self, limit: usize) {
        let mut state = self.lock();
        state.limit = limit.max(1);
        self.hand_out(&mut state);
    }

    /// Waits for a turn.
    pub async fn take(&self, priority: Priority) -> Turn {
        let waiting = {
            let mut state = self.lock();
            let nobody_waits = state.waiting.iter().all(VecDeque::is_empty);
            if nobody_waits && state.taken < state.limit {
                state.taken += 1;
                return Turn(Some(self.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            if let Some(queue) = state.waiting.get_mut(level(priority)) {
                // Who has gone is forgotten when his turn would come; now and then all of them at once.
                if queue.len().is_power_of_two() {
                    queue.retain(|sender| !sender.is_closed());
                }
                queue.push_back(sender);
            }
            receiver
        };
        // A sender is dropped with the turns only, and this is one of their owners.
        waiting.await.unwrap_or(Turn(None))
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let state = self.lock();
        let open = |sender: &&oneshot::Sender<Turn>| !sender.is_closed();
        state.waiting.iter().flatten().filter(open).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_out(&self, state: &mut State) {
        while state.taken < state.limit
            && let Some(next) = state.next()
        {
            if let Err(mut gone) = next.send(Turn(Some(self.clone()))) {
                // Whoever waited has gone. It must not be given back by its own end: the lock is held.
                gone.0 = None;
            } else {
                state.taken += 1;
            }
        }
    }
}

impl State {
    /// Whose turn is next.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let all = self.waiting.iter_mut().zip(&mut self.credit);
        let (mut sum, mut first): (i64, Option<(i64, usize)>) = (0, None);
        for (index, ((queue, credit), weight)) in all.zip(WEIGHTS).enumerate() {
            while queue.front().is_some_and(oneshot::Sender::is_closed) {
                queue.pop_front();
            }
            if queue.is_empty() {
                // Nothing is saved up by who does not wait.
                *credit = 0;
                continue;
            }
            *credit += weight;
            sum += weight;
            if first.is_none_or(|(most, _)| *credit > most) {
                first = Some((*credit, index));
            }
        }
        let (_, index) = first?;
        if let Some(credit) = self.credit.get_mut(index) {
            *credit -= sum;
        }
        self.waiting.get_mut(index)?.pop_front()
    }
}

/// Of `high`, `normal` and `low`.
const WEIGHTS: [i64; LEVELS] = [16, 4, 1];

const fn level(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

/// What a file needs to be on its way: room among those of its job, and a turn at each endpoint that limits
/// them.
#[derive(Debug)]
pub(crate) struct Slots {
    own: Semaphore,
    shared: Vec<Turns>,
    priority: Priority,
    cancel: CancellationToken,
}

/// Room for a file, until it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "what is held is given back by its own end")]
pub(crate) struct Slot<'s> {
    own: SemaphorePermit<'s>,
    turns: Vec<Turn>,
}

/// The job is asked to stop.
#[derive(Debug)]
pub(crate) struct Stopped;

impl Slots {
    /// So many files at once; at least one.
    pub(crate) fn new(own: usize, cancel: &CancellationToken) -> Self {
        Self {
            own: Semaphore::new(own.max(1)),
            shared: Vec::new(),
            priority: Priority::default(),
            cancel: cancel.clone(),
        }
    }

    /// The same, with turns that others want, too; in the order in which everybody takes them.
    pub(crate) fn sharing(self, shared: &[Turns], priority: Priority) -> Self {
        Self {
            shared: shared.to_vec(),
            priority,
            ..self
        }
    }

    /// Waits for room.
    pub(crate) async fn acquire(&self) -> Result<Slot<'_>, Stopped> {
        let all = async {
            let own = self.own.acquire().await.ok()?;
            let mut turns = Vec::with_capacity(self.shared.len());
            for shared in &self.shared {
                turns.push(shared.take(self.priority).await);
            }
            Some(Slot { own, turns })
        };
        tokio::select! {
            biased;
            slot = all => slot.ok_or(Stopped),
            () = self.cancel.cancelled() => Err(Stopped),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::stream::{FuturesUnordered, StreamExt as _};

    use super::*;

    /// Has so many of each priority wait for one turn, and tells in which order they get it.
    async fn order(each: usize) -> Vec<Priority> {
        let turns = Turns::new(1);
        let first = turns.take(Priority::Low).await;
        let waiting = FuturesUnordered::new();
        for _ in 0..each {
            for priority in [Priority::Low, Priority::Normal, Priority::High] {
                let turns = turns.clone();
                waiting.push(async move {
                    drop(turns.take(priority).await);
                    priority
                });
            }
        }
        let order = waiting.collect::<Vec<_>>();
        tokio::pin!(order);
        assert!(order.as_mut().now_or_never().is_none(), "all of them wait");
        assert_eq!(turns.waiting(), 3 * each);
        drop(first);
        order.await
    }

    #[tokio::test]
    async fn the_higher_one_goes_first_and_the_lower_ones_wait_and_not_for_ever() {
        let order = order(100).await;
        let of = |part: &[Priority], priority| part.iter().filter(|p| **p == priority).count();
        for turn in order.chunks(21).take(6) {
            assert_eq!(of(turn, Priority::High), 16);
            assert_eq!(of(turn, Priority::Normal), 4);
            assert_eq!(of(turn, Priority::Low), 1);
        }
        assert_eq!(order.first(), Some(&Priority::High));
        for priority in [Priority::High, Priority::Normal, Priority::Low] {
            assert_eq!(of(&order, priority), 100);
        }
    }

    #[tokio::test]
    async fn a_turn_that_nobody_waits_for_any_more_goes_to_the_next() {
        let turns = Turns::new(1);
        let first = turns.take(Priority::Normal).await;
        let mut gone = Box::pin(turns.take(Priority::High));
        let mut stays = Box::pin(turns.take(Priority::Low));
        assert!(gone.as_mut().now_or_never().is_none());
        assert!(stays.as_mut().now_or_never().is_none());
        drop(gone);
        drop(first);
        let turn = stays.now_or_never().expect("it is its turn");
        // One that was given, and was not looked at.
        let mut given = Box::pin(turns.take(Priority::High));
        assert!(given.as_mut().now_or_never().is_none());
        drop(turn);
        drop(given);
        assert!(turns.take(Priority::Low).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_limit_can_change() {
        let turns = Turns::new(1);
        let first = turns.take(Priority::Normal).await;
        let mut second = Box::pin(turns.take(Priority::Normal));
        assert!(second.as_mut().now_or_never().is_none());
        turns.set_limit(2);
        let second = second.now_or_never().expect("there are two");
        turns.set_limit(1);
        drop(first);
        assert!(turns.take(Priority::High).now_or_never().is_none());
        drop(second);
        assert!(turns.take(Priority::High).now_or_never().is_some());
    }
}
