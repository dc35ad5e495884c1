//! The command line of Knarr: flags, configuration, wiring, exit codes.
//!
//! Constraints: data goes to stdout, everything else to stderr; no secret is taken from the command
//! line or shown; a closed pipe ends the program quietly; the process ends through `main`, so that
//! what has to be flushed is.
//!
//! It is a library so that the parts which read what comes from outside can be fuzzed.
#![cfg(unix)]

mod cli;
mod command_error;
pub mod config;
mod environment;
mod location;
mod logging;
mod output;
mod progress;
mod secrets;
mod single_file;
mod suggest;
mod terminal;

use std::process::ExitCode;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    cli::main(std::env::args_os())
}
