//! The versions of the schema.
//!
//! * A file carries the mark [`APPLICATION_ID`] and its version in SQLite's own header, and the version
//!   once more in `settings`: if both disagree, the file is damaged.
//! * Migration `n` leads from version `n - 1` to `n`, in one transaction, together with both marks. A
//!   process that dies within leaves the old version; two that start at once migrate one after the other.
//! * A version is never edited after a release. Old files are readable for ever: `testdata/` keeps one
//!   of each version. A newer one is refused, never touched.

use rusqlite::Connection;

/// The version that this program writes.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// `KNRR`, in SQLite's header.
pub(crate) const APPLICATION_ID: i32 = 0x4b4e_5252;

const MIGRATIONS: [&str; 6] = [
    include_str!("schema/0001.sql"),
    include_str!("schema/0002.sql"),
    include_str!("schema/0003.sql"),
    include_str!("schema/0004.sql"),
    include_str!("schema/0005.sql"),
    include_str!("schema/0006.sql"),
];

/// No program ever gets so far: a larger version in a file is damage.
pub(crate) const UTMOST_VERSION: u32 = 100_000;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) application_id: i32,
    pub(crate) version: u32,
}

pub(crate) fn header(connection: &Connection) -> Result<Header, rusqlite::Error> {
    let pragma = |name| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0));
    let version: i64 = pragma("user_version")?;
    let application_id: i64 = pragma("application_id")?;
    Ok(Header {
        // Both are 32-bit fields; what does not fit can only be damage.
        application_id: i32::try_from(application_id).unwrap_or(0),
        version: u32::try_from(version).unwrap_or(u32::MAX),
    })
}

/// Brings the file to [`SCHEMA_VERSION`], one transaction for each version.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    loop {
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let version = header(&transaction)?.version;
        let Some(sql) = usize::try_from(version)
            .ok()
            .and_then(|next| MIGRATIONS.get(next))
        else {
            return Ok(());
        };
        transaction.execute_batch(sql)?;
        let next = version + 1;
        transaction.execute(
            "INSERT INTO settings (key, value) VALUES ('schema_version', ?1) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [next.to_string().as_bytes()],
        )?;
        transaction.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {next};"
        ))?;
        transaction.commit()?;
    }
}
