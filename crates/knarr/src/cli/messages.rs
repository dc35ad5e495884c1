//! What is in the outbox, for `queue` and `status`: messages that wait, and targets that are down.

use knarr_core::Timestamp;
use knarr_node::{query, timestamp, v1};

use crate::cli::backend::Session;
use crate::cli::look::shown_time;
use crate::cli::trace::shown_duration;
use crate::command_error::CommandError;
use crate::output::{Align, Format, Output, Style};

/// Targets and what waits for them, as data.
pub(crate) fn data(targets: &[v1::Target]) -> Vec<serde_json::Value> {
    targets
        .iter()
        .map(|target| {
            serde_json::json!({
                "target": target.name,
                "up": target.down.is_none(),
                "waiting": target.waiting,
                "parked": target.parked,
                "oldest": target.oldest.map(timestamp),
                "last_error": target.last_error,
            })
        })
        .collect()
}

/// The same for a person.
pub(crate) fn print(targets: &[v1::Target], output: &mut Output) -> Result<(), CommandError> {
    for target in targets {
        let name = safe(&target.name);
        let mut line = format!("{name}   {} messages wait", target.waiting);
        if let Some(oldest) = target.oldest {
            line.push_str(&format!(
                ", the oldest since {}",
                shown_time(timestamp(oldest))
            ));
        }
        if target.parked > 0 {
            line.push_str(&format!(
                ", {} are parked: `knarr queue --parked` lists them",
                target.parked
            ));
        }
        output.line(line)?;
        if let Some(reason) = &target.down {
            let line = format!("{name}   down: {}", safe(reason));
            let line = output.paint(Style::Bad, &line);
            output.line(line)?;
        } else if let Some(error) = &target.last_error {
            let line = format!("{name}   failed last: {}", safe(error));
            let line = output.paint(Style::Warning, &line);
            output.line(line)?;
        }
    }
    Ok(())
}

/// Prints messages that are parked; about one job, or all.
///
/// # Errors
/// If they cannot be asked for, or stdout not be written.
pub(crate) fn print_parked(
    session: &Session,
    job: &str,
    now: Timestamp,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut request = v1::ParkedMessagesRequest {
        job: job.to_owned(),
        ..v1::ParkedMessagesRequest::default()
    };
    let mut rows = Vec::new();
    loop {
        let asked = request.clone();
        let reply = session.ask(
            async |client| Ok(client.queue().parked_messages(asked).await?.into_inner()),
            |store| query::parked_messages(store, &request),
        )?;
        for message in &reply.messages {
            if output.format == Format::Json {
                output.json(&serde_json::json!({
                    "target": message.target,
                    "message": message.kind,
                    "job": message.job,
                    "run": (message.run > 0).then_some(message.run),
                    "key": message.key,
                    "state": "parked",
                    "first_seen": timestamp(message.created_at),
                    "attempts": message.attempts,
                    "reason": message.reason,
                }))?;
                continue;
            }
            rows.push([
                safe(&message.target),
                message.kind.clone(),
                safe(&message.job),
                shown_duration(now.since(timestamp(message.created_at))),
                safe(&message.reason),
            ]);
        }
        if !rows.is_empty() {
            let headings = [
                ("TARGET", Align::Left),
                ("MESSAGE", Align::Left),
                ("JOB", Align::Left),
                ("SINCE", Align::Right),
                ("PARKED BECAUSE", Align::Left),
            ];
            output.table(headings, &std::mem::take(&mut rows))?;
        }
        if reply.next == 0 {
            return Ok(());
        }
        request.after = reply.next;
    }
}

fn safe(text: &str) -> String {
    knarr_core::path::printable(text.as_bytes()).to_string()
}
