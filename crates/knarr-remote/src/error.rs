//! What can go wrong at a place, and what the caller may decide by it.

use std::fmt;

use knarr_core::RelPath;

/// The kinds of trouble between which a caller decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Nothing is there.
    NotFound,
    /// Something is there already, where nothing was expected.
    AlreadyExists,
    /// What is there is not what was seen before: look again, plan again.
    Changed,
    /// A directory stands where a file should, or the other way round.
    WrongKind,
    /// A directory is not empty.
    NotEmpty,
    /// The place does not let us.
    PermissionDenied,
    /// No space, no inodes, or over quota.
    NoSpace,
    /// The file system is read-only.
    ReadOnly,
    /// The place cannot hold such a name, or a name from the place is none.
    InvalidName,
    /// The place does not offer this operation.
    Unsupported,
    /// User, key or credentials are wrong.
    Authentication,
    /// The server's host key is unknown or another than expected.
    HostKey,
    /// The place cannot be reached, or the connection was lost.
    Unreachable,
    /// The place asks us to slow down.
    Throttled,
    /// The place broke its protocol, or what it sent does not match its checksum.
    Protocol,
    /// We were asked to stop.
    Cancelled,
    /// Anything else.
    Other,
}

/// Whether repeating can help; decided where the error is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Repeating the same gives the same: a person, or a new plan, has to change something.
    Never,
    /// This operation may work when it is repeated later.
    Later,
    /// The whole endpoint is down: stop asking it for single files, probe it.
    EndpointDown,
}

/// What went wrong at a place: which operation on which path, why, and whether to repeat it.
#[derive(Debug, thiserror::Error)]
pub struct RemoteError {
    /// The kind of trouble.
    pub kind: ErrorKind,
    /// Whether repeating can help.
    pub retry: Retry,
    /// What was being done, such as `write` or `connect to sftp://host`.
    pub operation: String,
    /// The path it was done to.
    pub path: Option<RelPath>,
    /// What the place said, and what to do about it, if anything.
    pub message: String,
    /// The error below.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl RemoteError {
    /// An error of `kind`, with the repetition that is usual for it.
    pub fn new(kind: ErrorKind, operation: impl Into<String>, message: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::Unreachable => Retry::EndpointDown,
            ErrorKind::NoSpace
            | ErrorKind::ReadOnly
            | ErrorKind::Changed
            | ErrorKind::Throttled
            | ErrorKind::Protocol
            | ErrorKind::Other => Retry::Later,
            ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::WrongKind
            | ErrorKind::NotEmpty
            | ErrorKind::PermissionDenied
            | ErrorKind::InvalidName
            | ErrorKind::Unsupported
            | ErrorKind::Authentication
            | ErrorKind::HostKey
            | ErrorKind::Cancelled => Retry::Never,
        };
        Self {
            kind,
            retry,
            operation: operation.into(),
            path: None,
            message: message.into(),
            source: None,
        }
    }

    /// The same error about `path`.
    #[must_use]
    pub fn at(mut self, path: &RelPath) -> Self {
        self.path = Some(path.clone());
        self
    }

    /// The same error with another advice about repeating.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error as text, without what caused it; for whoever cannot have the error itself.
    #[must_use]
    pub fn summary(&self) -> Self {
        let mut message = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Self {
            kind: self.kind,
            retry: self.retry,
            operation: self.operation.clone(),
            path: self.path.clone(),
            message,
            source: None,
        }
    }

    /// Whether nothing was there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.operation)?;
        if let Some(path) = &self.path {
            write!(f, " \"{path}\"")?;
        }
        write!(f, ": {}", self.message)
    }
}
