//! `job`: the jobs of the node and its file, when they run, and running them now.

pub(crate) mod change;
mod show;
mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use knarr_core::Timestamp;
use knarr_core::plan::Brake;
use knarr_engine::Turns;
use knarr_engine::acknowledge::Acknowledge;
use knarr_engine::conditions::Conditions;
use knarr_engine::node::{Completeness, Looks, ScheduledJob, WatchJob};
use knarr_engine::pickup::PickupJob;
use knarr_remote::decorate::limit::Bandwidth;

use crate::cli::context::Context;
use crate::command_error::{CommandError, CommandResult};
use crate::config::Job;
use crate::location::{Opener, Role, limited};
use crate::output::Output;

/// How long a file has to be at rest where nothing better says that it is complete, unless `settle` does.
const USUAL_SETTLE: std::time::Duration = std::time::Duration::from_secs(5);

/// Show, run, pause, add and change jobs
///
/// Jobs stand in the configuration, or are added to a node while it runs. If no node runs with the state,
/// the verbs work on the state directory itself.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  knarr job ls\n  knarr job run invoices --dry-run\n  knarr job add partner.yaml"
)]
pub(crate) struct JobArguments {
    #[command(subcommand)]
    verb: JobVerb,
}

#[derive(Debug, Subcommand)]
enum JobVerb {
    /// List the jobs: what sets them off, when they run next, how the last run ended
    #[command(after_help = "Examples:\n  knarr job ls\n  knarr job ls --json")]
    Ls,
    /// Show one job, and the next five times at which it runs
    #[command(after_help = "Examples:\n  knarr job show invoices")]
    Show(OneJob),
    /// Say what is wrong with a document of jobs, and change nothing
    #[command(after_help = "Examples:\n  knarr job validate partner.yaml")]
    Validate(Document),
    /// Show what a document of jobs would change, and change nothing
    #[command(after_help = "Examples:\n  knarr job plan partner.yaml")]
    Plan(Document),
    /// Add the jobs, endpoints and users of a document
    ///
    /// The document has the sections `jobs`, `endpoints` and `sftp_server` (with `users` alone) of the configuration. It cannot name a
    /// command, a file with a key or an environment variable; secrets are { secret: NAME }, local paths
    /// begin with `/`. All of it is added, or nothing. It survives a restart of the node.
    #[command(after_help = "Examples:\n  knarr job add partner.yaml\n  generate | knarr job add -")]
    Add(Document),
    /// Replace jobs, endpoints and users that were added
    #[command(after_help = "Examples:\n  knarr job update partner.yaml")]
    Update(Document),
    /// Remove a job that was added; what it recorded stays
    #[command(after_help = "Examples:\n  knarr job rm invoices")]
    Rm(OneJob),
    /// Run a job now, and wait for its end
    ///
    /// The job takes what is new at its source, as it does when it is time. Two runs of a job exclude
    /// each other, also across processes.
    #[command(
        after_help = "Examples:\n  knarr job run invoices --dry-run\n  knarr job run invoices\n  knarr job run reports --set day=20261101"
    )]
    Run(RunJob),
    /// End the run of a job that is under way, in good order
    #[command(after_help = "Examples:\n  knarr job cancel invoices")]
    Cancel(OneJob),
    /// Try what failed or is parked of a job again
    #[command(after_help = "Examples:\n  knarr job retry invoices")]
    Retry(OneJob),
    /// Have a job begin no more by itself
    #[command(after_help = "Examples:\n  knarr job pause invoices")]
    Pause(OneJob),
    /// End a pause
    #[command(after_help = "Examples:\n  knarr job resume invoices")]
    Resume(OneJob),
}

#[derive(Debug, Args)]
struct OneJob {
    /// The job
    #[arg(value_name = "JOB")]
    job: String,
}

