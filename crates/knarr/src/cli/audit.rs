//! `audit`: is the custody record as it was written, and export it.

use clap::{Args, Subcommand, ValueEnum};
use knarr_core::ContentHash;
use knarr_core::path::printable;
use knarr_core::record::Evidence;
use knarr_node::{Unreadable, query, record_of, timestamp, v1};
use knarr_store::chain::{ChainHead, Going};
use knarr_store::custody::ChainedRecord;
use serde::Serialize;

use crate::cli::backend::{Backend, Fresh, Session, told};
use crate::cli::context::Context;
use crate::cli::look::shown_time;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Format, Output, Style};

/// Check or export the custody record
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  knarr audit verify\n  knarr audit export --format csv > custody.csv"
)]
pub(crate) struct AuditArguments {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check that no record was changed, removed, inserted or reordered
    ///
    /// Each record's hash covers the one before it. Prints the end of the chain: note it elsewhere, and
    /// give it as --noted later, to find also a chain that was made anew as a whole. Exit code 1 if the
    /// chain is broken.
    #[command(after_help = "Example:\n  knarr audit verify --noted \"$(cat /mnt/usb/noted)\"")]
    Verify {
        /// An end of the chain that was printed before: COUNT:HASH
        #[arg(long, value_name = "COUNT:HASH", value_parser = noted)]
        noted: Option<ChainHead>,
    },
    /// Print all records in order
    #[command(after_help = "Example:\n  knarr audit export --format csv > custody.csv")]
    Export {
        /// In which format
        #[arg(long, value_enum, default_value_t = ExportFormat::Jsonl)]
        format: ExportFormat,
        /// From the record with this number
        #[arg(long, value_name = "NUMBER", default_value_t = 1)]
        from: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// One JSON object a line, with everything, names exact
    Jsonl,
    /// A table for a spreadsheet; cells that could be formulas begin with an apostrophe
    Csv,
}

#[derive(Serialize)]
struct Verdict {
    intact: bool,
    records: u64,
    /// How many older ones were pruned.
    pruned: u64,
    /// When the first one was made that is left, if older ones were pruned.
    kept_since: Option<knarr_core::Timestamp>,
    hash: Option<ContentHash>,
    broken_at: Option<u64>,
    defect: Option<String>,
}

fn noted(text: &str) -> Result<ChainHead, String> {
    text.split_once(':')
        .and_then(|(count, hash)| {
            Some(ChainHead {
                count: count.parse().ok()?,
                hash: ContentHash::from_hex(hash)?,
            })
        })
        .ok_or_else(|| "it should be COUNT:HASH, as `knarr audit verify` prints it".to_owned())
}

pub(crate) fn run(
    arguments: &AuditArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let session = Session::open(context, Fresh::Refuse)?;
    match &arguments.command {
        AuditCommand::Verify { noted } => verify(&session, noted.as_ref(), output),
        AuditCommand::Export { format, from } => export(&session, *format, *from, output),
    }
}

/// What the node says about the chain, or a look at it.
fn verdict(session: &Session, noted: Option<&ChainHead>) -> Result<v1::ChainVerdict, CommandError> {
    use v1::verify_event::What;
    let client = match &session.backend {
        Backend::Node(client) => client,
        Backend::State(store) => {
            let checked = store.check_chain(noted, &mut |_walked| Going::On)?;
            let checked = checked.ok_or_else(|| CommandError::failed("the check was given up"))?;
            return Ok(query::verdict(&checked));
        }
    };
    let request = noted.map_or_else(v1::VerifyRequest::default, |noted| v1::VerifyRequest {
        noted_count: noted.count,
        noted_hash: noted.hash.as_bytes().to_vec(),
    });
    session.runtime.block_on(async {
        let streaming = client.audit().verify(request).await.map_err(told)?;
        let mut streaming = streaming.into_inner();
        while let Some(event) = streaming.message().await.map_err(told)? {
            match event.what {
                Some(What::Verdict(verdict)) => return Ok(verdict),
                Some(What::Checked(number)) => tracing::debug!(number, "checked"),
                None => {}
            }
        }
        Err(CommandError::failed(
            "the node ended the check without a verdict",
        ))
    })
}

fn verify(session: &Session, noted: Option<&ChainHead>, output: &mut Output) -> CommandResult {
    let verdict = verdict(session, noted)?;
    let (pruned, kept_since) = (verdict.pruned, verdict.kept_since.map(timestamp));
    if !verdict.intact {
        let seq = verdict.broken_at;
        let before = seq.saturating_sub(1).saturating_sub(pruned);
        if output.format == Format::Json {
            output.json(&Verdict {
                intact: false,
                records: before,
                pruned,
                kept_since,
                hash: None,
                broken_at: Some(seq),
                defect: Some(verdict.defect),
            })?;
        } else {
            let words = output.paint(Style::Bad, "broken");
            output.line(format!("{words} at record no. {seq}: {}", verdict.defect))?;
            output.line(format!(
                "{before} records before it are as they were written"
            ))?;
        }
        return Ok(Outcome::SomeFailed);
    }
    let hash: [u8; 32] = verdict
        .hash
        .as_slice()
        .try_into()
        .map_err(|_| Unreadable("hash"))?;
    let hash = ContentHash::from_bytes(hash);
    let records = verdict.count - pruned.min(verdict.count);
    if output.format == Format::Json {
        output.json(&Verdict {
            intact: true,
            records,
            pruned,
            kept_since,
            hash: Some(hash),
            broken_at: None,
            defect: None,
        })?;
        return Ok(Outcome::Done);
    }
    let words = output.paint(Style::Good, "intact");
    output.line(format!(
        "{words}: {records} records are as they were written"
    ))?;
    if pruned > 0 {
        let since = kept_since.map(shown_time).unwrap_or_default();
        output.line(format!(
            "{pruned} older ones, from before {since}, were pruned, as the chain itself says"
        ))?;
    }
    output.line(format!("the chain ends at {}:{hash}", verdict.count))?;
    Ok(Outcome::Done)
}

fn export(
    session: &Session,
    format: ExportFormat,
    from: u64,
    output: &mut Output,
) -> CommandResult {
    if format == ExportFormat::Csv {
        output.line(COLUMNS.join(","))?;
    }
    let mut print = |record: &ChainedRecord| match format {
        ExportFormat::Jsonl => output.json(record),
        ExportFormat::Csv => output.line(csv_line(record)),
    };
    match &session.backend {
        Backend::State(store) => {
            for record in store.custody_cursor(from) {
                print(&record.map_err(CommandError::from)?)?;
            }
        }
        Backend::Node(client) => session.runtime.block_on(async {
            let request = v1::ExportRequest { from };
            let streaming = client.audit().export(request).await.map_err(told)?;
            let mut streaming = streaming.into_inner();
            while let Some(record) = streaming.message().await.map_err(told)? {
                print(&record_of(record)?)?;
            }
            Ok::<_, CommandError>(())
        })?,
    }
    Ok(Outcome::Done)
}

const COLUMNS: [&str; 21] = [
    "seq",
    "at",
    "run",
    "job",
    "path",
    "action",
    "source",
    "destination",
    "size",
    "mtime",
    "source_hash",
    "evidence",
    "evidence_value",
    "seen_at",
    "complete_because",
    "steps",
    "attempt",
    "moved_bytes",
    "duration_microseconds",
    "message",
    "decided_by",
];

fn csv_line(chained: &ChainedRecord) -> String {
    let record = &chained.record;
    let text = |text: &str| printable(text.as_bytes()).to_string();
    let time =
        |time: Option<knarr_core::Timestamp>| time.map(|t| t.to_string()).unwrap_or_default();
    let (evidence, value) = match &record.evidence {
        Evidence::ReadBack { hash } => ("read_back", hash.to_string()),
        Evidence::Written { hash } => ("written", hash.to_string()),
        Evidence::ServerChecksum { algorithm, value } => {
            ("server_checksum", text(&format!("{algorithm} {value}")))
        }
        Evidence::SizeOnly { reason } => ("size_only", text(reason)),
        Evidence::None => ("none", String::new()),
    };
    let steps: Vec<String> = record
        .steps
        .iter()
        .map(|step| text(&format!("{}: {}", step.step, step.detail)))
        .collect();
    let cells: [String; 21] = [
        chained.seq.to_string(),
        record.at.to_string(),
        record.run.to_string(),
        text(&record.job),
        record.path.to_string(),
        record.action.name().to_owned(),
        text(&record.source),
        text(&record.destination),
        record.size.to_string(),
        time(record.mtime),
        record
            .source_hash
            .map(|hash| hash.to_string())
            .unwrap_or_default(),
        evidence.to_owned(),
        value,
        time(record.seen_at),
        record
            .complete_because
            .as_deref()
            .map(text)
            .unwrap_or_default(),
        steps.join("; "),
        record.attempt.to_string(),
        record.moved_bytes.to_string(),
        record.duration_microseconds.to_string(),
        record.message.as_deref().map(text).unwrap_or_default(),
        text(&record.decided_by),
    ];
    cells.map(|cell| csv_cell(&cell)).join(",")
}

/// A cell of RFC 4180 that no spreadsheet takes for a formula (H-06).
fn csv_cell(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠']);
    let text = if is_formula {
        format!("'{text}")
    } else {
        text.to_owned()
    };
    if text.contains(['"', ',', '\n', '\r', ';']) || is_formula {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::csv_cell;

    #[test]
    fn h06_a_cell_is_never_a_formula() {
        for (text, cell) in [
            ("a b", "a b"),
            ("=cmd|' /C calc'!A0", "\"'=cmd|' /C calc'!A0\""),
            ("+1", "\"'+1\""),
            ("-rf", "\"'-rf\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("a,\"b\"", "\"a,\"\"b\"\"\""),
            ("", ""),
        ] {
            assert_eq!(csv_cell(text), cell, "{text}");
        }
    }
}
