//! What Knarr decides with: paths, entries, the planner, job specifications, matching.
//!
//! Constraints: no I/O, no async, no clock, no randomness. The same input always gives the same
//! answer, so every decision can be tested without a disk and replayed from a record.

pub mod alert;
mod bytes_serde;
pub mod choose;
pub mod entry;
pub mod exercise;
pub mod filter;
pub mod hash;
pub mod job;
pub mod location;
pub mod matching;
pub mod moment;
pub mod parameters;
pub mod path;
pub mod pattern;
pub mod phrase;
pub mod plan;
pub mod record;
pub mod retry;
pub mod run;
pub mod schedule;
pub mod template;
pub mod time;
pub mod tree;
pub mod units;

pub use entry::{Entry, Identity, Kind};
pub use hash::ContentHash;
pub use path::RelPath;
pub use time::{Clock, Timestamp};
