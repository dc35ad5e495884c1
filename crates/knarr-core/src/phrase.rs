//! Texts with placeholders: the names and contents of files that a job writes itself, such as
//! `{name} {size} {sha256}`.
//!
//! As with [`crate::template`], there is a fixed set of placeholders and no expressions. What is a path is
//! checked as one after it was filled, so that no name from outside can lead anywhere.

use std::fmt;

use jiff::tz::TimeZone;

use crate::hash::ContentHash;
use crate::parameters::{PREFIX, Values};
use crate::path::{PathError, RelPath};
use crate::time::Timestamp;

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phrase {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Word(Word),
    Date(Date, String),
    Parameter(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Date {
    Mtime,
    Now,
}

/// What a placeholder without a format stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Name,
    Stem,
    Extension,
    Dir,
    Path,
    Size,
    Sha256,
    Time,
    Run,
    Job,
    Files,
    Bytes,
    Failed,
}

impl Word {
    const OF_FILE: [(&'static str, Self); 10] = [
        ("name", Self::Name),
        ("stem", Self::Stem),
        ("extension", Self::Extension),
        ("dir", Self::Dir),
        ("path", Self::Path),
        ("size", Self::Size),
        ("sha256", Self::Sha256),
        ("time", Self::Time),
        ("run", Self::Run),
        ("job", Self::Job),
    ];
    const OF_RUN: [(&'static str, Self); 6] = [
        ("files", Self::Files),
        ("bytes", Self::Bytes),
        ("failed", Self::Failed),
        ("time", Self::Time),
        ("run", Self::Run),
        ("job", Self::Job),
    ];
}

/// What a text is about, and so which placeholders it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum About {
    /// A file.
    File,
    /// A run.
    Run,
}

impl About {
    const fn words(self) -> &'static [(&'static str, Word)] {
        match self {
            Self::File => &Word::OF_FILE,
            Self::Run => &Word::OF_RUN,
        }
    }

    const fn dates(self) -> &'static [(&'static str, Date)] {
        match self {
            Self::File => &[("mtime", Date::Mtime), ("now", Date::Now)],
            Self::Run => &[("now", Date::Now)],
        }
    }

    fn help(self) -> String {
        let words = self.words().iter().map(|(name, _)| format!("{{{name}}}"));
        let dates = self.dates().iter();
        let dates = dates.map(|(name, _)| format!("{{{name}:%Y-%m-%d}}"));
        words.chain(dates).collect::<Vec<_>>().join(", ")
    }
}

/// A text that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PhraseError {
    /// A placeholder that is not known here.
    #[error("`{{{name}}}` is not a placeholder here: use {help}")]
    Unknown {
        /// As it was written.
        name: String,
        /// Which there are.
        help: String,
    },
    /// A brace without its partner.
    #[error("a brace is not closed in `{0}` (write {{{{ for a brace itself)")]
    Unclosed(String),
    /// A format that the calendar does not know.
    #[error("`{0}` is not a date format: {1}")]
    Format(String, String),
    /// What came out is not a path.
    #[error("`{0}`, which comes out, is not a path")]
    Path(String, #[source] PathError),
}

/// What a text is filled with.
#[derive(Debug, Clone, Copy)]
pub struct PhraseInput<'a> {
    /// What it is about.
    pub subject: Subject<'a>,
    /// When that was recorded.
    pub now: Timestamp,
    /// The zone of dates; `{time}` is in UTC.
    pub time_zone: &'a TimeZone,
    /// The number of the run.
    pub run: u64,
    /// The name of the job.
    pub job: &'a str,
}

/// What a text is about, with what is known of it.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A file at the source.
    File {
        /// Its path below the source.
        path: &'a RelPath,
        /// Its length in bytes.
        size: u64,
        /// When it was changed.
        mtime: Option<Timestamp>,
        /// Its SHA-256 in hexadecimal digits, where the text asks for it.
        sha256: Option<&'a str>,
    },
    /// A run.
    Run {
        /// Files that it delivered.
        files: u64,
        /// Their length in bytes.
        bytes: u64,
        /// Files that it could not deliver.
        failed: u64,
    },
}

