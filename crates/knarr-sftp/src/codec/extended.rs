//! What a client sends of the extensions.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::codec::fields::{Fields, put_string};
use crate::codec::{Attributes, CodecError, Extension};

/// A request of an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields carry the names that the protocol gives them"
)]
pub enum ExtendedRequest<B = Bytes> {
    /// Renames over what is there. Reply: status.
    PosixRename { from: B, to: B },
    /// Statistics of the file system of a path. Reply: extended.
    Statvfs { path: B },
    /// Statistics of the file system of what is open. Reply: extended.
    Fstatvfs { handle: B },
    /// Creates a hard link `to` for the file `from`. Reply: status.
    Hardlink { from: B, to: B },
    /// Flushes a file to the disk. Reply: status.
    Fsync { handle: B },
    /// Sets attributes of a link itself. Reply: status.
    Lsetstat { path: B, attributes: Attributes },
    /// Asks what the server takes. Reply: extended.
    Limits,
    /// Resolves `~`. Reply: one name.
    ExpandPath { path: B },
    /// Copies `length` bytes, or to the end if zero. Reply: status.
    CopyData {
        from: B,
        from_offset: u64,
        length: u64,
        to: B,
        to_offset: u64,
    },
    /// Hashes a range of an open file, as a whole or in blocks. `algorithms` is a list with commas, best
    /// first; `length` zero means to the end, `block_bytes` zero the range as one. Reply: extended.
    CheckFileHandle {
        handle: B,
        algorithms: B,
        offset: u64,
        length: u64,
        block_bytes: u32,
    },
    /// The same of a file that is not open. Reply: extended.
    CheckFileName {
        path: B,
        algorithms: B,
        offset: u64,
        length: u64,
        block_bytes: u32,
    },
    /// Names of users and groups; `users` and `groups` are numbers of four bytes each, one behind the other.
    /// Reply: extended.
    UsersGroupsById { users: B, groups: B },
    /// One that is not known here.
    Other { name: B, payload: B },
}

impl ExtendedRequest {
    pub(crate) fn take(mut fields: Fields) -> Result<Self, CodecError> {
        let name = fields.string("name of an extension")?;
        let known = Extension::ALL
            .into_iter()
            .find(|known| name == known.name());
        // paramiko's older name for the same.
        let alias = (name == "check-file").then_some(Extension::CheckFileHandle);
        let Some(extension) = known.or(alias) else {
            return Ok(Self::Other {
                name,
                payload: fields.rest(),
            });
        };
        let request = match extension {
            Extension::PosixRename => {
                let from = fields.string("old path")?;
                Self::PosixRename {
                    from,
                    to: fields.string("new path")?,
                }
            }
            Extension::Statvfs => Self::Statvfs {
                path: fields.string("path")?,
            },
            Extension::Fstatvfs => Self::Fstatvfs {
                handle: fields.handle()?,
            },
            Extension::Hardlink => {
                let from = fields.string("old path")?;
                Self::Hardlink {
                    from,
                    to: fields.string("new path")?,
                }
            }
            Extension::Fsync => Self::Fsync {
                handle: fields.handle()?,
            },
            Extension::Lsetstat => {
                let path = fields.string("path")?;
                Self::Lsetstat {
                    path,
                    attributes: Attributes::take(&mut fields)?,
                }
            }
            Extension::Limits => Self::Limits,
            Extension::ExpandPath => Self::ExpandPath {
                path: fields.string("path")?,
            },
            Extension::CopyData => {
                let from = fields.handle()?;
                let from_offset = fields.u64("offset to read at")?;
                let length = fields.u64("length to copy")?;
                let to = fields.handle()?;
                let to_offset = fields.u64("offset to write at")?;
                Self::CopyData {
                    from,
                    from_offset,
                    length,
                    to,
                    to_offset,
                }
            }
            Extension::CheckFileHandle => Self::CheckFileHandle {
                handle: fields.handle()?,
                algorithms: fields.string("hash algorithms")?,
                offset: fields.u64("offset")?,
                length: fields.u64("length")?,
                block_bytes: fields.u32("block size")?,
            },
            Extension::CheckFileName => Self::CheckFileName {
                path: fields.string("path")?,
                algorithms: fields.string("hash algorithms")?,
                offset: fields.u64("offset")?,
                length: fields.u64("length")?,
                block_bytes: fields.u32("block size")?,
            },
            Extension::UsersGroupsById => Self::UsersGroupsById {
                users: fields.string("user ids")?,
                groups: fields.string("group ids")?,
            },
        };
        Ok(request)
    }
}

impl<B: AsRef<[u8]>> ExtendedRequest<B> {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        match self {
            Self::PosixRename { from, to } => put_pair(out, Extension::PosixRename, from, to),
            Self::Hardlink { from, to } => put_pair(out, Extension::Hardlink, from, to),
            Self::Statvfs { path } => put_one(out, Extension::Statvfs, path),
            Self::Fstatvfs { handle } => put_one(out, Extension::Fstatvfs, handle),
            Self::Fsync { handle } => put_one(out, Extension::Fsync, handle),
            Self::ExpandPath { path } => put_one(out, Extension::ExpandPath, path),
            Self::Lsetstat { path, attributes } => {
                put_one(out, Extension::Lsetstat, path);
                attributes.put(out);
            }
            Self::Limits => put_string(out, Extension::Limits.name().as_bytes()),
            Self::CopyData {
                from,
                from_offset,
                length,
                to,
                to_offset,
            } => {
                put_one(out, Extension::CopyData, from);
                out.put_u64(*from_offset);
                out.put_u64(*length);
                put_string(out, to.as_ref());
                out.put_u64(*to_offset);
            }
            Self::CheckFileHandle {
                handle: subject,
                algorithms,
                offset,
                length,
                block_bytes,
            }
            | Self::CheckFileName {
                path: subject,
                algorithms,
                offset,
                length,
                block_bytes,
            } => {
                let extension = match self {
                    Self::CheckFileHandle { .. } => Extension::CheckFileHandle,
                    _ => Extension::CheckFileName,
                };
                put_pair(out, extension, subject, algorithms);
                out.put_u64(*offset);
                out.put_u64(*length);
                out.put_u32(*block_bytes);
            }
            Self::UsersGroupsById { users, groups } => {
                put_pair(out, Extension::UsersGroupsById, users, groups);
            }
            Self::Other { name, payload } => {
                put_string(out, name.as_ref());
                out.put_slice(payload.as_ref());
            }
        }
    }
}

fn put_one<B: AsRef<[u8]>>(out: &mut BytesMut, extension: Extension, string: &B) {
    put_string(out, extension.name().as_bytes());
    put_string(out, string.as_ref());
}

fn put_pair<B: AsRef<[u8]>>(out: &mut BytesMut, extension: Extension, first: &B, second: &B) {
    put_one(out, extension, first);
    put_string(out, second.as_ref());
}
