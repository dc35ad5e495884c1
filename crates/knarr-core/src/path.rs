//! Relative paths as bytes, and the one order in which every tree is walked.
//!
//! * At most [`MAX_PATH_BYTES`] bytes in all; a component is whatever the side can hold.
//! * Bytes that are not UTF-8 survive a round trip; nothing is normalised.
//! * The order is that of the bytes of the full path, a directory compared as if its name ended in
//!   `/`. It is the order in which S3 lists, so a local walk, an SFTP listing, an S3 listing and a
//!   cursor over the store can be merged as streams.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use crate::entry::Kind;

/// The longest relative path that is accepted, in bytes.
pub const MAX_PATH_BYTES: usize = 32 * 1024;

/// A path below some root, checked at construction.
///
/// * Never empty, never absolute.
/// * Components are separated by one `/`; none is empty, `.` or `..`.
/// * Contains no NUL byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(Box<[u8]>);

/// Why some bytes are not a [`RelPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// There is nothing in it.
    #[error("the path is empty")]
    Empty,
    /// It starts with `/`.
    #[error("the path is absolute where a relative one is expected")]
    Absolute,
    /// Two slashes follow each other, or one ends the path.
    #[error("the path has an empty component")]
    EmptyComponent,
    /// A component is `.` or `..`.
    #[error("the path has a component `.` or `..`")]
    DotComponent,
    /// It contains a NUL byte.
    #[error("the path contains a NUL byte")]
    Nul,
    /// It is longer than [`MAX_PATH_BYTES`].
    #[error("the path is longer than {MAX_PATH_BYTES} bytes")]
    TooLong,
}

impl RelPath {
    /// Checks `bytes` and takes them as a path.
    ///
    /// # Errors
    /// A [`PathError`] that names the first rule that does not hold.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        check(&bytes)?;
        Ok(Self(bytes))
    }

    /// Checks one name (a path without a slash) as it comes from a directory listing.
    ///
    /// # Errors
    /// A [`PathError`]; a name with a slash in it is [`PathError::EmptyComponent`].
    pub fn from_name(name: &[u8]) -> Result<Self, PathError> {
        if name.contains(&b'/') {
            return Err(if name.first() == Some(&b'/') {
                PathError::Absolute
            } else {
                PathError::EmptyComponent
            });
        }
        Self::new(name)
    }

    /// The path of `name` below this one.
    ///
    /// # Errors
    /// A [`PathError`] if `name` is not one valid component or the result gets too long.
    pub fn join_name(&self, name: &[u8]) -> Result<Self, PathError> {
        if name.contains(&b'/') {
            return Err(PathError::EmptyComponent);
        }
        check(name)?;
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        if bytes.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong);
        }
        Ok(Self(bytes.into_boxed_slice()))
    }

    /// The path of `below` below this one.
    ///
    /// # Errors
    /// [`PathError::TooLong`].
    pub fn join(&self, below: &Self) -> Result<Self, PathError> {
        let bytes = [&self.0, b"/".as_slice(), &below.0].concat();
        if bytes.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong);
        }
        Ok(Self(bytes.into_boxed_slice()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as an operating system string, where paths are bytes.
    #[cfg(unix)]
    #[must_use]
    pub fn as_os_str(&self) -> &std::ffi::OsStr {
        std::os::unix::ffi::OsStrExt::from_bytes(&self.0)
    }

    /// The path as UTF-8, if it is.
    #[must_use]
    pub fn as_utf8(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The last component.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.0
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or(&self.0)
    }

    /// The path without its last component, or nothing if it has only one.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(Self(self.0.get(..slash)?.into()))
    }

    /// The components from the first to the last.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// The path with its last component replaced.
    ///
    /// # Errors
    /// A [`PathError`] if `name` is not one valid component.
    pub fn with_name(&self, name: &[u8]) -> Result<Self, PathError> {
        match self.parent() {
            Some(parent) => parent.join_name(name),
            None => Self::from_name(name),
        }
    }

    /// Whether this path lies below `directory` (not: is the same).
    #[must_use]
    pub fn is_below(&self, directory: &Self) -> bool {
        self.0
            .strip_prefix(&*directory.0)
            .is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    /// What remains of this path below `directory`.
    #[must_use]
    pub fn strip_directory(&self, directory: &Self) -> Option<Self> {
        let rest = self.0.strip_prefix(&*directory.0)?.strip_prefix(b"/")?;
        Some(Self(rest.into()))
    }

    /// The bytes by which a tree is ordered: the path, with `/` behind it for a directory.
    #[must_use]
    pub fn order_key(&self, kind: Kind) -> Cow<'_, [u8]> {
        if kind == Kind::Directory {
            Cow::Owned([&self.0, b"/".as_slice()].concat())
        } else {
            Cow::Borrowed(&self.0)
        }
    }

    /// Reads back what [`RelPath::order_key`] made, ignoring the `/` of a directory.
    ///
    /// # Errors
    /// A [`PathError`] if the rest is not a path.
    pub fn from_order_key(key: &[u8]) -> Result<Self, PathError> {
        Self::new(key.strip_suffix(b"/").unwrap_or(key))
    }
}

