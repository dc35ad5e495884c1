//! Shows names that are bytes in messages for people.

use std::fmt;

/// Shows a name or path without losing a byte and without letting it write to a terminal.
///
/// Valid UTF-8 is shown as text with control characters escaped, anything else byte by byte.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) => write!(f, "\"{}\"", text.escape_debug()),
            Err(_) => write!(f, "\"{}\"", self.0.escape_ascii()),
        }
    }
}
