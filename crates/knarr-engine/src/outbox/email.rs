//! E-mail: one plain text for each message, over SMTP with TLS.
//!
//! Constraints: without TLS only to this machine. The Message-ID is made of the message's key, so that
//! what is sent twice after a crash is one mail in most programs. Nothing from a message gets into a
//! header but the subject, which is encoded.

use std::fmt::{self, Write as _};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;
use knarr_store::secrets::SecretValue;
use lettre::address::Envelope;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use serde_json::Value;

use crate::outbox::{Message, Receipt, Target, TargetError, quoted};

/// How much of what a server said is kept.
const KEPT_BYTES: usize = 500;
/// The longest subject, in bytes.
const SUBJECT_BYTES: usize = 400;
/// The bytes of one encoded word of a subject: 75 characters with their frame.
const WORD_BYTES: usize = 42;

/// How the connection is encrypted.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EmailSecurity {
    /// By STARTTLS, which the server has to offer; port 587.
    #[default]
    Starttls,
    /// From the first byte; port 465.
    Tls,
    /// Not at all, which is for a server on this machine only; port 25.
    None,
}

/// How to send mails.
#[derive(Debug, Clone)]
pub struct EmailOptions {
    /// The host of the SMTP server.
    pub host: String,
    /// Its port; that of the security by default.
    pub port: Option<u16>,
    /// How the connection is encrypted.
    pub security: EmailSecurity,
    /// The user, and the password.
    pub login: Option<(String, SecretValue)>,
    /// The address of the sender.
    pub from: String,
    /// The addresses of the receivers.
    pub to: Vec<String>,
    /// Certificates that are trusted besides the system's, in PEM.
    pub certificates: Option<Vec<u8>>,
    /// How long one mail may take in all.
    pub limit: Duration,
}

/// Why mails cannot be sent like this.
#[derive(Debug, thiserror::Error)]
pub enum EmailError {
    /// Not an address.
    #[error("`{0}` is not an e-mail address")]
    Address(String),
    /// Nobody to send it to.
    #[error("an e-mail target needs somebody in `to`")]
    Nobody,
    /// Everybody on the way could read it.
    #[error(
        "mail to {0} would not be encrypted: use `security: starttls` or `tls` (`none` is for this \
         machine only)"
    )]
    Plain(String),
    /// The password is not text.
    #[error("the password for {0} is not UTF-8")]
    Password(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS for mail to {host}: {reason}")]
    Tls {
        /// The server.
        host: String,
        /// Why.
        reason: String,
    },
}

/// Sends messages as mails.
pub struct EmailTarget {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    envelope: Envelope,
    options: EmailOptions,
}

/// Shows no secret.
impl fmt::Debug for EmailTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmailTarget")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Whether mails can be sent from and to these addresses.
pub(super) fn check_addresses(from: &str, to: &[String]) -> Result<(), EmailError> {
    envelope(from, to).map(drop)
}

fn envelope(from: &str, to: &[String]) -> Result<Envelope, EmailError> {
    let address = |text: &str| {
        text.parse::<Address>()
            .map_err(|_not_one| EmailError::Address(text.to_owned()))
    };
    let receivers = to.iter().map(|text| address(text));
    let receivers = receivers.collect::<Result<Vec<_>, _>>()?;
    Envelope::new(Some(address(from)?), receivers).map_err(|_nobody| EmailError::Nobody)
}

