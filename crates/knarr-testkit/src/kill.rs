//! Kills a command at chosen system calls, lets chosen system calls fail, or kills it at seeded times.
//!
//! Constraints: strace counts *per system call and per thread*. A program with several threads that
//! make the same call dies at the first that gets to the N-th call; sweep such a program with one worker
//! thread, so that N counts what it seems to count. A kill happens on entry: the call was not made.
//! A sweep ends with the first N that the command does not reach, so it visits every call exactly once.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::TestkitError;
use crate::process::{descendants, send};
use crate::tools;
use crate::wait::poll;

/// What happens at the chosen call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injection {
    /// `kill -9` on entry.
    Kill,
    /// The call is not made and fails with this errno name (`ENOSPC`).
    Error(String),
    /// The N-th call and every later one fail with this errno name.
    ErrorFromThenOn(String),
}

/// One visited point of a sweep.
#[derive(Debug, Clone)]
pub struct SweepPoint {
    /// The system call.
    pub system_call: String,
    /// Its number, from 1.
    pub nth: u32,
    /// Whether something was injected; false at the last point of each call.
    pub injected: bool,
    /// How the command ended (for a kill: by signal 9).
    pub status: ExitStatus,
    /// What it wrote to stderr.
    pub stderr: String,
}

/// Runs a command again and again, with an injection at the first, second, … of each system call.
#[derive(Debug, Clone)]
pub struct SyscallSweep {
    system_calls: Vec<String>,
    injection: Injection,
    path: Option<PathBuf>,
    limit: u32,
    time_limit: Duration,
}

impl SyscallSweep {
    /// A sweep over these system calls; calls that this machine does not know are passed over.
    #[must_use]
    pub fn new(injection: Injection, system_calls: &[&str]) -> Self {
        Self {
            system_calls: system_calls.iter().map(|&name| name.to_owned()).collect(),
            injection,
            path: None,
            limit: 1000,
            time_limit: Duration::from_secs(60),
        }
    }

    /// Counts only calls that touch this path, or a handle opened on it.
    #[must_use]
    pub fn on_path(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// At most so many points per system call (1000 unless said otherwise): reaching it is a failure.
    #[must_use]
    pub fn limit(mut self, points: u32) -> Self {
        self.limit = points;
        self
    }

    /// How long one run may take (a minute unless said otherwise).
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Runs the sweep. `prepare` makes a fresh world and gives the command; `check` looks at what was
    /// left. Returns the number of points at which something was injected.
    ///
    /// # Panics
    ///
    /// If strace is missing, a run takes too long, or the limit of points is reached.
    #[track_caller]
    pub fn run(
        &self,
        mut prepare: impl FnMut() -> Command,
        mut check: impl FnMut(&SweepPoint),
    ) -> u32 {
        let mut injected = 0;
        for name in &self.system_calls {
            for nth in 1.. {
                assert!(
                    nth <= self.limit,
                    "more than {} times {name}: raise the limit",
                    self.limit
                );
                let point = self.visit(name, nth, &prepare());
                check(&point);
                if !point.injected {
                    break;
                }
                injected += 1;
            }
        }
        injected
    }

    #[track_caller]
    fn visit(&self, name: &str, nth: u32, command: &Command) -> SweepPoint {
        let strace = crate::error::must(tools::find("strace", "the Debian package strace"));
        let directory = tempfile::tempdir().expect("the temporary directory is writable");
        let trace = directory.path().join("trace");
        let action = match &self.injection {
            Injection::Kill => format!("signal=KILL:when={nth}"),
            Injection::Error(errno) => format!("error={errno}:when={nth}"),
            Injection::ErrorFromThenOn(errno) => format!("error={errno}:when={nth}+"),
        };
        let mut traced = Command::new(strace);
        traced.args(["-f", "-qq", "-e", &format!("trace=?{name}")]);
        traced
            .args(["-e", &format!("inject=?{name}:{action}")])
            .arg("-o")
            .arg(&trace);
        if let Some(path) = &self.path {
            traced.arg("-P").arg(path);
        }
        traced
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args());
        copy_environment(command, &mut traced);
        let errors = directory.path().join("stderr");
        let file = fs::File::create(&errors).expect("the temporary directory is writable");
        traced
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let mut child = traced.spawn().expect("strace was found a moment ago");
        let Some(status) = wait_at_most(&mut child, self.time_limit) else {
            kill_tree(&mut child);
            panic!(
                "the command hung with {action} at {name}:\n{}",
                read_lossy(&errors)
            );
        };
        let injected = match self.injection {
            Injection::Kill => status.signal() == Some(9),
            Injection::Error(_) | Injection::ErrorFromThenOn(_) => {
                read_lossy(&trace).contains("(INJECTED)")
            }
        };
        let stderr = read_lossy(&errors);
        SweepPoint {
            system_call: name.to_owned(),
            nth,
            injected,
            status,
            stderr,
        }
    }
}

fn copy_environment(from: &Command, to: &mut Command) {
    for (key, value) in from.get_envs() {
        match value {
            Some(value) => to.env(key, value),
            None => to.env_remove(key),
        };
    }
    if let Some(directory) = from.get_current_dir() {
        to.current_dir(directory);
    }
}

fn read_lossy(path: &Path) -> String {
    let mut bytes = Vec::new();
    // Enough to understand what happened; a trace can be large.
    let limit = 64 << 20;
    if let Ok(file) = fs::File::open(path) {
        file.take(limit).read_to_end(&mut bytes).ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn wait_at_most(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    poll(limit, || child.try_wait().ok().flatten())
}

/// `kill -9` of a child and of everything below it, then waits for it.
pub fn kill_tree(child: &mut Child) {
    send(child.id(), Signal::STOP);
    for descendant in descendants(child.id()) {
        send(descendant, Signal::KILL);
    }
    send(child.id(), Signal::KILL);
    child.wait().ok();
}

/// Runs a command and kills it, with everything it started, after `duration`. `None`: it was killed;
/// else how it ended before that.
///
/// # Errors
///
/// If it cannot be started.
pub fn kill_after(
    command: &mut Command,
    duration: Duration,
) -> Result<Option<ExitStatus>, TestkitError> {
    let mut child = command.spawn().map_err(|source| TestkitError::Spawn {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    let status = wait_at_most(&mut child, duration);
    if status.is_none() {
        kill_tree(&mut child);
    }
    Ok(status)
}

/// Kills a command at seeded random times up to `longest`, `rounds` times, each followed by `check`
/// (given the round and whether it was killed rather than done).
///
/// # Panics
///
/// If the command cannot be started.
#[track_caller]
pub fn random_kill(
    seed: u64,
    rounds: u32,
    longest: Duration,
    mut prepare: impl FnMut() -> Command,
    mut check: impl FnMut(u32, bool),
) {
    let mut random = crate::data::Random::new(seed);
    let longest = u64::try_from(longest.as_micros())
        .unwrap_or(u64::MAX)
        .max(1);
    for round in 0..rounds {
        let duration = Duration::from_micros(random.below(longest));
        let status = crate::error::must(kill_after(&mut prepare(), duration));
        check(round, status.is_none());
    }
}
