//! `approve`: let a held plan go on.

use std::io::Write as _;

use clap::Args;
use knarr_store::holds::{Approved, Hold};
use knarr_store::pairs::Pair;

use crate::cli::context::Context;
use crate::cli::look::shown_time;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Format, Output};

/// Let a plan go on that was held because it deletes too much
///
/// Approves the plan that is held now, and no other: if the trees change so that another plan would be
/// held, that one waits again. Without a job, what is held is listed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr approve\n  knarr approve sensors")]
pub(crate) struct ApproveArguments {
    /// The job whose plan is held
    job: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(
    arguments: &ApproveArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let store = context.existing_store()?;
    let held: Vec<(Pair, Hold)> = store.read(|reader| {
        let holds = reader.holds()?;
        let pairs = reader.pairs()?;
        Ok(holds
            .into_iter()
            .filter_map(|hold| {
                let pair = pairs.iter().find(|pair| pair.id == hold.pair)?;
                Some((pair.clone(), hold))
            })
            .collect())
    })?;
    let Some(job) = &arguments.job else {
        return list(&held, output);
    };
    let mine: Vec<&(Pair, Hold)> = held
        .iter()
        .filter(|(pair, _hold)| pair.known_as.job.as_ref() == Some(job))
        .collect();
    if mine.is_empty() {
        return Err(
            CommandError::usage(format!("nothing of the job `{job}` is held"))
                .hint("`knarr approve` alone lists what is held"),
        );
    }
    for (pair, hold) in mine {
        tell(pair, hold)?;
        if !arguments.yes && context.environment.stdin_is_terminal && !confirmed()? {
            return Err(CommandError::usage("nothing was approved"));
        }
        let by = context
            .environment
            .user
            .clone()
            .unwrap_or_else(|| "somebody".to_owned());
        let (id, digest, name) = (pair.id, hold.held.digest, by.clone());
        match store
            .transact(move |tx| tx.approve(id, &digest, &name))
            .wait()?
        {
            Approved::Done => {}
            Approved::AnotherPlan | Approved::NothingHeld => {
                return Err(CommandError::failed(
                    "the plan changed meanwhile, and was not approved",
                )
                .hint("look at it again: `knarr approve`"));
            }
        }
        if output.format == Format::Json {
            output.json(&serde_json::json!({ "job": job, "approved_by": by }))?;
        }
    }
    Ok(Outcome::Done)
}

fn list(held: &[(Pair, Hold)], output: &mut Output) -> CommandResult {
    if held.is_empty() && output.format == Format::Text {
        output.line("nothing is held")?;
    }
    for (pair, hold) in held {
        if output.format == Format::Json {
            output.json(&serde_json::json!({
                "job": pair.known_as.job,
                "source": pair.known_as.source,
                "destination": pair.known_as.destination,
                "deletes": hold.held.deletes,
                "total": hold.held.total,
                "reason": hold.held.reason,
                "held_at": hold.held_at,
                "approved_by": hold.approval.as_ref().map(|approval| &approval.by),
            }))?;
        } else {
            output.line(sentence(pair, hold))?;
        }
    }
    let waits = held.iter().any(|(_pair, hold)| hold.approval.is_none());
    Ok(if waits { Outcome::Held } else { Outcome::Done })
}

fn sentence(pair: &Pair, hold: &Hold) -> String {
    let safe = |text: &str| knarr_core::path::printable(text.as_bytes()).to_string();
    let approval = match &hold.approval {
        Some(approval) => format!("; approved by {}", safe(&approval.by)),
        None => String::new(),
    };
    let how = match &pair.known_as.job {
        Some(_) => "",
        None => "; --approve-deletes carries it out",
    };
    format!(
        "{}: {} → {}, held since {}: {} of {} would be deleted ({}){approval}{how}",
        safe(pair.known_as.job.as_deref().unwrap_or("(one-shot)")),
        safe(&pair.known_as.source),
        safe(&pair.known_as.destination),
        shown_time(hold.held_at),
        hold.held.deletes,
        hold.held.total,
        safe(&hold.held.reason),
    )
}

fn tell(pair: &Pair, hold: &Hold) -> Result<(), CommandError> {
    writeln!(std::io::stderr(), "{}", sentence(pair, hold)).map_err(CommandError::failed)
}

fn confirmed() -> Result<bool, CommandError> {
    let answer = crate::terminal::ask("Carry it out? [y/N] ").map_err(CommandError::failed)?;
    Ok(answer.is_some_and(|answer| matches!(answer.to_lowercase().as_str(), "y" | "yes")))
}
