//! Opening the state: examine, set aside if damaged, create, migrate, start the threads.
//!
//! The order is safe because of who may do what. Whoever finds itself alone (see `users`) examines the
//! file before any connection of ours exists, and lets others in only when the file is migrated and
//! open; so nobody ever sets aside a file that another process writes, and nobody ever sees one that is
//! half made. The directory entries are flushed before the first transaction can be acknowledged.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use knarr_core::Clock;
use knarr_fs::ErrorClass;
use knarr_fs::error::ShownPath;
use rusqlite::{Connection, OpenFlags};

use crate::error::StoreError;
use crate::quarantine::{self, Files, Verdict};
use crate::read::Readers;
use crate::schema::{self, SCHEMA_VERSION};
use crate::users::{Company, Suspicion, Users};
use crate::writer::WriterHandle;
use crate::{Inner, Store};

/// How long a transaction waits for another process.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// SQLite 3.51.3: the first without the bug that let two connections corrupt the log.
const LEAST_SQLITE: i32 = 3_051_003;
/// Beyond this the log is cut off after it was brought home (bytes).
const LOG_LIMIT_BYTES: u64 = 64 << 20;

/// How to open the state.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The state directory; made (0700) if it is missing.
    pub directory: PathBuf,
    /// Whom to ask for the time.
    pub clock: Arc<dyn Clock>,
    /// How long a transaction waits for another process that writes.
    pub busy_timeout: Duration,
}

impl StoreOptions {
    /// The usual: 30 seconds of patience.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        Self {
            directory: directory.into(),
            clock,
            busy_timeout: BUSY_TIMEOUT,
        }
    }
}

/// An opened store, and what was found.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// What was found. Whoever sees anything but [`OpenState::Existing`] makes first contact.
    pub state: OpenState,
}

/// What was found in the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenState {
    /// Nothing. Nothing is known, so nothing may be deleted.
    Fresh,
    /// A sound file.
    Existing,
    /// A damaged file, which was set aside. Nothing is known, so nothing may be deleted; tell the user.
    Recovered {
        /// Where the damaged file is now.
        quarantined: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
}

/// Why the state could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The program was built with a SQLite that corrupts data.
    #[error(
        "this program was built with SQLite {found}, which has a bug that corrupts data; 3.51.3 is needed"
    )]
    SqliteTooOld {
        /// The version that was found.
        found: &'static str,
    },
    /// A newer knarr wrote it.
    #[error(
        "the state database has version {found}, and this program knows versions up to {supported}; \
         use the newer knarr that made it"
    )]
    Newer {
        /// The version of the file.
        found: u32,
        /// The newest version that is known.
        supported: u32,
    },
    /// It is damaged, but cannot be set aside now.
    #[error(
        "the state database is damaged ({reason}), and another process has it open; stop that and start again"
    )]
    DamagedInUse {
        /// What is wrong with it.
        reason: String,
    },
    /// Its file system cannot do what WAL needs.
    #[error(
        "the file system of \"{path}\" cannot hold the state database (no shared memory, so \
         probably a network file system); put the state on a local disk"
    )]
    Unsuited {
        /// The state directory.
        path: ShownPath,
    },
    /// The directory or a file in it cannot be used.
    #[error("cannot {operation} \"{path}\"")]
    Directory {
        /// What was tried, as a verb.
        operation: &'static str,
        /// Where.
        path: ShownPath,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// SQLite refused.
    #[error("cannot {operation} the state database")]
    Sql {
        /// What was tried, as a verb.
        operation: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The first transaction failed.
    #[error("the state database cannot be written")]
    Store(#[source] StoreError),
}

impl Store {
    /// Opens the state in a directory, and makes it if there is none.
    ///
    /// # Errors
    /// See [`OpenError`]. Damage is no error if nobody else has the file open: see [`OpenState`].
    pub fn open(options: StoreOptions) -> Result<Opened, OpenError> {
        let found = rusqlite::version_number();
        if found < LEAST_SQLITE {
            return Err(OpenError::SqliteTooOld {
                found: rusqlite::version(),
            });
        }
        let files = Files {
            directory: options.directory.clone(),
        };
        make_directory(&files.directory)?;
        let (users, company) = Users::enter(&files.users()).map_err(at("lock", &files.users()))?;
        let (state, connection) = match company {
            Company::Alone => open_alone(&files, &options)?,
            Company::Others => (OpenState::Existing, open_beside(&files, &options)?),
        };
        users.share().map_err(at("lock", &files.users()))?;
        let suspicion = Suspicion::new(files.suspect());
        let writer = WriterHandle::start(connection, Arc::clone(&options.clock), suspicion.clone())
            .map_err(at("start the thread for", &files.database()))?;
        let store = Self(Arc::new(Inner {
            readers: Readers::new(files.database(), options.busy_timeout),
            writer,
            suspicion,
            clock: options.clock,
            directory: files.directory.into_boxed_path(),
            _users: users,
        }));
        match store.interrupt_dead_runs() {
            Ok(_) => {}
            // What is known can still be looked at.
            Err(error) if matches!(error.class(), ErrorClass::NoSpace | ErrorClass::Transient) => {
                tracing::warn!(%error, "runs of dead processes could not be marked as interrupted");
            }
            Err(error) => return Err(OpenError::Store(error)),
        }
        Ok(Opened { store, state })
    }

    /// Looks at every page and every index, and says what is wrong first, or nothing. Takes about a
    /// second for a million files.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn check(&self) -> Result<Option<String>, StoreError> {
        self.read(|reader| {
            let first = reader.one("check every page", "PRAGMA integrity_check(1)", [], |row| {
                crate::error::While::trying(row.get::<_, String>(0), "check every page")
            })?;
            Ok(first.filter(|text| text != "ok"))
        })
    }
}

fn open_alone(files: &Files, options: &StoreOptions) -> Result<(OpenState, Connection), OpenError> {
    let state = match quarantine::examine(files)? {
        Verdict::Sound => OpenState::Existing,
        Verdict::Absent => OpenState::Fresh,
        Verdict::Damaged(reason) => {
            let quarantined = quarantine::set_aside(files, options.clock.now(), &reason)?;
            OpenState::Recovered {
                quarantined,
                reason,
            }
        }
    };
    let database = files.database();
    if state != OpenState::Existing {
        // SQLite gives its log and its index the permissions of the file it finds. Nobody of ours has
        // it open yet: closing a second handle would drop SQLite's locks.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&database)
            .and_then(|file| file.sync_all())
            .map_err(at("create", &database))?;
        quarantine::flush_directory(&files.directory)?;
    }
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o600))
        .map_err(at("protect", &database))?;
    let mut connection = connect(files, options)?;
    schema::migrate(&mut connection).map_err(sql("migrate"))?;
    Ok((state, connection))
}

