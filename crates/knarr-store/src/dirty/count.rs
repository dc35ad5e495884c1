//! Counting what waits without looking at all of it.
//!
//! Constraints: an answer that somebody waits for looks at no more than [`DirtyLimit`] rows of each state,
//! through an index, however long the queue is. Who wants to know exactly counts page by page, each a read
//! of its own.

use knarr_core::Timestamp;

use crate::dirty::DirtyCounts;
use crate::error::StoreError;
use crate::pairs::PairId;
use crate::read::{Columns as _, PAGE_ROWS, Reader};

/// Up to which number rows of each state are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyLimit(pub u32);

const READY: &str = "SELECT count(*) FROM (SELECT 1 FROM dirty INDEXED BY dirty_due \
     WHERE pair = ?1 AND parked IS NULL AND due_at <= ?2 LIMIT ?3)";
const WAITING: &str = "SELECT count(*) FROM (SELECT 1 FROM dirty INDEXED BY dirty_due \
     WHERE pair = ?1 AND parked IS NULL AND due_at > ?2 LIMIT ?3)";
const PARKED: &str = "SELECT count(*) FROM (SELECT 1 FROM dirty INDEXED BY dirty_parked \
     WHERE pair = ?1 AND parked IS NOT NULL LIMIT ?2)";
const PAGE: &str = "SELECT count(*) FILTER (WHERE parked IS NULL AND due_at <= ?2), \
     count(*) FILTER (WHERE parked IS NULL AND due_at > ?2), \
     count(*) FILTER (WHERE parked IS NOT NULL), max(key) FROM \
     (SELECT key, parked, due_at FROM dirty NOT INDEXED WHERE pair = ?1 AND key > ?3 ORDER BY key LIMIT ?4)";

impl Reader<'_> {
    /// How many paths are in which state at `now`, each counted up to `limit`: a number that reaches it
    /// stands for that many or more.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn count_dirty_up_to(
        &self,
        pair: PairId,
        now: Timestamp,
        limit: DirtyLimit,
    ) -> Result<DirtyCounts, StoreError> {
        let operation = "count the queue";
        let (now, limit) = (now.nanoseconds(), i64::from(limit.0));
        let due = |sql| self.one(operation, sql, (pair.0, now, limit), |row| row.number(0));
        let parked = self.one(operation, PARKED, (pair.0, limit), |row| row.number(0))?;
        Ok(DirtyCounts {
            ready: due(READY)?.unwrap_or(0),
            waiting: due(WAITING)?.unwrap_or(0),
            parked: parked.unwrap_or(0),
        })
    }

    /// Whether a path waits for a person.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn has_parked(&self, pair: PairId) -> Result<bool, StoreError> {
        let parked = self.one("look for what is parked", PARKED, (pair.0, 1), |row| {
            row.number(0)
        })?;
        Ok(parked.unwrap_or(0) > 0)
    }

    /// Counts the next [`PAGE_ROWS`] paths behind the order key `after` (from the start: an empty key). Also
    /// the key behind which to go on; nothing if that was all.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn count_dirty_page(
        &self,
        pair: PairId,
        now: Timestamp,
        after: &[u8],
    ) -> Result<(DirtyCounts, Option<Vec<u8>>), StoreError> {
        let page = i64::try_from(PAGE_ROWS).unwrap_or(i64::MAX);
        let counted = self.one(
            "count the queue",
            PAGE,
            (pair.0, now.nanoseconds(), after, page),
            |row| {
                let counts = DirtyCounts {
                    ready: row.number(0)?,
                    waiting: row.number(1)?,
                    parked: row.number(2)?,
                };
                Ok((counts, row.column::<Option<Vec<u8>>>(3)?))
            },
        )?;
        let (counts, last) = counted.unwrap_or_default();
        let all = counts.ready + counts.waiting + counts.parked;
        Ok((counts, last.filter(|_| all >= PAGE_ROWS as u64)))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, StatementStatus};

    use super::{PAGE, PARKED, READY, WAITING};
    use crate::read::plan_of;

    /// A queue of a million ready paths, half a million that wait, and half a million parked ones.
    fn queue() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        crate::schema::migrate(&mut connection).unwrap();
        connection
            .execute_batch(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000) \
                 INSERT INTO dirty (pair, key, kind, generation, first_seen, last_seen, ready_at, parked) \
                 SELECT 1, CAST(printf('%08d', i) AS BLOB), 0, i, 1, 1, \
                 CASE WHEN i % 4 = 0 THEN 100 ELSE 1 END, CASE WHEN i % 4 = 1 THEN 'why' END FROM n",
            )
            .unwrap();
        connection
    }

    #[test]
    fn k10_counting_a_queue_of_two_million_paths_looks_at_no_more_rows_than_the_limit() {
        let connection = queue();
        let limit = 10_000;
        for (sql, parameters) in [
            (READY, vec![1, 50, limit]),
            (WAITING, vec![1, 50, limit]),
            (PARKED, vec![1, limit]),
        ] {
            let mut statement = connection.prepare(sql).unwrap();
            let counted: i64 = statement
                .query_row(rusqlite::params_from_iter(parameters), |row| row.get(0))
                .unwrap();
            assert_eq!(counted, limit, "{sql}");
            // The steps of SQLite's machine: some for each row that is looked at.
            let steps = statement.get_status(StatementStatus::VmStep);
            assert!(steps < 20 * i32::try_from(limit).unwrap(), "{sql}: {steps}");
            assert_eq!(statement.get_status(StatementStatus::Sort), 0, "{sql}");
        }
        let mut statement = connection.prepare(PAGE).unwrap();
        let counted: i64 = statement
            .query_row((1, 50, b"01000000".as_slice(), limit), |row| {
                Ok(row.get::<_, i64>(0)? + row.get::<_, i64>(1)? + row.get::<_, i64>(2)?)
            })
            .unwrap();
        assert_eq!(counted, limit);
        let steps = statement.get_status(StatementStatus::VmStep);
        assert!(steps < 60 * i32::try_from(limit).unwrap(), "{steps}");
        let plan = plan_of(PAGE);
        assert!(plan.contains("PRIMARY KEY (pair=? AND key>?)"), "{plan}");
    }
}
