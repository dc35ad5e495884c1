//! From custody records to a story that a person can read.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::tz::TimeZone;
use knarr_core::path::printable;
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::units::ByteSize;
use knarr_core::{RelPath, Timestamp};
use knarr_store::custody::ChainedRecord;

use crate::command_error::CommandError;
use crate::output::{Output, Style};

/// A line, and how it looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    style: Option<Style>,
    text: String,
}

impl Line {
    fn plain(text: impl Into<String>) -> Self {
        Self {
            style: None,
            text: text.into(),
        }
    }

    fn styled(style: Style, text: impl Into<String>) -> Self {
        Self {
            style: Some(style),
            text: text.into(),
        }
    }

    /// A detail below an event: what kind, and what.
    fn detail(name: &str, text: impl AsRef<str>) -> Self {
        Self::plain(format!("{:<21}  {name:<9} {}", "", text.as_ref()))
    }
}

/// Prints a story.
///
/// # Errors
/// If stdout does not take it.
pub(super) fn print(story: &[Line], output: &mut Output) -> Result<(), CommandError> {
    for line in story {
        match line.style {
            None => output.line(&line.text)?,
            Some(style) => {
                let text = output.paint(style, &line.text);
                output.line(text)?;
            }
        }
    }
    Ok(())
}

/// The story of `records`, which are in the order in which they were made.
pub(super) fn tell(records: &[ChainedRecord], zone: &TimeZone) -> Vec<Line> {
    // One chapter for each path of each job, in the order of their first records.
    let mut chapters: Vec<Vec<&ChainedRecord>> = Vec::new();
    let mut chapter_of: BTreeMap<(&RelPath, &str), usize> = BTreeMap::new();
    for chained in records {
        let key = (&chained.record.path, chained.record.job.as_str());
        let chapter = *chapter_of.entry(key).or_insert_with(|| {
            chapters.push(Vec::new());
            chapters.len() - 1
        });
        if let Some(chapter) = chapters.get_mut(chapter) {
            chapter.push(chained);
        }
    }
    let mut story = Vec::new();
    for chapter in chapters {
        if !story.is_empty() {
            story.push(Line::plain(""));
        }
        tell_chapter(&chapter, zone, &mut story);
    }
    story
}

fn tell_chapter(chapter: &[&ChainedRecord], zone: &TimeZone, story: &mut Vec<Line>) {
    let Some(first) = chapter.first() else {
        return;
    };
    story.push(Line::styled(
        Style::Bold,
        format!("{}   ({})", first.record.path, safe(&first.record.job)),
    ));
    let mut version = None;
    for chained in chapter {
        let record = &chained.record;
        // A new version of the file begins a new episode.
        let seen = (record.seen_at, record.size, record.mtime);
        if version != Some(seen) {
            tell_seen(record, zone, story);
            version = Some(seen);
        }
        tell_event(chained, zone, story);
    }
}

/// When it was seen, and why it counted as complete.
fn tell_seen(record: &CustodyRecord, zone: &TimeZone, story: &mut Vec<Line>) {
    let Some(seen_at) = record.seen_at else {
        return;
    };
    let mut text = format!("{}  seen", moment(seen_at, zone));
    if record.action != Action::Deleted {
        text.push_str(&format!(" with {}", ByteSize(record.size)));
    }
    if let Some(mtime) = record.mtime {
        text.push_str(&format!(", changed {}", moment(mtime, zone)));
    }
    story.push(Line::plain(text));
    if let Some(reason) = &record.complete_because {
        story.push(Line::detail("complete", safe(reason)));
    }
}

fn tell_event(chained: &ChainedRecord, zone: &TimeZone, story: &mut Vec<Line>) {
    let record = &chained.record;
    let (mark, style, words) = headline(record);
    let mut text = format!("{}  {mark} {words}", moment(record.at, zone));
    if record.attempt > 1 || record.action == Action::Failed {
        text.push_str(&format!(", attempt {}", record.attempt));
    }
    if record.duration_microseconds > 0 {
        let took = Duration::from_micros(record.duration_microseconds);
        text.push_str(&format!(", took {}", shown_duration(took)));
    }
    story.push(Line { style, text });
    tell_details(record, story);
    story.push(Line::styled(
        Style::Faint,
        format!(
            "{:<21}  {:<9} no. {}, run {}, decided by {}",
            "",
            "record",
            chained.seq,
            record.run,
            safe(&record.decided_by)
        ),
    ));
}

