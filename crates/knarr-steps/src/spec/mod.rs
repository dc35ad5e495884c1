//! The steps as the configuration writes them: plain data.
//!
//! A step is its bare name, `decompress`, its name with one word, `{ compress: gzip }`, or its name with
//! options, `{ decompress: { max_output: 10GiB, max_ratio: 1000, unrecognised: fail } }`.

mod crypto;
mod options;

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

pub use self::crypto::{
    AgeIdentity, AgeRecipients, DecryptOptions, Encoding, EncryptOptions, PgpRecipients,
    SignOptions, SignatureMode, VerifyOptions,
};
pub use self::options::{
    ArchiveFormat, ArchiveOptions, ChecksumAlgorithm, ChecksumOptions, CompressOptions,
    DecompressOptions, ExtractOptions, Links, Unrecognised,
};
use crate::format::Format;

/// One step of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSpec {
    /// Removes one layer of compression.
    Decompress(DecompressOptions),
    /// Adds a layer of compression.
    Compress(CompressOptions),
    /// Unpacks an archive: one file becomes many.
    Extract(ExtractOptions),
    /// Packs files: many become one archive.
    Archive(ArchiveOptions),
    /// Decrypts an OpenPGP message or an age file.
    Decrypt(DecryptOptions),
    /// Removes an OpenPGP signature after checking it.
    Verify(VerifyOptions),
    /// Encrypts as an OpenPGP message or an age file.
    Encrypt(EncryptOptions),
    /// Signs with OpenPGP.
    Sign(SignOptions),
    /// Puts a file with a checksum beside each file.
    Checksum(ChecksumOptions),
}

/// What a step needs from outside of the data, for the caller to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct References {
    /// Names of secrets: private keys, identities, passphrases.
    pub secrets: Vec<String>,
    /// Paths of files with public keys, as they are written in the configuration.
    pub files: Vec<String>,
}

impl StepSpec {
    /// The step `decompress` with the limits it has by default.
    #[must_use]
    pub fn decompress() -> Self {
        Self::Decompress(DecompressOptions::default())
    }

    /// The step `extract` with the limits it has by default.
    #[must_use]
    pub fn extract() -> Self {
        Self::Extract(ExtractOptions::default())
    }

    /// The name of the step, as the configuration writes it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Decompress(_) => "decompress",
            Self::Compress(_) => "compress",
            Self::Extract(_) => "extract",
            Self::Archive(_) => "archive",
            Self::Decrypt(_) => "decrypt",
            Self::Verify(_) => "verify",
            Self::Encrypt(_) => "encrypt",
            Self::Sign(_) => "sign",
            Self::Checksum(_) => "checksum",
        }
    }

    /// Which secrets and files the step refers to.
    #[must_use]
    pub fn references(&self) -> References {
        let mut found = References::default();
        match self {
            Self::Decrypt(options) => {
                found.secrets.extend(options.pgp.clone());
                found
                    .secrets
                    .extend(options.age.iter().map(|age| age.identity.clone()));
                found.secrets.extend(options.passphrase.clone());
                found.files.clone_from(&options.signed_by);
            }
            Self::Verify(options) => found.files.clone_from(&options.signed_by),
            Self::Encrypt(options) => {
                if let Some(pgp) = &options.pgp {
                    found.secrets.extend(pgp.sign_with.clone());
                    found.secrets.extend(pgp.passphrase.clone());
                    found.files.clone_from(&pgp.recipients);
                }
                if let Some(age) = &options.age {
                    let files = age.recipients.iter().filter(|text| !is_age_recipient(text));
                    found.files.extend(files.cloned());
                }
            }
            Self::Sign(options) => {
                found.secrets.push(options.pgp.clone());
                found.secrets.extend(options.passphrase.clone());
            }
            Self::Decompress(_)
            | Self::Compress(_)
            | Self::Extract(_)
            | Self::Archive(_)
            | Self::Checksum(_) => {}
        }
        found
    }

    /// What cannot be said with the types of the fields alone.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Compress(options) => options.check(),
            Self::Archive(options) => options.check(),
            Self::Decrypt(options) => options.check(),
            Self::Verify(options) => options.check(),
            Self::Encrypt(options) => options.check(),
            Self::Decompress(_) | Self::Extract(_) | Self::Sign(_) | Self::Checksum(_) => Ok(()),
        }
    }
}

/// Whether the text is a recipient of age itself, and not the path of a file with some.
pub(crate) fn is_age_recipient(text: &str) -> bool {
    text.starts_with("age1")
}

