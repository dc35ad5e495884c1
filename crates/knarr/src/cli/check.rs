//! `check`: is the configuration right, and can every endpoint be reached?

use std::time::Instant;

use clap::Args;
use knarr_core::tree::TreeItem;
use knarr_core::units::ByteSize;
use knarr_remote::ListOptions;
use serde::Serialize;

use crate::cli::context::Context;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::Endpoint;
use crate::config::find::{self, FindError};
use crate::location::{Asking, Opener};
use crate::output::{Format, Output, Style};

/// Check the configuration, and with --connect every endpoint
///
/// Tells everything that is wrong, with line, column and what was probably meant.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr check --connect")]
pub(crate) struct CheckArguments {
    /// Connect to every endpoint and list its root
    #[arg(long)]
    connect: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    file: Option<String>,
    problems: &'a [crate::config::ProblemData],
    endpoints: usize,
    jobs: usize,
}

pub(crate) fn run(
    arguments: &CheckArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let config = match find::load(context.global.config.as_deref(), &context.environment) {
        Ok(Some(config)) => config,
        Ok(None) => return Err(find::none_found(&context.environment).into()),
        Err(FindError::Wrong(problems)) => {
            if output.format == Format::Json {
                let report = Report {
                    ok: false,
                    file: None,
                    problems: &problems.data(),
                    endpoints: 0,
                    jobs: 0,
                };
                output.json(&report)?;
            }
            return Err(FindError::Wrong(problems).into());
        }
        Err(error) => return Err(error.into()),
    };
    let file = config.file.as_ref().map(|file| file.display().to_string());
    match output.format {
        Format::Json => output.json(&Report {
            ok: true,
            file,
            problems: &[],
            endpoints: config.endpoints.len(),
            jobs: config.jobs.len(),
        })?,
        Format::Text => output.line(format!(
            "{} is right: {}, {}",
            file.unwrap_or_default(),
            counted(config.endpoints.len(), "endpoint"),
            counted(config.jobs.len(), "job"),
        ))?,
    }
    if !arguments.connect {
        return Ok(Outcome::Done);
    }
    let opener = Opener::with_config(context, config, Asking::Person);
    context.runtime()?.block_on(connect_all(&opener, output))
}

/// What came of connecting to an endpoint.
#[derive(Serialize)]
struct Connected {
    endpoint: String,
    ok: bool,
    location: Option<String>,
    milliseconds: u128,
    entries: usize,
    free_bytes: Option<u64>,
    error: Option<String>,
}

async fn connect_all(opener: &Opener<'_>, output: &mut Output) -> CommandResult {
    let mut outcome = Outcome::Done;
    for endpoint in opener.config().endpoints.values() {
        let began = Instant::now();
        let result = connect(opener, endpoint).await;
        let milliseconds = began.elapsed().as_millis();
        let connected = match result {
            Ok((location, entries, free_bytes)) => Connected {
                endpoint: endpoint.name.clone(),
                ok: true,
                location: Some(location),
                milliseconds,
                entries,
                free_bytes,
                error: None,
            },
            Err(error) => {
                outcome = Outcome::Unreachable;
                Connected {
                    endpoint: endpoint.name.clone(),
                    ok: false,
                    location: None,
                    milliseconds,
                    entries: 0,
                    free_bytes: None,
                    error: Some(error.on_one_line()),
                }
            }
        };
        if output.format == Format::Json {
            output.json(&connected)?;
        } else {
            let line = in_words(&connected, output);
            output.line(line)?;
        }
        // A slow endpoint should not keep the answer of the one before.
        output.flush()?;
    }
    Ok(outcome)
}

/// Its location, how many entries its root has (at most one batch of them), and its free space.
async fn connect(
    opener: &Opener<'_>,
    endpoint: &Endpoint,
) -> Result<(String, usize, Option<u64>), CommandError> {
    let opened = opener.open_endpoint(endpoint).await?;
    let options = ListOptions {
        shallow: true,
        ..ListOptions::default()
    };
    let mut listing = opened.remote.list(options).await?;
    let mut entries = 0;
    for item in listing.next_batch().await.unwrap_or_default() {
        match item {
            TreeItem::Incomplete(part) => {
                return Err(CommandError::failed(format!(
                    "its root cannot be listed: {}",
                    part.reason
                )));
            }
            TreeItem::Entry(_) | TreeItem::Problem(_) | TreeItem::Excluded { .. } => entries += 1,
        }
    }
    let free_bytes = opened.free_bytes().await?;
    Ok((
        opened.remote.describe().location.clone(),
        entries,
        free_bytes,
    ))
}

fn in_words(connected: &Connected, output: &Output) -> String {
    let name = &connected.endpoint;
    match &connected.error {
        None => {
            let word = output.paint(Style::Good, "reached");
            let location = connected.location.as_deref().unwrap_or_default();
            let free = connected
                .free_bytes
                .map(|bytes| format!(", {} free", ByteSize(bytes)))
                .unwrap_or_default();
            format!(
                "{word}      {name}   {location} in {} ms{free}",
                connected.milliseconds
            )
        }
        Some(error) => {
            let word = output.paint(Style::Bad, "not reached");
            format!("{word}  {name}   {error}")
        }
    }
}

/// `1 job`, `2 jobs`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
