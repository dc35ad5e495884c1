//! `queue` and `status`: what is waiting, what is moving, what is in the way.

use clap::Args;
use knarr_core::units::ByteSize;
use knarr_core::{Clock as _, Kind, RelPath, Timestamp};
use knarr_store::dirty::{Dirty, DirtyCounts, DirtyFilter};
use knarr_store::endpoints::{EndpointHealth, Reachable};
use knarr_store::holds::Hold;
use knarr_store::in_flight::InFlight;
use knarr_store::pairs::Pair;
use knarr_store::{Reader, Store};
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::look::shown_time;
use crate::cli::trace::shown_duration;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Align, Format, Output, Style};

/// How many paths are read at a time.
const PAGE_ROWS: usize = 1_000;

/// List the paths that are waiting, moving, or parked
///
/// The queue is the set of paths that differ from what was delivered last. A path is in it once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr queue --parked\n  knarr queue --job sensors --retry")]
pub(crate) struct QueueArguments {
    /// Only of this job
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Only parked paths, which wait for a person
    #[arg(long)]
    parked: bool,
    /// Only paths that failed, parked or not
    #[arg(long, conflicts_with = "parked")]
    failed: bool,
    /// Have the parked and failed paths tried again now
    #[arg(long)]
    retry: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

/// Show jobs, their queues, what is moving, and which endpoints are down
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr status\n  knarr status --json")]
pub(crate) struct StatusArguments {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    InFlight,
    Ready,
    Settling,
    Retrying,
    Parked,
}

/// A path of the queue as data.
#[derive(Serialize)]
struct Queued<'a> {
    job: &'a str,
    path: &'a RelPath,
    state: Standing,
    kind: Kind,
    gone: bool,
    size: Option<u64>,
    done_bytes: Option<u64>,
    first_seen: Timestamp,
    next_attempt_at: Option<Timestamp>,
    attempts: u32,
    reason: Option<&'a str>,
}

pub(crate) fn queue(
    arguments: &QueueArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let store = context.existing_store()?;
    let now = context.clock.now();
    let pairs = pairs_of(&store, arguments.job.as_deref())?;
    if arguments.retry {
        let mut again = 0;
        for pair in &pairs {
            let id = pair.id;
            again += store.transact(move |tx| tx.retry_now(id, None)).wait()?;
        }
        tracing::info!(paths = again, "will be tried again");
    }
    let filter = match (arguments.parked, arguments.failed) {
        (true, _) => DirtyFilter::Parked,
        (false, true) => DirtyFilter::Failed,
        (false, false) => DirtyFilter::All,
    };
    let mut left = arguments.limit;
    for pair in &pairs {
        let in_flight = store.read(|reader| reader.in_flight(pair.id))?;
        let mut after = Vec::new();
        while left > 0 {
            let page = store
                .read(|reader| reader.list_dirty(pair.id, filter, &after, left.min(PAGE_ROWS)))?;
            let Some(last) = page.last() else {
                break;
            };
            after = last.path.order_key(last.kind).into_owned();
            left -= page.len().min(left);
            print_queue(pair, &page, &in_flight, now, output)?;
        }
    }
    Ok(Outcome::Done)
}

fn pairs_of(store: &Store, job: Option<&str>) -> Result<Vec<Pair>, CommandError> {
    let mut pairs = store.read(|reader| reader.pairs())?;
    if let Some(job) = job {
        pairs.retain(|pair| pair.known_as.job.as_deref() == Some(job));
        if pairs.is_empty() {
            return Err(
                CommandError::usage(format!("nothing is known of a job `{job}`"))
                    .hint("`knarr status` lists the jobs that ran"),
            );
        }
    }
    Ok(pairs)
}

fn print_queue(
    pair: &Pair,
    page: &[Dirty],
    in_flight: &[InFlight],
    now: Timestamp,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut rows = Vec::with_capacity(page.len());
    for dirty in page {
        let moving = in_flight.iter().find(|moving| moving.path == dirty.path);
        let queued = queued(pair, dirty, moving, now);
        if output.format == Format::Json {
            output.json(&queued)?;
            continue;
        }
        rows.push([
            safe(queued.job),
            state_in_words(&queued, moving, now),
            queued
                .size
                .map_or_else(|| "-".to_owned(), |size| ByteSize(size).to_string()),
            shown_duration(now.since(dirty.first_seen)),
            match queued.reason {
                Some(reason) => format!("{}   {}", dirty.path, safe(reason)),
                None => dirty.path.to_string(),
            },
        ]);
    }
    if output.format == Format::Text {
        let headings = [
            ("JOB", Align::Left),
            ("STATE", Align::Left),
            ("SIZE", Align::Right),
            ("SINCE", Align::Right),
            ("PATH", Align::Left),
        ];
        output.table(headings, &rows)?;
    }
    Ok(())
}