impl Phrase {
    /// Reads a text. `parameters` are the names that `{param.NAME}` may have.
    ///
    /// # Errors
    /// A [`PhraseError`].
    pub fn parse(text: &str, about: About, parameters: &[&str]) -> Result<Self, PhraseError> {
        let unclosed = || PhraseError::Unclosed(text.to_owned());
        let (mut parts, mut literal) = (Vec::new(), String::new());
        let mut rest = text.chars();
        while let Some(character) = rest.next() {
            match character {
                '{' | '}' if rest.as_str().starts_with(character) => {
                    rest.next();
                    literal.push(character);
                }
                '{' => {
                    let (inside, behind) = rest.as_str().split_once('}').ok_or_else(unclosed)?;
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(placeholder(inside, about, parameters)?);
                    rest = behind.chars();
                }
                '}' => return Err(unclosed()),
                other => literal.push(other),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { parts })
    }

    /// Whether the content's SHA-256 has to be known to fill it.
    #[must_use]
    pub fn needs_sha256(&self) -> bool {
        self.parts.contains(&Part::Word(Word::Sha256))
    }

    /// The text with the values of a run's parameters in their places.
    #[must_use]
    pub fn bound(&self, values: &Values) -> Self {
        let bind = |part: &Part| match part {
            Part::Parameter(name) => Part::Text(values.get(name).unwrap_or_default().to_owned()),
            other => other.clone(),
        };
        Self {
            parts: self.parts.iter().map(bind).collect(),
        }
    }

    /// A glob that matches every path that this can make, as long as no parameter has a `/` in it; nothing if
    /// it would match any path at all, or if `{dir}` stands within a name.
    #[must_use]
    pub fn glob(&self) -> Option<String> {
        let (mut glob, mut is_special) = (String::new(), false);
        for part in &self.parts {
            match part {
                Part::Text(text) => {
                    is_special |= text.chars().any(char::is_alphanumeric);
                    glob.push_str(&crate::filter::escaped(text));
                }
                Part::Word(Word::Dir) => glob.push_str("**"),
                Part::Word(Word::Path) => glob.push_str("**/*"),
                Part::Word(_) | Part::Date(..) | Part::Parameter(_) => glob.push('*'),
            }
        }
        // `**` has to be a component of its own.
        let is_mixed = |component: &str| component.contains("**") && component != "**";
        (is_special && !glob.split('/').any(is_mixed)).then_some(glob)
    }

    /// Fills the text.
    #[must_use]
    pub fn fill(&self, input: &PhraseInput<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => bytes.extend_from_slice(text.as_bytes()),
                Part::Word(word) => word.push(&mut bytes, input),
                Part::Date(date, format) => {
                    let at = match (date, input.subject) {
                        (Date::Mtime, Subject::File { mtime, .. }) => mtime.unwrap_or(input.now),
                        (Date::Now | Date::Mtime, _) => input.now,
                    };
                    let zoned = at.to_calendar().to_zoned(input.time_zone.clone());
                    // Formats were tried when the text was read.
                    let text = jiff::fmt::strtime::format(format, &zoned).unwrap_or_default();
                    bytes.extend_from_slice(text.as_bytes());
                }
                // Nobody gave it a value.
                Part::Parameter(_) => {}
            }
        }
        bytes
    }

    /// Fills the text, which is to be a path.
    ///
    /// # Errors
    /// [`PhraseError::Path`] if it is none.
    pub fn fill_path(&self, input: &PhraseInput<'_>) -> Result<RelPath, PhraseError> {
        let mut path: Vec<u8> = Vec::new();
        // An empty {dir} leaves a slash too many; anything else that is odd is refused.
        for byte in self.fill(input) {
            if byte != b'/' || !(path.is_empty() || path.last() == Some(&b'/')) {
                path.push(byte);
            }
        }
        RelPath::new(path.clone())
            .map_err(|error| PhraseError::Path(crate::path::printable(&path).to_string(), error))
    }
}

