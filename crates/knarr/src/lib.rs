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
    keep_memory_in();
    raise_open_files();
    cli::main(std::env::args_os())
}

/// Passwords and keys are in memory: no core dump takes them to a disk, and no other process of the same user reads them
/// (`ptrace`, `/proc/…/mem`, `/proc/…/environ`). Root can, of course. Programs that are run get no cores either.
fn keep_memory_in() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // To lower a limit is always allowed; where it is not, there is nothing better to do than to go on.
    setrlimit(Resource::Core, none).ok();
    // Also where cores go to a program, which no limit holds for.
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).ok();
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
