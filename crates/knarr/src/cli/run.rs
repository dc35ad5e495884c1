//! `run`: the node, which does all jobs until it is stopped; and the runs that it did.

mod listen;
mod runs;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use knarr_core::location::Location;
use knarr_engine::announce::Announcer;
use knarr_engine::node::{self, NodeJob};
use knarr_node::notify::{Notifier, Told};
use knarr_node::socket::{Socket, SocketError};
use knarr_node::{Desk, Node};
use knarr_remote::Remote;

use crate::cli::context::Context;
use crate::cli::host::NodeHost;
use crate::cli::job::{engine_job, scheduled_job};
use crate::cli::oneshot::{Watching, environment, told};
use crate::cli::sftp_server;
use crate::cli::telling::{self, Teller, Telling};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::{Config, Job};
use crate::environment::Environment;
use crate::location::{Asking, Opener};
use crate::metrics::{self, Measured};
use crate::output::Output;
use crate::secrets::key_source;
use crate::{logging, retention};

/// How long what is in flight may take to stop.
const STOPPING: Duration = Duration::from_secs(10);

/// Run all jobs of the configuration, until SIGTERM; or look at runs
///
/// Watches, runs by the clock, delivers, records, and repeats what failed. On SIGTERM or SIGINT what is in flight is
/// finished or kept for the next time, within 10 seconds. SIGHUP, or `knarr reload`, has the configuration
/// read again. All other commands work while it runs, and go through it.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  knarr run\n  knarr --config /etc/knarr/knarr.yaml run --job sensors\n  knarr run ls --job sensors\n  knarr run follow 17"
)]
pub(crate) struct RunArguments {
    #[command(subcommand)]
    verb: Option<runs::RunVerb>,
    /// Only this job; may be given more than once
    #[arg(long, value_name = "JOB")]
    job: Vec<String>,
}

impl RunArguments {
    /// Whether it is the node itself.
    pub(crate) const fn is_node(&self) -> bool {
        self.verb.is_none()
    }
}

pub(crate) fn run(
    arguments: &RunArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    if let Some(verb) = &arguments.verb {
        return runs::run(verb, context, output);
    }
    let config = context.required_config()?;
    let jobs = chosen(arguments, &config)?;
    logging::also_to(&config.log).map_err(|error| {
        let file = config.log.file.clone().unwrap_or_default();
        CommandError::failed(format!("cannot log to {}: {error}", file.display()))
            .hint("`node.log.file` of the configuration names another file")
    })?;
    let runtime = context.runtime()?;
    let result = runtime.block_on(be_the_node(arguments, jobs, config, context));
    // Blocking work that hangs, on a dead network file system for instance, must not hold us.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn be_the_node(
    arguments: &RunArguments,
    jobs: Vec<Job>,
    config: Config,
    context: &Context,
) -> CommandResult {
    let whole = config.clone();
    let opener = Opener::with_config(context, config, Asking::Nobody);
    let watching = Watching::lines();
    let mut environment = environment(context, &opener, &watching).await?;
    let socket = Socket::bind(environment.store.directory()).map_err(of_socket)?;
    let telling = Telling::prepare(context, &whole, &environment.store, Teller::Node).await?;
    environment.announcer = telling.announcer();
    let at_work = opened(jobs, &opener, &environment.announcer).await?;
    let listener = listen::bind(whole.http_listen).await?;
    let exchange = telling.exchange();
    let delivering = telling.start();
    serve_metrics(&whole, &environment).await?;
    let (control, commands) = node::control();
    // The SFTP server of the configuration, if there is one, listens before the jobs begin.
    let audit = sftp_server::audit::Audit::start(environment.store.clone());
    let audit = Arc::new(audit.map_err(CommandError::failed)?);
    let uploads = sftp_server::uploads::Uploads::new(&whole, control.clone(), Arc::clone(&audit));
    let uploads = Arc::new(uploads);
    let state = environment.store.directory();
    let serving = sftp_server::node::listen(
        &opener,
        state,
        Arc::<sftp_server::uploads::Uploads>::clone(&uploads),
    )
    .await?;
    let (serving, let_in) = serving.unzip();
    let host = NodeHost::new(context, opener, arguments.job.clone())
        .telling(environment.announcer.clone())
        .delivering(exchange)
        .letting_in(let_in)
        .waiting_for(uploads);
    let key = key_source(context, &environment.store);
    let (store, clock) = (environment.store.clone(), Arc::clone(&environment.clock));
    let mut desk = Desk::new(host, store, clock, Some(control.clone()));
    let recalled = desk.recall().await?;
    desk.serve_users().await;
    let node = Node::new(
        &desk,
        control,
        environment.clone(),
        key,
        env!("CARGO_PKG_VERSION"),
    );
    tracing::info!(
        jobs = at_work.len() + recalled.len(),
        state = %environment.store.directory().display(),
        "running"
    );
    let notifier = notifier();
    notifier.tell(Told::Ready);
    let cancel = environment.cancel.clone();
    let served = async {
        if let Some(listening) = serving {
            listening.run(cancel.clone()).await;
        }
    };
    let stopped = async {
        cancel.cancelled().await;
        tokio::time::sleep(STOPPING).await;
    };
    let stopping = async {
        cancel.cancelled().await;
        notifier.tell(Told::Stopping);
    };
    let answering = async {
        let served = knarr_node::serve(node.clone(), socket).await;
        if let Err(error) = served {
            tracing::error!(error = %knarr_engine::chain(&error), "the control socket does not work");
            cancel.cancel();
        }
    };
    let all = async {
        let (ended, ..) = tokio::join!(
            node::supervise(at_work, &environment, commands),
            desk.serve(recalled, cancel.clone()),
            stopping,
            answering,
            listen::reloads(&node, &notifier, &cancel),
            listen::alive(&node, &notifier, &cancel),
            listen::calls(&node, listener),
            served,
        );
        ended
    };
    tokio::select! {
        ended = all => ended.map_err(told)?,
        () = stopped => tracing::warn!("something did not stop in time; it is resumed next time"),
    }
    delivering.end().await;
    audit.end();
    tracing::info!("stopped");
    Ok(Outcome::Done)
}

