//! The synced tree: what both sides of a pair agreed on last.
//!
//! One row for each path, stored in tree order: the primary key is the path, with `/` behind it for a
//! directory. A path that changes its kind changes its key; the row under the other key goes in the same
//! step, so a path never stands twice.
//!
//! The value is one blob: a byte 1 (its form), a byte of flags (bit 0 a destination path, bit 1 a hash),
//! the two fingerprints (see `codec`), then what the flags announce.

use std::collections::VecDeque;

use knarr_core::entry::{Identity, Kind};
use knarr_core::tree::Synced;
use knarr_core::{ContentHash, RelPath};
use rusqlite::Connection;

use crate::Store;
use crate::codec::{Decoder, Encoder, Malformed, behind, keys_of};
use crate::error::{StoreError, While as _};
use crate::pairs::PairId;
use crate::read::{Columns as _, PAGE_ROWS, Reader};
use crate::transaction::Tx;

const FORM: u8 = 1;
const DESTINATION_PATH: u8 = 1;
const HASH: u8 = 2;

/// On which sides a renamed file is to be recognised. Each side costs an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recognise {
    /// At the source only: copies, moves and mirrors.
    Source,
    /// At both: two-way synchronisation.
    Both,
}

/// The side that an identity belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

fn encode(synced: &Synced, value: &mut Vec<u8>) {
    value.clear();
    let mut encoder = Encoder(value);
    encoder.byte(FORM);
    let flag = |set, bit| if set { bit } else { 0 };
    encoder.byte(
        flag(synced.destination_path.is_some(), DESTINATION_PATH)
            | flag(synced.hash.is_some(), HASH),
    );
    encoder.fingerprint(&synced.source);
    encoder.fingerprint(&synced.destination);
    if let Some(path) = &synced.destination_path {
        encoder.bytes(path.as_bytes());
    }
    if let Some(hash) = &synced.hash {
        encoder.hash(hash);
    }
}

fn decode(key: &[u8], value: &[u8]) -> Result<Synced, Malformed> {
    let path = RelPath::from_order_key(key).map_err(Malformed::Path)?;
    let mut decoder = Decoder::new(value);
    match decoder.byte()? {
        FORM => {}
        other => return Err(Malformed::Version(other)),
    }
    let flags = decoder.byte()?;
    if flags > DESTINATION_PATH | HASH {
        return Err(Malformed::Value);
    }
    let source = decoder.fingerprint()?;
    let destination = decoder.fingerprint()?;
    let destination_path = if flags & DESTINATION_PATH == 0 {
        None
    } else {
        Some(crate::codec::path_of(decoder.bytes()?)?)
    };
    let hash: Option<ContentHash> = if flags & HASH == 0 {
        None
    } else {
        Some(decoder.hash()?)
    };
    decoder.finish()?;
    if (source.kind == Kind::Directory) != (key.last() == Some(&b'/')) {
        return Err(Malformed::Value);
    }
    Ok(Synced {
        path,
        source,
        destination,
        destination_path,
        hash,
    })
}

fn row_of(key: &[u8], value: &[u8]) -> Result<Synced, StoreError> {
    decode(key, value).map_err(|source| {
        let what = format!(
            "the synced tree at \"{}\"",
            knarr_core::path::printable(key)
        );
        StoreError::damaged(what, source)
    })
}

/// What stands in the index for an identity; equal identities have equal numbers.
fn identity_number(identity: &Identity) -> i64 {
    match identity {
        Identity::Inode(inode) => inode.cast_signed(),
        Identity::Tag(tag) => {
            let hash = blake3::hash(tag.as_bytes());
            let (first, _) = hash
                .as_bytes()
                .split_first_chunk()
                .expect("a hash has 32 bytes");
            i64::from_le_bytes(*first)
        }
    }
}

