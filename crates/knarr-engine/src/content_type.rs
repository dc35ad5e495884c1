//! Kinds of content, told by its beginning.
//!
//! Where a format has a signature, the content begins with it; where it has none (text), the beginning has
//! to be possible. Signatures: the formats' own specifications; `tar`: POSIX.1-1988 `ustar`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much of the content is looked at.
pub(crate) const BEGINNING_BYTES: usize = 8 * 1024;

/// A kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContentType {
    /// Text in UTF-8 without control characters.
    Text,
    /// Text with a comma, semicolon or tab in its first line.
    Csv,
    /// Text that begins with `<`.
    Xml,
    /// Text that begins with `{` or `[`.
    Json,
    /// PDF.
    Pdf,
    /// ZIP, and what is made of it (DOCX, XLSX, ODT, JAR).
    Zip,
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// tar, not compressed.
    Tar,
    /// An OpenPGP message, binary or armored.
    Pgp,
    /// An age file, binary or armored.
    Age,
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// GIF.
    Gif,
    /// TIFF.
    Tiff,
    /// Apache Parquet.
    Parquet,
}

impl ContentType {
    /// As the configuration writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Csv => "csv",
            Self::Xml => "xml",
            Self::Json => "json",
            Self::Pdf => "pdf",
            Self::Zip => "zip",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Tar => "tar",
            Self::Pgp => "pgp",
            Self::Age => "age",
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Gif => "gif",
            Self::Tiff => "tiff",
            Self::Parquet => "parquet",
        }
    }

    /// Whether content with this beginning can be of this kind.
    pub(crate) fn fits(self, beginning: &[u8]) -> bool {
        let begins = |signatures: &[&[u8]]| {
            let mut signatures = signatures.iter();
            signatures.any(|signature| beginning.starts_with(signature))
        };
        let text_with = |first: &[char]| {
            let text = text(beginning)
                .map(|text| text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']));
            text.is_some_and(|text| text.starts_with(first))
        };
        match self {
            Self::Text => text(beginning).is_some(),
            Self::Csv => text(beginning).is_some_and(|text| {
                let line = text.lines().next().unwrap_or_default();
                line.contains([',', ';', '\t'])
            }),
            Self::Xml => text_with(&['<']),
            Self::Json => text_with(&['{', '[']),
            Self::Pdf => begins(&[b"%PDF-"]),
            Self::Zip => begins(&[b"PK\x03\x04", b"PK\x05\x06"]),
            Self::Gzip => begins(&[b"\x1f\x8b"]),
            Self::Bzip2 => begins(&[b"BZh"]),
            Self::Xz => begins(&[b"\xfd7zXZ\0"]),
            Self::Zstd => begins(&[b"\x28\xb5\x2f\xfd"]),
            Self::Tar => beginning.get(257..262) == Some(b"ustar"),
            Self::Pgp => begins(&[b"-----BEGIN PGP MESSAGE"]) || is_pgp_packet(beginning),
            Self::Age => begins(&[b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE"]),
            Self::Png => begins(&[b"\x89PNG\r\n\x1a\n"]),
            Self::Jpeg => begins(&[b"\xff\xd8\xff"]),
            Self::Gif => begins(&[b"GIF87a", b"GIF89a"]),
            Self::Tiff => begins(&[b"II*\0", b"MM\0*"]),
            Self::Parquet => begins(&[b"PAR1"]),
        }
    }
}

/// The beginning as text, if it is any. A character that the end cuts is left out.
fn text(beginning: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(beginning) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() && beginning.len() >= BEGINNING_BYTES => {
            let (valid, _cut) = beginning.split_at_checked(error.valid_up_to())?;
            std::str::from_utf8(valid).ok()?
        }
        Err(_) => return None,
    };
    let is_odd = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\x0c');
    (!text.contains(is_odd)).then_some(text)
}

/// The packets with which an encrypted or signed message begins: RFC 9580, 4.2 and 5.
fn is_pgp_packet(beginning: &[u8]) -> bool {
    let Some(first) = beginning.first() else {
        return false;
    };
    let tag = match first {
        0x80..=0xbf => (first >> 2) & 0x0f,
        0xc0..=0xff => first & 0x3f,
        _ => return false,
    };
    // Session keys, signatures, compressed, encrypted and literal data, one-pass signatures, marker.
    matches!(tag, 1..=4 | 8..=11 | 18 | 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_told_by_their_beginnings() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let long = "ä".repeat(BEGINNING_BYTES);
        let cut = long.as_bytes().iter().skip(1).copied().collect::<Vec<_>>();
        for (kind, good, bad) in [
            (
                ContentType::Text,
                "plain\n".as_bytes(),
                b"\0binary".as_slice(),
            ),
            (
                ContentType::Text,
                long.as_bytes().get(..BEGINNING_BYTES).unwrap(),
                &cut,
            ),
            (ContentType::Csv, b"a;b\n1;2", b"one column"),
            (ContentType::Xml, "\u{feff}\n<?xml".as_bytes(), b"<\0"),
            (ContentType::Json, b" [1]", b"x"),
            (ContentType::Pdf, b"%PDF-1.7", b"MZ"),
            (ContentType::Tar, &tar, &[0; 512]),
            (ContentType::Pgp, b"\x85\x01\x0c\x03", b"PK\x03\x04"),
            (ContentType::Zip, b"PK\x03\x04", b"PK"),
        ] {
            assert!(kind.fits(good), "{kind:?}");
            assert!(!kind.fits(bad), "{kind:?}");
        }
        assert!(!ContentType::Pdf.fits(b""));
    }
}
