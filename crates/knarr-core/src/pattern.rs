//! Regular expressions over paths, whose named groups can stand in the destination.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

use crate::path::RelPath;

/// The most bytes that a compiled expression may take.
const SIZE_LIMIT: usize = 1 << 20;

/// A regular expression that a whole path has to match. Linear in the length of the path, whatever it is.
#[derive(Clone)]
pub struct Pattern {
    regex: Regex,
    text: String,
}

/// An expression that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a regular expression: {reason}")]
pub struct PatternError {
    /// As it was written.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Pattern {
    /// Reads an expression in the syntax of the `regex` crate; `(?<name>…)` is a named group. It has to
    /// match the whole path below the source, directories included.
    ///
    /// # Errors
    /// If it cannot be read, or is too large.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let error = |reason: String| PatternError {
            pattern: text.to_owned(),
            reason,
        };
        let regex = RegexBuilder::new(&format!("^(?:{text})$"))
            .size_limit(SIZE_LIMIT)
            .build()
            .map_err(|reason| match reason {
                regex::Error::CompiledTooBig(_) => error("it is too large".to_owned()),
                // The last line says what is wrong, those before show where.
                other => {
                    let text = other.to_string();
                    let last = text.lines().last().unwrap_or_default().trim();
                    error(last.trim_start_matches("error: ").to_owned())
                }
            })?;
        Ok(Self {
            regex,
            text: text.to_owned(),
        })
    }

    /// Whether the path matches.
    #[must_use]
    pub fn matches(&self, path: &RelPath) -> bool {
        self.regex.is_match(path.as_bytes())
    }

    /// The names of its groups.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.regex.capture_names().flatten()
    }

    /// What the group of this name matched; empty if it took no part. Nothing if the path does not match.
    #[must_use]
    pub fn group<'p>(&self, path: &'p RelPath, name: &str) -> Option<&'p [u8]> {
        let captures = self.regex.captures(path.as_bytes())?;
        Some(captures.name(name).map_or(b"", |found| found.as_bytes()))
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_whole_path_has_to_match() {
        let pattern = Pattern::new(r"in/INV-(?<customer>\d+)(?<rest>-x)?\.xml").unwrap();
        let found = path("in/INV-42.xml");
        assert_eq!(pattern.group(&found, "customer"), Some(b"42".as_slice()));
        assert_eq!(pattern.group(&found, "rest"), Some(b"".as_slice()));
        for other in ["INV-42.xml", "in/INV-42.xml.bak", "in/INV-.xml"] {
            assert!(!pattern.matches(&path(other)), "{other}");
        }
        assert_eq!(pattern.names().collect::<Vec<_>>(), ["customer", "rest"]);
        assert!(Pattern::new("a|b").unwrap().matches(&path("b")));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let error = Pattern::new("a(b").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`a(b` is not a regular expression: unclosed group"
        );
        assert!(Pattern::new(r"(\w{1000}){1000}").is_err());
    }
}
