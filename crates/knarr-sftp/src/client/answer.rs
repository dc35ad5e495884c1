//! What a request waits for, and what it gets.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::client::core::Core;
use crate::client::{ConnectionError, Error};
use crate::codec::{Attributes, NameEntry, Status};

/// Where a reply is handed over.
pub(crate) type ReplySender = oneshot::Sender<Result<Answer, Arc<ConnectionError>>>;

/// The reply that a request waits for. Each may be a status instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Status,
    Handle,
    Data { asked_bytes: u32 },
    Names,
    Attributes,
    Extended,
}

impl Expect {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Status => "a status",
            Self::Handle => "a handle",
            Self::Data { .. } => "data",
            Self::Names => "names",
            Self::Attributes => "attributes",
            Self::Extended => "an extended reply",
        }
    }
}

/// A reply on its way to who asked.
#[derive(Debug)]
pub(crate) enum Answer {
    Status(Status),
    Handle(RawHandle),
    Data(Payload),
    Names(Vec<NameEntry>),
    Attributes(Attributes),
    Extended(Bytes),
}

/// The payload of a DATA reply, in the pieces in which it arrived.
#[derive(Debug)]
pub(crate) enum Payload {
    One(Bytes),
    Pieces(Vec<Bytes>),
}

/// A handle that is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct RawHandle {
    pub(crate) bytes: Bytes,
    core: Arc<Core>,
}

impl RawHandle {
    pub(crate) fn new(bytes: Bytes, core: Arc<Core>) -> Self {
        Self { bytes, core }
    }

    /// Takes the handle out, to close it in view of its caller.
    pub(crate) fn disarm(mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for RawHandle {
    fn drop(&mut self) {
        // Only `disarm` leaves it empty; a server that makes empty handles keeps them.
        if !self.bytes.is_empty() {
            self.core.close_later(std::mem::take(&mut self.bytes));
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) receiver: oneshot::Receiver<Result<Answer, Arc<ConnectionError>>>,
    pub(crate) core: Arc<Core>,
}

impl Pending {
    /// The reply, if it has arrived.
    pub(crate) fn try_answer(&mut self) -> Option<Result<Answer, Error>> {
        match self.receiver.try_recv() {
            Ok(outcome) => Some(outcome.map_err(|reason| Error::lost(&reason))),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(self.core.failure())),
        }
    }
}

impl Future for Pending {
    type Output = Result<Answer, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver)
            .poll(context)
            .map(|received| match received {
                Ok(outcome) => outcome.map_err(|reason| Error::lost(&reason)),
                Err(_) => Err(self.core.failure()),
            })
    }
}

/// Who waits for a reply, taken out of its slot.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) expect: Expect,
    pub(crate) reply: Option<ReplySender>,
}

impl Waiter {
    /// Hands the answer over. If nobody takes it, it is dropped; must not be called under the lock,
    /// because dropping a handle takes it.
    pub(crate) fn answer(self, answer: Answer) {
        if let Some(reply) = self.reply {
            drop(reply.send(Ok(answer)));
        }
    }
}
