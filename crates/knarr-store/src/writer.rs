//! The one thread that writes.
//!
//! Constraints: at most [`QUEUED_TRANSACTIONS`] transactions wait, at most [`GROUP_TRANSACTIONS`] share
//! a commit, and a commit that has run for [`GROUP_TIME`] takes no more on board.
//!
//! A group is one SQLite transaction. Each member but a lonely one runs inside a savepoint, so that it
//! can fail alone; then comes one COMMIT, which flushes the log, and only then are the members
//! answered. If SQLite gives up the whole transaction in the middle (the disk is full), all members are
//! told so and none is recorded. A member that is alone needs no savepoint, which spares bulk work the
//! copies that a savepoint makes of every page.
//!
//! Checkpoints happen between groups, after the answers, so that nobody waits for one but the next.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use knarr_core::Clock;
use knarr_fs::ErrorClass;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{StoreError, While as _};
use crate::read::Reader;
use crate::transaction::Tx;
use crate::users::Suspicion;

/// How many transactions wait at most.
pub const QUEUED_TRANSACTIONS: usize = 1_024;
/// How many transactions share a commit at most.
const GROUP_TRANSACTIONS: usize = 512;
/// After so long a group takes no more transactions.
const GROUP_TIME: Duration = Duration::from_millis(20);
/// After so many pages (of 4 KiB) in the log they are brought home.
const CHECKPOINT_PAGES: i32 = 4_000;
/// So many pages mean that readers never let go of the log: then they are waited for.
const STUBBORN_PAGES: i32 = 64_000;

/// A transaction as the thread sees it: given the transaction, or why there is none.
pub(crate) type Job = Box<dyn FnOnce(Result<&mut Tx<'_>, StoreError>) -> Verdict + Send>;

/// Tells whoever waits whether it was committed.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What a transaction wants, and whom to tell.
pub(crate) enum Verdict {
    Commit(Answer),
    RollBack(Box<dyn FnOnce() + Send>, ErrorClass),
}

/// The thread, seen from outside.
pub(crate) struct WriterHandle {
    jobs: Option<SyncSender<Job>>,
    room: Arc<Semaphore>,
    thread: Option<JoinHandle<()>>,
}

impl WriterHandle {
    pub(crate) fn start(
        connection: Connection,
        clock: Arc<dyn Clock>,
        suspicion: Suspicion,
    ) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel(QUEUED_TRANSACTIONS);
        let room = Arc::new(Semaphore::new(QUEUED_TRANSACTIONS));
        connection.wal_hook(Some(|_, pages| {
            LOGGED_PAGES.set(pages);
            Ok(())
        }));
        let writer = Writer {
            connection,
            jobs: waiting,
            room: Arc::clone(&room),
            clock,
            suspicion,
            checkpointed_pages: 0,
        };
        let thread = std::thread::Builder::new()
            .name("knarr-store".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self {
            jobs: Some(jobs),
            room,
            thread: Some(thread),
        })
    }

    /// One permit for each place in the queue.
    pub(crate) const fn room(&self) -> &Arc<Semaphore> {
        &self.room
    }

    /// Queues `job`; never blocks, as there are as many permits as places.
    pub(crate) fn submit(&self, permit: OwnedSemaphorePermit, job: Job) {
        // The thread gives the place back when it takes the job.
        permit.forget();
        let refused = match &self.jobs {
            Some(jobs) => jobs.send(job).err().map(|error| error.0),
            None => Some(job),
        };
        if let Some(job) = refused {
            refuse(job, StoreError::Closed);
        }
    }
}

impl Drop for WriterHandle {
    fn drop(&mut self) {
        self.room.close();
        self.jobs = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A transaction may hold the last clone of the store; it cannot wait for its own thread.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the thread of the state database stopped with a bug");
        }
    }
}

thread_local! {
    /// Told by SQLite after each commit on this thread.
    static LOGGED_PAGES: Cell<i32> = const { Cell::new(0) };
}

struct Writer {
    connection: Connection,
    jobs: Receiver<Job>,
    room: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
    suspicion: Suspicion,
    checkpointed_pages: i32,
}

impl Writer {
    fn run(mut self) {
        while let Ok(job) = self.jobs.recv() {
            self.room.add_permits(1);
            let outcome = self.group(job);
            self.checkpoint_if_due(outcome);
        }
    }

    fn next(&self) -> Option<Job> {
        let job = self.jobs.try_recv().ok()?;
        self.room.add_permits(1);
        Some(job)
    }

    fn execute(&self, sql: &str, operation: &'static str) -> Result<(), StoreError> {
        let result = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map(drop)
            .trying(operation);
        if let Err(error) = &result {
            self.suspicion.note(error);
        }
        result
    }

