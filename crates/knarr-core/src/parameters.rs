//! Parameters of runs: what whoever asks for a run may say, within what the job allows.
//!
//! A value is text and stays text: in a glob it matches itself, in a destination it is part of a path that is
//! checked as a path afterwards. It never is an expression, a placeholder or a command (K12).

use std::collections::BTreeMap;
use std::fmt;

use regex::{Regex, RegexBuilder};

/// What stands before the name of a parameter in a placeholder: `{param.day}`.
pub const PREFIX: &str = "param.";
/// How many parameters a job has at most.
pub const MOST: usize = 16;
/// How long a value is at most, in bytes.
pub const MOST_BYTES: usize = 200;
/// What a value looks like where the job does not say.
pub const USUAL_PATTERN: &str = "[A-Za-z0-9._-]+";
/// The most bytes that a compiled pattern may take.
const SIZE_LIMIT: usize = 1 << 18;

/// A parameter that a job declares.
#[derive(Debug, Clone)]
pub struct Parameter {
    default: Option<String>,
    pattern: Regex,
    text: String,
}

/// What is wrong with a parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// It has a name that cannot be one.
    #[error(
        "`{0}` cannot be the name of a parameter: use 1 to 32 lower-case letters, digits and `_`, and begin with a letter"
    )]
    Name(String),
    /// Its pattern is no regular expression.
    #[error("the pattern of the parameter `{name}` is not a regular expression: {reason}")]
    Pattern {
        /// The parameter.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The job does not know it.
    #[error("the job has no parameter `{name}`{known}")]
    Undeclared {
        /// What was given.
        name: String,
        /// Which there are, as part of a sentence.
        known: String,
    },
    /// It was not given, and has no default.
    #[error("the parameter `{0}` has no default: give it with --set {0}=VALUE")]
    Missing(String),
    /// The value is not what the job allows.
    #[error(
        "{value} is not a value of the parameter `{name}`: it has to match `{pattern}`, in at most 200 bytes"
    )]
    Value {
        /// The parameter.
        name: String,
        /// The value, quoted.
        value: String,
        /// What it has to match.
        pattern: String,
    },
}

impl Parameter {
    /// A parameter whose whole value has to match `pattern`.
    ///
    /// # Errors
    /// If the name, the pattern or the default is none.
    pub fn new(
        name: &str,
        pattern: Option<&str>,
        default: Option<&str>,
    ) -> Result<Self, ParameterError> {
        let is_name = name.len() <= 32
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !is_name {
            return Err(ParameterError::Name(name.to_owned()));
        }
        let text = pattern.unwrap_or(USUAL_PATTERN).to_owned();
        let pattern = RegexBuilder::new(&format!("^(?:{text})$"))
            .size_limit(SIZE_LIMIT)
            .build();
        let pattern = pattern.map_err(|error| {
            // The last line says what is wrong, those before show where.
            let error = error.to_string();
            let last = error.lines().last().unwrap_or_default().trim();
            ParameterError::Pattern {
                name: name.to_owned(),
                reason: last.trim_start_matches("error: ").to_owned(),
            }
        })?;
        let parameter = Self {
            default: default.map(str::to_owned),
            pattern,
            text,
        };
        if let Some(default) = default {
            parameter.check(name, default)?;
        }
        Ok(parameter)
    }

    /// Its value where nobody gives one.
    #[must_use]
    pub fn default_value(&self) -> Option<&str> {
        self.default.as_deref()
    }

    fn check(&self, name: &str, value: &str) -> Result<(), ParameterError> {
        let is_good = value.len() <= MOST_BYTES
            && !value.chars().any(char::is_control)
            && self.pattern.is_match(value);
        if is_good {
            return Ok(());
        }
        let shown: String = value.chars().take(40).collect();
        Err(ParameterError::Value {
            name: name.to_owned(),
            value: format!("{shown:?}"),
            pattern: self.text.clone(),
        })
    }
}

/// The parameters that a job declares.
#[derive(Debug, Clone, Default)]
pub struct Parameters(BTreeMap<String, Parameter>);

