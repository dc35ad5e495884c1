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
pub mod exercise;
mod location;
mod logging;
mod metrics;
mod output;
mod progress;
mod retention;
mod secrets;
mod single_file;
mod steps;
mod suggest;
mod terminal;

use std::process::ExitCode;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    raise_open_files();
    cli::main(std::env::args_os())
}

/// Allows as many open files as the system lets us: connections, directories and files in flight of many
/// jobs add up, and the soft limit of 1,024 is there for programs that use `select`, which we do not.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Refused, it stays as it is; `knarr doctor` shows it.
    setrlimit(Resource::Nofile, raised).ok();
}
