//! What the process was given: environment variables, user, directories. Nobody else asks for them.

use std::env;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Component, Path, PathBuf};

/// What the process was given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    /// `$HOME`.
    pub(crate) home: Option<PathBuf>,
    /// `$KNARR_STATE`.
    pub(crate) state: Option<PathBuf>,
    /// `$KNARR_LOG`, a filter of tracing.
    pub(crate) log: Option<String>,
    /// The name of the user: `$USER`, `$LOGNAME`, or what /etc/passwd says.
    pub(crate) user: Option<String>,
    /// `$SSH_AUTH_SOCK`.
    pub(crate) ssh_agent: Option<PathBuf>,
    /// Whether stdin is a terminal.
    pub(crate) stdin_is_terminal: bool,
    /// Whether stdout is a terminal.
    pub(crate) stdout_is_terminal: bool,
    /// Whether stderr is a terminal.
    pub(crate) stderr_is_terminal: bool,
    /// Whether `$NO_COLOR` is empty and `$TERM` is not `dumb`.
    pub(crate) colour_wanted: bool,
    working_directory: PathBuf,
    config_home: Option<PathBuf>,
    state_home: Option<PathBuf>,
    is_root: bool,
}

impl Environment {
    /// Asks the operating system.
    pub(crate) fn of_process() -> Self {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let absolute = |name: &str| path(name).filter(|path| path.is_absolute());
        Self {
            home: absolute("HOME"),
            state: path("KNARR_STATE"),
            log: set("KNARR_LOG").and_then(|value| OsString::into_string(value).ok()),
            user: ["USER", "LOGNAME"]
                .into_iter()
                .find_map(|name| set(name).and_then(|value| value.into_string().ok()))
                .or_else(user_of_process),
            ssh_agent: path("SSH_AUTH_SOCK"),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
            colour_wanted: set("NO_COLOR").is_none() && set("TERM").is_none_or(|t| t != "dumb"),
            working_directory: env::current_dir().unwrap_or_else(|_gone| PathBuf::from("/")),
            config_home: absolute("XDG_CONFIG_HOME"),
            state_home: absolute("XDG_STATE_HOME"),
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// The value of an environment variable that the configuration names.
    pub(crate) fn variable(name: &str) -> Option<String> {
        env::var(name).ok()
    }

    /// `$XDG_CONFIG_HOME` or `~/.config`.
    pub(crate) fn config_home(&self) -> Option<PathBuf> {
        self.config_home
            .clone()
            .or_else(|| self.home.as_ref().map(|home| home.join(".config")))
    }

    /// The state directory if nobody names one: the system's for root, else the user's.
    pub(crate) fn usual_state(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some(PathBuf::from("/var/lib/knarr"));
        }
        self.state_home
            .clone()
            .or_else(|| self.home.as_ref().map(|home| home.join(".local/state")))
            .map(|directory| directory.join("knarr"))
    }

    /// `path` from the root, without `.` and `..`; links are not followed.
    pub(crate) fn absolute(&self, path: &Path) -> PathBuf {
        normal(&self.working_directory.join(path))
    }
}

/// The name of the effective user in /etc/passwd.
fn user_of_process() -> Option<String> {
    let id = rustix::process::geteuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    })
}

/// `path` without `.` and `..`, by its letters alone.
pub(crate) fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}
