//! Packets of SFTP version 3, in both directions.
//!
//! Constraints:
//!
//! * A packet is a length of four bytes and a body. Decoders take the *body*: who reads the stream
//!   has checked the length against its limit. Nothing is read beyond the body, and bytes of the body
//!   behind the last known field are ignored (rclone sends WRITEs like that).
//! * Strings are slices of the body: decoding copies nothing. Keep in mind that a kept slice keeps
//!   the whole body in memory.
//! * A count or length inside the body is only ever compared with what is left of it. No input makes
//!   a decoder panic or allocate more than a small multiple of the body.
//! * An encoder appends header and payload to one buffer, or leaves the buffer as it was.

mod attributes;
mod extended;
mod extensions;
mod fields;
mod reply;
mod request;

use bytes::Bytes;

pub use attributes::{Attributes, FileType, Owner, Times};
pub use extended::ExtendedRequest;
pub use extensions::{Extension, Extensions, FilesystemStatistics, ServerLimits};
pub use reply::{NameEntry, Reply, ServerPacket, Status, StatusCode};
pub use request::{ClientPacket, OpenFlags, Request, encode_write_header};

/// The version of the protocol that is spoken here.
pub const VERSION: u32 = 3;

/// Bytes of the length that stands before each body.
pub const LENGTH_BYTES: usize = 4;

/// Default limit of a body, in bytes: what OpenSSH takes (256 KiB), and some slack for headers.
pub const DEFAULT_BODY_LIMIT: usize = 256 * 1024 + 4096;

/// Longest handle that the protocol allows, in bytes.
pub const HANDLE_LIMIT: usize = 256;

/// First byte of each body.
pub(crate) mod kind {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const OPEN: u8 = 3;
    pub(crate) const CLOSE: u8 = 4;
    pub(crate) const READ: u8 = 5;
    pub(crate) const WRITE: u8 = 6;
    pub(crate) const LSTAT: u8 = 7;
    pub(crate) const FSTAT: u8 = 8;
    pub(crate) const SETSTAT: u8 = 9;
    pub(crate) const FSETSTAT: u8 = 10;
    pub(crate) const OPENDIR: u8 = 11;
    pub(crate) const READDIR: u8 = 12;
    pub(crate) const REMOVE: u8 = 13;
    pub(crate) const MKDIR: u8 = 14;
    pub(crate) const RMDIR: u8 = 15;
    pub(crate) const REALPATH: u8 = 16;
    pub(crate) const STAT: u8 = 17;
    pub(crate) const RENAME: u8 = 18;
    pub(crate) const READLINK: u8 = 19;
    pub(crate) const SYMLINK: u8 = 20;
    pub(crate) const STATUS: u8 = 101;
    pub(crate) const HANDLE: u8 = 102;
    pub(crate) const DATA: u8 = 103;
    pub(crate) const NAME: u8 = 104;
    pub(crate) const ATTRS: u8 = 105;
    pub(crate) const EXTENDED: u8 = 200;
    pub(crate) const EXTENDED_REPLY: u8 = 201;
}

/// Why bytes are no packet, or a packet cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The body ends inside a field.
    #[error("packet ends inside {field}: {needed_bytes} bytes needed, {left_bytes} left")]
    Truncated {
        /// The field that was being decoded.
        field: &'static str,
        /// What the field needs, in bytes.
        needed_bytes: u64,
        /// What was left of the body, in bytes.
        left_bytes: u64,
    },
    /// The first byte of the body is no type of packet that this side receives.
    #[error("packet of unknown type {kind}")]
    UnknownType {
        /// The first byte of the body.
        kind: u8,
    },
    /// More names are announced than the body can hold.
    #[error("packet announces {announced} names in {left_bytes} bytes")]
    TooManyNames {
        /// The number that was announced.
        announced: u32,
        /// What was left of the body, in bytes.
        left_bytes: u64,
    },
    /// A handle is longer than the protocol allows.
    #[error("handle of {bytes} bytes, {HANDLE_LIMIT} are allowed")]
    HandleTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The packet would be larger than the other side takes.
    #[error(
        "packet of {bytes} bytes, the limit is {limit_bytes}: the path or the data is too long"
    )]
    TooLarge {
        /// Length of the body in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit_bytes: usize,
    },
}

/// Decodes `body` as a packet of either side; what decodes is encoded and decoded again.
///
/// This is what the fuzz target and the replay of its corpus run.
///
/// # Panics
///
/// If a packet does not survive the round trip, which is a bug of the codec.
pub fn exercise(body: &Bytes) {
    let limit = usize::MAX;
    if let Ok(packet) = ClientPacket::decode(body.clone()) {
        let mut encoded = bytes::BytesMut::new();
        packet
            .encode(limit, &mut encoded)
            .expect("nothing is longer than the limit");
        let again = ClientPacket::decode(encoded.freeze().slice(LENGTH_BYTES..));
        assert_eq!(
            again,
            Ok(packet),
            "a client's packet changes when it is encoded again"
        );
    }
    if let Ok(packet) = ServerPacket::decode(body.clone()) {
        let mut encoded = bytes::BytesMut::new();
        packet
            .encode(limit, &mut encoded)
            .expect("nothing is longer than the limit");
        let again = ServerPacket::decode(encoded.freeze().slice(LENGTH_BYTES..));
        assert_eq!(
            again,
            Ok(packet),
            "a server's packet changes when it is encoded again"
        );
    }
    // The payloads of extended replies have decoders of their own.
    ServerLimits::decode(body.clone()).ok();
    FilesystemStatistics::decode(body.clone()).ok();
}
