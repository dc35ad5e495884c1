//! What a server sends.

use std::fmt;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::codec::fields::{Fields, put_packet, put_string};
use crate::codec::{Attributes, CodecError, kind};

/// Fewest bytes that a name in a reply takes: two empty strings and attribute flags.
const NAME_BYTES: usize = 12;

/// Outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusCode {
    /// Done.
    Ok,
    /// End of the file or of the directory.
    Eof,
    /// Nothing is there.
    NoSuchFile,
    /// Not allowed.
    PermissionDenied,
    /// Anything else; version 3 has no code for "exists", "not empty" or "no space".
    Failure,
    /// The server could not read the request.
    BadMessage,
    /// There is no connection (made by clients, not sent).
    NoConnection,
    /// The connection was lost (made by clients, not sent).
    ConnectionLost,
    /// The server does not know the request.
    OperationUnsupported,
    /// A code that version 3 does not define.
    Other(u32),
}

impl StatusCode {
    /// The code as it is on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Ok => 0,
            Self::Eof => 1,
            Self::NoSuchFile => 2,
            Self::PermissionDenied => 3,
            Self::Failure => 4,
            Self::BadMessage => 5,
            Self::NoConnection => 6,
            Self::ConnectionLost => 7,
            Self::OperationUnsupported => 8,
            Self::Other(number) => number,
        }
    }

    /// The code that `number` stands for.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Ok,
            1 => Self::Eof,
            2 => Self::NoSuchFile,
            3 => Self::PermissionDenied,
            4 => Self::Failure,
            5 => Self::BadMessage,
            6 => Self::NoConnection,
            7 => Self::ConnectionLost,
            8 => Self::OperationUnsupported,
            number => Self::Other(number),
        }
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Ok => "done",
            Self::Eof => "end of file",
            Self::NoSuchFile => "no such file",
            Self::PermissionDenied => "permission denied",
            Self::Failure => "failure",
            Self::BadMessage => "bad message",
            Self::NoConnection => "no connection",
            Self::ConnectionLost => "connection lost",
            Self::OperationUnsupported => "operation not supported",
            Self::Other(number) => return write!(f, "status {number}"),
        };
        f.write_str(text)
    }
}

/// A status reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Outcome.
    pub code: StatusCode,
    /// What the server says about it; empty if it says nothing.
    pub message: Bytes,
    /// Language of the message; empty if it says nothing.
    pub language: Bytes,
}

/// A name in a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameEntry {
    /// The name: a slice of the packet, exactly as the server sent it. Nothing has checked it yet.
    pub name: Bytes,
    /// The line that `ls -l` would print: for people, never to be parsed.
    pub long_name: Bytes,
    /// What the server says about the file.
    pub attributes: Attributes,
}

impl NameEntry {
    /// Whether the name names something inside the directory: not empty, no `/`, no NUL, not `.` or
    /// `..`. Any other name from a listing must not be used.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let name: &[u8] = &self.name;
        !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
    }
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Outcome of a request.
    Status(Status),
    /// Handle of what was opened.
    Handle(Bytes),
    /// Bytes of a file.
    Data(Bytes),
    /// Names.
    Names(Vec<NameEntry>),
    /// Attributes of a file.
    Attributes(Attributes),
    /// Reply of an extension, whose layout depends on the request.
    Extended(Bytes),
}

/// A packet from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerPacket {
    /// The first packet.
    Version {
        /// Version that will be spoken.
        version: u32,
        /// Extensions: name and, with OpenSSH, version.
        extensions: Vec<(Bytes, Bytes)>,
    },
    /// Any other packet.
    Reply {
        /// Number of the request.
        id: u32,
        /// The answer.
        reply: Reply,
    },
}

impl ServerPacket {
    /// Decodes a body.
    ///
    /// # Errors
    ///
    /// If it is none that a server sends.
    pub fn decode(body: Bytes) -> Result<Self, CodecError> {
        let mut fields = Fields::new(body);
        let kind = fields.u8("type of packet")?;
        if kind == kind::VERSION {
            let version = fields.u32("version")?;
            let mut extensions = Vec::new();
            while !fields.is_empty() {
                let name = fields.string("name of an extension")?;
                extensions.push((name, fields.string("version of an extension")?));
            }
            return Ok(Self::Version {
                version,
                extensions,
            });
        }
        let id = fields.u32("id of a reply")?;
        Ok(Self::Reply {
            id,
            reply: Reply::take(kind, fields)?,
        })
    }

