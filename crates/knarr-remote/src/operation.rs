//! What can be asked of a place, as something that can be counted.

use std::fmt;

/// One kind of call to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// [`crate::Remote::list`].
    List,
    /// [`crate::Remote::stat`].
    Stat,
    /// [`crate::Remote::read`].
    Read,
    /// [`crate::Reader::next`].
    ReadChunk,
    /// [`crate::Reader::finish`].
    ReadFinish,
    /// [`crate::Remote::write`].
    Write,
    /// [`crate::Upload::write`].
    WriteChunk,
    /// [`crate::Upload::stage`].
    Stage,
    /// One item of [`crate::Committer::commit`].
    Commit,
    /// [`crate::Remote::rename`].
    Rename,
    /// One item of [`crate::Remote::remove`].
    Remove,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::List,
        Self::Stat,
        Self::Read,
        Self::ReadChunk,
        Self::ReadFinish,
        Self::Write,
        Self::WriteChunk,
        Self::Stage,
        Self::Commit,
        Self::Rename,
        Self::Remove,
    ];

    /// Its place in [`Operation::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The verb in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Stat => "look at",
            Self::Read => "open",
            Self::ReadChunk => "read",
            Self::ReadFinish => "look again at",
            Self::Write => "begin to write",
            Self::WriteChunk => "write",
            Self::Stage => "stage",
            Self::Commit => "commit",
            Self::Rename => "rename",
            Self::Remove => "remove",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
