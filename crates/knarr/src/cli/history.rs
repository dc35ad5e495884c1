//! `history`: the runs, and what happened to files.

use clap::Args;
use knarr_core::record::Action;
use knarr_core::run::RunState;
use knarr_core::units::{ByteSize, Span};
use knarr_core::{Clock as _, Timestamp};
use knarr_node::{query, record_of, timestamp, v1};
use knarr_store::custody::ChainedRecord;
use knarr_store::runs::RunCounts;
use serde::Serialize;

use crate::cli::backend::{Fresh, Session};
use crate::cli::context::Context;
use crate::cli::look::shown_time;
use crate::cli::trace::shown_duration;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Align, Format, Output};

/// How many rows are read at a time.
const PAGE_ROWS: usize = 500;

/// List runs, or what happened to files, the newest first
///
/// Without a filter for files, runs are listed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr history\n  knarr history --files --since 1h --json")]
pub(crate) struct HistoryArguments {
    /// List files even without a filter for them
    #[arg(long)]
    files: bool,
    /// Only of this job, or of this command
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Only files of this run
    #[arg(long, value_name = "NUMBER")]
    run: Option<u64>,
    /// Only files whose path matches this glob; may be given more than once
    #[arg(long, value_name = "GLOB")]
    path: Vec<String>,
    /// Only files to which this happened: created, updated, renamed, deleted, failed, parked, …
    #[arg(long, value_name = "WHAT", value_parser = action)]
    action: Option<Action>,
    /// Only runs in this state: running, held, done, partial, failed, interrupted
    #[arg(long, value_name = "STATE", value_parser = run_state, conflicts_with_all = ["files", "run", "path", "action"])]
    run_state: Option<RunState>,
    /// Not before this time: an age such as 2d, or a date such as 2026-11-21 or 2026-11-21T10:00
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Before this time: an age, or a date
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

fn action(text: &str) -> Result<Action, String> {
    Action::from_name(text).ok_or_else(|| "it is not something that happens to a file".to_owned())
}

fn run_state(text: &str) -> Result<RunState, String> {
    RunState::from_name(text).ok_or_else(|| "it is not a state of a run".to_owned())
}

pub(crate) fn run(
    arguments: &HistoryArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let now = context.clock.now();
    let since = time(arguments.since.as_deref(), now)?.map(Timestamp::nanoseconds);
    let until = time(arguments.until.as_deref(), now)?.map(Timestamp::nanoseconds);
    let session = Session::open(context, Fresh::Refuse)?;
    let about_files = arguments.files
        || arguments.run.is_some()
        || !arguments.path.is_empty()
        || arguments.action.is_some();
    let job = arguments.job.clone().unwrap_or_default();
    if about_files {
        let request = v1::HistoryRequest {
            job,
            run: arguments.run,
            action: arguments
                .action
                .map(|action| action.name().to_owned())
                .unwrap_or_default(),
            since,
            until,
            globs: arguments.path.clone(),
            before: None,
            limit: 0,
        };
        files(&session, request, arguments.limit, output)?;
    } else {
        let request = v1::ListRunsRequest {
            job,
            state: arguments
                .run_state
                .map(|state| state.name().to_owned())
                .unwrap_or_default(),
            since,
            until,
            before: None,
            limit: 0,
        };
        runs(&session, request, arguments.limit, output)?;
    }
    Ok(Outcome::Done)
}

/// So many rows of those that are left.
fn page(left: usize) -> u32 {
    u32::try_from(left.min(PAGE_ROWS)).unwrap_or(u32::MAX)
}

fn files(
    session: &Session,
    mut request: v1::HistoryRequest,
    limit: usize,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut left = limit;
    while left > 0 {
        request.limit = page(left);
        let asked = request.clone();
        let reply = session.ask(
            async |client| Ok(client.history().files(asked).await?.into_inner()),
            |store| query::history(store, &request),
        )?;
        let page = reply.records.into_iter().map(record_of);
        let page: Vec<_> = page.collect::<Result<_, _>>()?;
        let Some(last) = page.last() else {
            break;
        };
        request.before = Some(last.seq);
        left -= page.len().min(left);
        if output.format == Format::Json {
            for record in &page {
                output.json(record)?;
            }
            continue;
        }
        print_files(&page, output)?;
    }
    Ok(())
}

fn print_files(page: &[ChainedRecord], output: &mut Output) -> Result<(), CommandError> {
    let rows: Vec<[String; 6]> =
        page.iter()
            .map(|chained| {
                let record = &chained.record;
                let message = record.message.as_ref().map(|message| {
                    format!("   {}", knarr_core::path::printable(message.as_bytes()))
                });
                [
                    shown_time(record.at),
                    record.run.to_string(),
                    knarr_core::path::printable(record.job.as_bytes()).to_string(),
                    record.action.name().to_owned(),
                    ByteSize(record.size).to_string(),
                    format!("{}{}", record.path, message.unwrap_or_default()),
                ]
            })
            .collect();
    let headings = [
        ("TIME", Align::Left),
        ("RUN", Align::Right),
        ("JOB", Align::Left),
        ("WHAT", Align::Left),
        ("SIZE", Align::Right),
        ("PATH", Align::Left),
    ];
    Ok(output.table(headings, &rows)?)
}

/// A run as data.
#[derive(Serialize)]
struct RunData<'a> {
    run: u64,
    job: &'a str,
    kind: &'a str,
    cause: &'a str,
    state: &'a str,
    started_at: Timestamp,
    finished_at: Option<Timestamp>,
    counts: RunCounts,
    message: Option<&'a str>,
}

