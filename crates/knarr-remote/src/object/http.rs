//! One HTTP client for everything a remote sends: connections are reused, nothing waits for ever,
//! and what the server says about checksums is compared on the way.
//!
//! Constraints: a request may take as long as its body needs on a slow line, and no longer. A
//! checksum that the server computed and that is not ours turns the answer into a failure, before
//! anybody can take it for a success.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{BackoffConfig, ClientOptions, HeaderValue, RetryConfig};

/// The slowest line on which a request body still counts as moving, in bytes per second.
const SLOWEST_LINE: u64 = 32 * 1024;

/// The checksums that the adapter can send, as headers.
const CHECKSUM_HEADERS: [(&str, &str); 2] = [
    ("crc64nvme", "x-amz-checksum-crc64nvme"),
    ("sha256", "x-amz-checksum-sha256"),
];

/// A checksum that the server confirmed for one request, in the extensions of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfirmedChecksum {
    /// Such as `crc64nvme`.
    pub(super) algorithm: &'static str,
    /// As the header has it.
    pub(super) value: String,
}

/// Gives everybody the same client.
#[derive(Debug, Clone)]
pub(super) struct SharedConnector(pub(super) HttpClient);

impl HttpConnector for SharedConnector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

/// Makes the client. `patience` is how long to wait for a connection, and for an answer once the
/// request was sent.
pub(super) fn client(
    patience: Duration,
    allow_http: bool,
) -> object_store::Result<(HttpClient, ClientOptions)> {
    let agent = HeaderValue::from_static(concat!("knarr/", env!("CARGO_PKG_VERSION")));
    let options = ClientOptions::new()
        .with_allow_http(allow_http)
        .with_user_agent(agent)
        .with_connect_timeout(patience.min(Duration::from_secs(10)))
        // Answers are limited below, by what they carry.
        .with_timeout_disabled()
        .with_pool_idle_timeout(Duration::from_secs(55));
    let inner = ReqwestConnector::default().connect(&options)?;
    Ok((HttpClient::new(Patient { inner, patience }), options))
}

/// How often, and how long, one request is repeated below the engine's own repetitions.
pub(super) fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 5,
        retry_timeout: Duration::from_secs(30),
    }
}

/// How long the `attempt`-th repetition (from 0) waits.
pub(super) fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(100)
        .saturating_mul(1 << attempt.min(10))
        .min(Duration::from_secs(5))
}

struct Patient {
    inner: HttpClient,
    patience: Duration,
}

/// The headers of requests are signed and never shown.
impl fmt::Debug for Patient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patient")
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// Why an answer does not count.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadAnswer {
    /// There was none in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The server has other bytes than were sent.
    #[error("the server computed another {algorithm} checksum ({theirs}) than was sent ({ours})")]
    Checksum {
        algorithm: &'static str,
        ours: String,
        theirs: String,
    },
}

#[async_trait]
impl HttpService for Patient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let sending = request.body().content_length() as u64 / SLOWEST_LINE;
        let limit = self.patience + Duration::from_secs(sending);
        let sent = CHECKSUM_HEADERS
            .into_iter()
            .find_map(|(algorithm, header)| {
                Some((algorithm, header, request.headers().get(header)?.clone()))
            });
        let mut response = match tokio::time::timeout(limit, self.inner.execute(request)).await {
            Ok(answer) => answer?,
            Err(_elapsed) => {
                return Err(HttpError::new(
                    HttpErrorKind::Timeout,
                    BadAnswer::TimedOut(limit),
                ));
            }
        };
        if let Some((algorithm, header, ours)) = sent
            && response.status().is_success()
            && let Some(theirs) = response.headers().get(header)
        {
            if *theirs != ours {
                let show =
                    |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
                let (ours, theirs) = (show(&ours), show(theirs));
                let bad = BadAnswer::Checksum {
                    algorithm,
                    ours,
                    theirs,
                };
                return Err(HttpError::new(HttpErrorKind::Decode, bad));
            }
            let value = String::from_utf8_lossy(ours.as_bytes()).into_owned();
            response
                .extensions_mut()
                .insert(ConfirmedChecksum { algorithm, value });
        }
        Ok(response)
    }
}
