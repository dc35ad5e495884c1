//! Touches the local disk, durably.
//!
//! Constraints: everything is relative to an opened directory and never leaves it; nothing torn is
//! ever visible under a final name; what is reported as committed survives a power cut; memory does
//! not grow with the number of files. All calls block; callers use blocking threads.
//!
//! * [`root`]: the directory that everything is reached through, its identity, its free space.
//! * [`walk`]: lists a tree in tree order.
//! * [`stage`] and [`commit`]: write under a staged name, flush, rename.
//! * [`copy`]: many small files at once, from one root to another.
//! * [`change`]: rename, remove, links.
//! * [`durable`] and [`lock`]: small files of Knarr's own.
//! * [`watch`]: tells what changes, as far as the system tells.
#![cfg(unix)]

pub mod below;
pub mod change;
pub mod commit;
pub mod copy;
pub mod durable;
pub mod error;
pub mod identity;
pub mod lock;
pub mod root;
pub mod stage;
mod sys;
pub mod walk;
pub mod watch;

pub use error::{ErrorClass, FsError};
pub use root::Root;
