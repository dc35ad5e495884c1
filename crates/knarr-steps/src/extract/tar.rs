//! Reads tar (ustar, GNU and pax), pushed and pulled, without a thread.
//!
//! Constraints: strict where readers are known to differ, because an archive that two programs read
//! differently is how files are smuggled past a scanner:
//! * a pax length that contradicts the header, a keyword twice, global paths or lengths, two long names for
//!   one entry, an extended header that is followed by no entry: refused;
//! * a directory or link that claims content: refused; sparse files and unknown types: refused;
//! * the end is two blocks of zeros, and nothing but zeros may follow.
//!
//! What cannot be seen: tar has no checksum over contents. A file cut in the padding after its end is
//! complete.

use bytes::{Buf as _, Bytes};
use knarr_core::path::printable;
use knarr_core::{RelPath, Timestamp};

use super::names::{MAX_LINK_BYTES, Names, Use, stays_inside};
use super::tar_header::{Header, Pax, parse_pax};
use super::{Unpack, Unpacked};
use crate::error::StepError;
use crate::faults::ArchiveFault;
use crate::item::{Head, Node};
use crate::spec::{ExtractOptions, Links};
use crate::step::CHUNK_BYTES;

pub(super) const BLOCK: usize = 512;
/// The longest extended header: names of 32 KiB fit twice.
const MAX_META_BYTES: u64 = 96 * 1024;

pub(super) struct Tar {
    links: Links,
    names: Names,
    state: State,
    input: Bytes,
    input_ended: bool,
    /// The header block, or the extended header, that is being put together.
    gathered: Vec<u8>,
    overrides: Overrides,
    entry: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Meta {
        kind: u8,
        left: u64,
        padding: u64,
    },
    Content {
        left: u64,
        padding: u64,
    },
    Padding {
        left: u64,
    },
    /// An entry without content was put out, and its end is due.
    NodeEnd,
    SecondZeroBlock,
    AfterEnd,
    Finished,
}

/// What extended headers say about the next entry.
#[derive(Debug, Default)]
struct Overrides {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Overrides {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl Tar {
    pub(super) fn new(options: &ExtractOptions) -> Self {
        Self {
            links: options.links,
            names: Names::new(*options),
            state: State::Header,
            input: Bytes::new(),
            input_ended: false,
            gathered: Vec::new(),
            overrides: Overrides::default(),
            entry: None,
        }
    }

    fn advance(&mut self) -> Result<Unpacked, ArchiveFault> {
        loop {
            match self.state {
                State::Finished => return Ok(Unpacked::Finished),
                State::NodeEnd => {
                    self.state = State::Header;
                    return Ok(Unpacked::End);
                }
                State::Content { left: 0, padding } => {
                    self.state = State::Padding { left: padding };
                    return Ok(Unpacked::End);
                }
                State::Padding { left: 0 } => self.state = State::Header,
                State::Meta {
                    kind,
                    left: 0,
                    padding,
                } => {
                    self.meta(kind)?;
                    self.state = State::Padding { left: padding };
                }
                _ if self.input.is_empty() => {
                    if !self.input_ended {
                        return Ok(Unpacked::NeedsInput);
                    }
                    if self.state != State::AfterEnd {
                        return Err(ArchiveFault::Truncated);
                    }
                    self.state = State::Finished;
                }
                State::Header | State::SecondZeroBlock => {
                    if let Some(unpacked) = self.block()? {
                        return Ok(unpacked);
                    }
                }
                State::Meta {
                    kind,
                    left,
                    padding,
                } => {
                    let piece = self.take(left);
                    self.gathered.extend_from_slice(&piece);
                    let left = left - piece.len() as u64;
                    self.state = State::Meta {
                        kind,
                        left,
                        padding,
                    };
                }
                State::Padding { left } => {
                    let left = left - self.take(left).len() as u64;
                    self.state = State::Padding { left };
                }
                State::Content { left, padding } => {
                    let piece = self.take(left.min(CHUNK_BYTES as u64));
                    let left = left - piece.len() as u64;
                    self.state = State::Content { left, padding };
                    return Ok(Unpacked::Data(piece));
                }
                State::AfterEnd => {
                    let rest = std::mem::take(&mut self.input);
                    if rest.iter().any(|byte| *byte != 0) {
                        return Err(ArchiveFault::TrailingGarbage);
                    }
                }
            }
        }
    }

