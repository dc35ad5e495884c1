//! Marking paths as dirty: what is there decides what a new observation means.

use knarr_core::entry::Kind;
use rusqlite::{CachedStatement, OptionalExtension as _};

use crate::codec::{fingerprint_blob, keys_of, kind_code};
use crate::dirty::{Mark, Seen};
use crate::error::{StoreError, While as _};
use crate::pairs::PairId;
use crate::read::Columns as _;
use crate::transaction::Tx;

/// Marks many paths with the same statements, and takes their generations from one counter.
pub(crate) struct Marker<'c> {
    pair: PairId,
    generation: u64,
    find: CachedStatement<'c>,
    insert: CachedStatement<'c>,
    update: CachedStatement<'c>,
    remove: CachedStatement<'c>,
}

const MARK: &str = "mark a path as dirty";

/// What decides about a mark, of the row that is there.
struct Before {
    key: Vec<u8>,
    observed: Option<Vec<u8>>,
    first_seen: i64,
    ready_at: i64,
    generation: i64,
    renamed_from: Option<Vec<u8>>,
    complete_because: Option<String>,
}

impl<'c> Marker<'c> {
    pub(crate) fn new(tx: &Tx<'c>, pair: PairId) -> Result<Self, StoreError> {
        let generation = tx.one(
            MARK,
            "SELECT value FROM counters WHERE name = 'generation'",
            [],
            |row| row.number(0),
        )?;
        Ok(Self {
            pair,
            generation: generation.unwrap_or(0),
            find: tx.prepare(
                MARK,
                // Not `IN`: for that SQLite builds a table each time.
                "SELECT key, observed, first_seen, ready_at, generation, renamed_from, \
                 complete_because FROM dirty WHERE pair = ?1 AND key = ?2 \
                 UNION ALL SELECT key, observed, first_seen, ready_at, generation, renamed_from, \
                 complete_because FROM dirty WHERE pair = ?1 AND key = ?3",
            )?,
            insert: tx.prepare(
                MARK,
                "INSERT INTO dirty (pair, key, kind, observed, generation, first_seen, last_seen, \
                 ready_at, complete_because, renamed_from) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?,
            update: tx.prepare(
                MARK,
                "UPDATE dirty SET generation = ?3, last_seen = ?4, ready_at = ?5, \
                 complete_because = ?6, renamed_from = ?7 WHERE pair = ?1 AND key = ?2",
            )?,
            remove: tx.prepare(MARK, "DELETE FROM dirty WHERE pair = ?1 AND key = ?2")?,
        })
    }

    pub(crate) fn mark(&mut self, mark: &Mark) -> Result<(), StoreError> {
        let (plain, directory) = keys_of(&mark.path);
        let key = if mark.kind == Kind::Directory {
            directory.as_slice()
        } else {
            plain
        };
        let observed = mark.observed.as_ref().map(fingerprint_blob);
        let before = self
            .find
            .query_row((self.pair.0, plain, &directory), |row| {
                Ok(Before {
                    key: row.get(0)?,
                    observed: row.get(1)?,
                    first_seen: row.get(2)?,
                    ready_at: row.get(3)?,
                    generation: row.get(4)?,
                    renamed_from: row.get(5)?,
                    complete_because: row.get(6)?,
                })
            })
            .optional()
            .trying(MARK)?;
        let hint = mark
            .renamed_from
            .as_ref()
            .map(|path| path.as_bytes().to_vec());
        match before {
            Some(before) if before.key == key && before.observed == observed => {
                self.see_again(key, mark, before, hint)
            }
            before => {
                let first_seen = before
                    .as_ref()
                    .map_or(mark.at.nanoseconds(), |before| before.first_seen);
                // A rename that was followed by an edit is still a rename; what is gone is none.
                let kept = before
                    .as_ref()
                    .and_then(|before| before.renamed_from.clone());
                let hint = hint.or(kept).filter(|_| observed.is_some());
                if let Some(before) = before {
                    self.remove
                        .execute((self.pair.0, &before.key))
                        .trying(MARK)?;
                }
                self.generation += 1;
                self.insert
                    .execute((
                        self.pair.0,
                        key,
                        kind_code(mark.kind),
                        &observed,
                        self.generation.cast_signed(),
                        first_seen,
                        mark.at.nanoseconds(),
                        mark.ready_at.nanoseconds(),
                        &mark.complete_because,
                        &hint,
                    ))
                    .map(drop)
                    .trying(MARK)
            }
        }
    }

    /// It looks as it looked before.
    fn see_again(
        &mut self,
        key: &[u8],
        mark: &Mark,
        before: Before,
        hint: Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        let (generation, ready_at) = match mark.seen {
            Seen::Event => {
                self.generation += 1;
                (self.generation.cast_signed(), mark.ready_at.nanoseconds())
            }
            Seen::Scan => (
                before.generation,
                before.ready_at.min(mark.ready_at.nanoseconds()),
            ),
        };
        let complete_because = match (mark.seen, &mark.complete_because) {
            (_, Some(because)) => Some(because.clone()),
            (Seen::Event, None) => None,
            (Seen::Scan, None) => before.complete_because,
        };
        self.update
            .execute((
                self.pair.0,
                key,
                generation,
                mark.at.nanoseconds(),
                ready_at,
                complete_because,
                hint.or(before.renamed_from),
            ))
            .map(drop)
            .trying(MARK)
    }

    pub(crate) fn finish(self, tx: &Tx<'_>) -> Result<(), StoreError> {
        tx.run(
            MARK,
            "INSERT INTO counters (name, value) VALUES ('generation', ?1) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            [self.generation.cast_signed()],
        )
        .map(drop)
    }
}
