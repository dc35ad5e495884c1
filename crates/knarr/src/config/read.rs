//! Reads typed shapes from a [`Node`] tree, with errors that know where they are.
//!
//! The shapes are ordinary serde types. Three of them need more than serde offers and ask for it by
//! the name of a newtype: [`At`] (where a value stands), [`Many`] (one or a list), and secrets
//! (whose text must not be repeated).

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{StrDeserializer, UsizeDeserializer};
use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};

use crate::config::node::{Key, Node, Value};
use crate::config::problem::Problem;
use crate::suggest;

const AT: &str = "$knarr::At";
const MANY: &str = "$knarr::Many";
/// The newtype name by which a secret's shape says that it is one.
pub(super) const SECRET: &str = "$knarr::Secret";

/// Reads `node` as a `T`. `place` is its name for messages, `name` where its key stands.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn read<T: DeserializeOwned>(
    node: &Node,
    place: &str,
    name: &Range<usize>,
) -> Result<T, Box<Problem>> {
    let reader = Reader {
        node,
        name: name.clone(),
    };
    T::deserialize(reader).map_err(|error| {
        let ReadError(mut problem) = error;
        problem.put_below(place);
        if problem.span.is_none() {
            problem.span = Some(name.clone());
        }
        problem
    })
}

/// A value, and where it stands in the text.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// One value or a list of them.
#[derive(Debug, Clone)]
pub(super) struct Many<T>(pub(super) Vec<T>);

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// What went wrong while reading.
#[derive(Debug)]
struct ReadError(Box<Problem>);

impl ReadError {
    fn new(message: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(message)))
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    fn at(mut self, span: &Range<usize>) -> Self {
        self.0.span.get_or_insert_with(|| span.clone());
        self
    }

    fn below(mut self, name: &str) -> Self {
        self.0.put_below(name);
        self
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let mut expected = expected.to_string();
        if expected.starts_with("struct ") {
            // The names of our types mean nothing to who writes the file.
            "a map".clone_into(&mut expected);
        }
        Self::new(format!("{expected} is expected here, not {unexpected}"))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("`{variant}` is not known here"))
            .help(suggest::help(variant, expected, "known"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("unknown key `{field}`")).help(suggest::help(
            field,
            expected,
            "known keys",
        ))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("the key `{field}` is missing"))
    }
}

struct Reader<'n> {
    node: &'n Node,
    /// Where the key of this node stands; what is missing in the node is shown there.
    name: Range<usize>,
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let span = self.node.span.clone();
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(nodes) => {
                return visitor
                    .visit_seq(ListReader { nodes, index: 0 })
                    .map_err(|error| error.at(&span));
            }
            Value::Map(entries) => {
                return visitor
                    .visit_map(MapReader {
                        entries,
                        value: None,
                    })
                    .map_err(|error| error.at(&self.name));
            }
        }
        .map_err(|error: ReadError| error.at(&span))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if matches!(
            self.node.value,
            Value::Boolean(_) | Value::Unsigned(_) | Value::Signed(_) | Value::Float(_)
        ) {
            let noun = self.node.value.noun();
            return Err(
                ReadError::new(format!("a text is expected here, not {noun}"))
                    .help("put it in quotes")
                    .at(&self.node.span),
            );
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match name {
            AT => visitor.visit_seq(AtReader {
                reader: Some(self),
                turn: 0,
            }),
            MANY => match &self.node.value {
                Value::List(nodes) => visitor.visit_seq(ListReader { nodes, index: 0 }),
                _ => visitor.visit_seq(ListReader {
                    nodes: std::slice::from_ref(self.node),
                    index: 0,
                }),
            }
            .map_err(|error| error.at(&self.node.span)),
            SECRET if !matches!(self.node.value, Value::Map(_)) => {
                let mut error = ReadError::new("a secret may not stand in the configuration")
                    .help(
                        "store it with `knarr secret set NAME` and write { secret: NAME }, \
                         or name an environment variable: { env: NAME }",
                    )
                    .at(&self.node.span);
                error.0.hides_span = true;
                Err(error)
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let span = self.node.span.clone();
        match &self.node.value {
            Value::Text(text) => visitor.visit_enum(ChoiceReader {
                name: text,
                span: span.clone(),
                value: None,
            }),
            Value::Map(entries) if entries.len() == 1 => {
                let Some((key, node)) = entries.first() else {
                    return Err(ReadError::new("one key is expected here").at(&span));
                };
                visitor
                    .visit_enum(ChoiceReader {
                        name: &key.name,
                        span: key.span.clone(),
                        value: Some(node),
                    })
                    .map_err(|error| error.at(&key.span))
            }
            Value::Map(_) => Err(ReadError::new("exactly one key is expected here")),
            other => Err(ReadError::new(format!(
                "a word is expected here, not {}",
                other.noun()
            ))),
        }
        .map_err(|error| error.at(&span))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct ListReader<'n> {
    nodes: &'n [Node],
    index: usize,
}

impl<'de> SeqAccess<'de> for ListReader<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let Some(node) = self.nodes.get(self.index) else {
            return Ok(None);
        };
        self.index += 1;
        let name = node.span.clone();
        seed.deserialize(Reader { node, name })
            .map(Some)
            .map_err(|error| error.at(&node.span))
    }
}