/// Why, from where, through what, to where, and how that is known.
fn tell_details(record: &CustodyRecord, story: &mut Vec<Line>) {
    if let Some(message) = &record.message {
        let name = match record.action {
            Action::Failed | Action::Parked | Action::Problem => "because",
            _ => "remark",
        };
        story.push(Line::detail(name, safe(message)));
    }
    let moves = matches!(
        record.action,
        Action::Created
            | Action::Updated
            | Action::Failed
            | Action::Conflict
            | Action::Uploaded
            | Action::Downloaded
    );
    if !record.source.is_empty() {
        let size = if moves {
            format!("   {}", ByteSize(record.size))
        } else {
            String::new()
        };
        story.push(Line::detail(
            "from",
            format!("{}{size}", safe(&record.source)),
        ));
    }
    for step in &record.steps {
        story.push(Line::detail(
            "through",
            format!(
                "{}: {}   {} → {}",
                safe(&step.step),
                safe(&step.detail),
                ByteSize(step.input_bytes),
                ByteSize(step.output_bytes)
            ),
        ));
    }
    if !record.destination.is_empty() {
        story.push(Line::detail(
            "to",
            format!("{}{}", safe(&record.destination), sent(record, moves)),
        ));
    }
    if let Some(hash) = &record.source_hash {
        story.push(Line::detail(
            "hash",
            format!("blake3 {hash}, as it was read"),
        ));
    }
    if let Some(evidence) = evidence(record) {
        story.push(Line::detail("verified", evidence));
    }
}

/// What happened, in words, with a mark and a look that say the same.
const fn headline(record: &CustodyRecord) -> (&'static str, Option<Style>, &'static str) {
    match record.action {
        Action::Created => ("✓", Some(Style::Good), "delivered"),
        Action::Updated => (
            "✓",
            Some(Style::Good),
            "delivered, replacing an older version",
        ),
        Action::Renamed => ("✓", Some(Style::Good), "renamed at the destination"),
        Action::Deleted => ("✓", Some(Style::Good), "deleted at the destination"),
        Action::SourceRemoved => ("✓", Some(Style::Good), "removed from the source"),
        Action::SourceMoved => ("✓", Some(Style::Good), "moved aside at the source"),
        Action::Adopted => ("✓", Some(Style::Good), "found on both sides, nothing to do"),
        Action::Conflict => (
            "!",
            Some(Style::Warning),
            "changed on both sides, both kept",
        ),
        Action::Failed => ("✗", Some(Style::Bad), "failed"),
        Action::Parked => ("✗", Some(Style::Bad), "parked until somebody acts"),
        Action::Problem => ("!", Some(Style::Warning), "cannot be handled"),
        Action::Held => ("!", Some(Style::Warning), "held for approval"),
        Action::Approved => ("✓", Some(Style::Good), "approved"),
        Action::Skipped => ("·", None, "left alone"),
        Action::Pruned => ("·", None, "older records were removed"),
        Action::LoggedIn => ("✓", Some(Style::Good), "logged in"),
        Action::LogInRefused => ("✗", Some(Style::Bad), "log-in refused"),
        Action::Uploaded => ("✓", Some(Style::Good), "uploaded"),
        Action::UploadCut => ("!", Some(Style::Warning), "upload broken off"),
        Action::Downloaded => ("✓", Some(Style::Good), "downloaded"),
        Action::Removed => ("✓", Some(Style::Good), "removed by a client"),
        Action::Moved => ("✓", Some(Style::Good), "renamed by a client"),
        Action::Changed => ("✓", Some(Style::Good), "changed by a client"),
        Action::Refused => ("✗", Some(Style::Bad), "refused"),
        Action::Unrecorded => ("!", Some(Style::Warning), "not recorded"),
        Action::Acknowledged => ("✓", Some(Style::Good), "acknowledged by a file"),
    }
}

/// How many bytes went over the wire, where that is not what one expects.
fn sent(record: &CustodyRecord, moves: bool) -> String {
    if !moves {
        return String::new();
    }
    let whole = record
        .steps
        .last()
        .map_or(record.size, |step| step.output_bytes);
    if record.action == Action::Failed || record.moved_bytes != whole {
        format!(
            "   {} of {} sent",
            ByteSize(record.moved_bytes),
            ByteSize(whole)
        )
    } else {
        format!("   {} sent", ByteSize(record.moved_bytes))
    }
}

fn evidence(record: &CustodyRecord) -> Option<String> {
    let same = |hash| {
        if record.source_hash == Some(hash) {
            "the same hash".to_owned()
        } else {
            format!("blake3 {hash}")
        }
    };
    Some(match &record.evidence {
        Evidence::ReadBack { hash } => format!("by reading it back: {}", same(*hash)),
        Evidence::Written { hash } => {
            format!(
                "by hashing what went to the disk, and flushing it: {}",
                same(*hash)
            )
        }
        Evidence::ServerChecksum { algorithm, value } => {
            format!("by the server: {} {}", safe(algorithm), safe(value))
        }
        Evidence::SizeOnly { reason } => format!("only by its length: {}", safe(reason)),
        Evidence::None => return None,
    })
}

