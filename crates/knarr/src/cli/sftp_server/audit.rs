//! What clients of the SFTP server do, in the chain of custody.
//!
//! Constraints:
//!
//! * At most [`ROOM`] records wait to be written, and as many again of what must not wait (log-ins, connections that
//!   end). Who makes more waits for the disk, up to [`PATIENCE`]; what finds no room then is counted, and the count
//!   becomes a record. Nothing is lost silently.
//! * Records are written together: up to [`BATCH`] in a transaction, [`LINGER`] after the first of them came. So what
//!   was answered is on record some 50 ms later; a power cut or a kill in between loses those records, not the files.
//! * What is refused is written one by one for a while and then counted ([`tally`]): a flood of it costs a bounded
//!   number of records.

mod record;
mod tally;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use knarr_core::Timestamp;
use knarr_core::record::CustodyRecord;
use knarr_serve::event::{FileEnd, LogIn, ServeEvent, ServeObserver};
use knarr_store::{Store, StoreError};

use crate::cli::sftp_server::audit::tally::{Fate, Tally};
use crate::cli::sftp_server::log::Logged;

/// Records that wait before who makes them has to.
const ROOM: usize = 4_096;
/// Records in a transaction.
const BATCH: usize = 1_024;
/// How long the first record of a transaction waits for company.
const LINGER: Duration = Duration::from_millis(25);
/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after an error it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Attempts that are left when the server stops.
const LAST_ATTEMPTS: u32 = 3;
/// Between those.
const LAST_PAUSE: Duration = Duration::from_millis(300);

/// Logs and records what clients do. Ends when it is dropped: what waits is written first.
pub(crate) struct Audit {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").finish_non_exhaustive()
    }
}

struct Shared {
    store: Store,
    state: Mutex<State>,
    /// Told when there is something to write, or the end came.
    filled: Condvar,
    /// Told when there is room, and when something was written.
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<CustodyRecord>,
    /// Records that came, and those of them that are on the disk.
    put: u64,
    written: u64,
    tally: Tally,
    /// Records that found no room.
    lost: u64,
    ended: bool,
}

/// Whether who makes a record can wait for room: on a thread of its own it can, in the middle of the runtime not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    ForRoom,
    Never,
}

impl Audit {
    /// Begins to write.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn start(store: Store) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            store,
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        });
        let writing = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("knarr-audit".to_owned())
            .spawn(move || writing.write_all())?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Writes what waits, and nothing that comes later. Blocks.
    pub(crate) fn end(&self) {
        self.shared.lock().ended = true;
        self.shared.filled.notify_all();
        self.shared.emptied.notify_all();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the audit stopped with a bug");
        }
    }

    /// Waits until what came before is on record, but not for ever. Blocks.
    pub(crate) fn wait_until_written(&self) {
        let state = self.shared.lock();
        let wanted = state.put;
        let missing = |state: &mut State| state.written < wanted && !state.ended;
        let waited = self
            .shared
            .emptied
            .wait_timeout_while(state, PATIENCE, missing);
        drop(waited);
    }

    fn now(&self) -> Timestamp {
        self.shared.store.clock().now()
    }

    fn log_in(&self, event: &ServeEvent<'_>) {
        let ServeEvent::LogIn {
            session, outcome, ..
        } = event
        else {
            return;
        };
        let is_refusal = !matches!(outcome, LogIn::Accepted | LogIn::Partial);
        if is_refusal {
            let source = tally::source(session.peer.ip());
            let fate = self.shared.lock().tally.log_in(&source, Instant::now());
            if fate == Fate::Counted {
                return;
            }
        }
        let record = record::log_in(event, self.now());
        self.shared.put(record, Wait::Never);
    }

    fn refused(&self, event: &ServeEvent<'_>) {
        if !record::is_worth_telling(event) {
            return;
        }
        if let ServeEvent::Operation { user, .. } = event {
            let fate = self.shared.lock().tally.operation(user, Instant::now());
            if fate == Fate::Single {
                let record = record::operation(event, self.now());
                self.shared.put(record, Wait::ForRoom);
            }
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.end();
    }
}