/// The order of trees (see the module's documentation), without building keys.
#[must_use]
pub fn tree_order(a: (&RelPath, Kind), b: (&RelPath, Kind)) -> Ordering {
    let (left, right) = (a.0.as_bytes(), b.0.as_bytes());
    let common = left.len().min(right.len());
    left[..common].cmp(&right[..common]).then_with(|| {
        let tail = |bytes: &[u8], kind| match bytes.get(common) {
            Some(byte) => u16::from(*byte) + 1,
            None if kind == Kind::Directory => u16::from(b'/') + 1,
            None => 0,
        };
        // A directory's virtual slash ends its key, so against a real slash the shorter comes first.
        tail(left, a.1)
            .cmp(&tail(right, b.1))
            .then(left.len().cmp(&right.len()))
    })
}

fn check(bytes: &[u8]) -> Result<(), PathError> {
    if bytes.is_empty() {
        return Err(PathError::Empty);
    }
    if bytes.len() > MAX_PATH_BYTES {
        return Err(PathError::TooLong);
    }
    if bytes.first() == Some(&b'/') {
        return Err(PathError::Absolute);
    }
    for component in bytes.split(|byte| *byte == b'/') {
        match component {
            b"" => return Err(PathError::EmptyComponent),
            b"." | b".." => return Err(PathError::DotComponent),
            name if name.contains(&0) => return Err(PathError::Nul),
            _ => {}
        }
    }
    Ok(())
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// For people: control characters and bytes that are not UTF-8 are escaped, so a name can neither
/// forge a log line nor drive a terminal. Not reversible; use [`RelPath::as_bytes`] for data.
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&printable(&self.0), f)
    }
}

/// Shows bytes that may come from anywhere, safely: what is not printable is escaped.
pub fn printable(bytes: &[u8]) -> impl fmt::Display + '_ {
    Printable(bytes)
}

struct Printable<'a>(&'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                // Direction overrides and the like turn one name into another on a screen.
                let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
                if character.is_control() || hidden {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl serde::Serialize for RelPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::bytes_serde::serialize(&self.0, serializer)
    }
}

impl<'de> serde::Deserialize<'de> for RelPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = crate::bytes_serde::deserialize(deserializer)?;
        Self::new(bytes).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn k12_what_could_leave_the_root_is_not_a_path() {
        for (text, error) in [
            ("", PathError::Empty),
            ("/etc/passwd", PathError::Absolute),
            ("a//b", PathError::EmptyComponent),
            ("a/", PathError::EmptyComponent),
            ("..", PathError::DotComponent),
            ("a/../b", PathError::DotComponent),
            ("./a", PathError::DotComponent),
            ("a\0b", PathError::Nul),
        ] {
            assert_eq!(RelPath::new(text.as_bytes()), Err(error), "{text:?}");
        }
        assert_eq!(RelPath::from_name(b"a/b"), Err(PathError::EmptyComponent));
        assert_eq!(path("a").join_name(b".."), Err(PathError::DotComponent));
    }

    #[test]
    fn names_that_only_look_dangerous_are_kept() {
        for text in ["...", "-rf", "a b", " ", "~", "a\\b", "C:", "\u{202e}x"] {
            assert_eq!(path(text).as_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn h06_names_cannot_forge_a_log_line() {
        assert_eq!(path("a\n\u{1b}[31mb").to_string(), "a\\n\\u{1b}[31mb");
        assert_eq!(RelPath::new(*b"\xff").unwrap().to_string(), "\\xff");
    }

    fn names() -> impl Strategy<Value = RelPath> {
        proptest::collection::vec("[a!/0-]{1,3}", 1..4).prop_filter_map("a path", |parts| {
            RelPath::new(parts.join("/").into_bytes()).ok()
        })
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::File), Just(Kind::Directory)]
    }

    proptest! {
        #[test]
        fn tree_order_is_the_order_of_the_keys(a in names(), ka in kinds(), b in names(), kb in kinds()) {
            prop_assert_eq!(tree_order((&a, ka), (&b, kb)), a.order_key(ka).cmp(&b.order_key(kb)));
        }

        #[test]
        fn any_bytes_either_round_trip_or_are_refused(bytes: Vec<u8>) {
            if let Ok(path) = RelPath::new(bytes.clone()) {
                prop_assert_eq!(path.as_bytes(), &bytes[..]);
                let json = serde_json::to_string(&path).unwrap();
                prop_assert_eq!(serde_json::from_str::<RelPath>(&json).unwrap(), path);
            }
        }
    }
}
