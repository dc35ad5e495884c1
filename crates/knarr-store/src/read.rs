//! Reading, beside the writer.
//!
//! Constraints: at most [`MAX_READERS`] connections read at a time, whoever comes then waits; three stay
//! open, each with 1 MiB of pages. Every read is one snapshot. A snapshot that is kept long keeps the
//! log from being brought home, so whoever walks a table does it by pages of [`PAGE_ROWS`] rows, each a
//! read of its own.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use knarr_core::entry::Fingerprint;
use knarr_core::{RelPath, Timestamp};
use rusqlite::types::FromSql;
use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension as _, Params, Row};

use crate::Store;
use crate::codec::{Malformed, fingerprint_of_blob, path_of};
use crate::error::{StoreError, While as _};

/// How many connections read at a time.
pub const MAX_READERS: usize = 8;
/// How many rows a cursor reads at a time.
pub const PAGE_ROWS: usize = 4_096;
const IDLE_READERS: usize = 3;

/// One consistent look at the database.
#[derive(Clone, Copy)]
pub struct Reader<'c> {
    pub(crate) connection: &'c Connection,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl<'c> Reader<'c> {
    pub(crate) const fn new(connection: &'c Connection) -> Self {
        Self { connection }
    }

    pub(crate) fn prepare(
        &self,
        operation: &'static str,
        sql: &str,
    ) -> Result<CachedStatement<'c>, StoreError> {
        self.connection.prepare_cached(sql).trying(operation)
    }

    /// The one row that `sql` gives, or nothing.
    pub(crate) fn one<T>(
        &self,
        operation: &'static str,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.prepare(operation, sql)?
            .query_row(params, |row| Ok(read(row)))
            .optional()
            .trying(operation)?
            .transpose()
    }

    /// All rows that `sql` gives.
    pub(crate) fn all<T>(
        &self,
        operation: &'static str,
        sql: &str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.prepare(operation, sql)?;
        let mut rows = statement.query(params).trying(operation)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().trying(operation)? {
            all.push(read(row)?);
        }
        Ok(all)
    }

    /// Carries out `sql` and says how many rows it touched. Only ever called through a `Tx`.
    pub(crate) fn run(
        &self,
        operation: &'static str,
        sql: &str,
        params: impl Params,
    ) -> Result<u64, StoreError> {
        let rows = self
            .prepare(operation, sql)?
            .execute(params)
            .trying(operation)?;
        Ok(rows as u64)
    }
}

/// Reads columns, saying what kind of trouble it is if one is not what the schema promises.
pub(crate) trait Columns {
    fn column<T: FromSql>(&self, index: usize) -> Result<T, StoreError>;
    fn blob(&self, index: usize) -> Result<&[u8], StoreError>;

    fn number(&self, index: usize) -> Result<u64, StoreError> {
        self.column::<i64>(index).map(i64::cast_unsigned)
    }

    fn time(&self, index: usize) -> Result<Timestamp, StoreError> {
        self.column(index).map(Timestamp::from_nanoseconds)
    }

    fn optional_time(&self, index: usize) -> Result<Option<Timestamp>, StoreError> {
        let nanoseconds: Option<i64> = self.column(index)?;
        Ok(nanoseconds.map(Timestamp::from_nanoseconds))
    }

    fn path(&self, index: usize) -> Result<RelPath, StoreError> {
        path_of(self.blob(index)?).map_err(|source| StoreError::damaged("a path", source))
    }

    fn fingerprint(&self, index: usize) -> Result<Fingerprint, StoreError> {
        fingerprint_of_blob(self.blob(index)?)
            .map_err(|source| StoreError::damaged("a fingerprint", source))
    }
}

impl Columns for Row<'_> {
    fn column<T: FromSql>(&self, index: usize) -> Result<T, StoreError> {
        self.get(index).trying("read a row")
    }

    fn blob(&self, index: usize) -> Result<&[u8], StoreError> {
        self.get_ref(index)
            .trying("read a row")?
            .as_blob()
            .map_err(|_| StoreError::damaged("a row", Malformed::Value))
    }
}

