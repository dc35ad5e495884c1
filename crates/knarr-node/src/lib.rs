//! Is the daemon: the control service of a running node, over a Unix socket.
//!
//! Constraints:
//!
//! * The protocol is `proto/knarr/v1/*.proto`. A message to the node is at most [`MAX_MESSAGE_BYTES`] long, at most
//!   [`MAX_CONNECTIONS`] connections are open, every list of records has pages, every stream is bounded.
//! * Only root and the user of the node are served; the peer's identity comes from the kernel ([`socket`]).
//! * What a question answers is computed by one function ([`query`]), whether it comes over the socket or
//!   from a command that opens the state itself because no node runs.
//! * Nothing that comes over the network can name a command, a file with a key, or an environment variable
//!   (K12): definitions go through [`Host::read`], which reads them as such.
//! * A change is on record before it is at work: what was acknowledged survives a crash, and a crash in
//!   between leaves a job that begins with the next start.
#![cfg(unix)]

pub mod client;
mod convert;
mod counting;
mod desk;
mod follow;
mod host;
pub mod http;
pub mod notify;
pub mod query;
mod server;
mod services;
pub mod socket;
/// The protocol, as it is generated from `proto/`, where everything is explained.
#[expect(
    missing_docs,
    clippy::all,
    clippy::clone_on_ref_ptr,
    clippy::allow_attributes_without_reason,
    clippy::allow_attributes,
    reason = "it is generated; what it says is documented in proto/"
)]
pub mod v1 {
    tonic::include_proto!("knarr.v1");
}

pub use convert::{Unreadable, record_of, run_of, timestamp};
pub use desk::{Desk, DeskError};
pub use follow::page as events_page;
pub use host::{Broken, Defined, Host, Opening, Reread};
pub use server::{Node, serve};

/// The longest message to the node, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The longest document of jobs and endpoints, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// How many connections are served at once; the next ones wait.
pub const MAX_CONNECTIONS: usize = 64;

/// Never shows the secret.
impl std::fmt::Debug for v1::SetSecretRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetSecretRequest")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
