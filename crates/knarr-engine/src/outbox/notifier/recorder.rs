//! What the engine does, as events for those who follow: starts and progress.
//!
//! Constraints: an observer may not block, so what it sees waits in memory, at most [`WAITING`] events,
//! and is written a few times a second. Progress is at most one event a second a file. What completed or
//! failed is not written from here but with its record, in one transaction: see [`event_of`]. What was seen
//! before is written before it, in the same transaction ([`Waiting`]): all is taken from memory on the
//! store's own thread, so that nothing is written later than what followed it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use knarr_core::record::{Action, CustodyRecord};
use knarr_core::{Clock, RelPath, Timestamp};
use knarr_store::events::{FileEvent, NewEvent};
use knarr_store::runs::RunId;
use knarr_store::{Store, StoreError, Tx};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::observer::{Event, Observer};

/// How many events wait at most; more are counted and left out.
const WAITING: usize = 50_000;
/// How many are written in one transaction, but for those that a record takes along.
const BATCH: usize = 5_000;
/// How often they are written.
const PERIOD: Duration = Duration::from_millis(250);
/// How often the progress of a file is told.
const PROGRESS: Duration = Duration::from_secs(1);

/// Follows one job.
#[derive(Debug)]
pub struct Recorder {
    job: String,
    run: Option<RunId>,
    clock: Arc<dyn Clock>,
    state: Waiting,
}

/// What was seen and is not written yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiting(Arc<Mutex<State>>);

impl Waiting {
    /// Writes all of it. Says how much was left out, as too much waited.
    pub(crate) fn write(&self, tx: &mut Tx<'_>, limit: usize) -> Result<Written, StoreError> {
        let (events, left_out) = {
            let mut state = self.lock();
            let count = state.waiting.len().min(limit);
            let events: Vec<_> = state.waiting.drain(..count).collect();
            (events, std::mem::take(&mut state.left_out))
        };
        tx.append_events(&events)?;
        Ok(Written {
            events: events.len(),
            left_out,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    events: usize,
    left_out: u64,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<NewEvent>,
    files: HashMap<RelPath, Under>,
    left_out: u64,
}

/// A file that is under way.
#[derive(Debug)]
struct Under {
    size: u64,
    done: u64,
    told: Timestamp,
}

impl Recorder {
    /// Follows the run of a job.
    #[must_use]
    pub fn new(job: &str, run: Option<RunId>, clock: Arc<dyn Clock>) -> Self {
        Self {
            job: job.to_owned(),
            run,
            clock,
            state: Waiting::default(),
        }
    }

    /// Writes what it saw until cancelled, and the rest then. `notify` wakes the notifier.
    pub async fn run(&self, store: &Store, notify: &Notify, cancel: &CancellationToken) {
        loop {
            let last = cancel.is_cancelled();
            if !self.is_idle() {
                self.write(store, notify).await;
            }
            if last {
                return;
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Writes what it saw so far.
    pub async fn write(&self, store: &Store, notify: &Notify) {
        loop {
            let waiting = self.state.clone();
            let written = store.transact(move |tx| waiting.write(tx, BATCH)).await;
            let Written { events, left_out } = match written {
                Ok(written) => written,
                Err(error) => {
                    tracing::error!("events were not kept: {}", crate::error::chain(&error));
                    return;
                }
            };
            if left_out > 0 {
                tracing::error!("{left_out} events were not kept: the state directory is too slow");
            }
            if events == 0 {
                return;
            }
            notify.notify_one();
        }
    }

    /// What it saw and did not write yet.
    pub(crate) fn waiting(&self) -> Waiting {
        self.state.clone()
    }

    fn is_idle(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Observer for Recorder {
    fn event(&self, event: &Event<'_>) {
        let now = self.clock.now();
        let mut state = self.lock();
        let (path, size, what) = match event {
            Event::Started { path, size } => {
                let under = Under {
                    size: *size,
                    done: 0,
                    told: now,
                };
                state.files.insert((*path).clone(), under);
                (*path, *size, FileEvent::Started)
            }
            Event::Progress {
                path: Some(path),
                bytes,
            } => {
                let Some(file) = state.files.get_mut(*path) else {
                    return;
                };
                file.done = file.done.saturating_add(*bytes);
                if now.distance(file.told) < PROGRESS {
                    return;
                }
                file.told = now;
                (*path, file.size, FileEvent::Progress { done: file.done })
            }
            Event::Finished { path, .. }
            | Event::Retry { path, .. }
            | Event::Trouble {
                path: Some(path), ..
            } => {
                state.files.remove(*path);
                return;
            }
            _ => return,
        };
        if state.waiting.len() >= WAITING {
            state.left_out += 1;
            return;
        }
        let new = NewEvent {
            at: now,
            what,
            job: self.job.clone(),
            run: self.run,
            path: path.clone(),
            size: Some(size),
        };
        state.waiting.push(new);
    }
}

/// The event of a record: belongs into the transaction that writes the record.
#[must_use]
pub fn event_of(record: &CustodyRecord) -> NewEvent {
    let what = match record.action {
        Action::Failed | Action::Parked | Action::Problem => FileEvent::Failed {
            message: record.message.clone().unwrap_or_default(),
        },
        action => FileEvent::Completed {
            action: action.name().to_owned(),
        },
    };
    NewEvent {
        at: record.at,
        what,
        job: record.job.clone(),
        run: Some(RunId(record.run)),
        path: record.path.clone(),
        size: Some(record.size),
    }
}
