//! Remembers: trees, runs, custody records, uploads in flight, secrets, jobs that were added.
//!
//! Constraints:
//!
//! * One SQLite file per state directory, `knarr.db` (0600), at least SQLite 3.51.3; older ones can
//!   corrupt a write-ahead log that two connections use.
//! * What was acknowledged survives a power cut: WAL with `synchronous=FULL`, every commit is flushed
//!   before anybody hears of it.
//! * Memory does not grow with the number of rows: 4 MiB of pages for the writer, 1 MiB for each of at
//!   most [`MAX_READERS`] readers (three stay open), no memory map, cursors by pages of
//!   [`PAGE_ROWS`] rows. At most [`QUEUED_TRANSACTIONS`] transactions wait.
//! * Several processes may have it open at once. Whoever writes waits for the other, up to 30 s.
//! * Absence is not deletion: a missing or damaged file is a first contact. A damaged one is set aside,
//!   never deleted ([`Opened`]).
//! * The only user of SQL. Everything that leaves this crate is typed.
//!
//! One thread writes. It takes whatever transactions wait, runs each inside a savepoint, commits them
//! together with one flush, and only then answers ([`Store::transact`]). Nobody waits for company: a
//! transaction that comes alone is committed alone.
//!
//! The order is safe because nothing is said before the flush: a row can be missing for data that is
//! there (it will be looked at again), but never be there for something that was not acknowledged to
//! the caller who did it. Promises K1, K3, K10, K11.
#![cfg(unix)]

pub mod alerts;
pub mod batches;
pub mod chain;
mod codec;
pub mod custody;
pub mod definitions;
pub mod deletions;
pub mod dirty;
pub mod endpoints;
mod error;
pub mod events;
pub mod history;
pub mod holds;
pub mod in_flight;
pub mod intents;
pub mod jobs;
mod open;
pub mod outbox;
pub mod pairs;
pub mod partials;
pub mod pauses;
mod process;
mod quarantine;
mod read;
pub mod retention;
pub mod roots;
pub mod runs;
mod schema;
pub mod secrets;
pub mod settings;
pub mod synced;
mod transaction;
pub mod uploads;
mod users;
mod writer;

pub use codec::Malformed;
pub use error::StoreError;
pub use open::{OpenError, OpenState, Opened, StoreOptions};
pub use pairs::PairId;
pub use read::{MAX_READERS, PAGE_ROWS, Reader};
pub use schema::SCHEMA_VERSION;
pub use transaction::{Pending, Tx};
pub use writer::QUEUED_TRANSACTIONS;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use knarr_core::Clock;

use crate::read::Readers;
use crate::users::Suspicion;
use crate::writer::WriterHandle;

/// The state of one state directory. Cheap to clone; the last clone that is dropped waits for the
/// transactions that were submitted and closes the file.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

/// What all clones share. The order of the fields is the order in which they are dropped: SQLite can
/// only tidy up its log when the writer is the last to leave, and another process may only think itself
/// alone when we are gone.
pub(crate) struct Inner {
    pub(crate) readers: Readers,
    pub(crate) writer: WriterHandle,
    pub(crate) suspicion: Suspicion,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) directory: Box<Path>,
    pub(crate) _users: users::Users,
}

impl Store {
    /// The state directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// The clock that it was opened with.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("directory", &self.0.directory)
            .finish_non_exhaustive()
    }
}
