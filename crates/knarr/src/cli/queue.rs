//! `queue` and `status`: what is waiting, what is moving, what is in the way.

use clap::Args;
use knarr_core::units::ByteSize;
use knarr_core::{Clock as _, RelPath, Timestamp};
use knarr_node::v1::list_queue_request::Which;
use knarr_node::v1::queued_path::State;
use knarr_node::{Unreadable, query, timestamp, v1};
use serde::Serialize;

use crate::cli::backend::{Fresh, Session};
use crate::cli::context::Context;
use crate::cli::look::shown_time;
use crate::cli::messages;
use crate::cli::trace::shown_duration;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Align, Format, Output, Style};

/// How many paths are read at a time.
const PAGE_ROWS: usize = 1_000;

/// List the paths that are waiting, moving, or parked, and messages that are parked
///
/// The queue is the set of paths that differ from what was delivered last. A path is in it once. With
/// --parked, messages of hooks and alerts follow that nobody took.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr queue --parked\n  knarr queue --job sensors --retry")]
pub(crate) struct QueueArguments {
    /// Only of this job
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Only what is parked and waits for a person: paths, and messages of hooks and alerts
    #[arg(long)]
    parked: bool,
    /// Only paths that failed, parked or not
    #[arg(long, conflicts_with = "parked")]
    failed: bool,
    /// Have what is parked or failed tried again now: paths, and messages of hooks and alerts
    #[arg(long)]
    retry: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

/// Show jobs, queues, what is moving, and which endpoints and targets are down
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr status\n  knarr status --json")]
pub(crate) struct StatusArguments {}

/// A path of the queue as data.
#[derive(Serialize)]
struct Queued<'a> {
    job: &'a str,
    path: RelPath,
    state: &'static str,
    kind: &'a str,
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
    let session = Session::open(context, Fresh::Refuse)?;
    let now = context.clock.now();
    let job = arguments.job.clone().unwrap_or_default();
    if arguments.retry {
        retry(&session, &job)?;
    }
    let which = match (arguments.parked, arguments.failed) {
        (true, _) => Which::Parked,
        (false, true) => Which::Failed,
        (false, false) => Which::All,
    };
    let mut request = v1::ListQueueRequest {
        job,
        which: which.into(),
        limit: 0,
        from: Vec::new(),
    };
    let mut left = arguments.limit;
    while left > 0 {
        request.limit = u32::try_from(left.min(PAGE_ROWS)).unwrap_or(u32::MAX);
        let asked = request.clone();
        let reply = session.ask(
            async |client| Ok(client.queue().list(asked).await?.into_inner()),
            |store| query::queue(store, &request, now),
        )?;
        left -= reply.paths.len().min(left);
        // A table for each job.
        for paths in reply.paths.chunk_by(|left, right| left.job == right.job) {
            print_queue(paths, now, output)?;
        }
        if reply.next.is_empty() {
            break;
        }
        request.from = reply.next;
    }
    if arguments.parked {
        messages::print_parked(&session, &request.job, now, output)?;
    }
    Ok(Outcome::Done)
}

/// Has failed and parked paths tried again, and parked messages, too, if no job is named.
fn retry(session: &Session, job: &str) -> Result<(), CommandError> {
    let request = v1::RetryQueueRequest {
        job: job.to_owned(),
    };
    let again = session.ask(
        async |client| Ok(client.queue().retry(request).await?.into_inner()),
        |store| query::retry_queue(store, job),
    )?;
    tracing::info!(paths = again.count, "will be tried again");
    if job.is_empty() {
        let request = v1::RetryMessagesRequest { id: 0 };
        let again = session.ask(
            async |client| Ok(client.queue().retry_messages(request).await?.into_inner()),
            |store| query::retry_messages(store, 0),
        )?;
        tracing::info!(messages = again.count, "will be tried again");
    }
    Ok(())
}

fn path_of(bytes: &[u8]) -> Result<RelPath, CommandError> {
    RelPath::new(bytes).map_err(|_not_one| Unreadable("path").into())
}

