//! The extensions of OpenSSH that Knarr knows, and the payloads of their replies.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::codec::CodecError;
use crate::codec::fields::Fields;

/// An extension of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Extension {
    /// `posix-rename@openssh.com`: renames over what is there.
    PosixRename,
    /// `statvfs@openssh.com`: space and inodes of a file system.
    Statvfs,
    /// `fstatvfs@openssh.com`: the same of an open file.
    Fstatvfs,
    /// `hardlink@openssh.com`: creates a hard link.
    Hardlink,
    /// `fsync@openssh.com`: flushes a file to the disk.
    Fsync,
    /// `lsetstat@openssh.com`: sets attributes of a link itself.
    Lsetstat,
    /// `limits@openssh.com`: says what the server takes.
    Limits,
    /// `expand-path@openssh.com`: resolves `~` in paths.
    ExpandPath,
    /// `copy-data`: copies between two open files on the server.
    CopyData,
    /// `check-file-handle`: hashes an open file on the server.
    CheckFileHandle,
    /// `check-file-name`: hashes a file on the server.
    CheckFileName,
    /// `users-groups-by-id@openssh.com`: names of numeric users and groups.
    UsersGroupsById,
}

impl Extension {
    /// All extensions that are known here.
    pub const ALL: [Self; 12] = [
        Self::PosixRename,
        Self::Statvfs,
        Self::Fstatvfs,
        Self::Hardlink,
        Self::Fsync,
        Self::Lsetstat,
        Self::Limits,
        Self::ExpandPath,
        Self::CopyData,
        Self::CheckFileHandle,
        Self::CheckFileName,
        Self::UsersGroupsById,
    ];

    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PosixRename => "posix-rename@openssh.com",
            Self::Statvfs => "statvfs@openssh.com",
            Self::Fstatvfs => "fstatvfs@openssh.com",
            Self::Hardlink => "hardlink@openssh.com",
            Self::Fsync => "fsync@openssh.com",
            Self::Lsetstat => "lsetstat@openssh.com",
            Self::Limits => "limits@openssh.com",
            Self::ExpandPath => "expand-path@openssh.com",
            Self::CopyData => "copy-data",
            Self::CheckFileHandle => "check-file-handle",
            Self::CheckFileName => "check-file-name",
            Self::UsersGroupsById => "users-groups-by-id@openssh.com",
        }
    }

    /// Its version on the wire; another version is another extension.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::Statvfs | Self::Fstatvfs => "2",
            _ => "1",
        }
    }
}

/// A set of extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extensions {
    bits: u16,
}

impl Extensions {
    /// Whether `extension` is in the set.
    #[must_use]
    pub const fn has(self, extension: Extension) -> bool {
        self.bits & (1 << extension as u8) != 0
    }

    /// Adds `extension`.
    pub const fn insert(&mut self, extension: Extension) {
        self.bits |= 1 << extension as u8;
    }

    /// Takes `extension` out.
    pub const fn remove(&mut self, extension: Extension) {
        self.bits &= !(1 << extension as u8);
    }

    /// The known ones among pairs of name and version, as VERSION carries them.
    #[must_use]
    pub fn from_pairs(pairs: &[(Bytes, Bytes)]) -> Self {
        let mut extensions = Self::default();
        for extension in Extension::ALL {
            let offered = |(name, version): &(Bytes, Bytes)| {
                name == extension.name() && version == extension.version()
            };
            if pairs.iter().any(offered) {
                extensions.insert(extension);
            }
        }
        extensions
    }
}

/// What `limits@openssh.com` says. Zero means that the server does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerLimits {
    /// Longest packet in bytes.
    pub packet_bytes: u64,
    /// Longest READ in bytes.
    pub read_bytes: u64,
    /// Longest WRITE in bytes.
    pub write_bytes: u64,
    /// Number of handles that may be open at a time.
    pub open_handles: u64,
}

