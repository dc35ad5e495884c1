//! What every transformation of a stream looks like to the one who drives it.
//!
//! Constraints: a step that pushed into a sink would let 64 KiB of a bomb call the sink
//! thousands of times before the caller could say stop. So the caller pulls, and each call is
//! bounded: at most one chunk of [`CHUNK_BYTES`], and at most the work that one such chunk or
//! one input chunk takes.
//!
//! The loop around a step:
//!
//! ```text
//! loop {
//!     match step.pull()? {
//!         Pulled::Chunk(bytes) => write(bytes),
//!         Pulled::NeedsInput => match read() { Some(bytes) => step.feed(bytes)?, None => step.end() },
//!         Pulled::Finished => break,            // only now is the output complete and verified
//!     }
//! }
//! ```

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::StepError;
use crate::format::Format;

/// The most bytes that one [`Step::pull`] hands out.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// A transformation of a stream of bytes: one chunk in, any number of bounded chunks out.
pub trait Step: Send + fmt::Debug {
    /// Takes the next chunk of input, of any size. An empty chunk is no end of input and changes nothing.
    ///
    /// # Errors
    /// [`StepError::OutOfTurn`] if the previous chunk was not used up (the last
    /// [`Step::pull`] did not return [`Pulled::NeedsInput`]) or after [`Step::end`].
    fn feed(&mut self, input: Bytes) -> Result<(), StepError>;

    /// Says that no input will follow. What is verified at the end of a stream is verified by
    /// the [`Step::pull`] calls that come after.
    fn end(&mut self);

    /// Does a bounded piece of work and says what came of it.
    ///
    /// # Errors
    /// Whatever is wrong with the input or breaks a limit. An error is final: every later call
    /// returns the same one, and all output so far is void.
    fn pull(&mut self) -> Result<Pulled, StepError>;

    /// What was done so far; complete once [`Pulled::Finished`] was returned.
    fn summary(&self) -> StepSummary;

    /// The name of the output for an input of this name (its last component); right once
    /// [`Pulled::Finished`] was returned, or any chunk was pulled.
    fn output_name(&self, name: &[u8]) -> Vec<u8> {
        name.to_vec()
    }

    /// The length of the output in bytes, as far as it can be told before, for an input of this length.
    fn output_size(&self, _input: Option<u64>) -> Option<u64> {
        None
    }

    /// Small files that belong beside the output of this name; asked once, after [`Pulled::Finished`].
    fn side_files(&mut self, _name: &[u8]) -> Vec<SideFile> {
        Vec::new()
    }
}

/// A small file beside the output of a step: a checksum, a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// Its name, in the directory of the output.
    pub name: Vec<u8>,
    /// What is in it.
    pub content: Bytes,
}

/// What came of one [`Step::pull`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pulled {
    /// The next 1 to [`CHUNK_BYTES`] bytes of output. Not verified yet.
    Chunk(Bytes),
    /// Everything fed is used up: [`Step::feed`] more, or [`Step::end`].
    NeedsInput,
    /// The output is complete, and everything that can be verified about it was.
    Finished,
}

/// What a step did with a stream, for the custody record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSummary {
    /// The compression that was removed; nothing if the content was passed on as it was.
    pub format: Option<Format>,
    /// Bytes of input used up.
    pub input_bytes: u64,
    /// Bytes of output produced.
    pub output_bytes: u64,
    /// Complete members (gzip), frames (zstd, without skippable ones) or streams (xz, bzip2).
    pub members: u64,
    /// What else is worth knowing, such as who signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl StepSummary {
    /// Nothing done so far.
    #[must_use]
    pub fn new() -> Self {
        Self {
            format: None,
            input_bytes: 0,
            output_bytes: 0,
            members: 0,
            note: None,
        }
    }

    /// Adds what was done to another file.
    pub(crate) fn add(&mut self, other: Self) {
        self.format = other.format.or(self.format);
        self.input_bytes += other.input_bytes;
        self.output_bytes += other.output_bytes;
        self.members += other.members;
        self.note = other.note.or(self.note.take());
    }
}

impl Default for StepSummary {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for StepSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (input, output) = (self.input_bytes, self.output_bytes);
        if let Some(note) = &self.note {
            return write!(formatter, "{note}, {input} bytes to {output} bytes");
        }
        match self.format {
            None => write!(
                formatter,
                "not compressed, {output} bytes passed on unchanged"
            ),
            Some(format) if self.members == 1 => {
                write!(formatter, "{format}, {input} bytes to {output} bytes")
            }
            Some(format) => {
                let members = self.members;
                write!(
                    formatter,
                    "{format}, {members} members, {input} bytes to {output} bytes"
                )
            }
        }
    }
}

/// Chunks on their way through unchanged, cut to at most [`CHUNK_BYTES`] without copying.
#[derive(Default)]
pub(crate) struct PassThrough {
    waiting: VecDeque<Bytes>,
}

impl PassThrough {
    /// Queues a chunk. The callers feed only when nothing waits, so the queue holds two at most:
    /// the few bytes that a format is recognised by, and the chunk after them.
    pub(crate) fn put(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.waiting.push_back(chunk);
        }
    }

    /// The next piece, of at most [`CHUNK_BYTES`].
    pub(crate) fn take(&mut self) -> Option<Bytes> {
        let first = self.waiting.front_mut()?;
        if first.len() > CHUNK_BYTES {
            return Some(first.split_to(CHUNK_BYTES));
        }
        self.waiting.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
