//! What a run has staged to publish it together.
//!
//! A row of a file is written before anything of it is at the destination, so that what a crash leaves
//! there is known. A batch that is *decided* is finished by whoever takes up the pair next; one that is
//! not is taken back, or its staged files are used again.

use knarr_core::{RelPath, Timestamp};
use rusqlite::Row;

use crate::codec::{Malformed, path_of};
use crate::error::StoreError;
use crate::pairs::PairId;
use crate::read::{Columns as _, Reader};
use crate::runs::RunId;
use crate::transaction::Tx;

/// The number of a batch in this state directory. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(i64);

/// The number of a file of a batch. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchFileId(i64);

/// How far a file of a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BatchState {
    /// It is being staged.
    Begun,
    /// It is complete under its staged name, and verified.
    Staged,
    /// It has its final name, and that is on record.
    Published,
}

impl BatchState {
    const fn code(self) -> i64 {
        match self {
            Self::Begun => 0,
            Self::Staged => 1,
            Self::Published => 2,
        }
    }
}

/// When a file of a batch is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Turn {
    /// With the many.
    First,
    /// When all others are.
    Last,
}

impl Turn {
    const fn code(self) -> i64 {
        match self {
            Self::First => 0,
            Self::Last => 1,
        }
    }
}

/// What becomes of what is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parked {
    /// It waits for a person still.
    Stays,
    /// It is tried again; but for what was delivered before and only has not left the source.
    Goes,
}

/// A file that is to be staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBatchFile {
    /// The batch.
    pub batch: BatchId,
    /// The path below the source's root.
    pub source: RelPath,
    /// The final path below the destination's root.
    pub path: RelPath,
    /// Where it lies until then; nothing if it is there already.
    pub staged: Option<RelPath>,
    /// When it is published.
    pub turn: Turn,
}

/// A file of a batch, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchFile {
    /// Its number.
    pub id: BatchFileId,
    /// What was begun.
    pub begun_as: NewBatchFile,
    /// What the engine noted when it was staged.
    pub item: Option<String>,
}

/// Whether a final path may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It may.
    Free {
        /// The row.
        id: BatchFileId,
        /// What was noted of it by an earlier run that staged it completely and did not publish it.
        earlier: Option<String>,
    },
    /// Another file of the same run goes there.
    Taken {
        /// Its path at the source.
        by: RelPath,
    },
}

const COLUMNS: &str = "f.id, f.batch, f.source, f.path, f.staged, f.turn, f.item";

fn file(row: &Row<'_>) -> Result<BatchFile, StoreError> {
    let broken = |source| StoreError::damaged("a file of a batch", source);
    let staged: Option<Vec<u8>> = row.column(4)?;
    Ok(BatchFile {
        id: BatchFileId(row.column(0)?),
        begun_as: NewBatchFile {
            batch: BatchId(row.column(1)?),
            source: path_of(row.blob(2)?).map_err(broken)?,
            path: path_of(row.blob(3)?).map_err(broken)?,
            staged: staged
                .map(|bytes| path_of(&bytes))
                .transpose()
                .map_err(broken)?,
            turn: match row.column::<i64>(5)? {
                0 => Turn::First,
                1 => Turn::Last,
                _ => return Err(broken(Malformed::Value)),
            },
        },
        item: row.column(6)?,
    })
}

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