#[derive(Debug, Args)]
struct Document {
    /// The file, or - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Args)]
struct RunJob {
    /// The job
    #[arg(value_name = "JOB")]
    job: String,
    /// Only show what would be taken, and why every other file would not
    #[arg(long)]
    dry_run: bool,
    /// Give a parameter of the job a value for this run; more than once for several
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
}

impl RunJob {
    /// The values of parameters, by name.
    fn given(&self) -> Result<BTreeMap<String, String>, CommandError> {
        let mut given = BTreeMap::new();
        for text in &self.set {
            let Some((name, value)) = text.split_once('=') else {
                let message = format!("`--set {text}` gives no value");
                return Err(CommandError::usage(message).hint("write it as --set NAME=VALUE"));
            };
            if given.insert(name.to_owned(), value.to_owned()).is_some() {
                let message = format!("`{name}` is set twice");
                return Err(CommandError::usage(message));
            }
        }
        Ok(given)
    }
}

pub(crate) fn run(
    arguments: &JobArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    match &arguments.verb {
        JobVerb::Ls => show::list(context, output),
        JobVerb::Show(OneJob { job }) => show::show(job, context, output),
        JobVerb::Validate(Document { file }) => change::validate(file, context, output),
        JobVerb::Plan(Document { file }) => change::plan(file, context, output),
        JobVerb::Add(Document { file }) => change::put(change::Put::Add, file, context, output),
        JobVerb::Update(Document { file }) => {
            change::put(change::Put::Update, file, context, output)
        }
        JobVerb::Rm(OneJob { job }) => change::remove(job, context, output),
        JobVerb::Run(arguments) => start::run_now(arguments, context, output),
        JobVerb::Cancel(OneJob { job }) => start::cancel(job, context, output),
        JobVerb::Retry(OneJob { job }) => start::retry(job, context, output),
        JobVerb::Pause(OneJob { job }) => {
            change::pause(job, change::PauseVerb::Begin, context, output)
        }
        JobVerb::Resume(OneJob { job }) => {
            change::pause(job, change::PauseVerb::End, context, output)
        }
    }
}

/// What sets a job off, in words.
pub(crate) fn triggers(job: &Job) -> Vec<String> {
    if job.from.is_none() {
        return vec!["watches".to_owned()];
    }
    let by_the_clock = job.schedules.iter().map(|schedule| {
        let zone = schedule.time_zone().iana_name().unwrap_or("local time");
        format!("{} ({zone})", schedule.pattern())
    });
    let mut triggers: Vec<String> = by_the_clock.collect();
    triggers.extend(job.after_job.iter().map(|before| format!("after {before}")));
    let uploads = job.after_upload.iter();
    triggers.extend(uploads.map(|user| format!("uploads of {user}")));
    triggers.extend(
        job.http_token
            .iter()
            .map(|_token| "a call over HTTP".to_owned()),
    );
    if triggers.is_empty() {
        triggers.push("by hand".to_owned());
    }
    triggers
}

/// The next times at which a job runs by the clock, in order.
pub(crate) fn next_times(job: &Job, now: Timestamp, count: usize) -> Vec<Timestamp> {
    let mut times = Vec::new();
    let mut after = now;
    while times.len() < count {
        let next = |schedule: &knarr_core::schedule::Schedule| schedule.next_after(after);
        let Some(next) = job.schedules.iter().filter_map(next).min() else {
            break;
        };
        times.push(next);
        after = next;
    }
    times
}

/// A job with its places opened.
pub(crate) async fn scheduled_job(
    job: Job,
    opener: &Opener<'_>,
) -> Result<ScheduledJob, CommandError> {
    Ok(ScheduledJob {
        schedules: job.schedules.clone(),
        after_job: job.after_job.clone(),
        pickup: pickup_job(job, opener).await?,
    })
}

async fn pickup_job(job: Job, opener: &Opener<'_>) -> Result<PickupJob, CommandError> {
    let from = job
        .from
        .clone()
        .unwrap_or(knarr_core::location::Location::Local {
            path: String::new(),
        });
    let opened = opener.open(&from, Role::Source).await?;
    let source = match job.bandwidth_bytes_per_second {
        Some(rate) => limited(opened.remote, &Bandwidth::new(rate)),
        None => opened.remote,
    };
    let (mut job, job_turns) = engine_job_with_turns(job, opener).await?;
    let most = [opened.limits.transfers, job.transfers];
    job.transfers = most.into_iter().flatten().min();
    let mut turns: BTreeMap<_, _> = opened.turns.into_iter().collect();
    turns.extend(job_turns);
    // In the order of the names.
    job.turns = turns.into_values().collect();
    let job = Arc::new(job);
    Ok(PickupJob { job, source })
}

/// What the engine needs to know of a job.
pub(crate) async fn engine_job(job: Job, opener: &Opener<'_>) -> Result<WatchJob, CommandError> {
    let (mut job, turns) = engine_job_with_turns(job, opener).await?;
    job.turns = turns.into_iter().map(|(_, turns)| turns).collect();
    Ok(job)
}

/// The same, and the turns at its destination with the name of the endpoint.
async fn engine_job_with_turns(
    job: Job,
    opener: &Opener<'_>,
) -> Result<(WatchJob, Option<(String, Turns)>), CommandError> {
    let opened = opener.open(&job.to.base, Role::Destination).await?;
    let destination = match job.bandwidth_bytes_per_second {
        Some(rate) => limited(opened.remote, &Bandwidth::new(rate)),
        None => opened.remote,
    };
    let endpoints = crate::cli::host::endpoints_of(&job)
        .map(str::to_owned)
        .collect();
    let steps = opener.steps(job.steps, &job.key_files).await?;
    let acknowledge = match job.acknowledge {
        None => None,
        Some(settings) => {
            let at = match &settings.to {
                None => None,
                Some(place) => Some(opener.open(place, Role::Destination).await?.remote),
            };
            Some(Arc::new(Acknowledge {
                at,
                file: settings.file,
                content: settings.content,
                per: settings.per,
                time_zone: job.time_zone.clone(),
            }))
        }
    };
    let job = WatchJob {
        endpoints,
        name: job.name,
        looks: if job.from.is_some() {
            Looks::InRuns
        } else {
            Looks::Always
        },
        sources: job.watch,
        filter: Arc::new(job.filter),
        matching: job.matching.map(Arc::new),
        choice: job.choice,
        conditions: Arc::new(Conditions {
            space: Some(opened.space),
            ..job.conditions
        }),
        checks: Arc::new(job.checks),
        parameters: Arc::new(job.parameters),
        acknowledge,
        settle: job.settle.unwrap_or(USUAL_SETTLE),
        complete: if job.after_upload.is_empty() {
            Completeness::Rest
        } else {
            Completeness::Uploaded
        },
        steps,
        destination,
        template: job.to.template,
        time_zone: job.time_zone,
        publish: job.publish,
        manifest: job.manifest,
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
        turns: Vec::new(),
        priority: job.priority,
        duplicates: job.duplicates,
        brake: Brake::default(),
    };
    Ok((job, opened.turns))
}
