//! `copy`, `move`, `mirror`, `sync`: once, now.

use std::io::Write as _;
use std::sync::Arc;

use knarr_core::job::After;
use knarr_core::plan::{Brake, Mode, Policy};
use knarr_core::run::RunState;
use knarr_core::units::ByteSize;
use knarr_core::{Clock as _, Timestamp};
use knarr_engine::oneshot::{Environment, OneShot, Report};
use knarr_engine::plan_file::describe;
use knarr_engine::{EngineError, Planned};
use knarr_remote::decorate::limit::Bandwidth;
use tokio_util::sync::CancellationToken;

use crate::cli::context::Context;
use crate::cli::stop;
use crate::cli::trace::shown_duration;
use crate::cli::transfer::{
    Compare, CopyArguments, MirrorArguments, MoveArguments, Places, SyncArguments,
    TransferArguments, TransferOptions, Verb,
};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::Colour;
use crate::location::{Opened, Opener, Role, limited};
use crate::output::{Format, Output};
use crate::progress::{Bars, Lines};
use crate::single_file::SingleFile;

/// What to do, between which places.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) source: knarr_core::location::Location,
    pub(crate) destination: knarr_core::location::Location,
    pub(crate) options: TransferOptions,
    /// Whether what the brake would hold is approved beforehand.
    pub(crate) approval: Approval,
}

/// Whether large removals were approved on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Approval {
    Given,
    NotGiven,
}

pub(crate) fn copy(
    arguments: &CopyArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let (places, how) = (&arguments.places, &arguments.how);
    let request = Request::new(Verb::Copy, places, how, Approval::NotGiven)?;
    carry_out(&request, how.dry_run, context, output)
}

pub(crate) fn move_(
    arguments: &MoveArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let (places, how) = (&arguments.places, &arguments.how);
    let request = Request::new(Verb::Move, places, how, Approval::NotGiven)?;
    carry_out(&request, how.dry_run, context, output)
}

pub(crate) fn mirror(
    arguments: &MirrorArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let (places, how) = (&arguments.places, &arguments.how);
    let request = Request::new(Verb::Mirror, places, how, arguments.approval.approval())?;
    carry_out(&request, how.dry_run, context, output)
}

pub(crate) fn sync(
    arguments: &SyncArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let (places, how) = (&arguments.places, &arguments.how);
    let request = Request::new(Verb::Sync, places, how, arguments.approval.approval())?;
    carry_out(&request, how.dry_run, context, output)
}

fn carry_out(
    request: &Request,
    dry_run: bool,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let opener = Opener::new(context)?;
    context.runtime()?.block_on(async {
        let spec = spec(request, context, &opener).await?;
        if dry_run {
            return show_plan(spec, context, &opener, output).await;
        }
        let began = context.clock.now();
        let watching = Watching::start(context);
        let environment = environment(context, &opener, &watching).await?;
        let report = spec.run(&environment).await;
        watching.finish();
        let report = report.map_err(told)?;
        tell(&report, began, context, output)?;
        Ok(outcome(&report))
    })
}

/// Opens both places, and says what to do between them.
///
/// # Errors
/// If one cannot be opened, or the two do not go together.
pub(crate) async fn spec(
    request: &Request,
    context: &Context,
    opener: &Opener<'_>,
) -> Result<OneShot, CommandError> {
    let source = opener.open(&request.source, Role::Source).await?;
    let destination = opener.open(&request.destination, Role::Destination).await?;
    let options = &request.options;
    let transfers = options.transfers.or_else(|| fewest(&source, &destination));
    let verify = options.verify.or(destination.verify).unwrap_or_default();
    let (mut from, mut to) = (source.remote, destination.remote);
    if let Some(path) = source.single_file {
        if matches!(request.verb, Verb::Mirror | Verb::Sync) {
            return Err(CommandError::usage(format!(
                "{} is a file, and `{}` is about directories",
                request.source,
                request.verb.name()
            ))
            .hint("`knarr copy` copies a single file"));
        }
        to = Arc::new(SingleFile::new(to, path.clone()));
        from = Arc::new(SingleFile::new(from, path));
    }
    if let Some(rate) = options.bandwidth_bytes_per_second {
        from = limited(from, &Bandwidth::new(rate));
    }
    let mut policy = Policy::new(match request.verb {
        Verb::Copy | Verb::Move => Mode::Copy,
        Verb::Mirror => Mode::Mirror,
        Verb::Sync => Mode::TwoWay,
    });
    policy.if_exists = options.if_exists;
    policy.checksum = options.compare == Compare::Content;
    policy.symlinks = options.symlinks;
    Ok(OneShot {
        command: request.verb.name().to_owned(),
        source: from,
        destination: to,
        policy,
        filter: Arc::clone(&options.filter),
        after: match request.verb {
            Verb::Move => After::Delete,
            Verb::Copy | Verb::Mirror | Verb::Sync => After::Keep,
        },
        verify,
        transfers,
        retry: options.retry,
        brake: Brake::default(),
        approved_by: match request.approval {
            Approval::Given => Some(
                context
                    .environment
                    .user
                    .clone()
                    .unwrap_or_else(|| "somebody".to_owned()),
            ),
            Approval::NotGiven => None,
        },
    })
}

