//! `doctor`: what this machine can do, what is missing, and how to mend it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use knarr_core::time::{Clock as _, Timestamp};
use knarr_core::units::ByteSize;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Serialize;

use crate::cli::context::Context;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::{Config, EndpointKind, Job};
use crate::output::{Format, Output, Style};

/// How many flushes are timed.
const FLUSHES: usize = 15;
/// How many directories are counted at most.
const MOST_DIRECTORIES: u64 = 2_000_000;
/// A clock before this (2026-01-01) is wrong.
const EARLIEST: Timestamp = Timestamp::from_seconds(1_767_225_600);

/// Tell what this machine can do, what is missing, and how to mend it
///
/// Looks at limits, file watching, the disk under the state directory, the clock, the kernel, SSH and
/// the configuration, if there is one. Exit code 1 if something keeps Knarr from working.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr doctor")]
pub(crate) struct DoctorArguments {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Good,
    /// It works, but not as well as it could.
    Warning,
    /// It keeps Knarr from working.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            verdict: Verdict::Good,
            found: found.into(),
            advice: None,
        }
    }

    fn warning(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            what,
            verdict: Verdict::Warning,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn bad(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Bad,
            ..Self::warning(what, found, advice)
        }
    }
}

pub(crate) fn run(
    _arguments: &DoctorArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let mut findings = Vec::new();
    let config = match context.config() {
        Ok(config) => {
            findings.push(configuration(&config));
            config
        }
        Err(error) => {
            let text = error.render(crate::config::Colour::No);
            let first_line = text.lines().next().unwrap_or_default();
            let found = first_line.strip_prefix("error: ").unwrap_or(first_line);
            findings.push(Finding::bad(
                "configuration",
                found,
                "`knarr check` shows everything that is wrong with it",
            ));
            Config::default()
        }
    };
    findings.push(kernel());
    findings.push(open_files());
    findings.extend(watching(&config));
    let state = context.state_of(&config)?;
    findings.extend(disk(&state));
    findings.push(clock(context));
    findings.extend(ssh(context, &config));
    print(&findings, output)?;
    let is_bad = findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Bad);
    Ok(if is_bad {
        Outcome::SomeFailed
    } else {
        Outcome::Done
    })
}

fn print(findings: &[Finding], output: &mut Output) -> Result<(), CommandError> {
    for finding in findings {
        if output.format == Format::Json {
            output.json(finding)?;
            continue;
        }
        let (word, style) = match finding.verdict {
            Verdict::Good => ("good   ", Style::Good),
            Verdict::Warning => ("warning", Style::Warning),
            Verdict::Bad => ("bad    ", Style::Bad),
        };
        let word = output.paint(style, word);
        output.line(format!("{word}  {:<16}  {}", finding.what, finding.found))?;
        if let Some(advice) = &finding.advice {
            output.line(format!("{:<27}→ {advice}", ""))?;
        }
    }
    Ok(())
}

fn configuration(config: &Config) -> Finding {
    match &config.file {
        Some(file) => Finding::good(
            "configuration",
            format!(
                "{}: {} endpoints, {} jobs",
                file.display(),
                config.endpoints.len(),
                config.jobs.len()
            ),
        ),
        None => Finding::good("configuration", "none; one-shot commands need none"),
    }
}