/// Serves metrics, if they are wanted, and forgets what is old.
async fn serve_metrics(
    config: &Config,
    environment: &knarr_engine::oneshot::Environment,
) -> Result<(), CommandError> {
    let measured = Measured {
        store: environment.store.clone(),
        announcer: environment.announcer.clone(),
        clock: Arc::clone(&environment.clock),
    };
    let (store, cancel) = (environment.store.clone(), environment.cancel.clone());
    if let Some(settings) = config.metrics {
        let listening = metrics::listen(settings.listen).await?;
        tokio::spawn(listening.serve(measured, cancel.clone()));
    }
    tokio::spawn(retention::keep(store, config.retention, cancel));
    Ok(())
}

/// The jobs with their places opened.
async fn opened(
    jobs: Vec<Job>,
    opener: &Opener<'_>,
    announcer: &Announcer,
) -> Result<Vec<NodeJob>, CommandError> {
    let mut opened = Vec::new();
    for job in jobs {
        opened.push(open_job(job, opener, announcer).await?);
    }
    Ok(opened)
}

/// A job with its places opened; who tells of them knows their names.
///
/// # Errors
/// If a place cannot be opened.
pub(crate) async fn open_job(
    job: Job,
    opener: &Opener<'_>,
    announcer: &Announcer,
) -> Result<NodeJob, CommandError> {
    let (from, to) = (job.from.clone(), job.to.base.clone());
    let name = |written: &Location, remote: &Arc<dyn Remote>| {
        telling::name_endpoint(announcer, written, &remote.describe().endpoint);
    };
    Ok(if let Some(from) = from {
        let job = scheduled_job(job, opener).await?;
        name(&from, &job.pickup.source);
        name(&to, &job.pickup.job.destination);
        NodeJob::Runs(job)
    } else {
        let job = engine_job(job, opener).await?;
        name(&to, &job.destination);
        NodeJob::Watch(Arc::new(job))
    })
}

fn notifier() -> Notifier {
    let socket = Environment::variable("NOTIFY_SOCKET");
    // It is for another process of the service, if it names one.
    let watchdog = match Environment::variable("WATCHDOG_PID") {
        Some(process) if process != std::process::id().to_string() => None,
        _ => Environment::variable("WATCHDOG_USEC"),
    };
    let socket = socket.as_deref().map(std::ffi::OsStr::new);
    Notifier::new(socket, watchdog.as_deref())
}

fn of_socket(error: SocketError) -> CommandError {
    match error {
        SocketError::Io { .. } | SocketError::Lock(_) => CommandError::failed(error),
        error => CommandError::usage(error),
    }
}

fn chosen(arguments: &RunArguments, config: &Config) -> Result<Vec<Job>, CommandError> {
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
