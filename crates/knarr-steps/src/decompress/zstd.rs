//! Zstandard (RFC 8878), frame by frame.
//!
//! Constraints: the header of every frame is read here first, so that a window that is too large
//! is refused, with its size, before the library allocates anything, and so that what follows a
//! frame and is no frame is called garbage. Content checksums are verified by the library where a
//! frame has one (zstd(1) writes them; programs that use the library often do not).
//! Dictionaries are not supported. Skippable frames are skipped and not counted.

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use super::codec::{Codec, Fault};
use crate::format::{Format, Match, match_skippable};

/// Magic, descriptor, window, dictionary identifier and content size: the longest frame header.
const HEADER_MOST_BYTES: usize = 4 + 1 + 1 + 4 + 8;
const MAGIC_BYTES: usize = 4;
/// What the format and the library allow for a window, as powers of two.
const WINDOW_LOG_RANGE: (u32, u32) = (10, 31);

pub(super) struct Zstd {
    decoder: Decoder<'static>,
    max_window: u64,
    state: State,
    header: [u8; HEADER_MOST_BYTES],
    header_filled: usize,
    /// Nothing is left inside the library: it used all input and had room for more output.
    is_drained: bool,
    frames: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Collecting the header of a frame; with none collected, the input may end.
    Header,
    Frame,
    /// A frame that the library skips.
    Skippable,
}

/// What a whole or partial header says.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    Incomplete,
    Garbage,
    Skippable,
    Frame { window_bytes: u64, dictionary: u32 },
}

impl Zstd {
    /// A decoder that allows windows of so many bytes.
    pub(super) fn new(max_window: u64) -> Result<Self, Fault> {
        let mut decoder = Decoder::new().map_err(|_| Fault::OutOfMemory)?;
        // Second line of defence behind our own look at the header, hence rounded up.
        let (least, most) = WINDOW_LOG_RANGE;
        let window_log = max_window
            .checked_next_power_of_two()
            .map_or(most, u64::ilog2);
        decoder
            .set_parameter(DParameter::WindowLogMax(window_log.clamp(least, most)))
            .map_err(|_| Fault::OutOfMemory)?;
        Ok(Self {
            decoder,
            max_window,
            state: State::Header,
            header: [0; HEADER_MOST_BYTES],
            header_filled: 0,
            is_drained: true,
            frames: 0,
        })
    }

    /// Takes one byte of a header, and gives the header to the library once it is complete.
    fn header_byte(&mut self, byte: u8, output: &mut Vec<u8>) -> Result<(), Fault> {
        if let Some(slot) = self.header.get_mut(self.header_filled) {
            *slot = byte;
            self.header_filled += 1;
        }
        self.state = match read_header(self.header_bytes()) {
            Header::Incomplete => return Ok(()),
            Header::Garbage => {
                return Err(Fault::Garbage {
                    bytes_back: self.header_filled as u64,
                });
            }
            Header::Skippable => State::Skippable,
            Header::Frame { dictionary, .. } if dictionary != 0 => {
                let detail = format!("dictionary {dictionary}, which is not in the file");
                return Err(Fault::Unsupported(detail.into()));
            }
            Header::Frame { window_bytes, .. } if window_bytes > self.max_window => {
                return Err(Fault::Memory {
                    wanted: Some(window_bytes),
                });
            }
            Header::Frame { .. } => State::Frame,
        };
        let header = self.header;
        let mut header = header.get(..self.header_filled).unwrap_or_default();
        self.run(&mut header, output)?;
        if header.is_empty() {
            Ok(())
        } else {
            Err(Fault::corrupt("the frame header is not valid"))
        }
    }

    fn header_bytes(&self) -> &[u8] {
        self.header.get(..self.header_filled).unwrap_or_default()
    }

