//! Logs, to stderr: for people on a terminal, JSON otherwise.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::Colour;
use crate::environment::Environment;
use crate::progress::AroundBars;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// Errors only (`-q`).
    Quiet,
    /// Warnings too.
    Usual,
    /// What happens too (`-v`, and `knarr run`).
    Informed,
    /// What happens inside Knarr too (`-vv`).
    Detailed,
    /// Everything (`-vvv`).
    Everything,
}

/// Starts logging. `$KNARR_LOG` has precedence over `verbosity`.
pub(crate) fn start(verbosity: Verbosity, environment: &Environment, colour: Colour) {
    let filter = match verbosity {
        Verbosity::Quiet => "error",
        Verbosity::Usual => "warn",
        Verbosity::Informed => {
            "warn,knarr=info,knarr_engine=info,knarr_store=info,knarr_remote=info"
        }
        Verbosity::Detailed => {
            "info,knarr=debug,knarr_core=debug,knarr_engine=debug,knarr_fs=debug,\
             knarr_remote=debug,knarr_sftp=debug,knarr_steps=debug,knarr_store=debug"
        }
        Verbosity::Everything => "trace",
    };
    let filter = environment
        .log
        .as_deref()
        .and_then(|named| EnvFilter::try_new(named).ok())
        .unwrap_or_else(|| EnvFilter::new(filter));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(BoxMakeWriter::new(AroundBars::default));
    // A second subscriber (in a test) changes nothing; that is no reason to stop.
    let _already: Result<(), _> = if environment.stderr_is_terminal {
        builder
            .with_ansi(colour == Colour::Yes)
            .with_target(false)
            .compact()
            .try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
}
