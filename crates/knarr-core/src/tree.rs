//! What a listing of one side says, and what both sides agreed on.

use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Fingerprint, Kind};
use crate::hash::ContentHash;
use crate::path::RelPath;

/// One item of a listing. Listings come in tree order (see [`crate::path`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeItem {
    /// Something is there.
    Entry(Entry),
    /// Something is there that cannot be handled. It is a state, never taken for an absence.
    Problem(Problem),
    /// Something may be there that could not be seen.
    Incomplete(Incomplete),
    /// Something is there that is not meant now (too large, too young): left alone on both sides, and
    /// not worth a word.
    Excluded {
        /// Where.
        path: RelPath,
        /// What.
        kind: Kind,
    },
}

/// A path that cannot be handled here: its name, its permissions, its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The path, or the nearest valid path above a name that is none.
    pub path: RelPath,
    /// What kind of thing it is, as far as known; orders it among its neighbours.
    pub kind: Kind,
    /// What is wrong and what to do, for a person.
    pub message: String,
}

/// A part of a tree that could not be listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    /// The directory whose content is unknown, given where that directory would stand in tree order;
    /// `None` means that everything from here on is unknown.
    pub below: Option<RelPath>,
    /// Why, for a person.
    pub reason: String,
}

/// What both sides agreed on last for one path: the third tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// The path below the source's root.
    pub path: RelPath,
    /// What the source looked like.
    pub source: Fingerprint,
    /// What the destination looked like after the commit.
    pub destination: Fingerprint,
    /// The path below the destination's root, where it is not the same (templates, steps).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_path: Option<RelPath>,
    /// The hash of the source's content, if it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<ContentHash>,
}

impl Synced {
    /// What kind of thing was agreed on.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.source.kind
    }

    /// Where it lies at the destination.
    #[must_use]
    pub fn at_destination(&self) -> &RelPath {
        self.destination_path.as_ref().unwrap_or(&self.path)
    }
}
