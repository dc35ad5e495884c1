//! The page: `docs/benchmarks.md`, from what the rows found and from notes written by hand.
//!
//! Constraints: the page says on its own what was measured, on what, when, how, and whether it is enough; a
//! row that was not measured says so. The notes (`xtask/bench-notes.md`) are taken section by section
//! under the rows' names, so that measuring again keeps them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::bench::machine;
use crate::bench::row::{self, Found, Goal, Number, Row, Series, Side};
use crate::bench::tools::Tools;
use crate::{Outcome, workspace_root};

const NUMBERS: [Number; 8] = [
    Number::Seconds,
    Number::MedianMilliseconds,
    Number::Percentile99Milliseconds,
    Number::IdleMegabytes,
    Number::IdleAnonymousMegabytes,
    Number::CpuSeconds,
    Number::ServerCpuSeconds,
    Number::PeakMegabytes,
];

const METHOD: &str = "\
All contestants of a row run on the same data against the same server in one run, in alternating rounds that
begin with another one each time, each with a fresh destination; Knarr with a fresh state directory. Numbers are
medians. Every delivery is held against the source (outside the measured time; every byte in the first round,
every length in all). CPU seconds are user and system time of the client's whole process tree, not of the
server; server CPU seconds, in the rows about Knarr's own server, are those of the server and its sessions. Peak memory is the largest sum of the resident high-water marks of the client's processes, looked at every
20 ms.

Rows with a network and rows about watching keep data, servers and Knarr's state in memory-backed storage
(`/dev/shm`): they compare programs, not disks; so do those about OpenPGP. The rows `local-200k`, `noop-200k`, `extract-…` and
`server-small-put-disk` are on a real disk. Client
and server share the machine. Knarr runs as it comes, with hashing, staged names, durable commits and the custody
record on. Peers run as they come and tuned, which means: with the flags that their documentation offers for
the case; the commands stand in `xtask/src/bench/`.
";

/// Writes the page.
///
/// # Errors
///
/// If a file cannot be read or written.
pub(crate) fn write(rows: &[Row], kept: &Path) -> Outcome {
    let notes_path = workspace_root().join("xtask/bench-notes.md");
    let notes = fs::read_to_string(&notes_path)
        .map_err(|error| format!("cannot read {}: {error}", notes_path.display()))?;
    let mut found = Vec::new();
    for row in rows {
        found.push((row, load(kept, row.id)?));
    }
    let path = workspace_root().join("docs/benchmarks.md");
    fs::write(&path, page(&found, &notes))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

fn load(kept: &Path, id: &str) -> Result<Option<Found>, String> {
    let path = kept.join(format!("{id}.json"));
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(None);
    };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| format!("{} is damaged: {error}", path.display()))
}

fn page(rows: &[(&Row, Option<Found>)], notes: &str) -> String {
    let mut page = String::from(
        "# Benchmarks\n\nWritten by `cargo xtask bench --write`; the paragraphs under \"what bounds it\" by \
         hand, in `xtask/bench-notes.md`.\n\n",
    );
    page.push_str(&section(notes, "summary"));
    page.push_str("## What is to be reached, and what is\n\n| row | goal | measured | reached |\n|---|---|---|---|\n");
    for (row, found) in rows {
        for goal in row.goals {
            let (measured, reached) = match found {
                Some(found) => judge(*goal, found),
                None => ("not measured".to_owned(), None),
            };
            let reached = match reached {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "–",
            };
            let line = format!(
                "| [{}](#{}) | {} | {measured} | {reached} |",
                row.title,
                row.id,
                describe(*goal)
            );
            page.push_str(&line);
            page.push('\n');
        }
    }
    page.push_str("\n## On what and how\n\n");
    page.push_str(&format!(
        "{}; Knarr {}.\n\n",
        machine::description(),
        machine::commit()
    ));
    page.push_str(METHOD);
    page.push_str("\n| program | version |\n|---|---|\n");
    for (name, version) in Tools::find().versions() {
        page.push_str(&format!("| {name} | {version} |\n"));
    }
    page.push_str("\n## The rows\n");
    for (row, found) in rows {
        page.push_str(&format!("\n### {}\n\n{}.", row.id, row.title));
        match found {
            Some(found) => {
                page.push_str(&format!(" Measured on {}.\n\n", found.date));
                page.push_str(&row_table(found));
            }
            None => page.push_str(" Not measured yet.\n"),
        }
        let note = section(notes, row.id);
        if !note.is_empty() {
            page.push_str(&format!("\n**What bounds it.** {}", note.trim_start()));
        }
    }
    page.trim_end().to_owned() + "\n"
}

/// The text below the heading `## name` of the notes, with an empty line at its end.
fn section(notes: &str, name: &str) -> String {
    let heading = format!("## {name}");
    let mut lines = notes.lines().skip_while(|line| line.trim_end() != heading);
    lines.next();
    let body: Vec<&str> = lines.take_while(|line| !line.starts_with("## ")).collect();
    let body = body.join("\n");
    match body.trim() {
        "" => String::new(),
        text => format!("{text}\n\n"),
    }
}

/// A row's numbers as a table of Markdown.
pub(crate) fn row_table(found: &Found) -> String {
    let numbers: Vec<Number> = NUMBERS
        .into_iter()
        .filter(|number| {
            found
                .series
                .iter()
                .any(|series| series.median(*number).is_some())
        })
        .collect();
    let mut table = String::new();
    if !found.series.is_empty() {
        table.push_str("| who |");
        for number in &numbers {
            table.push_str(&format!(" {} |", number.heading()));
        }
        table.push_str(" Knarr is | rounds |\n|---|");
        table.push_str(&"---|".repeat(numbers.len() + 2));
        table.push('\n');
    }
    for series in &found.series {
        table.push_str(&line(series, &numbers, found));
    }
    let remarks = found.remarks.iter().map(|remark| format!("\n{remark}.\n"));
    table.extend(remarks);
    table
}

