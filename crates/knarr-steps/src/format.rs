//! Which compressions there are, how content shows them, and how names do.
//!
//! Constraints: content decides what a stream *is*; the name only says what it *should be*,
//! which turns a file that is cut too short to be recognised into an error instead of a delivery.
//!
//! The magic is the shortest that is not met by accident: `1f 8b` (gzip), `28 b5 2f fd` and the
//! skippable frames `5? 2a 4d 18` (zstd), `fd 37 7a 58 5a 00` (xz), `BZh1` to `BZh9` (bzip2). It
//! is short on purpose: damage right behind it is then an error and not "some other content".

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A compression that Knarr can remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz file format 1.2.
    Xz,
    /// bzip2 1.0.
    Bzip2,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Gzip, Self::Zstd, Self::Xz, Self::Bzip2];

    /// What the suffix of a name says that the content should be; upper and lower case are one.
    #[must_use]
    pub fn of_name(name: &[u8]) -> Option<Self> {
        split_suffix(name).map(|(_, suffix)| suffix.format)
    }

    /// The first bytes of every stream of this format; for bzip2 a digit from 1 to 9 follows.
    fn magic(self) -> &'static [u8] {
        match self {
            Self::Gzip => &GZIP_MAGIC,
            Self::Zstd => &ZSTD_MAGIC,
            Self::Xz => &XZ_MAGIC,
            Self::Bzip2 => &BZIP2_MAGIC,
        }
    }

    /// Compares content with the magic of this format.
    pub(crate) fn matches(self, content: &[u8]) -> Match {
        let plain = match_magic(content, self.magic());
        match self {
            Self::Gzip | Self::Xz => plain,
            Self::Zstd => plain.or(match_skippable(content)),
            Self::Bzip2 => match (plain, content.get(BZIP2_MAGIC.len())) {
                (Match::Whole, None) => Match::Beginning,
                (Match::Whole, Some(level)) if !(b'1'..=b'9').contains(level) => Match::Not,
                (found, _) => found,
            },
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// The name of the output for content of this format: without the suffix of the format (in upper
/// or lower case), or with `.tar` for `.tgz` and its like. A name that has no such suffix, or
/// of which nothing but dots would be left, stays as it is. Takes a name or a `/`-separated path.
#[must_use]
pub fn output_name(name: &[u8], format: Format) -> Vec<u8> {
    match split_suffix(name) {
        Some((stem, suffix)) if suffix.format == format => [stem, suffix.replacement].concat(),
        _ => name.to_vec(),
    }
}

pub(crate) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
pub(crate) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
pub(crate) const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const BZIP2_MAGIC: [u8; 3] = *b"BZh";
/// The last three bytes of the magic of a skippable zstd frame; the first is `50` to `5f`.
const SKIPPABLE_TAIL: [u8; 3] = [0x2a, 0x4d, 0x18];

/// The longest magic, in bytes: so much decides about any content.
pub(crate) const MAGIC_BYTES: usize = XZ_MAGIC.len();

/// How content compares with a magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    Whole,
    /// So far it fits, but there is less content than magic.
    Beginning,
    Not,
}

impl Match {
    fn or(self, other: Self) -> Self {
        if self == Self::Not { other } else { self }
    }
}

/// What content is, as far as it can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detection {
    Found(Format),
    Nothing,
    NeedsMore,
}

/// Recognises a format by the beginning of the content.
pub(crate) fn detect(content: &[u8]) -> Detection {
    let mut answer = Detection::Nothing;
    for format in Format::ALL {
        match format.matches(content) {
            Match::Whole => return Detection::Found(format),
            Match::Beginning => answer = Detection::NeedsMore,
            Match::Not => {}
        }
    }
    answer
}

/// Whether these are the first bytes of a skippable zstd frame.
pub(crate) fn match_skippable(content: &[u8]) -> Match {
    match content.split_first() {
        None => Match::Beginning,
        Some((first, tail)) if first & 0xf0 == 0x50 => match_magic(tail, &SKIPPABLE_TAIL),
        Some(_) => Match::Not,
    }
}

fn match_magic(content: &[u8], magic: &[u8]) -> Match {
    if content.starts_with(magic) {
        Match::Whole
    } else if magic.starts_with(content) {
        Match::Beginning
    } else {
        Match::Not
    }
}

struct Suffix {
    text: &'static [u8],
    format: Format,
    replacement: &'static [u8],
}

const fn suffix(text: &'static [u8], format: Format) -> Suffix {
    Suffix {
        text,
        format,
        replacement: b"",
    }
}

const fn tar_suffix(text: &'static [u8], format: Format) -> Suffix {
    Suffix {
        text,
        format,
        replacement: b".tar",
    }
}

