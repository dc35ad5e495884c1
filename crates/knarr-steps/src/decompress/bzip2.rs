//! bzip2, stream by stream.
//!
//! Constraints: streams are told apart here, a fresh decoder takes each. Checksums of every block
//! and stream are verified by the library. What follows the last stream and is no stream is
//! garbage (bzip2(1) warns and ignores it; delivering part of a file is not for us).

use bzip2::{Decompress, Error, Status};

use super::codec::{Codec, Fault, advance};
use crate::format::{Format, Match};

/// `BZh` and the level.
const HEADER_BYTES: usize = 4;

pub(super) struct Bzip2 {
    decoder: Decompress,
    state: State,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    streams: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Collecting the header of a stream; with none collected, the input may end.
    Header,
    Stream,
}

impl Bzip2 {
    pub(super) fn new() -> Self {
        Self {
            decoder: Decompress::new(false),
            state: State::Header,
            header: [0; HEADER_BYTES],
            header_filled: 0,
            streams: 0,
        }
    }

    fn header_byte(&mut self, byte: u8, output: &mut Vec<u8>) -> Result<(), Fault> {
        if let Some(slot) = self.header.get_mut(self.header_filled) {
            *slot = byte;
            self.header_filled += 1;
        }
        let header = self.header;
        let mut header = header.get(..self.header_filled).unwrap_or_default();
        match Format::Bzip2.matches(header) {
            Match::Beginning => Ok(()),
            Match::Not => Err(Fault::Garbage {
                bytes_back: self.header_filled as u64,
            }),
            Match::Whole => {
                if self.streams > 0 {
                    self.decoder = Decompress::new(false);
                }
                self.state = State::Stream;
                self.header_filled = 0;
                self.run(&mut header, output).map(|_| ())
            }
        }
    }

    fn run(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<Status, Fault> {
        let before = self.decoder.total_in();
        let result = self.decoder.decompress_vec(input, output);
        advance(input, before, self.decoder.total_in());
        match result {
            Ok(Status::MemNeeded) => Err(Fault::OutOfMemory),
            Ok(status) => Ok(status),
            Err(Error::Data | Error::DataMagic) => {
                Err(Fault::corrupt("a checksum or the compressed data is wrong"))
            }
            Err(error @ (Error::Sequence | Error::Param)) => {
                Err(Fault::Corrupt(format!("the decoder says: {error}").into()))
            }
        }
    }
}

impl Codec for Bzip2 {
    fn decode(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<(), Fault> {
        while output.len() < output.capacity() {
            if self.state == State::Stream {
                if self.run(input, output)? != Status::StreamEnd {
                    return Ok(());
                }
                self.streams += 1;
                self.state = State::Header;
            } else {
                let Some(byte) = input.split_off_first() else {
                    return Ok(());
                };
                self.header_byte(*byte, output)?;
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<(), Fault> {
        if self.state == State::Header && self.header_filled == 0 {
            Ok(())
        } else {
            Err(Fault::Truncated)
        }
    }

    fn members(&self) -> u64 {
        self.streams
    }
}
