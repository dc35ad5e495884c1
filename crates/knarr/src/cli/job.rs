//! `job`: the jobs of the configuration, when they run, and running them now.

use std::sync::Arc;

use clap::{Args, Subcommand};
use knarr_core::plan::Brake;
use knarr_core::run::RunState;
use knarr_core::{Clock as _, RelPath, Timestamp};
use knarr_engine::conditions::Conditions;
use knarr_engine::node::{Looks, ScheduledJob, WatchJob};
use knarr_engine::pickup::{Cause, PickupJob, Preview, Verdict};
use knarr_remote::decorate::limit::Bandwidth;
use knarr_store::Store;
use knarr_store::jobs::JobState;
use knarr_store::runs::{RunFilter, StoredRun};
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::look::shown_time;
use crate::cli::oneshot::{Watching, environment, outcome, tell, told};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::{Config, Job};
use crate::location::{Asking, Opener, Role, limited};
use crate::output::{Align, Format, Output, Style};

/// How long a file has to be at rest where nothing better says that it is complete, unless `settle` does.
const USUAL_SETTLE: std::time::Duration = std::time::Duration::from_secs(5);
/// How many of the next times are shown.
const NEXT_TIMES: usize = 5;

/// Show, run, pause and resume the jobs of the configuration
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr job ls\n  knarr job run invoices --dry-run")]
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
    /// Run a job now, and wait for its end
    ///
    /// The job takes what is new at its source, as it does when it is time. Two runs of a job exclude
    /// each other, also across processes.
    #[command(
        after_help = "Examples:\n  knarr job run invoices --dry-run\n  knarr job run invoices"
    )]
    Run(RunJob),
    /// Have a job's runs begin no more by themselves
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
struct RunJob {
    /// The job
    #[arg(value_name = "JOB")]
    job: String,
    /// Only show what would be taken, and why every other file would not
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(
    arguments: &JobArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let config = context.required_config()?;
    match &arguments.verb {
        JobVerb::Ls => list(&config, context, output),
        JobVerb::Show(OneJob { job }) => show(chosen(&config, job)?, context, output),
        JobVerb::Run(arguments) => run_now(arguments, config, context, output),
        JobVerb::Pause(OneJob { job }) => {
            let name = chosen(&config, job)?.name.clone();
            pause(name, Pause::Begin, context, output)
        }
        JobVerb::Resume(OneJob { job }) => {
            let name = chosen(&config, job)?.name.clone();
            pause(name, Pause::End, context, output)
        }
    }
}

fn chosen<'c>(config: &'c Config, name: &str) -> Result<&'c Job, CommandError> {
    config.jobs.get(name).ok_or_else(|| {
        let all: Vec<&str> = config.jobs.keys().map(String::as_str).collect();
        CommandError::usage(format!("there is no job `{name}`")).hint(crate::suggest::help(
            name,
            &all,
            "known jobs",
        ))
    })
}

/// A job as data.
#[derive(Serialize)]
struct Listed {
    job: String,
    source: Vec<String>,
    destination: String,
    triggers: Vec<String>,
    next: Vec<Timestamp>,
    paused_since: Option<Timestamp>,
    paused_by: Option<String>,
    last_run: Option<LastRun>,
}

#[derive(Serialize)]
struct LastRun {
    run: u64,
    state: knarr_core::run::RunState,
    started_at: Timestamp,
    message: Option<String>,
}

/// What the store knows, if there is one yet.
struct Known {
    states: Vec<JobState>,
    store: Option<Store>,
}

impl Known {
    fn read(context: &Context) -> Result<Self, CommandError> {
        let is_there = context.state()?.join("knarr.db").exists();
        let store = is_there.then(|| context.existing_store()).transpose()?;
        let states = match &store {
            Some(store) => store.read(|reader| reader.job_states())?,
            None => Vec::new(),
        };
        Ok(Self { states, store })
    }

    fn state(&self, job: &str) -> Option<&JobState> {
        self.states.iter().find(|state| state.name == job)
    }

    fn last_run(&self, job: &str) -> Result<Option<StoredRun>, CommandError> {
        let filter = RunFilter {
            job: Some(job.to_owned()),
            ..RunFilter::default()
        };
        let runs = match &self.store {
            Some(store) => store.read(|reader| reader.runs(&filter, 1))?,
            None => Vec::new(),
        };
        Ok(runs.into_iter().next())
    }

