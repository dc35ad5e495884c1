//! Why a request is refused, and why a connection ends.

use std::io;

use crate::codec::{CodecError, StatusCode};

/// Why a request was not carried out. Its text is what the client is told: it never carries a name, which
/// the client knows anyway.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Nothing is there.
    #[error("no such file or directory")]
    NotFound,
    /// It is not allowed; the reason is for the client to read.
    #[error("permission denied: {reason}")]
    Denied {
        /// Why, in a few words.
        reason: &'static str,
    },
    /// It cannot be done; the reason is for the client to read.
    #[error("{reason}")]
    Refused {
        /// Why, in a few words.
        reason: &'static str,
    },
    /// The request makes no sense.
    #[error("{reason}")]
    Invalid {
        /// Why, in a few words.
        reason: &'static str,
    },
    /// It is not offered here.
    #[error("this server does not offer that")]
    Unsupported,
    /// The operating system said no.
    #[error("{}", text_of(source))]
    System {
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// The code that says the same to the client.
    #[must_use]
    pub fn code(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NoSuchFile,
            Self::Denied { .. } => StatusCode::PermissionDenied,
            Self::Refused { .. } => StatusCode::Failure,
            Self::Invalid { .. } => StatusCode::BadMessage,
            Self::Unsupported => StatusCode::OperationUnsupported,
            Self::System { source } => code_of(source.kind()),
        }
    }
}

impl From<io::Error> for FileError {
    fn from(source: io::Error) -> Self {
        Self::System { source }
    }
}

fn code_of(kind: io::ErrorKind) -> StatusCode {
    match kind {
        // ELOOP has no stable kind; the file systems turn it into NotFound themselves.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => StatusCode::NoSuchFile,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StatusCode::PermissionDenied
        }
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => StatusCode::BadMessage,
        io::ErrorKind::Unsupported => StatusCode::OperationUnsupported,
        _ => StatusCode::Failure,
    }
}

/// What the operating system said, without the number that Rust puts behind it.
fn text_of(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _number)) => words.to_owned(),
        None => text,
    }
}

/// Why a connection ended before the client closed it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Reading from the client failed.
    #[error("cannot read from the client")]
    Read {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing to the client failed: usually it is gone.
    #[error("cannot write to the client")]
    Write {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The client announced a packet of a length that is not possible.
    #[error("the client sent a packet of {bytes} bytes; between 1 and {limit_bytes} are possible")]
    PacketLength {
        /// The length that it announced.
        bytes: u32,
        /// The longest that is taken, in bytes.
        limit_bytes: usize,
    },
    /// The stream ended inside a packet.
    #[error("the client went away inside a packet, after {bytes} bytes of it")]
    CutOff {
        /// What had arrived of the packet, in bytes.
        bytes: usize,
    },
    /// The first packet is not INIT, or INIT comes again.
    #[error("the client sent {what}")]
    Order {
        /// What it sent.
        what: &'static str,
    },
    /// A packet has not even an id.
    #[error("the client sent a packet that cannot be read")]
    Packet {
        /// Why not.
        #[source]
        source: CodecError,
    },
    /// Nothing came from the client for too long.
    #[error("the client was silent for {seconds} seconds")]
    Idle {
        /// How long, in seconds.
        seconds: u64,
    },
    /// The thread that carries out requests ended early: the runtime is shutting down, or there is a bug.
    #[error("the requests of the client cannot be carried out any more")]
    Stopped {
        /// Why.
        #[source]
        source: tokio::task::JoinError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_said_is_told_without_its_number() {
        let error = FileError::from(io::Error::from_raw_os_error(28));
        assert_eq!(error.code(), StatusCode::Failure);
        assert!(!error.to_string().contains("os error"), "{error}");
        let error = FileError::from(io::Error::from_raw_os_error(13));
        assert_eq!(error.code(), StatusCode::PermissionDenied);
    }
}
