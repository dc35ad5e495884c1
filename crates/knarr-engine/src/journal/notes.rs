//! Small things that a pair keeps for later: what it owes, and what it has seen.
//!
//! They are settings of the store whose names begin with what they are and the number of the pair.

use knarr_core::Timestamp;
use knarr_store::{PairId, StoreError, Tx};
use serde::{Deserialize, Serialize};

use super::{Change, Journal};
use crate::error::EngineError;

/// What is kept under many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Acknowledgements that are still to be written, by the time since which they are owed.
    Acknowledgement,
    /// Contents that were delivered, by their hash.
    Content,
}

impl Kept {
    const fn name(self) -> &'static str {
        match self {
            Self::Acknowledgement => "acknowledge",
            Self::Content => "content",
        }
    }

    fn prefix(self, pair: PairId) -> String {
        format!("{}.{}.", self.name(), pair.number())
    }
}

/// A change to what is kept.
#[derive(Debug, Clone)]
pub(crate) enum Note {
    /// This is kept.
    Keep(Kept, String, String),
    /// It is not kept any more.
    Drop(Kept, String),
    /// One file more was delivered, which the next acknowledgement of a run counts.
    Count { bytes: u64 },
    /// They were counted.
    Counted,
}

/// Files that no acknowledgement has counted yet.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Uncounted {
    files: u64,
    bytes: u64,
}

fn uncounted_setting(pair: PairId) -> String {
    format!("unacknowledged.{}", pair.number())
}

impl Change {
    pub(crate) fn note(note: Note) -> Self {
        Self::Note(Box::new(note))
    }
}

impl Note {
    /// Makes the change.
    pub(crate) fn apply(&self, tx: &mut Tx<'_>, pair: PairId) -> Result<(), StoreError> {
        match self {
            Self::Keep(kept, key, text) => {
                tx.set_setting(&format!("{}{key}", kept.prefix(pair)), text)
            }
            Self::Drop(kept, key) => tx.remove_setting(&format!("{}{key}", kept.prefix(pair))),
            Self::Count { bytes } => {
                let name = uncounted_setting(pair);
                let before = tx.setting(&name)?;
                let mut counted = before.as_deref().map_or_else(Uncounted::default, read);
                counted.files += 1;
                counted.bytes += bytes;
                let text = serde_json::to_string(&counted).unwrap_or_default();
                tx.set_setting(&name, &text)
            }
            Self::Counted => tx.remove_setting(&uncounted_setting(pair)),
        }
    }
}

fn read(text: &str) -> Uncounted {
    serde_json::from_str(text).unwrap_or_default()
}

impl Journal {
    /// The name of the job, or the command.
    pub(crate) fn job(&self) -> &str {
        &self.label.job
    }

    /// What is kept behind a key, in the order of the keys, at most `limit`.
    pub(crate) async fn kept(
        &self,
        kept: Kept,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, String)>, EngineError> {
        let (prefix, after) = (kept.prefix(self.pair), after.to_owned());
        self.read(move |reader| reader.settings_below(&prefix, &after, limit))
            .await
    }

    /// What is kept under a key.
    pub(crate) async fn kept_under(
        &self,
        kept: Kept,
        key: &str,
    ) -> Result<Option<String>, EngineError> {
        let name = format!("{}{key}", kept.prefix(self.pair));
        self.read(move |reader| reader.setting(&name)).await
    }

    /// How many files and bytes no acknowledgement of a run has counted yet; nothing if there are none.
    pub(crate) async fn uncounted(&self) -> Result<Option<(u64, u64)>, EngineError> {
        let name = uncounted_setting(self.pair);
        let text = self.read(move |reader| reader.setting(&name)).await?;
        let counted = text.as_deref().map(read);
        Ok(counted.map(|Uncounted { files, bytes }| (files, bytes)))
    }

    /// When contents were last looked through for those that are too old.
    pub(crate) async fn last_forgotten(&self) -> Result<Option<Timestamp>, EngineError> {
        self.time_setting("forgotten").await
    }

    /// Notes that they were.
    pub(crate) async fn set_last_forgotten(&self, at: Timestamp) -> Result<(), EngineError> {
        self.set_time_setting("forgotten", at).await
    }
}
