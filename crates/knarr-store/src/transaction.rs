//! One transaction, and the wait for it.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use knarr_core::{Clock, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::error::StoreError;
use crate::read::Reader;
use crate::users::Suspicion;
use crate::writer::{Job, Verdict};
use crate::{Inner, Store};

/// A transaction that may write. Reads see what it wrote. Lives on the store's own thread, so the work
/// inside must not wait for anything but the database.
pub struct Tx<'c> {
    reader: Reader<'c>,
    clock: &'c dyn Clock,
}

impl<'c> Tx<'c> {
    pub(crate) const fn new(reader: Reader<'c>, clock: &'c dyn Clock) -> Self {
        Self { reader, clock }
    }

    /// The wall clock's time, as the store's clock tells it.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

impl<'c> Deref for Tx<'c> {
    type Target = Reader<'c>;

    fn deref(&self) -> &Reader<'c> {
        &self.reader
    }
}

impl fmt::Debug for Tx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").finish_non_exhaustive()
    }
}

impl Store {
    /// Has `work` run as one transaction on the store's thread. When the answer comes, the transaction
    /// is on the disk; if `work` fails, nothing of it is, and what runs in the same commit is not
    /// affected. Keep the work of one transaction below some 10,000 rows: others wait for it.
    ///
    /// It is submitted at once, also if nobody waits for the answer, as long as fewer than
    /// [`crate::QUEUED_TRANSACTIONS`] wait; beyond that, when the answer is waited for. What one
    /// thread submits runs in that order, unless that limit was reached.
    pub fn transact<T, F>(&self, work: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = job(work, reply, self.0.suspicion.clone());
        match Arc::clone(self.0.writer.room()).try_acquire_owned() {
            Ok(permit) => {
                self.0.writer.submit(permit, job);
                Pending(State::Submitted(answer))
            }
            Err(_) => {
                let room = Arc::clone(self.0.writer.room());
                Pending(State::Deferred {
                    room: Box::pin(async move { room.acquire_owned().await.ok() }),
                    store: Arc::downgrade(&self.0),
                    rest: Some((job, answer)),
                })
            }
        }
    }
}

fn job<T, F>(work: F, reply: oneshot::Sender<Result<T, StoreError>>, suspicion: Suspicion) -> Job
where
    T: Send + 'static,
    F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
{
    Box::new(move |tx| {
        let result = tx.and_then(|tx| {
            catch_unwind(AssertUnwindSafe(|| work(tx))).unwrap_or_else(|panic| {
                Err(StoreError::Panicked {
                    message: message_of(&*panic),
                })
            })
        });
        // Nobody may be waiting any more: then the answer goes nowhere, and that is fine.
        match result {
            Ok(value) => Verdict::Commit(Box::new(move |outcome| {
                reply.send(outcome.map(|()| value)).ok();
            })),
            Err(error) => {
                suspicion.note(&error);
                let class = error.class();
                let answer = move || {
                    reply.send(Err(error)).ok();
                };
                Verdict::RollBack(Box::new(answer), class)
            }
        }
    })
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it did not say what".to_owned())
}

/// The answer to a transaction: `.await` it, or [`Pending::wait`] for it on a thread that may block.
/// Dropping it does not take the transaction back.
#[must_use = "the transaction is not acknowledged before this was waited for"]
pub struct Pending<T>(State<T>);

type Room = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;
type Answer<T> = oneshot::Receiver<Result<T, StoreError>>;

enum State<T> {
    Submitted(Answer<T>),
    Deferred {
        room: Room,
        store: Weak<Inner>,
        rest: Option<(Job, Answer<T>)>,
    },
}

impl<T> Pending<T> {
    /// Blocks the thread until the answer is there.
    ///
    /// # Errors
    /// What the work said, or why it could not be committed.
    pub fn wait(self) -> Result<T, StoreError> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut pending = std::pin::pin!(tokio::task::unconstrained(self));
        loop {
            match pending.as_mut().poll(&mut context) {
                Poll::Ready(result) => return result,
                Poll::Pending => thread::park(),
            }
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.0 {
                State::Submitted(answer) => {
                    return Pin::new(answer)
                        .poll(context)
                        .map(|answer| answer.unwrap_or(Err(StoreError::Closed)));
                }
                State::Deferred { room, store, rest } => {
                    let Poll::Ready(permit) = room.as_mut().poll(context) else {
                        return Poll::Pending;
                    };
                    let (Some(permit), Some(inner), Some((job, answer))) =
                        (permit, store.upgrade(), rest.take())
                    else {
                        return Poll::Ready(Err(StoreError::Closed));
                    };
                    inner.writer.submit(permit, job);
                    self.0 = State::Submitted(answer);
                }
            }
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}
