//! Shows the events of a run that a node streams, as if it ran here.

use knarr_core::record::Action;
use knarr_core::run::RunState;
use knarr_core::{Clock as _, RelPath};
use knarr_engine::observer::{Event, Trouble};
use knarr_engine::oneshot::Report;
use knarr_node::v1;
use knarr_node::v1::run_event::What;
use tonic::Streaming;

use crate::cli::backend::told;
use crate::cli::context::Context;
use crate::cli::oneshot::{Watching, outcome, tell};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Format, Output};

/// What an interrupt does.
pub(crate) enum Stop<F> {
    /// It has the run end, whose end is waited for.
    Asks(F),
    /// It ends the showing; the run goes on.
    Leaves,
}

/// Shows a run until its end.
///
/// # Errors
/// If the node goes.
pub(crate) async fn show<F: AsyncFn()>(
    mut events: Streaming<v1::RunEvent>,
    stop: Stop<F>,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let watching = Watching::start(context);
    let observer = watching.observer();
    let began = context.clock.now();
    let mut asked = false;
    let end = loop {
        let event = tokio::select! {
            event = events.message() => event.map_err(told)?,
            () = watching.cancel.cancelled(), if !asked => {
                asked = true;
                match &stop {
                    Stop::Asks(cancel) => cancel().await,
                    Stop::Leaves => return Ok(Outcome::Done),
                }
                continue;
            }
        };
        let Some(event) = event else {
            watching.finish();
            return Err(CommandError::failed(
                "the node does not say how the run ended",
            ));
        };
        match event.what {
            Some(What::Ended(end)) => break (event.run, end),
            Some(what) => hand_on(&what, observer.as_ref()),
            None => {}
        }
    };
    watching.finish();
    let (run, end) = end;
    if let Ok(report) = serde_json::from_str::<Report>(&end.report) {
        tell(&report, began, context, output)?;
        if !end.message.is_empty() {
            tracing::error!("{}", end.message);
        }
        return Ok(outcome(&report));
    }
    if output.format == Format::Json {
        let message = (!end.message.is_empty()).then_some(&end.message);
        output.json(&serde_json::json!({ "run": run, "state": end.state, "message": message }))?;
    }
    match RunState::from_name(&end.state) {
        Some(RunState::Done) => Ok(Outcome::Done),
        Some(RunState::Held) => Ok(Outcome::Held),
        Some(_) => {
            if !end.message.is_empty() {
                tracing::error!("{}", end.message);
            }
            Ok(Outcome::SomeFailed)
        }
        None => Err(CommandError::failed(end.message)),
    }
}

fn hand_on(what: &What, observer: &dyn knarr_engine::Observer) {
    let path = |bytes: &[u8]| RelPath::new(bytes).ok();
    match what {
        What::Planned(planned) => observer.event(&Event::Planned {
            items: planned.items,
            bytes: planned.bytes,
        }),
        What::Started(started) => {
            if let Some(path) = path(&started.path) {
                let size = started.size_bytes;
                observer.event(&Event::Started { path: &path, size });
            }
        }
        What::Progress(progress) => observer.event(&Event::Progress {
            path: path(&progress.path).as_ref(),
            bytes: progress.bytes,
        }),
        What::Retry(retry) => {
            if let Some(path) = path(&retry.path) {
                let error = retry.error.as_str();
                observer.event(&Event::Retry { path: &path, error });
            }
        }
        What::Finished(finished) => {
            if let (Some(path), Some(action)) =
                (path(&finished.path), Action::from_name(&finished.action))
            {
                observer.event(&Event::Finished {
                    path: &path,
                    action,
                    bytes: finished.bytes,
                });
            }
        }
        What::Trouble(trouble) => observer.event(&Event::Trouble {
            path: path(&trouble.path).as_ref(),
            kind: match trouble.kind.as_str() {
                "conflict" => Trouble::Conflict,
                "problem" => Trouble::Problem,
                "error" => Trouble::Error,
                _ => Trouble::Notice,
            },
            message: &trouble.message,
        }),
        What::Missed(count) => tracing::warn!(count, "events were too quick to be shown"),
        What::Begun(_) | What::Ended(_) => {}
    }
}
