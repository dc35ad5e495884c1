//! The planner: three trees and a policy in, decisions out.
//!
//! [`plan`] merges three ordered streams and holds only what is needed to notice a file and a
//! directory of the same name (at most one entry a path component). It does no I/O: what it has to
//! look up out of order (renames) it asks of a [`RenameIndex`].
//!
//! Phases. Decisions come in tree order of what they are about, and are meant to be carried out so:
//! everything that is not a removal as it comes, removals with `blocking` as they come too (they
//! make room for something), all other removals afterwards in reverse order (children before their
//! directories), and last what is marked [`Phase::AfterRemovals`].
//!
//! Absence is not deletion (K5): a path is taken for deleted only if the listing that lacks it was
//! complete there. Where a listing was incomplete or had a problem, nothing is removed and nothing
//! is taken for new.

mod decide;
mod guard;
mod merge;
mod names;
#[cfg(test)]
mod one_way_tests;
#[cfg(test)]
mod two_way_tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::plan::decide::decide_existing;
pub use crate::plan::guard::{Brake, MassDeletion};
pub use crate::plan::merge::{Counts, Plan, plan};
pub use crate::plan::names::{conflict_path, numbered_path};

use crate::entry::Entry;
use crate::path::RelPath;
use crate::tree::{Problem, Synced};

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Where things come from; the first location of a two-way sync.
    Source,
    /// Where things go to; the second location of a two-way sync.
    Destination,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// What the two trees are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The destination gets what it lacks; nothing is removed there.
    Copy,
    /// The destination becomes what the source is.
    Mirror,
    /// Each gets the other's changes.
    TwoWay,
}

/// What to do when something is at the destination already.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum IfExists {
    /// Leave it alone.
    Skip,
    /// Replace it, unless size and time say that it is the same.
    Overwrite,
    /// Replace it if the source's is newer.
    Newer,
    /// Replace it if the content differs; where only the time differs, the contents are compared.
    #[default]
    Differs,
    /// Leave it and write beside it under a numbered name.
    KeepBoth,
    /// Report it as a problem.
    Fail,
}

/// How to decide.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What the trees are to each other.
    pub mode: Mode,
    /// What to do when something is at the destination already.
    pub if_exists: IfExists,
    /// Compare contents even where size and time are equal.
    pub checksum: bool,
    /// How far apart two mtimes of the same version may be: the coarser precision of the two sides.
    pub mtime_tolerance: Duration,
    /// Whether each side keeps the other's mtime (object stores set their own).
    pub mtimes_comparable: bool,
    /// Whether both sides have directories of their own.
    pub directories: bool,
    /// What to do with symbolic links.
    pub symlinks: SymlinkPolicy,
    /// Whether to look for renames among what is new.
    pub renames: bool,
    /// Whether to report paths that both sides have alike but that no synced entry knows.
    pub adopt: bool,
}

impl Policy {
    /// The usual policy of a one-way copy between two file systems.
    #[must_use]
    pub const fn new(mode: Mode) -> Self {
        Self {
            mode,
            if_exists: IfExists::Differs,
            checksum: false,
            mtime_tolerance: Duration::from_nanos(0),
            mtimes_comparable: true,
            directories: true,
            symlinks: SymlinkPolicy::Keep,
            renames: false,
            adopt: matches!(mode, Mode::TwoWay),
        }
    }
}

/// What to do with symbolic links. They are never followed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SymlinkPolicy {
    /// Copy the link itself.
    #[default]
    Keep,
    /// Leave links out, without a word for each.
    Skip,
    /// Report each as a problem, because the other side has none.
    Unsupported,
}

/// When an operation has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// As it comes.
    Normal,
    /// After all removals, because one of them makes room for it.
    AfterRemovals,
}

/// Whether contents have to be compared before a file is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// They are known to differ, or it does not matter.
    No,
    /// Sizes are equal: read both (or ask for hashes) first, and only mend the time if they are equal.
    First,
}

/// One thing the planner decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Something to carry out.
    Operation(Operation),
    /// Two legitimate histories met. Both are kept.
    Conflict(Conflict),
    /// A path that cannot be handled here.
    Problem(Problem),
}

/// Something to carry out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Operation {
    /// Bring `entry` (file, directory or link) from the other side to `to`.
    Put {
        /// The side that is written.
        to: Side,
        /// What lies at the side it comes from.
        entry: Entry,
        /// What lies at the side that is written, and may be replaced.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<Entry>,
        /// The path to write, where it is not that of `entry` (a numbered name is chosen when it is written).
        beside: Beside,
        /// Whether to compare contents first.
        compare: Compare,
        /// When.
        phase: Phase,
    },
    /// Give what was delivered as `from` the new name it has at the other side.
    Rename {
        /// The side that is written.
        to: Side,
        /// What was agreed on under the old name.
        from: Box<Synced>,
        /// What lies at the other side, under its new name.
        entry: Entry,
    },
    /// Remove `seen`.
    Remove {
        /// The side that is written.
        to: Side,
        /// What was seen there; another version is not removed.
        seen: Entry,
        /// Whether something else waits for the room.
        blocking: bool,
    },
    /// Both sides have it alike: only record that.
    Adopt {
        /// At the source.
        source: Entry,
        /// At the destination.
        destination: Entry,
    },
    /// Neither side has it any more (or it does not matter any more): drop it from the synced tree.
    Forget {
        /// The path in the synced tree.
        path: RelPath,
        /// Its kind there.
        kind: crate::entry::Kind,
    },
}

/// Where a [`Operation::Put`] writes, relative to its own path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beside {
    /// At the path itself.
    No,
    /// Under the first free numbered name beside it.
    Numbered,
}

/// Two legitimate histories of one path. Both are kept: the loser under `conflict_path`, on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The side whose version keeps the name.
    pub winner: Side,
    /// What lies at the source.
    pub source: Entry,
    /// What lies at the destination.
    pub destination: Entry,
    /// The name the loser gets (or a numbered one beside it, if that is taken by something else).
    pub conflict_path: RelPath,
}

impl Conflict {
    /// The version that gets the conflict name.
    #[must_use]
    pub const fn loser(&self) -> &Entry {
        match self.winner {
            Side::Source => &self.destination,
            Side::Destination => &self.source,
        }
    }

    /// The version that keeps its name.
    #[must_use]
    pub const fn winner(&self) -> &Entry {
        match self.winner {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }
}

/// Finds what a new entry was called before.
pub trait RenameIndex {
    /// The synced entry of which `entry`, new at `side`, is the renamed file: same identity, size and
    /// mtime, and nothing lies under the old name at `side` any more.
    fn renamed_from(&self, side: Side, entry: &Entry) -> Option<Synced>;
}

/// Knows of no renames.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRenames;

impl RenameIndex for NoRenames {
    fn renamed_from(&self, _side: Side, _entry: &Entry) -> Option<Synced> {
        None
    }
}

impl Decision {
    /// The path it is about.
    #[must_use]
    pub const fn path(&self) -> &RelPath {
        match self {
            Self::Operation(operation) => operation.path(),
            Self::Conflict(conflict) => &conflict.source.path,
            Self::Problem(problem) => &problem.path,
        }
    }
}

impl Operation {
    /// The path it is about.
    #[must_use]
    pub const fn path(&self) -> &RelPath {
        match self {
            Self::Put { entry, .. } | Self::Rename { entry, .. } => &entry.path,
            Self::Remove { seen, .. } => &seen.path,
            Self::Adopt { source, .. } => &source.path,
            Self::Forget { path, .. } => path,
        }
    }
}
