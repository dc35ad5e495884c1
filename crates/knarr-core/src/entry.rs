//! What was seen at a path.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::hash::ContentHash;
use crate::path::RelPath;
use crate::time::Timestamp;

/// What kind of thing lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; copied as a link or skipped, never followed.
    Symlink,
    /// A FIFO, socket or device: never opened, reported as a problem.
    Special,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symbolic link",
            Self::Special => "special file",
        })
    }
}

/// What stays the same when a file is renamed, and changes when another takes its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// The inode number of a local file. The device is not part of it: device numbers change with
    /// every boot; the identity of the root guards against another file system.
    Inode(u64),
    /// An opaque tag of a remote version, such as an S3 ETag.
    Tag(Box<str>),
}

/// What was seen at one path of one side, at one time. Never a piece of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where, below the root.
    pub path: RelPath,
    /// What it is.
    pub kind: Kind,
    /// The length in bytes; 0 for anything but a file.
    pub size: u64,
    /// When the content last changed, if the side can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<Timestamp>,
    /// What tells this version, or this file under another name, from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// The hash of the content, if somebody read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<ContentHash>,
    /// The permission bits (lowest 12 bits of the Unix mode).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Where a symbolic link points, as it stands in the link.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::entry::link_target"
    )]
    pub link_target: Option<Box<[u8]>>,
}

impl Entry {
    /// A file of `size` bytes, with nothing else known.
    #[must_use]
    pub const fn file(path: RelPath, size: u64) -> Self {
        Self {
            path,
            kind: Kind::File,
            size,
            mtime: None,
            identity: None,
            hash: None,
            mode: None,
            link_target: None,
        }
    }

    /// A directory, with nothing else known.
    #[must_use]
    pub const fn directory(path: RelPath) -> Self {
        let mut entry = Self::file(path, 0);
        entry.kind = Kind::Directory;
        entry
    }

    /// A symbolic link to `target`, with nothing else known.
    #[must_use]
    pub fn symlink(path: RelPath, target: impl Into<Box<[u8]>>) -> Self {
        let mut entry = Self::file(path, 0);
        entry.kind = Kind::Symlink;
        entry.link_target = Some(target.into());
        entry
    }

    /// The part that says whether the path changed since.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            kind: self.kind,
            size: self.size,
            mtime: self.mtime,
            identity: self.identity.clone(),
            link_target: self.link_target.clone(),
        }
    }
}

/// What one side looked like when both agreed. Compared only with the same side, so the precision
/// of one clock or file system never meets another's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// What it was.
    pub kind: Kind,
    /// The length in bytes.
    pub size: u64,
    /// When the content last changed, as that side said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<Timestamp>,
    /// The inode or tag, as that side said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Where a symbolic link pointed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::entry::link_target"
    )]
    pub link_target: Option<Box<[u8]>>,
}

impl Fingerprint {
    /// Whether `entry`, seen on the same side, is still what this describes.
    ///
    /// Directories are the same as long as they are directories. A tag decides alone, as it is made
    /// from content or version. An inode number does not make a change by itself (a restored backup
    /// has others), but size and mtime do.
    #[must_use]
    pub fn still_describes(&self, entry: &Entry) -> bool {
        if self.kind != entry.kind {
            return false;
        }
        match self.kind {
            Kind::Directory => true,
            Kind::Symlink => self.link_target == entry.link_target,
            Kind::File | Kind::Special => {
                if self.size != entry.size {
                    return false;
                }
                match (&self.identity, &entry.identity) {
                    (Some(Identity::Tag(then)), Some(Identity::Tag(now))) => then == now,
                    _ => match (self.mtime, entry.mtime) {
                        (Some(then), Some(now)) => then == now,
                        // One listing knew the time and the other did not: no evidence of a change.
                        _ => true,
                    },
                }
            }
        }
    }
}

/// Whether two entries of different sides hold the same thing, as far as can be told without
/// reading: equal hashes if both are known, else equal size and mtimes within `tolerance`.
///
/// Returns nothing where that cannot be told (sizes equal, but a side has no mtime or they differ).
#[must_use]
pub fn same_content(a: &Entry, b: &Entry, tolerance: Duration) -> Option<bool> {
    if a.kind != b.kind {
        return Some(false);
    }
    match a.kind {
        Kind::Directory => Some(true),
        Kind::Symlink => Some(a.link_target == b.link_target),
        Kind::Special => Some(false),
        Kind::File => {
            if a.size != b.size {
                return Some(false);
            }
            if let (Some(left), Some(right)) = (a.hash, b.hash) {
                return Some(left == right);
            }
            match (a.mtime, b.mtime) {
                (Some(left), Some(right)) if left.distance(right) <= tolerance => Some(true),
                _ => None,
            }
        }
    }
}

/// Serde for the bytes of a link's target.
pub(crate) mod link_target {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        target: &Option<Box<[u8]>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match target {
            Some(bytes) => crate::bytes_serde::serialize(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Box<[u8]>>, D::Error> {
        #[derive(Deserialize)]
        struct Bytes(#[serde(deserialize_with = "crate::bytes_serde::deserialize")] Vec<u8>);
        let bytes = Option::<Bytes>::deserialize(deserializer)?;
        Ok(bytes.map(|Bytes(bytes)| bytes.into_boxed_slice()))
    }
}