    /// The next bytes of input, at most so many.
    fn take(&mut self, most: u64) -> Bytes {
        let length = usize::try_from(most).unwrap_or(usize::MAX);
        self.input.split_to(length.min(self.input.len()))
    }

    /// Puts a block together and reads it.
    fn block(&mut self) -> Result<Option<Unpacked>, ArchiveFault> {
        let missing = BLOCK - self.gathered.len();
        let piece = self.input.get(..missing.min(self.input.len()));
        let piece = piece.unwrap_or_default();
        self.gathered.extend_from_slice(piece);
        let used = piece.len();
        self.input.advance(used);
        if self.gathered.len() < BLOCK {
            return Ok(None);
        }
        let block = std::mem::take(&mut self.gathered);
        let is_zero = block.iter().all(|byte| *byte == 0);
        if self.state == State::SecondZeroBlock {
            if !is_zero {
                return Err(ArchiveFault::TrailingGarbage);
            }
            self.state = State::AfterEnd;
            return Ok(None);
        }
        if is_zero {
            if !self.overrides.is_empty() {
                return Err(ArchiveFault::Corrupt(
                    "an extended header without its entry".into(),
                ));
            }
            self.state = State::SecondZeroBlock;
            return Ok(None);
        }
        self.header(&Header::parse(&block)?)
    }

    fn header(&mut self, header: &Header) -> Result<Option<Unpacked>, ArchiveFault> {
        if matches!(header.kind, b'L' | b'K' | b'x' | b'g') {
            if header.size > MAX_META_BYTES {
                return Err(ArchiveFault::Corrupt(
                    "an extended header is longer than 96 KiB".into(),
                ));
            }
            self.state = State::Meta {
                kind: header.kind,
                left: header.size,
                padding: padding(header.size),
            };
            return Ok(None);
        }
        let overrides = std::mem::take(&mut self.overrides);
        let pax = overrides.pax.unwrap_or_default();
        let name = one_of(pax.path, overrides.long_name, &header.name)?;
        let link = one_of(pax.link, overrides.long_link, &header.link)?;
        self.entry = Some(printable(&name).to_string());
        let size = match pax.size {
            Some(size) if header.size != 0 && header.size != size => {
                return Err(ArchiveFault::Corrupt("two lengths for one entry".into()));
            }
            Some(size) => size,
            None => header.size,
        };
        let mtime = pax.mtime.unwrap_or(header.mtime);
        let kind = if header.kind == 0 && name.last() == Some(&b'/') {
            b'5'
        } else {
            header.kind
        };
        match kind {
            0 | b'0' | b'7' => self.file(&name, size, header.mode, mtime).map(Some),
            _ if size != 0 => Err(ArchiveFault::Corrupt(
                "an entry that is no file has content".into(),
            )),
            b'5' => {
                self.state = State::NodeEnd;
                match self.names.admit(&name, Use::Directory)? {
                    Some(path) => Ok(Some(begin(path, Node::Directory, header.mode, mtime))),
                    None => {
                        self.state = State::Header;
                        Ok(None)
                    }
                }
            }
            b'1' | b'2' => self.link(kind, &name, &link, header.mode, mtime),
            b'3' | b'4' => Err(ArchiveFault::Special("device")),
            b'6' => Err(ArchiveFault::Special("pipe")),
            b'S' => Err(ArchiveFault::Unsupported("a sparse file".into())),
            other => {
                let detail = format!("an entry of the type {}", printable(&[other]));
                Err(ArchiveFault::Unsupported(detail.into()))
            }
        }
    }

    fn file(
        &mut self,
        name: &[u8],
        size: u64,
        mode: u32,
        mtime: Timestamp,
    ) -> Result<Unpacked, ArchiveFault> {
        let path = self.names.admit(name, Use::File)?;
        let path = path.ok_or(ArchiveFault::Name(knarr_core::path::PathError::Empty))?;
        // The decompression before this has its own ratio; what is not compressed does not expand.
        self.names.count(size, u64::MAX)?;
        self.state = State::Content {
            left: size,
            padding: padding(size),
        };
        let mut head = Head::file(path);
        head.size = Some(size);
        (head.mode, head.mtime) = (Some(mode & 0o777), Some(mtime));
        Ok(Unpacked::Begin(head))
    }

