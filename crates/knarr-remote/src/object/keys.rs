//! Paths and keys.
//!
//! A key is the prefix of the remote, a `/`, and the path. Nothing is escaped or normalised on the
//! way: a name is a key byte for byte, or is refused. What an object store holds and no path can
//! name is a problem to show, never something to touch (H-02).

use knarr_core::RelPath;
use knarr_core::entry::Kind;
use knarr_core::path::{PathError, printable};
use knarr_core::tree::Problem;
use object_store::path::Path;

use crate::error::{ErrorKind, RemoteError};

/// The longest key that the stores take, in bytes.
const MAX_KEY_BYTES: usize = 1024;

/// The part of the bucket that a remote sees.
#[derive(Debug, Clone)]
pub(super) struct Prefix(String);

impl Prefix {
    /// Takes a prefix with or without slashes around it.
    pub(super) fn new(text: &str) -> Result<Self, RemoteError> {
        let text = text.trim_matches('/');
        if text.is_empty() {
            return Ok(Self(String::new()));
        }
        if let Err(error) = RelPath::new(text.as_bytes()) {
            let message = format!(
                "the prefix \"{}\" is no path: {error}",
                printable(text.as_bytes())
            );
            return Err(RemoteError::new(
                ErrorKind::InvalidName,
                "open the bucket",
                message,
            ));
        }
        Ok(Self(format!("{text}/")))
    }

    /// What all keys begin with: nothing, or something that ends in `/`.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of `path`.
    pub(super) fn key(&self, operation: &str, path: &RelPath) -> Result<Path, RemoteError> {
        let refuse = |message: &str| {
            Err(RemoteError::new(ErrorKind::InvalidName, operation, message).at(path))
        };
        let Some(text) = path.as_utf8() else {
            return refuse("an object store takes only names in UTF-8");
        };
        if self.0.len() + text.len() > MAX_KEY_BYTES {
            return refuse(
                "an object store takes names of at most 1,024 bytes, with all directories",
            );
        }
        let Ok(key) = Path::parse(format!("{}{text}", self.0)) else {
            return refuse("names with control characters cannot be kept in an object store");
        };
        Ok(key)
    }

    /// What the keys of everything below `directory` begin with.
    pub(super) fn below(&self, directory: Option<&RelPath>) -> Option<String> {
        match directory {
            None => Some(self.0.clone()),
            Some(directory) => Some(format!("{}{}/", self.0, directory.as_utf8()?)),
        }
    }
}

/// What a key of a listing is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A file.
    File(RelPath),
    /// What some tools make to show an empty directory; it says nothing.
    Placeholder,
    /// Something that cannot be handled.
    Problem(Problem),
}

/// What the key with these bytes (behind the prefix) is.
pub(super) fn read_key(key: &[u8], size: u64) -> Key {
    if size == 0 && (key.is_empty() || key.ends_with(b"/")) {
        return Key::Placeholder;
    }
    let path = match RelPath::new(key) {
        Ok(path) => path,
        Err(error) => return problem(stand_in(key), key, &error.to_string()),
    };
    if path.as_utf8().is_none() {
        return problem(path, key, "it is not UTF-8");
    }
    if key.iter().any(u8::is_ascii_control) {
        return problem(path, key, "it holds control characters");
    }
    Key::File(path)
}

fn problem(path: RelPath, key: &[u8], why: &str) -> Key {
    let message = format!(
        "the object \"{}\" cannot be handled: {why}; it is left alone, rename it there",
        printable(key)
    );
    Key::Problem(Problem {
        path,
        kind: Kind::File,
        message,
    })
}

/// A path for what is none, which keeps its place in the order of the listing: were it sorted later
/// than the key, what comes between would look absent. Up to the first fault it is the key; each
/// slash from there on is what sorts just below a slash, with a byte that no name in UTF-8 has.
fn stand_in(key: &[u8]) -> RelPath {
    const SLASH: &[u8] = b".\xff";
    let mut path: Vec<u8> = Vec::with_capacity(key.len() + SLASH.len());
    let mut components = key.split(|byte| *byte == b'/').enumerate().peekable();
    let mut faulty = false;
    while let Some((number, component)) = components.next() {
        if number > 0 && !faulty {
            path.push(b'/');
        }
        path.extend(
            component
                .iter()
                .map(|byte| if *byte == 0 { 1 } else { *byte }),
        );
        faulty |= matches!(component, b"" | b"." | b"..");
        if faulty && components.peek().is_some() {
            path.extend_from_slice(SLASH);
        } else if faulty && matches!(component, b"" | b"." | b"..") {
            path.push(1);
        }
        if path.len() > 2 * MAX_KEY_BYTES {
            break;
        }
    }
    RelPath::new(path).unwrap_or_else(|_still_none: PathError| {
        RelPath::new(*b"\x01").expect("one byte that is neither slash nor NUL is a path")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn h02_keys_that_are_no_paths_are_problems() {
        for key in [
            "/etc/passwd",
            "..",
            "../x",
            "a//b",
            "a/./b",
            "a/../b",
            "a/..",
            "//",
            "a//",
            "a\0b",
            ".",
        ] {
            match read_key(key.as_bytes(), 1) {
                Key::Problem(problem) => {
                    let odd = |byte: &u8| matches!(byte, 1 | 0xff);
                    assert!(problem.path.as_bytes().iter().any(odd), "{problem:?}");
                    assert!(
                        problem.message.contains("left alone"),
                        "{}",
                        problem.message
                    );
                }
                other => panic!("{key:?} is {other:?}"),
            }
        }
        assert!(matches!(read_key(b"new\nline", 1), Key::Problem(_)));
        assert!(matches!(read_key(b"a/", 1), Key::Problem(_)));
        assert_eq!(read_key(b"a/", 0), Key::Placeholder);
        assert_eq!(read_key(b"", 0), Key::Placeholder);
        assert_eq!(read_key(b"a/b", 0), Key::File(path("a/b")));
    }

    #[test]
    fn k5_a_stand_in_is_never_sorted_behind_what_follows_its_key() {
        let mut keys: Vec<&str> = vec![
            "//", "//x", "/x", "-", ".-", ".", "./x", "../x", "..", "...", "..x", ".git", "0", "a",
            "a/", "a//", "a//b", "a/-", "a/.", "a/.!", "a/./b", "a/../b", "a/.x", "a/0", "a-",
            "a0",
        ];
        keys.sort_unstable();
        let paths: Vec<RelPath> = keys
            .iter()
            .map(|key| match read_key(key.as_bytes(), 1) {
                Key::File(path) => path,
                Key::Problem(problem) => problem.path,
                Key::Placeholder => panic!("{key} has content"),
            })
            .collect();
        for pair in paths.windows(2) {
            assert!(
                pair[0].as_bytes() < pair[1].as_bytes(),
                "{pair:?} of {keys:?}"
            );
        }
    }

    #[test]
    fn names_are_keys_byte_for_byte_or_refused() {
        let prefix = Prefix::new("/in box/").unwrap();
        for name in ["a b", "%2F", "a+b", "é", "quote\"d", "a\\b", "...", "#?&"] {
            let key = prefix.key("write", &path(name)).unwrap();
            assert_eq!(key.as_ref(), format!("in box/{name}"));
        }
        let long = "n".repeat(MAX_KEY_BYTES);
        for name in [b"\xff".as_slice(), b"new\nline", b"a\x7f", long.as_bytes()] {
            let error = prefix
                .key("write", &RelPath::new(name).unwrap())
                .unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidName);
        }
        Prefix::new("a/../b").unwrap_err();
    }
}
