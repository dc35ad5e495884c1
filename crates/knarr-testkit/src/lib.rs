//! Tests only: real sshd and S3 servers, fault proxies, power cut, kill sweeps, fixtures.
//!
//! Constraints:
//!
//! * Components are the real ones, in temporary directories, on loopback ports that are reserved
//!   across processes. A missing program is a loud failure that names what installs it, never a skip.
//! * Nothing outlives the test. Everything that is started is killed on drop, with its children;
//!   if the test process itself is killed, a watchdog process does it (see [`process`]).
//! * Everything is synchronous, so that it can be used from plain and from async tests alike.
//! * The log of a server is printed when the test that owns it panics.
//!
//! Nothing here is ever linked into the `knarr` binary, so this crate may sleep, write files without
//! flushing and ask for the time: it plays the world outside, which does the same.
#![expect(
    clippy::disallowed_methods,
    reason = "the testkit plays the world outside: it needs no durable writes and it may sleep"
)]

pub mod asyncssh;
pub mod c_icap;
pub mod data;
pub mod error;
pub mod gpg;
pub mod http_fault;
pub mod kill;
pub mod port;
pub mod postgres;
pub mod powercut;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod root;
pub mod s3;
pub mod small_disk;
pub mod sshd;
pub mod tools;
pub mod wait;

pub use error::TestkitError;
pub use wait::wait_until;
