//! `sftp-server`: the own SFTP server of the configuration, or one client on the standard streams, in the place of
//! OpenSSH's own program.

pub(crate) mod audit;
pub(crate) mod log;
pub(crate) mod node;
mod password;
pub(crate) mod uploads;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use knarr_core::path::printable;
use knarr_serve::files::{
    Event, Flush, LocalFiles, LocalOptions, Observer, Operation, Operations, Permissions, Policy,
    Reach, ServeOptions, Uploads, serve_stdio,
};

use crate::cli::context::Context;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::Output;

/// Serve SFTP to the users of the configuration, or to one client
///
/// Without --stdio it serves the section `sftp_server` of the configuration until SIGTERM, as `knarr run` does beside its
/// jobs. With --stdio it serves one client on standard input and output, as a subsystem of sshd does. In sshd_config: `Subsystem sftp /usr/bin/knarr sftp-server --stdio --root
/// /srv/partner --staged`. Without --root that serves what its user can reach, like OpenSSH's sftp-server, whose short
/// options it takes.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  knarr sftp-server\n  knarr sftp-server hash-password\n  sftp -D 'knarr sftp-server --stdio'\n  knarr sftp-server --stdio --root /srv/in --staged --sync"
)]
pub(crate) struct SftpServerArguments {
    #[command(subcommand)]
    command: Option<SftpServerCommand>,
    /// Speak on standard input and output
    #[arg(long)]
    stdio: bool,
    /// Keep the client inside this directory, which is `/` to it
    #[arg(long, requires = "stdio", value_name = "DIRECTORY")]
    root: Option<PathBuf>,
    /// Let nothing be changed
    #[arg(short = 'R', long, requires = "stdio")]
    read_only: bool,
    /// Write an upload under a hidden name, and give it its own when it is closed
    #[arg(long, requires = "root")]
    staged: bool,
    /// Flush an upload to the disk before its end is confirmed
    #[arg(long, requires = "staged")]
    sync: bool,
    /// Start in this directory
    #[arg(
        short = 'd',
        long,
        requires = "stdio",
        value_name = "DIRECTORY",
        conflicts_with = "root"
    )]
    start: Option<PathBuf>,
    /// Take only these requests, separated by commas (open, read, write, ...)
    #[arg(
        short = 'p',
        long,
        requires = "stdio",
        value_name = "REQUESTS",
        value_delimiter = ','
    )]
    allow: Vec<String>,
    /// Refuse these requests
    #[arg(
        short = 'P',
        long,
        requires = "stdio",
        value_name = "REQUESTS",
        value_delimiter = ','
    )]
    deny: Vec<String>,
    /// Permission bits, in octal, that new files do not get
    #[arg(short = 'u', long, requires = "stdio", value_name = "MASK", value_parser = octal)]
    umask: Option<u32>,
    /// Taken and ignored, as OpenSSH's has it: logs go to standard error by themselves
    #[arg(short = 'e', hide = true)]
    log_to_stderr: bool,
    /// Taken and ignored: -v, -q and $KNARR_LOG say how much is logged
    #[arg(short = 'l', hide = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Taken and ignored: there is no syslog
    #[arg(short = 'f', hide = true, value_name = "FACILITY")]
    log_facility: Option<String>,
}

#[derive(Debug, Subcommand)]
enum SftpServerCommand {
    /// Print what stands in the configuration as `password_hash`, for a password from a prompt or stdin
    HashPassword,
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mask| *mask <= 0o777)
        .ok_or_else(|| "an octal number up to 777 is wanted".to_owned())
}

pub(crate) fn run(
    arguments: &SftpServerArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    if let Some(SftpServerCommand::HashPassword) = &arguments.command {
        return password::run(context, output);
    }
    if !arguments.stdio {
        return node::run(context);
    }
    if let Some(mask) = arguments.umask {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
    }
    if let Some(start) = &arguments.start {
        std::env::set_current_dir(start).map_err(|error| cannot_open(start, error))?;
    }
    let options = ServeOptions {
        allowed: allowed(arguments)?,
        ..ServeOptions::default()
    };
    let files = Arc::new(files(arguments)?);
    // One thread: a client at a time gains nothing from more, and saves every hand-over between them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::failed)?;
    let served = runtime.block_on(serve_stdio(files, options, Arc::new(Logged)));
    let summary = served.map_err(CommandError::failed)?;
    tracing::debug!(requests = summary.requests, "the client is done");
    Ok(Outcome::Done)
}

fn files(arguments: &SftpServerArguments) -> Result<LocalFiles, CommandError> {
    let permissions = if arguments.read_only {
        Permissions::READ_ONLY
    } else {
        Permissions::ALL
    };
    let reach = match &arguments.root {
        Some(root) => Reach::Confined { root: root.clone() },
        None => Reach::Everything,
    };
    let options = LocalOptions {
        reach,
        policy: Policy::new(permissions),
        uploads: if arguments.staged {
            Uploads::Staged
        } else {
            Uploads::Direct
        },
        flush: if arguments.sync {
            Flush::AtClose
        } else {
            Flush::Whenever
        },
    };
    LocalFiles::new(options).map_err(|error| match &arguments.root {
        Some(root) => cannot_open(root, error),
        None => CommandError::failed(error),
    })
}

fn cannot_open(directory: &std::path::Path, error: std::io::Error) -> CommandError {
    let hint = format!(
        "is {} a directory that may be entered?",
        directory.display()
    );
    CommandError::failed(error).hint(hint)
}

fn allowed(arguments: &SftpServerArguments) -> Result<Operations, CommandError> {
    let known = |name: &String| {
        Operation::from_name(name).ok_or_else(|| {
            CommandError::usage(format!("there is no request \"{name}\"")).hint(format!(
                "the requests are {}",
                Operation::ALL.map(Operation::name).join(", ")
            ))
        })
    };
    let mut allowed = Operations::all();
    if !arguments.allow.is_empty() {
        allowed = Operations::none();
        for name in &arguments.allow {
            allowed = allowed.with(known(name)?);
        }
    }
    for name in &arguments.deny {
        allowed = allowed.without(known(name)?);
    }
    Ok(allowed)
}

/// Logs what the client does.
struct Logged;

impl Observer for Logged {
    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Request {
                operation,
                path,
                other,
                outcome,
            } => {
                let (operation, path) = (operation.name(), printable(path));
                let other = other.map(|other| printable(other).to_string());
                match outcome {
                    Ok(()) => tracing::info!(%path, other, "{operation}"),
                    Err(error) => tracing::info!(%path, other, %error, "{operation} refused"),
                }
            }
            Event::Closed {
                path,
                read_bytes,
                written_bytes,
                ..
            } => tracing::info!(path = %printable(path), read_bytes, written_bytes, "closed"),
            Event::Uploaded { path, length_bytes } => {
                tracing::info!(path = %printable(path), length_bytes, "uploaded");
            }
            Event::Abandoned {
                path,
                written_bytes,
            } => tracing::info!(path = %printable(path), written_bytes, "left open"),
            _ => {}
        }
    }
}