impl Reader<'_> {
    /// What was agreed on for a path.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn synced(&self, pair: PairId, path: &RelPath) -> Result<Option<Synced>, StoreError> {
        let (plain, directory) = keys_of(path);
        self.one(
            "read the synced tree",
            // Not `IN`: for that SQLite builds a table each time.
            "SELECT key, value FROM synced WHERE pair = ?1 AND key = ?2 \
             UNION ALL SELECT key, value FROM synced WHERE pair = ?1 AND key = ?3",
            (pair.0, plain, &directory),
            |row| row_of(row.blob(0)?, row.blob(1)?),
        )
    }

    /// What was agreed on for things with this identity on that side, at most `limit`. More than one,
    /// where tags are made from content or files have several names.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn synced_with_identity(
        &self,
        pair: PairId,
        side: Side,
        identity: &Identity,
        limit: usize,
    ) -> Result<Vec<Synced>, StoreError> {
        // Left to itself, SQLite looks at every row of the pair.
        let sql = match side {
            Side::Source => {
                "SELECT key, value FROM synced INDEXED BY synced_source_identity \
                 WHERE pair = ?1 AND source_identity = ?2"
            }
            Side::Destination => {
                "SELECT key, value FROM synced INDEXED BY synced_destination_identity \
                 WHERE pair = ?1 AND destination_identity = ?2"
            }
        };
        let mut statement = self.prepare("find a renamed file", sql)?;
        let mut rows = statement
            .query((pair.0, identity_number(identity)))
            .trying("find a renamed file")?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().trying("find a renamed file")? {
            if found.len() >= limit {
                break;
            }
            let synced = row_of(row.blob(0)?, row.blob(1)?)?;
            let fingerprint = match side {
                Side::Source => &synced.source,
                Side::Destination => &synced.destination,
            };
            // The number of a tag is a short hash: others may share it.
            if fingerprint.identity.as_ref() == Some(identity) {
                found.push(synced);
            }
        }
        Ok(found)
    }

    /// How many paths the synced tree of a pair has. Looks at all of them.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn count_synced(&self, pair: PairId) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM synced WHERE pair = ?1";
        Ok(self
            .one("count the synced tree", sql, [pair.0], |row| row.number(0))?
            .unwrap_or(0))
    }

    /// The next rows in tree order behind the order key `after` (from the start: an empty key), at most
    /// `limit`, appended to `into`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn synced_page(
        &self,
        pair: PairId,
        after: &[u8],
        limit: usize,
        into: &mut impl Extend<Synced>,
    ) -> Result<(), StoreError> {
        let operation = "walk the synced tree";
        let mut statement = self.prepare(
            operation,
            "SELECT key, value FROM synced WHERE pair = ?1 AND key > ?2 ORDER BY key LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query((pair.0, after, limit)).trying(operation)?;
        while let Some(row) = rows.next().trying(operation)? {
            into.extend(Some(row_of(row.blob(0)?, row.blob(1)?)?));
        }
        Ok(())
    }
}

impl Tx<'_> {
    /// Records what was agreed on, replacing what was there for the same paths.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn upsert_synced<'s>(
        &mut self,
        pair: PairId,
        recognise: Recognise,
        entries: impl IntoIterator<Item = &'s Synced>,
    ) -> Result<(), StoreError> {
        let operation = "write the synced tree";
        let mut upsert = self.prepare(
            operation,
            "INSERT INTO synced (pair, key, source_identity, destination_identity, value) \
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (pair, key) DO UPDATE SET \
             source_identity = excluded.source_identity, \
             destination_identity = excluded.destination_identity, value = excluded.value",
        )?;
        let mut remove =
            self.prepare(operation, "DELETE FROM synced WHERE pair = ?1 AND key = ?2")?;
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for synced in entries {
            key.clear();
            key.extend_from_slice(synced.path.as_bytes());
            key.push(b'/');
            let plain = synced.path.as_bytes();
            let (ours, other) = match synced.kind() {
                Kind::Directory => (key.as_slice(), plain),
                Kind::File | Kind::Symlink | Kind::Special => (plain, key.as_slice()),
            };
            remove.execute((pair.0, other)).trying(operation)?;
            encode(synced, &mut value);
            let source = synced.source.identity.as_ref().map(identity_number);
            let destination = match recognise {
                Recognise::Source => None,
                Recognise::Both => synced.destination.identity.as_ref().map(identity_number),
            };
            upsert
                .execute((pair.0, ours, source, destination, value.as_slice()))
                .trying(operation)?;
        }
        Ok(())
    }

    /// Forgets what was agreed on for these paths (not: for what lies below them).
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove_synced<'p>(
        &mut self,
        pair: PairId,
        paths: impl IntoIterator<Item = &'p RelPath>,
    ) -> Result<u64, StoreError> {
        let operation = "remove from the synced tree";
        let mut remove =
            self.prepare(operation, "DELETE FROM synced WHERE pair = ?1 AND key = ?2")?;
        let mut removed = 0;
        for path in paths {
            let (plain, directory) = keys_of(path);
            for key in [plain, &directory] {
                removed += remove.execute((pair.0, key)).trying(operation)? as u64;
            }
        }
        Ok(removed)
    }

    /// Forgets a directory and everything below it; says how many paths that were.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove_synced_tree(
        &mut self,
        pair: PairId,
        directory: &RelPath,
    ) -> Result<u64, StoreError> {
        let (_, key) = keys_of(directory);
        self.run(
            "remove from the synced tree",
            "DELETE FROM synced WHERE pair = ?1 AND key >= ?2 AND key < ?3",
            (pair.0, &key, &behind(&key)),
        )
    }

    /// Gives a path, and everything below it if it is a directory, a new name; says how many paths that
    /// were. What is there under the new names is replaced. Paths at the destination that differ from
    /// those at the source ([`Synced::destination_path`]) stay as they are.
    ///
    /// # Errors
    /// [`StoreError::RenameIntoItself`]; if the database cannot be written.
    pub fn rename_synced(
        &mut self,
        pair: PairId,
        from: &RelPath,
        to: &RelPath,
    ) -> Result<u64, StoreError> {
        if from == to {
            return Ok(0);
        }
        if to.is_below(from) || from.is_below(to) {
            return Err(StoreError::RenameIntoItself {
                from: from.clone(),
                to: to.clone(),
            });
        }
        let operation = "rename in the synced tree";
        let (from_plain, from_directory) = keys_of(from);
        let (to_plain, to_directory) = keys_of(to);
        let there = self.one(
            operation,
            "SELECT EXISTS (SELECT 1 FROM synced WHERE pair = ?1 AND key = ?2) \
             OR EXISTS (SELECT 1 FROM synced WHERE pair = ?1 AND key >= ?3 AND key < ?4)",
            (
                pair.0,
                from_plain,
                &from_directory,
                &behind(&from_directory),
            ),
            |row| row.number(0),
        )?;
        if there.unwrap_or(0) == 0 {
            return Ok(0);
        }
        // A path stands once: what has the new name as another kind goes.
        self.remove_synced(pair, [to])?;
        let plain = self.run(
            operation,
            "UPDATE OR REPLACE synced SET key = ?3 WHERE pair = ?1 AND key = ?2",
            (pair.0, from_plain, to_plain),
        )?;
        // `||` of two blobs is a text of the same bytes; a path has no NUL that could end it.
        let below = self.run(
            operation,
            "UPDATE OR REPLACE synced SET key = CAST(?4 || substr(key, ?5) AS BLOB) \
             WHERE pair = ?1 AND key >= ?2 AND key < ?3",
            (
                pair.0,
                &from_directory,
                &behind(&from_directory),
                &to_directory,
                i64::try_from(from_directory.len())
                    .unwrap_or(i64::MAX)
                    .saturating_add(1),
            ),
        )?;
        Ok(plain + below)
    }
}

