//! What is about to be done and cannot be taken back: a staged file gets its final name, a file is
//! removed.
//!
//! An intent is durable before the first rename or removal of its batch, and goes in the transaction that
//! records the batch. So after a crash everything that was done and not recorded is in an open intent
//! (K11), and whoever takes up the pair next looks which of it happened. It costs one row a batch, not one
//! a file.
//!
//! The form of `items`, version 1: the byte 1, how many, then for each a byte of flags (bit 0 the side
//! that is written: 0 source, 1 destination; bit 1 set for a removal), the path, optionally the path at
//! the side that is written, the fingerprint of what is brought or removed, optionally the fingerprint of
//! what it replaces, optionally its hash. See `codec.rs` for the parts.

use knarr_core::entry::Fingerprint;
use knarr_core::{ContentHash, RelPath, Timestamp};
use rusqlite::Row;

use crate::codec::{Decoder, Encoder, Malformed, path_of};
use crate::error::StoreError;
use crate::pairs::PairId;
use crate::read::{Columns as _, Reader};
use crate::runs::RunId;
use crate::synced::Side;
use crate::transaction::Tx;

const FORM: u8 = 1;
const TO_DESTINATION: u8 = 1;
const REMOVAL: u8 = 1 << 1;

/// The number of an intent in this state directory. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntentId(i64);

impl IntentId {
    /// Before all others, to begin a walk with.
    pub const FIRST: Self = Self(0);
}

/// What is about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Something gets its final name.
    Deliver,
    /// Something is removed.
    Remove,
}

/// One thing that is about to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intended {
    /// What.
    pub verb: Verb,
    /// The side that is written.
    pub to: Side,
    /// The path at the other side, under which it is recorded.
    pub path: RelPath,
    /// The path at the side that is written, if it is another.
    pub written_as: Option<RelPath>,
    /// What is brought over, as it was read at the other side; or what is removed.
    pub seen: Fingerprint,
    /// What it replaces.
    pub replaces: Option<Fingerprint>,
    /// The hash of the content, if it is known.
    pub hash: Option<ContentHash>,
}

impl Intended {
    /// Where it is written.
    #[must_use]
    pub fn at(&self) -> &RelPath {
        self.written_as.as_ref().unwrap_or(&self.path)
    }
}

/// An intent, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Its number.
    pub id: IntentId,
    /// The run that meant it.
    pub run: RunId,
    /// When.
    pub at: Timestamp,
    /// What was meant.
    pub items: Vec<Intended>,
}

fn encode(items: &[Intended]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(items.len().saturating_mul(64));
    let mut encoder = Encoder(&mut bytes);
    encoder.byte(FORM);
    encoder.number(items.len() as u64);
    for item in items {
        let side = match item.to {
            Side::Source => 0,
            Side::Destination => TO_DESTINATION,
        };
        let verb = match item.verb {
            Verb::Deliver => 0,
            Verb::Remove => REMOVAL,
        };
        encoder.byte(side | verb);
        encoder.bytes(item.path.as_bytes());
        encoder.optional(item.written_as.as_ref(), |encoder, path| {
            encoder.bytes(path.as_bytes());
        });
        encoder.fingerprint(&item.seen);
        encoder.optional(item.replaces.as_ref(), Encoder::fingerprint);
        encoder.optional(item.hash.as_ref(), Encoder::hash);
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<Vec<Intended>, Malformed> {
    let mut decoder = Decoder::new(bytes);
    match decoder.byte()? {
        FORM => {}
        other => return Err(Malformed::Version(other)),
    }
    let count = decoder.number()?;
    // The count is not trusted with memory: what is not there ends the loop.
    let mut items = Vec::new();
    for _ in 0..count {
        let flags = decoder.byte()?;
        if flags > (TO_DESTINATION | REMOVAL) {
            return Err(Malformed::Value);
        }
        items.push(Intended {
            verb: if flags & REMOVAL == 0 {
                Verb::Deliver
            } else {
                Verb::Remove
            },
            to: if flags & TO_DESTINATION == 0 {
                Side::Source
            } else {
                Side::Destination
            },
            path: path_of(decoder.bytes()?)?,
            written_as: decoder.optional(|decoder| path_of(decoder.bytes()?))?,
            seen: decoder.fingerprint()?,
            replaces: decoder.optional(Decoder::fingerprint)?,
            hash: decoder.optional(Decoder::hash)?,
        });
    }
    decoder.finish()?;
    Ok(items)
}

fn intent(row: &Row<'_>) -> Result<Intent, StoreError> {
    Ok(Intent {
        id: IntentId(row.column(0)?),
        run: RunId(row.number(1)?),
        at: row.time(2)?,
        items: decode(row.blob(3)?).map_err(|source| StoreError::damaged("an intent", source))?,
    })
}

impl Reader<'_> {
    /// What was meant for a pair and never recorded, behind the intent `after`, the oldest first, at most
    /// `limit`. While a run is under way, also what it does just now.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn intents(
        &self,
        pair: PairId,
        after: IntentId,
        limit: usize,
    ) -> Result<Vec<Intent>, StoreError> {
        self.all(
            "read what was meant",
            "SELECT id, run, at, items FROM intents WHERE pair = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
            (pair.0, after.0, i64::try_from(limit).unwrap_or(i64::MAX)),
            intent,
        )
    }
}

impl Tx<'_> {
    /// Notes what is about to be done.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn intend(
        &mut self,
        pair: PairId,
        run: RunId,
        items: &[Intended],
    ) -> Result<IntentId, StoreError> {
        self.run(
            "note what is meant",
            "INSERT INTO intents (pair, run, at, items) VALUES (?1, ?2, ?3, ?4)",
            (
                pair.0,
                run.0.cast_signed(),
                self.now().nanoseconds(),
                encode(items),
            ),
        )?;
        Ok(IntentId(self.connection.last_insert_rowid()))
    }

    /// Narrows an intent to `left`: what became of the rest of it is on record.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn narrow_intent(&mut self, intent: IntentId, left: &[Intended]) -> Result<(), StoreError> {
        self.run(
            "narrow what was meant",
            "UPDATE intents SET items = ?2 WHERE id = ?1",
            (intent.0, encode(left)),
        )
        .map(drop)
    }

    /// Forgets an intent: what became of it is on record.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove_intent(&mut self, intent: IntentId) -> Result<(), StoreError> {
        self.run(
            "forget what was meant",
            "DELETE FROM intents WHERE id = ?1",
            [intent.0],
        )
        .map(drop)
    }
}
