//! Runs a program and says what it cost: time, processor time, memory.
//!
//! Constraints:
//!
//! * The whole process tree counts, since half of the peers work through `ssh` or `rsync` children.
//!   Processor time comes from the kernel's own account of the ended process (`/proc/PID/stat` of the
//!   zombie, before it is reaped), which includes all children that were waited for. Children that were
//!   left behind (lftp does that with its `ssh`) come to this process, which adopts orphans, and are
//!   counted the same way. The resolution is that of [`TICKS_PER_SECOND`].
//! * Peak memory is the largest sum of the high-water marks of the processes that live at the
//!   same time, looked at every [`SAMPLE_PERIOD`]: short peaks inside a process are seen, and only what
//!   a process grows in its very last moments may be missed.
//! * Everything is bounded: what exceeds its limit is killed, with all it started.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use knarr_testkit::process::{descendants, send};
use knarr_testkit::wait::poll;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use crate::Outcome;

/// The unit of processor time in `/proc`, the same on every architecture that matters here.
const TICKS_PER_SECOND: f64 = 100.0;

const SAMPLE_PERIOD: Duration = Duration::from_millis(20);

/// How long what a program left behind may live on.
const ORPHANS: Duration = Duration::from_secs(2);

/// How long a program may take to stop when asked.
const GRACE: Duration = Duration::from_secs(20);

/// What a program cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// From the start to the end.
    pub(crate) wall: Duration,
    /// User and system time of the process tree, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Resident memory of the process tree at its peak, in bytes.
    pub(crate) peak_bytes: u64,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself.
    Exit(ExitStatus),
    /// It was killed at its time limit.
    Stopped,
}

/// A program that runs and is measured; killed on drop, with all it started.
#[derive(Debug)]
pub(crate) struct Measured {
    child: Child,
    started: Instant,
    peak: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<u32>>>,
    sampler: Option<(mpsc::SyncSender<()>, JoinHandle<()>)>,
}

/// Makes this process the parent of whatever a program leaves behind.
///
/// # Errors
///
/// If the system refuses.
pub(crate) fn adopt_orphans() -> Outcome {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("cannot adopt orphans: {error}"))
}

/// Runs a program to its end, with its output in `log`.
///
/// # Errors
///
/// If it cannot be started.
pub(crate) fn run(
    command: &mut Command,
    limit: Duration,
    log: &Path,
) -> Result<(Ended, Usage), String> {
    Measured::start(command, limit, log)?.finish()
}

impl Measured {
    /// Starts a program, with its output in `log`. After `limit` it is killed.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub(crate) fn start(
        command: &mut Command,
        limit: Duration,
        log: &Path,
    ) -> Result<Self, String> {
        let output = File::create(log).and_then(|file| Ok((file.try_clone()?, file)));
        let (out, err) =
            output.map_err(|error| format!("cannot write {}: {error}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let started = Instant::now();
        let child = command
            .spawn()
            .map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let (peak, stopped) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let seen = Arc::<Mutex<BTreeSet<u32>>>::default();
        let (sender, receiver) = mpsc::sync_channel(1);
        let sampler = {
            let (id, deadline) = (child.id(), started + limit);
            let (peak, stopped, seen) =
                (Arc::clone(&peak), Arc::clone(&stopped), Arc::clone(&seen));
            thread::spawn(move || {
                loop {
                    peak.fetch_max(look(id, &seen), Ordering::Relaxed);
                    if Instant::now() >= deadline && !stopped.swap(true, Ordering::Relaxed) {
                        kill_tree(id);
                    }
                    match receiver.recv_timeout(SAMPLE_PERIOD) {
                        Err(mpsc::RecvTimeoutError::Timeout) => {}
                        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    }
                }
            })
        };
        Ok(Self {
            child,
            started,
            peak,
            stopped,
            seen,
            sampler: Some((sender, sampler)),
        })
    }

    /// When it was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        pid(self.child.id())
            .is_some_and(|pid| matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    /// Processor time so far, in seconds, with that of children that have ended.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.child.id())
    }

    /// Asks it to stop, and waits for that; after [`GRACE`] it is killed.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub(crate) fn terminate(self) -> Result<(Ended, Usage), String> {
        send(self.child.id(), Signal::TERM);
        if poll(GRACE, || (!self.is_running()).then_some(())).is_none() {
            self.stopped.store(true, Ordering::Relaxed);
            kill_tree(self.child.id());
        }
        self.finish()
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub(crate) fn finish(mut self) -> Result<(Ended, Usage), String> {
        let id = self.child.id();
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        if let Some(pid) = pid(id) {
            rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), options))
                .map_err(|error| format!("cannot wait for a program: {error}"))?;
        }
        let wall = self.started.elapsed();
        let cpu_seconds = cpu_seconds(id);
        let status = self
            .child
            .wait()
            .map_err(|error| format!("cannot wait for a program: {error}"))?;
        self.join_sampler();
        let cpu_seconds = cpu_seconds + orphans_cpu_seconds(&lock(&self.seen));
        let ended = if self.stopped.load(Ordering::Relaxed) {
            Ended::Stopped
        } else {
            Ended::Exit(status)
        };
        let usage = Usage {
            wall,
            cpu_seconds,
            peak_bytes: self.peak.load(Ordering::Relaxed),
        };
        Ok((ended, usage))
    }

    fn join_sampler(&mut self) {
        if let Some((sender, sampler)) = self.sampler.take() {
            drop(sender);
            sampler.join().ok();
        }
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if self.sampler.is_some() {
            kill_tree(self.child.id());
            self.child.wait().ok();
            self.join_sampler();
        }
    }
}

/// The sum of the high-water marks of a process and of all below it, in bytes; notes who they are.
fn look(root: u32, seen: &Mutex<BTreeSet<u32>>) -> u64 {
    let mut sum = 0;
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        sum += process_memory(id, "VmHWM:");
        if id != root {
            lock(seen).insert(id);
        }
        // Not by parent ids: this is looked at often, and must not walk over all processes.
        let tasks = fs::read_dir(format!("/proc/{id}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            open.extend(
                children
                    .split_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        }
    }
    sum
}

/// Waits for those that a program left behind, and gives their processor time, in seconds.
fn orphans_cpu_seconds(seen: &BTreeSet<u32>) -> f64 {
    let mut sum = 0.0;
    for id in seen {
        let Some(pid) = pid(*id) else { continue };
        let zombie = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        // Whoever is not an orphan of ours cannot be waited for, and its parent's account has it.
        let ended = poll(ORPHANS, || match waitid(WaitId::Pid(pid), zombie) {
            Ok(None) => None,
            Ok(Some(_)) => Some(true),
            Err(_) => Some(false),
        });
        match ended {
            Some(false) => continue,
            Some(true) => {}
            None => kill_tree(*id),
        }
        sum += cpu_seconds(*id);
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED).ok();
    }
    sum
}

fn lock(seen: &Mutex<BTreeSet<u32>>) -> MutexGuard<'_, BTreeSet<u32>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One field of `/proc/PID/status` of one process, in bytes; 0 if it is gone.
pub(crate) fn process_memory(id: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// User and system time of a process, and of those of its children that were waited for, in seconds:
/// `utime`, `stime`, `cutime` and `cstime`, fields 14 to 17, the name (which may hold anything) being
/// the second.
pub(crate) fn cpu_seconds(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return 0.0;
    };
    let fields = rest.split_whitespace().skip(11).take(4);
    let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

fn kill_tree(id: u32) {
    send(id, Signal::STOP);
    for descendant in descendants(id) {
        send(descendant, Signal::KILL);
    }
    send(id, Signal::KILL);
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}
