//! The custody record: appended, chained by hashes, never changed.
//!
//! # The chain, format 1
//!
//! Record number *n* (from 1, without gaps) has the hash
//!
//! ```text
//! hash(n) = BLAKE3( "KNC1" || n || hash(n-1) || at || run || job || action || path || body )
//! ```
//!
//! with `hash(0)` being 32 zero bytes, and, all without padding:
//!
//! * `n`, `run`: 8 bytes, big-endian, unsigned. `at`, and every time in the body: nanoseconds since
//!   1970-01-01 00:00 UTC, 8 bytes, big-endian, two's complement.
//! * *number*: unsigned LEB128 in its shortest form. *text*, *bytes*: their length as a number, then the
//!   bytes; text is UTF-8. *hash*: 32 bytes. *optional x*: one byte 0, or one byte 1 and x.
//! * `job`: text. `action`: one byte ([`action_code`]). `path`: bytes, relative, separated by `/`.
//! * `body`, in this order: source text, destination text, size number, optional mtime, optional source
//!   hash, evidence, optional first-seen time, optional reason for completeness (text), the number of
//!   steps and for each its name text, detail text, input number, output number; attempt number, moved
//!   bytes number, duration in microseconds number, optional message text, decided-by text.
//! * evidence: one byte, then what belongs to it: 0 none; 1 read back: hash; 2 written: hash; 3 server
//!   checksum: algorithm text, value text; 4 size only: reason text.
//!
//! In the table `custody` the fields of the head stand in columns (the path as `directory` and `name`),
//! the body as it is, and the hash. The hash before is that of the row before. The number and hash of the
//! last record also stand in `custody_head`.
//!
//! The oldest records may be pruned: see [`crate::retention`]. Then the chain begins behind the last one that
//! went, with its hash, as a record with the action `pruned` says: its size is the number of that record, its
//! source hash the hash.
//!
//! # What it proves
//!
//! Any change, removal, insertion or reordering of records, and any cut at the end, by whoever does not
//! also compute the chain anew, is found by [`crate::chain`]. Who can write the file *and* rewrites the
//! chain from the first changed record to the head is not found by the file alone: there is no secret in
//! it. Against that, note the head ([`crate::chain::ChainHead`]) somewhere else now and then, and have
//! it checked to be still part of the chain.

use knarr_core::record::{Action, CustodyRecord, Evidence, StepRecord};
use knarr_core::{ContentHash, RelPath};

use crate::chain::ChainHead;
use crate::codec::{Decoder, Encoder, Malformed};
use crate::error::{StoreError, While as _};
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// The format that new records are written in.
pub const CHAIN_FORMAT: u8 = 1;
const MARK: &[u8; 4] = b"KNC1";

/// The byte that stands for an action in the chain.
#[must_use]
pub const fn action_code(action: Action) -> u8 {
    match action {
        Action::Created => 1,
        Action::Updated => 2,
        Action::Renamed => 3,
        Action::Deleted => 4,
        Action::SourceRemoved => 5,
        Action::SourceMoved => 6,
        Action::Adopted => 7,
        Action::Conflict => 8,
        Action::Failed => 9,
        Action::Parked => 10,
        Action::Problem => 11,
        Action::Held => 12,
        Action::Approved => 13,
        Action::Skipped => 14,
        Action::Pruned => 15,
        Action::Acknowledged => 16,
        Action::LoggedIn => 17,
        Action::LogInRefused => 18,
        Action::Uploaded => 19,
        Action::UploadCut => 20,
        Action::Downloaded => 21,
        Action::Removed => 22,
        Action::Moved => 23,
        Action::Changed => 24,
        Action::Refused => 25,
        Action::Unrecorded => 26,
    }
}

fn action_of_code(code: i64) -> Option<Action> {
    Action::ALL
        .into_iter()
        .find(|action| i64::from(action_code(*action)) == code)
}

fn encode_body(record: &CustodyRecord, body: &mut Vec<u8>) {
    body.clear();
    let mut encoder = Encoder(body);
    encoder.bytes(record.source.as_bytes());
    encoder.bytes(record.destination.as_bytes());
    encoder.number(record.size);
    encoder.optional(record.mtime, Encoder::time);
    encoder.optional(record.source_hash.as_ref(), Encoder::hash);
    match &record.evidence {
        Evidence::None => encoder.byte(0),
        Evidence::ReadBack { hash } => {
            encoder.byte(1);
            encoder.hash(hash);
        }
        Evidence::Written { hash } => {
            encoder.byte(2);
            encoder.hash(hash);
        }
        Evidence::ServerChecksum { algorithm, value } => {
            encoder.byte(3);
            encoder.bytes(algorithm.as_bytes());
            encoder.bytes(value.as_bytes());
        }
        Evidence::SizeOnly { reason } => {
            encoder.byte(4);
            encoder.bytes(reason.as_bytes());
        }
    }
    encoder.optional(record.seen_at, Encoder::time);
    encoder.optional(record.complete_because.as_ref(), |encoder, text| {
        encoder.bytes(text.as_bytes());
    });
    encoder.number(record.steps.len() as u64);
    for step in &record.steps {
        encoder.bytes(step.step.as_bytes());
        encoder.bytes(step.detail.as_bytes());
        encoder.number(step.input_bytes);
        encoder.number(step.output_bytes);
    }
    encoder.number(u64::from(record.attempt));
    encoder.number(record.moved_bytes);
    encoder.number(record.duration_microseconds);
    encoder.optional(record.message.as_ref(), |encoder, text| {
        encoder.bytes(text.as_bytes());
    });
    encoder.bytes(record.decided_by.as_bytes());
}