impl ServeObserver for Audit {
    fn observe(&self, event: &ServeEvent<'_>) {
        Logged.observe(event);
        match event {
            ServeEvent::Refused { peer, .. } => {
                let source = tally::source(peer.ip());
                let mut state = self.shared.lock();
                state.tally.connection(&source, Instant::now());
            }
            ServeEvent::LogIn { .. } => self.log_in(event),
            ServeEvent::Operation { outcome, .. } if outcome.is_err() => self.refused(event),
            ServeEvent::Operation { .. } => {
                let record = record::operation(event, self.now());
                self.shared.put(record, Wait::ForRoom);
            }
            ServeEvent::Closed { end, .. } => {
                let wait = match end {
                    FileEnd::Closed | FileEnd::Failed => Wait::ForRoom,
                    FileEnd::Abandoned => Wait::Never,
                };
                self.shared.put(record::closed(event, self.now()), wait);
            }
            ServeEvent::Uploaded { .. } => {
                let record = record::uploaded(event, self.now());
                self.shared.put(record, Wait::ForRoom);
            }
            _ => {}
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, record: Option<CustodyRecord>, wait: Wait) {
        let Some(record) = record else {
            return;
        };
        let mut state = self.lock();
        let room = match wait {
            Wait::Never => 2 * ROOM,
            Wait::ForRoom => {
                let full = |state: &mut State| state.waiting.len() >= ROOM && !state.ended;
                let waited = self.emptied.wait_timeout_while(state, PATIENCE, full);
                (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                ROOM
            }
        };
        if state.waiting.len() >= room || state.ended {
            if state.lost == 0 {
                tracing::error!("what clients of the SFTP server do cannot be recorded in time");
            }
            state.lost += 1;
            return;
        }
        state.waiting.push_back(record);
        state.put += 1;
        drop(state);
        self.filled.notify_one();
    }

    /// The next records to be written, or nothing at the end.
    fn next(&self) -> Option<Vec<CustodyRecord>> {
        let mut state = self.lock();
        let mut first_at = None;
        loop {
            let now = Instant::now();
            if state.ended || state.tally.is_over(now) {
                let at = self.store.clock().now();
                let counted = state.tally.end();
                let counted = counted
                    .into_iter()
                    .map(|counts| record::counted(counts, at));
                let before = state.waiting.len();
                state.waiting.extend(counted);
                state.put += (state.waiting.len() - before) as u64;
            }
            if !state.waiting.is_empty() {
                let since = now - *first_at.get_or_insert(now);
                if state.ended || state.waiting.len() >= BATCH || since >= LINGER {
                    let most = state.waiting.len().min(BATCH);
                    let batch = state.waiting.drain(..most).collect();
                    drop(state);
                    self.emptied.notify_all();
                    return Some(batch);
                }
            } else if state.ended {
                return None;
            }
            let pause = match first_at {
                Some(first_at) => LINGER.saturating_sub(first_at.elapsed()),
                None => state.tally.left(now),
            };
            let waited = self.filled.wait_timeout(state, pause);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes until the end.
    fn write_all(&self) {
        let mut attempts_left = LAST_ATTEMPTS;
        while let Some(batch) = self.next() {
            let batch = Arc::new(batch);
            while let Err(error) = self.write(&batch) {
                let error = knarr_engine::chain(&error);
                tracing::error!("what clients of the SFTP server do cannot be recorded: {error}");
                if self.is_ended() {
                    attempts_left = attempts_left.saturating_sub(1);
                    // Nobody fills any more, so nothing else makes it wait.
                    drop(self.filled.wait_timeout(self.lock(), LAST_PAUSE));
                }
                if attempts_left == 0 {
                    let records = batch.len() + self.lock().waiting.len();
                    tracing::error!(records, "the server ends without having recorded them");
                    return;
                }
                let going_on = |state: &mut State| !state.ended;
                drop(self.filled.wait_timeout_while(self.lock(), AGAIN, going_on));
            }
            let mut state = self.lock();
            state.written += batch.len() as u64;
            let lost = std::mem::take(&mut state.lost);
            if lost > 0 {
                let record = record::unrecorded(lost, self.store.clock().now());
                state.waiting.push_front(record);
                state.put += 1;
            }
            drop(state);
            self.emptied.notify_all();
        }
    }

    fn is_ended(&self) -> bool {
        self.lock().ended
    }

    fn write(&self, batch: &Arc<Vec<CustodyRecord>>) -> Result<(), StoreError> {
        let records = Arc::clone(batch);
        let written = self
            .store
            .transact(move |tx| tx.append_custody(records.iter()).map(drop));
        written.wait()
    }
}

#[cfg(test)]
mod tests;
