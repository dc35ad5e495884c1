//! Transforms streams: for now decompression (gzip, zstd, xz, bzip2), with limits.
//!
//! Constraints:
//! * No step ever holds a whole file. What it holds is one input chunk of the caller, at most
//!   three output buffers of [`CHUNK_BYTES`], and the working memory of the decoder, which
//!   [`DecompressOptions::max_memory`] limits (32 KiB for gzip, 4 MiB for bzip2).
//! * No I/O, no async, no threads, no clock: a step is a state machine that a blocking thread or
//!   a task drives with [`Step::feed`] and [`Step::pull`].
//! * One call never yields more than [`CHUNK_BYTES`], however much a few input bytes expand to:
//!   the caller that does not pull is the back-pressure.
//! * Limits are checked while streaming, before the bytes that break them are handed out.
//!
//! Why this order is safe: the bytes handed out by [`Step::pull`] are *not* verified while they
//! come out, since checksums stand at the end of a stream. They are verified when
//! [`Pulled::Finished`] was returned, and only then may the staged file be given its final name.
//! Any error, at any point, means: throw the staged output away and keep the source.

mod chain;
mod decompress;
mod error;
mod format;
mod size;
mod spec;
mod step;

pub use chain::{Chain, MAX_STEPS};
pub use decompress::{Decompress, RATIO_GRACE_BYTES};
pub use error::{Limit, StepError};
pub use format::{Format, output_name};
pub use spec::{DecompressOptions, StepSpec, Unrecognised};
pub use step::{CHUNK_BYTES, Pulled, Step, StepSummary};
