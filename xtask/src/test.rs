//! The test command: set up, then run all tests, then say what was left out.

use std::collections::BTreeSet;
use std::fs;

use crate::{Outcome, cargo, setup};

/// Runs all tests; arguments other than `--without-root` go to nextest.
///
/// # Errors
///
/// If the set-up or a test fails, or if tests that need root would run without it.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let without_root = arguments
        .iter()
        .any(|argument| argument == "--without-root");
    let rest = arguments
        .iter()
        .filter(|argument| *argument != "--without-root");
    if !without_root && !setup::is_root()? {
        return Err(
            "some tests need root (power cuts, full disks): run as root, or leave them out \
                    on purpose with `cargo xtask test --without-root`"
                .to_owned(),
        );
    }
    setup::run(setup::Scope::Tests)?;
    let left_out = tempfile::NamedTempFile::new()
        .map_err(|error| format!("cannot make a temporary file: {error}"))?;
    let mut command = cargo();
    command
        .args(["nextest", "run", "--workspace", "--profile", "ci"])
        .args(rest);
    command.env("KNARR_TEST_LEFT_OUT", left_out.path());
    if without_root {
        command.env("KNARR_TEST_WITHOUT_ROOT", "1");
    } else {
        command.env_remove("KNARR_TEST_WITHOUT_ROOT");
    }
    let outcome = crate::run_visibly(&mut command);
    let names = fs::read_to_string(left_out.path()).unwrap_or_default();
    let names: BTreeSet<&str> = names.lines().collect();
    if !names.is_empty() {
        println!(
            "     LEFT OUT on purpose, for want of root (they count as passed above): {}",
            names.len()
        );
        for name in names {
            println!("        {name}");
        }
    }
    outcome
}
