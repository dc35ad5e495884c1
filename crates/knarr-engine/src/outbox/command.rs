//! A command: run directly, never through a shell.
//!
//! Constraints:
//!
//! * Only the local configuration file names one (K12): a [`CommandTarget`] is made of a [`LocalFile`],
//!   and nothing that comes over a network or out of the database is ever one.
//! * A value goes into an argument only where the configuration has a placeholder, and never becomes more
//!   than that one argument. One that would begin with a dash is not passed as an argument of its own,
//!   unless `--` comes before it: a file name must not become an option.
//! * The environment is made anew: `PATH`, `HOME`, `LANG`, what the configuration adds, and `KNARR_…`. No
//!   secret is in it.
//! * It runs in a process group of its own, which is killed when the command ended, when its time is up,
//!   and when the delivery is given up: nothing it started outlives it.
//! * Of its output the last [`OUTPUT_BYTES`] are kept; the rest is read and dropped, so that it never blocks.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use crate::outbox::{Message, Receipt, Target, TargetError, quoted};

/// How much of the output is kept.
const OUTPUT_BYTES: usize = 4 * 1024;
/// How long to wait for the end of the output once everything was killed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What is taken over from the environment of the node.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];
/// What may stand in braces in an argument.
pub const PLACEHOLDERS: [&str; 28] = [
    "about",
    "action",
    "at",
    "began_at",
    "bytes",
    "destination",
    "destination_path",
    "destination_root",
    "event",
    "failed",
    "files",
    "hash",
    "job",
    "key",
    "kind",
    "message",
    "name",
    "node",
    "number",
    "outcome",
    "path",
    "rule",
    "run",
    "severity",
    "since",
    "size",
    "source",
    "text",
];

/// The witness that something stands in the configuration file of this machine: made by whoever read that
/// file, and by nobody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile(PathBuf);

impl LocalFile {
    /// This file was read from the local disk, and is not writable by others.
    #[must_use]
    pub const fn read_from(path: PathBuf) -> Self {
        Self(path)
    }
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOptions {
    /// The program, and its arguments with placeholders.
    pub run: Vec<String>,
    /// Variables besides the usual ones.
    pub environment: BTreeMap<String, String>,
    /// The directory that it runs in; `/` by default.
    pub directory: Option<PathBuf>,
    /// How long it may run.
    pub limit: Duration,
}

/// Why there can be no such command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No program.
    #[error("{}: a command needs a program: `run: [/usr/local/bin/import, \"{{destination}}\"]`", .0.display())]
    Empty(PathBuf),
    /// The program has a placeholder, or is found by whoever set the PATH.
    #[error("{}: `{program}` has to be the absolute path of a program, without placeholders", .file.display())]
    Program {
        /// The file.
        file: PathBuf,
        /// What stands there.
        program: String,
    },
    /// Not a placeholder.
    #[error(
        "{}: `{{{name}}}` in an argument is none of {}; write `{{{{` for a brace",
        .file.display(), PLACEHOLDERS.join(", ")
    )]
    Placeholder {
        /// The file.
        file: PathBuf,
        /// What stands in the braces.
        name: String,
    },
}

/// A part of an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(String),
}

/// Runs a command for each message.
#[derive(Debug)]
pub struct CommandTarget {
    program: String,
    arguments: Vec<Vec<Part>>,
    options: CommandOptions,
}

impl CommandTarget {
    /// A command that stands in the local configuration file.
    ///
    /// # Errors
    /// If it is not one that can be run.
    pub fn new(options: CommandOptions, file: &LocalFile) -> Result<Self, CommandError> {
        let Some((program, arguments)) = options.run.split_first() else {
            return Err(CommandError::Empty(file.0.clone()));
        };
        if !program.starts_with('/') || program.contains('{') {
            return Err(CommandError::Program {
                file: file.0.clone(),
                program: program.clone(),
            });
        }
        let arguments = arguments
            .iter()
            .map(|argument| parse(argument))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|name| CommandError::Placeholder {
                file: file.0.clone(),
                name,
            })?;
        Ok(Self {
            program: program.clone(),
            arguments,
            options,
        })
    }

    fn arguments(&self, values: &[(String, OsString)]) -> Result<Vec<OsString>, TargetError> {
        let value = |name: &str| {
            let found = values.iter().find(|(known, _)| known == name);
            found
                .map(|(_, value)| value.as_os_str())
                .unwrap_or_default()
        };
        let mut arguments: Vec<OsString> = Vec::with_capacity(self.arguments.len());
        for parts in &self.arguments {
            let mut argument = OsString::new();
            for part in parts {
                match part {
                    Part::Text(text) => argument.push(text),
                    Part::Value(name) => argument.push(value(name)),
                }
            }
            let is_from_outside = matches!(parts.first(), Some(Part::Value(_)));
            let is_guarded = arguments.iter().any(|before| before == "--");
            if is_from_outside && !is_guarded && argument.as_bytes().starts_with(b"-") {
                let shown = knarr_core::path::printable(argument.as_bytes()).to_string();
                return Err(TargetError::refused(format!(
                    "`{shown}` begins with a dash, and {} could take it as an option: put `--` \
                     before it in `run`, or use the variables KNARR_…",
                    self.program
                )));
            }
            arguments.push(argument);
        }
        Ok(arguments)
    }

    fn spawn(&self, values: Vec<(String, OsString)>) -> Result<(Child, Group), TargetError> {
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments(&values)?)
            .env_clear()
            .current_dir(self.options.directory.as_deref().unwrap_or("/".as_ref()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(&self.options.environment);
        for (name, value) in values {
            command.env(format!("KNARR_{}", name.to_ascii_uppercase()), value);
        }
        let child = command.spawn().map_err(|error| {
            // Nothing about the message: the program is missing, or the machine is full.
            TargetError::unreachable(format!("cannot run {}: {error}", self.program))
        })?;
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        Ok((child, Group(group)))
    }
}