fn queued<'a>(
    pair: &'a Pair,
    dirty: &'a Dirty,
    moving: Option<&InFlight>,
    now: Timestamp,
) -> Queued<'a> {
    let waits = |until: Option<Timestamp>| until.is_some_and(|until| until > now);
    let state = if dirty.parked.is_some() {
        Standing::Parked
    } else if moving.is_some() {
        Standing::InFlight
    } else if waits(dirty.next_attempt_at) {
        Standing::Retrying
    } else if waits(Some(dirty.ready_at)) {
        Standing::Settling
    } else {
        Standing::Ready
    };
    Queued {
        job: pair.known_as.job.as_deref().unwrap_or("(one-shot)"),
        path: &dirty.path,
        state,
        kind: dirty.kind,
        gone: dirty.observed.is_none(),
        size: dirty.observed.as_ref().map(|seen| seen.size),
        done_bytes: moving.map(|moving| moving.done_bytes),
        first_seen: dirty.first_seen,
        next_attempt_at: dirty.next_attempt_at,
        attempts: dirty.attempts,
        reason: dirty.parked.as_deref().or(dirty.last_error.as_deref()),
    }
}

fn state_in_words(queued: &Queued<'_>, moving: Option<&InFlight>, now: Timestamp) -> String {
    let words = match queued.state {
        Standing::InFlight => moving.map_or_else(|| "moving".to_owned(), percent),
        Standing::Ready => "ready".to_owned(),
        Standing::Settling => "settling".to_owned(),
        Standing::Retrying => {
            let wait = queued
                .next_attempt_at
                .map(|at| at.since(now))
                .unwrap_or_default();
            format!(
                "again in {} (failed {}×)",
                shown_duration(wait),
                queued.attempts
            )
        }
        Standing::Parked => "parked".to_owned(),
    };
    if queued.gone {
        format!("{words}, deleted")
    } else {
        words
    }
}

fn percent(moving: &InFlight) -> String {
    if moving.total_bytes == 0 {
        return "moving".to_owned();
    }
    let percent = u128::from(moving.done_bytes) * 100 / u128::from(moving.total_bytes);
    format!("moving {}%", percent.min(100))
}

/// All that is shown of one pair.
struct PairStatus {
    pair: Pair,
    counts: DirtyCounts,
    in_flight: Vec<InFlight>,
    hold: Option<Hold>,
    /// Why it is polled instead of watched, if it is.
    degraded: Option<String>,
    /// Whether everything is being looked at, so that the counts may not be all.
    scanning: bool,
}

struct Status {
    pairs: Vec<PairStatus>,
    endpoints: Vec<(String, EndpointHealth)>,
}

fn look(reader: &Reader<'_>, now: Timestamp) -> Result<Status, knarr_store::StoreError> {
    let mut pairs = Vec::new();
    for pair in reader.pairs()? {
        pairs.push(PairStatus {
            counts: reader.count_dirty(pair.id, now)?,
            in_flight: reader.in_flight(pair.id)?,
            hold: reader.held(pair.id)?,
            degraded: reader.setting(&knarr_engine::degraded_setting(pair.id))?,
            scanning: reader
                .setting(&knarr_engine::scanning_setting(pair.id))?
                .is_some(),
            pair,
        });
    }
    Ok(Status {
        pairs,
        endpoints: reader.endpoints()?,
    })
}

pub(crate) fn status(
    _arguments: &StatusArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let store = context.existing_store()?;
    let now = context.clock.now();
    let status = store.read(|reader| look(reader, now))?;
    if output.format == Format::Json {
        output.json(&status_data(&status))?;
    } else {
        print_status(&status, now, output)?;
    }
    Ok(Outcome::Done)
}

