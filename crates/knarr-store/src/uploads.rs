//! Multipart uploads in flight.
//!
//! The row is written before the first part is sent, each part's receipt before the next part counts.
//! So after a crash every finished part is known and none is sent again; an upload that nobody finishes
//! is found by its expiry and aborted.

use knarr_core::Timestamp;
use knarr_core::entry::Fingerprint;
use rusqlite::Row;

use crate::codec::fingerprint_blob;
use crate::error::{StoreError, While as _};
use crate::pairs::PairId;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// The number of an upload in this state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(i64);

/// An upload that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUpload {
    /// The pair it serves, if it is one.
    pub pair: Option<PairId>,
    /// The canonical text of the endpoint, so that only the same place is ever resumed.
    pub endpoint: String,
    /// The key at the destination: bytes, as keys need not be paths.
    pub destination: Vec<u8>,
    /// What the server calls it.
    pub upload: String,
    /// How many bytes each part but the last has.
    pub part_bytes: u64,
    /// How many bytes there are in all.
    pub total_bytes: u64,
    /// What the source looked like; if it looks different, the upload is worthless.
    pub source: Fingerprint,
    /// When it is to be given up.
    pub expires_at: Timestamp,
}

/// An upload, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredUpload {
    /// Its number.
    pub id: UploadId,
    /// What was begun.
    pub begun_as: NewUpload,
    /// When it was begun.
    pub created_at: Timestamp,
}

/// A part that the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 0 or 1 as the caller counts.
    pub number: u32,
    /// What the server gave for it, such as an ETag; needed to complete.
    pub receipt: String,
    /// The checksum that the server verified, in the form of its protocol.
    pub checksum: Option<String>,
    /// How many bytes it has.
    pub size: u64,
}

const COLUMNS: &str = "id, pair, endpoint, destination, upload, part_bytes, total_bytes, source, \
                       created_at, expires_at";

fn stored_upload(row: &Row<'_>) -> Result<StoredUpload, StoreError> {
    Ok(StoredUpload {
        id: UploadId(row.column(0)?),
        begun_as: NewUpload {
            pair: row.column::<Option<i64>>(1)?.map(PairId),
            endpoint: row.column(2)?,
            destination: row.column(3)?,
            upload: row.column(4)?,
            part_bytes: row.number(5)?,
            total_bytes: row.number(6)?,
            source: row.fingerprint(7)?,
            expires_at: row.time(9)?,
        },
        created_at: row.time(8)?,
    })
}

impl Reader<'_> {
    /// The uploads to a key of an endpoint, the newest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn uploads_to(
        &self,
        endpoint: &str,
        destination: &[u8],
    ) -> Result<Vec<StoredUpload>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM uploads WHERE endpoint = ?1 AND destination = ?2 ORDER BY id DESC"
        );
        self.all("find uploads", &sql, (endpoint, destination), stored_upload)
    }

    /// All uploads, the newest first, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn uploads(&self, limit: usize) -> Result<Vec<StoredUpload>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM uploads ORDER BY id DESC LIMIT ?1");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all("list uploads", &sql, [limit], stored_upload)
    }

    /// Uploads that are to be given up at `now`, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn expired_uploads(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredUpload>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM uploads WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all(
            "find expired uploads",
            &sql,
            (now.nanoseconds(), limit),
            stored_upload,
        )
    }

    /// The same of one pair.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn expired_uploads_of(
        &self,
        pair: PairId,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredUpload>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM uploads WHERE expires_at <= ?1 AND pair = ?2 \
             ORDER BY expires_at LIMIT ?3"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all(
            "find expired uploads",
            &sql,
            (now.nanoseconds(), pair.0, limit),
            stored_upload,
        )
    }

    /// Whether the upload is known and to be given up at `now`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn is_upload_expired(&self, upload: UploadId, now: Timestamp) -> Result<bool, StoreError> {
        let found = self.one(
            "look whether an upload has expired",
            "SELECT 1 FROM uploads WHERE id = ?1 AND expires_at <= ?2",
            (upload.0, now.nanoseconds()),
            |row| row.column::<i64>(0),
        )?;
        Ok(found.is_some())
    }

    /// The parts of an upload that the server has, by number.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn parts(&self, upload: UploadId) -> Result<Vec<Part>, StoreError> {
        self.all(
            "read the parts of an upload",
            "SELECT number, receipt, checksum, size FROM parts WHERE upload = ?1 ORDER BY number",
            [upload.0],
            |row| {
                Ok(Part {
                    number: u32::try_from(row.column::<i64>(0)?).unwrap_or(u32::MAX),
                    receipt: row.column(1)?,
                    checksum: row.column(2)?,
                    size: row.number(3)?,
                })
            },
        )
    }
}

impl Tx<'_> {
    /// Notes an upload that the server has begun.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn begin_upload(&mut self, new: &NewUpload) -> Result<UploadId, StoreError> {
        self.run(
            "note an upload",
            "INSERT INTO uploads (pair, endpoint, destination, upload, part_bytes, total_bytes, \
             source, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            (
                new.pair.map(|pair| pair.0),
                &new.endpoint,
                &new.destination,
                &new.upload,
                new.part_bytes.cast_signed(),
                new.total_bytes.cast_signed(),
                fingerprint_blob(&new.source),
                self.now().nanoseconds(),
                new.expires_at.nanoseconds(),
            ),
        )?;
        Ok(UploadId(self.connection.last_insert_rowid()))
    }

    /// Notes parts that the server has, replacing what was known under the same numbers.
    ///
    /// # Errors
    /// If there is no such upload (any more), or the database cannot be written.
    pub fn add_parts<'p>(
        &mut self,
        upload: UploadId,
        parts: impl IntoIterator<Item = &'p Part>,
    ) -> Result<(), StoreError> {
        let operation = "note a part of an upload";
        let mut insert = self.prepare(
            operation,
            "INSERT OR REPLACE INTO parts (upload, number, receipt, checksum, size) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for part in parts {
            insert
                .execute((
                    upload.0,
                    part.number,
                    &part.receipt,
                    &part.checksum,
                    part.size.cast_signed(),
                ))
                .trying(operation)?;
        }
        Ok(())
    }

    /// Puts off when an upload is to be given up.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn extend_upload(
        &mut self,
        upload: UploadId,
        expires_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.run(
            "put off the end of an upload",
            "UPDATE uploads SET expires_at = ?2 WHERE id = ?1",
            (upload.0, expires_at.nanoseconds()),
        )
        .map(drop)
    }

    /// Forgets an upload and its parts if it is still to be given up at `now`: what somebody goes on with
    /// meanwhile is kept.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove_expired_upload(
        &mut self,
        upload: UploadId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.run(
            "forget an expired upload",
            "DELETE FROM uploads WHERE id = ?1 AND expires_at <= ?2",
            (upload.0, now.nanoseconds()),
        )
        .map(drop)
    }

    /// Forgets an upload and its parts: it was completed or aborted.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove_upload(&mut self, upload: UploadId) -> Result<(), StoreError> {
        self.run(
            "forget an upload",
            "DELETE FROM uploads WHERE id = ?1",
            [upload.0],
        )
        .map(drop)
    }
}
