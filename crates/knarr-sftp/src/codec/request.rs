//! What a client sends.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::codec::fields::{Fields, put_packet, put_string};
use crate::codec::{Attributes, CodecError, ExtendedRequest, kind};

/// How a file is to be opened. Combine with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct OpenFlags(u32);

impl OpenFlags {
    /// For reading.
    pub const READ: Self = Self(0x01);
    /// For writing.
    pub const WRITE: Self = Self(0x02);
    /// Each write goes to the end. OpenSSH then ignores the offsets of WRITEs.
    pub const APPEND: Self = Self(0x04);
    /// Created if it is not there.
    pub const CREATE: Self = Self(0x08);
    /// Emptied if it is there; needs [`Self::CREATE`].
    pub const TRUNCATE: Self = Self(0x10);
    /// Fails if it is there; needs [`Self::CREATE`].
    pub const EXCLUSIVE: Self = Self(0x20);

    /// Whether all of `flags` are set.
    #[must_use]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// The flags as they are on the wire.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Flags from the wire. Unknown ones are kept.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

impl std::ops::BitOr for OpenFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A request. Decoded ones hold slices of the packet; to encode, borrowed bytes (`&[u8]`) will do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields carry the names that the protocol gives them"
)]
pub enum Request<B = Bytes> {
    /// Opens a file. Reply: handle.
    Open {
        path: B,
        flags: OpenFlags,
        attributes: Attributes,
    },
    /// Gives a handle back. Reply: status.
    Close { handle: B },
    /// Reads at an offset. Reply: data, or status (end of file).
    Read { handle: B, offset: u64, length: u32 },
    /// Writes at an offset. Reply: status.
    Write { handle: B, offset: u64, data: B },
    /// Attributes, of a link itself. Reply: attributes.
    Lstat { path: B },
    /// Attributes of what is open. Reply: attributes.
    Fstat { handle: B },
    /// Sets attributes. Reply: status.
    Setstat { path: B, attributes: Attributes },
    /// Sets attributes of what is open. Reply: status.
    Fsetstat { handle: B, attributes: Attributes },
    /// Opens a directory. Reply: handle.
    Opendir { path: B },
    /// The next names of a directory. Reply: names, or status (end of file).
    Readdir { handle: B },
    /// Removes a file. Reply: status.
    Remove { path: B },
    /// Creates a directory. Reply: status.
    Mkdir { path: B, attributes: Attributes },
    /// Removes an empty directory. Reply: status.
    Rmdir { path: B },
    /// The canonical form of a path. Reply: one name.
    Realpath { path: B },
    /// Attributes, links followed. Reply: attributes.
    Stat { path: B },
    /// Renames; most servers refuse if the target is there. Reply: status.
    Rename { from: B, to: B },
    /// The target of a link. Reply: one name.
    Readlink { path: B },
    /// Creates a link. On the wire the target comes first, as OpenSSH and those who follow it have
    /// it; the draft says the reverse. Reply: status.
    Symlink { target: B, link: B },
    /// An extension.
    Extended(ExtendedRequest<B>),
}

/// A packet from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientPacket {
    /// The first packet.
    Init {
        /// Version that the client speaks.
        version: u32,
    },
    /// Any other packet.
    Request {
        /// Number that the reply has to carry.
        id: u32,
        /// What is wanted.
        request: Request,
    },
}

impl ClientPacket {
    /// Decodes a body.
    ///
    /// # Errors
    ///
    /// If it is none that a client sends.
    pub fn decode(body: Bytes) -> Result<Self, CodecError> {
        let mut fields = Fields::new(body);
        let kind = fields.u8("type of packet")?;
        if kind == kind::INIT {
            return Ok(Self::Init {
                version: fields.u32("version")?,
            });
        }
        let id = fields.u32("id of a request")?;
        Ok(Self::Request {
            id,
            request: Request::take(kind, fields)?,
        })
    }

