//! Rows of the table: what is measured, against whom, and what is to be reached.
//!
//! Constraints: within a row everybody does the same on the same data, in alternating rounds that begin
//! with another one each time, with a fresh destination and a fresh state. What was delivered is held
//! against the source after every attempt, outside the measured time; an attempt that lost something
//! is a failure, not a number. What a row finds is plain data that outlives the run.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::bench::Bench;
use crate::bench::measure::{self, Ended, Usage};
use crate::bench::space::Space;

/// The name under which knarr's own numbers stand.
pub(crate) const KNARR: &str = "knarr";

/// How the remark on somebody begins who did not finish in time.
pub(crate) const STOPPED: &str = "stopped";

/// A row of the table.
pub(crate) struct Row {
    /// What it is called on the command line and in the notes.
    pub(crate) id: &'static str,
    /// What it is.
    pub(crate) title: &'static str,
    /// What is to be reached.
    pub(crate) goals: &'static [Goal],
    /// Measures it.
    pub(crate) measure: fn(&Bench, &mut Found) -> Outcome,
}

/// What is to be reached. Peers are named by the first word of their names.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// So many times as fast as the fastest peer.
    Speed(f64),
    /// So many times as fast as this peer, as it comes or tuned, whichever is faster.
    SpeedOver(&'static str, f64),
    /// At most so many times the time of this one.
    TimeOf(&'static str, f64),
    /// At most this share of the processor time of this peer, as it comes or tuned, whichever is less.
    CpuShare(&'static str, f64),
    /// At most so much of this number, in its unit.
    AtMost(Number, f64),
}

/// What is measured of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Number {
    /// Seconds from start to end.
    Seconds,
    /// Seconds of processor time, user and system.
    CpuSeconds,
    /// Seconds of processor time of the server, user and system.
    ServerCpuSeconds,
    /// Resident memory at its peak, in MB.
    PeakMegabytes,
    /// Half were faster, in milliseconds.
    MedianMilliseconds,
    /// 99 of 100 were faster, in milliseconds.
    Percentile99Milliseconds,
    /// Resident memory when nothing happens, in MB.
    IdleMegabytes,
    /// The part of it that no file backs, in MB.
    IdleAnonymousMegabytes,
}

impl Number {
    /// Heading of a column.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::CpuSeconds => "CPU seconds",
            Self::ServerCpuSeconds => "server CPU seconds",
            Self::PeakMegabytes => "peak MB",
            Self::MedianMilliseconds => "p50 ms",
            Self::Percentile99Milliseconds => "p99 ms",
            Self::IdleMegabytes => "idle MB",
            Self::IdleAnonymousMegabytes => "of it anonymous MB",
        }
    }
}

/// One attempt.
pub(crate) type Sample = BTreeMap<Number, f64>;

/// How somebody's numbers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Side {
    /// Knarr.
    Ours,
    /// A peer.
    Peer,
    /// Shown beside them, to tell what the machine can do.
    Beside,
}

/// All attempts of somebody.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Series {
    /// Who.
    pub(crate) name: String,
    /// How it counts.
    pub(crate) side: Side,
    /// The attempts.
    pub(crate) samples: Vec<Sample>,
    /// What went wrong, or what a reader has to know.
    pub(crate) remarks: Vec<String>,
}

impl Series {
    /// Somebody without an attempt.
    pub(crate) fn new(name: impl Into<String>, side: Side) -> Self {
        Self {
            name: name.into(),
            side,
            samples: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// The values of a number, least first.
    pub(crate) fn sorted(&self, number: Number) -> Vec<f64> {
        let values = self.samples.iter().filter_map(|sample| sample.get(&number));
        let mut values: Vec<f64> = values.copied().collect();
        values.sort_by(|one, other| one.partial_cmp(other).unwrap_or(Ordering::Equal));
        values
    }

    /// The median of a number.
    pub(crate) fn median(&self, number: Number) -> Option<f64> {
        quantile(&self.sorted(number), 0.5)
    }
}

/// A quantile of values that are in order; between two values, their mean weighted by distance.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = share * last as f64;
    let (below, above) = (position.floor(), position.ceil());
    let (low, high) = (sorted.get(below as usize)?, sorted.get(above as usize)?);
    Some(low + (high - low) * (position - below))
}

/// What a row found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Of everybody, in the order of the table.
    pub(crate) series: Vec<Series>,
    /// What a reader has to know about the row.
    pub(crate) remarks: Vec<String>,
    /// When it was measured.
    pub(crate) date: String,
}

