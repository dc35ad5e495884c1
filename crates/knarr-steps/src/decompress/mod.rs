//! Removes one layer of compression: gzip, zstd, xz or bzip2, recognised by content.
//!
//! Constraints:
//! * What is held: the caller's chunk, up to 5 bytes of a magic that came in pieces, one output
//!   buffer being filled and two that the consumer may still have, and the decoder's memory.
//! * One layer only: gzip inside gzip comes out as gzip, so a quine unpacks once.
//! * Limits are looked at after every piece of at most [`CHUNK_BYTES`] of output, and before that
//!   piece is handed out. The ratio counts only beyond [`RATIO_GRACE_BYTES`], because files that
//!   begin with zeros or a long repeated header are common and harmless.
//! * The last piece is handed out only after the end of the input was verified.
//!
//! What cannot be seen: a file of several members cut exactly between two of them is a complete
//! shorter file; damage in a zstd frame or xz stream that was written without a checksum.
//!
//! Content shorter than a magic is content that is not recognised. So is everything else that is
//! no known format: by default it passes unchanged (limits on expansion do not apply to what does
//! not expand). But if the name says what to expect, it is an error, and so is an empty file of
//! that name: no compressor writes nothing. Without such a name an empty file passes as it is.

mod buffers;
mod bzip2;
mod codec;
mod gzip;
mod xz;
mod zstd;

use std::fmt;

use bytes::{Buf as _, Bytes};

use self::buffers::Buffers;
use self::codec::{Codec, Fault};
use crate::error::{Limit, StepError};
use crate::format::{Detection, Format, MAGIC_BYTES, Match, detect, output_name};
use crate::spec::{DecompressOptions, Unrecognised};
#[cfg(doc)]
use crate::step::CHUNK_BYTES;
use crate::step::{PassThrough, Pulled, Step, StepSummary};

/// Bytes of output up to which the ratio of output to input does not count.
pub const RATIO_GRACE_BYTES: u64 = 16 << 20;

/// The step `decompress`.
pub struct Decompress {
    options: DecompressOptions,
    expected: Option<Format>,
    stage: Stage,
    /// Comes before `input`: the beginning of a magic that was split over chunks.
    held: Bytes,
    input: Bytes,
    input_ended: bool,
    input_bytes: u64,
    output_bytes: u64,
    failed: Option<StepError>,
}

enum Stage {
    Recognise,
    Pass(PassThrough),
    Decode(Decoding),
    Finished {
        format: Option<Format>,
        members: u64,
    },
}

struct Decoding {
    format: Format,
    codec: Box<dyn Codec>,
    output: Vec<u8>,
    buffers: Buffers,
}

impl Decompress {
    /// A step for one stream. `expected` is what its name says ([`Format::of_name`]): with it,
    /// content that is not compressed at all is an error. Content of *another* known format
    /// is decompressed as what it is.
    #[must_use]
    pub fn new(options: DecompressOptions, expected: Option<Format>) -> Self {
        Self {
            options,
            expected,
            stage: Stage::Recognise,
            held: Bytes::new(),
            input: Bytes::new(),
            input_ended: false,
            input_bytes: 0,
            output_bytes: 0,
            failed: None,
        }
    }

