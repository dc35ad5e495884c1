//! Drives steps and makes compressed content.

use std::io::Write as _;

use bytes::Bytes;
use knarr_steps::{
    CHUNK_BYTES, Decompress, DecompressOptions, Format, Pulled, Step as _, StepError, StepSummary,
};

/// Output and summary, or the error.
pub(crate) type Outcome = Result<(Vec<u8>, StepSummary), StepError>;

/// Limits that no test content meets by accident.
pub(crate) fn generous() -> DecompressOptions {
    DecompressOptions {
        max_output: u64::MAX,
        max_ratio: u32::MAX,
        ..DecompressOptions::default()
    }
}

/// Decompresses the chunks, one after another, with the default options.
pub(crate) fn decompress_chunks<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    expected: Option<Format>,
) -> Outcome {
    decompress_with(DecompressOptions::default(), chunks, expected)
}

/// Decompresses the chunks, one after another, and checks the protocol on the way.
pub(crate) fn decompress_with<'a>(
    options: DecompressOptions,
    chunks: impl IntoIterator<Item = &'a [u8]>,
    expected: Option<Format>,
) -> Outcome {
    let mut step = Decompress::new(options, expected);
    let mut chunks = chunks.into_iter();
    let mut output = Vec::new();
    loop {
        match step.pull() {
            Ok(Pulled::Chunk(chunk)) => {
                assert!(
                    !chunk.is_empty() && chunk.len() <= CHUNK_BYTES,
                    "{}",
                    chunk.len()
                );
                output.extend_from_slice(&chunk);
            }
            Ok(Pulled::NeedsInput) => match chunks.next() {
                Some(chunk) => step.feed(Bytes::copy_from_slice(chunk))?,
                None => step.end(),
            },
            Ok(Pulled::Finished) => {
                assert_eq!(step.pull(), Ok(Pulled::Finished), "the end is final");
                assert_eq!(step.summary().output_bytes, output.len() as u64);
                return Ok((output, step.summary()));
            }
            Err(error) => {
                assert_eq!(step.pull(), Err(error.clone()), "an error is final");
                return Err(error);
            }
        }
    }
}

/// Decompresses content that comes in one chunk.
pub(crate) fn decompress(content: &[u8], expected: Option<Format>) -> Outcome {
    decompress_chunks([content], expected)
}

/// An encoder whose output can be taken while it goes on.
pub(crate) enum Encoder {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
    Xz(liblzma::write::XzEncoder<Vec<u8>>),
    Bzip2(bzip2::write::BzEncoder<Vec<u8>>),
}

impl Encoder {
    /// An encoder that needs little memory and writes checksums.
    pub(crate) fn new(format: Format) -> Self {
        match format {
            Format::Gzip => Self::Gzip(
                flate2::GzBuilder::new()
                    .filename("content.csv")
                    .mtime(1_600_000_000)
                    .write(Vec::new(), flate2::Compression::new(6)),
            ),
            Format::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
                encoder.include_checksum(true).unwrap();
                Self::Zstd(Box::new(encoder))
            }
            Format::Xz => Self::Xz(liblzma::write::XzEncoder::new(Vec::new(), 0)),
            Format::Bzip2 => Self::Bzip2(bzip2::write::BzEncoder::new(
                Vec::new(),
                bzip2::Compression::new(1),
            )),
        }
    }

    pub(crate) fn write(&mut self, content: &[u8]) {
        match self {
            Self::Gzip(encoder) => encoder.write_all(content),
            Self::Zstd(encoder) => encoder.write_all(content),
            Self::Xz(encoder) => encoder.write_all(content),
            Self::Bzip2(encoder) => encoder.write_all(content),
        }
        .unwrap();
    }

    /// What was compressed since the last call, as far as it has come out.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Xz(encoder) => encoder.get_mut(),
            Self::Bzip2(encoder) => encoder.get_mut(),
        })
    }

    /// The rest of the output.
    pub(crate) fn finish(self) -> Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Xz(encoder) => encoder.finish(),
            Self::Bzip2(encoder) => encoder.finish(),
        }
        .unwrap()
    }
}

/// The content as one member.
pub(crate) fn compress(format: Format, content: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(format);
    encoder.write(content);
    encoder.finish()
}

/// Text that compresses to about a third, the same on every run.
pub(crate) fn text(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = Vec::with_capacity(bytes + 32);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        writeln!(content, "sensor-{},{},ok", state % 17, state >> 40).unwrap();
    }
    content.truncate(bytes);
    content
}
