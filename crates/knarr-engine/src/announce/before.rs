//! What has to succeed before a run looks at its source: a request, a connection, a command.
//!
//! Constraints: a check takes at most its time-out for each of at most [`MOST_ATTEMPTS`] attempts; a
//! command is named by the local configuration file alone (K12), which [`LocalFile`] witnesses; no text
//! holds a secret.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use knarr_core::units::Span;
use knarr_store::secrets::SecretValue;
use reqwest::{Client, Method, Url};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::outbox::shape::{CommandShape, Fetch, SecretRef, ShapeError, UrlShape, certificates};
use crate::outbox::{CommandTarget, LocalFile, WebhookError, webhook_url};

/// How often a check is tried at most.
pub const MOST_ATTEMPTS: u32 = 100;
/// How long a request or a connection may take.
const LIMIT: Duration = Duration::from_secs(30);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_secs(5);

/// What is done before a run. Exactly one of `http`, `tcp` and `command`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BeforeShape {
    /// An HTTP request that has to be answered as expected.
    pub http: Option<HttpShape>,
    /// A port that has to take a connection.
    pub tcp: Option<TcpShape>,
    /// A command that has to succeed. Only in the configuration file.
    pub command: Option<CommandShape>,
    /// How often it is tried; 1 by default.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: Option<u32>,
    /// The pause between two attempts; 5s by default.
    pub pause: Option<Span>,
}

/// An HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpShape {
    /// Where; https, or http to this machine.
    pub url: UrlShape,
    /// `get` (default), `head` or `post` (without a body).
    #[serde(default)]
    pub method: HttpMethod,
    /// The status codes that are good; any from 200 to 299 by default.
    #[serde(default)]
    pub expect: Vec<u16>,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<SecretRef>,
    /// A file with certificates (PEM) that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// How long it may take; 30s by default.
    pub timeout: Option<Span>,
}

/// The method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HttpMethod {
    /// Asks for a resource.
    #[default]
    Get,
    /// Asks for its headers.
    Head,
    /// Sends nothing, to something that acts on it.
    Post,
}

/// A port of a host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpShape {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
    /// How long a connection may take; 30s by default.
    pub timeout: Option<Span>,
}

/// What is checked, once.
#[async_trait]
trait Check: Send + Sync + std::fmt::Debug {
    async fn check(&self, job: &str, run: u64) -> Result<(), String>;
}

/// Something that has to succeed before a run looks at its source.
#[derive(Debug)]
pub struct Before {
    check: Box<dyn Check>,
    attempts: u32,
    pause: Duration,
}

impl Before {
    /// Makes it of what stands in the local configuration file `file`.
    ///
    /// # Errors
    /// If it cannot be used as it stands.
    pub fn make(
        shape: BeforeShape,
        file: &LocalFile,
        fetch: &Fetch<'_>,
    ) -> Result<Self, ShapeError> {
        let check: Box<dyn Check> = match (shape.http, shape.tcp, shape.command) {
            (Some(http), None, None) => Box::new(HttpCheck::make(http, fetch)?),
            (None, Some(tcp), None) => Box::new(TcpCheck(tcp)),
            (None, None, Some(command)) => {
                Box::new(CommandCheck(CommandTarget::new(command.into(), file)?))
            }
            _ => return Err(ShapeError::BeforeKind),
        };
        Ok(Self {
            check,
            attempts: shape.attempts.unwrap_or(1).clamp(1, MOST_ATTEMPTS),
            pause: shape.pause.map_or(PAUSE, |pause| pause.0),
        })
    }

    /// Does it, as often as needed and allowed. `Err` says why the run must not begin.
    pub(crate) async fn hold(
        &self,
        job: &str,
        run: u64,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let mut attempt = 1;
        loop {
            let failed = tokio::select! {
                () = cancel.cancelled() => return Err("it was stopped".to_owned()),
                done = self.check.check(job, run) => match done {
                    Ok(()) => return Ok(()),
                    Err(failed) => failed,
                },
            };
            if attempt >= self.attempts {
                let times = if attempt > 1 {
                    format!(" ({attempt} attempts)")
                } else {
                    String::new()
                };
                return Err(format!("{failed}{times}"));
            }
            attempt += 1;
            tokio::select! {
                () = cancel.cancelled() => return Err("it was stopped".to_owned()),
                () = tokio::time::sleep(self.pause) => {}
            }
        }
    }
}

