//! `run`: the node, which does all jobs of the configuration until it is stopped.

use std::time::Duration;

use clap::Args;
use knarr_engine::node;

use crate::cli::context::Context;
use crate::cli::job::{engine_job, scheduled_job};
use crate::cli::oneshot::{Watching, environment, told};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::{Config, Job};
use crate::location::{Asking, Opener};
use crate::output::Output;

/// How long what is in flight may take to stop.
const STOPPING: Duration = Duration::from_secs(10);

/// Run all jobs of the configuration, until SIGTERM
///
/// Watches, runs by the clock, delivers, records, and repeats what failed. On SIGTERM or SIGINT what is in flight is
/// finished or kept for the next time, within 10 seconds. `knarr status`, `queue`, `trace` and the
/// one-shot commands work while it runs.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  knarr run\n  knarr --config /etc/knarr/knarr.yaml run --job sensors"
)]
pub(crate) struct RunArguments {
    /// Only this job; may be given more than once
    #[arg(long, value_name = "JOB")]
    job: Vec<String>,
}

pub(crate) fn run(
    arguments: &RunArguments,
    context: &Context,
    _output: &mut Output,
) -> CommandResult {
    let config = context.required_config()?;
    let jobs = chosen(arguments, &config)?;
    let runtime = context.runtime()?;
    let result = runtime.block_on(async {
        let opener = Opener::with_config(context, config, Asking::Nobody);
        let (mut watching_jobs, mut scheduled) = (Vec::new(), Vec::new());
        for job in jobs {
            if job.from.is_some() {
                scheduled.push(scheduled_job(job, &opener).await?);
            } else {
                watching_jobs.push(engine_job(job, &opener).await?);
            }
        }
        let watching = Watching::lines();
        let environment = environment(context, &opener, &watching).await?;
        tracing::info!(
            jobs = watching_jobs.len() + scheduled.len(),
            state = %environment.store.directory().display(),
            "running"
        );
        let stopped = async {
            watching.cancel.cancelled().await;
            tokio::time::sleep(STOPPING).await;
        };
        tokio::select! {
            ended = node::run(watching_jobs, scheduled, &environment) => ended.map_err(told)?,
            () = stopped => tracing::warn!("something did not stop in time; it is resumed next time"),
        }
        tracing::info!("stopped");
        Ok(Outcome::Done)
    });
    // Blocking work that hangs, on a dead network file system for instance, must not hold us.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn chosen(arguments: &RunArguments, config: &Config) -> Result<Vec<Job>, CommandError> {
    if config.jobs.is_empty() {
        return Err(CommandError::usage("the configuration has no jobs")
            .hint("`knarr init` writes one with a job"));
    }
    let all: Vec<&str> = config.jobs.keys().map(String::as_str).collect();
    if let Some(unknown) = arguments
        .job
        .iter()
        .find(|job| !config.jobs.contains_key(*job))
    {
        return Err(CommandError::usage(format!("there is no job `{unknown}`"))
            .hint(crate::suggest::help(unknown, &all, "known jobs")));
    }
    Ok(config
        .jobs
        .values()
        .filter(|job| arguments.job.is_empty() || arguments.job.contains(&job.name))
        .cloned()
        .collect())
}
