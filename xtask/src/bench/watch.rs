//! Rows about watching: how soon a closed file is at the destination, a burst of 100,000 files, and the
//! memory of a node that knows 1,000,000 files and has nothing to do.
//!
//! Constraints: who watches is ready before the clock runs, which a probe file shows. A file counts when it
//! is at the destination under its final name in its full length. Looking for it costs a call a
//! millisecond at most, for the oldest outstanding file.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use knarr_testkit::wait::poll;

use crate::Outcome;
use crate::bench::Bench;
use crate::bench::measure::{Ended, Measured, Usage, process_memory};
use crate::bench::row::{self, Found, Goal, KNARR, Number, Row, Sample, Series, Side, megabytes};
use crate::bench::sftp::{Direction, Line, Server, Shape, Transfer};
use crate::bench::sftp_peers::{Variant, bare_rclone, rclone};
use crate::bench::space::{Compare, Tree, compare};
use crate::bench::{knarr, outstanding};

/// The rows.
pub(crate) const ROWS: [Row; 4] = [
    Row {
        id: "latency",
        title: "close-write to complete file at the SFTP destination, 200 files over 60 s",
        goals: &[
            Goal::AtMost(Number::MedianMilliseconds, 20.0),
            Goal::AtMost(Number::Percentile99Milliseconds, 100.0),
        ],
        measure: latency,
    },
    Row {
        id: "burst-sftp",
        title: "100,000 files created at once in a watched tree, to SFTP",
        goals: BURST,
        measure: |bench, found| burst(bench, found, Place::Sftp),
    },
    Row {
        id: "burst-local",
        title: "100,000 files created at once in a watched tree, to a local directory",
        goals: BURST,
        measure: |bench, found| burst(bench, found, Place::Local),
    },
    Row {
        id: "idle-1m",
        title: "resident memory of `knarr run`, idle, 1,000,000 known files",
        goals: &[Goal::AtMost(Number::IdleMegabytes, 40.0)],
        measure: idle,
    },
];

const BURST: &[Goal] = &[
    Goal::SpeedOver("lsyncd", 1.0),
    Goal::SpeedOver("rclone", 1.0),
    Goal::AtMost(Number::PeakMegabytes, 100.0),
];

/// How long a watcher may live, whatever it does.
const LIFE: Duration = Duration::from_secs(1_800);

/// How long a watcher may take to deliver its probe.
const READY: Duration = Duration::from_secs(30);

/// How long a burst may take.
const BURST_LIMIT: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Local,
    Sftp,
}

/// Somebody who watches one directory and keeps another up to date.
struct Watcher {
    process: Measured,
    source: PathBuf,
    destination: PathBuf,
    state: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Knarr,
    Lsyncd,
}

impl Watcher {
    /// Starts one on fresh directories and waits until it delivers.
    fn start(bench: &Bench, who: Who, server: Option<&Server>) -> Result<Self, String> {
        let fresh = |purpose| bench.memory.fresh(purpose);
        let (source, destination) = (fresh("watched")?, fresh("delivered")?);
        let state = fresh("state")?;
        let mut command = match who {
            Who::Knarr => run_command(bench, &state, &source, &destination, server)?,
            Who::Lsyncd => lsyncd_command(bench, &state, &source, &destination, server)?,
        };
        let process = Measured::start(&mut command, LIFE, &state.join("log"))?;
        let watcher = Self {
            process,
            source,
            destination,
            state,
        };
        watcher.wait_until_ready()?;
        Ok(watcher)
    }

    fn wait_until_ready(&self) -> Outcome {
        write_file(&self.source.join("probe"), 16)?;
        let probe = self.destination.join("probe");
        let delivered = poll(READY, || {
            if is_there(&probe, 16) {
                return Some(true);
            }
            (!self.process.is_running()).then_some(false)
        });
        match delivered {
            Some(true) => Ok(()),
            Some(false) => Err(format!("it ended: {}", self.log())),
            None => Err(format!("it delivers nothing: {}", self.log())),
        }
    }

    fn log(&self) -> String {
        row::tail(&self.state.join("log"))
    }

