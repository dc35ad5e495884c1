//! The configuration, `knarr.yaml`: found, read, checked.
//!
//! Constraints: a file of at most [`find::MAX_BYTES`]; not writable by everybody; no secret in it;
//! no key that is not known. It is checked as a whole before anything of it is used, and all errors
//! are told at once, each with its line.
//!
//! The way: text → tree with positions ([`node`]) → shapes ([`shape`], through [`read`]) → checked
//! and complete values ([`resolved`], through [`check`]).

mod check;
pub(crate) mod find;
mod loops;
pub(crate) mod network;
mod node;
mod problem;
mod read;
mod resolved;
mod shape;

use std::path::Path;

pub(crate) use problem::ProblemData;
pub use problem::{Colour, ConfigProblems};
pub use resolved::{
    Config, Destination, Endpoint, EndpointKind, Hooks, Job, Limits, LogFormat, LogSettings,
    Metrics, ObjectSettings, Retention, SecretSource, ServedMount, ServedUser, SftpServer,
    SftpSettings, TemporaryFiles, UserPassword,
};

/// What paths in a configuration are relative to.
#[derive(Debug, Clone, Copy)]
pub struct Bases<'a> {
    /// The directory of the configuration file; absolute.
    pub directory: &'a Path,
    /// What `~` stands for.
    pub home: Option<&'a Path>,
}

/// Reads and checks a configuration; `file` is its name in messages.
///
/// # Errors
/// [`ConfigProblems`] with everything that is wrong.
pub fn parse(text: &str, file: &Path, bases: Bases<'_>) -> Result<Config, ConfigProblems> {
    check::check(text, bases).map_err(|problems| ConfigProblems::new(file, text, problems))
}

/// The JSON Schema of the configuration.
#[must_use]
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(shape::ConfigShape)
}
