//! The command line as a whole, run as a program.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail by panic, and plays the world outside"
)]

mod configuration;
mod endpoints;
mod faults;
mod help;
mod init;
mod look;
mod node;
mod oneshot;
mod program;
mod record;
mod secrets;
