//! Logs: to stderr, for people on a terminal and JSON otherwise; and to a file, if the configuration of a
//! node names one.

mod rotating;

use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Colour, LogFormat, LogSettings};
use crate::environment::Environment;
use crate::progress::AroundBars;
use rotating::Rotating;

/// The log file of the process, once there is one.
static FILE: OnceLock<(LogFormat, Mutex<Rotating>)> = OnceLock::new();

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
    let around = || BoxMakeWriter::new(AroundBars::default);
    let stderr = if environment.stderr_is_terminal {
        fmt::layer()
            .with_writer(around())
            .with_ansi(colour == Colour::Yes)
            .with_target(false)
            .compact()
            .boxed()
    } else {
        fmt::layer()
            .with_writer(around())
            .json()
            .flatten_event(true)
            .boxed()
    };
    let json = fmt::layer()
        .with_writer(ToFile)
        .json()
        .flatten_event(true)
        .with_filter(dynamic_filter_fn(|_, _| has_file(LogFormat::Json)));
    let text = fmt::layer()
        .with_writer(ToFile)
        .with_ansi(false)
        .with_filter(dynamic_filter_fn(|_, _| has_file(LogFormat::Text)));
    // A second subscriber (in a test) changes nothing; that is no reason to stop.
    let _already: Result<(), _> = tracing_subscriber::registry()
        .with(filter)
        .with(stderr)
        .with(json)
        .with(text)
        .try_init();
}

/// Logs to the file of a configuration, too, from now on.
///
/// # Errors
/// If it cannot be opened.
pub(crate) fn also_to(settings: &LogSettings) -> io::Result<()> {
    let Some(path) = &settings.file else {
        return Ok(());
    };
    let file = Rotating::open(path, settings.max_bytes, settings.keep)?;
    // There is one node in a process; a second file is not asked for.
    FILE.set((settings.format, Mutex::new(file))).ok();
    Ok(())
}

fn has_file(format: LogFormat) -> bool {
    FILE.get().is_some_and(|(of, _)| *of == format)
}

/// Writes lines into the log file.
#[derive(Debug, Clone, Copy)]
struct ToFile;

impl<'w> MakeWriter<'w> for ToFile {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        *self
    }
}

impl Write for ToFile {
    /// A line at a time: that is how events are written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some((_, file)) = FILE.get() {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // What a full disk does not take stands on stderr all the same.
            file.write_line(bytes).ok();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
