//! The command line as a whole, run as a program.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail by panic, and plays the world outside"
)]

mod alerts;
mod approval;
mod configuration;
mod control;
mod documented;
mod endpoints;
mod examples;
mod faults;
mod faults_page;
mod help;
mod hooks;
mod init;
mod jobs;
mod limits;
mod look;
mod node;
mod notifier;
mod oneshot;
mod operating;
mod program;
mod queue;
mod record;
mod secrets;
mod sftp_audit;
mod sftp_gate;
mod sftp_server;
mod terminal;
