//! Destination templates: `raw/{mtime:%Y/%m/%d}/{stem}.csv`.
//!
//! A fixed set of placeholders, no expressions. What comes out is checked as a [`RelPath`] again, so
//! that no name can lead out of the destination (H-58).

use jiff::tz::TimeZone;

use crate::parameters::{PREFIX, Values};
use crate::path::{PathError, RelPath};
use crate::pattern::Pattern;
use crate::time::Timestamp;

/// A destination path with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    /// The text as it was written.
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Name,
    Stem,
    Extension,
    Directory,
    Mtime(String),
    Now(String),
    /// A named group of the expression that the source's path matches.
    Group(String),
    /// A parameter of the run.
    Parameter(String),
}

/// What a template is filled with.
#[derive(Debug, Clone)]
pub struct TemplateInput<'a> {
    /// The path below the source's root, with the name that the steps gave the file.
    pub path: &'a RelPath,
    /// The source's mtime; `now` stands in where there is none.
    pub mtime: Option<Timestamp>,
    /// The time of the plan.
    pub now: Timestamp,
    /// The zone in which dates are written.
    pub time_zone: &'a TimeZone,
    /// The expression with named groups, and the path that matched it: the one at the source.
    pub matched: Option<(&'a Pattern, &'a RelPath)>,
}

/// Why a template is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// An unknown placeholder.
    #[error(
        "`{{{0}}}` is not a placeholder: use {{name}}, {{stem}}, {{extension}}, {{dir}}, {{mtime:%Y/%m/%d}}, {{now:%Y-%m-%d}} or a named group of `match.regex`"
    )]
    Unknown(String),
    /// A brace without its partner.
    #[error("a brace is not closed in `{0}` (write {{{{ for a brace itself)")]
    Unclosed(String),
    /// A format that the calendar does not know.
    #[error("`{0}` is not a date format: {1}")]
    Format(String, String),
    /// What came out is not a path.
    #[error("the destination `{0}` that the template makes is not a path")]
    Path(String, #[source] PathError),
}

