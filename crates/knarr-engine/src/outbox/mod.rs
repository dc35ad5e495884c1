//! The outbox: hooks and alerts on their way to whoever is to hear of them.
//!
//! Constraints:
//!
//! * A message is a row that was written with the record of what it is about (K3, K8), so it is delivered
//!   at least once, and never about something that did not happen. Every attempt carries the same key.
//! * Each target has a task of its own and at most [`TargetOptions::at_once`] deliveries under way; one
//!   that hangs holds up nobody else, and transfers never wait for any.
//! * What is of one job and one target keeps its order. At most [`PAGE`] messages, and some MiB, of a lane
//!   are in memory.
//! * A target that is down is a state of the target: its messages wait without an attempt being counted,
//!   and one probe with backoff asks until it is back. A message that fails by itself is parked after its
//!   last attempt, where a person sees it.
//! * No secret is in a message, in an error or in what `Debug` shows. A command is named by the local
//!   configuration file alone (K12): a message has no place to put one.

mod alerting;
mod command;
mod email;
mod lane;
mod message;
pub mod notifier;
pub mod shape;
mod webhook;
mod worker;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use knarr_core::retry::RetryPolicy;

pub use alerting::Alerting;
pub use command::{CommandError, CommandOptions, CommandTarget, LocalFile, PLACEHOLDERS};
pub use email::{EmailError, EmailOptions, EmailSecurity, EmailTarget};
pub use message::{AlertFacts, FileFacts, Message, RunFacts};
pub(crate) use webhook::webhook_url;
pub use webhook::{WebhookError, WebhookOptions, WebhookTarget};
pub use worker::{PAGE, Waker, Worker};

/// The longest pause that a target may ask for.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// Where messages go.
#[async_trait]
pub trait Target: Send + Sync + fmt::Debug {
    /// Delivers one message; answers when the receiver has it. May be dropped while under way, and leaves
    /// nothing running then.
    ///
    /// # Errors
    /// Why it was not delivered, and what that means for this message and for others.
    async fn deliver(&self, message: &Message) -> Result<Receipt, TargetError>;
}

/// What the receiver said, cut to a bounded length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receipt {
    /// Its words, if it had any.
    pub output: String,
}

/// Why a message was not delivered. The texts hold no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The target takes nothing just now, whatever the message.
    #[error("{reason}")]
    Unreachable {
        /// What and why.
        reason: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// This message failed; another attempt may work.
    #[error("{reason}")]
    Failed {
        /// What and why.
        reason: String,
    },
    /// This message will never be taken as it is.
    #[error("{reason}")]
    Refused {
        /// What and why.
        reason: String,
    },
}

impl TargetError {
    pub(crate) fn unreachable(reason: impl Into<String>) -> Self {
        Self::Unreachable {
            reason: reason.into(),
            retry_after: None,
        }
    }

    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self::Failed {
            reason: reason.into(),
        }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused {
            reason: reason.into(),
        }
    }
}

/// How a target is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetOptions {
    /// The most deliveries at once, of different jobs.
    pub at_once: usize,
    /// How a message that fails is repeated. The pauses also space the probes of a target that is down.
    pub retry: RetryPolicy,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            at_once: 4,
            // Well over an hour in all: what breaks in the evening is mended in the evening.
            retry: RetryPolicy {
                attempts: 12,
                from: Duration::from_secs(5),
                to: Duration::from_secs(1_800),
            },
        }
    }
}

/// Text of a receiver, fit for a record: printable, cut to `limit` bytes, without these secrets.
pub(crate) fn quoted(bytes: &[u8], limit: usize, secrets: &[&[u8]]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    for secret in secrets {
        // A word of one or two letters is no secret, and would take the text apart.
        if let Ok(secret) = std::str::from_utf8(secret)
            && secret.len() > 2
        {
            text = text.replace(secret, "…");
        }
    }
    let text: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect();
    let end = text.floor_char_boundary(limit);
    text.get(..end).unwrap_or_default().to_owned()
}
