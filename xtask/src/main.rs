//! The project's own chores: `cargo xtask setup | test | tidy | servers`.
//!
//! Constraints: no chore needs anything but cargo to start; what else it needs, `setup` installs, and
//! says so. A chore that fails says what to do about it and ends with exit code 1.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "chores talk to a person on a terminal, and write nothing that must survive a power cut"
)]

mod bench;
mod demo;
mod servers;
mod setup;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
cargo xtask CHORE

  demo [--keep]                show the main job on example data, without any server
  setup [--bench [--garage]]   install what the tests and the checks need (again: only what is missing);
                               with --bench also the peers of the benchmarks, with --garage a server
  test [--without-root] [ARGUMENTS OF NEXTEST…]
                               set up, then run all tests
  tidy                         hold the house rules against the code
  bench [ROW…] [OPTIONS]       measure Knarr beside its peers; --help tells more
  servers [DIRECTORY]          run a private sshd and a local S3 server to try things with, until Ctrl-C;
                               installs them if they are missing
";

/// What a chore ends with: an error is a text for a person, printed as it is.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (chore, rest) = match arguments.split_first() {
        Some((chore, rest)) => (chore.as_str(), rest),
        None => ("", arguments.as_slice()),
    };
    let outcome = match chore {
        "demo" => demo::run(rest),
        "setup" => {
            setup::run(setup::Scope::TestsAndChecks).and_then(|()| bench::install::run(rest))
        }
        "bench" => bench::run(rest),
        "test" => test::run(rest),
        "tidy" => tidy::run(&workspace_root()),
        "servers" => setup::run(setup::Scope::Servers).and_then(|()| servers::run(rest)),
        "--help" | "-h" | "help" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask {chore}: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace: the directory above this package.
fn workspace_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// Cargo itself, as the one that runs this program.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    command
}

/// Runs a command with its output on the terminal, and shows it first.
fn run_visibly(command: &mut Command) -> Outcome {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let line = line.join(" ");
    eprintln!("+ {line}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{line}` failed ({status})")),
        Err(error) => Err(format!("cannot start `{line}`: {error}")),
    }
}