/// Somebody else has it open, so it exists, and was examined.
fn open_beside(files: &Files, options: &StoreOptions) -> Result<Connection, OpenError> {
    let damaged = |error: rusqlite::Error, operation| {
        if quarantine::is_damage(&error) {
            OpenError::DamagedInUse {
                reason: error.to_string(),
            }
        } else {
            OpenError::Sql {
                operation,
                source: error,
            }
        }
    };
    let mut connection = connect(files, options)?;
    let header = schema::header(&connection).map_err(|error| damaged(error, "read"))?;
    if header.version > SCHEMA_VERSION {
        return Err(OpenError::Newer {
            found: header.version,
            supported: SCHEMA_VERSION,
        });
    }
    if header.application_id != schema::APPLICATION_ID {
        return Err(OpenError::DamagedInUse {
            reason: "its header is not Knarr's".to_owned(),
        });
    }
    schema::migrate(&mut connection).map_err(|error| damaged(error, "migrate"))?;
    Ok(connection)
}

fn connect(files: &Files, options: &StoreOptions) -> Result<Connection, OpenError> {
    // Never creates: a file that vanished under a running process is not quietly replaced.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(files.database(), flags).map_err(sql("open"))?;
    connection
        .busy_timeout(options.busy_timeout)
        .map_err(sql("open"))?;
    connection.set_prepared_statement_cache_capacity(96);
    let mode: String = connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(sql("prepare"))?;
    if mode != "wal" {
        return Err(OpenError::Unsuited {
            path: files.directory.clone().into(),
        });
    }
    // Savepoints copy each page that they touch first. In memory: each is released before the next one, and
    // in files those copies were three of four writes.
    connection
        .execute_batch(&format!(
            "PRAGMA temp_store = MEMORY; \
             PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON; \
             PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = {LOG_LIMIT_BYTES}; \
             PRAGMA cache_size = -4096; PRAGMA mmap_size = 0; PRAGMA foreign_keys = ON; \
             PRAGMA recursive_triggers = ON; PRAGMA trusted_schema = OFF; \
             PRAGMA cell_size_check = ON;"
        ))
        .map_err(sql("prepare"))?;
    Ok(connection)
}

/// Makes the directory and those above it, so that they survive a power cut.
fn make_directory(directory: &Path) -> Result<(), OpenError> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent()
        && !parent.as_os_str().is_empty()
    {
        make_directory(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(at("create", directory)(error));
        }
        _ => {}
    }
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => quarantine::flush_directory(parent),
        _ => quarantine::flush_directory(Path::new(".")),
    }
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Directory {
        operation,
        path: path.into(),
        source,
    }
}

fn sql(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> OpenError {
    move |source| OpenError::Sql { operation, source }
}