impl Word {
    fn push(self, bytes: &mut Vec<u8>, input: &PhraseInput<'_>) {
        let mut number = |number: u64| bytes.extend_from_slice(number.to_string().as_bytes());
        match (self, input.subject) {
            (Self::Run, _) => number(input.run),
            (Self::Job, _) => bytes.extend_from_slice(input.job.as_bytes()),
            (Self::Time, _) => {
                let time = input.now.to_calendar().to_string();
                bytes.extend_from_slice(time.as_bytes());
            }
            (Self::Size, Subject::File { size, .. }) => number(size),
            (Self::Files, Subject::Run { files, .. }) => number(files),
            (Self::Bytes, Subject::Run { bytes: count, .. }) => number(count),
            (Self::Failed, Subject::Run { failed, .. }) => number(failed),
            (Self::Sha256, Subject::File { sha256, .. }) => {
                bytes.extend_from_slice(sha256.unwrap_or_default().as_bytes());
            }
            (word, Subject::File { path, .. }) => {
                let name = path.name();
                let dot = name.iter().skip(1).rposition(|byte| *byte == b'.');
                let dot = dot.map_or(name.len(), |position| position + 1);
                let (stem, extension) = name.split_at(dot);
                match word {
                    Self::Stem => bytes.extend_from_slice(stem),
                    Self::Extension => {
                        bytes.extend_from_slice(extension.strip_prefix(b".").unwrap_or_default());
                    }
                    Self::Dir => {
                        let parent = path.parent();
                        bytes.extend_from_slice(parent.as_ref().map_or(b"", RelPath::as_bytes));
                    }
                    Self::Path => bytes.extend_from_slice(path.as_bytes()),
                    _ => bytes.extend_from_slice(name),
                }
            }
            // Not read as part of a text about a run.
            (_, Subject::Run { .. }) => {}
        }
    }
}

fn placeholder(inside: &str, about: About, parameters: &[&str]) -> Result<Part, PhraseError> {
    let unknown = || PhraseError::Unknown {
        name: inside.to_owned(),
        help: about.help(),
    };
    if let Some(name) = inside.strip_prefix(PREFIX) {
        let is_declared = parameters.contains(&name);
        return is_declared
            .then(|| Part::Parameter(name.to_owned()))
            .ok_or_else(unknown);
    }
    if let Some((name, format)) = inside.split_once(':') {
        let mut dates = about.dates().iter();
        let (_, date) = dates
            .find(|(known, _)| *known == name)
            .ok_or_else(unknown)?;
        let error = |reason: String| PhraseError::Format(format.to_owned(), reason);
        let probe = jiff::Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
        let text = jiff::fmt::strtime::format(format, &probe).map_err(|e| error(e.to_string()))?;
        if text.is_empty() {
            return Err(error("it is empty".to_owned()));
        }
        return Ok(Part::Date(*date, format.to_owned()));
    }
    let mut words = about.words().iter();
    let found = words.find(|(known, _)| *known == inside);
    found.map(|(_, word)| Part::Word(*word)).ok_or_else(unknown)
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Run => "run",
        })
    }
}

/// A file that is still to be written, as it will be: filled once, so that each attempt writes the same.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Acknowledgement {
    /// The delivered file that it is about; nothing if it is about a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<RelPath>,
    /// The length of that file, or of all files of the run, in bytes.
    pub size: u64,
    /// The file to be written.
    pub name: RelPath,
    /// What it is to hold.
    #[serde(with = "crate::bytes_serde")]
    pub content: Vec<u8>,
}

