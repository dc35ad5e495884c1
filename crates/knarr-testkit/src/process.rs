//! A server process that cannot outlive its test.
//!
//! Constraints: a server may fork sessions that leave its process group (sshd does), so the tree
//! is found through parent ids, with the root stopped first so that it cannot fork meanwhile. The
//! test process may be killed (a time-out of the test runner), and then no destructor runs: a
//! watchdog shell that waits for the end of a pipe does the killing. A parent-death signal would not
//! do, because it fires when the *thread* that spawned the child ends.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::TestkitError;
use crate::wait::poll;

/// How long a server may take until it is ready. Generous: test machines are small and busy.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// A shell command that runs if this process dies without having dropped the value.
#[derive(Debug)]
pub struct Watchdog {
    shell: Child,
    _pipe: Option<ChildStdin>,
}

impl Watchdog {
    /// Arms a watchdog: `script` (POSIX shell; `$1`… are `arguments`) runs when this process dies.
    ///
    /// # Errors
    ///
    /// If `/bin/sh` cannot be started.
    pub fn arm(script: &str, arguments: &[&str]) -> Result<Self, TestkitError> {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(format!("read -r _\n{script}"))
            .arg("knarr-testkit-watchdog");
        command.args(arguments);
        // Its own group: a signal to the test's group must not take the watchdog with it.
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut shell = command.spawn().map_err(|source| TestkitError::Spawn {
            program: "/bin/sh".to_owned(),
            source,
        })?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, _pipe: pipe })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Disarm before the pipe closes: a killed shell runs nothing.
        if self.shell.kill().is_ok() {
            self.shell.wait().ok();
        }
    }
}

const KILL_TREE: &str = r#"
tree() { for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do tree "$child"; done; echo "$1"; }
for pid in $(tree "$1"); do kill -9 "$pid" 2>/dev/null; done
kill -9 -- "-$1" 2>/dev/null
case "$2" in */knarr-*) rm -rf -- "$2" ;; esac
"#;

/// A running server, its log file and its watchdog.
#[derive(Debug)]
pub struct ServerProcess {
    name: String,
    child: Child,
    log_path: PathBuf,
    watchdog: Option<Watchdog>,
    ended: Option<ExitStatus>,
}

impl ServerProcess {
    /// Starts `command` in its own process group, stdout and stderr appended to `log_path`.
    ///
    /// # Errors
    ///
    /// If the log cannot be opened or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log_path: &Path) -> Result<Self, TestkitError> {
        let log = File::options().create(true).append(true).open(log_path);
        let log = log.map_err(TestkitError::file("opening", log_path))?;
        let copy = log
            .try_clone()
            .map_err(TestkitError::file("opening", log_path))?;
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(log);
        let child = command.spawn().map_err(|source| TestkitError::Spawn {
            program: name.to_owned(),
            source,
        })?;
        // The watchdog also removes the directory of the log, which is the server's temporary one.
        let directory = log_path.parent().unwrap_or(log_path).display().to_string();
        let arguments = [child.id().to_string(), directory];
        let watchdog = Some(Watchdog::arm(
            KILL_TREE,
            &arguments.each_ref().map(String::as_str),
        )?);
        let log_path = log_path.to_owned();
        Ok(Self {
            name: name.to_owned(),
            child,
            log_path,
            watchdog,
            ended: None,
        })
    }

    /// Waits until `ready` gives true, at most [`START_LIMIT`].
    ///
    /// # Errors
    ///
    /// If the server ends first or is not ready in time; both carry its log.
    pub fn wait_ready(&mut self, mut ready: impl FnMut(&Self) -> bool) -> Result<(), TestkitError> {
        let outcome = poll(START_LIMIT, || {
            if ready(self) {
                return Some(None);
            }
            self.exit_status().map(Some)
        });
        match outcome {
            Some(None) => Ok(()),
            Some(Some(status)) => Err(TestkitError::Ended {
                server: self.name.clone(),
                status,
                log: self.log(),
            }),
            None => Err(TestkitError::NotReady {
                server: self.name.clone(),
                seconds: START_LIMIT.as_secs(),
                log: self.log(),
            }),
        }
    }

    /// How the server ended, or `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Process id of the server.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything the server has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log_path).map_or_else(
            |error| format!("(no log: {error})"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Ids of the processes that the server started, and those that they started.
    #[must_use]
    pub fn descendants(&self) -> Vec<u32> {
        descendants(self.child.id())
    }

    /// Sends a signal to the server alone.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            send(self.child.id(), signal);
        }
    }

    /// `kill -9` of the server and of everything it started; waits until the server is gone.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            let id = self.child.id();
            send(id, Signal::STOP);
            let descendants = descendants(id);
            send(id, Signal::KILL);
            for descendant in descendants {
                send(descendant, Signal::KILL);
            }
            if let Some(group) = pid(id) {
                kill_process_group(group, Signal::KILL).ok();
            }
            self.ended = self.child.wait().ok();
        }
        self.watchdog = None;
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            print_tail(&self.name, &self.log());
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the log belongs to the output of the failed test"
)]
fn print_tail(name: &str, log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines.len().saturating_sub(60);
    eprintln!("--- the last lines of the log of {name}:");
    for line in lines.into_iter().skip(tail) {
        eprintln!("    {line}");
    }
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

/// Sends a signal to one process; a process that is gone is no error.
pub fn send(id: u32, signal: Signal) {
    if let Some(pid) = pid(id) {
        kill_process(pid, signal).ok();
    }
}

/// Ids of all processes below `root`, found through the parent ids of `/proc`.
#[must_use]
pub fn descendants(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (id, parent) in parents().unwrap_or_default() {
        children.entry(parent).or_default().push(id);
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        for child in children.remove(&id).unwrap_or_default() {
            found.push(child);
            open.push(child);
        }
    }
    found
}

fn parents() -> io::Result<Vec<(u32, u32)>> {
    let mut pairs = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // "pid (name) state parent …": the name may hold anything, the last ')' ends it.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1))
            .and_then(|parent| parent.parse().ok());
        if let Some(parent) = parent {
            pairs.push((id, parent));
        }
    }
    Ok(pairs)
}