/// Fills in what the body says; the head's fields stay.
fn decode_body(record: &mut CustodyRecord, body: &[u8]) -> Result<(), Malformed> {
    let mut decoder = Decoder::new(body);
    let text = |decoder: &mut Decoder<'_>| decoder.text().map(str::to_owned);
    record.source = text(&mut decoder)?;
    record.destination = text(&mut decoder)?;
    record.size = decoder.number()?;
    record.mtime = decoder.optional(Decoder::time)?;
    record.source_hash = decoder.optional(Decoder::hash)?;
    record.evidence = match decoder.byte()? {
        0 => Evidence::None,
        1 => Evidence::ReadBack {
            hash: decoder.hash()?,
        },
        2 => Evidence::Written {
            hash: decoder.hash()?,
        },
        3 => Evidence::ServerChecksum {
            algorithm: text(&mut decoder)?,
            value: text(&mut decoder)?,
        },
        4 => Evidence::SizeOnly {
            reason: text(&mut decoder)?,
        },
        _ => return Err(Malformed::Value),
    };
    record.seen_at = decoder.optional(Decoder::time)?;
    record.complete_because = decoder.optional(text)?;
    // No capacity from a number that may be broken: the steps have to be there first.
    for _ in 0..decoder.number()? {
        record.steps.push(StepRecord {
            step: text(&mut decoder)?,
            detail: text(&mut decoder)?,
            input_bytes: decoder.number()?,
            output_bytes: decoder.number()?,
        });
    }
    record.attempt = u32::try_from(decoder.number()?).map_err(|_| Malformed::Number)?;
    record.moved_bytes = decoder.number()?;
    record.duration_microseconds = decoder.number()?;
    record.message = decoder.optional(text)?;
    record.decided_by = text(&mut decoder)?;
    decoder.finish()
}

/// One row of the chain, as it stands in the table.
#[derive(Debug)]
pub(crate) struct Link<'r> {
    pub(crate) seq: u64,
    pub(crate) at: i64,
    pub(crate) run: i64,
    pub(crate) job: &'r str,
    pub(crate) action: u8,
    pub(crate) directory: &'r [u8],
    pub(crate) name: &'r [u8],
    pub(crate) body: &'r [u8],
}

impl Link<'_> {
    /// Its hash, given that of the record before. `head` is a buffer to be used again.
    pub(crate) fn hash(&self, previous: &ContentHash, head: &mut Vec<u8>) -> ContentHash {
        head.clear();
        head.extend_from_slice(MARK);
        head.extend_from_slice(&self.seq.to_be_bytes());
        head.extend_from_slice(previous.as_bytes());
        head.extend_from_slice(&self.at.to_be_bytes());
        head.extend_from_slice(&self.run.to_be_bytes());
        let mut encoder = Encoder(head);
        encoder.bytes(self.job.as_bytes());
        encoder.byte(self.action);
        let slash = usize::from(!self.directory.is_empty());
        encoder.number((self.directory.len() + slash + self.name.len()) as u64);
        head.extend_from_slice(self.directory);
        head.extend(std::iter::repeat_n(b'/', slash));
        head.extend_from_slice(self.name);
        head.extend_from_slice(self.body);
        ContentHash::of(head)
    }

    fn record(&self) -> Result<CustodyRecord, Malformed> {
        let mut path = self.directory.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(self.name);
        let mut record = CustodyRecord {
            at: knarr_core::Timestamp::from_nanoseconds(self.at),
            run: self.run.cast_unsigned(),
            job: self.job.to_owned(),
            path: RelPath::new(path).map_err(Malformed::Path)?,
            action: action_of_code(i64::from(self.action)).ok_or(Malformed::Value)?,
            source: String::new(),
            destination: String::new(),
            size: 0,
            mtime: None,
            source_hash: None,
            evidence: Evidence::None,
            seen_at: None,
            complete_because: None,
            steps: Vec::new(),
            attempt: 0,
            moved_bytes: 0,
            duration_microseconds: 0,
            message: None,
            decided_by: String::new(),
        };
        decode_body(&mut record, self.body)?;
        Ok(record)
    }
}

