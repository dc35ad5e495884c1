//! Metrics for Prometheus, on a listener that has to be asked for.
//!
//! Constraints: at most [`CONNECTIONS`] at once, each for at most [`LIMIT`]; a request costs a few reads of
//! indexed tables; names are in `docs/metrics.md`, and none is changed. Nothing in it is a secret, but it
//! names jobs and endpoints, so it is for this machine unless the configuration says otherwise.

mod text;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use knarr_core::Clock;
use knarr_engine::announce::Announcer;
use knarr_store::Store;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::command_error::CommandError;

/// How many ask at once at most.
const CONNECTIONS: usize = 16;
/// How long one connection may last.
const LIMIT: Duration = Duration::from_secs(30);
/// The format of what is served.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is measured.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) store: Store,
    pub(crate) announcer: Announcer,
    pub(crate) clock: Arc<dyn Clock>,
}

/// A listener that nobody is answered on yet.
#[derive(Debug)]
pub(crate) struct Listening(TcpListener);

/// Listens at `address`.
///
/// # Errors
/// If that is taken, or not of this machine.
pub(crate) async fn listen(address: SocketAddr) -> Result<Listening, CommandError> {
    if !address.ip().is_loopback() {
        tracing::warn!(
            "metrics are served on {address}, to everybody who can reach that: they name jobs and endpoints"
        );
    }
    let listener = TcpListener::bind(address).await.map_err(|error| {
        CommandError::failed(format!("metrics cannot be served on {address}: {error}"))
            .hint("`node.metrics.listen` of the configuration names another address")
    })?;
    tracing::info!(%address, "metrics are served");
    Ok(Listening(listener))
}

impl Listening {
    /// Answers until cancelled.
    pub(crate) async fn serve(self, measured: Measured, cancel: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.0.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _peer)) => stream,
                Err(error) => {
                    // Too few descriptors, as a rule: they come back.
                    tracing::warn!("metrics: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Whoever comes too many is sent away at once.
            let Ok(turn) = Arc::clone(&room).try_acquire_owned() else {
                continue;
            };
            let (measured, cancel) = (measured.clone(), cancel.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    _late = tokio::time::timeout(LIMIT, answer(stream, measured)) => {}
                }
                drop(turn);
            });
        }
    }
}

async fn answer(stream: TcpStream, measured: Measured) {
    let service = service_fn(move |request| respond(request, measured.clone()));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    // A peer that goes away is its own affair.
    served.await.ok();
}

async fn respond(
    request: Request<Incoming>,
    measured: Measured,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        let allowed = hyper::header::HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return Ok(response);
    }
    let Measured {
        store,
        announcer,
        clock,
    } = measured;
    let read = store
        .read_async(move |reader| text::exposition(reader, &announcer, clock.now()))
        .await;
    Ok(match read {
        Ok(text) => plain(StatusCode::OK, text),
        Err(error) => {
            let why = knarr_engine::chain(&error);
            tracing::error!("metrics cannot be read: {why}");
            plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the state cannot be read\n",
            )
        }
    })
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let format = hyper::header::HeaderValue::from_static(FORMAT);
    response.headers_mut().insert(CONTENT_TYPE, format);
    response
}
