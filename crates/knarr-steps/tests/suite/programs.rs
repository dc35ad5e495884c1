//! Runs the programs that partners use.

use std::path::Path;

pub(crate) use knarr_testkit::gpg::run_in;

/// As [`run_in`], for what has to succeed.
pub(crate) fn output_of(directory: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    run_in(directory, program, arguments, b"").unwrap_or_else(|error| panic!("{error}"))
}
