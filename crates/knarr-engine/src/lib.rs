//! Runs jobs and commands: observe, plan, move, record.
//!
//! Constraints: at most [`execute`](crate)'s window of operations is under way at a time, whatever the
//! number of files; nothing is called done before it is recorded; nothing is removed because of what
//! could not be seen.

pub mod acknowledge;
pub mod announce;
mod apply;
mod batch;
mod bulk;
mod checkpoint;
mod commit;
pub mod conditions;
mod conflict;
mod content_type;
mod context;
mod dispose;
mod duplicates;
mod error;
mod execute;
mod holds;
mod icap;
mod inspect;
mod journal;
mod lock;
mod manifest;
pub mod node;
pub mod observer;
pub mod oneshot;
pub mod outbox;
pub mod pickup;
pub mod plan_file;
mod planning;
mod put;
mod recover;
mod removal;
mod report;
mod steps;
mod tidy;
mod transfer;
mod turns;

pub use batch::Publish;
pub use content_type::ContentType;
pub use duplicates::{Duplicates, OnDuplicate};
pub use error::{EngineError, chain};
pub use icap::{IcapScan, IcapUrlError};
pub use inspect::{Digest, FileChecks, ScanCommand};
pub use journal::{degraded_setting, scanning_setting};
pub use manifest::ManifestSpec;
pub use observer::Observer;
pub use planning::Planned;
pub use steps::Steps;
pub use turns::{Turn, Turns};

/// How long what an interrupted transfer left is kept, unless the configuration says otherwise.
pub const KEEP_UNFINISHED: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3_600);
