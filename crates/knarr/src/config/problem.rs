//! What is wrong with a configuration, and how that is shown.
//!
//! Constraint: no secret is ever shown (H-25), not even one that stands where none may. What looks
//! like one is masked before a source line is printed, and only the line of the problem is printed.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError,
    MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};

/// The keys whose values are never secrets. What any other key holds is masked, as it may be a
/// misspelt `password`.
const HARMLESS_KEYS: [&str; 85] = [
    "account",
    "after",
    "agent",
    "attempts",
    "authority",
    "bandwidth",
    "bucket",
    "connections",
    "container",
    "decompress",
    "deletes",
    "enabled",
    "endpoint",
    "endpoints",
    "env",
    "exclude",
    "expires",
    "files",
    "format",
    "from",
    "home",
    "host",
    "host_key",
    "host_keys",
    "http",
    "idle",
    "if_exists",
    "include",
    "jobs",
    "keep_unfinished",
    "key",
    "key_file",
    "known_hosts",
    "limits",
    "listen",
    "log_in",
    "log_in_tries",
    "manifest",
    "match",
    "max_age",
    "max_memory",
    "max_output",
    "max_ratio",
    "max_size",
    "min_age",
    "min_size",
    "mounts",
    "move",
    "name",
    "networks",
    "node",
    "part_size",
    "path",
    "path_style",
    "paths",
    "permissions",
    "poll",
    "port",
    "profile",
    "publish",
    "quota",
    "region",
    "require",
    "rescan",
    "retry",
    "root",
    "secret",
    "settle",
    "sftp_server",
    "size",
    "state",
    "steps",
    "stopping",
    "symlinks",
    "temporary",
    "timezone",
    "to",
    "transfers",
    "type",
    "unpunished",
    "unrecognised",
    "user",
    "users",
    "verify_destination",
    "watch",
];

/// How many problems are shown to a person; whoever mends these sees the next ones.
const SHOWN_PROBLEMS: usize = 20;

/// How much of a very long line is shown before what is wrong, and in all (bytes).
const SHOWN_BEFORE_BYTES: usize = 80;
const SHOWN_BYTES: usize = 160;

/// One thing that is wrong.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(super) message: String,
    /// Where in the document, such as `jobs.sensors.match`.
    pub(super) place: String,
    pub(super) help: Option<String>,
    /// Where in the text, in bytes.
    pub(super) span: Option<Range<usize>>,
    /// What stands at the span may be a secret.
    pub(super) hides_span: bool,
    /// It is about letters rather than values, so that nobody knows what the line holds.
    pub(super) is_syntax: bool,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            place: String::new(),
            help: None,
            span: None,
            hides_span: false,
            is_syntax: false,
        }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn at(mut self, span: Option<Range<usize>>) -> Self {
        self.span = span;
        self
    }

    pub(super) fn in_place(mut self, place: impl Into<String>) -> Self {
        self.place = place.into();
        self
    }

    pub(super) const fn hiding_span(mut self) -> Self {
        self.hides_span = true;
        self
    }

    /// Says that the place so far lies below `name`.
    pub(super) fn put_below(&mut self, name: &str) {
        if self.place.is_empty() {
            name.clone_into(&mut self.place);
        } else if !name.is_empty() {
            self.place = format!("{name}.{}", self.place);
        }
    }

    fn headline(&self) -> String {
        if self.place.is_empty() {
            self.message.clone()
        } else {
            format!("{}: {}", self.place, self.message)
        }
    }
}

/// All that is wrong with one configuration file.
#[derive(Debug)]
pub struct ConfigProblems {
    file: PathBuf,
    text: String,
    problems: Vec<Problem>,
}

/// Whether problems are shown in colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// With escape codes.
    Yes,
    /// Plain text.
    No,
}

/// One problem as data.
#[derive(Debug, serde::Serialize)]
pub(crate) struct ProblemData {
    pub(crate) file: String,
    /// From 1; nothing if it is about the whole file.
    pub(crate) line: Option<usize>,
    /// From 1, in characters.
    pub(crate) column: Option<usize>,
    pub(crate) place: String,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl ConfigProblems {
    pub(super) fn new(file: &Path, text: &str, mut problems: Vec<Problem>) -> Self {
        for problem in &mut problems {
            // Keys of the file stand in them.
            problem.message = harmless(&problem.message);
            problem.place = harmless(&problem.place);
            problem.help = problem.help.as_deref().map(harmless);
        }
        problems.sort_by_key(|problem| problem.span.as_ref().map_or(0, |span| span.start));
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
            problems,
        }
    }

