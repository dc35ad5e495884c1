//! The directory at the end of a zip archive, compared with the headers before the contents.
//!
//! Constraints: the directory has to end where the end record begins, and the end record where the file
//! ends: then there is only one directory to be found, whoever looks for it. Each entry is remembered in
//! about 150 bytes and its name.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use knarr_core::Timestamp;

use super::names::limit;
use crate::faults::ArchiveFault;
use crate::spec::ExtractOptions;

const END_BYTES: u64 = 22;
const LOCATOR_BYTES: u64 = 20;
const END64_BYTES: u64 = 56;
const MAX_COMMENT_BYTES: u64 = 65_535;
const LOCAL_BYTES: usize = 30;
const CENTRAL_BYTES: usize = 46;

const FLAG_ENCRYPTED: u16 = 1;
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FLAG_PATCH: u16 = 1 << 5;
const FLAG_STRONG: u16 = 1 << 6;
const FLAG_MASKED: u16 = 1 << 13;
const EXTRA_ZIP64: u16 = 1;
const EXTRA_UNICODE_PATH: u16 = 0x7075;
const EXTRA_TIMESTAMP: u16 = 0x5455;

/// Why a directory cannot be read.
pub(super) enum Problem {
    Io(io::Error),
    Fault(ArchiveFault),
    /// Of the entry of this name.
    At(Vec<u8>, ArchiveFault),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Fault(ArchiveFault::Corrupt(
                "a record lies outside of the file".into(),
            ))
        } else {
            Self::Io(error)
        }
    }
}

impl From<ArchiveFault> for Problem {
    fn from(fault: ArchiveFault) -> Self {
        Self::Fault(fault)
    }
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) crc: u32,
    pub(super) compressed: u64,
    pub(super) size: u64,
    pub(super) header_offset: u64,
    /// Known once the local header was read.
    pub(super) data_offset: u64,
    /// Type and permissions, where a Unix system has written them.
    pub(super) mode: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
}

impl Entry {
    pub(super) fn has_descriptor(&self) -> bool {
        self.flags & FLAG_DESCRIPTOR != 0
    }
}

fn corrupt(detail: &'static str) -> Problem {
    Problem::Fault(ArchiveFault::Corrupt(detail.into()))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut value = [0; 2];
    copy(&mut value, bytes, at);
    u16::from_le_bytes(value)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    copy(&mut value, bytes, at);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    copy(&mut value, bytes, at);
    u64::from_le_bytes(value)
}

fn copy(to: &mut [u8], bytes: &[u8], at: usize) {
    if let Some(from) = bytes.get(at..at + to.len()) {
        to.copy_from_slice(from);
    }
}

/// Where the directory is, and how many entries it has.
struct Place {
    offset: u64,
    bytes: u64,
    entries: u64,
}

/// Reads and checks the whole directory of an archive of `length` bytes. The entries come in the order of
/// their contents.
pub(super) fn read<R: Read + Seek>(
    file: &mut R,
    length: u64,
    options: &ExtractOptions,
) -> Result<Vec<Entry>, Problem> {
    let place = find(file, length)?;
    if place.entries > u64::from(options.max_entries) {
        return Err(limit("max_entries", u64::from(options.max_entries)).into());
    }
    file.seek(SeekFrom::Start(place.offset))?;
    let mut reader = BufReader::new((&mut *file).take(place.bytes));
    let mut entries = Vec::new();
    for _ in 0..place.entries {
        entries.push(central(&mut reader, options)?);
    }
    if reader.read(&mut [0])? != 0 {
        return Err(corrupt("the directory has more entries than its end says"));
    }
    drop(reader);
    entries.sort_by_key(|entry| entry.header_offset);
    let mut free_from = 0;
    for entry in &mut entries {
        if entry.header_offset < free_from {
            return Err(Problem::At(entry.name.clone(), ArchiveFault::Overlap));
        }
        local(file, entry).map_err(|problem| match problem {
            Problem::Fault(fault) => Problem::At(entry.name.clone(), fault),
            other => other,
        })?;
        free_from = entry
            .data_offset
            .checked_add(entry.compressed)
            .filter(|end| *end <= place.offset)
            .ok_or_else(|| Problem::At(entry.name.clone(), ArchiveFault::Overlap))?;
    }
    Ok(entries)
}

