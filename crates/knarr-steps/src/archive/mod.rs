//! Packs files: many become one archive.
//!
//! Constraints: the archive is written while the files come; a temporary file is used only for tar, for a file
//! whose length is not known before. What is remembered of each file is 16 bytes, and for zip its name and
//! about 60 bytes, for at most [`MAX_FILES`] files.
//!
//! The entries have the paths that the files had in the input; no owner is written. The same files in the
//! same order give the same bytes.

mod tar;
mod zip;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use knarr_core::{RelPath, Timestamp};

use crate::compress::Compress;
use crate::context::Context;
use crate::error::StepError;
use crate::faults::ArchiveFault;
use crate::format::Format;
use crate::item::{Head, Item, Node};
use crate::spec::{ArchiveFormat, ArchiveOptions, CompressOptions};
use crate::stage::Stage;
use crate::step::{PassThrough, Pulled, Step as _, StepSummary};

/// The most files of one archive.
const MAX_FILES: usize = 1_000_000;

/// Writes one format of archive.
trait Pack: Send {
    fn begin(&mut self, head: Head) -> Result<(), StepError>;
    fn data(&mut self, bytes: Bytes) -> Result<(), StepError>;
    fn end(&mut self) -> Result<(), StepError>;
    fn finish(&mut self) -> Result<(), StepError>;
    /// The next bytes of the archive; nothing if it takes more input.
    fn pull(&mut self) -> Result<Option<Bytes>, StepError>;
}

/// The step `archive`.
pub(crate) struct Archive {
    options: ArchiveOptions,
    now: Timestamp,
    pack: Box<dyn Pack>,
    compress: Option<Compress>,
    waiting: VecDeque<Item>,
    names: HashSet<[u8; 16]>,
    phase: Phase,
    summary: StepSummary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No file came so far.
    Empty,
    Filling,
    /// The last file is in.
    Ending,
    Ended,
}

impl Archive {
    pub(crate) fn new(options: &ArchiveOptions, context: &Context) -> Result<Self, StepError> {
        let format = match options.format {
            ArchiveFormat::TarZst => Some(Format::Zstd),
            ArchiveFormat::TarGz => Some(Format::Gzip),
            ArchiveFormat::Tar | ArchiveFormat::Zip => None,
        };
        let level = options.level;
        let compress = format
            .map(|format| Compress::new(CompressOptions { format, level }))
            .transpose()?;
        let pack: Box<dyn Pack> = if options.format == ArchiveFormat::Zip {
            Box::new(zip::ZipWriter::new(level))
        } else {
            Box::new(tar::TarWriter::new(Arc::clone(&context.spool)))
        };
        Ok(Self {
            options: options.clone(),
            now: context.now,
            pack,
            compress,
            waiting: VecDeque::new(),
            names: HashSet::new(),
            phase: Phase::Empty,
            summary: StepSummary::new(),
        })
    }

    fn begin(&mut self, mut head: Head) -> Result<(), StepError> {
        if self.phase == Phase::Empty {
            self.phase = Phase::Filling;
            let path = self.path(&head.path)?;
            let mut archive = Head::file(path);
            archive.mtime = Some(self.now);
            self.waiting.push_back(Item::Begin(archive));
        }
        let mut key = [0; 16];
        key.iter_mut()
            .zip(blake3::hash(head.path.as_bytes()).as_bytes())
            .for_each(|(slot, byte)| *slot = *byte);
        let refused = |fault| {
            Err(StepError::Archive {
                format: self.options.format.suffix().trim_start_matches('.'),
                entry: Some(head.path.to_string()),
                fault,
            })
        };
        if self.names.len() >= MAX_FILES {
            let allowed = MAX_FILES as u64;
            let option = "the format of the record (at most a million files)";
            return refused(ArchiveFault::Limit { option, allowed });
        }
        if !self.names.insert(key) {
            return refused(ArchiveFault::Duplicate);
        }
        self.summary.members += 1;
        head.mtime = head.mtime.or(Some(self.now));
        self.pack.begin(head)
    }

    /// The path of the archive.
    fn path(&self, first: &RelPath) -> Result<RelPath, StepError> {
        let path = match &self.options.name {
            Some(name) => RelPath::new(name.as_bytes()),
            None => {
                let suffix = self.options.format.suffix().as_bytes();
                first.with_name(&[first.name(), suffix].concat())
            }
        };
        path.map_err(|fault| StepError::OutputName {
            step: "archive",
            fault,
        })
    }

    /// The next bytes of the archive as it is delivered.
    fn bytes(&mut self) -> Result<Option<Bytes>, StepError> {
        let Some(compress) = &mut self.compress else {
            return self.pack.pull();
        };
        loop {
            match compress.pull()? {
                Pulled::Chunk(chunk) => return Ok(Some(chunk)),
                Pulled::Finished => return Ok(None),
                Pulled::NeedsInput => match self.pack.pull()? {
                    Some(bytes) => compress.feed(bytes)?,
                    None if self.phase == Phase::Ending => compress.end(),
                    None => return Ok(None),
                },
            }
        }
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Archive")
            .field("options", &self.options)
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

impl Stage for Archive {
    fn put(&mut self, item: Item) -> Result<(), StepError> {
        match item {
            Item::Begin(head) => self.begin(head),
            Item::Data(bytes) => {
                self.summary.input_bytes += bytes.len() as u64;
                self.pack.data(bytes)
            }
            Item::End => self.pack.end(),
            Item::Finish if self.phase == Phase::Empty => {
                self.phase = Phase::Ended;
                self.waiting.push_back(Item::Finish);
                Ok(())
            }
            Item::Finish => {
                self.phase = Phase::Ending;
                self.pack.finish()
            }
        }
    }

    fn pull(&mut self) -> Result<Option<Item>, StepError> {
        if let Some(item) = self.waiting.pop_front() {
            return Ok(Some(item));
        }
        if matches!(self.phase, Phase::Empty | Phase::Ended) {
            return Ok(None);
        }
        match self.bytes()? {
            Some(bytes) => {
                self.summary.output_bytes += bytes.len() as u64;
                Ok(Some(Item::Data(bytes)))
            }
            None if self.phase == Phase::Ending => {
                self.phase = Phase::Ended;
                self.waiting.push_back(Item::Finish);
                Ok(Some(Item::End))
            }
            None => Ok(None),
        }
    }

    fn summary(&self) -> StepSummary {
        let format = self.options.format.suffix().trim_start_matches('.');
        let entries = self.summary.members;
        StepSummary {
            note: Some(format!("{format}, {entries} entries")),
            ..self.summary.clone()
        }
    }
}

/// What becomes of a piece of output of any size.
fn pass(output: &mut PassThrough, bytes: Vec<u8>) {
    output.put(Bytes::from(bytes));
}

/// A link or directory cannot be packed in this format.
fn unsupported(format: &'static str, head: &Head, detail: &'static str) -> StepError {
    let node = match head.node {
        Node::File => "a file",
        Node::Directory => "a directory",
        Node::Symlink { .. } => "a symbolic link",
        Node::HardLink { .. } => "a hard link",
    };
    StepError::Archive {
        format,
        entry: Some(head.path.to_string()),
        fault: ArchiveFault::Unsupported(format!("{node} {detail}").into()),
    }
}