    /// The problems as data, in the order of the file.
    pub(crate) fn data(&self) -> Vec<ProblemData> {
        self.problems
            .iter()
            .map(|problem| {
                let position = problem.span.as_ref().map(|span| self.position(span.start));
                ProblemData {
                    file: self.file.display().to_string(),
                    line: position.map(|(line, _column)| line),
                    column: position.map(|(_line, column)| column),
                    place: problem.place.clone(),
                    message: problem.message.clone(),
                    help: problem.help.clone(),
                }
            })
            .collect()
    }

    /// The problems for a person: what, where with the source line, and what to do.
    ///
    /// # Panics
    /// Never: writing to a string does not fail.
    #[must_use]
    pub fn render(&self, colour: Colour) -> String {
        let mut theme = match colour {
            Colour::Yes => GraphicalTheme::unicode(),
            Colour::No => GraphicalTheme::unicode_nocolor(),
        };
        "error:".clone_into(&mut theme.characters.error);
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_context_lines(0)
            .with_wrap_lines(false)
            .with_links(false);
        let mut text = String::new();
        for problem in self.problems.iter().take(SHOWN_PROBLEMS) {
            let shown = Shown {
                headline: problem.headline(),
                label: problem
                    .span
                    .clone()
                    .map(|span| LabeledSpan::new_with_span(None, self.on_one_line(span))),
                source: Lines {
                    file: self.file.display().to_string(),
                    text: self.masked(problem),
                },
            };
            if !text.is_empty() {
                text.push('\n');
            }
            let mut rendered = String::new();
            handler
                .render_report(&mut rendered, &shown)
                .expect("writing to a string does not fail");
            text.push_str(rendered.trim());
            text.push('\n');
            if problem.span.is_none() {
                text.push_str(&format!("  in {}\n", self.file.display()));
            }
            if let Some(help) = &problem.help {
                text.push_str(&format!("hint: {help}\n"));
            }
        }
        let more = self.problems.len().saturating_sub(SHOWN_PROBLEMS);
        if more > 0 {
            text.push_str(&format!("\n... and {more} more problems\n"));
        }
        text
    }

    /// The part of the span that lies on its first line.
    fn on_one_line(&self, span: Range<usize>) -> Range<usize> {
        let end = self
            .text
            .get(span.start..span.end)
            .and_then(|shown| shown.find('\n'))
            .map_or(span.end, |newline| span.start + newline);
        span.start..end.min(span.start + SHOWN_BYTES - SHOWN_BEFORE_BYTES)
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        (line, column)
    }

    /// The text with all that may be a secret replaced, byte by byte, so that spans stay right.
    fn masked(&self, problem: &Problem) -> String {
        let mut bytes = self.text.clone().into_bytes();
        let mut start = 0;
        for line in self.text.split_inclusive('\n') {
            if problem.is_syntax && !line.contains(':') {
                // It may be a part of anything, also of a secret that goes over many lines.
                mask(&mut bytes, start..start + line.len());
            }
            mask_values(line, start, &mut bytes);
            mask_users(line, start, &mut bytes);
            start += line.len();
        }
        if let Some(span) = problem.span.as_ref().filter(|_span| problem.hides_span) {
            mask(&mut bytes, span.clone());
        }
        mask_controls(&self.text, &mut bytes);
        // Should a range cut a character, the remains are replaced too.
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(Colour::No).trim_end())
    }
}

impl std::error::Error for ConfigProblems {}

fn mask(bytes: &mut [u8], range: Range<usize>) {
    if let Some(secret) = bytes.get_mut(range) {
        for byte in secret {
            if !matches!(*byte, b'\n' | b'\r') {
                *byte = b'*';
            }
        }
    }
}

