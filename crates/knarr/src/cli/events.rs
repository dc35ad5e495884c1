//! `events`: what happened, in order, from a cursor.

use clap::Args;
use knarr_node::v1::log_event::What;
use knarr_node::{events_page, record_of, timestamp, v1};

use crate::cli::backend::{Backend, Fresh, Session, told};
use crate::cli::context::Context;
use crate::cli::look::shown_time;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Format, Output};

/// Tell what happened, in order: runs and files
///
/// Each event has a cursor. Whoever gives the cursor of the last event that was dealt with gets what
/// follows it: nothing is left out and nothing comes twice, whatever was cut off when.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  knarr events --json\n  knarr events --from now --follow\n  knarr events --from \"$(cat cursor)\" --json"
)]
pub(crate) struct EventsArguments {
    /// Behind this cursor; `now` for what is to come; by default from the very first
    #[arg(long, value_name = "CURSOR", default_value = "")]
    from: String,
    /// Wait for what is to come
    #[arg(long)]
    follow: bool,
}

pub(crate) fn run(
    arguments: &EventsArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let session = Session::open(context, Fresh::Refuse)?;
    match &session.backend {
        Backend::Node(client) => session.runtime.block_on(async {
            let request = v1::EventsRequest {
                cursor: arguments.from.clone(),
                follow: arguments.follow,
            };
            let events = client.events().follow(request).await.map_err(told)?;
            let mut events = events.into_inner();
            while let Some(event) = events.message().await.map_err(told)? {
                print(event, output)?;
                // Somebody waits for each of them.
                output.flush()?;
            }
            Ok(Outcome::Done)
        }),
        Backend::State(store) => {
            if arguments.follow {
                session.node()?;
            }
            let mut cursor = arguments.from.clone();
            loop {
                let page = events_page(store, &cursor)?;
                let Some(last) = page.last() else {
                    return Ok(Outcome::Done);
                };
                let is_end = matches!(last.what, Some(What::CaughtUp(_)));
                cursor.clone_from(&last.cursor);
                for event in page {
                    print(event, output)?;
                }
                if is_end {
                    return Ok(Outcome::Done);
                }
            }
        }
    }
}

fn print(event: v1::LogEvent, output: &mut Output) -> Result<(), CommandError> {
    let cursor = event.cursor;
    let run_data = |run: &v1::Run| {
        serde_json::json!({
            "run": run.run,
            "job": run.job,
            "kind": run.kind,
            "cause": run.cause,
            "state": run.state,
            "started_at": timestamp(run.started_at),
            "finished_at": run.finished_at.map(timestamp),
            "message": (!run.message.is_empty()).then_some(&run.message),
        })
    };
    let (name, data, line) = match event.what {
        Some(What::Begun(run)) => {
            let line = format!(
                "{}  run {} of {} begins ({})",
                shown_time(timestamp(run.started_at)),
                run.run,
                run.job,
                run.cause
            );
            ("begun", run_data(&run), line)
        }
        Some(What::Ended(run)) => {
            let at = run.finished_at.unwrap_or(run.started_at);
            let line = format!(
                "{}  run {} of {} is {} {}",
                shown_time(timestamp(at)),
                run.run,
                run.job,
                run.state,
                knarr_core::path::printable(run.message.as_bytes())
            );
            ("ended", run_data(&run), line)
        }
        Some(What::File(record)) => {
            let chained = record_of(record)?;
            let record = &chained.record;
            let line = format!(
                "{}  {} {} (run {} of {})",
                shown_time(record.at),
                record.action.name(),
                record.path,
                record.run,
                record.job
            );
            let data = serde_json::to_value(&chained).map_err(CommandError::failed)?;
            ("file", data, line)
        }
        // Of interest for its cursor alone.
        Some(What::CaughtUp(_)) | None => ("caught_up", serde_json::Value::Null, String::new()),
    };
    if output.format == Format::Json {
        let event = serde_json::json!({ "cursor": cursor, "event": name, "data": data });
        output.json(&event)?;
    } else if !line.is_empty() {
        output.line(line.trim_end())?;
    }
    Ok(())
}
