//! The commands, one file each, and what they share.

mod alert;
mod approve;
mod audit;
pub(crate) mod backend;
mod check;
pub(crate) mod context;
mod credentials;
mod desk;
mod doctor;
mod endpoint;
mod events;
mod history;
mod host;
mod init;
mod job;
mod look;
mod messages;
mod oneshot;
mod plan;
mod queue;
mod reload;
mod run;
mod secret;
mod sftp_server;
mod shell;
mod stop;
mod stream;
mod telling;
mod trace;
mod transfer;
mod user;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cli::context::Context;
use crate::command_error::{CommandError, CommandResult};
use crate::config::Colour;
use crate::environment::Environment;
use crate::logging::{self, Verbosity};
use crate::output::Format;

/// Moves files to where they must be, and proves it.
///
/// LOCATIONS are paths (./data, /srv/in), URLs (sftp://user@host:port/path, s3://bucket/prefix,
/// gs://bucket/prefix, az://container/prefix) or endpoint:path, where the endpoint stands in knarr.yaml.
///
/// Exit codes: 0 done, 1 some files failed, 2 usage or configuration, 3 held for approval,
/// 4 a place cannot be reached.
#[derive(Debug, Parser)]
#[command(
    name = "knarr",
    version,
    max_term_width = 100,
    subcommand_required = true
)]
#[command(arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArguments,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArguments {
    /// The configuration; by default ./knarr.yaml, then $XDG_CONFIG_HOME/knarr/knarr.yaml, then
    /// /etc/knarr/knarr.yaml
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where Knarr keeps what it knows; by default $KNARR_STATE, then `node.state` of the
    /// configuration, then /var/lib/knarr for root, else $XDG_STATE_HOME/knarr
    #[arg(long, global = true, value_name = "DIRECTORY")]
    pub(crate) state: Option<PathBuf>,
    /// Print JSON to stdout: one object, or one a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Log more to stderr; twice and three times for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Log only errors, and show no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArguments),
    Copy(transfer::CopyArguments),
    Move(transfer::MoveArguments),
    Mirror(transfer::MirrorArguments),
    Sync(transfer::SyncArguments),
    Plan(plan::PlanArguments),
    Apply(plan::ApplyArguments),
    Ls(look::LsArguments),
    Stat(look::StatArguments),
    Init(init::InitArguments),
    Check(check::CheckArguments),
    Doctor(doctor::DoctorArguments),
    Job(job::JobArguments),
    Endpoint(endpoint::EndpointArguments),
    Reload(reload::ReloadArguments),
    Events(events::EventsArguments),
    Status(queue::StatusArguments),
    Queue(queue::QueueArguments),
    Trace(trace::TraceArguments),
    History(history::HistoryArguments),
    Approve(approve::ApproveArguments),
    Alert(alert::AlertArguments),
    Audit(audit::AuditArguments),
    Secret(secret::SecretArguments),
    SftpServer(sftp_server::SftpServerArguments),
    User(user::UserArguments),
    Schema(shell::SchemaArguments),
    Completions(shell::CompletionsArguments),
    Man(shell::ManArguments),
}

/// Parses the arguments, runs the command, tells what went wrong.
pub(crate) fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let environment = Environment::of_process();
    let colour = if environment.stderr_is_terminal && environment.colour_wanted {
        Colour::Yes
    } else {
        Colour::No
    };
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to stdout and are no errors; a closed pipe is none either.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(_closed) => ExitCode::SUCCESS,
            };
        }
    };
    logging::start(verbosity(&arguments), &environment, colour);
    let context = Context::new(arguments.global, environment);
    match dispatch(arguments.command, &context) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            // If stderr is closed too, there is nobody left to tell.
            let _closed: Result<(), _> =
                std::io::stderr().write_all(error.render(colour).as_bytes());
            error.exit_code()
        }
    }
}

fn dispatch(command: Command, context: &Context) -> CommandResult {
    let mut output = context.output();
    let outcome = match command {
        Command::Run(arguments) => run::run(&arguments, context, &mut output),
        Command::Copy(arguments) => oneshot::copy(&arguments, context, &mut output),
        Command::Move(arguments) => oneshot::move_(&arguments, context, &mut output),
        Command::Mirror(arguments) => oneshot::mirror(&arguments, context, &mut output),
        Command::Sync(arguments) => oneshot::sync(&arguments, context, &mut output),
        Command::Plan(arguments) => plan::plan(&arguments, context, &mut output),
        Command::Apply(arguments) => plan::apply(&arguments, context, &mut output),
        Command::Ls(arguments) => look::ls(&arguments, context, &mut output),
        Command::Stat(arguments) => look::stat(&arguments, context, &mut output),
        Command::Job(arguments) => job::run(&arguments, context, &mut output),
        Command::Endpoint(arguments) => endpoint::run(&arguments, context, &mut output),
        Command::Reload(arguments) => reload::run(&arguments, context, &mut output),
        Command::Events(arguments) => events::run(&arguments, context, &mut output),
        Command::Status(arguments) => queue::status(&arguments, context, &mut output),
        Command::Queue(arguments) => queue::queue(&arguments, context, &mut output),
        Command::Trace(arguments) => trace::run(&arguments, context, &mut output),
        Command::History(arguments) => history::run(&arguments, context, &mut output),
        Command::Approve(arguments) => approve::run(&arguments, context, &mut output),
        Command::Alert(arguments) => alert::run(&arguments, context, &mut output),
        Command::Audit(arguments) => audit::run(&arguments, context, &mut output),
        Command::Secret(arguments) => secret::run(&arguments, context, &mut output),
        Command::SftpServer(arguments) => sftp_server::run(&arguments, context, &mut output),
        Command::User(arguments) => user::run(&arguments, context, &mut output),
        Command::Init(arguments) => init::run(&arguments, context, &mut output),
        Command::Check(arguments) => check::run(&arguments, context, &mut output),
        Command::Doctor(arguments) => doctor::run(&arguments, context, &mut output),
        Command::Schema(arguments) => shell::schema(&arguments, &mut output),
        Command::Completions(arguments) => shell::completions(&arguments, &mut output),
        Command::Man(arguments) => shell::man(&arguments, &mut output),
    };
    // What was printed before an error is still wanted.
    let flushed = output.flush().map_err(CommandError::from);
    let outcome = outcome?;
    flushed?;
    Ok(outcome)
}

fn verbosity(arguments: &Arguments) -> Verbosity {
    match (arguments.global.quiet, arguments.global.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, 0) if matches!(&arguments.command, Command::Run(run) if run.is_node()) => {
            Verbosity::Informed
        }
        (false, 0) => Verbosity::Usual,
        (false, 1) => Verbosity::Informed,
        (false, 2) => Verbosity::Detailed,
        (false, _) => Verbosity::Everything,
    }
}

impl GlobalArguments {
    /// How data is printed.
    pub(crate) const fn format(&self) -> Format {
        if self.json {
            Format::Json
        } else {
            Format::Text
        }
    }
}
