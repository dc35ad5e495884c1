//! Knows how long the long queues are.
//!
//! Who asks for the status waits for no count of a whole queue: queues are counted up to a number
//! ([`crate::query::status`]), and those that are longer are counted here, in the background, page by page,
//! one after the other. A count is told as long as it is younger than [`OLD`]. Memory: one entry for each
//! long queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use knarr_core::Timestamp;
use knarr_store::dirty::DirtyCounts;
use knarr_store::pairs::Pair;
use knarr_store::{PairId, Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::v1;

/// How old a count may be that is told.
const OLD: Duration = Duration::from_secs(300);
/// How old a count is before it is made anew.
const YOUNG: Duration = Duration::from_secs(5);

/// Counts long queues. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counting(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<i64, (DirtyCounts, Timestamp)>,
    /// Whether somebody counts now.
    busy: bool,
}

impl Counting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills in what is known of long queues, and has counted what is not known, or was counted long ago.
    pub(crate) fn fill(
        &self,
        status: &mut v1::StatusReply,
        store: &Store,
        now: Timestamp,
        stop: &CancellationToken,
    ) {
        let mut state = self.lock();
        let mut wanted = Vec::new();
        for pair in status
            .pairs
            .iter_mut()
            .filter(|pair| pair.counted_up_to > 0)
        {
            let known = state.known.get(&pair.number).copied();
            if let Some((counts, at)) = known.filter(|(_, at)| now.since(*at) < OLD) {
                (pair.ready, pair.waiting, pair.parked) =
                    (counts.ready, counts.waiting, counts.parked);
                pair.counted_up_to = 0;
                pair.counted_at = Some(at.nanoseconds());
            }
            if known.is_none_or(|(_, at)| now.since(at) >= YOUNG || at > now) {
                wanted.push(pair.number);
            }
        }
        if wanted.is_empty() || state.busy {
            return;
        }
        state.busy = true;
        state
            .known
            .retain(|_, (_, at)| *at <= now && now.since(*at) < OLD);
        drop(state);
        let (counting, store, stop) = (self.clone(), store.clone(), stop.clone());
        tokio::task::spawn_blocking(move || {
            let counted = counting.count(&store, &wanted, &stop);
            counting.lock().busy = false;
            if let Err(error) = counted {
                tracing::error!("cannot count the queue: {}", knarr_engine::chain(&error));
            }
        });
    }

    fn count(
        &self,
        store: &Store,
        wanted: &[i64],
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let pairs: Vec<Pair> = store.read(|reader| reader.pairs())?;
        for pair in pairs {
            if wanted.contains(&pair.id.number()) {
                let now = store.clock().now();
                let Some(counts) = exact(store, pair.id, now, stop)? else {
                    return Ok(());
                };
                self.lock().known.insert(pair.id.number(), (counts, now));
            }
        }
        Ok(())
    }
}

/// How many paths are in which state, counted page by page; nothing if it is to stop.
fn exact(
    store: &Store,
    pair: PairId,
    now: Timestamp,
    stop: &CancellationToken,
) -> Result<Option<DirtyCounts>, StoreError> {
    let (mut sum, mut after) = (DirtyCounts::default(), Vec::new());
    loop {
        if stop.is_cancelled() {
            return Ok(None);
        }
        let (counts, next) = store.read(|reader| reader.count_dirty_page(pair, now, &after))?;
        sum.ready += counts.ready;
        sum.waiting += counts.waiting;
        sum.parked += counts.parked;
        match next {
            Some(next) => after = next,
            None => return Ok(Some(sum)),
        }
    }
}
