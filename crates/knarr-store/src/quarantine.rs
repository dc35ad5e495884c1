//! Is the file whole? And if not: set it aside.
//!
//! Only who is alone with the state directory comes here (see `users`). What is looked at:
//!
//! * always: that it is a database with our mark, a version that is not newer than ours and is the same
//!   in both places, all tables of that version, and as many pages as the header says. Milliseconds.
//! * when the last user left without closing (a log was left behind: crash, power cut, a log that
//!   belongs to another file), or the file is small ([`SMALL_BYTES`]): also the structure of every page
//!   (`quick_check`). About a second for a million files.
//! * when a read met damage in the last life: also the indexes, and whether every row can be read.
//!
//! Anything less than certain is found at use: that answers with an error, leaves a mark, and the next
//! start looks closer.

use std::fs::File;
use std::path::{Path, PathBuf};

use knarr_core::Timestamp;
use rusqlite::{Connection, ErrorCode};

use crate::open::OpenError;
use crate::schema::{self, APPLICATION_ID, SCHEMA_VERSION, UTMOST_VERSION};
use crate::{dirty, synced};

/// Up to this size a file is always looked at closely.
const SMALL_BYTES: u64 = 4 << 20;

/// The tables whose absence is damage.
const TABLES: [&str; 18] = [
    "counters",
    "custody",
    "custody_head",
    "deletions",
    "dirty",
    "endpoints",
    "holds",
    "in_flight",
    "pairs",
    "partials",
    "parts",
    "roots",
    "runs",
    "secrets",
    "settings",
    "sqlite_sequence",
    "synced",
    "uploads",
];

/// The files of one state directory.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) directory: PathBuf,
}

impl Files {
    pub(crate) fn database(&self) -> PathBuf {
        self.directory.join("knarr.db")
    }

    pub(crate) fn users(&self) -> PathBuf {
        self.directory.join("knarr.users")
    }

    pub(crate) fn suspect(&self) -> PathBuf {
        self.directory.join("knarr.suspect")
    }

    fn with_suffix(&self, suffix: &str) -> PathBuf {
        self.directory.join(format!("knarr.db{suffix}"))
    }
}

/// What is known about the file before anybody uses it.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Nothing is there.
    Absent,
    /// It can be used.
    Sound,
    /// It is to be set aside, for this reason.
    Damaged(String),
}

/// Looks at the file. Leaves it as it is, but for what SQLite itself recovers from its log.
pub(crate) fn examine(files: &Files) -> Result<Verdict, OpenError> {
    let length = |path: PathBuf| path.metadata().map_or(0, |metadata| metadata.len());
    let size = length(files.database());
    let logged = length(files.with_suffix("-wal")) > 0;
    if size == 0 {
        return Ok(if logged {
            Verdict::Damaged("its log is there, but it is not".to_owned())
        } else {
            Verdict::Absent
        });
    }
    let suspect = files.suspect().exists();
    let depth = if suspect {
        Depth::Everything
    } else if logged || size <= SMALL_BYTES {
        Depth::Structure
    } else {
        Depth::Surface
    };
    let verdict = match look(files, depth, logged) {
        Ok(Finding::Sound) => Verdict::Sound,
        Ok(Finding::Newer(found)) => {
            return Err(OpenError::Newer {
                found,
                supported: SCHEMA_VERSION,
            });
        }
        Ok(Finding::Damaged(reason)) => Verdict::Damaged(reason),
        Err(error) if is_damage(&error) => Verdict::Damaged(error.to_string()),
        Err(source) => {
            return Err(OpenError::Sql {
                operation: "examine",
                source,
            });
        }
    };
    if suspect && matches!(verdict, Verdict::Sound) {
        tracing::warn!("the state database was suspected of damage, but nothing was found");
        remove(&files.suspect());
    }
    Ok(verdict)
}

/// Whether SQLite's refusal blames the content of the file.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            // Plain SQL errors against a file of ours (no such table, malformed schema) mean that the
            // schema was damaged.
            matches!(
                failure.code,
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown
            )
        }
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::QueryReturnedNoRows
        | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    Surface,
    Structure,
    Everything,
}

enum Finding {
    Sound,
    Newer(u32),
    Damaged(String),
}

