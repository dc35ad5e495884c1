//! Why a stream could not be transformed.
//!
//! Constraints: an error can be cloned and kept, because a failed step repeats it; the messages
//! name the format, the place and what to do; no message repeats content of the file.

use std::borrow::Cow;
use std::fmt;

use crate::faults::{ArchiveFault, CryptoFault, KeyFault};
use crate::format::Format;

/// Why a step failed. All output of the step is void, the source was only read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The input ended inside a member.
    #[error(
        "the {format} stream ends early, after {offset} bytes: the file is truncated; \
         the source was kept, have it sent again"
    )]
    Truncated {
        /// What the stream is, or by its name should be.
        format: Format,
        /// Bytes of input there were.
        offset: u64,
    },

    /// A checksum, a length or the structure is wrong.
    #[error(
        "the {format} stream is damaged at or before byte {offset}: {detail}; \
         the source was kept, have it sent again"
    )]
    Corrupt {
        /// What the stream is.
        format: Format,
        /// Bytes of input used up when the damage was seen.
        offset: u64,
        /// What does not fit.
        detail: Cow<'static, str>,
    },

    /// Something that is no further member follows a complete one.
    #[error(
        "{format} data ends at byte {offset}, and what follows is not {format}: the file was \
         appended to or mixed up; the source was kept, cut it there or have it sent again"
    )]
    TrailingGarbage {
        /// What the stream was up to there.
        format: Format,
        /// Where the garbage begins, in bytes.
        offset: u64,
    },

    /// The stream wants more than the configuration allows.
    #[error(
        "{format} stream refused after {offset} bytes: {limit}; if the file is meant to be like \
         that, raise `{}` of this step", limit.option()
    )]
    LimitExceeded {
        /// What the stream is.
        format: Format,
        /// Bytes of input used up when the limit was met.
        offset: u64,
        /// Which limit, with its value and what was met.
        limit: Limit,
    },

    /// A valid stream that uses what this program does not support.
    #[error("the {format} stream uses what is not supported here: {detail}; the source was kept")]
    Unsupported {
        /// What the stream is.
        format: Format,
        /// What is not supported.
        detail: Cow<'static, str>,
    },

    /// The name says compressed, the content says otherwise.
    #[error(
        "named as {expected}, but the content is no compressed data known here: the file is \
         damaged or misnamed; the source was kept, rename it or have it sent again"
    )]
    NotAsNamed {
        /// What the name says.
        expected: Format,
    },

    /// Content that is not compressed, and the configuration wants that to be an error.
    #[error(
        "the content is not gzip, zstd, xz or bzip2, and the step `decompress` is set to \
         `unrecognised: fail`; use `pass` to deliver such files unchanged"
    )]
    Unrecognised,

    /// The system gave no memory to a decoder.
    #[error("no memory for the {format} decoder; try again with fewer transfers at once")]
    OutOfMemory {
        /// What the stream is.
        format: Format,
    },

    /// More steps than [`crate::MAX_STEPS`].
    #[error("{count} steps one after another, but at most {most} are allowed", most = crate::MAX_STEPS)]
    TooManySteps {
        /// How many were asked for.
        count: usize,
    },

    /// The driver of a step did not keep to the protocol of [`crate::Step`]: a bug in Knarr.
    #[error("a step was driven out of turn: {what}; please report this")]
    OutOfTurn {
        /// What was done too early or too late.
        what: &'static str,
    },

    /// An archive, or one entry of it, is refused.
    #[error("the {format} archive is refused{}: {fault}; nothing of it was delivered", at_entry(entry.as_deref()))]
    Archive {
        /// `tar` or `zip`, or `input` as long as it is not known.
        format: &'static str,
        /// The entry, in a form that is safe to print.
        entry: Option<String>,
        /// What is wrong.
        fault: ArchiveFault,
    },

    /// An encrypted or signed message is refused, or could not be made.
    #[error("{system}: {fault}")]
    Crypto {
        /// `OpenPGP` or `age`.
        system: &'static str,
        /// What is wrong.
        fault: CryptoFault,
    },

    /// A key that a step refers to cannot be used.
    #[error("the key `{name}` of the step `{step}`: {fault}; check the configuration")]
    Key {
        /// The step.
        step: &'static str,
        /// The name or path, as the configuration has it.
        name: String,
        /// What is wrong.
        fault: KeyFault,
    },

    /// The temporary file could not be written or read.
    #[error(
        "the temporary file of the step `{step}` failed: {detail}; look for free space and try again"
    )]
    Spool {
        /// The step.
        step: &'static str,
        /// What the system says.
        detail: String,
    },

    /// A file is not as long as it was said to be.
    #[error(
        "{path} is not as long as it was when the archive was begun: it changed while it was read"
    )]
    SizeChanged {
        /// The file, in a form that is safe to print.
        path: String,
    },

    /// The name that a step makes is not a path.
    #[error("the step `{step}` makes a name that is no path: {fault}")]
    OutputName {
        /// The step.
        step: &'static str,
        /// What is wrong with it.
        fault: knarr_core::path::PathError,
    },

    /// A library that a step uses failed in a way that it should not.
    #[error("the step `{step}` failed inside of a library: {detail}; please report this")]
    Internal {
        /// The step.
        step: &'static str,
        /// What is known of it.
        detail: Cow<'static, str>,
    },
}

fn at_entry(entry: Option<&str>) -> String {
    entry.map_or_else(String::new, |entry| format!(" at `{entry}`"))
}

impl StepError {
    pub(crate) fn spool(step: &'static str, error: &std::io::Error) -> Self {
        Self::Spool {
            step,
            detail: error.to_string(),
        }
    }

    /// Whether the same bytes, with the same configuration, will fail in the same way, so that
    /// a retry is of no use before the file or the configuration changes.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        !matches!(
            self,
            Self::OutOfMemory { .. } | Self::Spool { .. } | Self::SizeChanged { .. }
        )
    }
}

/// A limit that a stream met, with the values in bytes where not said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// More output than [`crate::DecompressOptions::max_output`].
    Output {
        /// The most bytes that are allowed.
        allowed: u64,
    },
    /// More output for the input than [`crate::DecompressOptions::max_ratio`].
    Ratio {
        /// The most bytes of output that are allowed for each byte of input.
        allowed: u32,
        /// Bytes of output when it was seen.
        output_bytes: u64,
    },
    /// More working memory than [`crate::DecompressOptions::max_memory`].
    Memory {
        /// The most bytes that are allowed.
        allowed: u64,
        /// The bytes that the stream asks for, where the decoder says so.
        wanted: Option<u64>,
    },
}

impl Limit {
    /// The name of the option that sets this limit.
    #[must_use]
    pub fn option(&self) -> &'static str {
        match self {
            Self::Output { .. } => "max_output",
            Self::Ratio { .. } => "max_ratio",
            Self::Memory { .. } => "max_memory",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Output { allowed } => {
                write!(
                    formatter,
                    "it expands to more than the {allowed} bytes allowed"
                )
            }
            Self::Ratio {
                allowed,
                output_bytes,
            } => write!(
                formatter,
                "it had expanded to {output_bytes} bytes, more than {allowed} times its size"
            ),
            Self::Memory {
                allowed,
                wanted: Some(wanted),
            } => write!(
                formatter,
                "decoding takes {wanted} bytes of memory, more than the {allowed} allowed"
            ),
            Self::Memory {
                allowed,
                wanted: None,
            } => {
                write!(
                    formatter,
                    "decoding takes more memory than the {allowed} bytes allowed"
                )
            }
        }
    }
}
