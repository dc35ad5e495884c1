//! Unpacks archives: one file becomes many.
//!
//! Constraints: an archive is recognised by content: zip, or tar inside any compression. All or nothing is
//! the caller's part: it stages what comes out until the pipeline has finished. Entries come out one after
//! another, below the directory of the archive. An archive inside of an archive is a file: one layer is
//! unpacked by one step.
//!
//! What is held: a chunk, the decoder's memory, 32 bytes for each name; for zip about 150 bytes and the name of
//! each entry, and the archive itself in a temporary file.
//!
//! Not read: 7z and RAR. The one kept library for 7z needs the whole archive, allocates what the archive asks
//! for and is the work of one person; RAR cannot be read without code that is not free.

mod names;
mod tar;
mod tar_header;
mod zip;
mod zip_directory;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use knarr_core::RelPath;

use self::tar::{BLOCK, Tar};
use self::zip::Zip;
use crate::context::Spool;
use crate::decompress::Decompress;
use crate::error::StepError;
use crate::faults::ArchiveFault;
use crate::item::{Head, Item, Node};
use crate::spec::{DecompressOptions, ExtractOptions, Unrecognised};
use crate::stage::Stage;
use crate::step::{Pulled, Step as _, StepSummary};

/// Reads one format of archive.
trait Unpack: Send {
    /// Takes the next chunk; the last `pull` has asked for it.
    fn feed(&mut self, input: Bytes) -> Result<(), StepError>;
    fn end(&mut self);
    fn pull(&mut self) -> Result<Unpacked, StepError>;
    fn format(&self) -> &'static str;
}

enum Unpacked {
    Begin(Head),
    Data(Bytes),
    End,
    NeedsInput,
    Finished,
}

/// The step `extract`.
pub(crate) struct Extract {
    options: ExtractOptions,
    spool: Arc<dyn Spool>,
    current: Option<Current>,
    waiting: VecDeque<Item>,
    summary: StepSummary,
}

struct Current {
    parent: Option<RelPath>,
    decompress: Decompress,
    reader: Reader,
}

/// What reads the archive, once it is known what it is.
enum Reader {
    Unknown { beginning: Vec<u8> },
    Known(Box<dyn Unpack>),
}

impl Extract {
    pub(crate) fn new(options: ExtractOptions, spool: Arc<dyn Spool>) -> Self {
        Self {
            options,
            spool,
            current: None,
            waiting: VecDeque::new(),
            summary: StepSummary::new(),
        }
    }

    fn begin(&mut self, head: &Head) {
        // Headers and padding of tar are output of the decompression, but not of this step.
        let overhead = u64::from(self.options.max_entries).saturating_mul(4096);
        let options = DecompressOptions {
            max_output: self.options.max_output.saturating_add(overhead),
            max_ratio: self.options.max_ratio,
            max_memory: self.options.max_memory,
            unrecognised: Unrecognised::Pass,
        };
        self.current = Some(Current {
            parent: head.path.parent(),
            decompress: Decompress::new(options, None),
            reader: Reader::Unknown {
                beginning: Vec::new(),
            },
        });
    }

    /// Works until there is an item for the next stage, or input is needed.
    fn advance(&mut self, current: &mut Current) -> Result<Option<Progress>, StepError> {
        loop {
            let unpacked = match &mut current.reader {
                Reader::Unknown { .. } => Unpacked::NeedsInput,
                Reader::Known(reader) => reader.pull()?,
            };
            let item = match unpacked {
                Unpacked::NeedsInput => {
                    match current.decompress.pull()? {
                        Pulled::NeedsInput => return Ok(None),
                        Pulled::Chunk(chunk) => self.supply(current, Some(chunk))?,
                        Pulled::Finished => self.supply(current, None)?,
                    }
                    continue;
                }
                Unpacked::Begin(head) => {
                    self.summary.members += 1;
                    Item::Begin(below(current.parent.as_ref(), head)?)
                }
                Unpacked::Data(bytes) => {
                    self.summary.output_bytes += bytes.len() as u64;
                    Item::Data(bytes)
                }
                Unpacked::End => Item::End,
                Unpacked::Finished => return Ok(Some(Progress::Finished)),
            };
            return Ok(Some(Progress::Item(item)));
        }
    }