/// Lists runs, the newest first.
///
/// # Errors
/// If they cannot be read, or stdout does not take them.
pub(crate) fn runs(
    session: &Session,
    mut request: v1::ListRunsRequest,
    limit: usize,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut left = limit;
    while left > 0 {
        request.limit = page(left);
        let asked = request.clone();
        let reply = session.ask(
            async |client| Ok(client.runs().list(asked).await?.into_inner()),
            |store| query::runs(store, &request),
        )?;
        let Some(last) = reply.runs.last() else {
            break;
        };
        request.before = Some(last.run);
        left -= reply.runs.len().min(left);
        print_runs(&reply.runs, output)?;
    }
    Ok(())
}

/// Prints runs.
///
/// # Errors
/// If stdout does not take them.
pub(crate) fn print_runs(runs: &[v1::Run], output: &mut Output) -> Result<(), CommandError> {
    if output.format == Format::Json {
        for run in runs {
            output.json(&data(run))?;
        }
        return Ok(());
    }
    let rows: Vec<[String; 7]> = runs.iter().map(row).collect();
    let headings = [
        ("RUN", Align::Right),
        ("STARTED", Align::Left),
        ("TOOK", Align::Right),
        ("JOB", Align::Left),
        ("STATE", Align::Left),
        ("SENT", Align::Right),
        ("FILES", Align::Left),
    ];
    Ok(output.table(headings, &rows)?)
}

fn counts(run: &v1::Run) -> RunCounts {
    run.counts.map(RunCounts::from).unwrap_or_default()
}

fn data(run: &v1::Run) -> RunData<'_> {
    RunData {
        run: run.run,
        job: &run.job,
        kind: &run.kind,
        cause: &run.cause,
        state: &run.state,
        started_at: timestamp(run.started_at),
        finished_at: run.finished_at.map(timestamp),
        counts: counts(run),
        message: (!run.message.is_empty()).then_some(&run.message),
    }
}

fn row(run: &v1::Run) -> [String; 7] {
    let counts = counts(run);
    let mut files: Vec<String> = [
        (counts.created, "created"),
        (counts.updated, "updated"),
        (counts.renamed, "renamed"),
        (counts.deleted, "deleted"),
        (counts.conflicts, "conflicts"),
        (counts.problems, "problems"),
        (counts.failed, "failed"),
    ]
    .into_iter()
    .filter(|(count, _what)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    if files.is_empty() {
        files.push("nothing to do".to_owned());
    }
    if !run.message.is_empty() {
        files.push(knarr_core::path::printable(run.message.as_bytes()).to_string());
    }
    let started_at = timestamp(run.started_at);
    [
        run.run.to_string(),
        shown_time(started_at),
        run.finished_at.map_or_else(
            || "-".to_owned(),
            |end| shown_duration(timestamp(end).since(started_at)),
        ),
        knarr_core::path::printable(run.job.as_bytes()).to_string(),
        run.state.clone(),
        ByteSize(counts.moved_bytes).to_string(),
        files.join(", "),
    ]
}

/// An age before `now`, or a date in the machine's zone.
pub(crate) fn time(text: Option<&str>, now: Timestamp) -> Result<Option<Timestamp>, CommandError> {
    let Some(text) = text else {
        return Ok(None);
    };
    if let Ok(age) = Span::parse(text) {
        return Ok(Some(now.before(age.0)));
    }
    let instant = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let date: jiff::civil::DateTime = text.parse().ok()?;
        let zoned = date.to_zoned(jiff::tz::TimeZone::system()).ok()?;
        Some(zoned.timestamp())
    });
    let nanoseconds = instant.and_then(|instant| i64::try_from(instant.as_nanosecond()).ok());
    nanoseconds
        .map(|nanoseconds| Some(Timestamp::from_nanoseconds(nanoseconds)))
        .ok_or_else(|| {
            CommandError::usage(format!("`{text}` is neither an age nor a date"))
                .hint("write 90m, 2d, 2026-11-21, 2026-11-21T10:00 or 2026-11-21T10:00:00Z")
        })
}
