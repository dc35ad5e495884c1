//! Serves a local directory to SFTP clients.
//!
//! Constraints:
//!
//! * [`Reach::Confined`]: everything is resolved below one opened directory by the kernel. `..` stops there, a
//!   link is resolved as if that directory were the root of the machine, and where the permissions differ from
//!   path to path, no link is followed at all: what was checked is what is opened.
//! * [`Uploads::Staged`]: what a client uploads has another name until it is closed. The order is: every byte is
//!   written, the length is checked, the permissions are set, the file is flushed if that is wanted, and then it
//!   is renamed. So nothing torn is ever seen under a final name, and a connection that dies leaves what was
//!   written where the next one can go on.
//! * What a client may do is decided in one place, [`Policy`].
//!
//! All calls block; `knarr_sftp::server::Execution` says on which thread.

mod attributes;
mod directory;
mod file;
mod hash;
mod local;
mod long_name;
mod names;
mod place;
mod policy;
mod staged;
mod stdio;
#[cfg(test)]
mod tests;

pub use local::{Flush, LocalFiles, LocalOptions, Reach, Uploads};
pub use policy::{Account, Permission, Permissions, Policy, Rule};
pub use stdio::serve_stdio;

pub(crate) use long_name::line_of;
pub(crate) use names::SystemNames;
pub(crate) use place::normal as normal_path;

pub use knarr_sftp::server::{
    Event, Execution, FileError, FileSystem, Observer, Operation, Operations, ServeError,
    ServeLimits, ServeOptions, Silent, Summary, serve, serve_streams,
};
