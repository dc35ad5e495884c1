//! The text of metrics, in the exposition format of Prometheus, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use knarr_core::Timestamp;
use knarr_engine::announce::{Announcer, BUCKETS_SECONDS, JobMeters};
use knarr_store::endpoints::Reachable;
use knarr_store::{Reader, StoreError};

/// A metric being written.
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        if labels.is_empty() {
            self.line(format_args!("{name} {value}"));
        } else {
            self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes every text");
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// All metrics.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn exposition(
    reader: &Reader<'_>,
    announcer: &Announcer,
    now: Timestamp,
) -> Result<String, StoreError> {
    let mut text = Text(String::with_capacity(8 * 1024));
    let meters = announcer.meters().read();
    jobs(&mut text, &meters);
    queue(&mut text, reader, now)?;
    endpoints(&mut text, reader, announcer)?;
    outbox(&mut text, reader, now)?;
    alerts(&mut text, reader)?;
    process(&mut text);
    Ok(text.0)
}

/// What a counter shows of a job.
type Count = fn(&JobMeters) -> u64;

fn jobs(text: &mut Text, meters: &BTreeMap<String, JobMeters>) {
    let counters: [(&str, &str, Count); 3] = [
        (
            "knarr_files_total",
            "Files that were delivered and recorded.",
            |meters| meters.files,
        ),
        (
            "knarr_bytes_total",
            "Bytes at the source of files that were delivered.",
            |meters| meters.bytes,
        ),
        (
            "knarr_failures_total",
            "Attempts at files that ended without success.",
            |meters| meters.failures,
        ),
    ];
    for (name, help, value) in counters {
        text.head(name, "counter", help);
        for (job, meters) in meters {
            text.sample(name, &[("job", job)], value(meters));
        }
    }
    let name = "knarr_runs_total";
    text.head(name, "counter", "Runs that ended, by how they ended.");
    for (job, meters) in meters {
        for (outcome, count) in &meters.runs {
            text.sample(name, &[("job", job), ("outcome", outcome)], count);
        }
    }
    let name = "knarr_run_seconds";
    text.head(name, "histogram", "How long runs took.");
    for (job, meters) in meters {
        let all: u64 = meters.runs.values().sum();
        let mut sum = 0;
        for (end, count) in BUCKETS_SECONDS.iter().zip(meters.buckets) {
            sum += count;
            let labels = [("job", job.as_str()), ("le", &end.to_string())];
            text.sample("knarr_run_seconds_bucket", &labels, sum);
        }
        text.sample(
            "knarr_run_seconds_bucket",
            &[("job", job), ("le", "+Inf")],
            all,
        );
        let seconds = meters.run_microseconds / 1_000_000;
        let fraction = meters.run_microseconds % 1_000_000;
        text.sample(
            "knarr_run_seconds_sum",
            &[("job", job)],
            format_args!("{seconds}.{fraction:06}"),
        );
        text.sample("knarr_run_seconds_count", &[("job", job)], all);
    }
}

/// What is in the queue of one job.
#[derive(Default)]
struct Queue {
    ready: u64,
    waiting: u64,
    parked: u64,
    held: u64,
    oldest: Option<Timestamp>,
}

fn queue(text: &mut Text, reader: &Reader<'_>, now: Timestamp) -> Result<(), StoreError> {
    let mut queues: BTreeMap<String, Queue> = BTreeMap::new();
    for pair in reader.pairs()? {
        let Some(job) = pair.known_as.job else {
            continue;
        };
        let counts = reader.count_dirty(pair.id, now)?;
        let queue = queues.entry(job).or_default();
        queue.ready += counts.ready;
        queue.waiting += counts.waiting;
        queue.parked += counts.parked;
        let held = reader.held(pair.id)?;
        queue.held += u64::from(held.is_some_and(|hold| hold.approval.is_none()));
        let oldest = [queue.oldest, reader.oldest_dirty(pair.id)?];
        queue.oldest = oldest.into_iter().flatten().min();
    }
    let name = "knarr_queue_files";
    text.head(name, "gauge", "Paths in the queue, by what they wait for.");
    for (job, queue) in &queues {
        for (state, count) in [
            ("ready", queue.ready),
            ("waiting", queue.waiting),
            ("parked", queue.parked),
        ] {
            text.sample(name, &[("job", job), ("state", state)], count);
        }
    }
    let name = "knarr_queue_oldest_seconds";
    text.head(
        name,
        "gauge",
        "How long the oldest path in the queue waits that is not parked.",
    );
    for (job, queue) in &queues {
        let age = queue.oldest.map_or(0, |oldest| now.since(oldest).as_secs());
        text.sample(name, &[("job", job)], age);
    }
    let name = "knarr_held_plans";
    text.head(name, "gauge", "Plans that wait for approval.");
    for (job, queue) in &queues {
        text.sample(name, &[("job", job)], queue.held);
    }
    Ok(())
}

