//! Gives places to SFTP clients: which users there are, what each may do, and the SSH server they come through.
//!
//! * [`files`] serves a local directory, to a client on any stream of bytes.
//! * [`places`] puts together what one user sees: directories, other places, mount points, a quota.
//! * [`users`] decides who is let in, and [`ssh`] is the server they come to.
//! * [`event`] tells what they do.

pub mod event;
pub mod files;
pub mod places;
pub mod ssh;
pub mod users;
