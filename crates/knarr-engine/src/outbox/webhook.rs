//! A webhook: the message as JSON, signed, over HTTPS.
//!
//! Constraints: certificates are verified; a redirect is not followed, since it would carry the message to
//! where nobody sent it; of an answer at most [`ANSWER_BYTES`] are read. The signature covers the time and
//! the body, `HMAC-SHA256(secret, timestamp + "." + body)`, so that an old request cannot be sent again as
//! a new one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use knarr_core::{Clock, Timestamp};
use knarr_store::secrets::SecretValue;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Client, Response, StatusCode, Url};

use crate::outbox::{LONGEST_PAUSE, Message, Receipt, Target, TargetError, quoted};

/// How much of an answer is read.
const ANSWER_BYTES: usize = 4 * 1024;
/// How much of it is kept.
const KEPT_BYTES: usize = 500;
/// How long to wait for a connection, at most.
const CONNECT: Duration = Duration::from_secs(10);

/// How to reach a webhook.
#[derive(Debug, Clone)]
pub struct WebhookOptions {
    /// Where; may be a secret as a whole, as those of chat programs are.
    pub url: SecretValue,
    /// Signs every request.
    pub secret: Option<SecretValue>,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<SecretValue>,
    /// Certificates that are trusted besides the system's, in PEM.
    pub certificates: Option<Vec<u8>>,
    /// How long a request may take in all.
    pub limit: Duration,
}

/// Sends messages to a webhook.
pub struct WebhookTarget {
    client: Client,
    url: Url,
    /// What may be shown of the URL: without path, query and user.
    shown: String,
    options: WebhookOptions,
    key: Option<hmac::Key>,
    clock: Arc<dyn Clock>,
}

/// Shows no secret.
impl fmt::Debug for WebhookTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookTarget")
            .field("url", &self.shown)
            .finish_non_exhaustive()
    }
}

/// Why there can be no such webhook.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The URL is none.
    #[error("the URL of a webhook is not valid: {0}")]
    Url(String),
    /// Everybody on the way could read it.
    #[error("`{0}` is not encrypted: use https (http is for this machine only)")]
    Plain(String),
    /// The certificates cannot be read.
    #[error("the certificates for a webhook are not in PEM format")]
    Certificates,
    /// TLS cannot be set up.
    #[error("cannot set up HTTPS: {0}")]
    Client(String),
}

impl WebhookTarget {
    /// A webhook.
    ///
    /// # Errors
    /// If the URL or the certificates are not valid.
    pub fn new(options: WebhookOptions, clock: Arc<dyn Clock>) -> Result<Self, WebhookError> {
        let (url, shown, is_here) = webhook_url(options.url.as_text().unwrap_or_default())?;
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT.min(options.limit))
            .timeout(options.limit)
            .pool_idle_timeout(Duration::from_secs(30))
            .user_agent(concat!("knarr/", env!("CARGO_PKG_VERSION")));
        if is_here {
            builder = builder.no_proxy();
        }
        if let Some(pem) = &options.certificates {
            let certificates =
                Certificate::from_pem_bundle(pem).map_err(|_not_pem| WebhookError::Certificates)?;
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder
            .build()
            .map_err(|error| WebhookError::Client(crate::error::chain(&error)))?;
        let key = options
            .secret
            .as_ref()
            .map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
        Ok(Self {
            client,
            url,
            shown,
            options,
            key,
            clock,
        })
    }

    fn secrets(&self) -> Vec<&[u8]> {
        let options = &self.options;
        let named = [
            Some(&options.url),
            options.secret.as_ref(),
            options.token.as_ref(),
        ];
        let named = named.into_iter().flatten().map(SecretValue::as_bytes);
        // Those of chat programs stand in the path, which servers like to repeat.
        let parts = [Some(self.url.path()), self.url.query()];
        let parts = parts.into_iter().flatten().filter(|part| part.len() > 8);
        named.chain(parts.map(str::as_bytes)).collect()
    }

    fn no_answer(&self, error: reqwest::Error) -> TargetError {
        let is_connecting = error.is_connect();
        let is_late = error.is_timeout() && !is_connecting;
        let why = crate::error::chain(&error.without_url());
        let why = quoted(why.as_bytes(), KEPT_BYTES, &self.secrets());
        let reason = if is_late {
            let limit = knarr_core::units::Span(self.options.limit);
            format!("{} gave no answer within {limit}", self.shown)
        } else {
            format!("{} cannot be reached: {why}", self.shown)
        };
        if is_connecting {
            TargetError::unreachable(reason)
        } else {
            TargetError::failed(reason)
        }
    }

