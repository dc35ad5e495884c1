//! gzip (RFC 1952), member by member.
//!
//! Constraints: header and trailer are read here and deflate is left to the library. The ready
//! made readers of flate2 stop at the first member or end quietly at garbage.
//!
//! Decisions: reserved flags are refused, as the RFC demands; the header checksum is verified
//! where there is one; CRC-32 and length of every member are verified. Zero bytes after the last
//! member are tolerated to the end of the file (tapes and block devices pad with them, and gzip(1)
//! accepts them); anything else there is garbage, also a member that follows the zeros.

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::codec::{Codec, Fault, advance};
use crate::format::GZIP_MAGIC;

const FLAG_HEADER_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const RESERVED_FLAGS: u8 = 0b1110_0000;
const METHOD_DEFLATE: u8 = 8;
/// Modification time, extra flags and operating system, which decoding does not need.
const INFORMATION_BYTES: u8 = 6;

pub(super) struct Gzip {
    state: State,
    flags: u8,
    header_crc: Crc,
    inflate: Decompress,
    content_crc: Crc,
    members: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Before a member, or at the end of the file.
    Between,
    SecondMagicByte,
    Method,
    Flags,
    Information {
        left: u8,
    },
    ExtraLength {
        low: Option<u8>,
    },
    Extra {
        left: u16,
    },
    Name,
    Comment,
    HeaderCrc {
        low: Option<u8>,
    },
    Body,
    Trailer {
        bytes: [u8; 8],
        filled: u8,
    },
    Padding,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Self {
            state: State::Between,
            flags: 0,
            header_crc: Crc::new(),
            inflate: Decompress::new(false),
            content_crc: Crc::new(),
            members: 0,
        }
    }

    /// Goes on by one byte outside of the compressed body.
    fn frame_byte(&mut self, byte: u8) -> Result<(), Fault> {
        if !matches!(
            self.state,
            State::HeaderCrc { .. } | State::Trailer { .. } | State::Padding
        ) {
            self.header_crc.update(&[byte]);
        }
        self.state = match self.state {
            State::Between if byte == GZIP_MAGIC[0] => State::SecondMagicByte,
            State::Between if byte == 0 && self.members > 0 => State::Padding,
            State::Padding if byte == 0 => State::Padding,
            State::Between | State::Padding => return Err(Fault::Garbage { bytes_back: 1 }),
            State::SecondMagicByte if byte == GZIP_MAGIC[1] => State::Method,
            State::SecondMagicByte => return Err(Fault::Garbage { bytes_back: 2 }),
            State::Method if byte == METHOD_DEFLATE => State::Flags,
            State::Method => return Err(Fault::corrupt("the compression method is unknown")),
            State::Flags if byte & RESERVED_FLAGS != 0 => {
                return Err(Fault::corrupt("reserved header flags are set"));
            }
            State::Flags => {
                self.flags = byte;
                State::Information {
                    left: INFORMATION_BYTES,
                }
            }
            State::Information { left: 1 } => self.after_information(),
            State::Information { left } => State::Information { left: left - 1 },
            State::ExtraLength { low: None } => State::ExtraLength { low: Some(byte) },
            State::ExtraLength { low: Some(low) } => match u16::from_le_bytes([low, byte]) {
                0 => self.after_extra(),
                left => State::Extra { left },
            },
            State::Extra { left: 1 } => self.after_extra(),
            State::Extra { left } => State::Extra { left: left - 1 },
            State::Name if byte == 0 => self.after_name(),
            State::Name => State::Name,
            State::Comment if byte == 0 => self.after_comment(),
            State::Comment => State::Comment,
            State::HeaderCrc { low: None } => State::HeaderCrc { low: Some(byte) },
            State::HeaderCrc { low: Some(low) } => {
                if u32::from(u16::from_le_bytes([low, byte])) != self.header_crc.sum() & 0xffff {
                    return Err(Fault::corrupt("the checksum of the header is wrong"));
                }
                State::Body
            }
            State::Trailer { mut bytes, filled } => {
                if let Some(slot) = bytes.get_mut(usize::from(filled)) {
                    *slot = byte;
                }
                if filled < 7 {
                    State::Trailer {
                        bytes,
                        filled: filled + 1,
                    }
                } else {
                    self.verify(bytes)?;
                    State::Between
                }
            }
            State::Body => State::Body,
        };
        Ok(())
    }

    fn after_information(&self) -> State {
        if self.flags & FLAG_EXTRA != 0 {
            State::ExtraLength { low: None }
        } else {
            self.after_extra()
        }
    }

    fn after_extra(&self) -> State {
        if self.flags & FLAG_NAME != 0 {
            State::Name
        } else {
            self.after_name()
        }
    }

    fn after_name(&self) -> State {
        if self.flags & FLAG_COMMENT != 0 {
            State::Comment
        } else {
            self.after_comment()
        }
    }

    fn after_comment(&self) -> State {
        if self.flags & FLAG_HEADER_CRC != 0 {
            State::HeaderCrc { low: None }
        } else {
            State::Body
        }
    }

    /// Compares the trailer with what came out, and makes ready for another member.
    fn verify(&mut self, trailer: [u8; 8]) -> Result<(), Fault> {
        let [a, b, c, d, e, f, g, h] = trailer;
        if u32::from_le_bytes([a, b, c, d]) != self.content_crc.sum() {
            return Err(Fault::corrupt(
                "the checksum (CRC-32) of the content is wrong",
            ));
        }
        // The length is kept modulo 2^32, by the format and by `Crc::amount` alike.
        if u32::from_le_bytes([e, f, g, h]) != self.content_crc.amount() {
            return Err(Fault::corrupt("the length of the content is wrong"));
        }
        self.members += 1;
        self.header_crc.reset();
        self.content_crc.reset();
        self.inflate.reset(false);
        Ok(())
    }

    /// Inflates as far as input and output go.
    fn body(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<Status, Fault> {
        let (used_before, filled_before) = (self.inflate.total_in(), output.len());
        let status = self
            .inflate
            .decompress_vec(input, output, FlushDecompress::None)
            .map_err(|_| Fault::corrupt("the compressed data is not valid deflate data"))?;
        self.content_crc
            .update(output.get(filled_before..).unwrap_or_default());
        advance(input, used_before, self.inflate.total_in());
        Ok(status)
    }
}

impl Codec for Gzip {
    fn decode(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<(), Fault> {
        loop {
            if matches!(self.state, State::Body) {
                if output.len() == output.capacity()
                    || self.body(input, output)? != Status::StreamEnd
                {
                    return Ok(());
                }
                self.state = State::Trailer {
                    bytes: [0; 8],
                    filled: 0,
                };
            } else {
                let Some(byte) = input.split_off_first() else {
                    return Ok(());
                };
                self.frame_byte(*byte)?;
            }
        }
    }

    fn end(&self) -> Result<(), Fault> {
        match self.state {
            State::Between | State::Padding => Ok(()),
            _ => Err(Fault::Truncated),
        }
    }

    fn members(&self) -> u64 {
        self.members
    }
}
