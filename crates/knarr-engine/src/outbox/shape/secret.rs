//! Secrets by reference, and URLs that may be one. Read by hand, so that an error never repeats what may be
//! a secret.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// A secret, by reference: `{ secret: name }` in the store of `knarr secret set`, or `{ env: NAME }`, an
/// environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SecretRef {
    /// The name in the store of secrets.
    Secret(String),
    /// The name of an environment variable.
    Env(String),
}

/// Where a webhook is: a URL, or a secret that is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum UrlShape {
    /// The URL.
    Plain(String),
    /// A secret that holds the URL.
    Secret(SecretRef),
}

/// The newtype name by which a reader of the configuration knows that a secret is expected, whose text must
/// not be repeated in messages.
const SECRET: &str = "$knarr::Secret";

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(SECRET, SecretVisitor)
    }
}

struct SecretVisitor;

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = SecretRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ secret: NAME } or { env: NAME }")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<SecretRef, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretRef, A::Error> {
        let wrong =
            || serde::de::Error::custom("{ secret: NAME } or { env: NAME } is expected here");
        let (name, value): (String, String) = map.next_entry()?.ok_or_else(wrong)?;
        let secret = match name.as_str() {
            "secret" => SecretRef::Secret(value),
            "env" => SecretRef::Env(value),
            _ => return Err(wrong()),
        };
        match map.next_key::<String>()? {
            None => Ok(secret),
            Some(_) => Err(wrong()),
        }
    }
}

impl<'de> Deserialize<'de> for UrlShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UrlVisitor;
        impl<'de> Visitor<'de> for UrlVisitor {
            type Value = UrlShape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or { secret: NAME }")
            }

            fn visit_str<E>(self, text: &str) -> Result<UrlShape, E> {
                Ok(UrlShape::Plain(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UrlShape, A::Error> {
                SecretVisitor.visit_map(map).map(UrlShape::Secret)
            }
        }
        deserializer.deserialize_any(UrlVisitor)
    }
}
