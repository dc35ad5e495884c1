//! `run`: the node, which does all jobs of the configuration until it is stopped.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use knarr_core::plan::Brake;
use knarr_engine::node::{self, WatchJob};
use knarr_remote::decorate::limit::Bandwidth;

use crate::cli::context::Context;
use crate::cli::oneshot::{Watching, environment, told};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::{Config, Job};
use crate::location::{Asking, Opener, Role, limited};
use crate::output::Output;

/// How long a file has to be at rest where nothing better says that it is complete, unless `settle` does.
const USUAL_SETTLE: Duration = Duration::from_secs(5);
/// How long what is in flight may take to stop.
const STOPPING: Duration = Duration::from_secs(10);

/// Run all jobs of the configuration, until SIGTERM
///
/// Watches, delivers, records, and repeats what failed. On SIGTERM or SIGINT what is in flight is
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
        let mut watch_jobs = Vec::with_capacity(jobs.len());
        for job in jobs {
            watch_jobs.push(watch_job(job, &opener).await?);
        }
        let watching = Watching::lines();
        let environment = environment(context, &opener, &watching).await?;
        tracing::info!(
            jobs = watch_jobs.len(),
            state = %environment.store.directory().display(),
            "running"
        );
        let stopped = async {
            watching.cancel.cancelled().await;
            tokio::time::sleep(STOPPING).await;
        };
        tokio::select! {
            ended = node::run(watch_jobs, &environment) => ended.map_err(told)?,
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

async fn watch_job(job: Job, opener: &Opener<'_>) -> Result<WatchJob, CommandError> {
    let opened = opener.open(&job.to.base, Role::Destination).await?;
    let destination = match job.bandwidth_bytes_per_second {
        Some(rate) => limited(opened.remote, &Bandwidth::new(rate)),
        None => opened.remote,
    };
    Ok(WatchJob {
        name: job.name,
        sources: job.watch,
        filter: Arc::new(job.filter),
        settle: job.settle.unwrap_or(USUAL_SETTLE),
        steps: job.steps,
        destination,
        template: job.to.template,
        time_zone: job.time_zone,
        after: job.after,
        deletes: job.deletes,
        if_exists: job.if_exists,
        symlinks: job.symlinks,
        verify: job.verify.or(opened.verify).unwrap_or_default(),
        retry: job.retry,
        rescan: job.rescan,
        poll: job.poll,
        verify_destination: job.verify_destination,
        transfers: opened.limits.transfers,
        brake: Brake::default(),
    })
}