fn look(files: &Files, depth: Depth, logged: bool) -> Result<Finding, rusqlite::Error> {
    let connection = Connection::open(files.database())?;
    connection.busy_timeout(crate::open::BUSY_TIMEOUT)?;
    connection.execute_batch(
        "PRAGMA cache_size = -4096; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; \
         PRAGMA synchronous = FULL;",
    )?;
    let header = schema::header(&connection)?;
    if header.version == 0 {
        // Somebody died between making the file and filling it; anything else in it is not ours.
        let objects: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let damaged = Finding::Damaged("it has tables but no version".to_owned());
        return Ok(if objects == 0 {
            Finding::Sound
        } else {
            damaged
        });
    }
    if header.application_id != APPLICATION_ID || header.version > UTMOST_VERSION {
        return Ok(Finding::Damaged("its header is not Knarr's".to_owned()));
    }
    let noted: Vec<u8> = connection.query_row(
        "SELECT value FROM settings WHERE key = 'schema_version'",
        [],
        |row| row.get(0),
    )?;
    if noted != header.version.to_string().as_bytes() {
        return Ok(Finding::Damaged(
            "its header and its content disagree on the version".to_owned(),
        ));
    }
    if header.version > SCHEMA_VERSION {
        return Ok(Finding::Newer(header.version));
    }
    if depth >= Depth::Structure {
        let check = if depth == Depth::Everything {
            "integrity_check"
        } else {
            "quick_check"
        };
        let first: String =
            connection.query_row(&format!("PRAGMA {check}(1)"), [], |row| row.get(0))?;
        if first != "ok" {
            return Ok(Finding::Damaged(first));
        }
    }
    if is_cut_off(&connection, files, logged)? {
        return Ok(Finding::Damaged("it is cut off".to_owned()));
    }
    if let Some(missing) = missing_table(&connection)? {
        return Ok(Finding::Damaged(format!("its table {missing} is missing")));
    }
    if depth == Depth::Everything
        && let Err(error) =
            synced::read_all(&connection).and_then(|()| dirty::read_all(&connection))
    {
        return Ok(Finding::Damaged(error.to_string()));
    }
    Ok(Finding::Sound)
}

/// Whether the file has fewer pages than it says.
fn is_cut_off(
    connection: &Connection,
    files: &Files,
    logged: bool,
) -> Result<bool, rusqlite::Error> {
    if logged {
        // So that the file holds everything. A busy result only means that a stranger reads.
        let home = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        match home {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                // Then the log stays as it is, and so may the file, being shorter.
                tracing::warn!(%error, "the log of the state database could not be brought home");
                return Ok(false);
            }
            result => result?,
        }
    }
    let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let bytes = number("PRAGMA page_count")?.saturating_mul(number("PRAGMA page_size")?);
    let size = files
        .database()
        .metadata()
        .map_or(0, |metadata| metadata.len());
    Ok(u64::try_from(bytes).unwrap_or(u64::MAX) > size)
}

fn missing_table(connection: &Connection) -> Result<Option<&'static str>, rusqlite::Error> {
    let mut statement = connection
        .prepare("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1")?;
    for table in TABLES {
        if statement.query_row([table], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// Sets the file and its log aside and says where the file is now.
pub(crate) fn set_aside(files: &Files, now: Timestamp, reason: &str) -> Result<PathBuf, OpenError> {
    let stamp: String = now
        .to_string()
        .chars()
        .filter(|character| !"-:.".contains(*character))
        .collect();
    let aside = (0..1_000)
        .map(|number| match number {
            0 => format!(".corrupt-{stamp}"),
            number => format!(".corrupt-{stamp}-{number}"),
        })
        .find(|suffix| {
            ["", "-wal", "-shm"]
                .iter()
                .all(|end| !files.with_suffix(&format!("{suffix}{end}")).exists())
        })
        .ok_or_else(|| OpenError::Directory {
            operation: "find a name for the damaged file in",
            path: files.directory.clone().into(),
            source: std::io::ErrorKind::AlreadyExists.into(),
        })?;
    for end in ["-shm", "-wal", "-journal", ""] {
        let from = files.with_suffix(end);
        let to = files.with_suffix(&format!("{aside}{end}"));
        if from.exists() {
            rustix::fs::rename(&from, &to).map_err(|errno| OpenError::Directory {
                operation: "set aside",
                path: from.clone().into(),
                source: errno.into(),
            })?;
        }
    }
    flush_directory(&files.directory)?;
    remove(&files.suspect());
    let quarantined = files.with_suffix(&aside);
    tracing::error!(
        reason,
        set_aside = %quarantined.display(),
        "the state database is damaged; it was set aside and a new one is begun: everything is \
         looked at anew, and nothing is deleted for it"
    );
    Ok(quarantined)
}

/// Makes the names in `directory` survive a power cut.
pub(crate) fn flush_directory(directory: &Path) -> Result<(), OpenError> {
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(|source| OpenError::Directory {
            operation: "flush",
            path: directory.to_path_buf().into(),
            source,
        })
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "a marker could not be removed");
    }
}
