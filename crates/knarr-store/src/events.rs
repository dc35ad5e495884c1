//! What happened to files, in order, for those who follow it from a cursor.
//!
//! Written only while somebody follows; what all followers have is removed. An event has a number that
//! is never used again, so a follower that repeats some after a crash knows them again by it.

use knarr_core::{RelPath, Timestamp};
use rusqlite::Row;

use crate::codec::Malformed;
use crate::error::StoreError;
use crate::read::{Columns as _, Reader};
use crate::runs::RunId;
use crate::transaction::Tx;

/// The number of an event; later ones are greater. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub i64);

impl EventId {
    /// Before all others.
    pub const FIRST: Self = Self(0);
}

/// What happened to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileEvent {
    /// It waits to be handled.
    Enqueued,
    /// It is being handled.
    Started,
    /// So many bytes are there.
    Progress {
        /// Bytes of the source that were taken over.
        done: u64,
    },
    /// It was handled, and that is on record.
    Completed {
        /// What was done, such as `created`.
        action: String,
    },
    /// An attempt ended without success.
    Failed {
        /// Why.
        message: String,
    },
}

impl FileEvent {
    /// Its name, as followers see it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Enqueued => "enqueued",
            Self::Started => "started",
            Self::Progress { .. } => "progress",
            Self::Completed { .. } => "completed",
            Self::Failed { .. } => "failed",
        }
    }

    const fn code(&self) -> i64 {
        match self {
            Self::Enqueued => 0,
            Self::Started => 1,
            Self::Progress { .. } => 2,
            Self::Completed { .. } => 3,
            Self::Failed { .. } => 4,
        }
    }
}

/// An event to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: FileEvent,
    /// The job.
    pub job: String,
    /// The run, if it is known.
    pub run: Option<RunId>,
    /// The file.
    pub path: RelPath,
    /// Its length in bytes, if it is known.
    pub size: Option<u64>,
}

/// An event, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its number.
    pub id: EventId,
    /// What it is.
    pub event: NewEvent,
}

fn stored(row: &Row<'_>) -> Result<StoredEvent, StoreError> {
    let broken = || StoreError::damaged("an event", Malformed::Value);
    let number = |index| {
        row.column::<Option<i64>>(index)
            .map(|n| n.map(i64::cast_unsigned))
    };
    let text = |index| row.column::<Option<String>>(index);
    let what = match row.column::<i64>(2)? {
        0 => FileEvent::Enqueued,
        1 => FileEvent::Started,
        2 => FileEvent::Progress {
            done: number(8)?.ok_or_else(broken)?,
        },
        3 => FileEvent::Completed {
            action: text(6)?.ok_or_else(broken)?,
        },
        4 => FileEvent::Failed {
            message: text(9)?.ok_or_else(broken)?,
        },
        _ => return Err(broken()),
    };
    Ok(StoredEvent {
        id: EventId(row.column(0)?),
        event: NewEvent {
            at: row.time(1)?,
            what,
            job: row.column(3)?,
            run: number(4)?.map(RunId),
            path: row.path(5)?,
            size: number(7)?,
        },
    })
}

impl Reader<'_> {
    /// The events behind `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn events_after(
        &self,
        after: EventId,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.all(
            "read events",
            "SELECT id, at, what, job, run, path, action, size, done, message FROM events \
             WHERE id > ?1 ORDER BY id LIMIT ?2",
            (after.0, i64::try_from(limit).unwrap_or(i64::MAX)),
            stored,
        )
    }

    /// How far a follower came, if it is one.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn event_cursor(&self, follower: &str) -> Result<Option<EventId>, StoreError> {
        let sql = "SELECT id FROM event_cursors WHERE follower = ?1";
        self.one("read a cursor of events", sql, [follower], |row| {
            row.column(0).map(EventId)
        })
    }

    /// The names of all followers. Without any, events need not be written.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn event_followers(&self) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT follower FROM event_cursors ORDER BY follower";
        self.all("list followers of events", sql, [], |row| row.column(0))
    }
}

impl Tx<'_> {
    /// Writes events. What completed belongs into the transaction that records it.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn append_events(&mut self, events: &[NewEvent]) -> Result<(), StoreError> {
        for event in events {
            let (action, done, message) = match &event.what {
                FileEvent::Enqueued | FileEvent::Started => (None, None, None),
                FileEvent::Progress { done } => (None, Some(done.cast_signed()), None),
                FileEvent::Completed { action } => (Some(action), None, None),
                FileEvent::Failed { message } => (None, None, Some(message)),
            };
            self.run(
                "write an event",
                "INSERT INTO events (at, what, job, run, path, action, size, done, message) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                (
                    event.at.nanoseconds(),
                    event.what.code(),
                    &event.job,
                    event.run.map(|run| run.0.cast_signed()),
                    event.path.as_bytes(),
                    action,
                    event.size.map(u64::cast_signed),
                    done,
                    message,
                ),
            )?;
        }
        Ok(())
    }

    /// Notes how far a follower came; the first time, it becomes one and begins there. What all
    /// followers have is removed, in steps that keep the transaction short.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn set_event_cursor(&mut self, follower: &str, id: EventId) -> Result<(), StoreError> {
        self.run(
            "note a cursor of events",
            "INSERT INTO event_cursors (follower, id) VALUES (?1, ?2) \
             ON CONFLICT (follower) DO UPDATE SET id = excluded.id",
            (follower, id.0),
        )?;
        self.drop_followed_events().map(drop)
    }

    /// Follows no more: what only this follower lacked is removed, some of it at once. Says how much; call
    /// it again until it is nothing.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove_event_cursor(&mut self, follower: &str) -> Result<u64, StoreError> {
        self.run(
            "remove a cursor of events",
            "DELETE FROM event_cursors WHERE follower = ?1",
            [follower],
        )?;
        self.drop_followed_events()
    }

    fn drop_followed_events(&mut self) -> Result<u64, StoreError> {
        self.run(
            "remove events that all followers have",
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE id <= \
             coalesce((SELECT min(id) FROM event_cursors), 9223372036854775807) \
             ORDER BY id LIMIT 10000)",
            [],
        )
    }
}