const SUFFIXES: [Suffix; 16] = [
    suffix(b".gz", Format::Gzip),
    suffix(b".gzip", Format::Gzip),
    tar_suffix(b".tgz", Format::Gzip),
    tar_suffix(b".taz", Format::Gzip),
    suffix(b".zst", Format::Zstd),
    suffix(b".zstd", Format::Zstd),
    tar_suffix(b".tzst", Format::Zstd),
    tar_suffix(b".tzstd", Format::Zstd),
    suffix(b".xz", Format::Xz),
    tar_suffix(b".txz", Format::Xz),
    suffix(b".bz2", Format::Bzip2),
    suffix(b".bzip2", Format::Bzip2),
    suffix(b".bz", Format::Bzip2),
    tar_suffix(b".tbz2", Format::Bzip2),
    tar_suffix(b".tbz", Format::Bzip2),
    tar_suffix(b".tb2", Format::Bzip2),
];

/// The name before the suffix, and the suffix. `.gz`, `dir/.gz` and `..gz` have none: what would be
/// left is no name.
fn split_suffix(name: &[u8]) -> Option<(&[u8], &'static Suffix)> {
    SUFFIXES.iter().find_map(|suffix| {
        let (stem, tail) = name.split_at_checked(name.len().checked_sub(suffix.text.len())?)?;
        let component = stem.rsplit(|byte| *byte == b'/').next().unwrap_or(stem);
        let names_something = component.iter().any(|byte| *byte != b'.');
        (tail.eq_ignore_ascii_case(suffix.text) && names_something).then_some((stem, suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::{Detection, Format, detect, output_name};

    #[test]
    fn a_suffix_is_removed_only_if_the_content_was_of_that_format() {
        assert_eq!(output_name(b"a.csv.gz", Format::Gzip), b"a.csv");
        assert_eq!(output_name(b"a.csv.gz", Format::Xz), b"a.csv.gz");
        assert_eq!(output_name(b"A.CSV.GZ", Format::Gzip), b"A.CSV");
        assert_eq!(output_name(b"a.csv", Format::Gzip), b"a.csv");
        assert_eq!(
            output_name(b"deep/er/a.tar.zst", Format::Zstd),
            b"deep/er/a.tar"
        );
        assert_eq!(output_name(b"\xff.bz2", Format::Bzip2), b"\xff");
        assert_eq!(output_name(b"a.gz.gz", Format::Gzip), b"a.gz");
    }

    #[test]
    fn suffixes_that_stand_for_an_archive_become_tar() {
        for (name, format) in [
            ("a.tgz", Format::Gzip),
            ("a.TGZ", Format::Gzip),
            ("a.tbz2", Format::Bzip2),
            ("a.txz", Format::Xz),
            ("a.tzst", Format::Zstd),
        ] {
            assert_eq!(output_name(name.as_bytes(), format), b"a.tar", "{name}");
        }
    }

    #[test]
    fn a_name_never_becomes_empty_or_a_dot_or_the_parent_directory() {
        for name in [
            "gz",
            ".gz",
            "..gz",
            "...gz",
            "dir/.gz",
            "dir/...gz",
            ".tgz",
            "dir/..tgz",
            "",
        ] {
            assert_eq!(
                output_name(name.as_bytes(), Format::Gzip),
                name.as_bytes(),
                "{name}"
            );
            assert_eq!(Format::of_name(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn content_shows_its_format_as_soon_as_it_is_certain() {
        assert_eq!(detect(b""), Detection::NeedsMore);
        assert_eq!(detect(b"\x1f"), Detection::NeedsMore);
        assert_eq!(detect(b"\x1f\x8b"), Detection::Found(Format::Gzip));
        assert_eq!(detect(b"\x28\xb5\x2f"), Detection::NeedsMore);
        assert_eq!(detect(b"\x28\xb5\x2f\xfd"), Detection::Found(Format::Zstd));
        assert_eq!(detect(b"\x5a\x2a\x4d\x18"), Detection::Found(Format::Zstd));
        assert_eq!(detect(b"\x6a\x2a\x4d\x18"), Detection::Nothing);
        assert_eq!(detect(b"\xfd7zXZ"), Detection::NeedsMore);
        assert_eq!(detect(b"\xfd7zXZ\0"), Detection::Found(Format::Xz));
        assert_eq!(detect(b"BZh"), Detection::NeedsMore);
        assert_eq!(detect(b"BZh1"), Detection::Found(Format::Bzip2));
        assert_eq!(detect(b"BZh0"), Detection::Nothing);
        assert_eq!(detect(b"BZ is text"), Detection::Nothing);
        assert_eq!(detect(b"PK\x03\x04"), Detection::Nothing);
    }
}
