//! What can go wrong for one request, and for a whole connection.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{CodecError, Extension, Status, StatusCode};
use crate::names::Shown;

/// Longest message of a server that is kept, in bytes.
const MESSAGE_LIMIT: usize = 1024;

/// Why an operation did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused. The connection is fine.
    #[error("{operation}{}: {code}{}", at(path.as_ref()), said(message))]
    Status {
        /// What the server answered.
        code: StatusCode,
        /// What the server said about it: its bytes as text, shortened. Untrusted.
        message: Box<str>,
        /// What was asked, such as `open`.
        operation: &'static str,
        /// The path that it was about.
        path: Option<Bytes>,
    },
    /// The connection is gone, and with it every request in flight.
    #[error("the SFTP connection is lost")]
    ConnectionLost {
        /// Why; the same for everybody on the connection.
        #[source]
        reason: Arc<ConnectionError>,
    },
    /// The server does not offer an extension that is needed.
    #[error("the server does not offer {}", extension.name())]
    ExtensionMissing {
        /// The extension.
        extension: Extension,
    },
    /// The request cannot be sent.
    #[error("cannot ask the server to {operation}{}", at(path.as_ref()))]
    Unsendable {
        /// What should have been asked.
        operation: &'static str,
        /// The path that it was about.
        path: Option<Bytes>,
        /// What is wrong with the request.
        #[source]
        source: CodecError,
    },
    /// A file ends before the end that was expected: it was cut while it was read.
    #[error(
        "{} ends at byte {actual_bytes}, {expected_bytes} bytes were expected: it changed meanwhile",
        Shown(path)
    )]
    EndedEarly {
        /// The file.
        path: Bytes,
        /// The length that was expected, in bytes.
        expected_bytes: u64,
        /// Where it ended, in bytes.
        actual_bytes: u64,
    },
    /// A file goes on behind the end that was expected: it grew while it was read.
    #[error(
        "{} goes on behind byte {expected_bytes}: it changed meanwhile",
        Shown(path)
    )]
    Grew {
        /// The file.
        path: Bytes,
        /// The length that was expected, in bytes.
        expected_bytes: u64,
    },
    /// A directory has more names than the caller is ready for.
    #[error("directory {} has more than {limit} names", Shown(path))]
    DirectoryTooLarge {
        /// The directory.
        path: Bytes,
        /// The limit.
        limit: u64,
    },
    /// The caller mixed handles of different connections, or passed none.
    #[error("{operation} needs {needs}")]
    Misused {
        /// What was asked.
        operation: &'static str,
        /// What it needs.
        needs: &'static str,
    },
}

/// Why a connection ended. Everything but [`Self::Closed`], [`Self::EndOfStream`], [`Self::Stream`]
/// and [`Self::Silent`] is a violation of the protocol.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// This side closed it.
    #[error("the connection was closed by this side")]
    Closed,
    /// The server closed it.
    #[error("the server closed the connection{}", in_packet(*partial_bytes))]
    EndOfStream {
        /// Bytes of an unfinished packet that had arrived.
        partial_bytes: usize,
    },
    /// The byte stream failed.
    #[error("the stream failed while {doing}")]
    Stream {
        /// `receiving` or `sending`.
        doing: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// Requests were waiting, and nothing arrived.
    #[error("the server sent nothing for {seconds} s while {waiting} requests waited")]
    Silent {
        /// The time-out in seconds.
        seconds: f64,
        /// Requests that waited.
        waiting: usize,
    },
    /// The server speaks another version.
    #[error("the server speaks SFTP version {version}, version 3 is needed")]
    Version {
        /// What it speaks.
        version: u32,
    },
    /// The first packet was no VERSION.
    #[error("the server did not answer with its version")]
    NoVersion,
    /// A packet of impossible length.
    #[error("packet of {bytes} bytes, between 1 and {limit_bytes} are allowed")]
    PacketLength {
        /// Its length.
        bytes: u32,
        /// The limit.
        limit_bytes: usize,
    },
    /// A packet that cannot be decoded.
    #[error("packet that cannot be understood")]
    Codec {
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// A reply that nobody waits for: an unknown id, or a second reply to the same request.
    #[error("reply with id {id:#x}, which no request is waiting for")]
    UnknownId {
        /// The id.
        id: u32,
    },
    /// A reply of a type that does not answer the request.
    #[error("{received} as reply to a request for {expected}")]
    WrongReply {
        /// What came.
        received: &'static str,
        /// What was asked for.
        expected: &'static str,
    },
    /// A READ was answered with more than it asked for, or with nothing.
    #[error("{received_bytes} bytes as reply to a READ of {asked_bytes}")]
    WrongLength {
        /// What was asked for.
        asked_bytes: u32,
        /// What came.
        received_bytes: usize,
    },
}

impl Error {
    pub(crate) fn lost(reason: &Arc<ConnectionError>) -> Self {
        Self::ConnectionLost {
            reason: Arc::clone(reason),
        }
    }

    pub(crate) fn status(status: &Status, operation: &'static str, path: Option<&[u8]>) -> Self {
        let message = &status.message[..status.message.len().min(MESSAGE_LIMIT)];
        Self::Status {
            code: status.code,
            message: String::from_utf8_lossy(message).into(),
            operation,
            path: path.map(Bytes::copy_from_slice),
        }
    }

    /// What the server answered, if it answered.
    #[must_use]
    pub const fn code(&self) -> Option<StatusCode> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the server says that nothing is there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(StatusCode::NoSuchFile)
    }

    /// Whether the server says that it is not allowed.
    #[must_use]
    pub fn is_permission_denied(&self) -> bool {
        self.code() == Some(StatusCode::PermissionDenied)
    }

    /// Whether the server says no more than that it failed: exists, not empty, no space, over quota.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.code() == Some(StatusCode::Failure)
    }

    /// Whether the server cannot do it.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::ExtensionMissing { .. })
            || self.code() == Some(StatusCode::OperationUnsupported)
    }

    /// Whether the connection is gone: nothing more will work on it.
    #[must_use]
    pub const fn is_connection_lost(&self) -> bool {
        matches!(self, Self::ConnectionLost { .. })
    }

    /// Whether the connection was given up because the server broke the protocol.
    #[must_use]
    pub fn is_protocol_violation(&self) -> bool {
        matches!(self, Self::ConnectionLost { reason } if reason.is_protocol_violation())
    }
}

impl ConnectionError {
    /// Whether the server broke the protocol, so that trying again is pointless.
    #[must_use]
    pub const fn is_protocol_violation(&self) -> bool {
        !matches!(
            self,
            Self::Closed | Self::EndOfStream { .. } | Self::Stream { .. } | Self::Silent { .. }
        )
    }
}

fn at(path: Option<&Bytes>) -> String {
    path.map_or_else(String::new, |path| format!(" {}", Shown(path)))
}

fn said(message: &str) -> String {
    if message.is_empty() {
        return String::new();
    }
    format!(" (the server says: {})", message.escape_debug())
}

fn in_packet(partial_bytes: usize) -> String {
    if partial_bytes == 0 {
        return String::new();
    }
    format!(" inside a packet, after {partial_bytes} bytes of it")
}
