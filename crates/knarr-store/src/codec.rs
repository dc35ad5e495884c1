//! The bytes of what is stored in blobs. Part of the schema: what is written here is read for ever.
//!
//! * Unsigned numbers: LEB128, the shortest form. Times: 8 bytes, big-endian, two's complement.
//! * Byte strings: their length as a number, then the bytes. Optional things: one byte, 0 or 1, before.
//! * A fingerprint: one byte of flags (bits 0-1 the kind, 2 mtime, 3 inode, 4 tag, 5 link target), the
//!   size, then what the flags announce in that order.
//!
//! Reading never trusts a length: everything is checked against what is there.

use knarr_core::entry::{Fingerprint, Identity, Kind};
use knarr_core::{ContentHash, RelPath, Timestamp};

/// Why bytes from the database are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They end too early.
    #[error("it ends too early")]
    Short,
    /// There are bytes behind the end.
    #[error("something follows its end")]
    Trailing,
    /// A number has too many bytes or is not in its shortest form.
    #[error("a number in it is broken")]
    Number,
    /// A flag, a kind or a name stands for nothing.
    #[error("it uses a value that means nothing")]
    Value,
    /// A text is not UTF-8.
    #[error("a text in it is not UTF-8")]
    Text,
    /// A path is none.
    #[error("a path in it is none")]
    Path(#[source] knarr_core::path::PathError),
    /// It was written in a form that this program does not know.
    #[error("it has the form {0}, which this program does not know")]
    Version(u8),
}

const MTIME: u8 = 1 << 2;
const INODE: u8 = 1 << 3;
const TAG: u8 = 1 << 4;
const LINK: u8 = 1 << 5;

pub(crate) fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::File => 0,
        Kind::Directory => 1,
        Kind::Symlink => 2,
        Kind::Special => 3,
    }
}

pub(crate) fn kind_of_code(code: u8) -> Option<Kind> {
    [Kind::File, Kind::Directory, Kind::Symlink, Kind::Special]
        .get(usize::from(code))
        .copied()
}

/// Appends to a buffer that is used again and again.
#[derive(Debug)]
pub(crate) struct Encoder<'b>(pub(crate) &'b mut Vec<u8>);

impl Encoder<'_> {
    pub(crate) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(crate) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    pub(crate) fn time(&mut self, time: Timestamp) {
        self.0.extend_from_slice(&time.nanoseconds().to_be_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn hash(&mut self, hash: &ContentHash) {
        self.0.extend_from_slice(hash.as_bytes());
    }

    pub(crate) fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => {
                self.byte(1);
                write(self, value);
            }
            None => self.byte(0),
        }
    }

    pub(crate) fn fingerprint(&mut self, fingerprint: &Fingerprint) {
        let identity = match &fingerprint.identity {
            None => 0,
            Some(Identity::Inode(_)) => INODE,
            Some(Identity::Tag(_)) => TAG,
        };
        let flag = |set: bool, bit| if set { bit } else { 0 };
        self.byte(
            kind_code(fingerprint.kind)
                | flag(fingerprint.mtime.is_some(), MTIME)
                | identity
                | flag(fingerprint.link_target.is_some(), LINK),
        );
        self.number(fingerprint.size);
        if let Some(mtime) = fingerprint.mtime {
            self.time(mtime);
        }
        match &fingerprint.identity {
            None => {}
            Some(Identity::Inode(inode)) => self.number(*inode),
            Some(Identity::Tag(tag)) => self.bytes(tag.as_bytes()),
        }
        if let Some(target) = &fingerprint.link_target {
            self.bytes(target);
        }
    }
}

/// Takes from the front of what is left.
#[derive(Debug)]
pub(crate) struct Decoder<'b>(&'b [u8]);

