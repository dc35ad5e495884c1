//! Attributes of a file: size, owner, permissions, times, extended pairs. Each may be absent.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::codec::CodecError;
use crate::codec::fields::{Fields, put_string};

const HAS_SIZE: u32 = 0x1;
const HAS_OWNER: u32 = 0x2;
const HAS_PERMISSIONS: u32 = 0x4;
const HAS_TIMES: u32 = 0x8;
const HAS_EXTENDED: u32 = 0x8000_0000;

/// What a server says about a file, or a client wants to be set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Size in bytes.
    pub size: Option<u64>,
    /// Owner and group.
    pub owner: Option<Owner>,
    /// Permission bits and, in what servers say, the type of file (`st_mode`).
    pub permissions: Option<u32>,
    /// Times of last access and modification.
    pub times: Option<Times>,
    /// Pairs of name and value that the protocol does not define.
    pub extended: Vec<(Bytes, Bytes)>,
}

/// Numeric owner and group of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
}

/// Times of a file in whole seconds since 1970-01-01 UTC. The field is unsigned and ends in 2106.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Times {
    /// Last access.
    pub accessed_seconds: u32,
    /// Last modification.
    pub modified_seconds: u32,
}

/// Type of a file, as its permission bits tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device.
    Other,
}

impl Attributes {
    /// Attributes that set permission bits and nothing else.
    #[must_use]
    pub fn with_permissions(permissions: u32) -> Self {
        Self {
            permissions: Some(permissions),
            ..Self::default()
        }
    }

    /// Type of the file, or `None` where the server did not say.
    #[must_use]
    pub fn file_type(&self) -> Option<FileType> {
        // The bits of st_mode are part of the protocol, whatever system this runs on.
        match self.permissions? & 0o170_000 {
            0 => None,
            0o100_000 => Some(FileType::Regular),
            0o040_000 => Some(FileType::Directory),
            0o120_000 => Some(FileType::Symlink),
            _ => Some(FileType::Other),
        }
    }

    /// Time of last modification in seconds since 1970, if the server said.
    #[must_use]
    pub fn modified_seconds(&self) -> Option<u32> {
        self.times.map(|times| times.modified_seconds)
    }

    pub(crate) fn put(&self, out: &mut BytesMut) {
        let flags = [
            (self.size.is_some(), HAS_SIZE),
            (self.owner.is_some(), HAS_OWNER),
            (self.permissions.is_some(), HAS_PERMISSIONS),
            (self.times.is_some(), HAS_TIMES),
            (!self.extended.is_empty(), HAS_EXTENDED),
        ];
        out.put_u32(
            flags
                .iter()
                .filter(|(present, _)| *present)
                .map(|(_, flag)| flag)
                .sum(),
        );
        if let Some(size) = self.size {
            out.put_u64(size);
        }
        if let Some(owner) = self.owner {
            out.put_u32(owner.user);
            out.put_u32(owner.group);
        }
        if let Some(permissions) = self.permissions {
            out.put_u32(permissions);
        }
        if let Some(times) = self.times {
            out.put_u32(times.accessed_seconds);
            out.put_u32(times.modified_seconds);
        }
        if !self.extended.is_empty() {
            out.put_u32(u32::try_from(self.extended.len()).unwrap_or(u32::MAX));
            for (name, value) in &self.extended {
                put_string(out, name);
                put_string(out, value);
            }
        }
    }

    /// Flags that version 3 does not define are ignored, as OpenSSH does: no field belongs to them.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, CodecError> {
        let flags = fields.u32("attribute flags")?;
        let mut attributes = Self::default();
        if flags & HAS_SIZE != 0 {
            attributes.size = Some(fields.u64("size")?);
        }
        if flags & HAS_OWNER != 0 {
            let user = fields.u32("user id")?;
            attributes.owner = Some(Owner {
                user,
                group: fields.u32("group id")?,
            });
        }
        if flags & HAS_PERMISSIONS != 0 {
            attributes.permissions = Some(fields.u32("permissions")?);
        }
        if flags & HAS_TIMES != 0 {
            let accessed_seconds = fields.u32("access time")?;
            let modified_seconds = fields.u32("modification time")?;
            attributes.times = Some(Times {
                accessed_seconds,
                modified_seconds,
            });
        }
        if flags & HAS_EXTENDED != 0 {
            // The count sizes nothing: the pairs that are really there do.
            for _ in 0..fields.u32("count of extended attributes")? {
                let name = fields.string("name of an extended attribute")?;
                attributes
                    .extended
                    .push((name, fields.string("extended attribute")?));
            }
        }
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_a_file_is_in_its_permission_bits() {
        let kinds = [
            (0o100_644, Some(FileType::Regular)),
            (0o040_755, Some(FileType::Directory)),
            (0o120_777, Some(FileType::Symlink)),
            (0o010_600, Some(FileType::Other)),
            (0o140_600, Some(FileType::Other)),
            (0o644, None),
        ];
        for (permissions, kind) in kinds {
            assert_eq!(Attributes::with_permissions(permissions).file_type(), kind);
        }
        assert_eq!(Attributes::default().file_type(), None);
    }

    #[test]
    fn a_count_of_extended_pairs_that_are_not_there_is_an_error() {
        let mut body = BytesMut::new();
        body.put_u32(HAS_EXTENDED);
        body.put_u32(u32::MAX);
        put_string(&mut body, b"name");
        put_string(&mut body, b"value");
        let error = Attributes::take(&mut Fields::new(body.freeze()));
        assert!(
            matches!(error, Err(CodecError::Truncated { left_bytes: 0, .. })),
            "{error:?}"
        );
    }
}