    fn group(&self, first: Job) -> Space {
        if let Err(error) = self.execute("BEGIN IMMEDIATE", "begin a transaction") {
            self.refuse_all(first, &error);
            return Space::after(error.class());
        }
        let mut space = Space::Left;
        let start = Instant::now();
        let mut members = Vec::new();
        let mut next = self.next();
        if next.is_none() {
            match self.work(first) {
                Verdict::Commit(answer) => members.push(answer),
                Verdict::RollBack(answer, class) => {
                    self.abandon();
                    answer();
                    return Space::after(class);
                }
            }
        } else {
            let mut job = Some(first);
            while let Some(current) = job {
                if self.member(current, &mut members) == Space::Out {
                    space = Space::Out;
                }
                if self.connection.is_autocommit() {
                    // Not by us, so by SQLite, and with all that was in it.
                    break;
                }
                job = next.take().or_else(|| {
                    let full = members.len() >= GROUP_TRANSACTIONS || start.elapsed() > GROUP_TIME;
                    if full { None } else { self.next() }
                });
            }
            if let Some(left) = next {
                refuse(left, StoreError::Undone);
            }
        }
        let outcome = if self.connection.is_autocommit() {
            Err(StoreError::Undone)
        } else {
            self.execute("COMMIT", "commit a transaction")
        };
        if let Err(error) = &outcome {
            self.abandon();
            if Space::after(error.class()) == Space::Out {
                space = Space::Out;
            }
        }
        for answer in members {
            answer(outcome.clone());
        }
        space
    }

    fn work(&self, job: Job) -> Verdict {
        let mut tx = Tx::new(Reader::new(&self.connection), &*self.clock);
        job(Ok(&mut tx))
    }

    /// Runs one member inside a savepoint.
    fn member(&self, job: Job, members: &mut Vec<Answer>) -> Space {
        if let Err(error) = self.execute("SAVEPOINT member", "begin a transaction") {
            let class = error.class();
            refuse(job, error);
            return Space::after(class);
        }
        match self.work(job) {
            Verdict::Commit(answer) => {
                match self.execute("RELEASE member", "finish a transaction") {
                    Ok(()) => members.push(answer),
                    Err(error) => answer(Err(error)),
                }
                Space::Left
            }
            Verdict::RollBack(answer, class) => {
                let undone = self
                    .execute("ROLLBACK TO member", "undo a transaction")
                    .and_then(|()| self.execute("RELEASE member", "undo a transaction"));
                if undone.is_err() {
                    // What failed must not be committed with the others.
                    self.abandon();
                }
                answer();
                Space::after(class)
            }
        }
    }

    fn abandon(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK", "undo a transaction")
        {
            tracing::error!(%error, "a failed transaction cannot be undone");
        }
    }

    /// The database cannot be had. Those who wait have waited as long, so none waits for another turn.
    fn refuse_all(&self, first: Job, error: &StoreError) {
        refuse(first, error.clone());
        for _ in 0..QUEUED_TRANSACTIONS {
            let Some(job) = self.next() else { break };
            refuse(job, error.clone());
        }
    }

    fn checkpoint_if_due(&mut self, space: Space) {
        let pages = LOGGED_PAGES.get();
        if pages < self.checkpointed_pages {
            // The log was begun anew since.
            self.checkpointed_pages = 0;
        }
        if pages - self.checkpointed_pages < CHECKPOINT_PAGES && space == Space::Left {
            return;
        }
        // A log that came home can be written from its start again: that may be the space that lacks.
        let whole = pages > STUBBORN_PAGES || space == Space::Out;
        let mode = if whole { "TRUNCATE" } else { "PASSIVE" };
        let result = self
            .connection
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
            .trying("bring the log home");
        match result {
            Ok(()) => self.checkpointed_pages = pages,
            Err(error) => {
                self.suspicion.note(&error);
                // The log holds everything all the same; the next commit tries again.
                tracing::warn!(%error, "the log of the state database could not be brought home");
            }
        }
    }
}

/// Whether the disk had room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    Left,
    Out,
}

impl Space {
    fn after(class: ErrorClass) -> Self {
        if class == ErrorClass::NoSpace {
            Self::Out
        } else {
            Self::Left
        }
    }
}

/// Tells whoever waits that there is no transaction.
fn refuse(job: Job, error: StoreError) {
    match job(Err(error)) {
        Verdict::RollBack(answer, _) => answer(),
        Verdict::Commit(answer) => answer(Err(StoreError::Closed)),
    }
}