fn fewest(source: &Opened, destination: &Opened) -> Option<usize> {
    match (source.limits.transfers, destination.limits.transfers) {
        (Some(left), Some(right)) => Some(left.min(right)),
        (left, right) => left.or(right),
    }
}

/// What the engine needs from the program.
///
/// # Errors
/// If the state cannot be opened.
pub(crate) async fn environment(
    context: &Context,
    opener: &Opener<'_>,
    watching: &Watching,
) -> Result<Environment, CommandError> {
    let store = opener.secrets().store().await?.clone();
    Ok(Environment {
        locks: store.directory().join("locks"),
        keep_unfinished: opener
            .config()
            .keep_unfinished
            .unwrap_or(knarr_engine::KEEP_UNFINISHED),
        store,
        clock: Arc::new(context.clock),
        observer: watching.observer(),
        announcer: knarr_engine::announce::Announcer::default(),
        cancel: watching.cancel.clone(),
    })
}

/// Who watches, and who can stop it.
pub(crate) struct Watching {
    bars: Option<Arc<Bars>>,
    pub(crate) cancel: CancellationToken,
}

impl Request {
    /// What the arguments say.
    ///
    /// # Errors
    /// If a location or a glob is none.
    pub(crate) fn new(
        verb: Verb,
        places: &Places,
        how: &TransferArguments,
        approval: Approval,
    ) -> Result<Self, CommandError> {
        let (source, destination) = places.locations()?;
        Ok(Self {
            verb,
            source,
            destination,
            options: how.options()?,
            approval,
        })
    }
}

impl Watching {
    /// Shows bars on a terminal, and listens for signals. Needs a runtime.
    pub(crate) fn start(context: &Context) -> Self {
        let environment = &context.environment;
        let colour = if environment.colour_wanted {
            Colour::Yes
        } else {
            Colour::No
        };
        let bars = (environment.stderr_is_terminal && !context.global.quiet)
            .then(|| Arc::new(Bars::start(colour)));
        let cancel = CancellationToken::new();
        stop::on_signals(&cancel);
        Self { bars, cancel }
    }

    /// Logs what happens, and listens for signals but for SIGHUP. Needs a runtime.
    pub(crate) fn lines() -> Self {
        let cancel = CancellationToken::new();
        stop::on_termination(&cancel);
        Self { bars: None, cancel }
    }

    /// Shows no bars, but listens for signals. Needs a runtime.
    pub(crate) fn silent() -> Self {
        let cancel = CancellationToken::new();
        stop::on_signals(&cancel);
        Self { bars: None, cancel }
    }

    pub(crate) fn observer(&self) -> Arc<dyn knarr_engine::Observer> {
        match &self.bars {
            Some(bars) => Arc::<Bars>::clone(bars),
            None => Arc::new(Lines),
        }
    }

    /// Takes the bars away.
    pub(crate) fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.finish();
        }
    }
}