impl Store {
    /// Walks the synced tree of a pair in tree order, from behind the order key `after` (from the start:
    /// an empty key).
    #[must_use]
    pub fn synced_cursor(&self, pair: PairId, after: &[u8]) -> SyncedCursor {
        SyncedCursor {
            store: self.clone(),
            pair,
            after: after.to_vec(),
            page: VecDeque::new(),
            end: End::Ahead,
        }
    }
}

/// A walk over the synced tree. Holds [`PAGE_ROWS`] rows at most; blocks when it needs more.
///
/// Not a snapshot, so that the log never grows because somebody walks: each page is one. A change behind
/// the current page is seen, one before it is not, and a path is never seen twice unless it was renamed
/// forward meanwhile.
#[derive(Debug)]
pub struct SyncedCursor {
    store: Store,
    pair: PairId,
    after: Vec<u8>,
    page: VecDeque<Synced>,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Ahead,
    Reached,
}

impl SyncedCursor {
    fn turn_page(&mut self) -> Result<(), StoreError> {
        let (pair, after, page) = (self.pair, &self.after, &mut self.page);
        self.store
            .read(|reader| reader.synced_page(pair, after, PAGE_ROWS, page))?;
        if self.page.len() < PAGE_ROWS {
            self.end = End::Reached;
        }
        if let Some(last) = self.page.back() {
            self.after.clear();
            self.after.extend_from_slice(last.path.as_bytes());
            if last.kind() == Kind::Directory {
                self.after.push(b'/');
            }
        }
        Ok(())
    }
}

/// After an error it ends.
impl Iterator for SyncedCursor {
    type Item = Result<Synced, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty()
            && self.end == End::Ahead
            && let Err(error) = self.turn_page()
        {
            self.end = End::Reached;
            self.page.clear();
            return Some(Err(error));
        }
        self.page.pop_front().map(Ok)
    }
}

/// Whether every row can be read.
pub(crate) fn read_all(connection: &Connection) -> Result<(), StoreError> {
    let operation = "read the synced tree";
    let mut statement = connection
        .prepare("SELECT key, value FROM synced")
        .trying(operation)?;
    let mut rows = statement.query([]).trying(operation)?;
    while let Some(row) = rows.next().trying(operation)? {
        row_of(row.blob(0)?, row.blob(1)?)?;
    }
    Ok(())
}
