//! Whether endpoints can be reached, since when, and when they are asked again.

use knarr_core::Timestamp;
use rusqlite::Row;

use crate::codec::Malformed;
use crate::error::StoreError;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// Whether an endpoint can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reachable {
    /// It answered last.
    Up,
    /// It did not.
    Down,
}

/// The health of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointHealth {
    /// Whether it can be reached.
    pub state: Reachable,
    /// Since when; set by the store when the state changes.
    pub since: Timestamp,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it is asked again, if it is down.
    pub next_probe: Option<Timestamp>,
    /// When this was noted.
    pub seen_at: Timestamp,
}

fn health(row: &Row<'_>) -> Result<EndpointHealth, StoreError> {
    Ok(EndpointHealth {
        state: match row.column::<i64>(1)? {
            0 => Reachable::Up,
            1 => Reachable::Down,
            _ => return Err(StoreError::damaged("an endpoint", Malformed::Value)),
        },
        since: row.time(2)?,
        last_error: row.column(3)?,
        next_probe: row.optional_time(4)?,
        seen_at: row.time(5)?,
    })
}

impl Reader<'_> {
    /// The health of one endpoint, if anybody ever asked it.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn endpoint(&self, name: &str) -> Result<Option<EndpointHealth>, StoreError> {
        let sql = "SELECT name, state, since, last_error, next_probe, seen_at FROM endpoints \
                   WHERE name = ?1";
        self.one("read an endpoint", sql, [name], health)
    }

    /// The health of all endpoints, by name.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn endpoints(&self) -> Result<Vec<(String, EndpointHealth)>, StoreError> {
        let sql = "SELECT name, state, since, last_error, next_probe, seen_at FROM endpoints \
                   ORDER BY name";
        self.all("list endpoints", sql, [], |row| {
            Ok((row.column(0)?, health(row)?))
        })
    }
}

impl Tx<'_> {
    /// Notes whether an endpoint can be reached. `since` only changes when the state does.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn set_endpoint(
        &mut self,
        name: &str,
        state: Reachable,
        error: Option<&str>,
        next_probe: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let state = match state {
            Reachable::Up => 0,
            Reachable::Down => 1,
        };
        self.run(
            "note the state of an endpoint",
            "INSERT INTO endpoints (name, state, since, last_error, next_probe, seen_at) \
             VALUES (?1, ?2, ?5, ?3, ?4, ?5) ON CONFLICT (name) DO UPDATE SET \
             since = CASE WHEN state = excluded.state THEN since ELSE excluded.since END, \
             state = excluded.state, last_error = excluded.last_error, \
             next_probe = excluded.next_probe, seen_at = excluded.seen_at",
            (
                name,
                state,
                error,
                next_probe.map(Timestamp::nanoseconds),
                self.now().nanoseconds(),
            ),
        )
        .map(drop)
    }
}
