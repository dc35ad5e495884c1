//! `approve`: let a held plan go on.

use std::io::Write as _;

use clap::Args;
use knarr_node::{query, timestamp, v1};

use crate::cli::backend::{Fresh, Session};
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
    let session = Session::open(context, Fresh::Refuse)?;
    let held = session.ask(
        async |client| Ok(client.node().held(v1::HeldRequest {}).await?.into_inner()),
        query::held,
    )?;
    let Some(job) = &arguments.job else {
        return list(&held.plans, output);
    };
    let is_mine = |plan: &&v1::HeldPlan| plan.job.as_ref() == Some(job);
    let mine: Vec<_> = held.plans.iter().filter(is_mine).collect();
    if mine.is_empty() {
        return Err(
            CommandError::usage(format!("nothing of the job `{job}` is held"))
                .hint("`knarr approve` alone lists what is held"),
        );
    }
    for plan in mine {
        tell(plan)?;
        if !arguments.yes && context.environment.stdin_is_terminal && !confirmed()? {
            return Err(CommandError::usage("nothing was approved"));
        }
        let by = context
            .environment
            .user
            .clone()
            .unwrap_or_else(|| "somebody".to_owned());
        let request = v1::ApproveRequest {
            pair: plan.pair,
            digest: plan.digest.clone(),
        };
        let asked = request.clone();
        let approved = session.ask(
            async |client| Ok(client.node().approve(asked).await?.into_inner()),
            |store| query::approve(store, &request, &by),
        )?;
        if !approved.approved {
            return Err(
                CommandError::failed("the plan changed meanwhile, and was not approved")
                    .hint("look at it again: `knarr approve`"),
            );
        }
        if output.format == Format::Json {
            output.json(&serde_json::json!({ "job": job, "approved_by": by }))?;
        }
    }
    Ok(Outcome::Done)
}

fn list(held: &[v1::HeldPlan], output: &mut Output) -> CommandResult {
    if held.is_empty() && output.format == Format::Text {
        output.line("nothing is held")?;
    }
    for plan in held {
        if output.format == Format::Json {
            output.json(&serde_json::json!({
                "job": plan.job,
                "source": plan.source,
                "destination": plan.destination,
                "deletes": plan.deletes,
                "total": plan.total,
                "reason": plan.reason,
                "held_at": timestamp(plan.held_at),
                "approved_by": plan.approved_by,
            }))?;
        } else {
            output.line(sentence(plan))?;
        }
    }
    let waits = held.iter().any(|plan| plan.approved_by.is_none());
    Ok(if waits { Outcome::Held } else { Outcome::Done })
}

fn sentence(plan: &v1::HeldPlan) -> String {
    let safe = |text: &str| knarr_core::path::printable(text.as_bytes()).to_string();
    let approval = match &plan.approved_by {
        Some(by) => format!("; approved by {}", safe(by)),
        None => String::new(),
    };
    let how = match &plan.job {
        Some(_) => "",
        None => "; --approve-deletes carries it out",
    };
    format!(
        "{}: {} → {}, held since {}: {} of {} would be deleted ({}){approval}{how}",
        safe(plan.job.as_deref().unwrap_or("(one-shot)")),
        safe(&plan.source),
        safe(&plan.destination),
        shown_time(timestamp(plan.held_at)),
        plan.deletes,
        plan.total,
        safe(&plan.reason),
    )
}

fn tell(plan: &v1::HeldPlan) -> Result<(), CommandError> {
    writeln!(std::io::stderr(), "{}", sentence(plan)).map_err(CommandError::failed)
}

fn confirmed() -> Result<bool, CommandError> {
    let answer = crate::terminal::ask("Carry it out? [y/N] ").map_err(CommandError::failed)?;
    Ok(answer.is_some_and(|answer| matches!(answer.to_lowercase().as_str(), "y" | "yes")))
}
