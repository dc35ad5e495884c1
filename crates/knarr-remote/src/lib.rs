//! Names places: the [`Remote`] trait, its backends and decorators, and the suite they all pass.
//!
//! A remote is one root somewhere: a local directory, a directory on an SFTP server, a prefix in a
//! bucket, or a tree in memory. Everything below it is named by [`knarr_core::RelPath`].

mod buffers;
pub mod conformance;
pub mod decorate;
pub mod error;
mod guard;
pub mod listing;
pub mod local;
pub mod memory;
pub mod object;
pub mod operation;
pub mod remote;
pub mod sftp;
pub mod ssh;
pub mod upload;

pub use error::{ErrorKind, RemoteError, Retry};
pub use listing::{ListOptions, Listing, ListingSender};
pub use remote::{
    Capabilities, Description, MtimeSupport, NewNode, ReadOptions, Reader, Remote, Removal,
    RenameOptions, Replace, WriteOptions,
};
pub use upload::{
    CheckpointSink, CheckpointUpdate, Committed, Committer, PartDone, ResumeState, Staged,
    StagedId, Upload,
};
