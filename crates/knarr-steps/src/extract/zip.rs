//! Reads zip: the archive is put into a temporary file first, because its directory is at the end.
//!
//! Constraints: the contents are read one after another, in chunks; what is declared is checked against the
//! limits before anything is put out, and what comes out is never more than was declared.
//!
//! Names are taken as bytes: where an old program wrote them in another character set than UTF-8, they
//! keep its bytes.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use flate2::{Crc, FlushDecompress, Status};
use knarr_core::path::printable;

use super::names::{MAX_LINK_BYTES, Names, Use, stays_inside};
use super::zip_directory::{self, Entry, Problem};
use super::{Unpack, Unpacked};
use crate::context::Spool;
use crate::error::StepError;
use crate::faults::ArchiveFault;
use crate::item::{Head, Node};
use crate::spec::{ExtractOptions, Links};
use crate::step::CHUNK_BYTES;

const PIECE_BYTES: u64 = 64 * 1024;
const METHOD_STORED: u16 = 0;
const METHOD_DEFLATE: u16 = 8;

pub(super) struct Zip {
    options: ExtractOptions,
    spool: Arc<dyn Spool>,
    file: Option<File>,
    length: u64,
    input_ended: bool,
    names: Names,
    state: State,
    entry: Option<String>,
}

enum State {
    Collect,
    /// Before the first of these.
    Between(std::vec::IntoIter<Entry>),
    Content(std::vec::IntoIter<Entry>, Box<Content>),
    /// After a directory or link.
    NodeEnd(std::vec::IntoIter<Entry>),
    Finished,
}

/// The content that is being read.
struct Content {
    entry: Entry,
    left: u64,
    produced: u64,
    crc: Crc,
    inflate: Option<flate2::Decompress>,
    is_inflated: bool,
    input: Vec<u8>,
    used: usize,
}

impl Zip {
    pub(super) fn new(options: &ExtractOptions, spool: Arc<dyn Spool>) -> Self {
        Self {
            options: *options,
            spool,
            file: None,
            length: 0,
            input_ended: false,
            names: Names::new(*options),
            state: State::Collect,
            entry: None,
        }
    }

    fn error(&self, problem: Problem) -> StepError {
        let (entry, fault) = match problem {
            Problem::Io(error) => return StepError::spool("extract", &error),
            Problem::Fault(fault) => (self.entry.clone(), fault),
            Problem::At(name, fault) => (Some(printable(&name).to_string()), fault),
        };
        StepError::Archive {
            format: "zip",
            entry,
            fault,
        }
    }

    fn advance(&mut self) -> Result<Unpacked, Problem> {
        loop {
            match std::mem::replace(&mut self.state, State::Finished) {
                State::Finished => return Ok(Unpacked::Finished),
                State::Collect if !self.input_ended => {
                    self.state = State::Collect;
                    return Ok(Unpacked::NeedsInput);
                }
                State::Collect => {
                    let file = self.file.as_mut().ok_or(ArchiveFault::Truncated)?;
                    let entries = zip_directory::read(file, self.length, &self.options)?;
                    for entry in &entries {
                        let counted = self.names.count(entry.size, self.length);
                        counted.map_err(|fault| Problem::At(entry.name.clone(), fault))?;
                    }
                    self.state = State::Between(entries.into_iter());
                }
                State::NodeEnd(rest) => {
                    self.state = State::Between(rest);
                    return Ok(Unpacked::End);
                }
                State::Between(mut rest) => {
                    let Some(entry) = rest.next() else {
                        self.state = State::Finished;
                        continue;
                    };
                    self.entry = Some(printable(&entry.name).to_string());
                    if let Some(unpacked) = self.begin(entry, rest)? {
                        return Ok(unpacked);
                    }
                }
                State::Content(rest, mut content) => {
                    let file = self.file.as_mut().ok_or(ArchiveFault::Truncated)?;
                    match content.read(file)? {
                        Some(chunk) => {
                            self.state = State::Content(rest, content);
                            return Ok(Unpacked::Data(chunk));
                        }
                        None => {
                            self.state = State::Between(rest);
                            return Ok(Unpacked::End);
                        }
                    }
                }
            }
        }
    }

