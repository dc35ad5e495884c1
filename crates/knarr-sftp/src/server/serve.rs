//! The three activities of a connection: one receives, one carries out, one sends.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::client::{PacketSink, PacketSource, StreamSink, StreamSource};
use crate::server::framer::{Framer, Work};
use crate::server::outbox::Outbox;
use crate::server::queue::{Flow, Queue};
use crate::server::session::Session;
use crate::server::{Execution, FileSystem, Observer, ServeError, ServeLimits, ServeOptions};

/// What a waiting request costs besides its bytes.
const OVERHEAD_BYTES: usize = size_of::<Work>();

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
                let outcome = session.burst(requests).await;
                end_on_error(&mut session, outcome)?;
                tokio::task::yield_now().await;
            }
            Execution::OnBlockingThread => {
                let (runtime, waiting) = (Handle::current(), Arc::clone(requests));
                let burst = tokio::task::spawn_blocking(move || {
                    let outcome = runtime.block_on(session.burst(&waiting));
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