impl Found {
    /// Knarr's numbers.
    pub(crate) fn ours(&self) -> Option<&Series> {
        self.series.iter().find(|series| series.side == Side::Ours)
    }

    /// The least median of a number among the peers whose name starts with `name`.
    pub(crate) fn best_peer(&self, name: &str, number: Number) -> Option<(&Series, f64)> {
        let peers = self
            .series
            .iter()
            .filter(|series| series.side == Side::Peer);
        let medians = peers
            .filter(|series| series.name.starts_with(name))
            .filter_map(|series| Some((series, series.median(number)?)));
        medians.min_by(|one, other| one.1.partial_cmp(&other.1).unwrap_or(Ordering::Equal))
    }
}

/// The command of an attempt.
pub(crate) type MakeCommand<'a> = Box<dyn Fn(&Attempt) -> Result<Command, String> + 'a>;

/// Processor time of a server so far, in seconds.
pub(crate) type Meter<'a> = Box<dyn Fn() -> f64 + 'a>;

/// Somebody who takes part.
pub(crate) struct Contestant<'a> {
    /// Who: the program, then the variant.
    pub(crate) name: String,
    /// How it counts.
    pub(crate) side: Side,
    /// At most so many rounds: for those that take minutes.
    pub(crate) rounds: usize,
    /// What it runs.
    pub(crate) command: MakeCommand<'a>,
    /// The server it works with, if that is measured, too.
    pub(crate) server: Option<Meter<'a>>,
}

impl<'a> Contestant<'a> {
    /// Somebody who takes part in all rounds.
    pub(crate) fn new(
        name: impl Into<String>,
        side: Side,
        command: impl Fn(&Attempt) -> Result<Command, String> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            side,
            rounds: usize::MAX,
            command: Box::new(command),
            server: None,
        }
    }

    /// Measures the server, too.
    pub(crate) fn with_server(mut self, meter: impl Fn() -> f64 + 'a) -> Self {
        self.server = Some(Box::new(meter));
        self
    }

    /// Takes part in one round only.
    pub(crate) fn once(mut self) -> Self {
        self.rounds = 1;
        self
    }
}

/// One attempt of one contestant.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// A fresh directory for what is delivered.
    pub(crate) destination: PathBuf,
    /// A fresh directory for what the program keeps.
    pub(crate) state: PathBuf,
    /// Which round it is, from 0.
    pub(crate) round: usize,
}

/// Untimed work around an attempt.
pub(crate) type Around<'a> = Box<dyn Fn(&Attempt) -> Outcome + 'a>;

/// What all contestants of a row have in common.
pub(crate) struct Course<'a> {
    /// Where fresh directories are made.
    pub(crate) space: &'a Space,
    /// What takes longer is stopped.
    pub(crate) limit: Duration,
    /// What comes before an attempt, untimed.
    pub(crate) before: Around<'a>,
    /// Whether everything was delivered, untimed.
    pub(crate) check: Around<'a>,
    /// What is cleaned up besides the two fresh directories, untimed.
    pub(crate) after: Around<'a>,
    /// Whether what an attempt made is removed only when all have run. ext4 passes over inodes that were
    /// freed in the last minutes, one by one: removing 200,000 files makes whoever comes next pay for it.
    pub(crate) removes_at_end: bool,
}

impl<'a> Course<'a> {
    /// A course on which `check` decides whether everything was delivered.
    pub(crate) fn new(
        space: &'a Space,
        limit: Duration,
        check: impl Fn(&Attempt) -> Outcome + 'a,
    ) -> Self {
        Self {
            space,
            limit,
            before: Box::new(|_| Ok(())),
            check: Box::new(check),
            after: Box::new(|_| Ok(())),
            removes_at_end: false,
        }
    }