impl BeforeShape {
    /// Whether it is exactly one thing, and that can be done, as far as that can be told without secrets
    /// and without reading files.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, file: &LocalFile) -> Result<(), ShapeError> {
        match (&self.http, &self.tcp, &self.command) {
            (Some(http), None, None) => match &http.url {
                UrlShape::Plain(url) => Ok(webhook_url(url).map(drop)?),
                UrlShape::Secret(_) => Ok(()),
            },
            (None, Some(_), None) => Ok(()),
            (None, None, Some(command)) => {
                Ok(CommandTarget::new(command.clone().into(), file).map(drop)?)
            }
            _ => Err(ShapeError::BeforeKind),
        }
    }
}

/// Shows no secret.
struct HttpCheck {
    client: Client,
    url: Url,
    shown: String,
    method: Method,
    expect: Vec<u16>,
    token: Option<SecretValue>,
    limit: Duration,
}

impl std::fmt::Debug for HttpCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpCheck")
            .field("url", &self.shown)
            .finish_non_exhaustive()
    }
}

impl HttpCheck {
    fn make(shape: HttpShape, fetch: &Fetch<'_>) -> Result<Self, ShapeError> {
        let url = match shape.url {
            UrlShape::Plain(url) => SecretValue::new(url.into_bytes()),
            UrlShape::Secret(secret) => fetch(&secret).map_err(ShapeError::Secret)?,
        };
        let token = shape.token.as_ref().map(fetch).transpose();
        let (url, shown, is_here) = webhook_url(url.as_text().unwrap_or_default())?;
        let limit = shape.timeout.map_or(LIMIT, |limit| limit.0);
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(limit)
            .user_agent(concat!("knarr/", env!("CARGO_PKG_VERSION")));
        if is_here {
            builder = builder.no_proxy();
        }
        if let Some(pem) = certificates(shape.ca.as_deref())? {
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|_not_pem| WebhookError::Certificates)?;
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder
            .build()
            .map_err(|error| WebhookError::Client(crate::error::chain(&error)))?;
        Ok(Self {
            client,
            url,
            shown,
            method: match shape.method {
                HttpMethod::Get => Method::GET,
                HttpMethod::Head => Method::HEAD,
                HttpMethod::Post => Method::POST,
            },
            expect: shape.expect,
            token: token.map_err(ShapeError::Secret)?,
            limit,
        })
    }
}

#[async_trait]
impl Check for HttpCheck {
    async fn check(&self, _job: &str, _run: u64) -> Result<(), String> {
        let mut request = self.client.request(self.method.clone(), self.url.clone());
        if let Some(token) = self.token.as_ref().and_then(SecretValue::as_text) {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.map_err(|error| {
            if error.is_timeout() {
                format!("{} gave no answer within {}", self.shown, Span(self.limit))
            } else {
                let why = crate::error::chain(&error.without_url());
                format!("{} cannot be reached: {why}", self.shown)
            }
        })?;
        let status = answer.status();
        let good = if self.expect.is_empty() {
            status.is_success()
        } else {
            self.expect.contains(&status.as_u16())
        };
        if good {
            Ok(())
        } else {
            Err(format!("{} answered {}", self.shown, status.as_u16()))
        }
    }
}

#[derive(Debug)]
struct TcpCheck(TcpShape);

#[async_trait]
impl Check for TcpCheck {
    async fn check(&self, _job: &str, _run: u64) -> Result<(), String> {
        let TcpShape {
            host,
            port,
            timeout,
        } = &self.0;
        let limit = timeout.map_or(LIMIT, |limit| limit.0);
        let connecting = tokio::net::TcpStream::connect((host.as_str(), *port));
        match tokio::time::timeout(limit, connecting).await {
            Ok(Ok(_open)) => Ok(()),
            Ok(Err(error)) => Err(format!("{host}:{port} takes no connection: {error}")),
            Err(_elapsed) => Err(format!(
                "{host}:{port} takes no connection within {}",
                Span(limit)
            )),
        }
    }
}

#[derive(Debug)]
struct CommandCheck(CommandTarget);

#[async_trait]
impl Check for CommandCheck {
    async fn check(&self, job: &str, run: u64) -> Result<(), String> {
        let values = vec![
            ("kind".to_owned(), "before".into()),
            ("job".to_owned(), job.into()),
            ("run".to_owned(), run.to_string().into()),
        ];
        let done = self.0.run(values).await;
        done.map(drop).map_err(|error| error.to_string())
    }
}