    fn listed(&self, job: &Job, now: Timestamp, times: usize) -> Result<Listed, CommandError> {
        let state = self.state(&job.name);
        let paused = state.and_then(|state| state.paused.clone());
        let (paused_since, paused_by) =
            paused.map_or((None, None), |(at, by)| (Some(at), Some(by)));
        let last_run = self.last_run(&job.name)?.map(|run| LastRun {
            run: run.id.0,
            state: run.state,
            started_at: run.started_at,
            message: run.message,
        });
        let source = match &job.from {
            Some(from) => vec![from.to_string()],
            None => job
                .watch
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
        };
        Ok(Listed {
            job: job.name.clone(),
            source,
            destination: job.to.written.clone(),
            triggers: triggers(job),
            next: next_times(job, now, times),
            paused_since,
            paused_by,
            last_run,
        })
    }
}

/// What sets a job off, in words.
fn triggers(job: &Job) -> Vec<String> {
    if job.from.is_none() {
        return vec!["watches".to_owned()];
    }
    let by_the_clock = job.schedules.iter().map(|schedule| {
        let zone = schedule.time_zone().iana_name().unwrap_or("local time");
        format!("{} ({zone})", schedule.pattern())
    });
    let mut triggers: Vec<String> = by_the_clock.collect();
    triggers.extend(job.after_job.iter().map(|before| format!("after {before}")));
    if triggers.is_empty() {
        triggers.push("by hand".to_owned());
    }
    triggers
}

/// The next times at which a job runs by the clock, in order.
fn next_times(job: &Job, now: Timestamp, count: usize) -> Vec<Timestamp> {
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

fn list(config: &Config, context: &Context, output: &mut Output) -> CommandResult {
    let (known, now) = (Known::read(context)?, context.clock.now());
    let mut rows = Vec::new();
    for job in config.jobs.values() {
        let listed = known.listed(job, now, 1)?;
        if output.format == Format::Json {
            output.json(&listed)?;
            continue;
        }
        let next = match (listed.paused_since, listed.next.first()) {
            (Some(since), _) => format!("paused since {}", shown_time(since)),
            (None, Some(next)) => shown_time(*next),
            (None, None) => "-".to_owned(),
        };
        let last = listed.last_run.map_or_else(
            || "never ran".to_owned(),
            |run| format!("{} {}", run.state.name(), shown_time(run.started_at)),
        );
        rows.push([listed.job, listed.triggers.join(", "), next, last]);
    }
    if output.format == Format::Text {
        if rows.is_empty() {
            return Err(CommandError::usage("the configuration has no jobs")
                .hint("`knarr init` writes one with a job"));
        }
        let headings = [
            ("JOB", Align::Left),
            ("SET OFF BY", Align::Left),
            ("NEXT", Align::Left),
            ("LAST RUN", Align::Left),
        ];
        output.table(headings, &rows)?;
    }
    Ok(Outcome::Done)
}

fn show(job: &Job, context: &Context, output: &mut Output) -> CommandResult {
    let listed = Known::read(context)?.listed(job, context.clock.now(), NEXT_TIMES)?;
    if output.format == Format::Json {
        output.json(&listed)?;
        return Ok(Outcome::Done);
    }
    let title = output.paint(Style::Bold, &listed.job);
    output.line(title)?;
    let mut facts = vec![
        ("from", listed.source.join(", ")),
        ("to", listed.destination),
        ("set off by", listed.triggers.join(", ")),
    ];
    facts.extend(
        job.schedules
            .iter()
            .map(|schedule| ("that is", schedule.describe())),
    );
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
            run.state.name(),
            shown_time(run.started_at),
            run.run
        );
        ("last run", text)
    }));
    for (name, text) in facts {
        output.line(format!("  {name:<12}{text}"))?;
    }
    for (number, time) in listed.next.iter().enumerate() {
        let name = if number == 0 { "runs at" } else { "" };
        let zone = job
            .schedules
            .first()
            .map(knarr_core::schedule::Schedule::time_zone);
        output.line(format!("  {name:<12}{}", in_zone(*time, zone)))?;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Begin,
    End,
}