    /// Says what the entry is, and makes ready to read it.
    fn begin(
        &mut self,
        entry: Entry,
        rest: std::vec::IntoIter<Entry>,
    ) -> Result<Option<Unpacked>, Problem> {
        if entry.name.contains(&b'\\') {
            return Err(ArchiveFault::AmbiguousName("a backslash in a zip archive").into());
        }
        let kind = entry.mode.map_or(0, |mode| mode & 0o170_000);
        let is_directory = entry.name.last() == Some(&b'/');
        let used = match kind {
            0o120_000 => Use::Link,
            0o040_000 if is_directory => Use::Directory,
            0 | 0o100_000 if is_directory => Use::Directory,
            // What zip reads from a pipe it calls one, and writes with its content.
            0 | 0o100_000 | 0o010_000 => Use::File,
            0o040_000 => return Err(ArchiveFault::Conflict.into()),
            0o020_000 | 0o060_000 => return Err(ArchiveFault::Special("device").into()),
            _ => return Err(ArchiveFault::Special("special file").into()),
        };
        if used == Use::Directory && entry.size != 0 {
            return Err(ArchiveFault::Corrupt("a directory has content".into()).into());
        }
        if used == Use::Link && self.options.links == Links::Refuse {
            return Err(ArchiveFault::Link("`links: refuse` allows none").into());
        }
        let Some(path) = self.names.admit(&entry.name, used)? else {
            self.state = State::Between(rest);
            return Ok(None);
        };
        let mut head = Head::file(path);
        head.mode = entry.mode.map(|mode| mode & 0o777);
        head.mtime = entry.mtime;
        match used {
            Use::File => {
                head.size = Some(entry.size);
                let content = Content::new(entry)?;
                self.state = State::Content(rest, Box::new(content));
            }
            Use::Link if self.options.links == Links::Skip => {
                self.state = State::Between(rest);
                return Ok(None);
            }
            Use::Link => {
                let target = self.link_target(entry)?;
                stays_inside(&head.path, &target)?;
                let target = target.into_boxed_slice();
                head.node = Node::Symlink { target };
                self.state = State::NodeEnd(rest);
            }
            Use::Directory | Use::ImpliedDirectory => {
                head.node = Node::Directory;
                self.state = State::NodeEnd(rest);
            }
        }
        Ok(Some(Unpacked::Begin(head)))
    }

    /// The content of a link, which is its target.
    fn link_target(&mut self, entry: Entry) -> Result<Vec<u8>, Problem> {
        if entry.size > MAX_LINK_BYTES as u64 {
            return Err(ArchiveFault::Link("its target is no path").into());
        }
        let file = self.file.as_mut().ok_or(ArchiveFault::Truncated)?;
        let mut content = Content::new(entry)?;
        let mut target = Vec::new();
        while let Some(chunk) = content.read(file)? {
            target.extend_from_slice(&chunk);
        }
        Ok(target)
    }
}

impl Content {
    fn new(entry: Entry) -> Result<Self, ArchiveFault> {
        let inflate = match entry.method {
            METHOD_STORED if entry.size == entry.compressed => None,
            METHOD_STORED => return Err(ArchiveFault::Mismatch("the length")),
            METHOD_DEFLATE => Some(flate2::Decompress::new(false)),
            other => {
                let detail = format!("the compression number {other} of zip");
                return Err(ArchiveFault::Unsupported(detail.into()));
            }
        };
        Ok(Self {
            left: entry.compressed,
            produced: 0,
            crc: Crc::new(),
            is_inflated: false,
            inflate,
            input: Vec::new(),
            used: 0,
            entry,
        })
    }

