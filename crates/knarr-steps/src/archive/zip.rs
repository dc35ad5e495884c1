//! Writes zip: deflate, lengths behind each content, long forms where a number does not fit.

use bytes::Bytes;
use flate2::Crc;
use flate2::write::DeflateEncoder;
use knarr_core::Timestamp;
use std::io::Write as _;

use super::{Pack, pass, unsupported};
use crate::error::StepError;
use crate::item::{Head, Node};
use crate::step::{CHUNK_BYTES, PassThrough};

const VERSION: u16 = 45;
const MADE_BY_UNIX: u16 = 3 << 8;
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FLAG_UTF8: u16 = 1 << 11;
const MOST: u32 = u32::MAX;
const PIECE_BYTES: usize = CHUNK_BYTES;

pub(super) struct ZipWriter {
    level: flate2::Compression,
    output: PassThrough,
    offset: u64,
    current: Option<Current>,
    directory: Vec<Record>,
    /// Records of the directory that were written.
    written: Option<Written>,
}

struct Current {
    record: Record,
    encoder: DeflateEncoder<Vec<u8>>,
    crc: Crc,
}

struct Record {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    mode: u32,
    mtime: i64,
    crc: u32,
    compressed: u64,
    size: u64,
    offset: u64,
}

/// The directory while it is written.
struct Written {
    next: usize,
    start: u64,
    is_closed: bool,
}

impl ZipWriter {
    pub(super) fn new(level: Option<u32>) -> Self {
        Self {
            level: flate2::Compression::new(level.unwrap_or(6).min(9)),
            output: PassThrough::default(),
            offset: 0,
            current: None,
            directory: Vec::new(),
            written: None,
        }
    }

    fn emit(&mut self, bytes: Vec<u8>) {
        self.offset += bytes.len() as u64;
        pass(&mut self.output, bytes);
    }

    /// The next piece of the directory, and at last its end.
    fn directory_piece(&mut self) -> Option<Vec<u8>> {
        let written = self.written.as_mut()?;
        let mut piece = Vec::new();
        while let Some(record) = self.directory.get(written.next) {
            piece.extend(record.central());
            written.next += 1;
            if piece.len() > PIECE_BYTES / 2 {
                return Some(piece);
            }
        }
        if written.is_closed {
            return None;
        }
        written.is_closed = true;
        let start = written.start;
        let bytes = self.offset + piece.len() as u64 - start;
        piece.extend(end_records(self.directory.len() as u64, bytes, start));
        Some(piece)
    }
}

impl Pack for ZipWriter {
    fn begin(&mut self, head: Head) -> Result<(), StepError> {
        let mut name = head.path.as_bytes().to_vec();
        let (kind, default_mode, method) = match &head.node {
            Node::File => (0o100_000, 0o644, 8),
            Node::Directory => {
                name.push(b'/');
                (0o040_000, 0o755, 0)
            }
            Node::Symlink { .. } => (0o120_000, 0o777, 8),
            Node::HardLink { .. } => {
                return Err(unsupported("zip", &head, "has no place in a zip archive"));
            }
        };
        if u16::try_from(name.len()).is_err() {
            return Err(unsupported("zip", &head, "has too long a name"));
        }
        let is_utf8 = std::str::from_utf8(&name).is_ok_and(|text| !text.is_ascii());
        let flags =
            if method == 8 { FLAG_DESCRIPTOR } else { 0 } | if is_utf8 { FLAG_UTF8 } else { 0 };
        let record = Record {
            name,
            flags,
            method,
            mode: kind | (head.mode.unwrap_or(default_mode) & 0o777),
            mtime: head.mtime.map_or(0, Timestamp::seconds),
            crc: 0,
            compressed: 0,
            size: 0,
            offset: self.offset,
        };
        self.emit(record.local());
        self.current = Some(Current {
            record,
            encoder: DeflateEncoder::new(Vec::new(), self.level),
            crc: Crc::new(),
        });
        if let Node::Symlink { target } = head.node {
            self.data(Bytes::from(target))?;
        }
        Ok(())
    }

    fn data(&mut self, bytes: Bytes) -> Result<(), StepError> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        current.crc.update(&bytes);
        current.record.size += bytes.len() as u64;
        let out = current
            .encoder
            .write_all(&bytes)
            .map(|()| std::mem::take(current.encoder.get_mut()))
            .map_err(|error| failed(&error))?;
        current.record.compressed += out.len() as u64;
        self.emit(out);
        Ok(())
    }

    fn end(&mut self) -> Result<(), StepError> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        let mut record = current.record;
        if record.method == 8 {
            let out = current.encoder.finish().map_err(|error| failed(&error))?;
            record.compressed += out.len() as u64;
            record.crc = current.crc.sum();
            self.emit(out);
            self.emit(record.descriptor());
        }
        self.directory.push(record);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), StepError> {
        self.written = Some(Written {
            next: 0,
            start: self.offset,
            is_closed: false,
        });
        Ok(())
    }

    fn pull(&mut self) -> Result<Option<Bytes>, StepError> {
        loop {
            if let Some(bytes) = self.output.take() {
                return Ok(Some(bytes));
            }
            match self.directory_piece() {
                Some(piece) => self.emit(piece),
                None => return Ok(None),
            }
        }
    }
}