    /// Stops it, and removes what it was about.
    fn stop(self) -> Result<Usage, String> {
        let log = self.state.join("log");
        let (ended, usage) = self.process.terminate()?;
        let complaint = match ended {
            Ended::Stopped => Some("it had to be killed".to_owned()),
            Ended::Exit(_) => None,
        };
        let complaint = complaint.map(|text| format!("{text}: {}", row::tail(&log)));
        for directory in [&self.source, &self.destination, &self.state] {
            row::remove(directory)?;
        }
        complaint.map_or(Ok(usage), Err)
    }
}

fn run_command(
    bench: &Bench,
    state: &Path,
    source: &Path,
    destination: &Path,
    server: Option<&Server>,
) -> Result<Command, String> {
    let endpoints = server.map(Server::configuration).unwrap_or_default();
    let endpoint = server.map_or("", |_| "server:");
    let configuration = format!(
        "{endpoints}jobs:\n  bench:\n    watch: {}\n    to: \"{endpoint}{}/\"\n    \
         match: {{ settle: 1s }}\n",
        source.display(),
        destination.display()
    );
    knarr::command(&bench.knarr, state, &configuration, &["run"])
}

fn lsyncd_command(
    bench: &Bench,
    state: &Path,
    source: &Path,
    destination: &Path,
    server: Option<&Server>,
) -> Result<Command, String> {
    let program = bench
        .tools
        .lsyncd
        .as_ref()
        .ok_or("lsyncd is not installed")?;
    let (target, shell) = match server {
        None => (destination.display().to_string(), String::new()),
        Some(server) => (
            format!("{}@127.0.0.1:{}", server.login.user, destination.display()),
            format!("rsh = \"{}\", ", server.login.ssh_command("")),
        ),
    };
    // As documented for what matters at once: the smallest delay, and rsync's archive mode.
    let text = format!(
        "settings {{ nodaemon = true, insist = true, statusFile = \"{state}/status\" }}\n\
         sync {{ default.rsync, source = \"{source}\", target = \"{target}\", delay = {delay},\n\
         \x20 rsync = {{ {shell}archive = true }} }}\n",
        state = state.display(),
        source = source.display(),
        delay = LSYNCD_DELAY,
    );
    let file = state.join("lsyncd.lua");
    fs::write(&file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    let mut command = Command::new(program);
    command.arg(file);
    Ok(command)
}

/// The smallest delay that lsyncd takes, in seconds.
const LSYNCD_DELAY: u32 = 0;

fn latency(bench: &Bench, found: &mut Found) -> Outcome {
    let server = Server::start(Line::Loopback, bench.memory.path())?;
    found.remarks.push(format!(
        "one round; each of the {} files, 64 KiB each, is a sample",
        bench.scale.latency_files
    ));
    let lsyncd = format!("lsyncd, delay {LSYNCD_DELAY}");
    for (who, name, side) in [
        (Who::Knarr, KNARR, Side::Ours),
        (Who::Lsyncd, lsyncd.as_str(), Side::Peer),
    ] {
        eprintln!("    {name}");
        let mut series = Series::new(name, side);
        match latency_of(bench, who, &server) {
            Ok(sample) => series.samples.push(sample),
            Err(problem) => series.remarks.push(format!("failed: {problem}")),
        }
        found.series.push(series);
    }
    Ok(())
}

fn latency_of(bench: &Bench, who: Who, server: &Server) -> Result<Sample, String> {
    let watcher = Watcher::start(bench, who, Some(server))?;
    let (source, destination) = (&watcher.source, &watcher.destination);
    let mut milliseconds = outstanding::watched(destination, |seen| -> Outcome {
        let start = Instant::now();
        for number in 0..bench.scale.latency_files {
            let due = start + bench.scale.latency_period * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let name = format!("file-{number:04}");
            write_file(&source.join(&name), 64 * 1024)?;
            seen.closed(name, 64 * 1024);
        }
        Ok(())
    })?;
    milliseconds.sort_by(f64::total_cmp);
    let mut sample = row::sample(&watcher.stop()?);
    sample.remove(&Number::Seconds);
    for (number, share) in [
        (Number::MedianMilliseconds, 0.5),
        (Number::Percentile99Milliseconds, 0.99),
    ] {
        sample.extend(row::quantile(&milliseconds, share).map(|value| (number, value)));
    }
    eprintln!("        {sample:?}");
    Ok(sample)
}

fn burst(bench: &Bench, found: &mut Found, place: Place) -> Outcome {
    let server = match place {
        Place::Local => None,
        Place::Sftp => Some(Server::start(Line::Loopback, bench.memory.path())?),
    };
    let tree = Tree {
        directories: 100,
        files_each: (bench.scale.burst_files / 100).max(1),
        bytes: (1024, 1024),
    };
    found.remarks.push(format!(
        "{} files of 1 KiB in 100 new directories; the time runs from the first file made to the last \
         one complete at the destination; Knarr with `settle: 1s` (as it comes: 5s), which is how long it \
         leaves files alone of which nobody saw that they were closed: those that were in a new directory \
         before it could be watched. The peers copy such files as they are",
        tree.files()
    ));
    found.series = vec![
        Series::new(KNARR, Side::Ours),
        Series::new(format!("lsyncd, delay {LSYNCD_DELAY}"), Side::Peer),
        Series::new("rclone tuned, started afterwards", Side::Peer),
    ];
    for round in 0..bench.rounds {
        for series in &mut found.series {
            if !series.remarks.is_empty() {
                continue;
            }
            let outcome = match series.name.as_str() {
                KNARR => watched_burst(bench, Who::Knarr, server.as_ref(), tree),
                name if name.starts_with("lsyncd") => {
                    watched_burst(bench, Who::Lsyncd, server.as_ref(), tree)
                }
                _ => copied_burst(bench, server.as_ref(), tree),
            };
            eprintln!("    round {:<2} {:<34}{outcome:?}", round + 1, series.name);
            match outcome {
                Ok(sample) => series.samples.push(sample),
                Err(problem) => series.remarks.push(format!("failed: {problem}")),
            }
        }
    }
    Ok(())
}

fn watched_burst(
    bench: &Bench,
    who: Who,
    server: Option<&Server>,
    tree: Tree,
) -> Result<Sample, String> {
    let watcher = Watcher::start(bench, who, server)?;
    let start = Instant::now();
    make_tree(tree, &watcher.source)?;
    wait_for_all(&watcher, tree, start + BURST_LIMIT)?;
    let seconds = start.elapsed().as_secs_f64();
    compare(&watcher.source, &watcher.destination, Compare::Contents)?;
    let mut sample = row::sample(&watcher.stop()?);
    sample.insert(Number::Seconds, seconds);
    Ok(sample)
}

fn make_tree(tree: Tree, root: &Path) -> Outcome {
    tree.write(root)
        .map_err(|error| format!("cannot write below {}: {error}", root.display()))
}

/// Waits until every file of the tree is at the destination, whatever the order they come in.
fn wait_for_all(watcher: &Watcher, tree: Tree, deadline: Instant) -> Outcome {
    let (length, _) = tree.bytes;
    for (delivered, path) in (0_u64..).zip(tree.paths()) {
        let path = watcher.destination.join(path);
        while !is_there(&path, length) {
            if !watcher.process.is_running() {
                return Err(format!("it ended: {}", watcher.log()));
            }
            if Instant::now() > deadline {
                let missing = tree.files() - delivered;
                return Err(format!(
                    "at the time limit at most {missing} of {} files were missing: {}",
                    tree.files(),
                    watcher.log()
                ));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

fn copied_burst(bench: &Bench, server: Option<&Server>, tree: Tree) -> Result<Sample, String> {
    let program = bench
        .tools
        .rclone
        .as_ref()
        .ok_or("rclone is not installed")?;
    let (source, destination) = (bench.memory.fresh("made")?, bench.memory.fresh("copied")?);
    let start = Instant::now();
    make_tree(tree, &source)?;
    let mut command = match server {
        Some(server) => {
            let transfer = Transfer {
                direction: Direction::Put,
                line: Line::Loopback,
                shape: Shape::Small,
                source: source.clone(),
                destination: destination.clone(),
            };
            rclone(program, Variant::Tuned, &server.login, &transfer)
        }
        None => {
            let mut command = bare_rclone(program);
            command.args(["copy", "--transfers", "8", "--no-check-dest"]);
            command.arg(&source).arg(&destination);
            command
        }
    };
    let log = bench.memory.path().join("log");
    let (ended, usage) = Measured::start(&mut command, BURST_LIMIT, &log)?.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    match ended {
        Ended::Exit(status) if status.success() => {}
        Ended::Exit(status) => return Err(format!("{status}: {}", row::tail(&log))),
        Ended::Stopped => return Err("not done at the time limit".to_owned()),
    }
    compare(&source, &destination, Compare::Lengths)?;
    row::remove(&source)?;
    row::remove(&destination)?;
    let mut sample = row::sample(&usage);
    sample.insert(Number::Seconds, seconds);
    Ok(sample)
}

fn idle(bench: &Bench, found: &mut Found) -> Outcome {
    let tree = Tree {
        directories: 1000,
        files_each: (bench.scale.idle_files / 1000).max(1),
        bytes: (0, 0),
    };
    found.remarks.push(
        "empty files, delivered to a local directory by the node itself; then the node is started again \
         and looked at when it has scanned everything and rests"
            .to_owned(),
    );
    let mut again = Series::new(KNARR, Side::Ours);
    let mut delivering = Series::new("the process that delivered them", Side::Beside);
    for _ in 0..bench.rounds {
        if let Err(problem) = idle_samples(bench, tree, &mut again, &mut delivering) {
            again.remarks.push(format!("failed: {problem}"));
            break;
        }
    }
    found.series = vec![again, delivering];
    Ok(())
}

fn idle_samples(bench: &Bench, tree: Tree, again: &mut Series, delivering: &mut Series) -> Outcome {
    let mut watcher = Watcher::start(bench, Who::Knarr, None)?;
    let start = Instant::now();
    make_tree(tree, &watcher.source)?;
    wait_for_all(&watcher, tree, start + LIFE)?;
    eprintln!("    delivered after {:.1} s", start.elapsed().as_secs_f64());
    delivering.samples.push(resting(&watcher.process)?);
    let (source, destination) = (watcher.source.clone(), watcher.destination.clone());
    let mut command = run_command(bench, &watcher.state, &source, &destination, None)?;
    // A second node on the same state: the first has to be gone before.
    let log = watcher.state.join("log");
    watcher = {
        let Watcher { process, state, .. } = watcher;
        process.terminate()?;
        Watcher {
            process: Measured::start(&mut command, LIFE, &log)?,
            source,
            destination,
            state,
        }
    };
    again.samples.push(resting(&watcher.process)?);
    compare(&watcher.source, &watcher.destination, Compare::Lengths)?;
    watcher.stop().map(|_| ())
}

/// Waits until a process has used next to no processor time for three seconds, then looks at its memory.
fn resting(process: &Measured) -> Result<Sample, String> {
    let rested = poll(LIFE, || {
        let before = process.cpu_seconds();
        thread::sleep(Duration::from_secs(3));
        let now = process.cpu_seconds();
        (now - before < 0.05).then_some(now)
    });
    let cpu_seconds = rested.ok_or("it does not come to rest")?;
    if !process.is_running() {
        return Err("it ended".to_owned());
    }
    let memory = |field| megabytes(process_memory(process.id(), field));
    let sample = Sample::from([
        (Number::IdleMegabytes, memory("VmRSS:")),
        (Number::IdleAnonymousMegabytes, memory("RssAnon:")),
        (Number::PeakMegabytes, memory("VmHWM:")),
        (Number::CpuSeconds, cpu_seconds),
    ]);
    eprintln!(
        "    rests after {:.1} s: {sample:?}",
        process.started().elapsed().as_secs_f64()
    );
    Ok(sample)
}

/// Writes a file and closes it.
fn write_file(path: &Path, bytes: usize) -> Outcome {
    File::create(path)
        .and_then(|mut file| file.write_all(&vec![b'k'; bytes]))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn is_there(path: &Path, length: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() == length)
}