    /// Gives the reader a chunk of what was compressed, or its end.
    fn supply(&self, current: &mut Current, chunk: Option<Bytes>) -> Result<(), StepError> {
        let beginning = match &mut current.reader {
            Reader::Known(reader) => {
                match chunk {
                    Some(chunk) => reader.feed(chunk)?,
                    None => reader.end(),
                }
                return Ok(());
            }
            Reader::Unknown { beginning } => beginning,
        };
        let is_ended = chunk.is_none();
        beginning.extend_from_slice(&chunk.unwrap_or_default());
        let Some(mut reader) = self.recognise(beginning, is_ended)? else {
            return Ok(());
        };
        reader.feed(Bytes::from(std::mem::take(beginning)))?;
        if is_ended {
            reader.end();
        }
        current.reader = Reader::Known(reader);
        Ok(())
    }

    fn recognise(
        &self,
        beginning: &[u8],
        is_ended: bool,
    ) -> Result<Option<Box<dyn Unpack>>, StepError> {
        if beginning.starts_with(b"PK\x03\x04") || beginning.starts_with(b"PK\x05\x06") {
            return Ok(Some(Box::new(Zip::new(
                &self.options,
                Arc::clone(&self.spool),
            ))));
        }
        let fault = match beginning.get(..BLOCK) {
            Some(block)
                if tar_header::has_checksum(block) || block.iter().all(|byte| *byte == 0) =>
            {
                return Ok(Some(Box::new(Tar::new(&self.options))));
            }
            None if !is_ended => return Ok(None),
            _ if beginning.starts_with(b"7z\xbc\xaf\x27\x1c") => {
                ArchiveFault::Unsupported("7z; have it sent as zip or tar".into())
            }
            _ if beginning.starts_with(b"Rar!") => {
                ArchiveFault::Unsupported("RAR; have it sent as zip or tar".into())
            }
            _ => ArchiveFault::NotAnArchive,
        };
        Err(StepError::Archive {
            format: "input",
            entry: None,
            fault,
        })
    }

    fn finish(&mut self, current: &Current) {
        let compression = current.decompress.summary();
        self.summary.format = compression.format.or(self.summary.format);
        self.summary.input_bytes += compression.input_bytes;
        if let Reader::Known(reader) = &current.reader {
            let format = reader.format();
            let entries = self.summary.members;
            self.summary.note = Some(match compression.format {
                Some(compression) => format!("{format} in {compression}, {entries} entries"),
                None => format!("{format}, {entries} entries"),
            });
        }
    }
}

enum Progress {
    Item(Item),
    Finished,
}

/// The entry as the caller sees it: beside the archive.
fn below(parent: Option<&RelPath>, mut head: Head) -> Result<Head, StepError> {
    if let Some(parent) = parent {
        let join = |path: &RelPath| {
            parent.join(path).map_err(|fault| StepError::OutputName {
                step: "extract",
                fault,
            })
        };
        head.path = join(&head.path)?;
        if let Node::HardLink { target } = &mut head.node {
            *target = join(target)?;
        }
    }
    Ok(head)
}

impl fmt::Debug for Extract {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Extract")
            .field("options", &self.options)
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

impl Stage for Extract {
    fn put(&mut self, item: Item) -> Result<(), StepError> {
        match (item, &mut self.current) {
            (Item::Begin(head), None) if head.node == Node::File => self.begin(&head),
            (Item::Data(bytes), Some(current)) => current.decompress.feed(bytes)?,
            (Item::End, Some(current)) => current.decompress.end(),
            (other @ (Item::Begin(_) | Item::End | Item::Finish), None) => {
                self.waiting.push_back(other);
            }
            _ => {
                return Err(StepError::OutOfTurn {
                    what: "files of a pipeline cannot be mixed",
                });
            }
        }
        Ok(())
    }

    fn pull(&mut self) -> Result<Option<Item>, StepError> {
        if let Some(item) = self.waiting.pop_front() {
            return Ok(Some(item));
        }
        let Some(mut current) = self.current.take() else {
            return Ok(None);
        };
        match self.advance(&mut current)? {
            Some(Progress::Item(item)) => {
                self.current = Some(current);
                Ok(Some(item))
            }
            Some(Progress::Finished) => {
                self.finish(&current);
                Ok(None)
            }
            None => {
                self.current = Some(current);
                Ok(None)
            }
        }
    }

    fn summary(&self) -> StepSummary {
        self.summary.clone()
    }
}