    /// Lets everybody run in alternating rounds.
    ///
    /// # Errors
    ///
    /// If a directory cannot be made or removed. What goes wrong with a contestant is a remark.
    pub(crate) fn run(
        &self,
        rounds: usize,
        contestants: &[Contestant<'_>],
    ) -> Result<Vec<Series>, String> {
        let mut all: Vec<Series> = contestants
            .iter()
            .map(|contestant| Series::new(&contestant.name, contestant.side))
            .collect();
        let mut left = Vec::new();
        for round in 0..rounds {
            for step in 0..contestants.len() {
                let index = (step + round) % contestants.len();
                let (Some(contestant), Some(series)) = (contestants.get(index), all.get_mut(index))
                else {
                    continue;
                };
                if round >= contestant.rounds || !series.remarks.is_empty() {
                    continue;
                }
                let attempt = self.attempt(round, contestant, series)?;
                left.extend([attempt.destination, attempt.state]);
                if !self.removes_at_end {
                    remove_all(&mut left)?;
                }
            }
        }
        remove_all(&mut left)?;
        Ok(all)
    }

    fn attempt(
        &self,
        round: usize,
        contestant: &Contestant<'_>,
        series: &mut Series,
    ) -> Result<Attempt, String> {
        let attempt = Attempt {
            destination: self.space.fresh("destination")?,
            state: self.space.fresh("state")?,
            round,
        };
        eprint!("    round {:<2} {:<28}", round + 1, contestant.name);
        match self.measure(contestant, &attempt) {
            Ok((sample, remark)) => {
                for (number, value) in &sample {
                    eprint!("{value:>9.3} {}", number.heading());
                }
                eprintln!("  {}", remark.as_deref().unwrap_or_default());
                series.samples.push(sample);
                series.remarks.extend(remark);
            }
            Err(problem) => {
                eprintln!("failed: {problem}");
                series.remarks.push(format!("failed: {problem}"));
            }
        }
        (self.after)(&attempt)?;
        Ok(attempt)
    }

    fn measure(
        &self,
        contestant: &Contestant<'_>,
        attempt: &Attempt,
    ) -> Result<(Sample, Option<String>), String> {
        let mut command = (contestant.command)(attempt)?;
        (self.before)(attempt)?;
        let log = self.space.path().join("log");
        let served = || contestant.server.as_ref().map(|meter| meter());
        let before = served();
        let (ended, usage) = measure::run(&mut command, self.limit, &log)?;
        let mut sample = sample(&usage);
        if let (Some(before), Some(after)) = (before, served()) {
            sample.insert(Number::ServerCpuSeconds, after - before);
        }
        match ended {
            Ended::Stopped => {
                let seconds = self.limit.as_secs();
                Ok((
                    sample,
                    Some(format!("{STOPPED} after {seconds} s, not done")),
                ))
            }
            Ended::Exit(status) if !status.success() => Err(format!("{status}: {}", tail(&log))),
            Ended::Exit(_) => {
                (self.check)(attempt)?;
                Ok((sample, None))
            }
        }
    }
}

/// Removes a directory with all that is in it.
///
/// # Errors
///
/// If that fails.
pub(crate) fn remove(directory: &Path) -> Outcome {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn remove_all(directories: &mut Vec<PathBuf>) -> Outcome {
    directories
        .drain(..)
        .try_for_each(|directory| remove(&directory))
}

/// The last lines of a log, on one line.
pub(crate) fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().rev().take(6).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// Bytes in millions.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The numbers of an attempt.
pub(crate) fn sample(usage: &Usage) -> Sample {
    Sample::from([
        (Number::Seconds, usage.wall.as_secs_f64()),
        (Number::CpuSeconds, usage.cpu_seconds),
        (Number::PeakMegabytes, megabytes(usage.peak_bytes)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_values_lies_between_the_two_in_the_middle() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 9.0], 0.5), Some(3.0));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn the_best_peer_is_the_one_with_the_least_median() {
        let series = |name: &str, side, seconds: &[f64]| Series {
            samples: seconds
                .iter()
                .map(|value| Sample::from([(Number::Seconds, *value)]))
                .collect(),
            ..Series::new(name, side)
        };
        let found = Found {
            series: vec![
                series(KNARR, Side::Ours, &[1.0]),
                series("rclone as it comes", Side::Peer, &[9.0, 8.0, 7.0]),
                series("rclone tuned", Side::Peer, &[6.0, 5.0, 30.0]),
                series("cp", Side::Beside, &[0.1]),
            ],
            ..Found::default()
        };
        let best = found.best_peer("", Number::Seconds);
        assert_eq!(
            best.map(|(series, _)| series.name.as_str()),
            Some("rclone tuned")
        );
        assert_eq!(best.map(|(_, seconds)| seconds), Some(6.0));
    }
}