fn moment(time: Timestamp, zone: &TimeZone) -> String {
    let time = time.to_calendar().to_zoned(zone.clone());
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `1.2 s`, `35 ms`, `4 min 10 s`.
pub(crate) fn shown_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0 => format!("{} µs", duration.as_micros()),
        1..1_000 => format!("{milliseconds} ms"),
        1_000..60_000 => format!("{:.1} s", duration.as_secs_f64()),
        60_000..3_600_000 => {
            format!(
                "{} min {} s",
                milliseconds / 60_000,
                milliseconds / 1_000 % 60
            )
        }
        _ => format!(
            "{} h {} min",
            milliseconds / 3_600_000,
            milliseconds / 60_000 % 60
        ),
    }
}

fn safe(text: &str) -> String {
    printable(text.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use knarr_core::ContentHash;
    use knarr_core::record::StepRecord;

    use super::*;

    fn record(seq: u64, action: Action, seconds: i64) -> ChainedRecord {
        ChainedRecord {
            seq,
            hash: ContentHash::of(b"chain"),
            record: CustodyRecord {
                at: Timestamp::from_seconds(1_795_000_000 + seconds),
                run: 17,
                job: "sensors".to_owned(),
                path: RelPath::new(*b"2026/a.csv.gz").unwrap(),
                action,
                source: "/srv/in/2026/a.csv.gz".to_owned(),
                destination: "s3://acme/raw/a.csv".to_owned(),
                size: 3 << 20,
                mtime: Some(Timestamp::from_seconds(1_794_999_990)),
                source_hash: None,
                evidence: Evidence::None,
                seen_at: Some(Timestamp::from_seconds(1_794_999_999)),
                complete_because: Some("closed after write".to_owned()),
                steps: Vec::new(),
                attempt: 1,
                moved_bytes: 1 << 20,
                duration_microseconds: 1_200_000,
                message: None,
                decided_by: "plan".to_owned(),
            },
        }
    }

    fn told(records: &[ChainedRecord]) -> String {
        let lines = tell(records, &TimeZone::UTC);
        let lines: Vec<String> = lines.into_iter().map(|line| line.text).collect();
        lines.join("\n")
    }

    #[test]
    fn k11_the_story_of_a_file_has_all_that_happened_to_it() {
        let mut failed = record(41, Action::Failed, 1);
        failed.record.message = Some("cannot write: connection reset\n".to_owned());
        let mut done = record(42, Action::Created, 7);
        done.record.attempt = 2;
        done.record.moved_bytes = 20 << 20;
        done.record.source_hash = Some(ContentHash::of(b"content"));
        done.record.steps = vec![StepRecord {
            step: "decompress".to_owned(),
            detail: "gzip, 2 members".to_owned(),
            input_bytes: 3 << 20,
            output_bytes: 20 << 20,
        }];
        done.record.evidence = Evidence::ServerChecksum {
            algorithm: "crc64nvme".to_owned(),
            value: "AAAA=".to_owned(),
        };
        let mut removed = record(43, Action::SourceRemoved, 8);
        removed.record.destination = String::new();
        removed.record.duration_microseconds = 0;
        let expected = "\
2026/a.csv.gz   (sensors)
2026-11-18 11:06:39  seen with 3 MiB, changed 2026-11-18 11:06:30
                       complete  closed after write
2026-11-18 11:06:41  ✗ failed, attempt 1, took 1.2 s
                       because   cannot write: connection reset\\n
                       from      /srv/in/2026/a.csv.gz   3 MiB
                       to        s3://acme/raw/a.csv   1 MiB of 3 MiB sent
                       record    no. 41, run 17, decided by plan
2026-11-18 11:06:47  ✓ delivered, attempt 2, took 1.2 s
                       from      /srv/in/2026/a.csv.gz   3 MiB
                       through   decompress: gzip, 2 members   3 MiB → 20 MiB
                       to        s3://acme/raw/a.csv   20 MiB sent
                       hash      blake3 3fba5250be9ac259c56e7250c526bc83bacb4be825f2799d3d59e5b4878dd74e, as it was read
                       verified  by the server: crc64nvme AAAA=
                       record    no. 42, run 17, decided by plan
2026-11-18 11:06:48  ✓ removed from the source
                       from      /srv/in/2026/a.csv.gz
                       record    no. 43, run 17, decided by plan";
        assert_eq!(told(&[failed, done, removed]), expected);
    }

    #[test]
    fn h06_a_name_cannot_forge_a_line_of_the_story() {
        let mut hostile = record(1, Action::Created, 0);
        hostile.record.path = RelPath::new(*b"a\n\x1b[31mb").unwrap();
        hostile.record.destination = "x\u{202e}y\r\n".to_owned();
        let text = told(&[hostile]);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}') && !text.contains('\r'));
        assert!(text.starts_with("a\\n\\u{1b}[31mb   (sensors)\n"), "{text}");
    }

    #[test]
    fn durations_are_shown_as_people_say_them() {
        for (microseconds, shown) in [
            (250, "250 µs"),
            (35_000, "35 ms"),
            (1_200_000, "1.2 s"),
            (250_000_000, "4 min 10 s"),
            (3_660_000_000, "1 h 1 min"),
        ] {
            assert_eq!(shown_duration(Duration::from_micros(microseconds)), shown);
        }
    }
}