fn find<R: Read + Seek>(file: &mut R, length: u64) -> Result<Place, Problem> {
    if length < END_BYTES {
        return Err(ArchiveFault::Truncated.into());
    }
    let tail_bytes = length.min(END_BYTES + MAX_COMMENT_BYTES + LOCATOR_BYTES);
    let tail_start = length - tail_bytes;
    let mut tail = vec![0; usize::try_from(tail_bytes).unwrap_or_default()];
    file.seek(SeekFrom::Start(tail_start))?;
    file.read_exact(&mut tail)?;
    // The last signature whose comment reaches exactly to the end of the file.
    let is_end = |position: &usize| {
        let rest = tail.get(*position..).unwrap_or_default();
        rest.starts_with(b"PK\x05\x06")
            && rest.len() >= 22
            && rest.len() == 22 + usize::from(u16_at(rest, 20))
    };
    let mut ends = (0..tail.len()).rev().filter(is_end);
    let position = ends.next().ok_or(ArchiveFault::Truncated)?;
    if ends.next().is_some() {
        return Err(corrupt(
            "there are two ends, one in the comment of the other",
        ));
    }
    let end = tail.get(position..).unwrap_or_default();
    let end_offset = tail_start + position as u64;
    if u16_at(end, 4) != u16_at(end, 6) || u16_at(end, 8) != u16_at(end, 10) {
        return Err(ArchiveFault::Unsupported("an archive in several parts".into()).into());
    }
    let mut place = Place {
        entries: u64::from(u16_at(end, 10)),
        bytes: u64::from(u32_at(end, 12)),
        offset: u64::from(u32_at(end, 16)),
    };
    let mut directory_end = end_offset;
    let locator = end_offset
        .checked_sub(LOCATOR_BYTES)
        .and_then(|start| usize::try_from(start.checked_sub(tail_start)?).ok())
        .and_then(|start| tail.get(start..position))
        .filter(|bytes| bytes.starts_with(b"PK\x06\x07"));
    if let Some(locator) = locator {
        let start = u64_at(locator, 8);
        place = end64(file, start, &place)?;
        directory_end = start;
    } else if place.offset == u64::from(u32::MAX) || place.entries == 0xffff {
        return Err(corrupt("the end of a large archive is missing"));
    }
    if place.offset.checked_add(place.bytes) != Some(directory_end) {
        return Err(corrupt("the directory is not where its end says"));
    }
    Ok(place)
}

fn end64<R: Read + Seek>(file: &mut R, start: u64, short: &Place) -> Result<Place, Problem> {
    let mut record = [0; END64_BYTES as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut record)?;
    if !record.starts_with(b"PK\x06\x06") || u64_at(&record, 4) < END64_BYTES - 12 {
        return Err(corrupt("the end of a large archive cannot be read"));
    }
    if u64_at(&record, 24) != u64_at(&record, 32) {
        return Err(ArchiveFault::Unsupported("an archive in several parts".into()).into());
    }
    let place = Place {
        entries: u64_at(&record, 32),
        bytes: u64_at(&record, 40),
        offset: u64_at(&record, 48),
    };
    let agrees = |short: u64, long: u64, most: u64| short == long || short == most;
    let most = u64::from(u32::MAX);
    if !agrees(short.entries, place.entries, 0xffff)
        || !agrees(short.bytes, place.bytes, most)
        || !agrees(short.offset, place.offset, most)
    {
        return Err(corrupt("the two ends of the directory disagree"));
    }
    Ok(place)
}