    /// Appends the packet, with its length, to `out`.
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLarge`]; `out` is as it was.
    pub fn encode(&self, limit_bytes: usize, out: &mut BytesMut) -> Result<(), CodecError> {
        match self {
            Self::Init { version } => put_packet(out, limit_bytes, |out| {
                out.put_u8(kind::INIT);
                out.put_u32(*version);
            }),
            Self::Request { id, request } => request.encode(*id, limit_bytes, out),
        }
    }
}

impl Request {
    fn take(kind: u8, mut fields: Fields) -> Result<Self, CodecError> {
        let request = match kind {
            kind::OPEN => {
                let path = fields.string("path")?;
                let flags = OpenFlags(fields.u32("open flags")?);
                Self::Open {
                    path,
                    flags,
                    attributes: Attributes::take(&mut fields)?,
                }
            }
            kind::CLOSE => Self::Close {
                handle: fields.handle()?,
            },
            kind::READ => {
                let handle = fields.handle()?;
                let offset = fields.u64("offset")?;
                Self::Read {
                    handle,
                    offset,
                    length: fields.u32("length")?,
                }
            }
            kind::WRITE => {
                let handle = fields.handle()?;
                let offset = fields.u64("offset")?;
                Self::Write {
                    handle,
                    offset,
                    data: fields.string("data")?,
                }
            }
            kind::LSTAT => Self::Lstat {
                path: fields.string("path")?,
            },
            kind::FSTAT => Self::Fstat {
                handle: fields.handle()?,
            },
            kind::SETSTAT => {
                let path = fields.string("path")?;
                Self::Setstat {
                    path,
                    attributes: Attributes::take(&mut fields)?,
                }
            }
            kind::FSETSTAT => {
                let handle = fields.handle()?;
                Self::Fsetstat {
                    handle,
                    attributes: Attributes::take(&mut fields)?,
                }
            }
            kind::OPENDIR => Self::Opendir {
                path: fields.string("path")?,
            },
            kind::READDIR => Self::Readdir {
                handle: fields.handle()?,
            },
            kind::REMOVE => Self::Remove {
                path: fields.string("path")?,
            },
            kind::MKDIR => {
                let path = fields.string("path")?;
                Self::Mkdir {
                    path,
                    attributes: Attributes::take(&mut fields)?,
                }
            }
            kind::RMDIR => Self::Rmdir {
                path: fields.string("path")?,
            },
            kind::REALPATH => Self::Realpath {
                path: fields.string("path")?,
            },
            kind::STAT => Self::Stat {
                path: fields.string("path")?,
            },
            kind::RENAME => {
                let from = fields.string("old path")?;
                Self::Rename {
                    from,
                    to: fields.string("new path")?,
                }
            }
            kind::READLINK => Self::Readlink {
                path: fields.string("path")?,
            },
            kind::SYMLINK => {
                let target = fields.string("target of a link")?;
                Self::Symlink {
                    target,
                    link: fields.string("path of a link")?,
                }
            }
            kind::EXTENDED => Self::Extended(ExtendedRequest::take(fields)?),
            kind => return Err(CodecError::UnknownType { kind }),
        };
        Ok(request)
    }
}

impl<B: AsRef<[u8]>> Request<B> {
    /// Appends the request, with its length, to `out`.
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLarge`]; `out` is as it was.
    pub fn encode(
        &self,
        id: u32,
        limit_bytes: usize,
        out: &mut BytesMut,
    ) -> Result<(), CodecError> {
        put_packet(out, limit_bytes, |out| {
            out.put_u8(self.kind());
            out.put_u32(id);
            self.put_fields(out);
        })
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Open { .. } => kind::OPEN,
            Self::Close { .. } => kind::CLOSE,
            Self::Read { .. } => kind::READ,
            Self::Write { .. } => kind::WRITE,
            Self::Lstat { .. } => kind::LSTAT,
            Self::Fstat { .. } => kind::FSTAT,
            Self::Setstat { .. } => kind::SETSTAT,
            Self::Fsetstat { .. } => kind::FSETSTAT,
            Self::Opendir { .. } => kind::OPENDIR,
            Self::Readdir { .. } => kind::READDIR,
            Self::Remove { .. } => kind::REMOVE,
            Self::Mkdir { .. } => kind::MKDIR,
            Self::Rmdir { .. } => kind::RMDIR,
            Self::Realpath { .. } => kind::REALPATH,
            Self::Stat { .. } => kind::STAT,
            Self::Rename { .. } => kind::RENAME,
            Self::Readlink { .. } => kind::READLINK,
            Self::Symlink { .. } => kind::SYMLINK,
            Self::Extended(_) => kind::EXTENDED,
        }
    }

    fn put_fields(&self, out: &mut BytesMut) {
        match self {
            Self::Open {
                path,
                flags,
                attributes,
            } => {
                put_string(out, path.as_ref());
                out.put_u32(flags.0);
                attributes.put(out);
            }
            Self::Close { handle: string }
            | Self::Fstat { handle: string }
            | Self::Readdir { handle: string }
            | Self::Lstat { path: string }
            | Self::Opendir { path: string }
            | Self::Remove { path: string }
            | Self::Rmdir { path: string }
            | Self::Realpath { path: string }
            | Self::Stat { path: string }
            | Self::Readlink { path: string } => put_string(out, string.as_ref()),
            Self::Read {
                handle,
                offset,
                length,
            } => {
                put_string(out, handle.as_ref());
                out.put_u64(*offset);
                out.put_u32(*length);
            }
            Self::Write {
                handle,
                offset,
                data,
            } => {
                put_string(out, handle.as_ref());
                out.put_u64(*offset);
                put_string(out, data.as_ref());
            }
            Self::Setstat {
                path: string,
                attributes,
            }
            | Self::Fsetstat {
                handle: string,
                attributes,
            }
            | Self::Mkdir {
                path: string,
                attributes,
            } => {
                put_string(out, string.as_ref());
                attributes.put(out);
            }
            Self::Rename {
                from: first,
                to: second,
            }
            | Self::Symlink {
                target: first,
                link: second,
            } => {
                put_string(out, first.as_ref());
                put_string(out, second.as_ref());
            }
            Self::Extended(request) => request.put(out),
        }
    }
}

/// What a WRITE consists of before its data: the packet is this, followed by `data_bytes` bytes. So the
/// data need not be copied behind it.
///
/// # Errors
///
/// [`CodecError::TooLarge`]; nothing is appended then.
pub fn encode_write_header(
    id: u32,
    handle: &[u8],
    offset: u64,
    data_bytes: usize,
    limit_bytes: usize,
    out: &mut BytesMut,
) -> Result<(), CodecError> {
    let fixed = size_of::<u8>() + 3 * size_of::<u32>() + size_of::<u64>();
    let length = fixed + handle.len() + data_bytes;
    let declared = u32::try_from(length)
        .ok()
        .filter(|_| length <= limit_bytes)
        .ok_or(CodecError::TooLarge {
            bytes: length,
            limit_bytes,
        })?;
    out.reserve(size_of::<u32>() + fixed + handle.len());
    out.put_u32(declared);
    out.put_u8(kind::WRITE);
    out.put_u32(id);
    put_string(out, handle);
    out.put_u64(offset);
    out.put_u32(u32::try_from(data_bytes).unwrap_or(u32::MAX));
    Ok(())
}