impl ServerLimits {
    /// Decodes the payload of the extended reply.
    ///
    /// # Errors
    ///
    /// If it is too short.
    pub fn decode(payload: Bytes) -> Result<Self, CodecError> {
        let mut fields = Fields::new(payload);
        Ok(Self {
            packet_bytes: fields.u64("packet limit")?,
            read_bytes: fields.u64("read limit")?,
            write_bytes: fields.u64("write limit")?,
            open_handles: fields.u64("limit of open handles")?,
        })
    }

    /// Encodes the payload of the extended reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32);
        for field in [
            self.packet_bytes,
            self.read_bytes,
            self.write_bytes,
            self.open_handles,
        ] {
            out.put_u64(field);
        }
        out.freeze()
    }
}

/// What `statvfs@openssh.com` says about a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FilesystemStatistics {
    /// Size of a block in bytes.
    pub block_bytes: u64,
    /// Size of a fragment in bytes: the unit of the counts of blocks.
    pub fragment_bytes: u64,
    /// Fragments in all.
    pub blocks: u64,
    /// Free fragments.
    pub blocks_free: u64,
    /// Free fragments that an ordinary user may take.
    pub blocks_available: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// Free inodes that an ordinary user may take.
    pub inodes_available: u64,
    /// Identity of the file system.
    pub filesystem: u64,
    /// Flags: 1 read-only, 2 no setuid.
    pub flags: u64,
    /// Longest name in bytes.
    pub name_bytes: u64,
}

impl FilesystemStatistics {
    /// Space that an ordinary user may take, in bytes.
    #[must_use]
    pub fn available_bytes(&self) -> u64 {
        self.blocks_available.saturating_mul(self.fragment_bytes)
    }

    /// Whether nothing can be written there.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Decodes the payload of the extended reply.
    ///
    /// # Errors
    ///
    /// If it is too short.
    pub fn decode(payload: Bytes) -> Result<Self, CodecError> {
        let mut fields = Fields::new(payload);
        let mut next = || fields.u64("file system statistics");
        Ok(Self {
            block_bytes: next()?,
            fragment_bytes: next()?,
            blocks: next()?,
            blocks_free: next()?,
            blocks_available: next()?,
            inodes: next()?,
            inodes_free: next()?,
            inodes_available: next()?,
            filesystem: next()?,
            flags: next()?,
            name_bytes: next()?,
        })
    }

    /// Encodes the payload of the extended reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(88);
        for field in [
            self.block_bytes,
            self.fragment_bytes,
            self.blocks,
            self.blocks_free,
            self.blocks_available,
            self.inodes,
            self.inodes_free,
            self.inodes_available,
            self.filesystem,
            self.flags,
            self.name_bytes,
        ] {
            out.put_u64(field);
        }
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_counts_only_in_the_version_that_is_known() {
        let pair = |name: &'static str, version: &'static str| {
            (
                Bytes::from_static(name.as_bytes()),
                Bytes::from_static(version.as_bytes()),
            )
        };
        let extensions = Extensions::from_pairs(&[
            pair("statvfs@openssh.com", "1"),
            pair("fsync@openssh.com", "1"),
            pair("unheard-of@example.com", "1"),
        ]);
        assert!(extensions.has(Extension::Fsync));
        assert!(!extensions.has(Extension::Statvfs));
        assert!(!extensions.has(Extension::Limits));
    }

    #[test]
    fn payloads_of_extended_replies_survive_a_round_trip() {
        let limits = ServerLimits {
            packet_bytes: 1,
            read_bytes: 2,
            write_bytes: 3,
            open_handles: 4,
        };
        assert_eq!(ServerLimits::decode(limits.encode()), Ok(limits));
        let statistics = FilesystemStatistics {
            blocks: 5,
            name_bytes: 255,
            ..Default::default()
        };
        assert_eq!(
            FilesystemStatistics::decode(statistics.encode()),
            Ok(statistics)
        );
        assert!(ServerLimits::decode(limits.encode().slice(1..)).is_err());
    }
}
