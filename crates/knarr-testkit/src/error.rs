//! What can go wrong while the testkit sets something up.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why a component could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TestkitError {
    /// A program is not installed.
    #[error("{program} is missing: install {package}, or run `cargo xtask setup`")]
    MissingProgram {
        /// Name of the program.
        program: String,
        /// What holds it, with its kind: "the Debian package x", "the crate y".
        package: &'static str,
    },
    /// No Python was found that has the module.
    #[error(
        "no python3 with the module {module} in {} or on the PATH: run `cargo xtask setup`", venv.display()
    )]
    MissingPythonModule {
        /// Name of the module.
        module: &'static str,
        /// The virtual environment that `cargo xtask setup` makes.
        venv: PathBuf,
    },
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program could not be spawned.
    #[error("starting {program}")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A helper command ended with a failure.
    #[error("`{command}` failed with {status}: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// A server ended before it was ready.
    #[error("{server} ended with {status} before it was ready; its log:\n{log}")]
    Ended {
        /// Name of the server.
        server: String,
        /// How it ended.
        status: ExitStatus,
        /// All of its log.
        log: String,
    },
    /// A server did not become ready in time.
    #[error("{server} was not ready after {seconds} s; its log:\n{log}")]
    NotReady {
        /// Name of the server.
        server: String,
        /// How long was waited, in seconds.
        seconds: u64,
        /// All of its log.
        log: String,
    },
    /// No port of the testkit's range is free.
    #[error("no free loopback port in {first}..{end}")]
    NoPort {
        /// First port of the range.
        first: u16,
        /// One past the last port of the range.
        end: u16,
    },
    /// The operation needs root.
    #[error(
        "{what} needs root; run as root, or leave these tests out on purpose with \
         KNARR_TEST_WITHOUT_ROOT=1 (`cargo xtask test --without-root`)"
    )]
    NeedsRoot {
        /// What needs root.
        what: &'static str,
    },
}

impl TestkitError {
    /// Shorthand for [`TestkitError::File`], to be used in `map_err`.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    /// The message with those of all its sources.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

/// Takes the value, or panics with the whole chain of reasons: what tests want.
///
/// # Panics
///
/// If `result` is an error.
pub fn must<T>(result: Result<T, TestkitError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{}", error.chain()),
    }
}