impl Template {
    /// Reads a template. One that is empty or ends in `/` is a directory: the source's path is put below it.
    ///
    /// # Errors
    /// A [`TemplateError`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Self::parse_with(text, None)
    }

    /// The same where the named groups of an expression are placeholders, too. The fixed ones come first.
    ///
    /// # Errors
    /// A [`TemplateError`].
    pub fn parse_with(text: &str, pattern: Option<&Pattern>) -> Result<Self, TemplateError> {
        Self::parse_for(text, pattern, &[])
    }

    /// The same where `{param.NAME}` of these names are placeholders, too; see [`Template::bound`].
    ///
    /// # Errors
    /// A [`TemplateError`].
    pub fn parse_for(
        text: &str,
        pattern: Option<&Pattern>,
        parameters: &[&str],
    ) -> Result<Self, TemplateError> {
        let unclosed = || TemplateError::Unclosed(text.to_owned());
        let (mut parts, mut literal) = (Vec::new(), String::new());
        let mut rest = text.chars();
        while let Some(character) = rest.next() {
            match character {
                '{' if rest.as_str().starts_with('{') => {
                    rest.next();
                    literal.push('{');
                }
                '}' if rest.as_str().starts_with('}') => {
                    rest.next();
                    literal.push('}');
                }
                '{' => {
                    let (inside, behind) = rest.as_str().split_once('}').ok_or_else(unclosed)?;
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(placeholder(inside, pattern, parameters)?);
                    rest = behind.chars();
                }
                '}' => return Err(unclosed()),
                other => literal.push(other),
            }
        }
        let is_directory = text.is_empty() || text.ends_with('/');
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        if is_directory {
            parts.extend([Part::Directory, Part::Text("/".to_owned()), Part::Name]);
        }
        Ok(Self {
            parts,
            text: text.to_owned(),
        })
    }

    /// Whether the result is always the source's path itself.
    #[must_use]
    pub const fn is_identity(&self) -> bool {
        self.text.is_empty()
    }

    /// Whether the same source path can lead to another destination path at another time.
    #[must_use]
    pub fn depends_on_time(&self) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, Part::Mtime(_) | Part::Now(_)))
    }

    /// The template with the values of a run's parameters in their places, as text.
    #[must_use]
    pub fn bound(&self, values: &Values) -> Self {
        let bind = |part: &Part| match part {
            Part::Parameter(name) => Part::Text(values.get(name).unwrap_or_default().to_owned()),
            other => other.clone(),
        };
        Self {
            parts: self.parts.iter().map(bind).collect(),
            text: self.text.clone(),
        }
    }

    /// Fills the template.
    ///
    /// # Errors
    /// [`TemplateError::Path`] if what comes out is not a path.
    pub fn fill(&self, input: &TemplateInput<'_>) -> Result<RelPath, TemplateError> {
        let mut bytes = Vec::with_capacity(self.text.len() + input.path.as_bytes().len());
        let name = input.path.name();
        let dot = name
            .iter()
            .skip(1)
            .rposition(|byte| *byte == b'.')
            .map(|position| position + 1);
        let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
        for part in &self.parts {
            match part {
                Part::Text(text) => bytes.extend_from_slice(text.as_bytes()),
                Part::Name => bytes.extend_from_slice(name),
                Part::Stem => bytes.extend_from_slice(stem),
                Part::Extension => {
                    bytes.extend_from_slice(extension.strip_prefix(b".").unwrap_or(extension));
                }
                Part::Directory => {
                    if let Some(parent) = input.path.parent() {
                        bytes.extend_from_slice(parent.as_bytes());
                    }
                }
                Part::Mtime(format) => {
                    push_date(&mut bytes, format, input.mtime.unwrap_or(input.now), input);
                }
                Part::Now(format) => push_date(&mut bytes, format, input.now, input),
                Part::Group(name) => {
                    if let Some((pattern, path)) = input.matched {
                        bytes.extend_from_slice(pattern.group(path, name).unwrap_or_default());
                    }
                }
                // It was bound before, if there is a run.
                Part::Parameter(_) => {}
            }
        }
        // An empty {dir} leaves a slash too many; anything else that is odd is refused.
        let mut path: Vec<u8> = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if byte == b'/' && (path.is_empty() || path.last() == Some(&b'/')) {
                continue;
            }
            path.push(byte);
        }
        RelPath::new(path.clone()).map_err(|source| {
            TemplateError::Path(crate::path::printable(&path).to_string(), source)
        })
    }
}

fn push_date(bytes: &mut Vec<u8>, format: &str, at: Timestamp, input: &TemplateInput<'_>) {
    let date = at.to_calendar().to_zoned(input.time_zone.clone());
    // Formats were tried when the template was read.
    let text = jiff::fmt::strtime::format(format, &date).unwrap_or_default();
    bytes.extend_from_slice(text.as_bytes());
}

fn placeholder(
    inside: &str,
    pattern: Option<&Pattern>,
    parameters: &[&str],
) -> Result<Part, TemplateError> {
    if let Some(name) = inside.strip_prefix(PREFIX)
        && parameters.contains(&name)
    {
        return Ok(Part::Parameter(name.to_owned()));
    }
    let (name, format) = match inside.split_once(':') {
        Some((name, format)) => (name, Some(format)),
        None => (inside, None),
    };
    match (name, format) {
        ("name", None) => Ok(Part::Name),
        ("stem", None) => Ok(Part::Stem),
        ("extension", None) => Ok(Part::Extension),
        ("dir", None) => Ok(Part::Directory),
        ("mtime", Some(format)) => Ok(Part::Mtime(checked_format(format)?)),
        ("now", Some(format)) => Ok(Part::Now(checked_format(format)?)),
        (group, None)
            if pattern.is_some_and(|pattern| pattern.names().any(|name| name == group)) =>
        {
            Ok(Part::Group(group.to_owned()))
        }
        _ => Err(TemplateError::Unknown(inside.to_owned())),
    }
}