/// A record with its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChainedRecord {
    /// Its number, from 1.
    pub seq: u64,
    /// Its hash.
    pub hash: ContentHash,
    /// The record.
    #[serde(flatten)]
    pub record: CustodyRecord,
}

pub(crate) const COLUMNS: &str = "seq, format, at, run, job, action, directory, name, body, hash";

/// Gives `look` a row that was selected with [`COLUMNS`], and its stored hash.
pub(crate) fn with_link<T>(
    row: &rusqlite::Row<'_>,
    look: impl FnOnce(Link<'_>, ContentHash) -> Result<T, Malformed>,
) -> Result<T, StoreError> {
    let seq = row.number(0)?;
    let broken = |source| StoreError::damaged(format!("custody record {seq}"), source);
    let format: i64 = row.column(1)?;
    if format != i64::from(CHAIN_FORMAT) {
        let format = u8::try_from(format).unwrap_or(u8::MAX);
        return Err(broken(Malformed::Version(format)));
    }
    let job = row.get_ref(4).trying("read a row")?;
    let action = u8::try_from(row.column::<i64>(5)?).map_err(|_| broken(Malformed::Value))?;
    let hash: [u8; 32] = row
        .blob(9)?
        .try_into()
        .map_err(|_| broken(Malformed::Short))?;
    let link = Link {
        seq,
        at: row.column(2)?,
        run: row.column(3)?,
        job: job.as_str().map_err(|_| broken(Malformed::Text))?,
        action,
        directory: row.blob(6)?,
        name: row.blob(7)?,
        body: row.blob(8)?,
    };
    look(link, ContentHash::from_bytes(hash)).map_err(broken)
}

pub(crate) fn chained_record(row: &rusqlite::Row<'_>) -> Result<ChainedRecord, StoreError> {
    with_link(row, |link, hash| {
        Ok(ChainedRecord {
            seq: link.seq,
            hash,
            record: link.record()?,
        })
    })
}

/// The directory and the name of a path, as they stand in their columns.
pub(crate) fn split(path: &RelPath) -> (&[u8], &[u8]) {
    let name = path.name();
    let directory = path.as_bytes().len() - name.len();
    let directory = path
        .as_bytes()
        .get(..directory.saturating_sub(1))
        .unwrap_or_default();
    (directory, name)
}

impl Reader<'_> {
    /// The end of the chain: how many records there are, and the hash of the last.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn chain_head(&self) -> Result<ChainHead, StoreError> {
        let head = self.one(
            "read the end of the chain",
            "SELECT count, hash FROM custody_head",
            [],
            |row| {
                let hash: [u8; 32] = row
                    .blob(1)?
                    .try_into()
                    .map_err(|_| StoreError::damaged("the end of the chain", Malformed::Short))?;
                Ok(ChainHead {
                    count: row.number(0)?,
                    hash: ContentHash::from_bytes(hash),
                })
            },
        )?;
        head.ok_or_else(|| StoreError::damaged("the end of the chain", Malformed::Short))
    }
}

impl Tx<'_> {
    /// Appends records to the chain, in this order, and says where it ends now.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn append_custody<'r>(
        &mut self,
        records: impl IntoIterator<Item = &'r CustodyRecord>,
    ) -> Result<ChainHead, StoreError> {
        let operation = "append to the custody record";
        let mut head = self.chain_head()?;
        let mut insert = self.prepare(
            operation,
            // OR FAIL: see schema/0003.sql.
            "INSERT OR FAIL INTO custody (seq, format, at, run, job, action, directory, name, body, hash) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        let (mut body, mut buffer) = (Vec::new(), Vec::new());
        for record in records {
            encode_body(record, &mut body);
            let (directory, name) = split(&record.path);
            let link = Link {
                seq: head.count + 1,
                at: record.at.nanoseconds(),
                run: record.run.cast_signed(),
                job: &record.job,
                action: action_code(record.action),
                directory,
                name,
                body: &body,
            };
            head = ChainHead {
                count: link.seq,
                hash: link.hash(&head.hash, &mut buffer),
            };
            insert
                .execute((
                    link.seq.cast_signed(),
                    CHAIN_FORMAT,
                    link.at,
                    link.run,
                    link.job,
                    link.action,
                    link.directory,
                    link.name,
                    link.body,
                    head.hash.as_bytes().as_slice(),
                ))
                .trying(operation)?;
        }
        self.run(
            operation,
            "UPDATE custody_head SET count = ?1, hash = ?2",
            (head.count.cast_signed(), head.hash.as_bytes().as_slice()),
        )?;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use knarr_core::record::Action;

    use super::{action_code, action_of_code};

    #[test]
    fn each_action_has_a_code_and_a_name_of_its_own() {
        for action in Action::ALL {
            assert_eq!(action_of_code(i64::from(action_code(action))), Some(action));
            assert_eq!(Action::from_name(action.name()), Some(action));
        }
        assert_eq!(action_of_code(0), None);
    }
}
