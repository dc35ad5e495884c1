//! Writes tar: ustar headers, and pax records for what does not fit into them.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use bytes::Bytes;

use super::{Pack, pass};
use crate::context::Spool;
use crate::error::StepError;
use crate::item::{Head, Node};
use crate::step::{CHUNK_BYTES, PassThrough};

const BLOCK: usize = 512;
/// The largest number of eleven octal digits.
const MOST_OCTAL: u64 = 0o777_7777_7777;
const NAME_BYTES: usize = 100;

pub(super) struct TarWriter {
    spool: Arc<dyn Spool>,
    output: PassThrough,
    current: Option<Current>,
    /// The length of the entry that is copied from the temporary file, and what is left of it.
    copying: Option<Copying>,
    file: Option<File>,
}

struct Current {
    head: Head,
    written: u64,
    is_spooled: bool,
}

struct Copying {
    size: u64,
    left: u64,
}

impl TarWriter {
    pub(super) fn new(spool: Arc<dyn Spool>) -> Self {
        Self {
            spool,
            output: PassThrough::default(),
            current: None,
            copying: None,
            file: None,
        }
    }

    /// The temporary file, emptied.
    fn empty_file(&mut self) -> std::io::Result<()> {
        match &mut self.file {
            Some(file) => {
                file.set_len(0)?;
                file.seek(SeekFrom::Start(0))?;
            }
            None => self.file = Some(self.spool.open()?),
        }
        Ok(())
    }

    fn copy(&mut self) -> std::io::Result<Option<Bytes>> {
        let (Some(copying), Some(file)) = (&mut self.copying, &mut self.file) else {
            return Ok(None);
        };
        if copying.left == 0 {
            let padding = padding(copying.size);
            self.copying = None;
            return Ok((!padding.is_empty()).then(|| Bytes::from(padding)));
        }
        let piece = copying.left.min(CHUNK_BYTES as u64);
        let mut buffer = vec![0; usize::try_from(piece).unwrap_or(CHUNK_BYTES)];
        file.read_exact(&mut buffer)?;
        copying.left -= piece;
        Ok(Some(Bytes::from(buffer)))
    }
}

fn spool_error(error: &std::io::Error) -> StepError {
    StepError::spool("archive", error)
}

impl Pack for TarWriter {
    fn begin(&mut self, head: Head) -> Result<(), StepError> {
        let size = match (&head.node, head.size) {
            (Node::File, size) => size,
            _ => Some(0),
        };
        let is_spooled = size.is_none();
        match size {
            Some(size) => pass(&mut self.output, headers(&head, size)),
            None => self.empty_file().map_err(|error| spool_error(&error))?,
        }
        self.current = Some(Current {
            head,
            written: 0,
            is_spooled,
        });
        Ok(())
    }

    fn data(&mut self, bytes: Bytes) -> Result<(), StepError> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        current.written += bytes.len() as u64;
        if current.is_spooled {
            if let Some(file) = &mut self.file {
                file.write_all(&bytes)
                    .map_err(|error| spool_error(&error))?;
            }
        } else if current.written > current.head.size.unwrap_or(0) {
            let path = current.head.path.to_string();
            return Err(StepError::SizeChanged { path });
        } else {
            self.output.put(bytes);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), StepError> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        let size = current.written;
        if current.is_spooled {
            pass(&mut self.output, headers(&current.head, size));
            if let Some(file) = &mut self.file {
                file.seek(SeekFrom::Start(0))
                    .map_err(|error| spool_error(&error))?;
            }
            self.copying = Some(Copying { size, left: size });
        } else if current.head.node == Node::File && current.head.size != Some(size) {
            let path = current.head.path.to_string();
            return Err(StepError::SizeChanged { path });
        } else {
            pass(&mut self.output, padding(size));
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), StepError> {
        pass(&mut self.output, vec![0; 2 * BLOCK]);
        Ok(())
    }

    fn pull(&mut self) -> Result<Option<Bytes>, StepError> {
        if let Some(bytes) = self.output.take() {
            return Ok(Some(bytes));
        }
        self.copy().map_err(|error| spool_error(&error))
    }
}

fn padding(size: u64) -> Vec<u8> {
    let missing = size.next_multiple_of(BLOCK as u64) - size;
    vec![0; usize::try_from(missing).unwrap_or_default()]
}

/// The header of an entry, with an extended one before it if something does not fit.
fn headers(head: &Head, size: u64) -> Vec<u8> {
    let mut name = head.path.as_bytes().to_vec();
    let (kind, link, default_mode) = match &head.node {
        Node::File => (b'0', &b""[..], 0o644),
        Node::Directory => {
            name.push(b'/');
            (b'5', &b""[..], 0o755)
        }
        Node::Symlink { target } => (b'2', &**target, 0o777),
        Node::HardLink { target } => (b'1', target.as_bytes(), 0o644),
    };
    let mtime = head.mtime.map_or(0, knarr_core::Timestamp::seconds);
    let mut records = Vec::new();
    if name.len() > NAME_BYTES {
        record(&mut records, b"path", &name);
    }
    if link.len() > NAME_BYTES {
        record(&mut records, b"linkpath", link);
    }
    if size > MOST_OCTAL {
        record(&mut records, b"size", size.to_string().as_bytes());
    }
    if u64::try_from(mtime).is_err() {
        record(&mut records, b"mtime", mtime.to_string().as_bytes());
    }
    let mut out = Vec::new();
    if !records.is_empty() {
        let length = records.len() as u64;
        out.extend(block(b"././@PaxHeader", b"", b'x', 0o644, length, 0));
        out.extend(&records);
        out.extend(padding(length));
    }
    let mode = head.mode.unwrap_or(default_mode) & 0o777;
    let mtime = u64::try_from(mtime).unwrap_or(0).min(MOST_OCTAL);
    let size = if size > MOST_OCTAL { 0 } else { size };
    out.extend(block(&name, link, kind, mode, size, mtime));
    out
}

/// `length key=value\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend(length.to_string().bytes());
    out.push(b' ');
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}

fn block(name: &[u8], link: &[u8], kind: u8, mode: u32, size: u64, mtime: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block, 0, name.get(..NAME_BYTES).unwrap_or(name));
    put(&mut block, 100, format!("{mode:07o}\0").as_bytes());
    put(&mut block, 108, b"0000000\x000000000\0");
    put(&mut block, 124, format!("{size:011o}\0").as_bytes());
    put(&mut block, 136, format!("{mtime:011o}\0").as_bytes());
    put(&mut block, 148, b"        ");
    put(&mut block, 156, &[kind]);
    put(&mut block, 157, link.get(..NAME_BYTES).unwrap_or(link));
    put(&mut block, 257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    block
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    if let Some(field) = block.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}
