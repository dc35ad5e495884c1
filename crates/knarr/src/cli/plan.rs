//! `plan` and `apply`: look now, review, carry out exactly that later.

use std::fs::OpenOptions;
use std::io::{BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use knarr_core::Clock as _;
use knarr_engine::EngineError;
use knarr_engine::plan_file::{Header, PlanReader, PlanWriter, VERSION, describe};
use serde::{Deserialize, Serialize};

use crate::cli::context::Context;
use crate::cli::oneshot::{
    Approval, Request, Watching, environment, looked, outcome, spec, tell, told,
};
use crate::cli::transfer::{Places, TransferArguments, Verb};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::location::Opener;
use crate::output::{Format, Output};

/// Write down what would be done, for review and `knarr apply`
///
/// Looks at both sides as `copy` (or --mode) would, moves nothing, and writes every decision to a file
/// of JSON lines. `knarr apply` carries out exactly that, or nothing.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr plan --mode mirror ./site partner:site -o plan.json")]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    places: Places,
    /// Which command is planned
    #[arg(long, value_enum, default_value = "copy", value_name = "COMMAND")]
    mode: Verb,
    /// Where the plan goes; it must not exist yet
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    how: TransferArguments,
}

/// Carry out exactly a reviewed plan
///
/// Looks at both sides again. If they moved, so that the plan would be another one, nothing is done, and
/// the first path that differs is named. Removals need no further approval: the review was it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr apply plan.json --dry-run\n  knarr apply plan.json")]
pub(crate) struct ApplyArguments {
    /// The plan that `knarr plan` wrote
    plan: PathBuf,
    /// Show what the plan says, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// What a plan was made with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlannedWith {
    mode: Verb,
    places: Places,
    how: TransferArguments,
}

/// A plan file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the plan {}", path.display())]
struct PlanIo {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

pub(crate) fn plan(
    arguments: &PlanArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let with = PlannedWith {
        mode: arguments.mode,
        places: arguments.places.absolute(&context.environment)?,
        how: arguments.how.clone(),
    };
    let request = Request::new(with.mode, &with.places, &with.how, Approval::NotGiven)?;
    let path = arguments.output.as_path();
    let failed = |operation| {
        move |source| {
            CommandError::failed(PlanIo {
                operation,
                path: path.to_owned(),
                source,
            })
        }
    };
    let opener = Opener::new(context)?;
    context.runtime()?.block_on(async {
        let spec = spec(&request, context, &opener).await?;
        let watching = Watching::silent();
        let environment = environment(context, &opener, &watching).await?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map_err(failed("write"))?;
        let header = Header {
            knarr_plan: VERSION,
            created: context.clock.now().to_string(),
            arguments: serde_json::to_value(&with).map_err(CommandError::failed)?,
        };
        let mut writer =
            PlanWriter::begin(BufWriter::new(file), &header).map_err(failed("write"))?;
        let (mut count, mut written) = (0_u64, Ok(()));
        let planned = spec
            .plan(&environment, |decision| {
                count += 1;
                written = writer.add(&decision);
                match &written {
                    Ok(()) => Ok(()),
                    Err(_refused) => Err(EngineError::Internal("the plan cannot be written")),
                }
            })
            .await;
        written.map_err(failed("write"))?;
        let planned = planned.map_err(told)?;
        let file = writer.finish().map_err(failed("write"))?;
        let file = file
            .into_inner()
            .map_err(|error| failed("write")(error.into_error()))?;
        file.sync_all().map_err(failed("flush"))?;
        if output.format == Format::Json {
            output.json(&serde_json::json!({ "plan": path, "decisions": count }))?;
        } else {
            output.line(format!("{count} decisions are in {}", path.display()))?;
        }
        Ok(looked(&planned))
    })
}

pub(crate) fn apply(
    arguments: &ApplyArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let path = arguments.plan.as_path();
    let (with, mut reader) = open(path)?;
    if arguments.dry_run {
        while let Some(decision) = reader.next_decision().map_err(told)? {
            match output.format {
                Format::Json => output.json(&decision)?,
                Format::Text => output.line(describe(&decision))?,
            }
        }
        return Ok(Outcome::Done);
    }
    let request = Request::new(with.mode, &with.places, &with.how, Approval::Given)?;
    let opener = Opener::new(context)?;
    context.runtime()?.block_on(async {
        let began = context.clock.now();
        let spec = spec(&request, context, &opener).await?;
        let watching = Watching::start(context);
        let environment = environment(context, &opener, &watching).await?;
        // Read twice: to compare with the trees before anything is done, and to carry it out.
        let again = || {
            let file = std::fs::File::open(path).map_err(|error| unreadable(&error))?;
            PlanReader::open(BufReader::new(file)).map(|(_header, reader)| reader)
        };
        let report = spec.apply(&environment, again).await;
        watching.finish();
        let report = report.map_err(told)?;
        tell(&report, began, context, output)?;
        Ok(outcome(&report))
    })
}

fn unreadable(error: &std::io::Error) -> EngineError {
    EngineError::PlanFile {
        line: 1,
        reason: error.to_string(),
    }
}

type Reader = PlanReader<BufReader<std::fs::File>>;

fn open(path: &Path) -> Result<(PlannedWith, Reader), CommandError> {
    let file = std::fs::File::open(path).map_err(|source| {
        CommandError::usage(PlanIo {
            operation: "read",
            path: path.to_owned(),
            source,
        })
    })?;
    let (header, reader) = PlanReader::open(BufReader::new(file)).map_err(told)?;
    let with = serde_json::from_value(header.arguments).map_err(|error| {
        CommandError::usage(EngineError::PlanFile {
            line: 1,
            reason: error.to_string(),
        })
    })?;
    Ok((with, reader))
}
