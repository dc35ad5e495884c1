//! How a command ends that did not do all it was asked to.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use knarr_remote::{ErrorKind, RemoteError};

use crate::config::find::FindError;
use crate::config::{Colour, ConfigProblems};

/// How a command ended.
pub(crate) type CommandResult = Result<Outcome, CommandError>;

/// How a command ended that did what it was asked to, as far as that was possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is done.
    Done,
    /// Some files failed, or something that was checked is not as it should be.
    SomeFailed,
    /// Something waits for a person's approval.
    Held,
    /// A place could not be reached.
    Unreachable,
}

/// What kind of end it is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It was tried and failed.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// A place cannot be reached.
    Unreachable,
    /// Whoever read the output has gone.
    BrokenPipe,
}

/// An error at the edge: what went wrong with its causes, and what to do about it.
#[derive(Debug)]
pub(crate) struct CommandError {
    kind: Kind,
    error: Box<dyn Error + Send + Sync>,
    hints: Vec<String>,
}

impl CommandError {
    /// An error of `kind`.
    pub(crate) fn new(kind: Kind, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            kind,
            error: error.into(),
            hints: Vec::new(),
        }
    }

    /// What was asked for makes no sense.
    pub(crate) fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::Usage, error)
    }

    /// It was tried and failed.
    pub(crate) fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::Failed, error)
    }

    /// The same error with advice.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            // The reader had what it wanted.
            Kind::BrokenPipe => 0,
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Unreachable => 4,
        })
    }

    /// The error with its causes and hints on one line.
    pub(crate) fn on_one_line(&self) -> String {
        let mut text = knarr_engine::chain(&*self.error);
        for hint in &self.hints {
            text.push_str("; ");
            text.push_str(hint);
        }
        text
    }

    /// What stderr shows; empty if there is nothing to say.
    pub(crate) fn render(&self, colour: Colour) -> String {
        if self.kind == Kind::BrokenPipe {
            return String::new();
        }
        let paint = |code: &str, text: &str| match colour {
            Colour::Yes => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Colour::No => text.to_owned(),
        };
        let mut text = match self.error.downcast_ref::<Box<ConfigProblems>>() {
            Some(problems) => problems.render(colour),
            None => format!("{} {}\n", paint("1;31", "error:"), self.error),
        };
        let mut cause = self.error.source();
        let mut last = self.error.to_string();
        while let Some(error) = cause {
            let message = error.to_string();
            // Foreign errors like to repeat their source.
            if !last.contains(&message) {
                writeln!(text, "  caused by: {message}").expect("a String takes all");
            }
            last = message;
            cause = error.source();
        }
        for hint in &self.hints {
            writeln!(text, "{} {hint}", paint("1;36", "hint:")).expect("a String takes all");
        }
        text
    }
}

impl Outcome {
    /// The exit code of the process.
    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Done => 0,
            Self::SomeFailed => 1,
            Self::Held => 3,
            Self::Unreachable => 4,
        })
    }
}

/// Errors of writing to stdout.
impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Kind::BrokenPipe, error);
        }
        Self::failed(OutputError(error))
    }
}

/// Stdout does not take what is written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to stdout")]
struct OutputError(#[source] io::Error);

impl From<FindError> for CommandError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Wrong(problems) => Self::usage(problems),
            FindError::WorldWritable { ref path, .. } => {
                let hint = format!(
                    "whoever can write to it decides what is copied where: `chmod go-w {}`",
                    path.display()
                );
                Self::usage(error).hint(hint)
            }
            FindError::NoneOf(_) => {
                Self::usage(error).hint("`knarr init` writes one; `--config FILE` names another")
            }
            FindError::NotFound(_)
            | FindError::Read { .. }
            | FindError::TooLong(_)
            | FindError::NotText(_) => Self::usage(error),
        }
    }
}

impl From<knarr_store::StoreError> for CommandError {
    fn from(error: knarr_store::StoreError) -> Self {
        Self::failed(error)
    }
}

impl std::fmt::Display for CommandError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl From<RemoteError> for CommandError {
    fn from(error: RemoteError) -> Self {
        let kind = error.kind;
        Self::about_place(kind, error)
    }
}

impl CommandError {
    /// An error about a place, of `trouble`: with the exit code and the advice that belong to it.
    pub(crate) fn about_place(
        trouble: ErrorKind,
        error: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let (kind, hint) = match trouble {
            ErrorKind::Unreachable => (
                Kind::Unreachable,
                Some("`knarr check --connect` tries every endpoint"),
            ),
            ErrorKind::Authentication => (
                Kind::Unreachable,
                Some(
                    "`knarr secret ls` shows which secrets are stored, `ssh-add -l` the agent's keys",
                ),
            ),
            ErrorKind::HostKey => (
                Kind::Unreachable,
                Some("ask the server's owner for its fingerprint before you accept another one"),
            ),
            _ => (Kind::Failed, None),
        };
        let error = Self::new(kind, error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}
