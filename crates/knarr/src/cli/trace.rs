//! `trace`: the story of one file.

mod story;

pub(crate) use story::shown_duration;

use clap::Args;
use knarr_core::RelPath;
use knarr_store::Store;
use knarr_store::custody::ChainedRecord;
use knarr_store::history::TracePath;

use crate::cli::context::Context;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Format, Output};

/// Tell the story of a file
///
/// When it was seen and why it counted as complete; every attempt, with its error; from where to where,
/// how many bytes, the hash at both ends or why there is none; the steps and what they made of it; who
/// decided.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr trace sub/report.csv")]
pub(crate) struct TraceArguments {
    /// The path below the source, its last components, or the whole path of the source
    path: String,
    /// At most so many records, the newest
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

pub(crate) fn run(
    arguments: &TraceArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let store = context.existing_store()?;
    let records = find(&store, context, arguments)?;
    if records.is_empty() {
        let path = knarr_core::path::printable(arguments.path.as_bytes()).to_string();
        return Err(
            CommandError::failed(format!("nothing is recorded about \"{path}\""))
                .hint("`knarr history --path '*GLOB*'` searches by pattern"),
        );
    }
    if output.format == Format::Json {
        for record in &records {
            output.json(record)?;
        }
        return Ok(Outcome::Done);
    }
    let story = story::tell(&records, &jiff::tz::TimeZone::system());
    story::print(&story, output)?;
    Ok(Outcome::Done)
}

/// The records of the path: exactly this one, or if there is none, those that end with it.
fn find(
    store: &Store,
    context: &Context,
    arguments: &TraceArguments,
) -> Result<Vec<ChainedRecord>, CommandError> {
    let written = arguments.path.as_str();
    let mut candidates = Vec::new();
    let mut add = |text: &str| {
        let text = text.trim_matches('/');
        let text = text.strip_prefix("./").unwrap_or(text);
        if let Ok(path) = RelPath::new(text.as_bytes()) {
            candidates.push(path);
        }
    };
    // A path on this machine: what is left of it below a source or destination that is known.
    let absolute = context.environment.absolute(std::path::Path::new(written));
    for pair in store.read(|reader| reader.pairs())? {
        let root = std::path::Path::new(&pair.known_as.source);
        if root.is_absolute()
            && let Ok(below) = absolute.strip_prefix(root)
        {
            add(&below.to_string_lossy());
        }
    }
    add(written);
    for path in &candidates {
        let exact = TracePath::Exact(path.clone());
        let records = store.read(|reader| reader.trace(&exact, arguments.limit))?;
        if !records.is_empty() {
            return Ok(records);
        }
    }
    match candidates.pop() {
        Some(path) => {
            let ending = TracePath::EndsWith(path);
            Ok(store.read(|reader| reader.trace(&ending, arguments.limit))?)
        }
        None => Ok(Vec::new()),
    }
}