    /// The next piece. Nothing after the last one, and after everything was verified.
    fn read(&mut self, file: &mut File) -> Result<Option<Bytes>, Problem> {
        let mut output = Vec::with_capacity(self.capacity());
        while output.len() < output.capacity() {
            if self.used == self.input.len() && self.left > 0 {
                self.refill(file)?;
            }
            let input = self.input.get(self.used..).unwrap_or_default();
            let filled = output.len();
            let used = match &mut self.inflate {
                None => {
                    let piece = input.len().min(output.capacity() - filled);
                    output.extend_from_slice(input.get(..piece).unwrap_or_default());
                    piece
                }
                Some(_) if self.is_inflated => 0,
                Some(inflate) => {
                    let before = inflate.total_in();
                    let status = inflate
                        .decompress_vec(input, &mut output, FlushDecompress::None)
                        .map_err(|_| {
                            ArchiveFault::Corrupt("its content cannot be inflated".into())
                        })?;
                    self.is_inflated = status == Status::StreamEnd;
                    usize::try_from(inflate.total_in() - before).unwrap_or(input.len())
                }
            };
            self.used += used;
            if used == 0 && output.len() == filled {
                break;
            }
        }
        if output.is_empty() {
            self.verify(file)?;
            return Ok(None);
        }
        self.crc.update(&output);
        self.produced += output.len() as u64;
        if self.produced > self.entry.size {
            return Err(ArchiveFault::Mismatch("the length").into());
        }
        Ok(Some(Bytes::from(output)))
    }

    /// Room for the next piece: one byte more than is expected, so that a content that is too long shows.
    fn capacity(&self) -> usize {
        let expected = (self.entry.size - self.produced).saturating_add(1);
        usize::try_from(expected).map_or(CHUNK_BYTES, |expected| expected.min(CHUNK_BYTES))
    }

    fn refill(&mut self, file: &mut File) -> Result<(), Problem> {
        let offset = self.entry.data_offset + (self.entry.compressed - self.left);
        let length = self.left.min(PIECE_BYTES);
        self.input
            .resize(usize::try_from(length).unwrap_or_default(), 0);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut self.input)?;
        (self.left, self.used) = (self.left - length, 0);
        Ok(())
    }

    fn verify(&self, file: &mut File) -> Result<(), Problem> {
        let is_used_up = self.left == 0 && self.used == self.input.len();
        let is_ended = self.inflate.is_none() || self.is_inflated;
        if !is_used_up || !is_ended || self.produced != self.entry.size {
            return Err(
                ArchiveFault::Corrupt("its content is not as long as declared".into()).into(),
            );
        }
        if self.crc.sum() != self.entry.crc {
            return Err(
                ArchiveFault::Corrupt("the checksum of its content is wrong".into()).into(),
            );
        }
        if self.entry.has_descriptor() {
            self.verify_descriptor(file)?;
        }
        Ok(())
    }

    /// Compares the record behind the content: with or without a signature, with short or long lengths.
    fn verify_descriptor(&self, file: &mut File) -> Result<(), Problem> {
        let entry = &self.entry;
        let mut record = Vec::new();
        file.seek(SeekFrom::Start(entry.data_offset + entry.compressed))?;
        file.take(24).read_to_end(&mut record)?;
        let crc = entry.crc.to_le_bytes();
        let mut forms = Vec::new();
        let long = [entry.compressed.to_le_bytes(), entry.size.to_le_bytes()].concat();
        forms.push([&crc[..], &long].concat());
        if let (Ok(compressed), Ok(size)) =
            (u32::try_from(entry.compressed), u32::try_from(entry.size))
        {
            forms.push([crc, compressed.to_le_bytes(), size.to_le_bytes()].concat());
        }
        let is_one = |form: &Vec<u8>| {
            record.starts_with(form)
                || record
                    .strip_prefix(b"PK\x07\x08")
                    .is_some_and(|rest| rest.starts_with(form))
        };
        if forms.iter().any(is_one) {
            Ok(())
        } else {
            Err(ArchiveFault::Mismatch("the checksum or the length").into())
        }
    }
}

impl Unpack for Zip {
    fn feed(&mut self, input: Bytes) -> Result<(), StepError> {
        let spool = |error| StepError::spool("extract", &error);
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(self.spool.open().map_err(spool)?),
        };
        file.write_all(&input).map_err(spool)?;
        self.length += input.len() as u64;
        Ok(())
    }

    fn end(&mut self) {
        self.input_ended = true;
    }

    fn pull(&mut self) -> Result<Unpacked, StepError> {
        self.advance().map_err(|problem| self.error(problem))
    }

    fn format(&self) -> &'static str {
        "zip"
    }
}
