//! Jobs, endpoints and users of the SFTP server that were added while a node was running, beside those of its file.
//!
//! What is kept is the definition as it was checked, as JSON in the form of the file. A definition never
//! holds a secret, only the names of secrets.

use knarr_core::Timestamp;
use rusqlite::Row;

use crate::codec::Malformed;
use crate::error::StoreError;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// What is defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DefinitionKind {
    /// A place that jobs name.
    Endpoint,
    /// A job.
    Job,
    /// Somebody who may log in to the own SFTP server.
    User,
}

impl DefinitionKind {
    const fn code(self) -> i64 {
        match self {
            Self::Endpoint => 0,
            Self::Job => 1,
            Self::User => 2,
        }
    }
}

/// A definition, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// What it defines.
    pub kind: DefinitionKind,
    /// Its name; unique among those of its kind.
    pub name: String,
    /// JSON, in the form of the file.
    pub definition: String,
    /// When it was added.
    pub added_at: Timestamp,
    /// Who added it.
    pub added_by: String,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

fn definition(row: &Row<'_>) -> Result<Definition, StoreError> {
    Ok(Definition {
        kind: match row.column::<i64>(0)? {
            0 => DefinitionKind::Endpoint,
            1 => DefinitionKind::Job,
            2 => DefinitionKind::User,
            _ => return Err(StoreError::damaged("a definition", Malformed::Value)),
        },
        name: row.column(1)?,
        definition: row.column(2)?,
        added_at: row.time(3)?,
        added_by: row.column(4)?,
        updated_at: row.time(5)?,
    })
}

impl Reader<'_> {
    /// All definitions: the endpoints by name, then the jobs, then the users.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn definitions(&self) -> Result<Vec<Definition>, StoreError> {
        let sql = "SELECT kind, name, definition, added_at, added_by, updated_at FROM definitions \
                   ORDER BY kind, name";
        self.all("read the definitions", sql, (), definition)
    }
}

impl Tx<'_> {
    /// Keeps a definition; who added it and when stays if it is there already.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn put_definition(
        &mut self,
        kind: DefinitionKind,
        name: &str,
        definition: &str,
        by: &str,
    ) -> Result<(), StoreError> {
        let now = self.now().nanoseconds();
        self.run(
            "keep a definition",
            "INSERT INTO definitions (kind, name, definition, added_at, added_by, updated_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?4) ON CONFLICT (kind, name) DO UPDATE SET \
             definition = excluded.definition, updated_at = excluded.updated_at",
            (kind.code(), name, definition, now, by),
        )
        .map(drop)
    }

    /// Removes a definition; with a job goes what is known of its schedule and its pause, with an endpoint its pause. Says whether it
    /// was there. Runs, records and what was agreed on stay.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove_definition(
        &mut self,
        kind: DefinitionKind,
        name: &str,
    ) -> Result<bool, StoreError> {
        let removed = self.run(
            "remove a definition",
            "DELETE FROM definitions WHERE kind = ?1 AND name = ?2",
            (kind.code(), name),
        )?;
        if kind == DefinitionKind::Job && removed > 0 {
            let sql = "DELETE FROM job_states WHERE name = ?1";
            self.run("forget the state of a job", sql, [name])?;
        }
        if kind == DefinitionKind::Endpoint && removed > 0 {
            self.resume_endpoint(name)?;
        }
        Ok(removed > 0)
    }
}
