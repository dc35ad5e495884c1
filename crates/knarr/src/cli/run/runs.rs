//! `run ls`, `show`, `follow`, `cancel` and `retry`: the runs that a node did and does.

use clap::{Args, Subcommand};
use knarr_core::run::RunState;
use knarr_node::{query, v1};

use crate::cli::backend::{Fresh, Session, told};
use crate::cli::context::Context;
use crate::cli::{history, stream};
use crate::command_error::{CommandResult, Outcome};
use crate::output::{Format, Output};

#[derive(Debug, Subcommand)]
pub(super) enum RunVerb {
    /// List runs, the newest first
    #[command(after_help = "Examples:\n  knarr run ls --job invoices --state failed")]
    Ls(List),
    /// Show one run
    #[command(after_help = "Examples:\n  knarr run show 17")]
    Show(OneRun),
    /// Show what happens in a run until it has ended; its end, if it has
    #[command(after_help = "Examples:\n  knarr run follow 17")]
    Follow(OneRun),
    /// End a run that is under way, in good order
    #[command(after_help = "Examples:\n  knarr run cancel 17")]
    Cancel(OneRun),
    /// Try what failed or is parked of the run's job again, in a new run
    #[command(after_help = "Examples:\n  knarr run retry 17")]
    Retry(OneRun),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only of this job, or of this command
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Only in this state: running, held, done, partial, failed, interrupted
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<RunState>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, Args)]
pub(super) struct OneRun {
    /// The number of the run
    #[arg(value_name = "RUN")]
    run: u64,
}

fn state(text: &str) -> Result<RunState, String> {
    RunState::from_name(text).ok_or_else(|| "it is not a state of a run".to_owned())
}

pub(super) fn run(verb: &RunVerb, context: &Context, output: &mut Output) -> CommandResult {
    let session = Session::open(context, Fresh::Refuse)?;
    match verb {
        RunVerb::Ls(list) => {
            let state = list.state.map(RunState::name).unwrap_or_default();
            let request = v1::ListRunsRequest {
                job: list.job.clone().unwrap_or_default(),
                state: state.to_owned(),
                ..v1::ListRunsRequest::default()
            };
            history::runs(&session, request, list.limit, output)?;
            Ok(Outcome::Done)
        }
        RunVerb::Show(OneRun { run }) => {
            let run = *run;
            let run = session.ask(
                async |client| {
                    Ok(client
                        .runs()
                        .show(v1::RunNumber { run })
                        .await?
                        .into_inner())
                },
                |store| query::run(store, run),
            )?;
            history::print_runs(&[run], output)?;
            Ok(Outcome::Done)
        }
        RunVerb::Follow(OneRun { run }) => follow(*run, &session, context, output),
        RunVerb::Cancel(OneRun { run }) => {
            let (run, client) = (*run, session.node()?);
            let answer = session
                .runtime
                .block_on(client.runs().cancel(v1::RunNumber { run }));
            let changed = answer.map_err(told)?.into_inner().changed;
            if output.format == Format::Json {
                output.json(&serde_json::json!({ "run": run, "changed": changed }))?;
            } else if changed {
                output.line(format!("run {run} ends"))?;
            } else {
                output.line(format!("run {run} is not under way"))?;
            }
            Ok(Outcome::Done)
        }
        RunVerb::Retry(OneRun { run }) => {
            let (run, client) = (*run, session.node()?);
            let answer = session
                .runtime
                .block_on(client.runs().retry(v1::RunNumber { run }));
            let retried = answer.map_err(told)?.into_inner();
            let begun = (retried.run > 0).then_some(retried.run);
            if output.format == Format::Json {
                output.json(&serde_json::json!({ "paths": retried.paths, "run": begun }))?;
            } else {
                let how = match begun {
                    Some(begun) => format!("in run {begun}"),
                    None => "at once: the job watches".to_owned(),
                };
                output.line(format!("{} paths are tried again, {how}", retried.paths))?;
            }
            Ok(Outcome::Done)
        }
    }
}

fn follow(run: u64, session: &Session, context: &Context, output: &mut Output) -> CommandResult {
    let client = session.node()?;
    session.runtime.block_on(async {
        let request = v1::RunNumber { run };
        let events = client.runs().follow(request).await.map_err(told)?;
        let stop: stream::Stop<fn() -> std::future::Ready<()>> = stream::Stop::Leaves;
        stream::show(events.into_inner(), stop, context, output).await
    })
}
