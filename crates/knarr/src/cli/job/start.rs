//! `job run`, `job cancel` and `job retry`.

use std::collections::BTreeMap;

use knarr_core::Clock as _;
use knarr_core::RelPath;
use knarr_core::run::RunState;
use knarr_engine::pickup::{Cause, PickupJob, Preview, Verdict};
use knarr_node::client::Client;
use knarr_node::{Unreadable, query, v1};
use knarr_store::Store;
use serde::Serialize;

use crate::cli::backend::{Backend, Fresh, Session, told as node_told};
use crate::cli::context::Context;
use crate::cli::desk;
use crate::cli::job::{RunJob, pickup_job};
use crate::cli::oneshot::{Watching, environment, outcome, tell, told};
use crate::cli::stream;
use crate::cli::telling::{Teller, Telling};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Format, Output};

pub(super) fn run_now(arguments: &RunJob, context: &Context, output: &mut Output) -> CommandResult {
    let job = desk::job(context, &arguments.job)?;
    if job.triggers == ["watches"] {
        return Err(
            CommandError::usage(format!("`{}` watches, it does not run once", job.name))
                .hint("`knarr run` does its work; `knarr copy` does the same once, now"),
        );
    }
    let given = arguments.given()?;
    let session = Session::open(context, Fresh::Make)?;
    let result = session.runtime.block_on(async {
        match &session.backend {
            Backend::Node(client) if arguments.dry_run => {
                preview_of_node(client, &job.name, given, output).await
            }
            Backend::Node(client) => run_of_node(client, &job.name, given, context, output).await,
            Backend::State(store) => run_here(arguments, &given, store, context, output).await,
        }
    });
    session
        .runtime
        .shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// Has the node run it, and shows what happens.
async fn run_of_node(
    client: &Client,
    job: &str,
    parameters: BTreeMap<String, String>,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let request = v1::RunJobRequest {
        job: job.to_owned(),
        parameters: parameters.into_iter().collect(),
    };
    let streaming = client.jobs().run(request).await.map_err(node_told)?;
    let cancel = async || {
        let request = v1::JobName {
            job: job.to_owned(),
        };
        // That it had ended already is as good.
        let _ended: Result<_, tonic::Status> = client.jobs().cancel(request).await;
    };
    stream::show(
        streaming.into_inner(),
        stream::Stop::Asks(cancel),
        context,
        output,
    )
    .await
}

/// Runs it in this process.
async fn run_here(
    arguments: &RunJob,
    given: &BTreeMap<String, String>,
    store: &Store,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let desk = desk::own(context, store.clone()).await?;
    let host = desk.host();
    let job = host.config().jobs.get(&arguments.job).cloned();
    let job = job.ok_or_else(|| {
        CommandError::usage(format!("there is no job `{}`", arguments.job))
            .hint("`knarr job show` says what is wrong with it")
    })?;
    let endpoints: Vec<&str> = crate::cli::host::endpoints_of(&job).collect();
    let paused = store.read(|reader| reader.paused_endpoints())?;
    let of_job =
        |paused: &&knarr_store::pauses::PausedEndpoint| endpoints.contains(&paused.name.as_str());
    if let Some(paused) = paused.iter().find(of_job).filter(|_| !arguments.dry_run) {
        return Err(
            CommandError::usage(format!("`{}` waits: {paused}", job.name))
                .hint(format!("`knarr endpoint resume {}` ends that", paused.name)),
        );
    }
    let pickup = pickup_job(job, host.opener()).await?;
    if let Err(error) = pickup.values(given) {
        return Err(CommandError::usage(knarr_engine::chain(&error)));
    }
    let watching = if arguments.dry_run {
        Watching::silent()
    } else {
        Watching::start(context)
    };
    let mut environment = environment(context, host.opener(), &watching).await?;
    if arguments.dry_run {
        return preview(&pickup, given, &environment, output).await;
    }
    let began = context.clock.now();
    let telling = Telling::prepare(context, host.config(), store, Teller::OneRun).await?;
    environment.announcer = telling.announcer();
    let delivering = telling.start();
    let running = pickup.run_telling(&environment, Cause::Manual, given, drop);
    let ended = running.await;
    watching.finish();
    delivering.end().await;
    let ended = ended.map_err(told)?;
    tell(&ended.report, began, context, output)?;
    match ended.message {
        Some(message) if ended.report.state == RunState::Skipped => {
            tracing::warn!("skipped: {message}");
        }
        // Of what it left to the next run.
        Some(message) if ended.report.state == RunState::Done => tracing::warn!("{message}"),
        Some(message) => tracing::error!("{message}"),
        None => {}
    }
    Ok(outcome(&ended.report))
}

/// What a run would do with a file, as data.
#[derive(Serialize)]
struct Previewed<'a> {
    path: &'a RelPath,
    size: u64,
    verdict: &'static str,
    reason: Option<&'a str>,
}

