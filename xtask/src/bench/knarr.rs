//! Knarr as a contestant: a release build, with a configuration and a state directory per attempt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::row::{Attempt, Contestant, KNARR, Side};
use crate::{cargo, run_visibly, workspace_root};

/// Builds Knarr as it is released.
///
/// # Errors
///
/// If it does not build.
pub(crate) fn build() -> Result<PathBuf, String> {
    run_visibly(cargo().args(["build", "--release", "--package", "knarr"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace_root().join("target"), PathBuf::from);
    Ok(workspace_root().join(target).join("release/knarr"))
}

/// A command of Knarr. `configuration` is the text of `knarr.yaml`.
///
/// # Errors
///
/// If the configuration cannot be written.
pub(crate) fn command(
    program: &Path,
    state: &Path,
    configuration: &str,
    arguments: &[&str],
) -> Result<Command, String> {
    let file = state.join("knarr.yaml");
    fs::write(&file, configuration)
        .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    let mut command = Command::new(program);
    command.arg("--quiet").arg("--config").arg(&file);
    command.arg("--state").arg(state.join("state"));
    command.args(arguments).env_remove("KNARR_LOG");
    Ok(command)
}

/// Knarr copying, as it comes; `places` gives source and destination of an attempt.
pub(crate) fn copying<'a>(
    program: &'a Path,
    configuration: &'a str,
    places: impl Fn(&Attempt) -> (String, String) + 'a,
) -> Contestant<'a> {
    Contestant::new(KNARR, Side::Ours, move |attempt| {
        let (source, destination) = places(attempt);
        command(
            program,
            &attempt.state,
            configuration,
            &["copy", &source, &destination],
        )
    })
}