impl Parameters {
    /// Those of these names.
    #[must_use]
    pub const fn new(declared: BTreeMap<String, Parameter>) -> Self {
        Self(declared)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// The first one that has to be given with each run.
    #[must_use]
    pub fn required(&self) -> Option<&str> {
        let mut all = self.0.iter();
        let required = all.find(|(_, parameter)| parameter.default.is_none());
        required.map(|(name, _)| name.as_str())
    }

    /// The values of a run, from what was given for it.
    ///
    /// # Errors
    /// If something is given that is not declared or not allowed, or something that has no default is not.
    pub fn resolve(&self, given: &BTreeMap<String, String>) -> Result<Values, ParameterError> {
        if let Some(name) = given.keys().find(|name| !self.0.contains_key(*name)) {
            let known = if self.0.is_empty() {
                String::new()
            } else {
                format!("; it has {}", self.names().join(", "))
            };
            return Err(ParameterError::Undeclared {
                name: name.chars().take(40).collect(),
                known,
            });
        }
        let mut values = BTreeMap::new();
        for (name, parameter) in &self.0 {
            let value = given.get(name).or(parameter.default.as_ref());
            let value = value.ok_or_else(|| ParameterError::Missing(name.clone()))?;
            parameter.check(name, value)?;
            values.insert(name.clone(), value.clone());
        }
        Ok(Values(values))
    }

    /// Values for trying out whether what they stand in can be read.
    #[must_use]
    pub fn any(&self) -> Values {
        let any = |(name, parameter): (&String, &Parameter)| {
            let value = parameter.default.as_deref().unwrap_or("x");
            (name.clone(), value.to_owned())
        };
        Values(self.0.iter().map(any).collect())
    }
}

/// The values of a run's parameters. They are shown in the history: nothing that is secret belongs in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<String, String>);

impl Values {
    /// These values, unchecked.
    #[must_use]
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self(pairs.into_iter().map(owned).collect())
    }

    /// The value of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A glob in which each `{param.NAME}` is its value, which matches nothing but itself.
    #[must_use]
    pub fn fill_glob(&self, glob: &str) -> String {
        let (mut filled, mut rest) = (String::with_capacity(glob.len()), glob);
        while let Some((before, name, behind)) = find(rest) {
            filled.push_str(before);
            filled.push_str(&crate::filter::escaped(self.get(name).unwrap_or_default()));
            rest = behind;
        }
        filled.push_str(rest);
        filled
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{name}={value}")?;
        }
        Ok(())
    }
}

/// The names of the parameters that stand in a glob.
pub fn in_glob(glob: &str) -> impl Iterator<Item = &str> {
    let mut rest = glob;
    std::iter::from_fn(move || {
        let (_, name, behind) = find(rest)?;
        rest = behind;
        Some(name)
    })
}

/// What is before the first placeholder, its name, and what is behind it.
fn find(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once("{param.")?;
    let (name, behind) = rest.split_once('}')?;
    Some((before, name, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared() -> Parameters {
        let day = Parameter::new("day", Some(r"\d{8}"), Some("20261101")).unwrap();
        let who = Parameter::new("who", None, None).unwrap();
        let all = [("day".to_owned(), day), ("who".to_owned(), who)];
        Parameters::new(all.into_iter().collect())
    }

    fn resolve(pairs: &[(&str, &str)]) -> Result<Values, ParameterError> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        declared().resolve(&pairs.iter().map(owned).collect())
    }

    #[test]
    fn a_run_has_what_was_given_and_the_defaults() {
        let values = resolve(&[("who", "acme")]).unwrap();
        assert_eq!(values.to_string(), "day=20261101, who=acme");
        let values = resolve(&[("who", "acme"), ("day", "20261224")]).unwrap();
        assert_eq!(values.get("day"), Some("20261224"));
        assert_eq!(declared().required(), Some("who"));
    }

    #[test]
    fn k12_what_is_not_declared_or_not_allowed_is_refused() {
        assert_eq!(resolve(&[]), Err(ParameterError::Missing("who".to_owned())));
        let told = resolve(&[("who", "a"), ("command", "id")]).unwrap_err();
        assert_eq!(
            told.to_string(),
            "the job has no parameter `command`; it has day, who"
        );
        for value in ["", "../x", "a/b", "a b", "{name}", "$(id)", "a\n", "a*"] {
            assert!(resolve(&[("who", value)]).is_err(), "{value:?}");
        }
        assert!(resolve(&[("who", &"x".repeat(201))]).is_err());
        for name in ["", "Day", "1x", "a-b", "a.b"] {
            assert!(Parameter::new(name, None, None).is_err(), "{name}");
        }
        assert!(Parameter::new("day", Some("("), None).is_err());
        assert!(Parameter::new("day", Some("a+"), Some("b")).is_err());
    }

    #[test]
    fn h58_a_value_matches_nothing_but_itself_in_a_glob() {
        let values = Values::from_pairs([("who", "a*{b}[c]?")]);
        let glob = values.fill_glob("{x,y}-{param.who}.csv");
        let filter = crate::filter::Filter::new([glob.as_str()], []).unwrap();
        let takes = |name: &str| {
            let path = crate::RelPath::new(name.as_bytes()).unwrap();
            filter.takes_path(&path, crate::Kind::File)
        };
        assert!(takes("x-a*{b}[c]?.csv"), "{glob}");
        assert!(!takes("x-aab[c]x.csv"), "{glob}");
        let names: Vec<_> = in_glob("{param.a}{param.b}").collect();
        assert_eq!(names, ["a", "b"]);
    }
}