impl Reader<'_> {
    /// The batches of a pair whose publication was decided and is not finished, the oldest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn decided_batches(&self, pair: PairId) -> Result<Vec<BatchId>, StoreError> {
        self.all(
            "find what is being published",
            "SELECT id FROM batches WHERE pair = ?1 AND decided_at IS NOT NULL ORDER BY id",
            [pair.0],
            |row| Ok(BatchId(row.column(0)?)),
        )
    }

    /// The jobs of which a publication was decided and is not finished.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn publishing_jobs(&self) -> Result<Vec<String>, StoreError> {
        self.all(
            "find what is being published",
            "SELECT DISTINCT p.job FROM batches b JOIN pairs p ON p.id = b.pair \
             WHERE b.decided_at IS NOT NULL AND p.job IS NOT NULL",
            [],
            |row| row.column(0),
        )
    }

    /// Files of a batch that are in this state, behind the file `after` of the same turn, at most `limit`:
    /// those of the first turn that has any.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn batch_files(
        &self,
        batch: BatchId,
        state: BatchState,
        after: Option<(Turn, BatchFileId)>,
        limit: usize,
    ) -> Result<Vec<BatchFile>, StoreError> {
        let (turn, id) = after.map_or((0, 0), |(turn, id)| (turn.code(), id.0));
        let sql = format!(
            "SELECT {COLUMNS} FROM batch_files f WHERE f.batch = ?1 AND f.state = ?2 \
             AND (f.turn, f.id) > (?3, ?4) ORDER BY f.turn, f.id LIMIT ?5"
        );
        let params = (batch.0, state.code(), turn, id, limit_of(limit));
        let mut files = self.all("read a batch", &sql, params, file)?;
        if let Some(turn) = files.first().map(|file| file.begun_as.turn) {
            files.retain(|file| file.begun_as.turn == turn);
        }
        Ok(files)
    }

    /// Files of batches of a pair that were never decided, of other runs than `run` and begun before
    /// `before`, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn abandoned_files(
        &self,
        pair: PairId,
        run: RunId,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<BatchFile>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM batches b JOIN batch_files f ON f.batch = b.id \
             WHERE b.pair = ?1 AND b.run <> ?2 AND b.decided_at IS NULL AND b.begun_at < ?3 LIMIT ?4"
        );
        let params = (
            pair.0,
            run.0.cast_signed(),
            before.nanoseconds(),
            limit_of(limit),
        );
        self.all("find what was staged in vain", &sql, params, file)
    }
}