    /// Finds out what the content is. Nothing if that takes more input.
    fn recognise(&mut self) -> Result<Option<Stage>, StepError> {
        let known = self.held.len() + self.input.len();
        let mut beginning = [0; MAGIC_BYTES];
        let content = self.held.iter().chain(&self.input);
        let length = beginning
            .iter_mut()
            .zip(content)
            .map(|(slot, byte)| *slot = *byte)
            .count();
        let beginning = beginning.get(..length).unwrap_or_default();
        match detect(beginning) {
            Detection::Found(format) => Ok(Some(Stage::Decode(self.decoding(format)?))),
            Detection::NeedsMore if !self.input_ended => {
                // Fewer bytes than a magic has: `beginning` is all there is.
                self.held = Bytes::copy_from_slice(beginning);
                self.input.clear();
                Ok(None)
            }
            Detection::NeedsMore | Detection::Nothing => {
                match (self.expected, self.options.unrecognised) {
                    (Some(format), _)
                        if self.input_ended && format.matches(beginning) == Match::Beginning =>
                    {
                        Err(StepError::Truncated {
                            format,
                            offset: known as u64,
                        })
                    }
                    (Some(expected), _) => Err(StepError::NotAsNamed { expected }),
                    (None, Unrecognised::Fail) if known > 0 => Err(StepError::Unrecognised),
                    (None, _) => {
                        let mut passing = PassThrough::default();
                        passing.put(std::mem::take(&mut self.held));
                        passing.put(std::mem::take(&mut self.input));
                        Ok(Some(Stage::Pass(passing)))
                    }
                }
            }
        }
    }

    fn decoding(&self, format: Format) -> Result<Decoding, StepError> {
        let codec: Result<Box<dyn Codec>, Fault> = match format {
            Format::Gzip => Ok(Box::new(gzip::Gzip::new())),
            Format::Bzip2 => Ok(Box::new(bzip2::Bzip2::new())),
            Format::Zstd => {
                zstd::Zstd::new(self.options.max_memory).map(|codec| Box::new(codec) as _)
            }
            Format::Xz => xz::Xz::new(self.options.max_memory).map(|codec| Box::new(codec) as _),
        };
        let codec = codec.map_err(|fault| self.error(format, fault))?;
        Ok(Decoding {
            format,
            codec,
            output: Vec::new(),
            buffers: Buffers::new(),
        })
    }

    fn advance(&mut self) -> Result<Pulled, StepError> {
        loop {
            match &mut self.stage {
                Stage::Recognise => match self.recognise()? {
                    None => return Ok(Pulled::NeedsInput),
                    Some(stage) => self.stage = stage,
                },
                Stage::Pass(passing) => match passing.take() {
                    Some(chunk) => {
                        self.input_bytes += chunk.len() as u64;
                        self.output_bytes += chunk.len() as u64;
                        return Ok(Pulled::Chunk(chunk));
                    }
                    None if self.input_ended => {
                        self.stage = Stage::Finished {
                            format: None,
                            members: 0,
                        };
                    }
                    None => return Ok(Pulled::NeedsInput),
                },
                Stage::Decode(_) => return self.decode(),
                Stage::Finished { .. } => return Ok(Pulled::Finished),
            }
        }
    }

    /// Decodes until a buffer is full, or the input is used up.
    fn decode(&mut self) -> Result<Pulled, StepError> {
        let Stage::Decode(decoding) = &mut self.stage else {
            return Err(StepError::OutOfTurn {
                what: "nothing to decode",
            });
        };
        let format = decoding.format;
        loop {
            if decoding.output.capacity() == 0 {
                decoding.output = decoding.buffers.get();
            }
            let source = if self.held.is_empty() {
                &mut self.input
            } else {
                &mut self.held
            };
            let filled = decoding.output.len();
            let mut left: &[u8] = source;
            let result = decoding.codec.decode(&mut left, &mut decoding.output);
            let used = source.len() - left.len();
            source.advance(used);
            let has_more = !self.held.is_empty() || !self.input.is_empty();
            let produced = decoding.output.len() - filled;
            self.input_bytes += used as u64;
            self.output_bytes += produced as u64;
            let checked = result.and_then(|()| {
                if used == 0 && produced == 0 && has_more {
                    return Err(Fault::corrupt("the decoder does not go on"));
                }
                Ok(())
            });
            if let Err(fault) = checked {
                return Err(self.error(format, fault));
            }
            if let Some(limit) = exceeded(&self.options, self.input_bytes, self.output_bytes) {
                return Err(StepError::LimitExceeded {
                    format,
                    offset: self.input_bytes,
                    limit,
                });
            }
            if decoding.output.len() == decoding.output.capacity() {
                let output = std::mem::take(&mut decoding.output);
                return Ok(Pulled::Chunk(decoding.buffers.lend(output)));
            }
            if used == 0 && produced == 0 {
                return if self.input_ended {
                    self.finish()
                } else {
                    Ok(Pulled::NeedsInput)
                };
            }
        }
    }

