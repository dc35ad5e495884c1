//! Connects to SSH servers, as OpenSSH's own client would, and opens SFTP channels on them.
//!
//! Constraints:
//!
//! * No server is ever talked to that was not verified: by `known_hosts`, by a certificate of an
//!   authority named there, or by a pinned fingerprint. There is no mode that accepts any key, and no
//!   key is ever learned by itself.
//! * No SHA-1 signatures, no CBC, no key exchange with SHA-1; ChaCha20 and encrypt-then-MAC only with
//!   strict key exchange (Terrapin).
//! * This module reads the files it is told to read, and never the environment: paths, the agent's
//!   socket and secrets are handed in.
//! * Secrets are wiped when they are dropped and appear in no message.
//!
//! Order: the host key is checked inside the key exchange, before any authentication, so no password
//! and no signature ever reaches a server that is not the right one. In a chain of jump hosts each hop
//! is verified and authenticated before the next one is asked for.

mod algorithms;
pub mod auth;
pub mod channel;
pub mod config;
pub mod error;
mod handler;
pub mod host_key;
pub mod known_hosts;
pub mod options;
mod pattern;
pub mod session;

pub use auth::{Authentication, KeyFile, Presence, Prompter, Question, Secret, certificate_expiry};
pub use channel::{SftpSink, SftpSource};
pub use config::{ConfigContext, SshConfig};
pub use error::{SftpError, SshError};
pub use host_key::{HostKeyFingerprint, HostKeyPolicy};
pub use known_hosts::{KnownHosts, KnownHostsError};
pub use options::{Cipher, SshOptions};
pub use session::SshSession;