fn print_queue(
    page: &[v1::QueuedPath],
    now: Timestamp,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut rows = Vec::with_capacity(page.len());
    for path in page {
        let queued = queued(path)?;
        if output.format == Format::Json {
            output.json(&queued)?;
            continue;
        }
        rows.push([
            safe(queued.job),
            state_in_words(path, now),
            queued
                .size
                .map_or_else(|| "-".to_owned(), |size| ByteSize(size).to_string()),
            shown_duration(now.since(queued.first_seen)),
            match queued.reason {
                Some(reason) => format!("{}   {}", queued.path, safe(reason)),
                None => queued.path.to_string(),
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

fn queued(path: &v1::QueuedPath) -> Result<Queued<'_>, CommandError> {
    Ok(Queued {
        job: match path.job.as_str() {
            "" => "(one-shot)",
            job => job,
        },
        path: path_of(&path.path)?,
        state: match path.state() {
            State::InFlight => "in_flight",
            State::Ready => "ready",
            State::Settling => "settling",
            State::Retrying => "retrying",
            State::Parked => "parked",
            State::Unspecified => return Err(Unreadable("state of a path").into()),
        },
        kind: &path.kind,
        gone: path.gone,
        size: path.size_bytes,
        done_bytes: path.done_bytes,
        first_seen: timestamp(path.first_seen),
        next_attempt_at: path.next_attempt_at.map(timestamp),
        attempts: path.attempts,
        reason: (!path.reason.is_empty()).then_some(&path.reason),
    })
}

fn state_in_words(path: &v1::QueuedPath, now: Timestamp) -> String {
    let words = match path.state() {
        State::InFlight => percent(
            path.done_bytes.unwrap_or_default(),
            path.total_bytes.unwrap_or_default(),
        ),
        State::Ready | State::Unspecified => "ready".to_owned(),
        State::Settling => "settling".to_owned(),
        State::Retrying => {
            let at = path.next_attempt_at.map(timestamp);
            let wait = at.map(|at| at.since(now)).unwrap_or_default();
            format!(
                "again in {} (failed {}×)",
                shown_duration(wait),
                path.attempts
            )
        }
        State::Parked => "parked".to_owned(),
    };
    if path.gone {
        format!("{words}, deleted")
    } else {
        words
    }
}

fn percent(done_bytes: u64, total_bytes: u64) -> String {
    if total_bytes == 0 {
        return "moving".to_owned();
    }
    let percent = u128::from(done_bytes) * 100 / u128::from(total_bytes);
    format!("moving {}%", percent.min(100))
}

pub(crate) fn status(
    _arguments: &StatusArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let session = Session::open(context, Fresh::Refuse)?;
    let now = context.clock.now();
    let status = session.ask(
        async |client| {
            Ok(client
                .node()
                .status(v1::StatusRequest {})
                .await?
                .into_inner())
        },
        |store| query::status(store, now),
    )?;
    if output.format == Format::Json {
        output.json(&status_data(&status)?)?;
    } else {
        print_status(&status, now, output)?;
    }
    Ok(Outcome::Done)
}

fn status_data(status: &v1::StatusReply) -> Result<serde_json::Value, CommandError> {
    let mut pairs = Vec::new();
    for pair in &status.pairs {
        let mut moving = Vec::new();
        for file in &pair.in_flight {
            moving.push(serde_json::json!({
                "path": path_of(&file.path)?,
                "done_bytes": file.done_bytes,
                "total_bytes": file.total_bytes,
                "started_at": timestamp(file.started_at),
            }));
        }
        pairs.push(serde_json::json!({
            "job": pair.job,
            "source": pair.source,
            "destination": pair.destination,
            "ready": pair.ready,
            "waiting": pair.waiting,
            "parked": pair.parked,
            "counted_up_to": (pair.counted_up_to > 0).then_some(pair.counted_up_to),
            "counted_at": pair.counted_at.map(timestamp),
            "in_flight": moving,
            "degraded": pair.degraded,
            "scanning": pair.scanning,
            "held": pair.held.as_ref().map(|held| serde_json::json!({
                "deletes": held.deletes,
                "total": held.total,
                "reason": held.reason,
                "held_at": timestamp(held.held_at),
                "approved_by": held.approved_by,
            })),
        }));
    }
    let endpoint = |health: &v1::Health| {
        serde_json::json!({
            "endpoint": health.endpoint,
            "up": health.up,
            "since": timestamp(health.since),
            "last_error": health.last_error,
            "next_probe": health.next_probe.map(timestamp),
        })
    };
    let paused = |paused: &v1::PausedEndpoint| {
        serde_json::json!({
            "endpoint": paused.endpoint,
            "since": timestamp(paused.since),
            "by": paused.by,
        })
    };
    let running = |run: &v1::Running| {
        serde_json::json!({
            "job": run.job,
            "run": (run.run > 0).then_some(run.run),
            "cause": run.cause,
            "since": timestamp(run.since),
        })
    };
    let node = |node: &v1::About| {
        serde_json::json!({
            "version": node.version,
            "process": node.process,
            "started_at": timestamp(node.started_at),
            "file": node.file,
            "file_problem": (!node.file_problem.is_empty()).then_some(&node.file_problem),
            "file_read_at": timestamp(node.file_read_at),
            "needs_restart": node.needs_restart,
        })
    };
    Ok(serde_json::json!({
        "pairs": pairs,
        "endpoints": status.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "targets": messages::data(&status.targets),
        "paused_endpoints": status.paused_endpoints.iter().map(paused).collect::<Vec<_>>(),
        "running": status.running.iter().map(running).collect::<Vec<_>>(),
        "node": status.node.as_ref().map(node),
    }))
}

fn print_status(
    status: &v1::StatusReply,
    now: Timestamp,
    output: &mut Output,
) -> Result<(), CommandError> {
    if let Some(node) = &status.node {
        output.line(format!(
            "the node runs since {} (process {})",
            shown_time(timestamp(node.started_at)),
            node.process
        ))?;
        if !node.file_problem.is_empty() {
            let line = format!(
                "  its file is wrong, and the one of {} stays in force: {}",
                shown_time(timestamp(node.file_read_at)),
                safe(&node.file_problem)
            );
            let line = output.paint(Style::Warning, &line);
            output.line(line)?;
        }
        if !node.needs_restart.is_empty() {
            let keys = safe(&node.needs_restart.join(", "));
            let line = format!("  its file changed, and this counts from the next start: {keys}");
            let line = output.paint(Style::Warning, &line);
            output.line(line)?;
        }
    }
    for paused in &status.paused_endpoints {
        let line = format!(
            "{}   paused by {} since {}: jobs that use it wait",
            safe(&paused.endpoint),
            safe(&paused.by),
            shown_time(timestamp(paused.since))
        );
        let line = output.paint(Style::Warning, &line);
        output.line(line)?;
    }
    for pair in &status.pairs {
        print_pair(pair, output)?;
    }
    for run in status.running.iter().filter(|run| run.cause != "watch") {
        let what = match run.run {
            0 => "waits for its turn".to_owned(),
            run => format!("run {run} is under way"),
        };
        output.line(format!("{}   {what} ({})", safe(&run.job), run.cause))?;
    }
    if status.pairs.is_empty() {
        output.line("nothing was moved yet")?;
    }
    print_endpoints(&status.endpoints, now, output)?;
    messages::print(&status.targets, output)
}

fn print_pair(pair: &v1::Pair, output: &mut Output) -> Result<(), CommandError> {
    let name = safe(pair.job.as_deref().unwrap_or("(one-shot)"));
    let name = output.paint(Style::Bold, &name);
    output.line(format!(
        "{name}   {} → {}",
        safe(&pair.source),
        safe(&pair.destination)
    ))?;
    if pair.scanning {
        output.line("  everything is being looked at: more may wait than is known")?;
    }
    if pair.ready + pair.waiting == 0 && pair.parked == 0 {
        if !pair.scanning {
            output.line("  in step")?;
        }
    } else {
        let number = |number: u64| match pair.counted_up_to {
            limit if limit > 0 && number >= limit => format!("{number} or more"),
            _ => number.to_string(),
        };
        let at = pair.counted_at.map(|at| shown_time(timestamp(at)));
        output.line(format!(
            "  {} ready, {} waiting, {} parked{}",
            number(pair.ready),
            number(pair.waiting),
            number(pair.parked),
            at.map(|at| format!(" (counted {at})")).unwrap_or_default()
        ))?;
    }
    for moving in &pair.in_flight {
        output.line(format!(
            "  {:>11}  {} of {}  {}",
            percent(moving.done_bytes, moving.total_bytes),
            ByteSize(moving.done_bytes),
            ByteSize(moving.total_bytes),
            path_of(&moving.path)?
        ))?;
    }
    if let Some(reason) = &pair.degraded {
        let line = format!("  degraded: polled, not watched: {}", safe(reason));
        let line = output.paint(Style::Warning, &line);
        output.line(line)?;
    }
    if let Some(held) = &pair.held {
        let state = match (&held.approved_by, &pair.job) {
            (Some(by), _) => format!("approved by {}", safe(by)),
            (None, Some(job)) => format!("`knarr approve {}` lets it go on", safe(job)),
            (None, None) => "--approve-deletes lets it go on".to_owned(),
        };
        let line = format!(
            "  held since {}: {}; {state}",
            shown_time(timestamp(held.held_at)),
            safe(&held.reason)
        );
        let line = output.paint(Style::Warning, &line);
        output.line(line)?;
    }
    Ok(())
}

fn print_endpoints(
    endpoints: &[v1::Health],
    now: Timestamp,
    output: &mut Output,
) -> Result<(), CommandError> {
    for health in endpoints {
        let name = safe(&health.endpoint);
        let since = shown_time(timestamp(health.since));
        if health.up {
            output.line(format!("{name}   up since {since}"))?;
            continue;
        }
        let error = safe(health.last_error.as_deref().unwrap_or("no reason is known"));
        let line = format!("{name}   down since {since}: {error}");
        let line = output.paint(Style::Bad, &line);
        output.line(line)?;
        if let Some(next) = health.next_probe {
            output.line(format!(
                "  asked again in {}",
                shown_duration(timestamp(next).since(now))
            ))?;
        }
    }
    Ok(())
}

fn safe(text: &str) -> String {
    knarr_core::path::printable(text.as_bytes()).to_string()
}
