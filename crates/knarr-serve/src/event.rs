//! What clients do, for logs, audits and jobs that wait for an upload.

use std::net::SocketAddr;
use std::path::PathBuf;

use knarr_sftp::server::{FileError, Operation};

/// Something that a client did, or that was done to it. Names of users that are not let in, and all paths, are as
/// the client wrote them: they are to be escaped before they are shown.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeEvent<'a> {
    /// A connection was not taken.
    Refused {
        /// From where.
        peer: SocketAddr,
        /// Why not.
        reason: Refusal,
    },
    /// An attempt to log in.
    LogIn {
        /// Which connection.
        session: &'a SessionName,
        /// The name that was given.
        user: &'a str,
        /// How.
        method: Method,
        /// The key or the key of the certificate, as `SHA256:…`, if there was one.
        fingerprint: Option<&'a str>,
        /// What became of it.
        outcome: LogIn,
    },
    /// A request about a name was carried out or refused.
    Operation {
        /// Which connection.
        session: &'a SessionName,
        /// Whose.
        user: &'a str,
        /// What was asked for.
        operation: Operation,
        /// About what; empty where it was about an open file.
        path: &'a [u8],
        /// The other name, where there are two.
        other: Option<&'a [u8]>,
        /// What became of it.
        outcome: Result<(), &'a FileError>,
    },
    /// An open file was closed, or the connection ended while it was open.
    Closed {
        /// Which connection.
        session: &'a SessionName,
        /// Whose.
        user: &'a str,
        /// Its name at the time it was opened.
        path: &'a [u8],
        /// Bytes that were read.
        read_bytes: u64,
        /// Bytes that were written.
        written_bytes: u64,
        /// The length of the upload that this made complete, in bytes: [`ServeEvent::Uploaded`] follows.
        uploaded_bytes: Option<u64>,
        /// Whether the client closed it.
        end: FileEnd,
    },
    /// An upload is complete and stands under its name. This is when a job may take it.
    Uploaded {
        /// Which connection.
        session: &'a SessionName,
        /// Whose.
        user: &'a str,
        /// Its name, as the client sees it: from the client's root.
        path: &'a [u8],
        /// Where it is.
        at: &'a UploadedAt,
        /// Its length in bytes; nothing where a rename was the verdict and the length was not seen.
        length_bytes: Option<u64>,
        /// Why it counts as complete.
        verdict: Verdict,
    },
    /// A connection ended.
    Ended {
        /// Which.
        session: &'a SessionName,
        /// Who was logged in.
        user: Option<&'a str>,
        /// Why.
        reason: &'a str,
    },
}

/// Which connection something belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionName {
    /// Its number, counted from the start of the server.
    pub number: u64,
    /// Where the client is.
    pub peer: SocketAddr,
}

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Its source misbehaved a short time ago.
    Penalty,
    /// Too many have not logged in yet.
    Startups,
    /// The server has as many connections as it takes.
    Full,
}

/// How somebody wants to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Asking which methods there are.
    None,
    /// By a password.
    Password,
    /// By a key.
    Key,
    /// By a certificate.
    Certificate,
    /// By a password, as the answer to a question.
    Question,
}

impl Method {
    /// Its name, as SSH has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Password => "password",
            Self::Key => "publickey",
            Self::Certificate => "certificate",
            Self::Question => "keyboard-interactive",
        }
    }
}

/// What became of an attempt to log in. Clients are not told which of the failures it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogIn {
    /// Let in.
    Accepted,
    /// Right, and another method is wanted too.
    Partial,
    /// There is no such user.
    UnknownUser,
    /// The password, key or certificate is not one of the user's.
    WrongCredential,
    /// The user may not log in from there.
    Network,
    /// The user's time is over.
    Expired,
    /// The user is switched off.
    Disabled,
    /// The user has as many connections as are allowed.
    TooManySessions,
}

impl LogIn {
    /// In a few words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Partial => "another method is wanted too",
            Self::UnknownUser => "no such user",
            Self::WrongCredential => "wrong password, key or certificate",
            Self::Network => "not from this network",
            Self::Expired => "expired",
            Self::Disabled => "disabled",
            Self::TooManySessions => "too many connections of this user",
        }
    }
}

/// How an open file came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileEnd {
    /// The client closed it.
    Closed,
    /// The client closed it, and that was refused: what was written is not there under the name.
    Failed,
    /// The connection ended before.
    Abandoned,
}

/// Why an upload counts as complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The client closed it after everything was written.
    Closed,
    /// The client gave its final name to what it had uploaded under another.
    Renamed,
}

/// Where an upload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadedAt {
    /// A file of this machine.
    Local(PathBuf),
    /// Another place.
    Remote {
        /// The place as a person writes it.
        location: String,
        /// The path there.
        path: Vec<u8>,
    },
}

/// Is told what happens. Called in the middle of the work, from many threads: it must not block for long.
pub trait ServeObserver: Send + Sync {
    /// Takes note of `event`.
    fn observe(&self, event: &ServeEvent<'_>);
}

/// Takes note of nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl ServeObserver for Unobserved {
    fn observe(&self, _event: &ServeEvent<'_>) {}
}