fn checked_format(format: &str) -> Result<String, TemplateError> {
    let error = |reason: String| TemplateError::Format(format.to_owned(), reason);
    let probe = jiff::Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    let text = jiff::fmt::strtime::format(format, &probe).map_err(|e| error(e.to_string()))?;
    if text.is_empty() {
        return Err(error("it is empty".to_owned()));
    }
    Ok(format.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(template: &str, path: &str) -> Result<String, TemplateError> {
        let path = RelPath::new(path.as_bytes()).unwrap();
        let input = TemplateInput {
            path: &path,
            mtime: Some(Timestamp::from_seconds(1_795_251_600)),
            now: Timestamp::from_seconds(1_795_338_000),
            time_zone: &TimeZone::UTC,
            matched: None,
        };
        Template::parse(template)?
            .fill(&input)
            .map(|path| path.to_string())
    }

    #[test]
    fn placeholders_are_filled() {
        for (template, path, expected) in [
            ("", "a/b.csv", "a/b.csv"),
            ("raw/", "a/b.csv", "raw/a/b.csv"),
            ("raw/{mtime:%Y/%m/%d}/", "b.csv", "raw/2026/11/21/b.csv"),
            (
                "{now:%Y-%m-%d}/{stem}.{extension}.bak",
                "x/b.tar.gz",
                "2026-11-22/b.tar.gz.bak",
            ),
            ("{dir}/{name}", "b.csv", "b.csv"),
            ("{{x}}/{stem}", ".profile", "{x}/.profile"),
        ] {
            assert_eq!(fill(template, path).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn k12_no_template_leads_out_of_the_destination() {
        assert!(matches!(
            fill("../{name}", "a"),
            Err(TemplateError::Path(..))
        ));
        assert!(matches!(
            fill("{extension}", "a.."),
            Err(TemplateError::Path(..))
        ));
        assert_eq!(fill("x/{stem}", "..a.txt").unwrap(), "x/..a");
    }

    #[test]
    fn k12_what_a_name_matched_stays_below_the_destination() {
        let pattern = Pattern::new(r"(?<year>\d{4})-(?<rest>.*)\.csv").unwrap();
        let template = Template::parse_with("{year}/{rest}/", Some(&pattern)).unwrap();
        let fill = |text: &str| {
            let path = RelPath::new(text.as_bytes()).unwrap();
            let input = TemplateInput {
                path: &path,
                mtime: None,
                now: Timestamp::from_seconds(0),
                time_zone: &TimeZone::UTC,
                matched: Some((&pattern, &path)),
            };
            template.fill(&input).map(|path| path.to_string())
        };
        assert_eq!(fill("2026-a.csv").unwrap(), "2026/a/2026-a.csv");
        assert!(fill("2026-...csv").is_err());
        assert!(Template::parse("{year}/").is_err());
    }

    #[test]
    fn k12_h01_a_parameter_stays_text_and_below_the_destination() {
        let template = Template::parse_for("{param.who}/{name}", None, &["who"]).unwrap();
        let path = RelPath::new(*b"a.csv").unwrap();
        let input = TemplateInput {
            path: &path,
            mtime: None,
            now: Timestamp::from_seconds(0),
            time_zone: &TimeZone::UTC,
            matched: None,
        };
        let fill = |value| {
            let values = Values::from_pairs([("who", value)]);
            template
                .bound(&values)
                .fill(&input)
                .map(|path| path.to_string())
        };
        assert_eq!(fill("acme").unwrap(), "acme/a.csv");
        assert_eq!(fill("{name}").unwrap(), "{name}/a.csv");
        assert_eq!(fill("/etc").unwrap(), "etc/a.csv");
        assert!(fill("..").is_err());
        assert!(fill("x/../..").is_err());
        assert!(Template::parse_for("{param.other}", None, &["who"]).is_err());
    }

    #[test]
    fn h58_only_known_placeholders_are_taken() {
        for text in [
            "{x}",
            "{name:%Y}",
            "{mtime}",
            "{",
            "a}",
            "{mtime:}",
            "{mtime:%!}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_template_gives_a_path_or_an_error(template in ".{0,20}", path in "[a.{}/]{1,9}") {
            if let (Ok(template), Ok(path)) = (Template::parse(&template), RelPath::new(path.into_bytes())) {
                let input = TemplateInput { path: &path, mtime: None, now: Timestamp::from_seconds(0), time_zone: &TimeZone::UTC, matched: None };
                if let Ok(filled) = template.fill(&input) {
                    prop_assert!(RelPath::new(filled.as_bytes()).is_ok());
                }
            }
        }
    }
}