    fn judge(&self, status: StatusCode, pause: Option<Duration>, text: &str) -> TargetError {
        let said = if text.is_empty() {
            String::new()
        } else {
            format!(": {text}")
        };
        let reason = format!("{} answered {}{said}", self.shown, status.as_u16());
        match status.as_u16() {
            // The receiver as a whole, not this message.
            429 | 502 | 503 | 504 => TargetError::Unreachable {
                reason,
                retry_after: pause,
            },
            // Whoever gave the address or the secret has to mend it; nothing is wrong with the message.
            401 | 403 | 404 | 407 => TargetError::unreachable(reason),
            408 | 425 => TargetError::failed(reason),
            300..=399 => TargetError::refused(format!(
                "{reason}; redirects are not followed, name the final URL"
            )),
            400..=499 => TargetError::refused(reason),
            _ => TargetError::failed(reason),
        }
    }
}

#[async_trait]
impl Target for WebhookTarget {
    async fn deliver(&self, message: &Message) -> Result<Receipt, TargetError> {
        let body = message.body();
        let now = self.clock.now();
        let timestamp = now.seconds().to_string();
        let mut request = self
            .client
            .post(self.url.clone())
            .header("Content-Type", "application/json")
            .header("Knarr-Id", &message.key)
            .header("Knarr-Timestamp", &timestamp);
        if let Some(key) = &self.key {
            request = request.header("Knarr-Signature", signature(key, &timestamp, &body));
        }
        if let Some(token) = self.options.token.as_ref().and_then(SecretValue::as_text) {
            request = request.bearer_auth(token);
        }
        let mut response = request
            .body(body)
            .send()
            .await
            .map_err(|error| self.no_answer(error))?;
        let status = response.status();
        let pause = retry_after(response.headers(), now);
        let text = quoted(&read(&mut response).await, KEPT_BYTES, &self.secrets());
        if status.is_success() {
            return Ok(Receipt { output: text });
        }
        Err(self.judge(status, pause, &text))
    }
}

/// A URL that messages may go to, what may be shown of it, and whether it is on this machine.
pub(crate) fn webhook_url(text: &str) -> Result<(Url, String, bool), WebhookError> {
    let url = Url::parse(text).map_err(|error| WebhookError::Url(error.to_string()))?;
    let host = url.host_str().unwrap_or_default();
    let port = url
        .port()
        .map_or_else(String::new, |port| format!(":{port}"));
    let shown = format!("{}://{host}{port}", url.scheme());
    let is_here = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
    match url.scheme() {
        "https" => {}
        "http" if is_here => {}
        "http" => return Err(WebhookError::Plain(shown)),
        other => return Err(WebhookError::Url(format!("`{other}` is not https"))),
    }
    Ok((url, shown, is_here))
}

/// `v1=` and the signature in hexadecimal digits.
fn signature(key: &hmac::Key, timestamp: &str, body: &str) -> String {
    let mut context = hmac::Context::with_key(key);
    for part in [timestamp, ".", body] {
        context.update(part.as_bytes());
    }
    let tag = context.sign();
    let hex: String = tag
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("v1={hex}")
}

/// What the answer says; an answer that breaks off says less.
async fn read(response: &mut Response) -> Vec<u8> {
    let mut text = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = ANSWER_BYTES.saturating_sub(text.len());
        text.extend(chunk.iter().take(room));
        if text.len() >= ANSWER_BYTES {
            break;
        }
    }
    text
}

/// How long the receiver asks to be left alone, in seconds or until a date; bounded.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_not_a_number) => {
            let date = jiff::fmt::rfc2822::parse(text).ok()?;
            Timestamp::from_seconds(date.timestamp().as_second()).since(now)
        }
    };
    Some(pause.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_others_compute() {
        // printf '1800000000.{"a":1}' | openssl dgst -sha256 -hmac key
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        let tag = signature(&key, "1800000000", r#"{"a":1}"#);
        assert_eq!(
            tag,
            "v1=7330c9cf7d886970cbebbbb5494c04d2aeff06a990adb7d7a75abfeb0159d291"
        );
    }

    #[test]
    fn a_pause_is_read_in_seconds_and_as_a_date_and_is_bounded() {
        let now = Timestamp::from_seconds(784_111_777);
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            read("Sun, 06 Nov 1994 08:50:37 GMT"),
            Some(Duration::from_secs(60))
        );
        assert_eq!(read("99999999"), Some(LONGEST_PAUSE));
        assert_eq!(read("soon"), None);
    }
}
