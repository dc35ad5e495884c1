//! Why a connection could not be made, in words that say what to do.

use std::error::Error as StdError;
use std::time::Duration;

use crate::error::{ErrorKind, RemoteError, Retry};
use crate::ssh::KnownHostsError;

/// Why there is no SFTP on a connection.
#[derive(Debug, thiserror::Error)]
pub enum SftpError {
    /// No channel for it.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The channel is there, and what is at its other end does not begin to speak SFTP.
    #[error("no SFTP session")]
    Start(#[source] knarr_sftp::Error),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The server does not answer, or the line broke.
    #[error("{target} cannot be reached")]
    Unreachable {
        /// Which server.
        target: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server was silent for too long.
    #[error("{target} did not answer within {} s while {doing}", limit.as_secs_f64())]
    Silent {
        /// Which server.
        target: String,
        /// What was being done.
        doing: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The two sides could not agree on how to talk.
    #[error("no safe connection to {target} can be agreed on")]
    Negotiation {
        /// Which server.
        target: String,
        /// Why.
        #[source]
        source: Box<russh::Error>,
    },
    /// What was agreed on is not safe.
    #[error(
        "{target} offers only {weak} without strict key exchange, which can be attacked (Terrapin): the server needs an update"
    )]
    Weak {
        /// Which server.
        target: String,
        /// What is weak.
        weak: &'static str,
    },
    /// Nothing is known about the host.
    #[error(
        "the host key of {host} is not known: {key}. Compare it with the server's own (`ssh-keygen -lf` there), then add it to {files} or pin it as `host_key`"
    )]
    UnknownHostKey {
        /// The host, with its port where that is not 22.
        host: String,
        /// Type and fingerprint of the key it presents.
        key: String,
        /// The files that were looked at.
        files: String,
    },
    /// The host presents another key than it should.
    #[error(
        "THE HOST KEY OF {host} HAS CHANGED: it presents {key}, but {expected}. Somebody may be listening in, or the server was set up anew. Nothing was sent. If the change is genuine, {remedy}"
    )]
    HostKeyChanged {
        /// The host, with its port where that is not 22.
        host: String,
        /// Type and fingerprint of the key it presents.
        key: String,
        /// What was expected instead, and where that stands.
        expected: String,
        /// What to do.
        remedy: String,
    },
    /// The host presents a key that was revoked.
    #[error("the host key of {host}, {key}, was revoked by {place}. Nothing was sent")]
    HostKeyRevoked {
        /// The host, with its port where that is not 22.
        host: String,
        /// Type and fingerprint of the key it presents.
        key: String,
        /// The line that revokes it.
        place: String,
    },
    /// The host presents a certificate that does not hold.
    #[error("the host certificate of {host} is refused: {reason}")]
    HostCertificate {
        /// The host, with its port where that is not 22.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// What is known about hosts cannot be told.
    #[error("the host key of {host} cannot be checked")]
    KnownHosts {
        /// The host, with its port where that is not 22.
        host: String,
        /// Why.
        #[source]
        source: KnownHostsError,
    },
    /// Nobody let us in.
    #[error(
        "{target} does not let us in. Tried: {}. The server accepts: {accepted}",
        list(tried)
    )]
    Refused {
        /// Which server.
        target: String,
        /// What was tried, and how each ended.
        tried: Vec<String>,
        /// What the server said that it accepts.
        accepted: String,
    },
    /// A key that was asked for cannot be used.
    #[error("the key {path} cannot be used: {reason}")]
    Key {
        /// The file.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The server lets us in, but not to where we want.
    #[error("{target} does not offer {what}")]
    NotOffered {
        /// Which server.
        target: String,
        /// What was asked for.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<russh::Error>>,
    },
}

fn list(tried: &[String]) -> String {
    if tried.is_empty() {
        "nothing, as nothing was given".to_owned()
    } else {
        tried.join("; ")
    }
}

impl SshError {
    /// What kind of trouble it is for the caller.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } => ErrorKind::Unreachable,
            Self::Negotiation { .. } | Self::Weak { .. } => ErrorKind::Protocol,
            Self::UnknownHostKey { .. }
            | Self::HostKeyChanged { .. }
            | Self::HostKeyRevoked { .. }
            | Self::HostCertificate { .. }
            | Self::KnownHosts { .. } => ErrorKind::HostKey,
            Self::Refused { .. } | Self::Key { .. } => ErrorKind::Authentication,
            Self::NotOffered { .. } => ErrorKind::Unsupported,
        }
    }

    /// Whether connecting again later can help. A changed or unknown key never does by itself.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self.kind() {
            ErrorKind::Unreachable => Retry::EndpointDown,
            _ => Retry::Never,
        }
    }

    /// The same as an error of a place, with its cause below it.
    #[must_use]
    pub fn into_remote(self, operation: impl Into<String>) -> RemoteError {
        let error =
            RemoteError::new(self.kind(), operation, self.to_string()).with_retry(self.retry());
        // What this error says is in the message already; only what is below it is new.
        match self {
            Self::Unreachable { source, .. } => error.caused_by(source),
            Self::Negotiation { source, .. } => error.caused_by(source),
            Self::KnownHosts { source, .. } => error.caused_by(source),
            Self::NotOffered {
                source: Some(source),
                ..
            } => error.caused_by(source),
            _ => error,
        }
    }
}