fn print_file(
    path: &RelPath,
    size: u64,
    verdict: &'static str,
    reason: Option<&str>,
    output: &mut Output,
) -> std::io::Result<()> {
    if output.format == Format::Json {
        return output.json(&Previewed {
            path,
            size,
            verdict,
            reason,
        });
    }
    let why = reason
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    output.line(format!("{verdict:<7}{path}{why}"))
}

fn print_trouble(message: &str, output: &mut Output) -> std::io::Result<()> {
    if output.format == Format::Json {
        return output.json(&serde_json::json!({ "verdict": "unknown", "reason": message }));
    }
    output.line(format!("?      {message}"))
}

fn print_not_now(reason: &str, output: &mut Output) -> std::io::Result<()> {
    if output.format == Format::Json {
        return output.json(&serde_json::json!({ "verdict": "not_now", "reason": reason }));
    }
    output.line(format!("no run now: {reason}"))
}

async fn preview_of_node(
    client: &Client,
    job: &str,
    parameters: BTreeMap<String, String>,
    output: &mut Output,
) -> CommandResult {
    use v1::preview::Verdict as Told;
    let request = v1::RunJobRequest {
        job: job.to_owned(),
        parameters: parameters.into_iter().collect(),
    };
    let streaming = client.jobs().dry_run(request).await.map_err(node_told)?;
    let mut streaming = streaming.into_inner();
    let mut outcome = Outcome::Done;
    while let Some(preview) = streaming.message().await.map_err(node_told)? {
        let verdict = match preview.verdict() {
            Told::Take => "take",
            Told::Finish => "finish",
            Told::Leave => "leave",
            Told::NotNow => {
                print_not_now(&preview.reason, output)?;
                continue;
            }
            Told::Unknown | Told::Unspecified => {
                outcome = Outcome::SomeFailed;
                print_trouble(&preview.reason, output)?;
                continue;
            }
        };
        let path = RelPath::new(preview.path.as_slice()).map_err(|_not_one| Unreadable("path"))?;
        let reason = (!preview.reason.is_empty()).then_some(preview.reason.as_str());
        print_file(&path, preview.size_bytes, verdict, reason, output)?;
    }
    Ok(outcome)
}

async fn preview(
    pickup: &PickupJob,
    given: &BTreeMap<String, String>,
    environment: &knarr_engine::oneshot::Environment,
    output: &mut Output,
) -> CommandResult {
    let mut printed = Ok(());
    let mut outcome = Outcome::Done;
    let told_all = pickup.preview_given(environment, given, |preview| {
        if printed.is_err() {
            return;
        }
        printed = match preview {
            Preview::File(entry, verdict) => {
                let (name, reason) = match &verdict {
                    Verdict::Take => ("take", None),
                    Verdict::Finish => ("finish", Some("it was delivered before")),
                    Verdict::Leave(reason) => ("leave", Some(reason.as_str())),
                };
                print_file(&entry.path, entry.size, name, reason, output)
            }
            Preview::NotNow(reason) => print_not_now(reason, output),
            Preview::Trouble(message) => {
                outcome = Outcome::SomeFailed;
                print_trouble(message, output)
            }
        };
    });
    told_all.await.map_err(told)?;
    printed?;
    Ok(outcome)
}

pub(super) fn cancel(job: &str, context: &Context, output: &mut Output) -> CommandResult {
    let session = Session::open(context, Fresh::Refuse)?;
    let client = session.node()?;
    let request = v1::JobName {
        job: job.to_owned(),
    };
    let answer = session.runtime.block_on(client.jobs().cancel(request));
    let changed = answer.map_err(node_told)?.into_inner().changed;
    if output.format == Format::Json {
        output.json(&serde_json::json!({ "job": job, "changed": changed }))?;
    } else if changed {
        output.line(format!("the run of {job} ends"))?;
    } else {
        output.line(format!("no run of {job} is under way"))?;
    }
    Ok(Outcome::Done)
}

pub(super) fn retry(job: &str, context: &Context, output: &mut Output) -> CommandResult {
    let name = desk::job(context, job)?.name;
    let session = Session::open(context, Fresh::Refuse)?;
    let request = v1::RetryQueueRequest { job: name.clone() };
    let again = session.ask(
        async |client| Ok(client.queue().retry(request).await?.into_inner()),
        |store| query::retry_queue(store, &name),
    )?;
    if output.format == Format::Json {
        output.json(&serde_json::json!({ "job": job, "paths": again.count }))?;
    } else {
        output.line(format!(
            "{} of {job} will be tried again: at once if it watches, else by its next run",
            crate::cli::check::counted(usize::try_from(again.count).unwrap_or(usize::MAX), "path")
        ))?;
    }
    Ok(Outcome::Done)
}
