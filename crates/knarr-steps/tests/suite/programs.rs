//! Runs the programs that partners use.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a program in a directory with this on its standard input, and returns what it puts out.
pub(crate) fn run_in(
    directory: &Path,
    program: &str,
    arguments: &[&str],
    input: &[u8],
) -> Result<Vec<u8>, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{program} cannot be started ({error}): the setup of the tests installs it")
        });
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A program that does not read all of it closes the pipe.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    if output.status.success() {
        Ok(output.stdout)
    } else {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!(
            "{program} {arguments:?}: {}: {text}",
            output.status
        ))
    }
}

/// As [`run_in`], for what has to succeed.
pub(crate) fn output_of(directory: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    run_in(directory, program, arguments, b"").unwrap_or_else(|error| panic!("{error}"))
}