fn line(series: &Series, numbers: &[Number], found: &Found) -> String {
    let mut line = match series.side {
        Side::Ours => format!("| **{}** |", series.name),
        Side::Peer => format!("| {} |", series.name),
        Side::Beside => format!("| *{}* |", series.name),
    };
    for number in numbers {
        let cell = match (series.median(*number), number) {
            (None, _) => "–".to_owned(),
            (Some(median), Number::Seconds) => {
                let values = series.sorted(*number);
                match (values.first(), values.last()) {
                    (Some(least), Some(most)) if values.len() > 1 => {
                        format!("{} ({}–{})", short(median), short(*least), short(*most))
                    }
                    _ => short(median),
                }
            }
            (Some(median), _) => short(median),
        };
        write!(line, " {cell} |").ok();
    }
    let ratio = faster(series, found).unwrap_or_default();
    write!(line, " {ratio} | {} |", series.samples.len()).ok();
    if !series.remarks.is_empty() {
        let remarks = series.remarks.join("; ").replace('|', "/");
        write!(line, " {remarks} |").ok();
    }
    line.push('\n');
    line
}

/// How many times as fast as somebody Knarr is.
fn faster(series: &Series, found: &Found) -> Option<String> {
    if series.side == Side::Ours {
        return None;
    }
    let number = [Number::Seconds, Number::MedianMilliseconds]
        .into_iter()
        .find(|number| series.median(*number).is_some())?;
    let ratio = series.median(number)? / found.ours()?.median(number)?;
    // Who was stopped at a time limit would have taken longer.
    let sign = match series
        .remarks
        .iter()
        .any(|remark| remark.starts_with(row::STOPPED))
    {
        true => "> ",
        false => "",
    };
    Some(format!("{sign}{} ×", short(ratio)))
}

/// A number with three significant digits, more or less.
fn short(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        magnitude if magnitude >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn describe(goal: Goal) -> String {
    match goal {
        Goal::Speed(times) => format!("{} × the best peer", short(times)),
        Goal::SpeedOver(peer, times) => format!("{} × {peer}", short(times)),
        Goal::TimeOf(peer, times) => format!("at most {} × the time of {peer}", short(times)),
        Goal::CpuShare(peer, share) => {
            format!("at most {} of the CPU seconds of {peer}", short(share))
        }
        Goal::AtMost(number, limit) => format!("{} ≤ {}", number.heading(), short(limit)),
    }
}

/// What was measured, and whether it is enough; nothing if that cannot be said.
fn judge(goal: Goal, found: &Found) -> (String, Option<bool>) {
    judged(goal, found).unwrap_or_else(|| ("not measured".to_owned(), None))
}

fn judged(goal: Goal, found: &Found) -> Option<(String, Option<bool>)> {
    let ours = |number| found.ours().and_then(|series| series.median(number));
    Some(match goal {
        Goal::Speed(times) => {
            let (peer, seconds) = found.best_peer("", Number::Seconds)?;
            let ratio = seconds / ours(Number::Seconds)?;
            (
                format!("{} × ({})", short(ratio), peer.name),
                Some(ratio >= times),
            )
        }
        Goal::SpeedOver(name, times) => {
            let (peer, seconds) = found.best_peer(name, Number::Seconds)?;
            let ratio = seconds / ours(Number::Seconds)?;
            (
                format!("{} × ({})", short(ratio), peer.name),
                Some(ratio >= times),
            )
        }
        Goal::TimeOf(name, times) => {
            let (_, seconds) = found.best_peer(name, Number::Seconds)?;
            let ratio = ours(Number::Seconds)? / seconds;
            (format!("{} ×", short(ratio)), Some(ratio <= times))
        }
        Goal::CpuShare(name, share) => {
            let (peer, seconds) = found.best_peer(name, Number::CpuSeconds)?;
            let ratio = ours(Number::CpuSeconds)? / seconds;
            (
                format!("{} ({})", short(ratio), peer.name),
                Some(ratio <= share),
            )
        }
        Goal::AtMost(number, limit) => {
            let value = ours(number)?;
            (short(value), Some(value <= limit))
        }
    })
}

/// What is to be reached and what was, one line each.
pub(crate) fn verdicts(row: &Row, found: &Found) -> Vec<String> {
    let lines = row.goals.iter().map(|goal| {
        let (measured, reached) = judge(*goal, found);
        let verdict = match reached {
            Some(true) => "reached",
            Some(false) => "NOT reached",
            None => "open",
        };
        format!("{}: {measured}: {verdict}", describe(*goal))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_taken_from_below_their_heading_to_the_next() {
        let notes = "# Notes\n\n## one\n\nFirst.\n\nSecond.\n\n## two\nThird.\n## three\n";
        assert_eq!(section(notes, "one"), "First.\n\nSecond.\n\n");
        assert_eq!(section(notes, "two"), "Third.\n\n");
        assert_eq!(section(notes, "three"), "");
        assert_eq!(section(notes, "four"), "");
    }

    #[test]
    fn a_goal_that_was_not_measured_is_neither_reached_nor_missed() {
        assert_eq!(judge(Goal::Speed(1.3), &Found::default()).1, None);
    }
}