/// Prints what would be done.
async fn show_plan(
    spec: OneShot,
    context: &Context,
    opener: &Opener<'_>,
    output: &mut Output,
) -> CommandResult {
    let watching = Watching::silent();
    let environment = environment(context, opener, &watching).await?;
    let mut written = Ok(());
    let planned = spec
        .plan(&environment, |decision| {
            written = match output.format {
                Format::Json => output.json(&decision),
                Format::Text => output.line(describe(&decision)),
            };
            match &written {
                Ok(()) => Ok(()),
                Err(_closed) => Err(EngineError::Internal("stdout does not take the plan")),
            }
        })
        .await;
    written?;
    let planned = planned.map_err(told)?;
    Ok(looked(&planned))
}

/// Whether everything could be looked at.
pub(crate) fn looked(planned: &Planned) -> Outcome {
    for part in &planned.incomplete {
        tracing::warn!(
            "not listed: {}",
            knarr_core::path::printable(part.as_bytes())
        );
    }
    if planned.counts.source_incomplete + planned.counts.destination_incomplete > 0 {
        Outcome::SomeFailed
    } else {
        Outcome::Done
    }
}

/// How a command ended.
pub(crate) fn outcome(report: &Report) -> Outcome {
    if report.held.is_some() {
        Outcome::Held
    } else if report.unreachable {
        Outcome::Unreachable
    } else if report.failed > 0
        || report.problems > 0
        || report.incomplete > 0
        || !matches!(report.state, RunState::Done | RunState::Skipped)
    {
        Outcome::SomeFailed
    } else {
        Outcome::Done
    }
}

/// Says how it ended: to stdout as data, or to stderr for a person.
pub(crate) fn tell(
    report: &Report,
    began: Timestamp,
    context: &Context,
    output: &mut Output,
) -> Result<(), CommandError> {
    if output.format == Format::Json {
        return Ok(output.json(report)?);
    }
    if context.global.quiet {
        return Ok(());
    }
    let took = context.clock.now().since(began);
    let text = summary(report, took);
    // If stderr is closed, the exit code still says it.
    let _closed: std::io::Result<()> = writeln!(std::io::stderr(), "{text}");
    Ok(())
}

fn summary(report: &Report, took: std::time::Duration) -> String {
    let mut parts: Vec<String> = [
        (report.created, "created"),
        (report.updated, "updated"),
        (report.renamed, "renamed"),
        (report.deleted, "deleted"),
        (report.skipped, "left alone"),
        (report.conflicts, "in conflict (both kept)"),
        (report.problems, "that cannot be handled"),
        (report.failed, "failed"),
        (report.incomplete, "parts that could not be listed"),
    ]
    .into_iter()
    .filter(|(count, _what)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    if parts.is_empty() {
        parts.push("nothing to do".to_owned());
    }
    let mut text = parts.join(", ");
    if report.sent_bytes > 0 {
        text.push_str(&format!("; {} sent", ByteSize(report.sent_bytes)));
        let milliseconds = took.as_millis().max(1);
        let rate = u128::from(report.sent_bytes) * 1_000 / milliseconds;
        let rate = ByteSize(u64::try_from(rate).unwrap_or(u64::MAX));
        text.push_str(&format!(" ({rate}/s)"));
    }
    text.push_str(&format!(
        " in {} (run {})",
        shown_duration(took),
        report.run
    ));
    match report.state {
        RunState::Held => text.push_str(&format!(
            "\nheld: {} would be deleted, more than is done without approval\n\
             hint: --dry-run shows them; --approve-deletes carries them out",
            report.held_removals
        )),
        RunState::Interrupted => {
            text.push_str("\ninterrupted: the same command goes on from here");
        }
        RunState::Running
        | RunState::Done
        | RunState::Partial
        | RunState::Failed
        | RunState::Skipped => {}
    }
    text
}

/// The engine's error, with its exit code.
pub(crate) fn told(error: EngineError) -> CommandError {
    match error {
        EngineError::Look { location, source } => looking_at(location, source),
        error @ (EngineError::PlanFile { .. } | EngineError::Job { .. }) => {
            CommandError::usage(error)
        }
        error => CommandError::failed(error),
    }
}

/// The error that a place cannot be looked at.
pub(crate) fn looking_at(location: String, source: knarr_remote::RemoteError) -> CommandError {
    let trouble = source.kind;
    let error = EngineError::Look { location, source };
    match trouble {
        // It is the command line that names what is not there.
        knarr_remote::ErrorKind::NotFound => CommandError::usage(error),
        _ => CommandError::about_place(trouble, error),
    }
}
