//! What can go wrong on a disk, with the path, the operation and what it means for a retry.

use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use knarr_core::path::printable;
use rustix::io::Errno;

/// A path inside an error message: shown escaped, so that a name cannot forge a log line.
#[derive(Clone, PartialEq, Eq)]
pub struct ShownPath(PathBuf);

impl ShownPath {
    /// The path itself.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl From<PathBuf> for ShownPath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl fmt::Display for ShownPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&printable(self.0.as_os_str().as_bytes()), f)
    }
}

impl fmt::Debug for ShownPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Why something on the local disk did not work.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The operating system said no.
    #[error("cannot {operation} \"{path}\"")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// Where.
        path: ShownPath,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Something else than a regular file is where a file was expected.
    #[error("\"{path}\" is not a regular file, and only regular files are read")]
    NotAFile {
        /// Where.
        path: ShownPath,
    },
    /// A file does not have the length it must have.
    #[error("\"{path}\" holds {found} bytes where {expected} were expected")]
    Length {
        /// Where.
        path: ShownPath,
        /// How many bytes it must hold.
        expected: u64,
        /// How many it holds.
        found: u64,
    },
    /// A staged file that was to be continued is not one that this program wrote.
    #[error("the staged file \"{path}\" has another owner or a second name; start it anew")]
    NotOurs {
        /// Where.
        path: ShownPath,
    },
    /// A path does not lead to what was opened under it before.
    #[error(
        "\"{path}\" is not what it was when it was opened: it was unmounted, moved or replaced"
    )]
    Replaced {
        /// Where.
        path: ShownPath,
    },
}

/// What an error means for whoever decides about a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The same may work in a moment: no descriptors or memory left, busy, interrupted, device away.
    Transient,
    /// The disk, the quota, the inodes or the allowed file size are used up.
    NoSpace,
    /// The file system is mounted read-only. A state of the endpoint, not of the file.
    ReadOnly,
    /// Permission is missing.
    Denied,
    /// What should be there is not (any more).
    Vanished,
    /// Something else is in the way: a file where a directory must be, or the reverse.
    Occupied,
    /// The path leads through a symbolic link or out of the root; refused.
    Escapes,
    /// The file system cannot hold this name.
    Name,
    /// The device failed. What was written since the last flush must be written again.
    Device,
    /// None of the above; trying again will not help.
    Permanent,
}

impl FsError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io {
            operation,
            path: ShownPath(path.into()),
            source: source.into(),
        }
    }

    /// The path it is about, with the root's path in front.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::NotAFile { path }
            | Self::Length { path, .. }
            | Self::NotOurs { path }
            | Self::Replaced { path } => path.as_path(),
        }
    }

    /// What it means for a retry.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Io { source, .. } => class_of(source),
            Self::NotAFile { .. } => ErrorClass::Occupied,
            Self::Length { .. } | Self::NotOurs { .. } => ErrorClass::Permanent,
            Self::Replaced { .. } => ErrorClass::Transient,
        }
    }
}

/// The class of an error of the operating system.
#[must_use]
pub fn class_of(error: &io::Error) -> ErrorClass {
    let Some(errno) = Errno::from_io_error(error) else {
        return ErrorClass::Permanent;
    };
    match errno {
        // EFBIG is what RLIMIT_FSIZE gives once SIGXFSZ is ignored.
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => ErrorClass::NoSpace,
        Errno::ROFS => ErrorClass::ReadOnly,
        Errno::ACCESS | Errno::PERM => ErrorClass::Denied,
        Errno::NOENT => ErrorClass::Vanished,
        Errno::NOTDIR | Errno::EXIST | Errno::ISDIR | Errno::NOTEMPTY => ErrorClass::Occupied,
        Errno::LOOP | Errno::XDEV => ErrorClass::Escapes,
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => ErrorClass::Name,
        Errno::IO => ErrorClass::Device,
        Errno::MFILE
        | Errno::NFILE
        | Errno::NOMEM
        | Errno::AGAIN
        | Errno::INTR
        | Errno::BUSY
        | Errno::TXTBSY
        | Errno::NODEV
        | Errno::NXIO
        | Errno::STALE
        | Errno::TIMEDOUT
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NOTCONN
        | Errno::CONNABORTED
        | Errno::CONNRESET => ErrorClass::Transient,
        _ => ErrorClass::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_and_where_and_leaves_the_why_to_its_source() {
        let error = FsError::io("open", "/data/a\nb", Errno::ACCESS);
        assert_eq!(error.to_string(), "cannot open \"/data/a\\nb\"");
        assert_eq!(error.class(), ErrorClass::Denied);
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn r12_every_way_of_being_full_is_no_space() {
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            assert_eq!(class_of(&errno.into()), ErrorClass::NoSpace);
        }
    }
}
