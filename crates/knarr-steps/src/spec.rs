//! The steps as the configuration writes them: plain data.
//!
//! A step is its bare name, `decompress`, or its name with options,
//! `{ decompress: { max_output: 10GiB, max_ratio: 1000, unrecognised: fail } }`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::size;

/// One step of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSpec {
    /// Removes one layer of compression.
    Decompress(DecompressOptions),
}

impl StepSpec {
    /// The step `decompress` with the limits it has by default.
    #[must_use]
    pub fn decompress() -> Self {
        Self::Decompress(DecompressOptions::default())
    }
}

/// How to decompress, and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DecompressOptions {
    /// The most bytes that one file may expand to: a number, or a text such as `10GiB`.
    #[serde(deserialize_with = "size::deserialize")]
    #[schemars(schema_with = "size_schema")]
    pub max_output: u64,
    /// The most bytes of output for each byte of input, at any point of the stream
    /// beyond its first 16 MiB of output.
    #[serde(deserialize_with = "deserialize_ratio")]
    #[schemars(range(min = 1))]
    pub max_ratio: u32,
    /// The most bytes of memory that decoding one file may take (the window of zstd, the
    /// dictionary of xz): a number, or a text such as `128MiB`.
    #[serde(deserialize_with = "size::deserialize")]
    #[schemars(schema_with = "size_schema")]
    pub max_memory: u64,
    /// What becomes of content that is not compressed.
    pub unrecognised: Unrecognised,
}

impl Default for DecompressOptions {
    /// 64 GiB of output, 2000 times the input (gzip cannot do more than 1032), 128 MiB of memory
    /// (`zstd --long=27` and `xz -9` fit), and what is not compressed is passed on.
    fn default() -> Self {
        Self {
            max_output: 64 << 30,
            max_ratio: 2000,
            max_memory: 128 << 20,
            unrecognised: Unrecognised::Pass,
        }
    }
}

/// What becomes of content that is not compressed in any way known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unrecognised {
    /// It is delivered unchanged, and the record says "not compressed".
    Pass,
    /// It is an error. (An empty file is never one.)
    Fail,
}

fn deserialize_ratio<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let ratio = u32::deserialize(deserializer)?;
    if ratio == 0 {
        return Err(de::Error::custom("`max_ratio` has to be 1 or more"));
    }
    Ok(ratio)
}

fn size_schema(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [
            { "type": "integer", "minimum": 0 },
            { "type": "string", "pattern": "^\\s*[0-9]+(\\.[0-9]{1,6})?\\s*([kKmMgGtT]?[bB]|[kKmMgGtT]([iI][bB])?)?\\s*$" }
        ]
    })
}

/// The names of the steps. A derived enum, so that a wrong name is answered with the right ones.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum StepName {
    Decompress,
}

impl<'de> Deserialize<'de> for StepSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StepVisitor)
    }
}

struct StepVisitor;

impl<'de> Visitor<'de> for StepVisitor {
    type Value = StepSpec;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a step: `decompress`, or `{ decompress: { … } }`")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<StepSpec, E> {
        match StepName::deserialize(de::value::StrDeserializer::new(value))? {
            StepName::Decompress => Ok(StepSpec::decompress()),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StepSpec, A::Error> {
        let Some(name) = map.next_key::<StepName>()? else {
            return Err(de::Error::invalid_length(0, &self));
        };
        let step = match name {
            StepName::Decompress => {
                let options = map.next_value::<Option<DecompressOptions>>()?;
                StepSpec::Decompress(options.unwrap_or_default())
            }
        };
        if map.next_key::<StepName>()?.is_some() {
            return Err(de::Error::custom(
                "one step has one name: begin a new entry of the list",
            ));
        }
        Ok(step)
    }
}

impl JsonSchema for StepSpec {
    fn schema_name() -> Cow<'static, str> {
        "StepSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let options = generator.subschema_for::<DecompressOptions>();
        json_schema!({
            "description": "One step of a job: its name, or its name with options.",
            "oneOf": [
                { "type": "string", "const": "decompress" },
                {
                    "type": "object",
                    "properties": { "decompress": options },
                    "required": ["decompress"],
                    "additionalProperties": false
                }
            ]
        })
    }
}