fn pause(job: String, what: Pause, context: &Context, output: &mut Output) -> CommandResult {
    let state = context.state()?;
    let store = context.open_store(&state)?;
    let name = job.clone();
    let changed = match what {
        Pause::Begin => {
            let by = context.environment.user.clone().unwrap_or_default();
            store.transact(move |tx| tx.pause_job(&name, &by)).wait()?
        }
        Pause::End => store.transact(move |tx| tx.resume_job(&name)).wait()?,
    };
    let text = match (what, changed) {
        (Pause::Begin, true) => format!("{job} is paused: its runs begin no more by themselves"),
        (Pause::Begin, false) => format!("{job} was paused already"),
        (Pause::End, true) => format!("{job} is resumed; times that passed meanwhile are left out"),
        (Pause::End, false) => format!("{job} was not paused"),
    };
    if output.format == Format::Json {
        output.json(&serde_json::json!({ "job": job, "changed": changed }))?;
    } else {
        output.line(text)?;
    }
    Ok(Outcome::Done)
}

fn run_now(
    arguments: &RunJob,
    config: Config,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let job = chosen(&config, &arguments.job)?.clone();
    if job.from.is_none() {
        return Err(
            CommandError::usage(format!("`{}` watches, it does not run once", job.name))
                .hint("`knarr run` does its work; `knarr copy` does the same once, now"),
        );
    }
    let runtime = context.runtime()?;
    let result = runtime.block_on(async {
        let asking = if arguments.dry_run || context.environment.stderr_is_terminal {
            Asking::Person
        } else {
            Asking::Nobody
        };
        let opener = Opener::with_config(context, config, asking);
        let pickup = pickup_job(job, &opener).await?;
        let watching = if arguments.dry_run {
            Watching::silent()
        } else {
            Watching::start(context)
        };
        let environment = environment(context, &opener, &watching).await?;
        if arguments.dry_run {
            return preview(&pickup, &environment, output).await;
        }
        let began = context.clock.now();
        let ended = pickup.run(&environment, Cause::Manual).await;
        watching.finish();
        let ended = ended.map_err(told)?;
        tell(&ended.report, began, context, output)?;
        match ended.message {
            Some(message) if ended.report.state == RunState::Skipped => {
                tracing::warn!("skipped: {message}");
            }
            Some(message) => tracing::error!("{message}"),
            None => {}
        }
        Ok(outcome(&ended.report))
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// What a run would do with a file, as data.
#[derive(Serialize)]
struct Previewed<'a> {
    path: &'a RelPath,
    size: u64,
    verdict: &'static str,
    reason: Option<&'a str>,
}

async fn preview(
    pickup: &PickupJob,
    environment: &knarr_engine::oneshot::Environment,
    output: &mut Output,
) -> CommandResult {
    let mut printed = Ok(());
    let mut outcome = Outcome::Done;
    let told_all = pickup.preview(environment, |preview| {
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
                if output.format == Format::Json {
                    output.json(&Previewed {
                        path: &entry.path,
                        size: entry.size,
                        verdict: name,
                        reason,
                    })
                } else {
                    let why = reason
                        .map(|reason| format!(": {reason}"))
                        .unwrap_or_default();
                    output.line(format!("{name:<7}{}{why}", entry.path))
                }
            }
            Preview::NotNow(reason) => {
                if output.format == Format::Json {
                    output.json(&serde_json::json!({ "verdict": "not_now", "reason": reason }))
                } else {
                    output.line(format!("no run now: {reason}"))
                }
            }
            Preview::Trouble(message) => {
                outcome = Outcome::SomeFailed;
                if output.format == Format::Json {
                    output.json(&serde_json::json!({ "verdict": "unknown", "reason": message }))
                } else {
                    output.line(format!("?      {message}"))
                }
            }
        };
    });
    told_all.await.map_err(told)?;
    printed?;
    Ok(outcome)
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
    let mut job = engine_job(job, opener).await?;
    let most = [opened.limits.transfers, job.transfers];
    job.transfers = most.into_iter().flatten().min();
    let job = Arc::new(job);
    Ok(PickupJob { job, source })
}

/// What the engine needs to know of a job.
pub(crate) async fn engine_job(job: Job, opener: &Opener<'_>) -> Result<WatchJob, CommandError> {
    let opened = opener.open(&job.to.base, Role::Destination).await?;
    let destination = match job.bandwidth_bytes_per_second {
        Some(rate) => limited(opened.remote, &Bandwidth::new(rate)),
        None => opened.remote,
    };
    let steps = opener.steps(job.steps, &job.key_files).await?;
    Ok(WatchJob {
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
        settle: job.settle.unwrap_or(USUAL_SETTLE),
        steps,
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
