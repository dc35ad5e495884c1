//! File names that break programs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

/// A name that is legal on ext4 and unpleasant elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NastyName {
    /// The bytes of the name: no `/`, no NUL, at most 255.
    pub bytes: Vec<u8>,
    /// What is nasty about it.
    pub why: &'static str,
}

impl NastyName {
    /// The name for the operating system.
    #[must_use]
    pub fn to_os_string(&self) -> OsString {
        OsString::from_vec(self.bytes.clone())
    }

    /// Whether the name is UTF-8, which object stores insist on.
    #[must_use]
    pub fn is_utf8(&self) -> bool {
        std::str::from_utf8(&self.bytes).is_ok()
    }

    /// Whether the name holds a control character, which XML 1.0 (so S3 listings) cannot carry.
    #[must_use]
    pub fn has_control_characters(&self) -> bool {
        self.bytes.iter().any(u8::is_ascii_control)
    }
}

/// All the nasty names, none twice. They can lie in one directory of a case-sensitive file system.
#[must_use]
pub fn nasty_names() -> Vec<NastyName> {
    let plain: [(&[u8], &'static str); 37] = [
        (b"latin1-\xe9\xe8.txt", "not UTF-8"),
        (b"\xff\xfe", "not UTF-8, looks like a byte order mark"),
        (b"overlong-\xc0\xaf", "an overlong slash, not UTF-8"),
        (b"surrogate-\xed\xa0\x80", "a lone surrogate, not UTF-8"),
        (b"line\nbreak", "newline"),
        (b"carriage\rreturn", "carriage return"),
        (b"tab\there", "tab"),
        (b"escape-\x1b[31mred", "terminal escape"),
        (b"bell-\x07-delete-\x7f", "control characters"),
        (b"double\"quote", "double quote"),
        (b"single'quote", "single quote"),
        (b"back`tick`", "back ticks"),
        (b"$(touch owned)", "command substitution"),
        (b"; rm -rf x", "shell separator"),
        (b"-rf", "leading dash"),
        (b"--help", "looks like an option"),
        (b" leading space", "leading space"),
        (b"trailing space ", "trailing space"),
        (b"trailing dot.", "trailing dot"),
        (b"...", "three dots"),
        (b"..hidden", "starts with two dots"),
        (b" ", "a single space"),
        (b"~", "a tilde"),
        (b"back\\slash", "backslash"),
        (b"star*question?[bracket]{brace}", "glob characters"),
        (b"percent%2Fslash%00", "percent encoding"),
        (b"plus+and&equals=hash#", "query characters"),
        (b"colon:and|pipe<>", "forbidden on Windows"),
        (b"CON", "reserved on Windows"),
        (b"aux.txt", "reserved on Windows"),
        (
            b"Case.txt",
            "collides with the next where case does not count",
        ),
        (
            b"case.txt",
            "collides with the one before where case does not count",
        ),
        ("caf\u{e9}".as_bytes(), "composed (NFC)"),
        (
            "cafe\u{301}".as_bytes(),
            "decomposed (NFD) of the one before",
        ),
        ("gpj.\u{202e}exe".as_bytes(), "right-to-left override"),
        (
            "zero\u{200b}width\u{feff}".as_bytes(),
            "invisible characters",
        ),
        (
            "\u{1f6a2}\u{1f1e9}\u{1f1ea}".as_bytes(),
            "outside the basic plane",
        ),
    ];
    let mut names: Vec<NastyName> = plain
        .iter()
        .map(|&(bytes, why)| NastyName {
            bytes: bytes.to_vec(),
            why,
        })
        .collect();
    names.push(NastyName {
        bytes: vec![b'x'; 255],
        why: "255 bytes",
    });
    let wide = "\u{e9}".repeat(127);
    names.push(NastyName {
        bytes: wide.into_bytes(),
        why: "254 bytes in 127 characters",
    });
    names
}

#[cfg(test)]
mod tests {
    use super::nasty_names;

    #[test]
    fn nasty_names_are_distinct_and_legal_on_linux() {
        let names = nasty_names();
        let mut seen = std::collections::BTreeSet::new();
        for name in &names {
            assert!(seen.insert(name.bytes.clone()), "{name:?} twice");
            assert!(
                !name.bytes.is_empty() && name.bytes.len() <= 255,
                "{name:?}"
            );
            assert!(
                !name.bytes.contains(&b'/') && !name.bytes.contains(&0),
                "{name:?}"
            );
        }
        assert!(names.iter().any(|name| !name.is_utf8()));
    }
}