impl Tx<'_> {
    /// Begins a batch.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn begin_batch(&mut self, pair: PairId, run: RunId) -> Result<BatchId, StoreError> {
        self.run(
            "begin a batch",
            "INSERT INTO batches (pair, run, begun_at) VALUES (?1, ?2, ?3)",
            (pair.0, run.0.cast_signed(), self.now().nanoseconds()),
        )?;
        Ok(BatchId(self.connection.last_insert_rowid()))
    }

    /// Notes that a file is about to be staged, unless another one of the same run goes to the same path.
    /// What an earlier run noted for that path is given up.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn claim(&mut self, pair: PairId, new: &NewBatchFile) -> Result<Claim, StoreError> {
        let there = self.one(
            "look who goes to a path",
            "SELECT f.id, f.source, f.state, f.item, \
             b.run = (SELECT run FROM batches WHERE id = ?3) \
             FROM batch_files f JOIN batches b ON b.id = f.batch WHERE f.pair = ?1 AND f.path = ?2",
            (pair.0, new.path.as_bytes(), new.batch.0),
            |row| {
                let source = path_of(row.blob(1)?)
                    .map_err(|source| StoreError::damaged("a file of a batch", source))?;
                let id: i64 = row.column(0)?;
                let state: i64 = row.column(2)?;
                let item: Option<String> = row.column(3)?;
                let same_run: i64 = row.column(4)?;
                Ok((id, source, state, item, same_run == 1))
            },
        )?;
        let staged = new.staged.as_ref().map(RelPath::as_bytes);
        let Some((id, source, state, item, same_run)) = there else {
            self.run(
                "note a file of a batch",
                "INSERT INTO batch_files (batch, pair, source, path, staged, state, turn) \
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6)",
                (
                    new.batch.0,
                    pair.0,
                    new.source.as_bytes(),
                    new.path.as_bytes(),
                    staged,
                    new.turn.code(),
                ),
            )?;
            let id = BatchFileId(self.connection.last_insert_rowid());
            return Ok(Claim::Free { id, earlier: None });
        };
        if source != new.source && same_run {
            return Ok(Claim::Taken { by: source });
        }
        let is_whole = source == new.source && state == BatchState::Staged.code();
        self.run(
            "note a file of a batch",
            "UPDATE batch_files SET batch = ?2, source = ?3, staged = ?4, state = 0, turn = ?5, \
             item = NULL WHERE id = ?1",
            (
                id,
                new.batch.0,
                new.source.as_bytes(),
                staged,
                new.turn.code(),
            ),
        )?;
        Ok(Claim::Free {
            id: BatchFileId(id),
            earlier: item.filter(|_| is_whole),
        })
    }

    /// Notes that a file is staged completely, and what is to be recorded when it is published.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn set_staged(
        &mut self,
        pair: PairId,
        path: &RelPath,
        item: &str,
    ) -> Result<(), StoreError> {
        self.run(
            "note that a file is staged",
            "UPDATE batch_files SET state = 1, item = ?3 WHERE pair = ?1 AND path = ?2 AND state = 0",
            (pair.0, path.as_bytes(), item),
        )
        .map(drop)
    }

    /// Takes back what was staged of a source: it is made anew.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn restage(&mut self, pair: PairId, source: &RelPath) -> Result<(), StoreError> {
        self.run(
            "take back what was staged",
            "UPDATE batch_files SET state = 0, item = NULL \
             WHERE pair = ?1 AND source = ?2 AND state = 1",
            (pair.0, source.as_bytes()),
        )
        .map(drop)
    }

    /// Notes that all of a batch is to be published. From now on it is.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn decide_batch(&mut self, batch: BatchId) -> Result<(), StoreError> {
        self.run(
            "decide on a publication",
            "UPDATE batches SET decided_at = ?2 WHERE id = ?1",
            (batch.0, self.now().nanoseconds()),
        )
        .map(drop)
    }

    /// Takes a decision back: something of the batch is not there any more, and has to be staged again.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn undecide_batch(&mut self, batch: BatchId) -> Result<(), StoreError> {
        self.run(
            "take back a publication",
            "UPDATE batches SET decided_at = NULL WHERE id = ?1",
            [batch.0],
        )
        .map(drop)
    }

    /// Notes that a file has its final name. Belongs into the transaction that records it.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn set_published(&mut self, file: BatchFileId) -> Result<(), StoreError> {
        self.run(
            "note that a file is published",
            "UPDATE batch_files SET state = 2 WHERE id = ?1",
            [file.0],
        )
        .map(drop)
    }

    /// Forgets files of batches.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn forget_batch_files(
        &mut self,
        files: impl IntoIterator<Item = BatchFileId>,
    ) -> Result<(), StoreError> {
        for file in files {
            self.run(
                "forget a file of a batch",
                "DELETE FROM batch_files WHERE id = ?1",
                [file.0],
            )?;
        }
        Ok(())
    }

    /// Forgets batches of a pair that have no files any more, but for those of `run` that are not
    /// decided.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn forget_empty_batches(&mut self, pair: PairId, run: RunId) -> Result<(), StoreError> {
        self.run(
            "forget batches",
            "DELETE FROM batches WHERE pair = ?1 AND (run <> ?2 OR decided_at IS NOT NULL) \
             AND NOT EXISTS (SELECT 1 FROM batch_files f WHERE f.batch = batches.id)",
            (pair.0, run.0.cast_signed()),
        )
        .map(drop)
    }

    /// Drops from the queue of a pair what is there at the source: the next look finds it again.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn drop_waiting(&mut self, pair: PairId, parked: Parked) -> Result<(), StoreError> {
        let keep = match parked {
            Parked::Stays => "AND parked IS NULL",
            Parked::Goes => {
                "AND (parked IS NULL OR NOT EXISTS (SELECT 1 FROM synced s \
                 WHERE s.pair = dirty.pair AND s.key = dirty.key))"
            }
        };
        let sql = format!("DELETE FROM dirty WHERE pair = ?1 AND observed IS NOT NULL {keep}");
        self.run("drop what waits", &sql, [pair.0]).map(drop)
    }
}