/// Whether a character could drive a terminal, or turn the direction of writing.
fn drives(character: char) -> bool {
    let turns = matches!(
        character,
        '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    turns || (character.is_control() && character != '\n')
}

/// `text` with such characters escaped.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if drives(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Replaces such characters byte by byte; tabs are expanded where the line is shown.
fn mask_controls(text: &str, bytes: &mut [u8]) {
    for (start, character) in text.char_indices() {
        if !drives(character) || character == '\t' {
            continue;
        }
        let with = if character == '\r' { b' ' } else { b'?' };
        if let Some(masked) = bytes.get_mut(start..start + character.len_utf8()) {
            masked.fill(with);
        }
    }
}

/// Masks the values on a line, but for those of [`HARMLESS_KEYS`].
fn mask_values(line: &str, start: usize, bytes: &mut [u8]) {
    let mut from = 0;
    while let Some(colon) = line.get(from..).and_then(|rest| rest.find(':')) {
        let colon = from + colon;
        from = colon + 1;
        let (before, behind) = (line.get(..colon), line.get(from..));
        let (Some(before), Some(behind)) = (before, behind) else {
            return;
        };
        if !behind.starts_with([' ', '\t', '\n', '\r']) {
            continue;
        }
        let value = behind.trim_start_matches([' ', '\t']);
        let value_start = from + behind.len() - value.len();
        let key = before.trim_end().trim_end_matches(['"', '\'']);
        let key = key
            .rsplit([' ', '{', ',', '[', '"', '\''])
            .next()
            .unwrap_or(key);
        if HARMLESS_KEYS.contains(&key) || value.starts_with(['{', '[']) {
            continue;
        }
        let length = if let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            let inside = value.get(1..).unwrap_or_default();
            inside.find(quote).map_or(value.len(), |end| end + 2)
        } else if before.contains(['{', '[']) {
            value.find([',', '}', ']']).unwrap_or(value.len())
        } else {
            value.len()
        };
        let value = value.get(..length).unwrap_or(value).trim_end();
        mask(
            bytes,
            start + value_start..start + value_start + value.len(),
        );
        from = value_start + value.len();
    }
}

/// Masks `user:password` in URLs.
fn mask_users(line: &str, start: usize, bytes: &mut [u8]) {
    let mut from = 0;
    while let Some(slashes) = line.get(from..).and_then(|rest| rest.find("://")) {
        let authority = from + slashes + 3;
        let rest = line.get(authority..).unwrap_or_default();
        let end = rest.find(['/', ' ', '"', '\'', ',']).unwrap_or(rest.len());
        if let Some(at) = rest.get(..end).and_then(|authority| authority.rfind('@'))
            && rest.get(..at).is_some_and(|user| user.contains(':'))
        {
            mask(bytes, start + authority..start + authority + at);
        }
        from = authority;
    }
}

/// A problem in the form that miette renders.
struct Shown {
    headline: String,
    label: Option<LabeledSpan>,
    source: Lines,
}

/// A text of which whole lines are shown, and only those on which a span lies.
struct Lines {
    file: String,
    text: String,
}

impl Lines {
    /// The nearest beginning of a character at or before `offset`.
    fn boundary(&self, offset: usize) -> usize {
        (0..=offset)
            .rev()
            .find(|offset| self.text.is_char_boundary(*offset))
            .unwrap_or(0)
    }
}

impl SourceCode for Lines {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        _lines_before: usize,
        _lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let (before, behind) = self
            .text
            .split_at_checked(span.offset())
            .ok_or(MietteError::OutOfBounds)?;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = span.offset() + behind.find('\n').unwrap_or(behind.len());
        // Of a very long line only the surroundings of the span are shown.
        let start = self.boundary(start.max(span.offset().saturating_sub(SHOWN_BEFORE_BYTES)));
        let end = self.boundary(end.min(start + SHOWN_BYTES).max(span.offset()));
        let line = self
            .text
            .as_bytes()
            .get(start..end)
            .ok_or(MietteError::OutOfBounds)?;
        Ok(Box::new(MietteSpanContents::new_named(
            self.file.clone(),
            line,
            (start, end - start).into(),
            before.matches('\n').count(),
            before
                .chars()
                .rev()
                .take_while(|character| *character != '\n')
                .count(),
            1,
        )))
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline)
    }
}

impl std::error::Error for Shown {}

impl Diagnostic for Shown {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.label
            .as_ref()
            .map(|_label| &self.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let labels = self.label.iter().cloned();
        Some(Box::new(labels))
    }
}