fn endpoints(
    text: &mut Text,
    reader: &Reader<'_>,
    announcer: &Announcer,
) -> Result<(), StoreError> {
    let name = "knarr_endpoint_up";
    text.head(name, "gauge", "Whether an endpoint answered last: 1 or 0.");
    let mut up: BTreeMap<String, u8> = BTreeMap::new();
    for known in announcer.endpoint_names() {
        up.insert(known, 1);
    }
    for (known_as, health) in reader.endpoints()? {
        let value = u8::from(health.state == Reachable::Up);
        up.insert(announcer.endpoint_name(&known_as), value);
    }
    for (endpoint, value) in &up {
        text.sample(name, &[("endpoint", endpoint)], value);
    }
    Ok(())
}

fn outbox(text: &mut Text, reader: &Reader<'_>, now: Timestamp) -> Result<(), StoreError> {
    let counts = reader.outbox_counts()?;
    let name = "knarr_outbox_messages";
    text.head(
        name,
        "gauge",
        "Messages of hooks and alerts that were not delivered yet.",
    );
    for count in &counts {
        for (state, value) in [("waiting", count.waiting), ("parked", count.parked)] {
            text.sample(name, &[("target", &count.target), ("state", state)], value);
        }
    }
    let name = "knarr_outbox_oldest_seconds";
    text.head(
        name,
        "gauge",
        "How long the oldest message waits that is not parked.",
    );
    for count in &counts {
        let age = count.oldest.map_or(0, |oldest| now.since(oldest).as_secs());
        text.sample(name, &[("target", &count.target)], age);
    }
    Ok(())
}

fn alerts(text: &mut Text, reader: &Reader<'_>) -> Result<(), StoreError> {
    let mut open: BTreeMap<String, u64> = BTreeMap::new();
    for ((rule, _), state) in reader.alert_states()? {
        *open.entry(rule).or_default() += u64::from(state.firing_since().is_some());
    }
    let name = "knarr_alerts_open";
    text.head(
        name,
        "gauge",
        "Subjects for which the condition of a rule holds and was told.",
    );
    for (rule, count) in &open {
        text.sample(name, &[("rule", rule)], count);
    }
    Ok(())
}

fn process(text: &mut Text) {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let resident = pages.and_then(|pages| pages.split(' ').nth(1)?.parse::<u64>().ok());
    if let Some(resident) = resident {
        let name = "process_resident_memory_bytes";
        text.head(name, "gauge", "Memory of this process that is in use.");
        let page = rustix::param::page_size() as u64;
        text.sample(name, &[], resident.saturating_mul(page));
    }
    let name = "knarr_build_info";
    text.head(name, "gauge", "The version of Knarr.");
    text.sample(name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_label_stays_in_it() {
        let mut text = Text(String::new());
        text.sample("m", &[("job", "a\"b\\c\nd")], 1);
        assert_eq!(text.0, "m{job=\"a\\\"b\\\\c\\nd\"} 1\n");
    }

    #[test]
    fn the_classes_of_durations_add_up() {
        let meters = JobMeters {
            runs: [("done", 3), ("failed", 1)].into(),
            buckets: [1, 2, 0, 0, 0, 0, 0, 0, 0],
            run_microseconds: 1_500_000,
            ..JobMeters::default()
        };
        let mut text = Text(String::new());
        jobs(&mut text, &[("a".to_owned(), meters)].into());
        for line in [
            "knarr_run_seconds_bucket{job=\"a\",le=\"1\"} 1",
            "knarr_run_seconds_bucket{job=\"a\",le=\"5\"} 3",
            "knarr_run_seconds_bucket{job=\"a\",le=\"86400\"} 3",
            "knarr_run_seconds_bucket{job=\"a\",le=\"+Inf\"} 4",
            "knarr_run_seconds_sum{job=\"a\"} 1.500000",
            "knarr_run_seconds_count{job=\"a\"} 4",
            "knarr_runs_total{job=\"a\",outcome=\"failed\"} 1",
        ] {
            assert!(
                text.0.lines().any(|known| known == line),
                "{line}: {}",
                text.0
            );
        }
    }
}
