//! What a client can ask for, as it is named in events and in lists of what is allowed.

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of the protocol")]
pub enum Operation {
    Open,
    Close,
    Read,
    Write,
    Lstat,
    Stat,
    Fstat,
    Setstat,
    Fsetstat,
    Lsetstat,
    Opendir,
    Readdir,
    Remove,
    Mkdir,
    Rmdir,
    Realpath,
    Rename,
    PosixRename,
    Readlink,
    Symlink,
    Hardlink,
    Fsync,
    Statvfs,
    Fstatvfs,
    Limits,
    ExpandPath,
    CopyData,
    CheckFile,
    UsersGroupsById,
    Unknown,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::Open,
        Self::Close,
        Self::Read,
        Self::Write,
        Self::Lstat,
        Self::Stat,
        Self::Fstat,
        Self::Setstat,
        Self::Fsetstat,
        Self::Lsetstat,
        Self::Opendir,
        Self::Readdir,
        Self::Remove,
        Self::Mkdir,
        Self::Rmdir,
        Self::Realpath,
        Self::Rename,
        Self::PosixRename,
        Self::Readlink,
        Self::Symlink,
        Self::Hardlink,
        Self::Fsync,
        Self::Statvfs,
        Self::Fstatvfs,
        Self::Limits,
        Self::ExpandPath,
        Self::CopyData,
        Self::CheckFile,
        Self::UsersGroupsById,
        Self::Unknown,
    ];

    /// Its name, as the lists of OpenSSH's `sftp-server -p` and `-P` have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Close => "close",
            Self::Read => "read",
            Self::Write => "write",
            Self::Lstat => "lstat",
            Self::Stat => "stat",
            Self::Fstat => "fstat",
            Self::Setstat => "setstat",
            Self::Fsetstat => "fsetstat",
            Self::Lsetstat => "lsetstat",
            Self::Opendir => "opendir",
            Self::Readdir => "readdir",
            Self::Remove => "remove",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::Realpath => "realpath",
            Self::Rename => "rename",
            Self::PosixRename => "posix-rename",
            Self::Readlink => "readlink",
            Self::Symlink => "symlink",
            Self::Hardlink => "hardlink",
            Self::Fsync => "fsync",
            Self::Statvfs => "statvfs",
            Self::Fstatvfs => "fstatvfs",
            Self::Limits => "limits",
            Self::ExpandPath => "expand-path",
            Self::CopyData => "copy-data",
            Self::CheckFile => "check-file",
            Self::UsersGroupsById => "users-groups-by-id",
            Self::Unknown => "unknown",
        }
    }

    /// The operation with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.name() == name)
    }
}

/// A set of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    bits: u64,
}

impl Operations {
    /// Every operation.
    #[must_use]
    pub const fn all() -> Self {
        Self { bits: u64::MAX }
    }

    /// No operation.
    #[must_use]
    pub const fn none() -> Self {
        Self { bits: 0 }
    }

    /// The set with `operation` in it.
    #[must_use]
    pub const fn with(self, operation: Operation) -> Self {
        Self {
            bits: self.bits | 1 << operation as u8,
        }
    }

    /// The set without `operation`.
    #[must_use]
    pub const fn without(self, operation: Operation) -> Self {
        Self {
            bits: self.bits & !(1 << operation as u8),
        }
    }

    /// Whether `operation` is in the set.
    #[must_use]
    pub const fn has(self, operation: Operation) -> bool {
        self.bits & 1 << operation as u8 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_is_found_by_its_name_and_has_a_place_of_its_own() {
        let mut set = Operations::none();
        for operation in Operation::ALL {
            assert_eq!(Operation::from_name(operation.name()), Some(operation));
            assert!(!set.has(operation), "{} twice", operation.name());
            set = set.with(operation);
        }
        assert!(!set.without(Operation::Open).has(Operation::Open));
        assert!(set.without(Operation::Open).has(Operation::Close));
        assert_eq!(Operation::from_name("format"), None);
    }
}
