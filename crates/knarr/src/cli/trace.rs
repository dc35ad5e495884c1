//! `trace`: the story of one file.

mod story;

pub(crate) use story::shown_duration;

use clap::Args;
use knarr_core::RelPath;
use knarr_node::{query, record_of, v1};

use crate::cli::backend::{Fresh, Session};
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
    let session = Session::open(context, Fresh::Refuse)?;
    let request = request(context, arguments);
    let asked = request.clone();
    let reply = session.ask(
        async |client| Ok(client.history().trace(asked).await?.into_inner()),
        |store| query::trace(store, &request),
    )?;
    let records = reply.records.into_iter().map(record_of);
    let records: Vec<_> = records.collect::<Result<_, _>>()?;
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

/// A path on this machine, of which what is left below a known source is tried first; then as it was
/// written: exactly this one, or if there is none, those that end with it.
fn request(context: &Context, arguments: &TraceArguments) -> v1::TraceRequest {
    let written = arguments.path.as_str();
    let absolute = context.environment.absolute(std::path::Path::new(written));
    let text = written.trim_matches('/');
    let text = text.strip_prefix("./").unwrap_or(text);
    let path = RelPath::new(text.as_bytes()).ok();
    v1::TraceRequest {
        paths: path
            .into_iter()
            .map(|path| path.as_bytes().to_vec())
            .collect(),
        absolute: absolute.as_os_str().as_encoded_bytes().to_vec(),
        limit: u32::try_from(arguments.limit).unwrap_or(u32::MAX),
    }
}