    /// Appends the packet, with its length, to `out`.
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLarge`]; `out` is as it was.
    pub fn encode(&self, limit_bytes: usize, out: &mut BytesMut) -> Result<(), CodecError> {
        match self {
            Self::Version {
                version,
                extensions,
            } => put_packet(out, limit_bytes, |out| {
                out.put_u8(kind::VERSION);
                out.put_u32(*version);
                for (name, value) in extensions {
                    put_string(out, name);
                    put_string(out, value);
                }
            }),
            Self::Reply { id, reply } => reply.encode(*id, limit_bytes, out),
        }
    }
}

impl Reply {
    fn take(kind: u8, mut fields: Fields) -> Result<Self, CodecError> {
        match kind {
            kind::STATUS => {
                let code = StatusCode::from_number(fields.u32("status code")?);
                // Servers from before version 3 leave the texts out.
                let mut text = |field| {
                    if fields.is_empty() {
                        Ok(Bytes::new())
                    } else {
                        fields.string(field)
                    }
                };
                let message = text("message of a status")?;
                let language = text("language of a status")?;
                Ok(Self::Status(Status {
                    code,
                    message,
                    language,
                }))
            }
            kind::HANDLE => Ok(Self::Handle(fields.handle()?)),
            kind::DATA => Ok(Self::Data(fields.string("data")?)),
            kind::NAME => take_names(&mut fields).map(Self::Names),
            kind::ATTRS => Attributes::take(&mut fields).map(Self::Attributes),
            kind::EXTENDED_REPLY => Ok(Self::Extended(fields.rest())),
            kind => Err(CodecError::UnknownType { kind }),
        }
    }

    /// Appends the reply, with its length, to `out`.
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
            match self {
                Self::Status(status) => {
                    out.put_u32(status.code.number());
                    put_string(out, &status.message);
                    put_string(out, &status.language);
                }
                Self::Handle(string) | Self::Data(string) => put_string(out, string),
                Self::Names(names) => {
                    out.put_u32(u32::try_from(names.len()).unwrap_or(u32::MAX));
                    for entry in names {
                        put_string(out, &entry.name);
                        put_string(out, &entry.long_name);
                        entry.attributes.put(out);
                    }
                }
                Self::Attributes(attributes) => attributes.put(out),
                Self::Extended(payload) => out.put_slice(payload),
            }
        })
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Status(_) => kind::STATUS,
            Self::Handle(_) => kind::HANDLE,
            Self::Data(_) => kind::DATA,
            Self::Names(_) => kind::NAME,
            Self::Attributes(_) => kind::ATTRS,
            Self::Extended(_) => kind::EXTENDED_REPLY,
        }
    }
}

fn take_names(fields: &mut Fields) -> Result<Vec<NameEntry>, CodecError> {
    let announced = fields.u32("count of names")?;
    let possible = fields.left_bytes() / NAME_BYTES;
    let count = usize::try_from(announced)
        .ok()
        .filter(|count| *count <= possible);
    let count = count.ok_or(CodecError::TooManyNames {
        announced,
        left_bytes: fields.left_bytes() as u64,
    })?;
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        let name = fields.string("name")?;
        let long_name = fields.string("long name")?;
        names.push(NameEntry {
            name,
            long_name,
            attributes: Attributes::take(fields)?,
        });
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h02_names_that_lead_out_of_a_directory_are_not_plain() {
        let entry = |name: &'static [u8]| NameEntry {
            name: Bytes::from_static(name),
            long_name: Bytes::new(),
            attributes: Attributes::default(),
        };
        for name in [
            &b""[..],
            b".",
            b"..",
            b"/",
            b"a/b",
            b"../x",
            b"/etc/passwd",
            b"a\0b",
        ] {
            assert!(!entry(name).is_plain(), "{}", name.escape_ascii());
        }
        for name in [
            &b"a"[..],
            b"...",
            b"-rf",
            b"new\nline",
            b"\xff\xfe",
            b"..\\x",
        ] {
            assert!(entry(name).is_plain(), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn a_status_without_texts_is_understood() {
        let packet = ServerPacket::decode(Bytes::from_static(&[101, 0, 0, 0, 7, 0, 0, 0, 2]));
        let Ok(ServerPacket::Reply {
            id: 7,
            reply: Reply::Status(status),
        }) = packet
        else {
            panic!("no status: {packet:?}");
        };
        assert_eq!(status.code, StatusCode::NoSuchFile);
        assert!(status.message.is_empty());
    }

    #[test]
    fn h43_a_count_of_names_that_cannot_be_there_is_refused() {
        let packet =
            ServerPacket::decode(Bytes::from_static(&[104, 0, 0, 0, 7, 255, 255, 255, 255]));
        let expected = CodecError::TooManyNames {
            announced: u32::MAX,
            left_bytes: 0,
        };
        assert_eq!(packet, Err(expected));
    }
}
