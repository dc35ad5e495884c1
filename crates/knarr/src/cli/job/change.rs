//! `job validate`, `plan`, `add`, `update`, `rm`, `pause` and `resume`.

use std::io::Read as _;
use std::path::Path;

use knarr_node::query::{self, Pause};
use knarr_node::{Host as _, MAX_DOCUMENT_BYTES, v1};
use knarr_store::definitions::DefinitionKind;

use crate::cli::backend::{Fresh, Session};
use crate::cli::context::Context;
use crate::cli::desk;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Format, Output, Style};

/// Whether names have to be new, or have to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    Add,
    Update,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PauseVerb {
    Begin,
    End,
}

fn read(file: &Path) -> Result<v1::Document, CommandError> {
    let cannot = |error: std::io::Error| {
        CommandError::usage(format!("cannot read {}: {error}", file.display()))
    };
    let limit = MAX_DOCUMENT_BYTES as u64 + 1;
    let (mut bytes, is_stdin) = (Vec::new(), file == Path::new("-"));
    if is_stdin {
        let mut stdin = std::io::stdin().lock().take(limit);
        stdin.read_to_end(&mut bytes).map_err(cannot)?;
    } else {
        let opened = std::fs::File::open(file).map_err(cannot)?;
        opened.take(limit).read_to_end(&mut bytes).map_err(cannot)?;
    }
    if bytes.len() > MAX_DOCUMENT_BYTES {
        let message = format!("{} is longer than 1 MiB", file.display());
        return Err(CommandError::usage(message).hint("put the jobs into several documents"));
    }
    let yaml = String::from_utf8(bytes);
    let yaml =
        yaml.map_err(|_error| CommandError::usage(format!("{} is not UTF-8", file.display())))?;
    let name = if is_stdin {
        "stdin".to_owned()
    } else {
        file.display().to_string()
    };
    Ok(v1::Document { yaml, name })
}

/// Who gives the command.
pub(crate) fn user(context: &Context) -> String {
    let user = context.environment.user.clone();
    user.unwrap_or_else(|| "somebody".to_owned())
}

pub(super) fn validate(file: &Path, context: &Context, output: &mut Output) -> CommandResult {
    let document = read(file)?;
    let sent = document.clone();
    let validated = desk::ask(
        context,
        async |client| Ok(client.jobs().validate(sent).await?.into_inner()),
        async |desk| {
            let problems = desk.host().read(&document).err().unwrap_or_default();
            Ok(v1::Validated { problems })
        },
    )?;
    for problem in &validated.problems {
        if output.format == Format::Json {
            output.json(&problem_data(problem))?;
        } else {
            print_problem(&document.name, problem, output)?;
        }
    }
    if !validated.problems.is_empty() {
        output.flush()?;
        return Err(CommandError::usage(format!("{} is wrong", document.name)));
    }
    if output.format == Format::Text {
        output.line(format!("{} is right", document.name))?;
    }
    Ok(Outcome::Done)
}

/// A problem as data.
pub(crate) fn problem_data(problem: &v1::Problem) -> serde_json::Value {
    serde_json::json!({
        "line": (problem.line > 0).then_some(problem.line),
        "column": (problem.column > 0).then_some(problem.column),
        "place": problem.place,
        "message": problem.message,
        "help": (!problem.help.is_empty()).then_some(&problem.help),
    })
}

/// A problem on a line, with its place.
pub(crate) fn print_problem(
    name: &str,
    problem: &v1::Problem,
    output: &mut Output,
) -> Result<(), CommandError> {
    let place = match problem.line {
        0 => name.to_owned(),
        line => format!("{name}:{line}:{}", problem.column),
    };
    let help = match problem.help.as_str() {
        "" => String::new(),
        help => format!(" ({help})"),
    };
    let separator = if problem.place.is_empty() { "" } else { ": " };
    Ok(output.line(format!(
        "{place}: {}{separator}{}{help}",
        problem.place, problem.message
    ))?)
}

