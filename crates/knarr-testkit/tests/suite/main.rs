//! The testkit's own tests: each component starts, does one real exchange, and is gone afterwards.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "fixtures need no durable writes, and a helper of a test may panic like the test"
)]

mod asyncssh;
mod data;
mod disks;
mod http_fault;
mod kill;
mod process;
mod proxy;
mod s3;
mod sshd;