/// What the kernel offers of what makes names safe and flushing fast.
fn kernel() -> Finding {
    let system = rustix::system::uname();
    let name = format!(
        "{} {}",
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy()
    );
    let mut missing = Vec::new();
    let opened = rustix::fs::openat2(
        rustix::fs::CWD,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH,
    );
    match opened {
        Ok(directory) => {
            if rustix::fs::syncfs(&directory).is_err() {
                missing.push("syncfs");
            }
        }
        Err(_refused) => missing.push("openat2"),
    }
    if missing.is_empty() {
        Finding::good("kernel", format!("{name}, with openat2 and syncfs"))
    } else {
        Finding::warning(
            "kernel",
            format!("{name}, without {}", missing.join(" and ")),
            "Linux 5.6 has both; a container's seccomp profile may refuse them. Knarr works without, slower",
        )
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let number = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    let found = format!(
        "{} at once, could be raised to {}",
        number(limit.current),
        number(limit.maximum)
    );
    match limit.current {
        Some(current) if current < 1_024 => Finding::warning(
            "open files",
            found,
            "raise it: `ulimit -n 4096`, or LimitNOFILE=4096 in the systemd unit",
        ),
        _ => Finding::good("open files", found),
    }
}

/// The limits of inotify against the watched trees.
fn watching(config: &Config) -> Vec<Finding> {
    let limit = |name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let (Some(watches), Some(instances), Some(queue)) = (
        limit("max_user_watches"),
        limit("max_user_instances"),
        limit("max_queued_events"),
    ) else {
        return vec![Finding::warning(
            "file watching",
            "inotify is not there",
            "watched directories are polled instead; `rescan` says how often",
        )];
    };
    let mut findings = Vec::new();
    let needed: u64 = config.jobs.values().map(count_directories).sum();
    let found = format!("{watches} watches, {needed} directories to watch, {queue} events queued");
    if needed.saturating_mul(2) > watches {
        let wanted = needed.saturating_mul(4).max(524_288);
        findings.push(Finding::warning(
            "file watching",
            found,
            format!(
                "what cannot be watched is polled: `sysctl fs.inotify.max_user_watches={wanted}`"
            ),
        ));
    } else {
        findings.push(Finding::good("file watching", found));
    }
    if instances < 16 {
        findings.push(Finding::warning(
            "watchers",
            format!("{instances} inotify instances for each user"),
            "`sysctl fs.inotify.max_user_instances=128`",
        ));
    }
    for job in config.jobs.values() {
        for directory in &job.watch {
            if let Err(error) = std::fs::read_dir(directory) {
                findings.push(Finding::bad(
                    "watched",
                    format!("{}: {error}", directory.display()),
                    format!("create it or correct `watch` of the job {}", job.name),
                ));
            }
        }
    }
    findings
}

fn count_directories(job: &Job) -> u64 {
    let mut count = 0;
    let mut to_visit: Vec<PathBuf> = job.watch.clone();
    while let Some(directory) = to_visit.pop() {
        count += 1;
        if count >= MOST_DIRECTORIES {
            break;
        }
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        to_visit.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    count
}

/// The state directory: can it be written, how fast does it flush, how much room is left?
fn disk(state: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let existing = state
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"));
    let shown = if existing == state {
        state.display().to_string()
    } else {
        format!("{} (does not exist yet)", state.display())
    };
    match time_flushes(existing) {
        Ok(median) => {
            let found = format!(
                "{shown}: a flush takes {:.1} ms",
                median.as_secs_f64() * 1_000.0
            );
            findings.push(if median > Duration::from_millis(50) {
                Finding::warning(
                    "state directory",
                    found,
                    "every durable record waits for a flush: put the state on a faster disk (--state, $KNARR_STATE)",
                )
            } else {
                Finding::good("state directory", found)
            });
        }
        Err(error) => findings.push(Finding::bad(
            "state directory",
            format!("{shown}: {error}"),
            "make it writable, or name another with --state or $KNARR_STATE",
        )),
    }
    if let Ok(root) = knarr_fs::Root::open(existing) {
        if root.is_network().unwrap_or(false) {
            findings.push(Finding::bad(
                "state directory",
                "it lies on a network file system",
                "SQLite's locks do not work there: put the state on a local disk",
            ));
        }
        if let Ok(space) = root.space() {
            findings.push(free_space(&space));
        }
    }
    findings
}

fn free_space(space: &knarr_fs::root::Space) -> Finding {
    let found = format!("{} free for the state", ByteSize(space.free_bytes));
    if space.free_bytes < 256 << 20 {
        Finding::warning(
            "disk",
            found,
            "the state needs some 300 bytes for each known file",
        )
    } else {
        Finding::good("disk", found)
    }
}

/// The median time of a small write and flush in `directory`.
fn time_flushes(directory: &Path) -> io::Result<Duration> {
    let path = directory.join(format!(".knarr-doctor-{}", std::process::id()));
    let result = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| time_flushes_of(&mut file));
    // What could not be made need not be removed.
    let _removed: io::Result<()> = std::fs::remove_file(&path);
    result
}

fn time_flushes_of(file: &mut File) -> io::Result<Duration> {
    let mut times = Vec::with_capacity(FLUSHES);
    for _ in 0..FLUSHES {
        let start = Instant::now();
        file.write_all(&[0; 4_096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times.get(FLUSHES / 2).copied().unwrap_or_default())
}

fn clock(context: &Context) -> Finding {
    let now = context.clock.now();
    let zone = jiff::tz::TimeZone::system();
    let name = zone.iana_name().unwrap_or("UTC").to_owned();
    let found = format!("{now}, time zone {name}");
    if now < EARLIEST {
        Finding::bad(
            "clock",
            found,
            "it is wrong: ages, dates in destinations and signed requests depend on it",
        )
    } else {
        Finding::good("clock", found)
    }
}

/// The agent and the known hosts; only a matter if an endpoint needs them.
fn ssh(context: &Context, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut needs_agent, mut needs_hosts) = (false, false);
    for endpoint in config.endpoints.values() {
        if let EndpointKind::Sftp(settings) = &endpoint.kind {
            needs_agent |= settings.agent == Some(true);
            needs_hosts |= settings.host_keys.is_empty() && settings.known_hosts.is_none();
        }
    }
    let agent = match &context.environment.ssh_agent {
        None => Err("none: $SSH_AUTH_SOCK is not set".to_owned()),
        Some(socket) => UnixStream::connect(socket)
            .map(|_stream| format!("answers at {}", socket.display()))
            .map_err(|error| format!("{}: {error}", socket.display())),
    };
    findings.push(match agent {
        Ok(found) => Finding::good("SSH agent", found),
        Err(found) if needs_agent => Finding::bad(
            "SSH agent",
            found,
            "an endpoint says `agent: true`: start one with `eval $(ssh-agent)`, or name a `key`",
        ),
        Err(found) => Finding::good(
            "SSH agent",
            format!("{found}; keys and passwords work without"),
        ),
    });
    let mut files = Vec::new();
    if let Some(home) = &context.environment.home {
        files.push(home.join(".ssh/known_hosts"));
    }
    files.push(PathBuf::from("/etc/ssh/ssh_known_hosts"));
    let there: Vec<String> = files
        .iter()
        .filter(|file| file.is_file())
        .map(|file| file.display().to_string())
        .collect();
    findings.push(if !there.is_empty() {
        Finding::good("known hosts", there.join(", "))
    } else if needs_hosts {
        Finding::bad(
            "known hosts",
            "none",
            "an SFTP endpoint has no `host_key`: pin one, or connect once with `ssh HOST` and compare the fingerprint",
        )
    } else {
        Finding::good("known hosts", "none; only needed for SFTP servers without a pinned `host_key`")
    });
    findings
}
