//! Looking things up in the custody record.
//!
//! Every question goes through an index: the path by its last component and then its directory (so a
//! path can be found from its end, too), the run, the job, the action, the time. A glob is matched
//! while walking from the newest record backwards.

use knarr_core::entry::Kind;
use knarr_core::filter::{Filter, FilterError};
use knarr_core::record::Action;
use knarr_core::{RelPath, Timestamp};
use rusqlite::params_from_iter;
use rusqlite::types::Value;

use crate::custody::{COLUMNS, ChainedRecord, action_code, chained_record, split};
use crate::error::{StoreError, While as _};
use crate::read::Reader;
use crate::runs::RunId;

/// The path whose story is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TracePath {
    /// Exactly this path below the root.
    Exact(RelPath),
    /// This path, and every longer one that ends with these components.
    EndsWith(RelPath),
}

/// Which records are meant; all that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct HistoryFilter {
    /// Of this job.
    pub job: Option<String>,
    /// Of this run.
    pub run: Option<RunId>,
    /// About this action.
    pub action: Option<Action>,
    /// Recorded at this time or later.
    pub since: Option<Timestamp>,
    /// Recorded before this time.
    pub until: Option<Timestamp>,
    /// Whose path matches one of these globs; made by [`HistoryFilter::globs`].
    pub paths: Option<Filter>,
    /// Older than the record with this number, to continue a list.
    pub before: Option<u64>,
}

impl HistoryFilter {
    /// What to put into [`HistoryFilter::paths`].
    ///
    /// # Errors
    /// If a pattern is no glob.
    pub fn globs<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Result<Filter, FilterError> {
        Filter::new(patterns, [])
    }
}

impl Reader<'_> {
    /// The story of a path: its newest records, at most `limit`, the oldest of them first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn trace(&self, path: &TracePath, limit: usize) -> Result<Vec<ChainedRecord>, StoreError> {
        let operation = "trace a path";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut records = match path {
            TracePath::Exact(path) => {
                let (directory, name) = split(path);
                let sql = format!(
                    "SELECT {COLUMNS} FROM custody INDEXED BY custody_path \
                     WHERE name = ?1 AND directory = ?2 ORDER BY seq DESC LIMIT ?3"
                );
                self.all(operation, &sql, (name, directory, limit), chained_record)?
            }
            TracePath::EndsWith(path) => {
                let (directory, name) = split(path);
                // Below any directory that ends with these components; all, if only a name is asked for.
                let sql = format!(
                    "SELECT {COLUMNS} FROM custody INDEXED BY custody_path \
                     WHERE name = ?1 AND (length(?2) = 0 OR directory = ?2 \
                     OR substr(directory, -length(?2) - 1) = CAST('/' || ?2 AS BLOB)) \
                     ORDER BY seq DESC LIMIT ?3"
                );
                self.all(operation, &sql, (name, directory, limit), chained_record)?
            }
        };
        records.reverse();
        Ok(records)
    }

    /// The records behind a number, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn records_after(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Vec<ChainedRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM custody WHERE seq > ?1 ORDER BY seq LIMIT ?2");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all(
            "read the history",
            &sql,
            (after.cast_signed(), limit),
            chained_record,
        )
    }

    /// Records, the newest first, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn history(
        &self,
        filter: &HistoryFilter,
        limit: usize,
    ) -> Result<Vec<ChainedRecord>, StoreError> {
        let operation = "read the history";
        let (sql, values) = query(filter);
        let mut statement = self.prepare(operation, &sql)?;
        let mut rows = statement
            .query(params_from_iter(values))
            .trying(operation)?;
        let mut records = Vec::new();
        while records.len() < limit
            && let Some(row) = rows.next().trying(operation)?
        {
            let record = chained_record(row)?;
            let path = &record.record.path;
            if filter
                .paths
                .as_ref()
                .is_none_or(|globs| globs.takes_path(path, Kind::File))
            {
                records.push(record);
            }
        }
        Ok(records)
    }
}

/// The text of a query, and its parameters.
fn query(filter: &HistoryFilter) -> (String, Vec<Value>) {
    let mut sql = format!("SELECT {COLUMNS} FROM custody WHERE ");
    let mut values = Vec::new();
    let mut condition = |text: &str, value: Value| {
        sql.push_str(text);
        values.push(value);
    };
    condition(
        "seq < ?",
        Value::Integer(filter.before.map_or(i64::MAX, u64::cast_signed)),
    );
    if let Some(run) = filter.run {
        condition(" AND run = ?", Value::Integer(run.0.cast_signed()));
    }
    if let Some(job) = &filter.job {
        condition(" AND job = ?", Value::Text(job.clone()));
    }
    if let Some(action) = filter.action {
        condition(
            " AND action = ?",
            Value::Integer(i64::from(action_code(action))),
        );
    }
    // Clocks may be set back, so the order of times is not the order of records: the limits of time
    // are first turned into limits of numbers, which are indexed with everything else.
    if let Some(since) = filter.since {
        condition(
            " AND seq >= (SELECT coalesce(min(seq), 0) FROM custody INDEXED BY custody_at WHERE at >= ?)",
            Value::Integer(since.nanoseconds()),
        );
        condition(" AND +at >= ?", Value::Integer(since.nanoseconds()));
    }
    if let Some(until) = filter.until {
        condition(
            " AND seq <= (SELECT coalesce(max(seq), 0) FROM custody INDEXED BY custody_at WHERE at < ?)",
            Value::Integer(until.nanoseconds()),
        );
        condition(" AND +at < ?", Value::Integer(until.nanoseconds()));
    }
    sql.push_str(" ORDER BY seq DESC");
    (sql, values)
}

#[cfg(test)]
mod tests {
    use knarr_core::Timestamp;
    use knarr_core::record::Action;

    use super::{HistoryFilter, query};
    use crate::read::plan_of;
    use crate::runs::RunId;

    #[test]
    fn every_question_to_the_history_goes_through_an_index() {
        let all = HistoryFilter::default;
        let at = Timestamp::from_nanoseconds(1);
        for (filter, index) in [
            (all(), "INTEGER PRIMARY KEY"),
            (
                HistoryFilter {
                    job: Some("a".to_owned()),
                    ..all()
                },
                "custody_job",
            ),
            (
                HistoryFilter {
                    run: Some(RunId(1)),
                    ..all()
                },
                "custody_run",
            ),
            (
                HistoryFilter {
                    action: Some(Action::Failed),
                    ..all()
                },
                "custody_action",
            ),
            (
                HistoryFilter {
                    since: Some(at),
                    ..all()
                },
                "custody_at",
            ),
            (
                HistoryFilter {
                    until: Some(at),
                    job: Some("a".to_owned()),
                    ..all()
                },
                "custody_job",
            ),
        ] {
            let plan = plan_of(&query(&filter).0);
            assert!(plan.contains(index), "{filter:?}: {plan}");
            assert!(!plan.contains("SCAN custody"), "{filter:?}: {plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{filter:?}: {plan}");
        }
    }
}
