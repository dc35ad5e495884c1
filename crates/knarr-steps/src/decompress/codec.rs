//! What the decoders of the four formats have in common.
//!
//! Constraints: a decoder keeps nothing of the input but the few bytes of a header, never grows
//! the output buffer, and verifies every checksum that its format carries. The members of a file
//! (gzip members, zstd frames, xz and bzip2 streams) are told apart here and not left to the
//! libraries, because those ignore trailing garbage or cannot say it from damage.

use std::borrow::Cow;

/// A decoder of one format, from the first byte of the file to the last.
pub(super) trait Codec: Send {
    /// Moves the front of `input` behind what it used up, also when it fails, and appends to the
    /// spare capacity of `output` (there has to be some). Doing neither, it needs more input.
    fn decode(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<(), Fault>;

    /// Whether the input may end here. Asked when [`Codec::decode`] needs more than there is.
    fn end(&self) -> Result<(), Fault>;

    /// Complete members so far.
    fn members(&self) -> u64;
}

/// What is wrong with a stream; where it is, the caller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Truncated,
    Corrupt(Cow<'static, str>),
    /// So many bytes before the end of what was used up, something begins that is no member.
    Garbage {
        bytes_back: u64,
    },
    Memory {
        wanted: Option<u64>,
    },
    Unsupported(Cow<'static, str>),
    OutOfMemory,
}

impl Fault {
    pub(super) fn corrupt(detail: &'static str) -> Self {
        Self::Corrupt(Cow::Borrowed(detail))
    }
}

/// Moves the front of `input` by what a library says it went on, from `before` to `after`.
pub(super) fn advance(input: &mut &[u8], before: u64, after: u64) {
    let used = usize::try_from(after - before).unwrap_or(usize::MAX);
    *input = input.get(used..).unwrap_or_default();
}
