//! What comes out of an archive, until the last byte of it was verified.
//!
//! It waits in two unnamed files of the state directory, which are gone when the process is: the contents,
//! one behind the other, and a list of what they are. So nothing of an archive that turns out to be broken
//! has ever been at the destination, and memory does not grow with the number of files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::{ContentHash, RelPath, Timestamp};
use knarr_steps::{Head, Node};
use serde::{Deserialize, Serialize};

use crate::steps::Steps;
use crate::transfer::{Outputs, TransferError};

/// How much is gathered before it is written.
const GATHER_BYTES: usize = 1 << 20;
/// The most hard links in one archive: they are kept in memory until it is known what they are links to.
const HARD_LINKS: usize = 10_000;

/// One thing that came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) path: RelPath,
    pub(super) mode: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) what: What,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    File(Content),
    Directory,
    Symlink { target: Vec<u8> },
}

/// Where the content of a file lies in the quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) hash: ContentHash,
}

impl Item {
    /// As the steps put it out.
    pub(super) fn head(&self) -> Head {
        let (node, size) = match &self.what {
            What::File(content) => (Node::File, Some(content.length)),
            What::Directory => (Node::Directory, None),
            What::Symlink { target } => {
                let target = target.clone().into_boxed_slice();
                (Node::Symlink { target }, None)
            }
        };
        Head {
            path: self.path.clone(),
            node,
            size,
            mode: self.mode,
            mtime: self.mtime,
        }
    }
}

/// Takes what comes out.
pub(super) struct Quarantine {
    contents: File,
    gathered: Vec<u8>,
    /// How much is in the file, without what is gathered.
    written: u64,
    list: BufWriter<File>,
    current: Option<Current>,
    links: BTreeMap<RelPath, Vec<Item>>,
    hard_links: usize,
}

struct Current {
    head: Head,
    offset: u64,
    hasher: blake3::Hasher,
}

/// What came out, verified.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) contents: File,
    list: File,
    /// Whether something at the destination had the name of one of them.
    pub(super) finds_taken: AtomicBool,
}

impl Quarantine {
    pub(super) fn open(steps: &Steps) -> io::Result<Self> {
        Ok(Self {
            contents: steps.unnamed_file()?,
            gathered: Vec::with_capacity(GATHER_BYTES),
            written: 0,
            list: BufWriter::new(steps.unnamed_file()?),
            current: None,
            links: BTreeMap::new(),
            hard_links: 0,
        })
    }

    fn position(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }

    /// Everything was verified. Blocks.
    pub(super) fn finish(mut self) -> io::Result<Verified> {
        self.flush()?;
        if let Some(target) = self.links.keys().next() {
            let message = format!("a hard link leads to \"{target}\", which did not come out");
            return Err(io::Error::other(message));
        }
        let mut list = self
            .list
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        list.rewind()?;
        Ok(Verified {
            contents: self.contents,
            list,
            finds_taken: AtomicBool::new(false),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.contents.write_all_at(&self.gathered, self.written)?;
        self.written += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    fn put(&mut self, chunk: &[u8]) -> io::Result<()> {
        for part in chunk.chunks(GATHER_BYTES) {
            if self.gathered.len() + part.len() > GATHER_BYTES {
                self.flush()?;
            }
            self.gathered.extend_from_slice(part);
        }
        Ok(())
    }

    fn note(&mut self, item: &Item) -> io::Result<()> {
        serde_json::to_writer(&mut self.list, item)?;
        self.list.write_all(b"\n")
    }

    fn complete(&mut self) -> io::Result<()> {
        let Some(Current {
            head,
            offset,
            hasher,
        }) = self.current.take()
        else {
            return Ok(());
        };
        let content = Content {
            offset,
            length: self.position() - offset,
            hash: hasher.finalize().into(),
        };
        let what = match head.node {
            Node::File => What::File(content),
            Node::Directory => What::Directory,
            Node::Symlink { target } => What::Symlink {
                target: target.into_vec(),
            },
            // Its content is that of a file which came before; where that lies is looked up at the end.
            Node::HardLink { target } => return self.hard_link(head.path, head.mode, target),
        };
        let item = Item {
            path: head.path,
            mode: head.mode,
            mtime: head.mtime,
            what,
        };
        self.note(&item)
    }

    /// A hard link is delivered as a file of its own.
    fn hard_link(&mut self, path: RelPath, mode: Option<u32>, target: RelPath) -> io::Result<()> {
        self.hard_links += 1;
        if self.hard_links > HARD_LINKS {
            let message = format!("it has more than {HARD_LINKS} hard links");
            return Err(io::Error::other(message));
        }
        let what = What::Directory;
        let item = Item {
            path,
            mode,
            mtime: None,
            what,
        };
        self.links.entry(target).or_default().push(item);
        Ok(())
    }

    /// Gives the hard links what they lead to. Blocks.
    fn resolve_links(&mut self) -> io::Result<()> {
        if self.links.is_empty() {
            return Ok(());
        }
        self.list.flush()?;
        let mut found = Vec::new();
        let file = self.list.get_ref().try_clone()?;
        let length = file.metadata()?.len();
        let reader = BufReader::new(FromStart {
            file: &file,
            at: 0,
            length,
        });
        for line in reader.lines() {
            let item: Item = serde_json::from_str(&line?)?;
            let Some(links) = self.links.remove(&item.path) else {
                continue;
            };
            let linked = |link: Item| Item {
                path: link.path,
                mode: item.mode,
                mtime: item.mtime,
                what: item.what.clone(),
            };
            found.extend(links.into_iter().map(linked));
        }
        for item in found {
            self.note(&item)?;
        }
        Ok(())
    }
}

/// Reads a file from its start, wherever its own position is.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
    length: u64,
}

impl io::Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let (part, _rest) = buffer.split_at_mut(wanted);
        let read = self.file.read_at(part, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[async_trait]
impl Outputs for Quarantine {
    async fn begin(&mut self, head: Head) -> Result<(), TransferError> {
        self.current = Some(Current {
            offset: self.position(),
            head,
            hasher: blake3::Hasher::new(),
        });
        Ok(())
    }

    async fn chunk(&mut self, chunk: Bytes) -> Result<(), TransferError> {
        if let Some(current) = &mut self.current {
            current.hasher.update(&chunk);
        }
        // Into the page cache, as a rule.
        self.put(&chunk).map_err(TransferError::Quarantine)
    }

    async fn end(&mut self) -> Result<(), TransferError> {
        self.complete().map_err(TransferError::Quarantine)
    }
}

impl Quarantine {
    /// Ends it: everything was verified. Blocks.
    pub(super) fn verified(mut self) -> io::Result<Verified> {
        self.resolve_links()?;
        self.finish()
    }
}

impl Verified {
    /// What came out, in its order. Blocks.
    pub(super) fn items(
        &self,
    ) -> io::Result<impl Iterator<Item = io::Result<Item>> + Send + use<>> {
        let mut list = self.list.try_clone()?;
        list.rewind()?;
        Ok(BufReader::new(list)
            .lines()
            .map(|line| Ok(serde_json::from_str(&line?)?)))
    }
}

#[cfg(test)]
mod tests {
    use knarr_core::ContentHash;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    fn head(name: &str, node: Node) -> Head {
        Head {
            path: path(name),
            node,
            size: None,
            mode: Some(0o640),
            mtime: None,
        }
    }

    async fn put(quarantine: &mut Quarantine, head: Head, content: &[u8]) {
        quarantine.begin(head).await.unwrap();
        for chunk in content.chunks(200_000) {
            quarantine
                .chunk(Bytes::copy_from_slice(chunk))
                .await
                .unwrap();
        }
        quarantine.end().await.unwrap();
    }

    #[tokio::test]
    async fn what_went_in_comes_out_with_links_as_files() {
        let state = tempfile::TempDir::new().unwrap();
        let steps = Steps::new(
            Vec::new(),
            knarr_steps::Keys::new(),
            state.path().to_owned(),
        );
        let mut quarantine = Quarantine::open(&steps).unwrap();
        let large: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        put(&mut quarantine, head("d", Node::Directory), b"").await;
        put(&mut quarantine, head("d/large", Node::File), &large).await;
        put(&mut quarantine, head("empty", Node::File), b"").await;
        let target = path("d/large");
        put(
            &mut quarantine,
            head("hard", Node::HardLink { target }),
            b"",
        )
        .await;
        let target = b"d/large".to_vec().into_boxed_slice();
        put(&mut quarantine, head("soft", Node::Symlink { target }), b"").await;
        let verified = quarantine.verified().unwrap();
        for _ in 0..2 {
            let items: Vec<Item> = verified.items().unwrap().map(Result::unwrap).collect();
            let names: Vec<String> = items.iter().map(|item| item.path.to_string()).collect();
            assert_eq!(names, ["d", "d/large", "empty", "soft", "hard"]);
            for name in ["d/large", "hard"] {
                let item = items.iter().find(|item| item.path == path(name)).unwrap();
                let What::File(content) = &item.what else {
                    panic!("{item:?}");
                };
                let mut bytes = vec![0; large.len()];
                verified
                    .contents
                    .read_exact_at(&mut bytes, content.offset)
                    .unwrap();
                assert_eq!(content.hash, ContentHash::of(&large));
                assert!(bytes == large);
            }
        }
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_hard_link_to_what_is_not_there_is_an_error() {
        let state = tempfile::TempDir::new().unwrap();
        let steps = Steps::new(
            Vec::new(),
            knarr_steps::Keys::new(),
            state.path().to_owned(),
        );
        let mut quarantine = Quarantine::open(&steps).unwrap();
        let target = path("missing");
        put(
            &mut quarantine,
            head("hard", Node::HardLink { target }),
            b"",
        )
        .await;
        let error = quarantine.verified().unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