impl EmailTarget {
    /// Mails from the node of this name.
    ///
    /// # Errors
    /// If an address is not valid or the connection would not be encrypted.
    pub fn new(options: EmailOptions, node: &str) -> Result<Self, EmailError> {
        let envelope = envelope(&options.from, &options.to)?;
        let host = &options.host;
        let is_here = ["localhost", "127.0.0.1", "::1"].contains(&host.as_str());
        let (tls, port) = match options.security {
            EmailSecurity::Starttls => (Tls::Required(parameters(&options)?), 587),
            EmailSecurity::Tls => (Tls::Wrapper(parameters(&options)?), 465),
            EmailSecurity::None if is_here => (Tls::None, 25),
            EmailSecurity::None => return Err(EmailError::Plain(host.clone())),
        };
        let hello: String = node
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '-' || c == '.' {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        // Nothing is dangerous about it: the security is chosen above.
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(options.port.unwrap_or(port))
            .tls(tls)
            .hello_name(ClientId::Domain(hello))
            .timeout(Some(options.limit));
        if let Some((user, password)) = &options.login {
            let password = password
                .as_text()
                .ok_or_else(|| EmailError::Password(host.clone()))?;
            builder = builder.credentials(Credentials::new(user.clone(), password.to_owned()));
        }
        Ok(Self {
            transport: builder.build(),
            envelope,
            options,
        })
    }

    /// The mail, headers and all.
    fn mail(&self, message: &Message) -> String {
        let options = &self.options;
        let domain = options
            .from
            .rsplit_once('@')
            .map_or("knarr", |(_, domain)| domain);
        let date = message.created_at.to_calendar().to_zoned(TimeZone::UTC);
        let date = jiff::fmt::rfc2822::to_string(&date).unwrap_or_default();
        let mut mail = String::new();
        let mut header = |name: &str, value: &str| {
            mail.push_str(name);
            mail.push_str(": ");
            mail.push_str(value);
            mail.push_str("\r\n");
        };
        header("Date", &date);
        header("From", &options.from);
        header("To", &options.to.join(",\r\n "));
        header("Subject", &subject(&message.title()));
        header("Message-ID", &format!("<{}@{domain}>", message.key));
        header("Auto-Submitted", "auto-generated");
        header("MIME-Version", "1.0");
        header("Content-Type", "text/plain; charset=utf-8");
        header("Content-Transfer-Encoding", "base64");
        mail.push_str("\r\n");
        let encoded = STANDARD.encode(text(message));
        for (index, character) in encoded.chars().enumerate() {
            if index > 0 && index % 76 == 0 {
                mail.push_str("\r\n");
            }
            mail.push(character);
        }
        mail.push_str("\r\n");
        mail
    }

    fn judge(&self, error: &lettre::transport::smtp::Error) -> TargetError {
        let password = self
            .options
            .login
            .as_ref()
            .map(|(_, secret)| secret.as_bytes());
        let secrets: Vec<&[u8]> = password.into_iter().collect();
        let why = quoted(crate::error::chain(error).as_bytes(), KEPT_BYTES, &secrets);
        let reason = format!("mail by {}: {why}", self.options.host);
        // 530 to 538 are about the log-in: the server as a whole, not this message.
        let code = error.status().map(|code| code.to_string());
        let is_login = code.as_ref().is_some_and(|code| code.starts_with("53"));
        if is_login || (error.status().is_none() && !error.is_permanent()) {
            TargetError::unreachable(reason)
        } else if error.is_permanent() {
            TargetError::refused(reason)
        } else {
            TargetError::failed(reason)
        }
    }
}

fn parameters(options: &EmailOptions) -> Result<TlsParameters, EmailError> {
    let broken = |reason: String| EmailError::Tls {
        host: options.host.clone(),
        reason,
    };
    let mut builder = TlsParameters::builder(options.host.clone());
    if let Some(pem) = &options.certificates {
        let certificate =
            Certificate::from_pem(pem).map_err(|error| broken(crate::error::chain(&error)))?;
        builder = builder.add_root_certificate(certificate);
    }
    builder
        .build_rustls()
        .map_err(|error| broken(crate::error::chain(&error)))
}

/// A subject in encoded words, whatever is in it.
fn subject(title: &str) -> String {
    let title = quoted(title.replace('\n', " ").as_bytes(), SUBJECT_BYTES, &[]);
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    for character in title.chars() {
        if word.len() + character.len_utf8() > WORD_BYTES {
            words.push(std::mem::take(&mut word));
        }
        word.push(character);
    }
    words.push(word);
    let words: Vec<String> = words
        .iter()
        .map(|word| format!("=?utf-8?B?{}?=", STANDARD.encode(word)))
        .collect();
    words.join("\r\n ")
}

fn text(message: &Message) -> String {
    let mut text = format!("{}\r\n\r\n", message.title());
    let mut line = |name: &str, value: &str| {
        // A line break in a value must not look like another line of ours.
        let value = value.replace(['\r', '\n'], " ");
        write!(text, "{name}: {value}\r\n").expect("a string takes everything");
    };
    line("node", &message.node);
    if !message.job.is_empty() {
        line("job", &message.job);
    }
    if let Some(run) = message.run {
        line("run", &run.to_string());
    }
    for (name, value) in message.values() {
        if !["key", "kind", "node", "job", "run", "text"].contains(&name.as_str()) {
            line(&name, &value.to_string_lossy());
        }
    }
    if let Value::String(raw) = &message.facts {
        line("data", raw);
    }
    line("id", &message.key);
    text
}

#[async_trait]
impl Target for EmailTarget {
    async fn deliver(&self, message: &Message) -> Result<Receipt, TargetError> {
        let mail = self.mail(message);
        let sending = self.transport.send_raw(&self.envelope, mail.as_bytes());
        match tokio::time::timeout(self.options.limit, sending).await {
            Ok(Ok(response)) => {
                let said: Vec<&str> = response.message().collect();
                Ok(Receipt {
                    output: quoted(said.join(" ").as_bytes(), KEPT_BYTES, &[]),
                })
            }
            Ok(Err(error)) => Err(self.judge(&error)),
            Err(_elapsed) => {
                let limit = knarr_core::units::Span(self.options.limit);
                let host = &self.options.host;
                Err(TargetError::failed(format!(
                    "the mail server {host} was not done within {limit}"
                )))
            }
        }
    }
}