    /// Verifies that the input may end here, and hands out the last piece.
    fn finish(&mut self) -> Result<Pulled, StepError> {
        let Stage::Decode(decoding) = &mut self.stage else {
            return Ok(Pulled::Finished);
        };
        let (format, members) = (decoding.format, decoding.codec.members());
        if let Err(fault) = decoding.codec.end() {
            return Err(self.error(format, fault));
        }
        let output = std::mem::take(&mut decoding.output);
        self.stage = Stage::Finished {
            format: Some(format),
            members,
        };
        if output.is_empty() {
            return Ok(Pulled::Finished);
        }
        Ok(Pulled::Chunk(Bytes::from(output)))
    }

    /// Says where a fault is, and what it means with these options.
    fn error(&self, format: Format, fault: Fault) -> StepError {
        let offset = self.input_bytes;
        match fault {
            Fault::Truncated => StepError::Truncated { format, offset },
            Fault::Corrupt(detail) => StepError::Corrupt {
                format,
                offset,
                detail,
            },
            Fault::Garbage { bytes_back } => StepError::TrailingGarbage {
                format,
                offset: offset.saturating_sub(bytes_back),
            },
            Fault::Memory { wanted } => {
                let limit = Limit::Memory {
                    allowed: self.options.max_memory,
                    wanted,
                };
                StepError::LimitExceeded {
                    format,
                    offset,
                    limit,
                }
            }
            Fault::Unsupported(detail) => StepError::Unsupported { format, detail },
            Fault::OutOfMemory => StepError::OutOfMemory { format },
        }
    }
}

/// Without the content of the file.
impl fmt::Debug for Decompress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Decompress")
            .field("options", &self.options)
            .field("expected", &self.expected)
            .field("summary", &self.summary())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Step for Decompress {
    fn feed(&mut self, input: Bytes) -> Result<(), StepError> {
        let is_ready = match &self.stage {
            Stage::Pass(passing) => passing.is_empty(),
            _ => self.input.is_empty(),
        };
        if self.input_ended || !is_ready {
            return Err(StepError::OutOfTurn {
                what: "input was fed that nobody asked for",
            });
        }
        match &mut self.stage {
            Stage::Pass(passing) => passing.put(input),
            _ => self.input = input,
        }
        Ok(())
    }

    fn end(&mut self) {
        self.input_ended = true;
    }

    fn pull(&mut self) -> Result<Pulled, StepError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn summary(&self) -> StepSummary {
        let (format, members) = match &self.stage {
            Stage::Recognise | Stage::Pass(_) => (None, 0),
            Stage::Decode(decoding) => (Some(decoding.format), decoding.codec.members()),
            Stage::Finished { format, members } => (*format, *members),
        };
        let (input_bytes, output_bytes) = (self.input_bytes, self.output_bytes);
        StepSummary {
            format,
            input_bytes,
            output_bytes,
            members,
            note: None,
        }
    }

    fn output_name(&self, name: &[u8]) -> Vec<u8> {
        match self.summary().format {
            Some(format) => output_name(name, format),
            None => name.to_vec(),
        }
    }
}

/// The limit that so much output for so much input breaks.
fn exceeded(options: &DecompressOptions, input_bytes: u64, output_bytes: u64) -> Option<Limit> {
    if output_bytes > options.max_output {
        return Some(Limit::Output {
            allowed: options.max_output,
        });
    }
    let most = input_bytes
        .saturating_mul(u64::from(options.max_ratio))
        .max(RATIO_GRACE_BYTES);
    let (allowed, is_exceeded) = (options.max_ratio, output_bytes > most);
    is_exceeded.then_some(Limit::Ratio {
        allowed,
        output_bytes,
    })
}
