//! The header block of tar, and the records of pax.

use knarr_core::Timestamp;

use super::tar::BLOCK;
use crate::faults::ArchiveFault;

/// The fields of a header that matter here.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) kind: u8,
}

impl Header {
    pub(super) fn parse(block: &[u8]) -> Result<Self, ArchiveFault> {
        if !has_checksum(block) {
            return Err(ArchiveFault::Corrupt(
                "the checksum of a header is wrong".into(),
            ));
        }
        let name = text(field(block, 0, 100));
        let is_ustar = field(block, 257, 8) == b"ustar\x0000";
        let prefix = if is_ustar {
            text(field(block, 345, 155))
        } else {
            b""
        };
        let name = if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        };
        let size = number(field(block, 124, 12))
            .and_then(|size| u64::try_from(size).ok())
            .filter(|size| i64::try_from(*size).is_ok_and(|size| size <= i64::MAX - 512))
            .ok_or(ArchiveFault::Corrupt(
                "the length of an entry is no number".into(),
            ))?;
        let mode = number(field(block, 100, 8)).unwrap_or(0o644);
        let seconds = number(field(block, 136, 12)).unwrap_or(0);
        Ok(Self {
            name,
            link: text(field(block, 157, 100)).to_vec(),
            mode: u32::try_from(mode & 0o7777).unwrap_or(0o644),
            size,
            mtime: Timestamp::from_seconds(i64::try_from(seconds).unwrap_or(0)),
            kind: block.get(156).copied().unwrap_or_default(),
        })
    }
}

/// Whether these 512 bytes are the header of an entry.
pub(super) fn has_checksum(block: &[u8]) -> bool {
    if block.len() != BLOCK {
        return false;
    }
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(position, byte)| match position {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum();
    number(field(block, 148, 8)) == Some(i128::from(sum))
}

fn field(block: &[u8], start: usize, length: usize) -> &[u8] {
    block.get(start..start + length).unwrap_or_default()
}

/// A field up to its first NUL byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// Octal digits between spaces and NUL bytes, or a number in base 256 (GNU). No digits at all are 0.
fn number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement without the mark; so many bytes that fit an i128.
        let start: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let first = i128::from(first & 0x7f) | if start < 0 { !0x7f } else { 0 };
        return field.iter().skip(1).try_fold(first, |value, byte| {
            value.checked_mul(256)?.checked_add(i128::from(*byte))
        });
    }
    let is_filling = |byte: &u8| matches!(byte, b' ' | 0);
    let digits = field.iter().skip_while(|byte| is_filling(byte));
    let mut value: i128 = 0;
    let mut rest = digits.clone();
    for byte in digits {
        match byte {
            b'0'..=b'7' => value = value * 8 + i128::from(byte - b'0'),
            _ if is_filling(byte) => break,
            _ => return None,
        }
        rest.next();
    }
    rest.all(is_filling).then_some(value)
}

/// What a pax extended header says of an entry, as far as it matters here.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
}

impl Pax {
    pub(super) fn changes_entries(&self) -> bool {
        self.path.is_some() || self.link.is_some() || self.size.is_some()
    }
}

/// Reads records of the form `length key=value\n`.
pub(super) fn parse_pax(mut content: &[u8]) -> Result<Pax, ArchiveFault> {
    let broken = || ArchiveFault::Corrupt("an extended header cannot be read".into());
    let mut pax = Pax::default();
    while !content.is_empty() {
        let space = content.iter().take(8).position(|byte| *byte == b' ');
        let space = space.ok_or_else(broken)?;
        let length: usize = decimal(content.get(..space).unwrap_or_default())
            .and_then(|length| usize::try_from(length).ok())
            .ok_or_else(broken)?;
        let record = content.get(space + 1..length).ok_or_else(broken)?;
        content = content.get(length..).unwrap_or_default();
        let record = record.strip_suffix(b"\n").ok_or_else(broken)?;
        let equals = record.iter().position(|byte| *byte == b'=');
        let (key, value) = record.split_at(equals.ok_or_else(broken)?);
        let value = value.strip_prefix(b"=").unwrap_or(value);
        let is_first = match key {
            b"path" => pax.path.replace(name(value)?).is_none(),
            b"linkpath" => pax.link.replace(name(value)?).is_none(),
            b"size" => {
                let size = decimal(value).filter(|size| *size < (1 << 62));
                pax.size.replace(size.ok_or_else(broken)?).is_none()
            }
            b"mtime" => pax.mtime.replace(time(value).ok_or_else(broken)?).is_none(),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(ArchiveFault::Unsupported("a sparse file".into()));
            }
            _ => true,
        };
        if !is_first {
            return Err(ArchiveFault::Corrupt(
                "an extended header says the same thing twice".into(),
            ));
        }
    }
    Ok(pax)
}

fn name(value: &[u8]) -> Result<Vec<u8>, ArchiveFault> {
    if value.contains(&0) {
        return Err(ArchiveFault::Name(knarr_core::path::PathError::Nul));
    }
    Ok(value.to_vec())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
    text.parse().ok()
}

/// Seconds with an optional sign and fraction.
fn time(value: &[u8]) -> Option<Timestamp> {
    let (sign, value) = match value.strip_prefix(b"-") {
        Some(rest) => (-1, rest),
        None => (1, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    let mut unit = 100_000_000;
    for digit in parts.next().unwrap_or_default() {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        nanoseconds += i64::from(digit) * unit;
        unit /= 10;
    }
    // What lies beyond 2262 is of no use to anybody.
    let total = seconds
        .checked_mul(1_000_000_000)?
        .checked_add(nanoseconds)?;
    Some(Timestamp::from_nanoseconds(sign * total))
}

#[cfg(test)]
mod tests {
    use super::{number, parse_pax, time};

    #[test]
    fn numbers_are_octal_or_base_256_and_nothing_else() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"-000001\0"), None);
        assert_eq!(number(b"12 34\0"), None);
        assert_eq!(number(b"\x80\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xff"), Some(-1));
    }

    #[test]
    fn h11_a_pax_header_that_does_not_fit_its_lengths_is_refused() {
        assert_eq!(parse_pax(b"9 path=a\n").unwrap().path.unwrap(), b"a");
        for broken in [
            &b"8 path=a\n"[..],
            b"11 path=a\n",
            b"0 path=a\n",
            b"path=a\n",
            b"9 path=a ",
            b"9 path=a\n9 path=b\n",
            b"9 size=x\n",
            b"10 size=-1\n",
        ] {
            assert!(parse_pax(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn times_have_fractions() {
        assert_eq!(time(b"12.5").unwrap().nanoseconds(), 12_500_000_000);
        assert_eq!(time(b"-1.25").unwrap().nanoseconds(), -1_250_000_000);
        assert!(time(b"1e9").is_none() && time(b"99999999999999").is_none());
    }
}