    fn link(
        &mut self,
        kind: u8,
        name: &[u8],
        target: &[u8],
        mode: u32,
        mtime: Timestamp,
    ) -> Result<Option<Unpacked>, ArchiveFault> {
        match self.links {
            Links::Refuse => return Err(ArchiveFault::Link("`links: refuse` allows none")),
            // Its name is taken all the same: nothing may come in its place or below it.
            Links::Skip => {
                self.names.admit(name, Use::Link)?;
                return Ok(None);
            }
            Links::Inside => {}
        }
        let path = self.names.admit(name, Use::Link)?;
        let path = path.ok_or(ArchiveFault::Name(knarr_core::path::PathError::Empty))?;
        let node = if kind == b'2' {
            stays_inside(&path, target)?;
            Node::Symlink {
                target: target.into(),
            }
        } else {
            if target.len() > MAX_LINK_BYTES {
                return Err(ArchiveFault::Link("its target is no path"));
            }
            let target = target.strip_prefix(b"./").unwrap_or(target);
            let target = RelPath::new(target)
                .map_err(|_| ArchiveFault::Link("its target lies outside of the archive"))?;
            if !self.names.has_file(&target) {
                return Err(ArchiveFault::Link(
                    "its target is no file that came before in the archive",
                ));
            }
            Node::HardLink { target }
        };
        self.state = State::NodeEnd;
        Ok(Some(begin(path, node, mode, mtime)))
    }

    /// Takes in an extended header that is complete.
    fn meta(&mut self, kind: u8) -> Result<(), ArchiveFault> {
        let mut content = std::mem::take(&mut self.gathered);
        let twice =
            || ArchiveFault::Corrupt("two extended headers of one kind for one entry".into());
        match kind {
            b'x' => {
                let pax = parse_pax(&content)?;
                if self.overrides.pax.replace(pax).is_some() {
                    return Err(twice());
                }
            }
            // Comments and the like; what would change later entries is refused.
            b'g' => {
                if parse_pax(&content)?.changes_entries() {
                    return Err(ArchiveFault::Unsupported(
                        "names or lengths for all entries that follow".into(),
                    ));
                }
            }
            _ => {
                if content.last() == Some(&0) {
                    content.pop();
                }
                if content.contains(&0) {
                    return Err(ArchiveFault::Corrupt("a long name with a NUL byte".into()));
                }
                let slot = if kind == b'L' {
                    &mut self.overrides.long_name
                } else {
                    &mut self.overrides.long_link
                };
                if slot.replace(content).is_some() {
                    return Err(twice());
                }
            }
        }
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn one_of(
    pax: Option<Vec<u8>>,
    long: Option<Vec<u8>>,
    short: &[u8],
) -> Result<Vec<u8>, ArchiveFault> {
    match (pax, long) {
        (Some(_), Some(_)) => Err(ArchiveFault::Corrupt("two names for one entry".into())),
        (Some(name), None) | (None, Some(name)) => Ok(name),
        (None, None) => Ok(short.to_vec()),
    }
}

fn begin(path: RelPath, node: Node, mode: u32, mtime: Timestamp) -> Unpacked {
    let mut head = Head::new(path, node);
    (head.mode, head.mtime) = (Some(mode & 0o777), Some(mtime));
    Unpacked::Begin(head)
}

impl Unpack for Tar {
    fn feed(&mut self, input: Bytes) -> Result<(), StepError> {
        self.input = input;
        Ok(())
    }

    fn end(&mut self) {
        self.input_ended = true;
    }

    fn pull(&mut self) -> Result<Unpacked, StepError> {
        self.advance().map_err(|fault| StepError::Archive {
            format: "tar",
            entry: self.entry.clone(),
            fault,
        })
    }

    fn format(&self) -> &'static str {
        "tar"
    }
}
