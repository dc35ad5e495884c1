//! `reload`: have the running node read its configuration again.

use clap::Args;
use knarr_node::v1;

use crate::cli::backend::{Fresh, Session, told};
use crate::cli::context::Context;
use crate::cli::job::change::{print_problem, problem_data};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Format, Output, Style};

/// Have the running node read its configuration again
///
/// Changed jobs are replaced when what they do has ended in good order, removed ones stop, new ones begin.
/// Targets, alert rules and users of the SFTP server are taken over, too; what needs a new start is named.
/// A configuration that is wrong changes nothing: what is wrong is told, and the old one stays in force.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr reload")]
pub(crate) struct ReloadArguments {}

pub(crate) fn run(
    _arguments: &ReloadArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let session = Session::open(context, Fresh::Refuse)?;
    let client = session.node()?;
    let answer = session
        .runtime
        .block_on(client.node().reload(v1::ReloadRequest {}));
    let reloaded = answer.map_err(told)?.into_inner();
    for problem in &reloaded.problems {
        if output.format == Format::Json {
            output.json(&problem_data(problem))?;
        } else {
            print_problem("the file", problem, output)?;
        }
    }
    if !reloaded.problems.is_empty() {
        output.flush()?;
        return Err(CommandError::usage(
            "the configuration is wrong, and the old one stays in force",
        ));
    }
    for change in &reloaded.changes {
        if output.format == Format::Json {
            output.json(&serde_json::json!({ "job": change.job, "what": change.what }))?;
        } else {
            output.line(format!("{:<10}{}", change.what, change.job))?;
        }
    }
    if output.format == Format::Json {
        if !(reloaded.taken_over.is_empty() && reloaded.needs_restart.is_empty()) {
            output.json(&serde_json::json!({
                "taken_over": reloaded.taken_over,
                "needs_restart": reloaded.needs_restart,
            }))?;
        }
        return Ok(Outcome::Done);
    }
    if reloaded.changes.is_empty() {
        output.line("no job changed")?;
    }
    for what in &reloaded.taken_over {
        output.line(format!("{:<10}{what}", "changed"))?;
    }
    for what in &reloaded.needs_restart {
        let line = format!("{what} counts from the next start of the node");
        let line = output.paint(Style::Warning, &line);
        output.line(line)?;
    }
    Ok(Outcome::Done)
}