fn read_bytes(reader: &mut impl Read, length: u16) -> Result<Vec<u8>, Problem> {
    let mut bytes = vec![0; usize::from(length)];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn central(reader: &mut impl Read, options: &ExtractOptions) -> Result<Entry, Problem> {
    let mut fixed = [0; CENTRAL_BYTES];
    reader.read_exact(&mut fixed)?;
    if !fixed.starts_with(b"PK\x01\x02") {
        return Err(corrupt("the directory cannot be read"));
    }
    let name = read_bytes(reader, u16_at(&fixed, 28))?;
    let extra = read_bytes(reader, u16_at(&fixed, 30))?;
    read_bytes(reader, u16_at(&fixed, 32))?;
    let longest = u64::from(options.max_name) * (u64::from(options.max_depth) + 1);
    if name.len() as u64 > longest {
        return Err(limit("max_name", u64::from(options.max_name)).into());
    }
    let is_unix = fixed.get(5) == Some(&3);
    let attributes = u32_at(&fixed, 38);
    let mut entry = Entry {
        flags: u16_at(&fixed, 8),
        method: u16_at(&fixed, 10),
        crc: u32_at(&fixed, 16),
        compressed: u64::from(u32_at(&fixed, 20)),
        size: u64::from(u32_at(&fixed, 24)),
        header_offset: u64::from(u32_at(&fixed, 42)),
        data_offset: 0,
        mode: (is_unix && attributes >> 16 != 0).then_some(attributes >> 16),
        mtime: None,
        name,
    };
    let fault = |fault| Problem::At(entry.name.clone(), fault);
    if entry.flags & (FLAG_ENCRYPTED | FLAG_STRONG | FLAG_MASKED) != 0 || entry.method == 99 {
        return Err(fault(ArchiveFault::Encrypted));
    }
    if entry.flags & FLAG_PATCH != 0 {
        return Err(fault(ArchiveFault::Unsupported("a patch".into())));
    }
    if u16_at(&fixed, 34) != 0 {
        let detail = "an archive in several parts".into();
        return Err(fault(ArchiveFault::Unsupported(detail)));
    }
    let mut wide = Wide::default();
    wide.read(&extra, &entry.name).map_err(&fault)?;
    let Wide { numbers, mtime } = wide;
    let mut numbers = numbers.into_iter();
    for value in [
        &mut entry.size,
        &mut entry.compressed,
        &mut entry.header_offset,
    ] {
        if *value == u64::from(u32::MAX) {
            *value = numbers.next().unwrap_or(*value);
        }
    }
    entry.mtime = mtime;
    Ok(entry)
}

/// What the extra fields of a header say.
#[derive(Default)]
struct Wide {
    /// The long forms of the numbers that do not fit, in the order of the header.
    numbers: Vec<u64>,
    mtime: Option<Timestamp>,
}

impl Wide {
    fn read(&mut self, mut extra: &[u8], name: &[u8]) -> Result<(), ArchiveFault> {
        while extra.len() >= 4 {
            let (id, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
            let Some(field) = extra.get(4..4 + length) else {
                return Err(ArchiveFault::Corrupt("an extra field is cut".into()));
            };
            match id {
                EXTRA_ZIP64 => {
                    if !self.numbers.is_empty() {
                        return Err(ArchiveFault::Corrupt("two lengths for one entry".into()));
                    }
                    let numbers = field.chunks_exact(8).take(3);
                    self.numbers.extend(numbers.map(|bytes| u64_at(bytes, 0)));
                }
                EXTRA_UNICODE_PATH if field.get(5..).is_some_and(|other| other != name) => {
                    return Err(ArchiveFault::Mismatch("the name"));
                }
                EXTRA_TIMESTAMP
                    if field.len() >= 5 && field.first().is_some_and(|flags| flags & 1 != 0) =>
                {
                    let mut seconds = [0; 4];
                    copy(&mut seconds, field, 1);
                    let seconds = i64::from(i32::from_le_bytes(seconds));
                    self.mtime = Some(Timestamp::from_seconds(seconds));
                }
                _ => {}
            }
            extra = extra.get(4 + length..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Compares the header before the content with the entry, and says where the content begins.
fn local<R: Read + Seek>(file: &mut R, entry: &mut Entry) -> Result<(), Problem> {
    let mut fixed = [0; LOCAL_BYTES];
    file.seek(SeekFrom::Start(entry.header_offset))?;
    file.read_exact(&mut fixed)?;
    if !fixed.starts_with(b"PK\x03\x04") {
        return Err(corrupt("there is no entry where the directory says"));
    }
    let name = read_bytes(file, u16_at(&fixed, 26))?;
    let extra = read_bytes(file, u16_at(&fixed, 28))?;
    if name != entry.name {
        return Err(ArchiveFault::Mismatch("the name").into());
    }
    if u16_at(&fixed, 6) & (FLAG_ENCRYPTED | FLAG_STRONG) != 0 {
        return Err(ArchiveFault::Encrypted.into());
    }
    if u16_at(&fixed, 8) != entry.method || (u16_at(&fixed, 6) ^ entry.flags) & FLAG_DESCRIPTOR != 0
    {
        return Err(ArchiveFault::Mismatch("the compression").into());
    }
    let mut wide = Wide::default();
    wide.read(&extra, &name)?;
    let mut numbers = wide.numbers.into_iter();
    let mut long = |short: u32| {
        if short == u32::MAX {
            numbers.next().unwrap_or(u64::from(short))
        } else {
            u64::from(short)
        }
    };
    let (crc, size) = (u32_at(&fixed, 14), long(u32_at(&fixed, 22)));
    let compressed = long(u32_at(&fixed, 18));
    // With a descriptor behind the content these are zero, or already right.
    let may_be_zero = entry.has_descriptor();
    let agrees = |local: u64, central: u64| {
        local == central || (may_be_zero && (local == 0 || local == u64::from(u32::MAX)))
    };
    if !agrees(u64::from(crc), u64::from(entry.crc)) {
        return Err(ArchiveFault::Mismatch("the checksum").into());
    }
    if !agrees(size, entry.size) || !agrees(compressed, entry.compressed) {
        return Err(ArchiveFault::Mismatch("the length").into());
    }
    entry.data_offset = file.stream_position()?;
    Ok(())
}
