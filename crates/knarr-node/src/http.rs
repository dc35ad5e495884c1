//! Runs jobs for whoever calls their URL with the job's token, and does nothing else.
//!
//! Constraints: `POST /v1/jobs/NAME/run` with `Authorization: Bearer TOKEN`; the token is a secret that the
//! job names, at least [`LEAST_TOKEN_BYTES`] long, compared through a hash in constant time. A job that
//! there is not and one that has no token answer as a wrong token does. At most [`CALLS_PER_SECOND`] calls a
//! second on average, [`CONNECTIONS`] connections, small headers, and no body is read.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use knarr_engine::node::ControlError;
use knarr_engine::pickup::Cause;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::desk;
use crate::server::Node;

/// The shortest token that is accepted, in bytes.
pub const LEAST_TOKEN_BYTES: usize = 16;
/// How many calls a second are answered on average.
pub const CALLS_PER_SECOND: u32 = 10;
/// How many may come at once.
const BURST: f64 = 20.0;
/// How many connections are open at once.
pub const CONNECTIONS: usize = 32;
/// How long a connection may take for a call, in all.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the number of a run is waited for.
const BEGINNING: Duration = Duration::from_secs(5);

/// Serves until the node stops.
pub async fn serve(node: Node, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let rate = Arc::new(Mutex::new(Rate::new()));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = node.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _from)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection over HTTP is lost");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (node, rate) = (node.clone(), Arc::clone(&rate));
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(|request| {
                let (node, rate) = (node.clone(), Arc::clone(&rate));
                async move { Ok::<_, Infallible>(answer(&node, &rate, &request).await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE / 4)
                .max_buf_size(16 * 1024)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever called has gone, or speaks something else.
            let _cut = tokio::time::timeout(PATIENCE, serving).await;
        });
    }
}

/// How many calls may still come.
struct Rate {
    left: f64,
    at: Instant,
}

impl Rate {
    fn new() -> Self {
        Self {
            left: BURST,
            at: Instant::now(),
        }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        let earned = now.duration_since(self.at).as_secs_f64() * f64::from(CALLS_PER_SECOND);
        self.left = (self.left + earned).min(BURST);
        self.at = now;
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

fn reply(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn refusal(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    reply(status, &serde_json::json!({ "error": message }))
}

async fn answer(
    node: &Node,
    rate: &Mutex<Rate>,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    let may = rate.lock().unwrap_or_else(PoisonError::into_inner).take();
    if !may {
        return refusal(
            StatusCode::TOO_MANY_REQUESTS,
            "too many calls; try again later",
        );
    }
    let path = request.uri().path();
    let job = path
        .strip_prefix("/v1/jobs/")
        .and_then(|rest| rest.strip_suffix("/run"));
    let Some(job) = job.filter(|job| !job.is_empty() && !job.contains('/')) else {
        return refusal(StatusCode::NOT_FOUND, "there is nothing here");
    };
    if request.method() != Method::POST {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "a job is run with POST");
    }
    let given = request.headers().get(AUTHORIZATION);
    let given = given.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if !is_right(node, job, given.unwrap_or_default()).await {
        return refusal(
            StatusCode::UNAUTHORIZED,
            "the token is wrong, or the job has none",
        );
    }
    let asked = match node.control.start(job, Cause::Http).await {
        Ok(asked) => asked,
        Err(error @ ControlError::Stopped) => {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string());
        }
        Err(error) => return refusal(StatusCode::CONFLICT, &error.to_string()),
    };
    let run = match tokio::time::timeout(BEGINNING, asked.begun).await {
        Ok(Ok(run)) => Some(run),
        // It follows the one that is under way, or waits for its turn.
        Ok(Err(_)) | Err(_) => None,
    };
    reply(
        StatusCode::ACCEPTED,
        &serde_json::json!({ "job": job, "run": run }),
    )
}

async fn is_right(node: &Node, job: &str, given: &str) -> bool {
    let ask = |reply| desk::Request::Token(job.to_owned(), reply);
    let token = match node.counter.ask(ask).await {
        Ok(token) => token,
        Err(error) => {
            tracing::error!(job, "the job cannot be called: {error}");
            None
        }
    };
    let is_there = token.is_some();
    let token = token.unwrap_or_default();
    let is_long = token.len() >= LEAST_TOKEN_BYTES;
    if is_there && !is_long {
        tracing::error!(
            job,
            "its http_token is shorter than {LEAST_TOKEN_BYTES} bytes, and not accepted"
        );
    }
    // Hashes are compared in constant time, and say nothing of how much of a token was right.
    let same = blake3::hash(token.as_bytes()) == blake3::hash(given.as_bytes());
    is_there && is_long && same
}
