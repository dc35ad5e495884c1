//! The three activities of a connection: one receives, one carries out, one sends.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::timeout;

use crate::client::{PacketSink, PacketSource, StreamSink, StreamSource};
use crate::server::framer::{Framer, Work};
use crate::server::outbox::Outbox;
use crate::server::queue::{Flow, Queue};
use crate::server::session::Session;
use crate::server::{Execution, FileSystem, Observer, ServeError, ServeLimits, ServeOptions};

/// What a waiting request costs besides its bytes.
const OVERHEAD_BYTES: usize = size_of::<Work>();

/// Requests that are carried out before others get a turn.
const BURST: usize = 256;

/// Up to so many requests are carried out without a hand-over to another thread. A client that waits for
/// each answer, as most do between files, has one or two.
const LIGHT: usize = 3;

/// Nothing is carried out in place while so many connections are at work: the runtime needs a thread that is free
/// to go on with the other tasks, and where so many hang in a file system that does not answer, there may be none.
const MOST_BUSY: usize = 64;

/// What a connection was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Requests that were answered.
    pub requests: u64,
}

/// Serves one connection over a pair of streams until the client closes it; see [`serve`].
///
/// # Errors
///
/// As [`serve`].
pub async fn serve_streams(
    reader: impl AsyncRead + Unpin + Send,
    writer: impl AsyncWrite + Unpin + Send,
    file_system: Arc<dyn FileSystem>,
    options: ServeOptions,
    observer: Arc<dyn Observer>,
) -> Result<Summary, ServeError> {
    let (source, sink) = (StreamSource::new(reader), StreamSink::new(writer));
    serve(source, sink, file_system, options, observer).await
}

/// Serves one connection until the client closes it. Dropping the future ends it at once; what was not closed by
/// the client is not complete then.
///
/// # Errors
///
/// If the connection fails or the client breaks the protocol. Requests from before are answered first.
pub async fn serve(
    source: impl PacketSource,
    sink: impl PacketSink,
    file_system: Arc<dyn FileSystem>,
    options: ServeOptions,
    observer: Arc<dyn Observer>,
) -> Result<Summary, ServeError> {
    let requests = Arc::new(Queue::new(options.limits.request_bytes));
    let replies = Arc::new(Queue::new(options.limits.reply_bytes));
    let outbox = Outbox::new(Arc::clone(&replies), options.limits.packet_bytes);
    let (limits, execution) = (options.limits.clone(), options.execution);
    let session = Session::new(file_system, observer, options, outbox);
    let receiving = async {
        let outcome = tokio::select! {
            outcome = receive(source, &limits, &requests, &replies) => outcome,
            () = requests.abandonment() => Ok(()),
        };
        requests.close();
        outcome
    };
    let executing = async {
        let outcome = execute(session, execution, &requests, &replies).await;
        // Also where it ended with an error: nobody would take the requests.
        replies.close();
        requests.abandon();
        outcome
    };
    let sending = async {
        let outcome = send(sink, &replies).await;
        if outcome.is_err() {
            replies.abandon();
            requests.abandon();
        }
        outcome
    };
    let (received, executed, sent) = tokio::join!(receiving, executing, sending);
    let requests = executed?;
    received?;
    sent?;
    Ok(Summary { requests })
}

async fn receive(
    mut source: impl PacketSource,
    limits: &ServeLimits,
    requests: &Queue<Work>,
    replies: &Queue<Bytes>,
) -> Result<(), ServeError> {
    let mut framer = Framer::new(limits.packet_bytes);
    loop {
        let next = source.next();
        let chunk = match limits.idle {
            None => next.await,
            Some(limit) => {
                let mut next = std::pin::pin!(next);
                loop {
                    match timeout(limit, next.as_mut()).await {
                        Ok(outcome) => break outcome,
                        // Who waits for an answer, or takes one slowly, is not silent.
                        Err(_) if !requests.is_empty() || !replies.is_empty() => {}
                        Err(_) => {
                            let seconds = limit.as_secs();
                            return Err(ServeError::Idle { seconds });
                        }
                    }
                }
            }
        };
        let Some(chunk) = chunk.map_err(|source| ServeError::Read { source })? else {
            return match framer.partial_bytes() {
                0 => Ok(()),
                bytes => Err(ServeError::CutOff { bytes }),
            };
        };
        framer.push(chunk);
        while let Some((work, bytes)) = framer.next()? {
            if requests.room().await == Flow::Ended {
                return Ok(());
            }
            requests.put(work, bytes + OVERHEAD_BYTES);
        }
    }
}

/// Carries out requests until there will be no more, and says how many.
async fn execute(
    mut session: Session,
    execution: Execution,
    requests: &Arc<Queue<Work>>,
    replies: &Queue<Bytes>,
) -> Result<u64, ServeError> {
    loop {
        // Room first: a thread must not be taken to wait on it.
        if replies.room().await == Flow::Ended || requests.ready().await == Flow::Ended {
            break;
        }
        match execution {
            Execution::OnThisTask => {
                let outcome = session.burst(requests, BURST).await;
                end_on_error(&mut session, outcome)?;
                tokio::task::yield_now().await;
            }
            Execution::OnBlockingThread if is_light(requests) => {
                let _busy = Busy::enter();
                let outcome = InPlace(std::pin::pin!(session.burst(requests, LIGHT))).await;
                end_on_error(&mut session, outcome)?;
                tokio::task::yield_now().await;
            }
            Execution::OnBlockingThread => {
                let (runtime, waiting) = (Handle::current(), Arc::clone(requests));
                let busy = Busy::enter();
                let burst = tokio::task::spawn_blocking(move || {
                    let _busy = busy;
                    let outcome = runtime.block_on(session.burst(&waiting, BURST));
                    (session, outcome)
                });
                let outcome;
                (session, outcome) = burst
                    .await
                    .map_err(|source| ServeError::Stopped { source })?;
                end_on_error(&mut session, outcome)?;
            }
        }
    }
    session.end();
    Ok(session.requests)
}

/// Whether so little waits that a hand-over to another thread and back would take longer than to carry it out.
fn is_light(requests: &Queue<Work>) -> bool {
    requests.len() <= LIGHT
        && BUSY.load(Ordering::Relaxed) < MOST_BUSY
        && matches!(
            Handle::try_current().map(|runtime| runtime.runtime_flavor()),
            Ok(RuntimeFlavor::MultiThread)
        )
}

/// How many connections of this process carry out requests that may block, at this moment.
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// Counts one of them.
struct Busy;

impl Busy {
    fn enter() -> Self {
        BUSY.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Carries out where the task is, and lets other tasks of this thread go on elsewhere for that time, so that a
/// disk or a network file system that takes its time holds up nobody else.
struct InPlace<F>(F);

impl<F: Future + Unpin> Future for InPlace<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        tokio::task::block_in_place(|| Pin::new(&mut self.0).poll(context))
    }
}

fn end_on_error(session: &mut Session, outcome: Result<(), ServeError>) -> Result<(), ServeError> {
    if outcome.is_err() {
        session.end();
    }
    outcome
}

async fn send(mut sink: impl PacketSink, replies: &Queue<Bytes>) -> Result<(), ServeError> {
    while let Some(bytes) = replies.take().await {
        sink.send(bytes)
            .await
            .map_err(|source| ServeError::Write { source })?;
    }
    Ok(())
}