fn status_data(status: &Status) -> serde_json::Value {
    let pairs: Vec<_> = status
        .pairs
        .iter()
        .map(|status| {
            let moving: Vec<_> = status
                .in_flight
                .iter()
                .map(|moving| {
                    serde_json::json!({
                        "path": moving.path,
                        "done_bytes": moving.done_bytes,
                        "total_bytes": moving.total_bytes,
                        "started_at": moving.started_at,
                    })
                })
                .collect();
            serde_json::json!({
                "job": status.pair.known_as.job,
                "source": status.pair.known_as.source,
                "destination": status.pair.known_as.destination,
                "ready": status.counts.ready,
                "waiting": status.counts.waiting,
                "parked": status.counts.parked,
                "in_flight": moving,
                "degraded": status.degraded,
                "scanning": status.scanning,
                "held": status.hold.as_ref().map(|hold| serde_json::json!({
                    "deletes": hold.held.deletes,
                    "total": hold.held.total,
                    "reason": hold.held.reason,
                    "held_at": hold.held_at,
                    "approved_by": hold.approval.as_ref().map(|approval| &approval.by),
                })),
            })
        })
        .collect();
    let endpoints: Vec<_> = status
        .endpoints
        .iter()
        .map(|(name, health)| {
            serde_json::json!({
                "endpoint": name,
                "up": health.state == Reachable::Up,
                "since": health.since,
                "last_error": health.last_error,
                "next_probe": health.next_probe,
            })
        })
        .collect();
    serde_json::json!({ "pairs": pairs, "endpoints": endpoints })
}

fn print_status(status: &Status, now: Timestamp, output: &mut Output) -> Result<(), CommandError> {
    for PairStatus {
        pair,
        counts,
        in_flight,
        hold,
        degraded,
        scanning,
    } in &status.pairs
    {
        let name = safe(pair.known_as.job.as_deref().unwrap_or("(one-shot)"));
        let name = output.paint(Style::Bold, &name);
        output.line(format!(
            "{name}   {} → {}",
            safe(&pair.known_as.source),
            safe(&pair.known_as.destination)
        ))?;
        let waiting = counts.ready + counts.waiting;
        if *scanning {
            output.line("  everything is being looked at: more may wait than is known")?;
        }
        if waiting == 0 && counts.parked == 0 {
            if !scanning {
                output.line("  in step")?;
            }
        } else {
            output.line(format!(
                "  {} ready, {} waiting, {} parked",
                counts.ready, counts.waiting, counts.parked
            ))?;
        }
        for moving in in_flight {
            output.line(format!(
                "  {:>11}  {} of {}  {}",
                percent(moving),
                ByteSize(moving.done_bytes),
                ByteSize(moving.total_bytes),
                moving.path
            ))?;
        }
        if let Some(reason) = degraded {
            let line = format!("  degraded: polled, not watched: {}", safe(reason));
            let line = output.paint(Style::Warning, &line);
            output.line(line)?;
        }
        if let Some(hold) = hold {
            let state = match &hold.approval {
                Some(approval) => format!("approved by {}", safe(&approval.by)),
                None => match &pair.known_as.job {
                    Some(job) => format!("`knarr approve {}` lets it go on", safe(job)),
                    None => "--approve-deletes lets it go on".to_owned(),
                },
            };
            let line = format!(
                "  held since {}: {}; {state}",
                shown_time(hold.held_at),
                safe(&hold.held.reason)
            );
            let line = output.paint(Style::Warning, &line);
            output.line(line)?;
        }
    }
    if status.pairs.is_empty() {
        output.line("nothing was moved yet")?;
    }
    print_endpoints(&status.endpoints, now, output)
}

fn print_endpoints(
    endpoints: &[(String, EndpointHealth)],
    now: Timestamp,
    output: &mut Output,
) -> Result<(), CommandError> {
    for (name, health) in endpoints {
        let name = safe(name);
        let since = shown_time(health.since);
        match health.state {
            Reachable::Up => output.line(format!("{name}   up since {since}"))?,
            Reachable::Down => {
                let error = safe(health.last_error.as_deref().unwrap_or("no reason is known"));
                let line = format!("{name}   down since {since}: {error}");
                let line = output.paint(Style::Bad, &line);
                output.line(line)?;
                if let Some(next) = health.next_probe {
                    output.line(format!(
                        "  asked again in {}",
                        shown_duration(next.since(now))
                    ))?;
                }
            }
        }
    }
    Ok(())
}

fn safe(text: &str) -> String {
    knarr_core::path::printable(text.as_bytes()).to_string()
}
