//! `schema`, `completions`, `man`: what other programs want to know about this one.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::Arguments;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config;
use crate::output::Output;

/// Print the JSON Schema of the configuration, for editors
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr schema > knarr.schema.json")]
pub(crate) struct SchemaArguments {}

/// Print the completions for a shell
///
/// For bash: `knarr completions bash > /etc/bash_completion.d/knarr`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr completions bash > /etc/bash_completion.d/knarr")]
pub(crate) struct CompletionsArguments {
    /// Which shell
    shell: Shell,
}

/// Print the manual page, or write one a command into a directory
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr man /usr/local/share/man/man1")]
pub(crate) struct ManArguments {
    /// Where the pages go; without it, knarr(1) is printed
    directory: Option<PathBuf>,
}

pub(crate) fn schema(_arguments: &SchemaArguments, output: &mut Output) -> CommandResult {
    let schema = serde_json::to_string_pretty(&config::schema()).map_err(CommandError::failed)?;
    output.line(schema)?;
    Ok(Outcome::Done)
}

pub(crate) fn completions(arguments: &CompletionsArguments, output: &mut Output) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Arguments::command(),
        "knarr",
        &mut script,
    );
    output.bytes(&script)?;
    Ok(Outcome::Done)
}

pub(crate) fn man(arguments: &ManArguments, output: &mut Output) -> CommandResult {
    let command = Arguments::command();
    match &arguments.directory {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            output.bytes(&page)?;
        }
        Some(directory) => {
            clap_mangen::generate_to(command, directory).map_err(|error| {
                CommandError::failed(error)
                    .hint(format!("does the directory {} exist?", directory.display()))
            })?;
        }
    }
    Ok(Outcome::Done)
}