pub(super) fn plan(file: &Path, context: &Context, output: &mut Output) -> CommandResult {
    let document = read(file)?;
    let sent = document.clone();
    let changes = desk::ask(
        context,
        async |client| Ok(client.jobs().plan(sent).await?.into_inner()),
        async |desk| desk.plan(&document).map(|(changes, _)| changes),
    )?;
    print(&changes, output)
}

pub(crate) fn put(put: Put, file: &Path, context: &Context, output: &mut Output) -> CommandResult {
    let document = read(file)?;
    let sent = document.clone();
    let by = user(context);
    let changes = desk::ask(
        context,
        async |client| {
            let mut jobs = client.jobs();
            let answer = match put {
                Put::Add => jobs.add(sent).await?,
                Put::Update => jobs.update(sent).await?,
            };
            Ok(answer.into_inner())
        },
        async |desk| match put {
            Put::Add => desk.add(&document, &by).await,
            Put::Update => desk.update(&document, &by).await,
        },
    )?;
    print(&changes, output)
}

fn print(changes: &v1::Changes, output: &mut Output) -> CommandResult {
    use v1::change::What;
    for change in &changes.changes {
        let (word, style) = match change.what() {
            What::Added => ("added", Style::Good),
            What::Changed => ("changed", Style::Warning),
            What::Unchanged => ("unchanged", Style::Faint),
            What::OfTheFile => ("of the file", Style::Bad),
            What::Removed => ("removed", Style::Warning),
            What::Unspecified => ("unknown", Style::Bad),
        };
        if output.format == Format::Json {
            output.json(&serde_json::json!({
                "kind": change.kind,
                "name": change.name,
                "what": word.replace(' ', "_"),
                "keys": change.keys,
            }))?;
            continue;
        }
        let keys = if change.keys.is_empty() {
            String::new()
        } else {
            format!(": {}", change.keys.join(", "))
        };
        let word = output.paint(style, &format!("{word:<12}"));
        output.line(format!("{word}{} {}{keys}", change.kind, change.name))?;
    }
    Ok(Outcome::Done)
}

pub(super) fn remove(job: &str, context: &Context, output: &mut Output) -> CommandResult {
    let request = v1::JobName {
        job: job.to_owned(),
    };
    let changed = desk::ask(
        context,
        async |client| Ok(client.jobs().remove(request).await?.into_inner()),
        async |desk| {
            desk.remove_definition(DefinitionKind::Job, job, &user(context))
                .await
        },
    )?;
    if output.format == Format::Json {
        output.json(&serde_json::json!({ "job": job, "changed": changed.changed }))?;
    } else {
        output.line(format!("{job} is removed; what it recorded stays"))?;
    }
    Ok(Outcome::Done)
}

pub(super) fn pause(
    job: &str,
    what: PauseVerb,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let name = desk::job(context, job)?.name;
    let session = Session::open(context, Fresh::Make)?;
    let request = v1::JobName { job: name.clone() };
    let changed = session.ask(
        async |client| {
            let mut jobs = client.jobs();
            let answer = match what {
                PauseVerb::Begin => jobs.pause(request).await?,
                PauseVerb::End => jobs.resume(request).await?,
            };
            Ok(answer.into_inner())
        },
        |store| {
            let what = match what {
                PauseVerb::Begin => Pause::Begin { by: user(context) },
                PauseVerb::End => Pause::End,
            };
            query::pause(store, &name, what)
        },
    )?;
    let text = match (what, changed.changed) {
        (PauseVerb::Begin, true) => format!("{job} is paused: it begins no more by itself"),
        (PauseVerb::Begin, false) => format!("{job} was paused already"),
        (PauseVerb::End, true) => {
            format!("{job} is resumed; times that passed meanwhile are left out")
        }
        (PauseVerb::End, false) => format!("{job} was not paused"),
    };
    if output.format == Format::Json {
        output.json(&serde_json::json!({ "job": job, "changed": changed.changed }))?;
    } else {
        output.line(text)?;
    }
    Ok(Outcome::Done)
}