/// The process group of a command; killed when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // None of it may be left, which is what is wanted.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

#[async_trait]
impl Target for CommandTarget {
    async fn deliver(&self, message: &Message) -> Result<Receipt, TargetError> {
        self.run(message.values()).await
    }
}

impl CommandTarget {
    /// Runs it once, with these values for its placeholders and variables.
    ///
    /// # Errors
    /// As [`Target::deliver`].
    pub(crate) async fn run(
        &self,
        values: Vec<(String, OsString)>,
    ) -> Result<Receipt, TargetError> {
        let (mut child, group) = self.spawn(values)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut output = Tail::default();
        let mut errors = Tail::default();
        let ended = {
            let reading = async {
                tokio::join!(output.read(stdout), errors.read(stderr));
            };
            tokio::pin!(reading);
            let mut is_read = false;
            let waiting = tokio::time::timeout(self.options.limit, child.wait());
            tokio::pin!(waiting);
            let ended = loop {
                tokio::select! {
                    ended = &mut waiting => break ended,
                    () = &mut reading, if !is_read => is_read = true,
                }
            };
            // What it left behind holds its output open; it goes first.
            drop(group);
            if !is_read {
                tokio::time::timeout(LAST_WORDS, reading).await.ok();
            }
            ended
        };
        let output = quoted(&output.bytes(), OUTPUT_BYTES, &[]);
        let errors = quoted(&errors.bytes(), OUTPUT_BYTES, &[]);
        let said = if errors.is_empty() { &output } else { &errors };
        match ended {
            Ok(Ok(status)) if status.success() => Ok(Receipt { output }),
            Ok(Ok(status)) => Err(TargetError::failed(format!(
                "{} {}: {said}",
                self.program,
                shown(status)
            ))),
            Ok(Err(error)) => Err(TargetError::failed(format!(
                "{} cannot be waited for: {error}",
                self.program
            ))),
            Err(_elapsed) => {
                child.wait().await.ok();
                let limit = knarr_core::units::Span(self.options.limit);
                Err(TargetError::failed(format!(
                    "{} was killed after {limit}: {said}",
                    self.program
                )))
            }
        }
    }
}

fn shown(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "did not end well".to_owned(),
    }
}

/// The last bytes of a stream.
#[derive(Default)]
struct Tail(std::collections::VecDeque<u8>);

impl Tail {
    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else {
            return;
        };
        let mut buffer = [0_u8; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            self.0.extend(buffer.iter().take(count));
            let excess = self.0.len().saturating_sub(OUTPUT_BYTES);
            self.0.drain(..excess);
        }
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into()
    }
}

/// The parts of an argument, or what stands in braces and is no placeholder.
fn parse(argument: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut characters = argument.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '{' | '}' if characters.next_if_eq(&character).is_some() => text.push(character),
            '{' => {
                let mut name = String::new();
                loop {
                    match characters.next() {
                        Some('}') => break,
                        Some(other) => name.push(other),
                        None => return Err(name),
                    }
                }
                if !PLACEHOLDERS.contains(&name.as_str()) {
                    return Err(name);
                }
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::Value(name));
            }
            other => text.push(other),
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_known_names_in_braces() {
        let value = |name: &str| Part::Value(name.to_owned());
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(
            parse("--file={path}.{job}"),
            Ok(vec![
                text("--file="),
                value("path"),
                text("."),
                value("job")
            ])
        );
        assert_eq!(parse("a{{b}}c"), Ok(vec![text("a{b}c")]));
        assert_eq!(parse("{7*7}"), Err("7*7".to_owned()));
        assert_eq!(parse("{path"), Err("path".to_owned()));
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn k12_a_program_stands_in_the_file_as_a_whole() {
        let file = LocalFile::read_from("/etc/knarr/knarr.yaml".into());
        let command = |run: &[&str]| {
            let options = CommandOptions {
                run: run.iter().map(|&part| part.to_owned()).collect(),
                environment: BTreeMap::new(),
                directory: None,
                limit: Duration::from_secs(1),
            };
            CommandTarget::new(options, &file)
        };
        assert!(command(&["/bin/{path}"]).is_err());
        assert!(command(&["import"]).is_err());
        assert!(command(&[]).is_err());
        assert!(command(&["/bin/echo", "{nothing}"]).is_err());
        assert!(command(&["/bin/echo", "{path}"]).is_ok());
    }
}
