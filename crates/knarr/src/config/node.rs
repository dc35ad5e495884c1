//! A YAML document as a tree that remembers where everything stood.
//!
//! Constraints: at most [`MAX_DEPTH`] levels and [`MAX_NODES`] nodes, aliases included, so that a
//! small file cannot become a large tree (H-59). Duplicate keys are errors. Only `true` and `false`
//! are truth values, so that the region `no` stays a text.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Spanned, budget, options};

use crate::config::problem::Problem;

/// How deep lists and maps may be nested.
const MAX_DEPTH: usize = 24;
/// How many values a document may hold, those of aliases counted each time.
const MAX_NODES: usize = 100_000;
/// How many aliases (`*name`) a document may hold.
const MAX_ALIASES: usize = 1_000;

/// A value and where it stands, in bytes of the text.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) span: Range<usize>,
}

/// A key and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) span: Range<usize>,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Boolean(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

impl Node {
    /// The same as JSON, with the keys in order; for comparing and keeping.
    pub(super) fn json(&self) -> String {
        self.as_json().to_string()
    }

    fn as_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Boolean(value) => Json::from(*value),
            Value::Unsigned(value) => Json::from(*value),
            Value::Signed(value) => Json::from(*value),
            Value::Float(value) => Json::from(*value),
            Value::Text(text) => Json::from(text.as_str()),
            Value::List(nodes) => nodes.iter().map(Self::as_json).collect(),
            Value::Map(entries) => {
                let entries = entries.iter();
                entries
                    .map(|(key, node)| (key.name.clone(), node.as_json()))
                    .collect()
            }
        }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// What is no YAML, or too much of it.
    pub(super) fn parse(text: &str) -> Result<Self, Box<Problem>> {
        let options = options! {
            budget: budget! {
                max_depth: MAX_DEPTH,
                max_nodes: MAX_NODES,
                max_events: 4 * MAX_NODES,
                max_aliases: MAX_ALIASES,
                max_anchors: MAX_ALIASES,
                max_documents: 1,
            },
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: MAX_NODES,
                max_replay_stack_depth: MAX_DEPTH,
            },
            duplicate_keys: DuplicateKeyPolicy::Error,
            strict_booleans: true,
            with_snippet: false,
        };
        let spanned: Option<Spanned<Value>> = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| Box::new(syntax_problem(&error, text)))?;
        Ok(spanned.map_or(
            Self {
                value: Value::Null,
                span: 0..0,
            },
            node,
        ))
    }

    /// The value under `name`, if this is a map that has it.
    pub(super) fn get(&self, name: &str) -> Option<(&Key, &Self)> {
        let Value::Map(entries) = &self.value else {
            return None;
        };
        entries
            .iter()
            .find(|(key, _value)| key.name == name)
            .map(|(key, value)| (key, value))
    }
}

impl Value {
    /// What it is called in messages.
    pub(super) const fn noun(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Boolean(_) => "a truth value",
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

fn node(spanned: Spanned<Value>) -> Node {
    let span = range(&spanned.referenced);
    Node {
        value: spanned.value,
        span,
    }
}

fn range(location: &serde_saphyr::Location) -> Range<usize> {
    let span = location.span();
    let bytes = |count: Option<u64>| count.and_then(|count| usize::try_from(count).ok());
    let start = bytes(span.byte_offset()).unwrap_or(0);
    start..start.saturating_add(bytes(span.byte_len()).unwrap_or(0))
}

fn syntax_problem(error: &serde_saphyr::Error, text: &str) -> Problem {
    let error = error.without_snippet();
    let span = error.location().map(|location| {
        let range = range(&location);
        // Parser errors at the end of the text may point behind it.
        range.start.min(text.len())..range.end.min(text.len())
    });
    let mut problem = match error {
        serde_saphyr::Error::DuplicateMappingKey { key, .. } => {
            let name = key.as_deref().unwrap_or("?");
            Problem::new(format!("the key `{name}` stands here twice"))
                .help("remove one of the two")
                .at(span)
        }
        serde_saphyr::Error::Budget { .. }
        | serde_saphyr::Error::AliasReplayLimitExceeded { .. }
        | serde_saphyr::Error::AliasExpansionLimitExceeded { .. }
        | serde_saphyr::Error::AliasReplayStackDepthExceeded { .. } => Problem::new(
            "the document is too large or too deeply nested to be a configuration of Knarr",
        )
        .help(format!(
            "at most {MAX_NODES} values, {MAX_ALIASES} aliases and {MAX_DEPTH} levels are read"
        ))
        .at(span),
        serde_saphyr::Error::MultipleDocuments { .. } => {
            Problem::new("a second document begins here")
                .help("remove the `---`")
                .at(span)
        }
        other => {
            let message = other.to_string();
            let first_line = message.lines().next().unwrap_or("it cannot be read");
            // The location is shown beside the source line.
            let reason = first_line
                .split(" at line ")
                .next()
                .unwrap_or(first_line)
                .trim_end_matches(',');
            Problem::new(format!("this is not YAML: {reason}")).at(span)
        }
    };
    problem.is_syntax = true;
    problem
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(item) = list.next_element::<Spanned<Value>>()? {
            nodes.push(node(item));
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let value = map.next_value::<Spanned<Value>>()?;
            let span = range(&key.referenced);
            let key = Key {
                name: key.value,
                span,
            };
            entries.push((key, node(value)));
        }
        Ok(Value::Map(entries))
    }
}
