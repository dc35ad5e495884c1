//! Adds one layer of compression: gzip, zstd, xz or bzip2.
//!
//! Constraints: at most [`PIECE_BYTES`] of input go to the encoder at once, so that what comes out at once
//! is bounded too (a block of the encoder, 900 KiB for bzip2, is the most that waits). Every format is
//! written with its checksum. No name and no time go into a header: the same content and level give the
//! same bytes.
//!
//! Memory of the encoder: 0.3 MiB for gzip, 7.6 MiB for bzip2, up to 94 MiB for xz -6 (674 MiB for -9), and
//! from 4 MiB (zstd -3) to about 90 MiB (zstd -19).

use std::fmt;
use std::io::{self, Write as _};

use bytes::{Buf as _, Bytes};

use crate::error::StepError;
use crate::format::Format;
use crate::spec::CompressOptions;
use crate::step::{PassThrough, Pulled, Step, StepSummary};

const PIECE_BYTES: usize = 64 * 1024;

/// The step `compress`.
pub struct Compress {
    format: Format,
    encoder: Option<Encoder>,
    input: Bytes,
    input_ended: bool,
    output: PassThrough,
    input_bytes: u64,
    output_bytes: u64,
    failed: Option<StepError>,
}

enum Encoder {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
    Xz(liblzma::write::XzEncoder<Vec<u8>>),
    Bzip2(bzip2::write::BzEncoder<Vec<u8>>),
}

impl Encoder {
    fn new(options: CompressOptions) -> io::Result<Self> {
        Ok(match options.format {
            Format::Gzip => {
                let level = flate2::Compression::new(options.level.unwrap_or(6).min(9));
                Self::Gzip(flate2::write::GzEncoder::new(Vec::new(), level))
            }
            Format::Zstd => {
                let level = options.level.unwrap_or(3).min(19);
                let level = i32::try_from(level).unwrap_or(3);
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level)?;
                encoder.include_checksum(true)?;
                Self::Zstd(Box::new(encoder))
            }
            Format::Xz => {
                let level = options.level.unwrap_or(6).min(9);
                Self::Xz(liblzma::write::XzEncoder::new(Vec::new(), level))
            }
            Format::Bzip2 => {
                let level = bzip2::Compression::new(options.level.unwrap_or(9).clamp(1, 9));
                Self::Bzip2(bzip2::write::BzEncoder::new(Vec::new(), level))
            }
        })
    }

    /// Compresses one piece and returns what has come out.
    fn write(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        Ok(std::mem::take(match self {
            Self::Gzip(encoder) => {
                encoder.write_all(piece)?;
                encoder.get_mut()
            }
            Self::Zstd(encoder) => {
                encoder.write_all(piece)?;
                encoder.get_mut()
            }
            Self::Xz(encoder) => {
                encoder.write_all(piece)?;
                encoder.get_mut()
            }
            Self::Bzip2(encoder) => {
                encoder.write_all(piece)?;
                encoder.get_mut()
            }
        }))
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Xz(encoder) => encoder.finish(),
            Self::Bzip2(encoder) => encoder.finish(),
        }
    }
}

impl Compress {
    /// A step for one stream.
    ///
    /// # Errors
    /// [`StepError::OutOfMemory`] if the encoder cannot be made.
    pub fn new(options: CompressOptions) -> Result<Self, StepError> {
        let format = options.format;
        let encoder = Encoder::new(options).map_err(|_| StepError::OutOfMemory { format })?;
        Ok(Self {
            format,
            encoder: Some(encoder),
            input: Bytes::new(),
            input_ended: false,
            output: PassThrough::default(),
            input_bytes: 0,
            output_bytes: 0,
            failed: None,
        })
    }

    fn advance(&mut self) -> io::Result<Pulled> {
        loop {
            if let Some(chunk) = self.output.take() {
                self.output_bytes += chunk.len() as u64;
                return Ok(Pulled::Chunk(chunk));
            }
            let Some(encoder) = &mut self.encoder else {
                return Ok(Pulled::Finished);
            };
            if let Some(piece) = self.input.get(..self.input.len().min(PIECE_BYTES))
                && !piece.is_empty()
            {
                let length = piece.len();
                let out = encoder.write(piece)?;
                self.input.advance(length);
                self.input_bytes += length as u64;
                self.output.put(Bytes::from(out));
            } else if !self.input_ended {
                return Ok(Pulled::NeedsInput);
            } else if let Some(encoder) = self.encoder.take() {
                self.output.put(Bytes::from(encoder.finish()?));
            }
        }
    }
}

/// Without the content of the file.
impl fmt::Debug for Compress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Compress")
            .field("summary", &self.summary())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Step for Compress {
    fn feed(&mut self, input: Bytes) -> Result<(), StepError> {
        if self.input_ended || !self.input.is_empty() {
            return Err(StepError::OutOfTurn {
                what: "input was fed that nobody asked for",
            });
        }
        self.input = input;
        Ok(())
    }

    fn end(&mut self) {
        self.input_ended = true;
    }

    fn pull(&mut self) -> Result<Pulled, StepError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        // Writing to memory fails only if the encoder does, and that only for want of memory.
        let format = self.format;
        let result = self
            .advance()
            .map_err(|_| StepError::OutOfMemory { format });
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn summary(&self) -> StepSummary {
        StepSummary {
            format: Some(self.format),
            input_bytes: self.input_bytes,
            output_bytes: self.output_bytes,
            members: 1,
            note: None,
        }
    }

    fn output_name(&self, name: &[u8]) -> Vec<u8> {
        [name, suffix(self.format).as_bytes()].concat()
    }
}

/// What a name gets for this compression.
fn suffix(format: Format) -> &'static str {
    match format {
        Format::Gzip => ".gz",
        Format::Zstd => ".zst",
        Format::Xz => ".xz",
        Format::Bzip2 => ".bz2",
    }
}