fn failed(error: &std::io::Error) -> StepError {
    StepError::Internal {
        step: "archive",
        detail: error.to_string().into(),
    }
}

fn put16(out: &mut Vec<u8>, values: &[u16]) {
    values
        .iter()
        .for_each(|value| out.extend(value.to_le_bytes()));
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    values
        .iter()
        .for_each(|value| out.extend(value.to_le_bytes()));
}

fn put64(out: &mut Vec<u8>, values: &[u64]) {
    values
        .iter()
        .for_each(|value| out.extend(value.to_le_bytes()));
}

fn short(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(MOST)
}

impl Record {
    /// The time as UTC in an extra field, for what knows it; the field of MS-DOS holds local time.
    fn timestamp_field(&self) -> Vec<u8> {
        let mut field = Vec::with_capacity(9);
        if let Ok(seconds) = i32::try_from(self.mtime) {
            put16(&mut field, &[0x5455, 5]);
            field.push(1);
            field.extend(seconds.to_le_bytes());
        }
        field
    }

    fn name_length(&self) -> u16 {
        u16::try_from(self.name.len()).unwrap_or(u16::MAX)
    }

    fn local(&self) -> Vec<u8> {
        let (date, time) = dos_time(self.mtime);
        let extra = self.timestamp_field();
        let mut out = b"PK\x03\x04".to_vec();
        put16(&mut out, &[VERSION, self.flags, self.method, time, date]);
        put32(&mut out, &[0, 0, 0]);
        put16(&mut out, &[self.name_length(), extra.len() as u16]);
        [out, self.name.clone(), extra].concat()
    }

    fn needs_long_lengths(&self) -> bool {
        self.size >= u64::from(MOST) || self.compressed >= u64::from(MOST)
    }

    fn descriptor(&self) -> Vec<u8> {
        let mut out = b"PK\x07\x08".to_vec();
        put32(&mut out, &[self.crc]);
        if self.needs_long_lengths() {
            put64(&mut out, &[self.compressed, self.size]);
        } else {
            put32(&mut out, &[short(self.compressed), short(self.size)]);
        }
        out
    }

    fn central(&self) -> Vec<u8> {
        let (date, time) = dos_time(self.mtime);
        let mut extra = self.timestamp_field();
        let mut long = Vec::new();
        let mut either = |value: u64| {
            if value >= u64::from(MOST) {
                put64(&mut long, &[value]);
                MOST
            } else {
                short(value)
            }
        };
        let (size, compressed, offset) = (
            either(self.size),
            either(self.compressed),
            either(self.offset),
        );
        if !long.is_empty() {
            put16(&mut extra, &[1, long.len() as u16]);
            extra.extend(long);
        }
        let mut out = b"PK\x01\x02".to_vec();
        put16(
            &mut out,
            &[
                MADE_BY_UNIX | VERSION,
                VERSION,
                self.flags,
                self.method,
                time,
                date,
            ],
        );
        put32(&mut out, &[self.crc, compressed, size]);
        put16(&mut out, &[self.name_length(), extra.len() as u16, 0, 0, 0]);
        let is_directory = u32::from(self.name.last() == Some(&b'/'));
        put32(&mut out, &[(self.mode << 16) | (is_directory << 4), offset]);
        [out, self.name.clone(), extra].concat()
    }
}

/// The end of the directory, with the long form before it where it is needed.
fn end_records(entries: u64, bytes: u64, start: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if entries >= 0xffff || bytes >= u64::from(MOST) || start >= u64::from(MOST) {
        out.extend(b"PK\x06\x06");
        put64(&mut out, &[44]);
        put16(&mut out, &[MADE_BY_UNIX | VERSION, VERSION]);
        put32(&mut out, &[0, 0]);
        put64(&mut out, &[entries, entries, bytes, start]);
        out.extend(b"PK\x06\x07");
        put32(&mut out, &[0]);
        put64(&mut out, &[start + bytes]);
        put32(&mut out, &[1]);
    }
    let few = u16::try_from(entries).unwrap_or(u16::MAX);
    out.extend(b"PK\x05\x06");
    put16(&mut out, &[0, 0, few, few]);
    put32(&mut out, &[short(bytes), short(start)]);
    put16(&mut out, &[0]);
    out
}

/// Date and time of MS-DOS, in UTC: 1980 to 2107, in steps of two seconds.
fn dos_time(seconds: i64) -> (u16, u16) {
    const DAY: i64 = 86_400;
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Days to a civil date, with years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    if !(1980..=2107).contains(&year) {
        return (0x21, 0);
    }
    let date = ((year - 1980) << 9) | (month << 5) | day;
    let time = ((second / 3600) << 11) | ((second % 3600 / 60) << 5) | (second % 60 / 2);
    (
        u16::try_from(date).unwrap_or(0x21),
        u16::try_from(time).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::dos_time;

    #[test]
    fn times_of_ms_dos_begin_in_1980() {
        assert_eq!(dos_time(0), (0x21, 0));
        assert_eq!(dos_time(315_532_800), (0x21, 0));
        // 2026-11-21 22:46:22 UTC.
        assert_eq!(
            dos_time(1_795_301_182),
            ((46 << 9) | (11 << 5) | 21, (22 << 11) | (46 << 5) | 11)
        );
    }
}
