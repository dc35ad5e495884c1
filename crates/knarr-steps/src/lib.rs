//! Transforms streams: compression, archives, OpenPGP, age, checksums, with limits.
//!
//! Constraints:
//! * No step ever holds a whole file. What it holds is one input chunk of the caller, a few output buffers of
//!   [`CHUNK_BYTES`], and the working memory of its codec, which its options limit. What needs to look
//!   at a file twice (the directory of a zip archive) puts it into a temporary file that the caller supplies.
//! * No I/O but that, no async, no clock. A step is a state machine that a blocking thread or a task drives
//!   with [`Step::feed`] and [`Step::pull`]; OpenPGP and age run on a thread of their own behind the same
//!   face, which a pull waits for.
//! * One call never yields more than [`CHUNK_BYTES`], however much a few input bytes expand to:
//!   the caller that does not pull is the back-pressure.
//! * Limits are checked while streaming, before the bytes that break them are handed out.
//!
//! Why this order is safe: the bytes handed out by [`Step::pull`] are *not* verified while they
//! come out, since checksums and signatures stand at the end of a stream. They are verified when
//! [`Pulled::Finished`] (of a pipeline: [`Emitted::Finished`]) was returned, and only then may the staged
//! files be given their final names. Any error, at any point, means: throw the staged output away and keep the
//! source.

mod age_files;
mod archive;
mod checksum;
mod compress;
mod context;
mod decompress;
mod error;
mod extract;
mod faults;
mod format;
mod item;
mod openpgp;
mod pipeline;
mod size;
mod spec;
mod stage;
mod step;
mod worker;

pub use checksum::{Hasher, find_checksum};
pub use compress::Compress;
pub use context::{Context, Keys, Secret, Spool};
pub use decompress::{Decompress, RATIO_GRACE_BYTES};
pub use error::{Limit, StepError};
pub use faults::{ArchiveFault, CryptoFault, KeyFault};
pub use format::{Format, output_name};
pub use item::{Head, Node};
pub use openpgp::openpgp_expiry;
pub use pipeline::{Emitted, MAX_STEPS, Pipeline, Recipe};
pub use spec::{
    AgeIdentity, AgeRecipients, ArchiveFormat, ArchiveOptions, ChecksumAlgorithm, ChecksumOptions,
    CompressOptions, DecompressOptions, DecryptOptions, Encoding, EncryptOptions, ExtractOptions,
    Links, PgpRecipients, References, SignOptions, SignatureMode, StepSpec, Unrecognised,
    VerifyOptions,
};
pub use step::{CHUNK_BYTES, Pulled, SideFile, Step, StepSummary};