impl Store {
    /// Reads: all that `look` asks belongs to one snapshot. Blocks, for the disk and for a free
    /// connection; do not read again from inside `look`.
    ///
    /// # Errors
    /// What `look` says, or why the database cannot be read.
    pub fn read<T>(
        &self,
        look: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = self.0.readers.with(look);
        if let Err(error) = &result {
            self.0.suspicion.note(error);
        }
        result
    }

    /// [`Store::read`] on a thread that may block.
    ///
    /// # Errors
    /// What `look` says, or why the database cannot be read.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn read_async<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Reader<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || store.read(look)).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Panicked {
                message: error.to_string(),
            }),
        }
    }
}

/// The connections that read.
pub(crate) struct Readers {
    path: PathBuf,
    busy_timeout: Duration,
    pool: Mutex<Pool>,
    returned: Condvar,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    open: usize,
}

impl Readers {
    pub(crate) fn new(path: PathBuf, busy_timeout: Duration) -> Self {
        Self {
            path,
            busy_timeout,
            pool: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    fn with<T>(
        &self,
        look: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let borrowed = self.borrow()?;
        let begin = |sql, operation| {
            borrowed
                .connection()
                .prepare_cached(sql)
                .and_then(|mut statement| statement.execute([]))
                .trying(operation)
        };
        begin("BEGIN", "begin to read")?;
        let result = look(&Reader::new(borrowed.connection()));
        // Ends the snapshot whatever happened; there is nothing to undo.
        let ended = begin("COMMIT", "end reading");
        let value = result?;
        ended?;
        Ok(value)
    }

    fn borrow(&self) -> Result<Borrowed<'_>, StoreError> {
        let mut pool = self.lock();
        loop {
            if let Some(connection) = pool.idle.pop() {
                return Ok(Borrowed {
                    readers: self,
                    connection: Some(connection),
                });
            }
            if pool.open < MAX_READERS {
                break;
            }
            pool = self
                .returned
                .wait(pool)
                .unwrap_or_else(PoisonError::into_inner);
        }
        pool.open += 1;
        drop(pool);
        // The place is given back by the drop if opening fails.
        let mut borrowed = Borrowed {
            readers: self,
            connection: None,
        };
        borrowed.connection = Some(self.open().trying("open the database to read")?);
        Ok(borrowed)
    }

    fn open(&self) -> Result<Connection, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(self.busy_timeout)?;
        connection.set_prepared_statement_cache_capacity(32);
        connection.execute_batch(
            "PRAGMA cache_size = -1024; PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF; \
             PRAGMA cell_size_check = ON;",
        )?;
        Ok(connection)
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        // A panic elsewhere cannot leave a vector and a count in disorder.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Borrowed<'p> {
    readers: &'p Readers,
    connection: Option<Connection>,
}

impl Borrowed<'_> {
    fn connection(&self) -> &Connection {
        self.connection
            .as_ref()
            .expect("filled by whoever borrowed, emptied by the drop only")
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let mut pool = self.readers.lock();
        match self.connection.take() {
            // One that is still inside a transaction was left by a panic: away with it.
            Some(connection) if pool.idle.len() < IDLE_READERS && connection.is_autocommit() => {
                pool.idle.push(connection);
            }
            connection => {
                pool.open -= 1;
                drop(connection);
            }
        }
        drop(pool);
        self.readers.returned.notify_one();
    }
}

/// How SQLite goes about a query, in a database of the present schema; for tests.
#[cfg(test)]
pub(crate) fn plan_of(sql: &str) -> String {
    let mut connection = Connection::open_in_memory().expect("memory is there");
    crate::schema::migrate(&mut connection).expect("the schema is right");
    let mut statement = connection
        .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
        .expect("the query is right");
    let mut rows = statement.raw_query();
    let mut plan = String::new();
    while let Some(row) = rows.next().expect("a plan is made") {
        let line: String = row.get(3).expect("a plan has four columns");
        plan.push_str(&line);
        plan.push('\n');
    }
    plan
}