    fn run(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<(), Fault> {
        let filled = output.len();
        let mut source = InBuffer::around(input);
        let mut target = OutBuffer::around_pos(output, filled);
        let result = self.decoder.run(&mut source, &mut target);
        let used = source.pos();
        *input = input.get(used..).unwrap_or_default();
        self.is_drained = input.is_empty() && output.len() < output.capacity();
        let hint = result.map_err(|error| fault_of(&error.to_string()))?;
        if hint == 0 {
            if self.state == State::Frame {
                self.frames += 1;
            }
            self.state = State::Header;
            self.header_filled = 0;
        }
        Ok(())
    }
}

impl Codec for Zstd {
    fn decode(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<(), Fault> {
        loop {
            if self.state == State::Header {
                let Some(byte) = input.split_off_first() else {
                    return Ok(());
                };
                self.header_byte(*byte, output)?;
            } else {
                // The library counts calls that get it nowhere, and fails after some.
                if input.is_empty() && self.is_drained {
                    return Ok(());
                }
                let (left, filled) = (input.len(), output.len());
                self.run(input, output)?;
                let is_stuck = input.len() == left && output.len() == filled;
                if is_stuck || output.len() == output.capacity() {
                    return Ok(());
                }
            }
        }
    }

    fn end(&self) -> Result<(), Fault> {
        if self.state == State::Header && self.header_filled == 0 {
            Ok(())
        } else {
            Err(Fault::Truncated)
        }
    }

    fn members(&self) -> u64 {
        self.frames
    }
}

/// Reads as much of a frame header as there is (RFC 8878, 3.1.1.1).
fn read_header(header: &[u8]) -> Header {
    match Format::Zstd.matches(header) {
        Match::Beginning => return Header::Incomplete,
        Match::Not => return Header::Garbage,
        Match::Whole if match_skippable(header) == Match::Whole => return Header::Skippable,
        Match::Whole => {}
    }
    let Some(descriptor) = header.get(MAGIC_BYTES) else {
        return Header::Incomplete;
    };
    let is_single_segment = descriptor & 0b0010_0000 != 0;
    let window_field = usize::from(!is_single_segment);
    let dictionary_field: usize = match descriptor & 0b11 {
        0 => 0,
        1 => 1,
        2 => 2,
        _ => 4,
    };
    let content_field: usize = match descriptor >> 6 {
        0 => usize::from(is_single_segment),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let mut fields = header.get(MAGIC_BYTES + 1..).unwrap_or_default();
    let mut take = |length: usize| {
        let (field, rest) = fields.split_at_checked(length)?;
        fields = rest;
        Some(
            field
                .iter()
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let (Some(window), Some(dictionary), Some(content)) = (
        take(window_field),
        take(dictionary_field),
        take(content_field),
    ) else {
        return Header::Incomplete;
    };
    let window_bytes = match (is_single_segment, content_field) {
        // A two-byte content size does not repeat what one byte could have said.
        (true, 2) => content + 256,
        (true, _) => content,
        (false, _) => {
            let base = 1_u64 << (10 + (window >> 3));
            base + base / 8 * (window & 0b111)
        }
    };
    let dictionary = u32::try_from(dictionary).unwrap_or(u32::MAX);
    Header::Frame {
        window_bytes,
        dictionary,
    }
}

/// The library says what is wrong only as a text.
fn fault_of(message: &str) -> Fault {
    if message.contains("Allocation error") {
        Fault::OutOfMemory
    } else if message.contains("too much memory") {
        Fault::Memory { wanted: None }
    } else if message.contains("checksum") {
        Fault::corrupt("the checksum of the content is wrong")
    } else {
        Fault::Corrupt(format!("the decoder says: {message}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::{Header, read_header};

    fn header_with(rest: &[u8]) -> Vec<u8> {
        [&crate::format::ZSTD_MAGIC[..], rest].concat()
    }

    #[test]
    fn the_window_is_read_from_the_window_byte_or_from_the_content_size() {
        let cases: [(&[u8], u64); 5] = [
            (&[0x00, 0x00], 1 << 10),
            (&[0x00, 0x88], 1 << 27),
            (&[0x00, 0xaf], (1 << 31) + (1 << 28) * 7),
            (&[0x20, 0x07], 7),
            (&[0x60, 0x01, 0x01], 0x101 + 256),
        ];
        for (rest, window_bytes) in cases {
            let header = header_with(rest);
            assert_eq!(
                read_header(&header),
                Header::Frame {
                    window_bytes,
                    dictionary: 0
                }
            );
            for length in 0..header.len() {
                let part = header.get(..length).unwrap();
                assert_eq!(read_header(part), Header::Incomplete, "{part:02x?}");
            }
        }
    }

    #[test]
    fn a_dictionary_is_seen() {
        let header = header_with(&[0x01, 0x00, 0x2a]);
        assert_eq!(
            read_header(&header),
            Header::Frame {
                window_bytes: 1024,
                dictionary: 42
            }
        );
    }
}
