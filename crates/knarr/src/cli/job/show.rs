//! `job ls` and `job show`.

use knarr_core::Timestamp;
use knarr_node::{timestamp, v1};
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::desk;
use crate::cli::look::shown_time;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Align, Format, Output, Style};

/// A job as data.
#[derive(Serialize)]
struct Listed<'a> {
    job: &'a str,
    origin: &'static str,
    source: &'a [String],
    destination: &'a str,
    triggers: &'a [String],
    next: Vec<Timestamp>,
    paused_since: Option<Timestamp>,
    paused_by: Option<&'a str>,
    last_run: Option<LastRun<'a>>,
    problem: Option<&'a str>,
    waits: Option<&'a str>,
    added_at: Option<Timestamp>,
    added_by: Option<&'a str>,
    updated_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct LastRun<'a> {
    run: u64,
    state: &'a str,
    started_at: Timestamp,
    message: Option<&'a str>,
}

fn given(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn listed(job: &v1::Job) -> Listed<'_> {
    let is_added = job.origin() == v1::job::Origin::Added;
    Listed {
        job: &job.name,
        origin: if is_added { "added" } else { "file" },
        source: &job.sources,
        destination: &job.destination,
        triggers: &job.triggers,
        next: job.next.iter().copied().map(timestamp).collect(),
        paused_since: job.paused_since.map(timestamp),
        paused_by: given(&job.paused_by),
        last_run: job.last_run.as_ref().map(|run| LastRun {
            run: run.run,
            state: &run.state,
            started_at: timestamp(run.started_at),
            message: given(&run.message),
        }),
        problem: given(&job.problem),
        waits: given(&job.waits),
        added_at: job.added_at.map(timestamp),
        added_by: given(&job.added_by),
        updated_at: job.updated_at.map(timestamp),
        definition: given(&job.definition).and_then(|text| serde_json::from_str(text).ok()),
    }
}

pub(super) fn list(context: &Context, output: &mut Output) -> CommandResult {
    let jobs = desk::jobs(context, None)?;
    let mut rows = Vec::new();
    for job in &jobs {
        let listed = listed(job);
        if output.format == Format::Json {
            output.json(&listed)?;
            continue;
        }
        let next = match (listed.problem, listed.paused_since, listed.next.first()) {
            (Some(_), _, _) => "not at work".to_owned(),
            (None, _, _) if listed.waits.is_some() => "waits for an endpoint".to_owned(),
            (None, Some(since), _) => format!("paused since {}", shown_time(since)),
            (None, None, Some(next)) => shown_time(*next),
            (None, None, None) => "-".to_owned(),
        };
        let last = listed.last_run.map_or_else(
            || "never ran".to_owned(),
            |run| format!("{} {}", run.state, shown_time(run.started_at)),
        );
        rows.push([
            listed.job.to_owned(),
            listed.origin.to_owned(),
            listed.triggers.join(", "),
            next,
            last,
        ]);
    }
    if output.format == Format::Text {
        if rows.is_empty() {
            return Err(CommandError::usage("there are no jobs")
                .hint("`knarr init` writes a configuration with one; `knarr job add` adds one"));
        }
        let headings = [
            ("JOB", Align::Left),
            ("FROM", Align::Left),
            ("SET OFF BY", Align::Left),
            ("NEXT", Align::Left),
            ("LAST RUN", Align::Left),
        ];
        output.table(headings, &rows)?;
    }
    Ok(Outcome::Done)
}

pub(super) fn show(name: &str, context: &Context, output: &mut Output) -> CommandResult {
    let job = desk::job(context, name)?;
    let listed = listed(&job);
    if output.format == Format::Json {
        output.json(&listed)?;
        return Ok(Outcome::Done);
    }
    let title = output.paint(Style::Bold, listed.job);
    output.line(title)?;
    let mut facts = vec![
        ("from", listed.source.join(", ")),
        ("to", listed.destination.to_owned()),
        ("set off by", listed.triggers.join(", ")),
    ];
    facts.extend(job.schedules.iter().map(|words| ("that is", words.clone())));
    facts.extend(listed.added_at.map(|at| {
        let by = listed.added_by.unwrap_or_default();
        ("added", format!("{}, by {by}", shown_time(at)))
    }));
    facts.extend(
        listed
            .problem
            .map(|problem| ("not at work", problem.to_owned())),
    );
    facts.extend(listed.waits.map(|waits| ("waits", waits.to_owned())));
    facts.extend(listed.paused_since.map(|since| {
        let by = listed.paused_by.unwrap_or_default();
        ("paused", format!("since {}, by {by}", shown_time(since)))
    }));
    facts.extend(listed.last_run.map(|run| {
        let why = run
            .message
            .map(|message| format!(": {message}"))
            .unwrap_or_default();
        let text = format!(
            "{} at {} (run {}){why}",
            run.state,
            shown_time(run.started_at),
            run.run
        );
        ("last run", text)
    }));
    for (name, text) in facts {
        output.line(format!("  {name:<12}{text}"))?;
    }
    let zone = jiff::tz::TimeZone::get(&job.time_zone).ok();
    for (number, time) in listed.next.iter().enumerate() {
        let name = if number == 0 { "runs at" } else { "" };
        output.line(format!("  {name:<12}{}", in_zone(*time, zone.as_ref())))?;
    }
    Ok(Outcome::Done)
}

/// A time on the clock of a zone.
fn in_zone(time: Timestamp, zone: Option<&jiff::tz::TimeZone>) -> String {
    let exact = jiff::Timestamp::from_nanosecond(i128::from(time.nanoseconds()));
    match (exact, zone) {
        (Ok(exact), Some(zone)) => {
            let zoned = exact.to_zoned(zone.clone());
            zoned.strftime("%a %F %T %Z").to_string()
        }
        _ => shown_time(time),
    }
}