impl Acknowledgement {
    /// The same for the same name and content.
    #[must_use]
    pub fn digest(&self) -> ContentHash {
        ContentHash::of(&[self.name.as_bytes(), b"\0", self.content.as_slice()].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str, path: &str) -> Result<Vec<u8>, PhraseError> {
        let path = RelPath::new(path.as_bytes()).unwrap();
        let input = PhraseInput {
            subject: Subject::File {
                path: &path,
                size: 42,
                mtime: Some(Timestamp::from_seconds(1_795_251_600)),
                sha256: Some("ab12"),
            },
            now: Timestamp::from_seconds(1_795_338_000),
            time_zone: &TimeZone::UTC,
            run: 7,
            job: "invoices",
        };
        Phrase::parse(text, About::File, &[]).map(|phrase| phrase.fill(&input))
    }

    #[test]
    fn placeholders_of_a_file_are_filled() {
        for (text, expected) in [
            ("{name}|{stem}|{extension}|{dir}", "b.csv|b|csv|a"),
            ("{path} {size} {sha256}\n", "a/b.csv 42 ab12\n"),
            ("{run} {job} {time}", "7 invoices 2026-11-22T09:00:00Z"),
            ("{mtime:%Y%m%d} {now:%Y%m%d} {{x}}", "20261121 20261122 {x}"),
        ] {
            let filled = fill(text, "a/b.csv").unwrap();
            assert_eq!(String::from_utf8(filled).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn only_placeholders_that_are_known_are_taken() {
        for text in [
            "{files}",
            "{x}",
            "{name:%Y}",
            "{",
            "}",
            "{param.day}",
            "{now:}",
        ] {
            assert!(fill(text, "a").is_err(), "{text}");
        }
        assert!(Phrase::parse("{name}", About::Run, &[]).is_err());
        assert!(Phrase::parse("{files} {bytes} {failed}", About::Run, &[]).is_ok());
    }

    #[test]
    fn k12_h01_no_name_leads_out_of_the_place() {
        let path = RelPath::new(*b"..x/a").unwrap();
        let input = PhraseInput {
            subject: Subject::File {
                path: &path,
                size: 0,
                mtime: None,
                sha256: None,
            },
            now: Timestamp::from_seconds(0),
            time_zone: &TimeZone::UTC,
            run: 1,
            job: "j1",
        };
        let path = |text: &str| {
            let phrase = Phrase::parse(text, About::File, &["p"]).unwrap();
            let values = Values::from_pairs([("p", "..")]);
            phrase.bound(&values).fill_path(&input)
        };
        assert_eq!(path("{dir}/{name}.ok").unwrap().to_string(), "..x/a.ok");
        assert!(path("../{name}").is_err());
        assert!(path("{param.p}/{name}").is_err());
        assert!(path("x/{extension}").is_err(), "a directory");
    }

    #[test]
    fn an_acknowledgement_is_read_as_it_was_written() {
        let path = |bytes: &[u8]| RelPath::new(bytes).unwrap();
        for (about, content) in [
            (Some(path(b"\xff/a")), b"\xff 1\n".to_vec()),
            (None, b"base16:x".to_vec()),
        ] {
            let one = Acknowledgement {
                about,
                size: 3,
                name: path(b"ack/\xfe.ok"),
                content,
            };
            let text = serde_json::to_string(&one).unwrap();
            assert_eq!(serde_json::from_str::<Acknowledgement>(&text).unwrap(), one);
        }
    }

    #[test]
    fn a_glob_tells_what_the_job_wrote_itself() {
        let glob = |text: &str| Phrase::parse(text, About::File, &[]).unwrap().glob();
        for (text, expected) in [
            ("ack/{name}.ok", Some("ack/*.ok")),
            ("{dir}/{name}.ok", Some("**/*.ok")),
            ("{path}.ok", Some("**/*.ok")),
            ("ack/{path}.ok", Some("ack/**/*.ok")),
            ("x{dir}/{name}.ok", None),
            ("[x]/{now:%Y}.ok", Some("[[]x[]]/*.ok")),
            ("{name}", None),
            ("{dir}/{stem}.{extension}", None),
        ] {
            assert_eq!(glob(text).as_deref(), expected, "{text}");
        }
    }
}