struct MapReader<'n> {
    entries: &'n [(Key, Node)],
    value: Option<&'n (Key, Node)>,
}

impl<'de> MapAccess<'de> for MapReader<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        let Some((entry, rest)) = self.entries.split_first() else {
            return Ok(None);
        };
        self.entries = rest;
        self.value = Some(entry);
        seed.deserialize(StrDeserializer::new(&entry.0.name))
            .map(Some)
            .map_err(|error: ReadError| error.at(&entry.0.span))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let (key, node) = self
            .value
            .take()
            .expect("serde asks for a key before its value");
        let name = key.span.clone();
        seed.deserialize(Reader { node, name })
            .map_err(|error| error.at(&node.span).below(&key.name))
    }
}

struct ChoiceReader<'n> {
    name: &'n str,
    span: Range<usize>,
    value: Option<&'n Node>,
}

impl<'de> EnumAccess<'de> for ChoiceReader<'_> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let choice = seed
            .deserialize(StrDeserializer::new(self.name))
            .map_err(|error: ReadError| error.at(&self.span))?;
        Ok((choice, self))
    }
}

impl<'de> VariantAccess<'de> for ChoiceReader<'_> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        match self.value {
            None => Ok(()),
            Some(node) => {
                Err(ReadError::new(format!("`{}` takes no value", self.name)).at(&node.span))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        match self.value {
            Some(node) => seed
                .deserialize(Reader {
                    node,
                    name: self.span,
                })
                .map_err(|error| error.at(&node.span).below(self.name)),
            None => Err(ReadError::new(format!("`{}` needs a value", self.name))
                .help(format!("write {{ {}: … }}", self.name))
                .at(&self.span)),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.newtype_variant_seed(Visit(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.newtype_variant_seed(Visit(visitor))
    }
}

/// Hands a visitor to whatever stands there.
struct Visit<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Visit<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_any(self.0)
    }
}

/// Delivers the start, the end and the value of an [`At`].
struct AtReader<'n> {
    reader: Option<Reader<'n>>,
    turn: u8,
}

impl<'de> SeqAccess<'de> for AtReader<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let turn = self.turn;
        self.turn = self.turn.saturating_add(1);
        let Some(reader) = &self.reader else {
            return Ok(None);
        };
        let span = reader.node.span.clone();
        match turn {
            0 => seed
                .deserialize(UsizeDeserializer::new(span.start))
                .map(Some),
            1 => seed.deserialize(UsizeDeserializer::new(span.end)).map(Some),
            _ => match self.reader.take() {
                Some(reader) => seed
                    .deserialize(reader)
                    .map(Some)
                    .map_err(|error| error.at(&span)),
                None => Ok(None),
            },
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AtVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for AtVisitor<T> {
            type Value = At<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<At<T>, A::Error> {
                let missing = || de::Error::custom("a value is expected here");
                let start = parts.next_element()?.ok_or_else(missing)?;
                let end = parts.next_element()?.ok_or_else(missing)?;
                let value = parts.next_element()?.ok_or_else(missing)?;
                Ok(At {
                    value,
                    span: start..end,
                })
            }
        }
        deserializer.deserialize_newtype_struct(AT, AtVisitor(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ManyVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ManyVisitor<T> {
            type Value = Many<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of them")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Many<T>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Many(values))
            }
        }
        deserializer.deserialize_newtype_struct(MANY, ManyVisitor(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: JsonSchema> JsonSchema for Many<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}
