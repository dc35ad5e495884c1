//! What is kept of a staged file until it is published. Persisted: version 1 stays readable for ever.

use knarr_core::entry::Fingerprint;
use knarr_core::record::CustodyRecord;
use knarr_core::{ContentHash, Entry};
use knarr_remote::Replace;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

const VERSION: u32 = 1;

/// A staged file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Item {
    version: u32,
    /// The source, as it was read.
    pub(crate) source: Entry,
    pub(crate) role: Role,
    /// What is recorded, but for what is known only then.
    pub(crate) record: CustodyRecord,
    /// What lies under the staged name; or at the final one, if it was there already.
    pub(crate) staged: Entry,
    pub(crate) replaces: Replaces,
    /// Of what is staged.
    pub(crate) hash: Option<ContentHash>,
    /// The checksum that it was compared with, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) compared: Option<String>,
    /// The SHA-256 of the source's content, where its acknowledgement tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
}

/// What a staged file is to its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// With it the source is recorded as delivered.
    Main,
    /// Something else that the steps made of it.
    Other,
}

/// What may be replaced at the final name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Replaces {
    Nothing,
    Seen(Fingerprint),
    Anything,
}

impl From<Replace> for Replaces {
    fn from(replace: Replace) -> Self {
        match replace {
            Replace::Nothing => Self::Nothing,
            Replace::Seen(seen) => Self::Seen(seen),
            Replace::Anything => Self::Anything,
        }
    }
}

/// What an earlier run staged and nobody published.
#[derive(Debug)]
pub(crate) struct Reused(pub(crate) Item);

/// What is needed to make an item.
pub(crate) struct NewItem {
    pub(crate) source: Entry,
    pub(crate) role: Role,
    pub(crate) record: CustodyRecord,
    pub(crate) staged: Entry,
    pub(crate) replaces: Replaces,
    pub(crate) hash: Option<ContentHash>,
    pub(crate) compared: Option<String>,
    pub(crate) sha256: Option<String>,
}

impl Item {
    pub(crate) fn new(new: NewItem) -> Self {
        let NewItem {
            source,
            role,
            record,
            staged,
            replaces,
            hash,
            compared,
            sha256,
        } = new;
        Self {
            version: VERSION,
            source,
            role,
            record,
            staged,
            replaces,
            hash,
            compared,
            sha256,
        }
    }

    pub(crate) fn write(&self) -> Result<String, EngineError> {
        serde_json::to_string(self)
            .map_err(|_error| EngineError::Internal("a staged file cannot be written down"))
    }

    /// Reads it back; nothing if a later version wrote it.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let item: Self = serde_json::from_str(text).ok()?;
        (item.version == VERSION).then_some(item)
    }
}
