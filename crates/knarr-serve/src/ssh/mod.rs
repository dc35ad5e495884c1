//! The SSH server: connections, log-in, SFTP channels, and nothing else. No shell, no commands, no forwarding.
//!
//! Constraints:
//!
//! * What a client costs before it has logged in is bounded: in number ([`Startups`]), in time
//!   ([`ServerOptions::log_in_grace`]) and in repetition ([`Penalties`]).
//! * Stopping: no connection is taken any more; those without an open file end at once, the others when their
//!   files are closed, and all of them after [`ServerOptions::stopping`]. Requests that were received are carried
//!   out; what was not closed is kept to be continued, and published by nobody.
//! * A connection is a task that watches over the session of russh, and ends it by ending its stream.

mod algorithms;
mod channel;
mod connection;
mod handler;
mod host_keys;
mod observed;
mod options;
mod penalties;
mod server;
mod startups;
mod stream;

pub use host_keys::{HostKeyError, HostKeys};
pub use options::ServerOptions;
pub use penalties::Penalties;
pub use server::SshServer;
pub use startups::Startups;
