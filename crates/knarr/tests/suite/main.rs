//! The command line as a whole, run as a program.

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