/// The names of the steps. A derived enum, so that a wrong name is answered with the right ones.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StepName {
    Decompress,
    Compress,
    Extract,
    Archive,
    Decrypt,
    Verify,
    Encrypt,
    Sign,
    Checksum,
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
            StepName::Compress => Ok(StepSpec::Compress(CompressOptions::default())),
            StepName::Extract => Ok(StepSpec::extract()),
            StepName::Archive => Ok(StepSpec::Archive(ArchiveOptions::default())),
            StepName::Checksum => Ok(StepSpec::Checksum(ChecksumOptions::default())),
            StepName::Decrypt | StepName::Verify | StepName::Encrypt | StepName::Sign => {
                Err(E::custom(format!(
                    "the step `{value}` has to be told its keys: `{{ {value}: {{ … }} }}`"
                )))
            }
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
            StepName::Extract => {
                let options = map.next_value::<Option<ExtractOptions>>()?;
                StepSpec::Extract(options.unwrap_or_default())
            }
            StepName::Compress => {
                StepSpec::Compress(map.next_value_seed(Shorthand::<_, Format>::new())?)
            }
            StepName::Archive => {
                StepSpec::Archive(map.next_value_seed(Shorthand::<_, ArchiveFormat>::new())?)
            }
            StepName::Checksum => {
                StepSpec::Checksum(map.next_value_seed(Shorthand::<_, ChecksumAlgorithm>::new())?)
            }
            StepName::Decrypt => StepSpec::Decrypt(map.next_value()?),
            StepName::Verify => StepSpec::Verify(map.next_value()?),
            StepName::Encrypt => StepSpec::Encrypt(map.next_value()?),
            StepName::Sign => StepSpec::Sign(map.next_value()?),
        };
        if map.next_key::<StepName>()?.is_some() {
            return Err(de::Error::custom(
                "one step has one name: begin a new entry of the list",
            ));
        }
        step.check().map_err(de::Error::custom)?;
        Ok(step)
    }
}

/// Options that can be written as one word.
struct Shorthand<T, W>(PhantomData<(T, W)>);

impl<T, W> Shorthand<T, W> {
    fn new() -> Self {
        Self(PhantomData)
    }
}

impl<'de, T, W> DeserializeSeed<'de> for Shorthand<T, W>
where
    T: Deserialize<'de> + Default + From<W>,
    W: Deserialize<'de>,
{
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T, W> Visitor<'de> for Shorthand<T, W>
where
    T: Deserialize<'de> + Default + From<W>,
    W: Deserialize<'de>,
{
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("one word, or options in `{ … }`")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        W::deserialize(de::value::StrDeserializer::new(value)).map(T::from)
    }

    fn visit_unit<E: de::Error>(self) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_none<E: de::Error>(self) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(de::value::MapAccessDeserializer::new(map))
    }
}

impl JsonSchema for StepSpec {
    fn schema_name() -> Cow<'static, str> {
        "StepSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let bare = |name: &str| json_schema!({ "type": "string", "const": name });
        let with = |name: &str, options: Schema| {
            json_schema!({
                "type": "object",
                "properties": { name: options },
                "required": [name],
                "additionalProperties": false
            })
        };
        let either = |one: Schema, other: Schema| json_schema!({ "anyOf": [one, other] });
        let compress = either(
            generator.subschema_for::<Format>(),
            generator.subschema_for::<CompressOptions>(),
        );
        let archive = either(
            generator.subschema_for::<ArchiveFormat>(),
            generator.subschema_for::<ArchiveOptions>(),
        );
        let checksum = either(
            generator.subschema_for::<ChecksumAlgorithm>(),
            generator.subschema_for::<ChecksumOptions>(),
        );
        json_schema!({
            "description": "One step of a job: its name, its name with one word, or its name with options.",
            "oneOf": [
                bare("decompress"),
                with("decompress", generator.subschema_for::<DecompressOptions>()),
                bare("compress"),
                with("compress", compress),
                bare("extract"),
                with("extract", generator.subschema_for::<ExtractOptions>()),
                bare("archive"),
                with("archive", archive),
                bare("checksum"),
                with("checksum", checksum),
                with("decrypt", generator.subschema_for::<DecryptOptions>()),
                with("verify", generator.subschema_for::<VerifyOptions>()),
                with("encrypt", generator.subschema_for::<EncryptOptions>()),
                with("sign", generator.subschema_for::<SignOptions>())
            ]
        })
    }
}