impl<'b> Decoder<'b> {
    pub(crate) const fn new(bytes: &'b [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8], Malformed> {
        let (front, rest) = self.0.split_at_checked(count).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (front, rest) = self.0.split_first_chunk().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*front)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed::Number);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                let shortest = shift == 0 || byte != 0;
                return if shortest {
                    Ok(number)
                } else {
                    Err(Malformed::Number)
                };
            }
        }
        Err(Malformed::Number)
    }

    pub(crate) fn time(&mut self) -> Result<Timestamp, Malformed> {
        Ok(Timestamp::from_nanoseconds(i64::from_be_bytes(
            self.array()?,
        )))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'b [u8], Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed::Short)?;
        self.take(length)
    }

    pub(crate) fn text(&mut self) -> Result<&'b str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::Text)
    }

    pub(crate) fn hash(&mut self) -> Result<ContentHash, Malformed> {
        self.array().map(ContentHash::from_bytes)
    }

    pub(crate) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        match self.byte()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(Malformed::Value),
        }
    }

    pub(crate) fn fingerprint(&mut self) -> Result<Fingerprint, Malformed> {
        let flags = self.byte()?;
        if flags > 0x3f || flags & (INODE | TAG) == INODE | TAG {
            return Err(Malformed::Value);
        }
        let kind = kind_of_code(flags & 3).ok_or(Malformed::Value)?;
        let size = self.number()?;
        let mtime = if flags & MTIME == 0 {
            None
        } else {
            Some(self.time()?)
        };
        let identity = match flags & (INODE | TAG) {
            0 => None,
            INODE => Some(Identity::Inode(self.number()?)),
            _ => Some(Identity::Tag(self.text()?.into())),
        };
        let link_target = if flags & LINK == 0 {
            None
        } else {
            Some(self.bytes()?.into())
        };
        Ok(Fingerprint {
            kind,
            size,
            mtime,
            identity,
            link_target,
        })
    }

    pub(crate) const fn finish(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Trailing)
        }
    }
}

/// A fingerprint in a column of its own.
pub(crate) fn fingerprint_blob(fingerprint: &Fingerprint) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    Encoder(&mut bytes).fingerprint(fingerprint);
    bytes
}

pub(crate) fn fingerprint_of_blob(bytes: &[u8]) -> Result<Fingerprint, Malformed> {
    let mut decoder = Decoder::new(bytes);
    let fingerprint = decoder.fingerprint()?;
    decoder.finish()?;
    Ok(fingerprint)
}

pub(crate) fn path_of(bytes: &[u8]) -> Result<RelPath, Malformed> {
    RelPath::new(bytes).map_err(Malformed::Path)
}

/// Both keys under which a path can stand in tree order: as anything but a directory, and as one.
pub(crate) fn keys_of(path: &RelPath) -> (&[u8], Vec<u8>) {
    let mut directory = Vec::with_capacity(path.as_bytes().len() + 1);
    directory.extend_from_slice(path.as_bytes());
    directory.push(b'/');
    (path.as_bytes(), directory)
}

/// The first key behind everything below the directory with this key (which ends in `/`).
pub(crate) fn behind(directory_key: &[u8]) -> Vec<u8> {
    let mut key = directory_key.to_vec();
    if let Some(last) = key.last_mut() {
        *last = b'/' + 1;
    }
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn fingerprints() -> impl Strategy<Value = Fingerprint> {
        let identity = prop_oneof![
            Just(None),
            any::<u64>().prop_map(|inode| Some(Identity::Inode(inode))),
            ".{0,20}".prop_map(|tag| Some(Identity::Tag(tag.into()))),
        ];
        let link = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
        (0_u8..4, any::<u64>(), any::<Option<i64>>(), identity, link).prop_map(
            |(kind, size, mtime, identity, link)| Fingerprint {
                kind: kind_of_code(kind).unwrap(),
                size,
                mtime: mtime.map(Timestamp::from_nanoseconds),
                identity,
                link_target: link.map(Into::into),
            },
        )
    }

    proptest! {
        #[test]
        fn a_fingerprint_reads_back(fingerprint in fingerprints()) {
            let bytes = fingerprint_blob(&fingerprint);
            prop_assert_eq!(fingerprint_of_blob(&bytes), Ok(fingerprint));
        }

        #[test]
        fn r14_any_bytes_are_read_or_refused_and_only_one_form_is_read(bytes: Vec<u8>) {
            if let Ok(fingerprint) = fingerprint_of_blob(&bytes) {
                prop_assert_eq!(fingerprint_blob(&fingerprint), bytes);
            }
        }

        #[test]
        fn numbers_read_back(number: u64) {
            let mut bytes = Vec::new();
            Encoder(&mut bytes).number(number);
            prop_assert_eq!(Decoder::new(&bytes).number(), Ok(number));
        }
    }

    #[test]
    fn a_number_has_one_form_only() {
        assert_eq!(Decoder::new(&[0x80, 0]).number(), Err(Malformed::Number));
        assert_eq!(Decoder::new(&[0xff; 10]).number(), Err(Malformed::Number));
        assert_eq!(Decoder::new(&[0x80]).number(), Err(Malformed::Short));
    }
}
