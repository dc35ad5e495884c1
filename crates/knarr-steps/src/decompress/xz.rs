//! xz (the .xz file format 1.2), stream by stream.
//!
//! Constraints: streams and the padding between them are told apart here, a fresh decoder of
//! liblzma takes each stream. Padding has to be a multiple of four zero bytes, as the format
//! demands. Every check is verified; a stream with a check that liblzma does not know is refused
//! rather than delivered unverified. The memory limit is liblzma's own.

use liblzma::stream::{Action, Error, Status, Stream, TELL_UNSUPPORTED_CHECK};

use super::codec::{Codec, Fault, advance};
use crate::format::XZ_MAGIC;

pub(super) struct Xz {
    decoder: Stream,
    max_memory: u64,
    state: State,
    streams: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between streams, with the number of zero bytes there so far modulo four.
    Padding {
        zeros: u8,
    },
    /// Inside the magic of a stream.
    Magic {
        filled: u8,
    },
    Stream,
}

impl Xz {
    /// A decoder that may take so many bytes of memory.
    pub(super) fn new(max_memory: u64) -> Result<Self, Fault> {
        Ok(Self {
            decoder: new_decoder(max_memory)?,
            max_memory,
            state: State::Magic { filled: 0 },
            streams: 0,
        })
    }

    fn between_byte(&mut self, byte: u8, output: &mut Vec<u8>) -> Result<(), Fault> {
        let filled = match self.state {
            State::Padding { zeros } if byte == 0 => {
                self.state = State::Padding {
                    zeros: (zeros + 1) % 4,
                };
                return Ok(());
            }
            State::Padding { zeros: 0 } if byte == XZ_MAGIC[0] => {
                self.decoder = new_decoder(self.max_memory)?;
                0
            }
            State::Padding { .. } => return Err(Fault::Garbage { bytes_back: 1 }),
            State::Magic { filled } => filled,
            State::Stream => return Ok(()),
        };
        if XZ_MAGIC.get(usize::from(filled)) != Some(&byte) {
            return Err(Fault::Garbage {
                bytes_back: u64::from(filled) + 1,
            });
        }
        self.state = State::Magic { filled: filled + 1 };
        if usize::from(filled) + 1 == XZ_MAGIC.len() {
            self.state = State::Stream;
            // Cannot end here nor produce anything: the magic is half of the stream's header.
            self.run(&mut XZ_MAGIC.as_slice(), output)?;
        }
        Ok(())
    }

    fn run(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<Status, Fault> {
        let before = self.decoder.total_in();
        let result = self.decoder.process_vec(input, output, Action::Run);
        advance(input, before, self.decoder.total_in());
        result.map_err(|error| match error {
            Error::MemLimit => Fault::Memory { wanted: None },
            Error::Mem => Fault::OutOfMemory,
            Error::Options => Fault::Unsupported("a filter or an option that liblzma lacks".into()),
            Error::UnsupportedCheck => Fault::Unsupported("an unknown kind of checksum".into()),
            Error::Data => Fault::corrupt("a checksum or the compressed data is wrong"),
            Error::Format | Error::NoCheck | Error::Program => {
                Fault::Corrupt(format!("the decoder says: {error}").into())
            }
        })
    }
}

impl Codec for Xz {
    fn decode(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<(), Fault> {
        while output.len() < output.capacity() {
            if self.state == State::Stream {
                if self.run(input, output)? != Status::StreamEnd {
                    return Ok(());
                }
                self.streams += 1;
                self.state = State::Padding { zeros: 0 };
            } else {
                let Some(byte) = input.split_off_first() else {
                    return Ok(());
                };
                self.between_byte(*byte, output)?;
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<(), Fault> {
        match self.state {
            State::Padding { zeros: 0 } => Ok(()),
            State::Padding { zeros } => Err(Fault::Garbage {
                bytes_back: u64::from(zeros),
            }),
            State::Magic { .. } | State::Stream => Err(Fault::Truncated),
        }
    }

    fn members(&self) -> u64 {
        self.streams
    }
}

fn new_decoder(max_memory: u64) -> Result<Stream, Fault> {
    // Zero would mean "no limit" to some versions of liblzma.
    Stream::new_stream_decoder(max_memory.max(1), TELL_UNSUPPORTED_CHECK)
        .map_err(|_| Fault::OutOfMemory)
}
