//! What the steps that encrypt, decrypt, sign and verify can be told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::options::{deserialize_ratio, size_schema};
use crate::size;

const DEFAULT_MAX_OUTPUT: u64 = 64 << 30;
const DEFAULT_MAX_RATIO: u32 = 2000;

/// With what to decrypt, and who must have signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DecryptOptions {
    /// OpenPGP: the name of the secret that holds our private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgp: Option<String>,
    /// age: our identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<AgeIdentity>,
    /// The name of the secret that unlocks the private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<String>,
    /// Files with the public keys of those who may have signed. With any, a message that none of them
    /// has signed is refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signed_by: Vec<String>,
    /// The most bytes that one message may expand to.
    #[serde(deserialize_with = "size::deserialize")]
    #[schemars(schema_with = "size_schema")]
    pub max_output: u64,
    /// The most bytes of output for each byte of input, beyond the first 16 MiB of output: an OpenPGP
    /// message may be compressed inside.
    #[serde(deserialize_with = "deserialize_ratio")]
    #[schemars(range(min = 1))]
    pub max_ratio: u32,
}

impl Default for DecryptOptions {
    /// No key, 64 GiB, 2000 times the input.
    fn default() -> Self {
        Self {
            pgp: None,
            age: None,
            passphrase: None,
            signed_by: Vec::new(),
            max_output: DEFAULT_MAX_OUTPUT,
            max_ratio: DEFAULT_MAX_RATIO,
        }
    }
}

impl DecryptOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        match (&self.pgp, &self.age) {
            (Some(_), None) => Ok(()),
            (None, Some(_)) if self.passphrase.is_some() || !self.signed_by.is_empty() => {
                Err("`passphrase` and `signed_by` belong to `pgp`: age knows neither".to_owned())
            }
            (None, Some(_)) => Ok(()),
            _ => Err(
                "`decrypt` takes either `pgp: name-of-a-secret` or `age: { identity: name-of-a-secret }`"
                    .to_owned(),
            ),
        }
    }
}

/// Our private key for age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgeIdentity {
    /// The name of the secret that holds it, `AGE-SECRET-KEY-1…`; several lines are several identities.
    pub identity: String,
}

/// Who must have signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyOptions {
    /// Files with the public keys of those who may have signed; at least one.
    pub signed_by: Vec<String>,
    /// The most bytes that one message may expand to.
    #[serde(default = "default_max_output", deserialize_with = "size::deserialize")]
    #[schemars(schema_with = "size_schema")]
    pub max_output: u64,
    /// The most bytes of output for each byte of input, beyond the first 16 MiB of output.
    #[serde(default = "default_max_ratio", deserialize_with = "deserialize_ratio")]
    #[schemars(range(min = 1))]
    pub max_ratio: u32,
}

fn default_max_output() -> u64 {
    DEFAULT_MAX_OUTPUT
}

fn default_max_ratio() -> u32 {
    DEFAULT_MAX_RATIO
}

impl VerifyOptions {
    /// Demands a signature of one of these, with the usual limits.
    #[must_use]
    pub fn new(signed_by: Vec<String>) -> Self {
        Self {
            signed_by,
            max_output: DEFAULT_MAX_OUTPUT,
            max_ratio: DEFAULT_MAX_RATIO,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.signed_by.is_empty() {
            return Err("`signed_by` of `verify` names no key".to_owned());
        }
        Ok(())
    }
}

/// For whom to encrypt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EncryptOptions {
    /// As an OpenPGP message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgp: Option<PgpRecipients>,
    /// As an age file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<AgeRecipients>,
    /// Bytes or text.
    pub encoding: Encoding,
}

impl EncryptOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        match (&self.pgp, &self.age) {
            (Some(pgp), None) => pgp.check(),
            (None, Some(age)) if age.recipients.is_empty() => {
                Err("`recipients` of `encrypt` names nobody".to_owned())
            }
            (None, Some(_)) => Ok(()),
            _ => Err(
                "`encrypt` takes either `pgp: { recipients: [partner.asc] }` or `age: { recipients: […] }`"
                    .to_owned(),
            ),
        }
    }
}

/// The recipients of an OpenPGP message, and who signs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PgpRecipients {
    /// Files with their public keys; at least one.
    pub recipients: Vec<String>,
    /// The name of the secret with the private key that signs, if the message is to be signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_with: Option<String>,
    /// The name of the secret that unlocks that key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<String>,
}

impl PgpRecipients {
    fn check(&self) -> Result<(), String> {
        if self.recipients.is_empty() {
            return Err("`recipients` of `encrypt` names nobody".to_owned());
        }
        if self.passphrase.is_some() && self.sign_with.is_none() {
            return Err(
                "`passphrase` of `encrypt` unlocks the key of `sign_with`: name it".to_owned(),
            );
        }
        Ok(())
    }
}

/// The recipients of an age file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgeRecipients {
    /// `age1…`, or files with one such recipient a line; at least one.
    pub recipients: Vec<String>,
}

/// With what to sign, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignOptions {
    /// The name of the secret that holds our private OpenPGP key.
    pub pgp: String,
    /// The name of the secret that unlocks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<String>,
    /// Where the signature goes.
    #[serde(default)]
    pub mode: SignatureMode,
    /// Bytes or text.
    #[serde(default)]
    pub encoding: Encoding,
}

/// Where a signature goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SignatureMode {
    /// Content and signature become one OpenPGP message.
    #[default]
    Inline,
    /// The content stays as it is; the signature is a file beside it, with `.sig` or `.asc` added to the name.
    Detached,
}

/// How encrypted or signed content is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As bytes.
    #[default]
    Binary,
    /// As text, with `-----BEGIN …` and a third more of size.
    Armor,
}
