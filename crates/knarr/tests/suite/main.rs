//! The command line as a whole, run as a program.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail by panic, and plays the world outside"
)]

mod approval;
mod configuration;
mod documented;
mod endpoints;
mod faults;
mod faults_page;
mod help;
mod init;
mod jobs;
mod limits;
mod look;
mod node;
mod oneshot;
mod program;
mod queue;
mod record;
mod secrets;
mod sftp_server;
mod terminal;
