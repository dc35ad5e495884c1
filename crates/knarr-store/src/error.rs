//! What can go wrong with the state database, and what it means for a retry.

use std::sync::Arc;

use knarr_core::run::IllegalTransition;
use knarr_fs::ErrorClass;
use rusqlite::ErrorCode;

use crate::codec::Malformed;

/// Why something was not read or not recorded. Cheap to clone, as one failed commit is told to all who
/// were part of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No space left. Nothing was recorded; the same works once there is space.
    #[error(
        "the disk of the state directory is full, and nothing was recorded; free some space there"
    )]
    Full {
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// Somebody else wrote for longer than the time-out.
    #[error("another process keeps the state database locked; wait for it or stop it")]
    Busy {
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The file is damaged.
    #[error(
        "the state database is damaged; stop every knarr that uses it and start again: it is set \
         aside then, and a new one is begun"
    )]
    Corrupt {
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The file or its file system cannot be written.
    #[error("the state database is read-only; check the permissions of the state directory")]
    ReadOnly {
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// Anything else that SQLite refuses.
    #[error("cannot {operation} in the state database")]
    Sql {
        /// What was tried, as a verb with its object.
        operation: &'static str,
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// A row is there, but is not what was once written.
    #[error("what the state database holds for {what} cannot be read")]
    Damaged {
        /// Which row.
        what: String,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// SQLite gave up the transaction that this one was part of. Nothing of it was recorded; the same
    /// works again.
    #[error("the transaction was undone because another one in the same commit failed")]
    Undone,
    /// A run was to become what it cannot.
    #[error("run {run} cannot be finished like this")]
    Transition {
        /// The run.
        run: u64,
        /// What was tried.
        #[source]
        source: IllegalTransition,
    },
    /// A number names nothing.
    #[error("there is no {what} {id} in the state database")]
    Unknown {
        /// What kind of thing.
        what: &'static str,
        /// Its number.
        id: u64,
    },
    /// A directory cannot be renamed into itself.
    #[error("\"{from}\" cannot become \"{to}\": one lies inside the other")]
    RenameIntoItself {
        /// The old path.
        from: knarr_core::RelPath,
        /// The new path.
        to: knarr_core::RelPath,
    },
    /// The work panicked; its transaction was undone.
    #[error("a transaction on the state database stopped with a bug: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// The store was closed in the meantime.
    #[error("the state database was closed")]
    Closed,
}

impl StoreError {
    pub(crate) fn sql(operation: &'static str, source: rusqlite::Error) -> Self {
        let code = source
            .sqlite_error()
            .map(|error| (error.code, error.extended_code));
        let source = Arc::new(source);
        match code {
            Some((ErrorCode::DiskFull, _)) | Some((_, rusqlite::ffi::SQLITE_IOERR_SHMSIZE)) => {
                Self::Full { source }
            }
            Some((ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _)) => Self::Busy { source },
            Some((ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _)) => {
                Self::Corrupt { source }
            }
            Some((ErrorCode::ReadOnly, _)) => Self::ReadOnly { source },
            _ => Self::Sql { operation, source },
        }
    }

    pub(crate) fn damaged(what: impl Into<String>, source: Malformed) -> Self {
        Self::Damaged {
            what: what.into(),
            source,
        }
    }

    /// What it means for a retry.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Full { .. } => ErrorClass::NoSpace,
            Self::Busy { .. } | Self::Undone => ErrorClass::Transient,
            Self::ReadOnly { .. } => ErrorClass::ReadOnly,
            Self::Sql { source, .. } => match source.sqlite_error_code() {
                Some(ErrorCode::SystemIoFailure) => ErrorClass::Device,
                Some(ErrorCode::OutOfMemory) => ErrorClass::Transient,
                Some(ErrorCode::CannotOpen) => ErrorClass::Vanished,
                Some(ErrorCode::PermissionDenied) => ErrorClass::Denied,
                _ => ErrorClass::Permanent,
            },
            Self::Corrupt { .. }
            | Self::Damaged { .. }
            | Self::Transition { .. }
            | Self::Unknown { .. }
            | Self::RenameIntoItself { .. }
            | Self::Panicked { .. }
            | Self::Closed => ErrorClass::Permanent,
        }
    }

    /// Whether the file itself, not the circumstances, is to blame.
    pub(crate) const fn blames_the_file(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Damaged { .. })
    }
}

/// Says what was tried when SQLite refuses.
pub(crate) trait While<T> {
    fn trying(self, operation: &'static str) -> Result<T, StoreError>;
}

impl<T> While<T> for Result<T, rusqlite::Error> {
    fn trying(self, operation: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::sql(operation, source))
    }
}
