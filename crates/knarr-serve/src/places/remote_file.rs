//! A file of another place that a client has open.
//!
//! Constraints: reading holds one chunk of the place's reader. Writing holds at most [`WINDOW_BYTES`] that came before what
//! stands before them; a client that writes further ahead is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf as _, Bytes};
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_remote::{ReadOptions, Reader, Upload};
use knarr_sftp::codec::{Attributes, FilesystemStatistics};
use knarr_sftp::server::{Closed, FileError, OpenFile, Upload as Uploaded};

use super::remote::{Shared, told};
use super::remote_directory::attributes_of;

/// How far ahead of what is missing a client may write, in bytes.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// The most pieces that may be ahead, however short they are.
const AHEAD_PIECES: usize = 4_096;
/// A gap that is read over rather than asked for anew, in bytes.
const SKIP_BYTES: u64 = 1024 * 1024;

/// A file that is read.
pub(crate) struct ReadFile {
    shared: Arc<Shared>,
    path: RelPath,
    entry: Entry,
    reader: Option<Box<dyn Reader>>,
    /// Where `chunk` begins.
    position: u64,
    chunk: Bytes,
}

impl ReadFile {
    pub(crate) async fn open(shared: Arc<Shared>, path: RelPath) -> Result<Self, FileError> {
        let reader = shared.remote.read(&path, ReadOptions::default()).await;
        let reader = reader.map_err(|error| told(&error))?;
        Ok(Self {
            entry: reader.entry().clone(),
            shared,
            path,
            reader: Some(reader),
            position: 0,
            chunk: Bytes::new(),
        })
    }

    /// Goes to `offset`: over a small gap by reading, else by asking anew for the same version.
    async fn seek(&mut self, offset: u64) -> Result<(), FileError> {
        let gap = offset.checked_sub(self.position);
        if self.reader.is_none() || gap.is_none_or(|gap| gap > SKIP_BYTES + self.chunk.len() as u64)
        {
            let options = ReadOptions {
                offset,
                expected: Some(self.entry.fingerprint()),
            };
            self.reader = None;
            let reader = self.shared.remote.read(&self.path, options).await;
            self.reader = Some(reader.map_err(|error| told(&error))?);
            self.chunk = Bytes::new();
            self.position = offset;
        }
        while self.position < offset {
            if self.chunk.is_empty() && !self.fill().await? {
                return Ok(());
            }
            let step = usize::try_from(offset - self.position).unwrap_or(usize::MAX);
            let step = step.min(self.chunk.len());
            self.chunk.advance(step);
            self.position += step as u64;
        }
        Ok(())
    }

    /// Gets the next chunk. Says whether there is one.
    async fn fill(&mut self) -> Result<bool, FileError> {
        let Some(reader) = &mut self.reader else {
            return Ok(false);
        };
        match reader.next().await {
            Ok(Some(chunk)) => {
                self.chunk = chunk;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                self.reader = None;
                Err(told(&error))
            }
        }
    }
}

#[async_trait]
impl OpenFile for ReadFile {
    async fn read_at(&mut self, offset: u64, into: &mut Vec<u8>) -> Result<usize, FileError> {
        if offset >= self.entry.size {
            return Ok(0);
        }
        self.seek(offset).await?;
        let before = into.len();
        let wanted = into.capacity() - before;
        while into.len() - before < wanted {
            if self.chunk.is_empty() && !self.fill().await? {
                break;
            }
            let step = self.chunk.len().min(wanted - (into.len() - before));
            into.extend_from_slice(self.chunk.get(..step).unwrap_or_default());
            self.chunk.advance(step);
            self.position += step as u64;
        }
        Ok(into.len() - before)
    }

    async fn write_at(&mut self, _offset: u64, _data: &[Bytes]) -> Result<(), FileError> {
        Err(FileError::Denied {
            reason: "the file was opened for reading",
        })
    }

    async fn stat(&mut self) -> Result<Attributes, FileError> {
        Ok(attributes_of(&self.entry))
    }

    async fn set_attributes(&mut self, _attributes: &Attributes) -> Result<(), FileError> {
        Err(FileError::Denied {
            reason: "the file was opened for reading",
        })
    }

    async fn sync(&mut self) -> Result<(), FileError> {
        Err(FileError::Unsupported)
    }

    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError> {
        Err(FileError::Unsupported)
    }

    async fn close(self: Box<Self>) -> Result<Closed, FileError> {
        Ok(Closed::default())
    }
}

/// A file that is uploaded.
pub(crate) struct WriteFile {
    shared: Arc<Shared>,
    path: RelPath,
    upload: Option<Box<dyn Upload>>,
    hasher: blake3::Hasher,
    /// All before it was handed on.
    position: u64,
    /// What came before what stands before it.
    ahead: BTreeMap<u64, Bytes>,
    ahead_bytes: usize,
    /// What the account was charged, in bytes.
    charged_bytes: u64,
    declared_bytes: Option<u64>,
    /// What it takes the place of.
    there: Option<Entry>,
    is_broken: bool,
}

impl WriteFile {
    pub(crate) fn new(
        shared: Arc<Shared>,
        path: RelPath,
        upload: Box<dyn Upload>,
        declared_bytes: Option<u64>,
        there: Option<Entry>,
    ) -> Self {
        Self {
            shared,
            path,
            upload: Some(upload),
            hasher: blake3::Hasher::new(),
            position: 0,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
            charged_bytes: 0,
            declared_bytes,
            there,
            is_broken: false,
        }
    }

    async fn take(&mut self, offset: u64, data: &[Bytes]) -> Result<(), FileError> {
        let mut at = offset;
        for piece in data {
            if at == self.position {
                self.hand_on(piece.clone()).await?;
            } else {
                self.keep(at, piece)?;
            }
            at += piece.len() as u64;
        }
        while let Some(next) = self.ahead.remove(&self.position) {
            self.ahead_bytes -= next.len();
            self.hand_on(next).await?;
        }
        Ok(())
    }

    fn keep(&mut self, offset: u64, piece: &Bytes) -> Result<(), FileError> {
        let end = offset.saturating_add(piece.len() as u64);
        let overlaps = offset < self.position
            || self
                .ahead
                .range(..end)
                .next_back()
                .is_some_and(|(begin, other)| begin.saturating_add(other.len() as u64) > offset);
        if overlaps {
            return Err(FileError::Refused {
                reason: "files of this place are written once: what was written cannot be changed",
            });
        }
        self.ahead_bytes += piece.len();
        if self.ahead_bytes > WINDOW_BYTES || self.ahead.len() >= AHEAD_PIECES {
            return Err(FileError::Refused {
                reason: "files of this place are written from their beginning: this is too far ahead",
            });
        }
        self.ahead.insert(offset, piece.clone());
        Ok(())
    }

    async fn hand_on(&mut self, piece: Bytes) -> Result<(), FileError> {
        if let Some(account) = self.shared.policy.account() {
            account.take_bytes(piece.len() as u64)?;
            self.charged_bytes += piece.len() as u64;
        }
        self.hasher.update(&piece);
        self.position += piece.len() as u64;
        let Some(upload) = &mut self.upload else {
            return Err(incomplete());
        };
        upload.write(piece).await.map_err(|error| told(&error))
    }

    async fn commit(&mut self) -> Result<(), FileError> {
        let is_short = self
            .declared_bytes
            .is_some_and(|declared| self.position < declared);
        if self.is_broken || !self.ahead.is_empty() || is_short {
            return Err(incomplete());
        }
        let upload = self.upload.take().ok_or_else(incomplete)?;
        let hash = ContentHash::from(self.hasher.finalize());
        let staged = upload.stage(self.position, hash).await;
        let staged = staged.map_err(|error| told(&error))?;
        let committer = Arc::clone(&staged.committer);
        let committed = committer.commit(vec![staged]).await.pop();
        committed
            .ok_or_else(incomplete)?
            .map_err(|error| told(&error))?;
        if let (Some(account), Some(there)) = (self.shared.policy.account(), &self.there) {
            account.give_bytes(there.size);
        }
        // It stays: nothing is given back when this is dropped.
        self.charged_bytes = 0;
        self.there = Some(Entry::file(self.path.clone(), self.position));
        Ok(())
    }
}

const fn incomplete() -> FileError {
    FileError::Refused {
        reason: "not all was written: the upload is given up, send it again",
    }
}

impl Drop for WriteFile {
    /// What was not committed is removed at the place, as far as it still can be.
    fn drop(&mut self) {
        if let Some(account) = self.shared.policy.account() {
            account.give_bytes(self.charged_bytes);
            if self.there.is_none() {
                account.give_file();
            }
        }
        if let (Some(upload), Ok(runtime)) =
            (self.upload.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(upload.abort());
        }
    }
}

#[async_trait]
impl OpenFile for WriteFile {
    async fn read_at(&mut self, _offset: u64, _into: &mut Vec<u8>) -> Result<usize, FileError> {
        Err(FileError::Denied {
            reason: "the file was opened for writing",
        })
    }

    async fn write_at(&mut self, offset: u64, data: &[Bytes]) -> Result<(), FileError> {
        let outcome = self.take(offset, data).await;
        self.is_broken |= outcome.is_err();
        outcome
    }

    async fn stat(&mut self) -> Result<Attributes, FileError> {
        let entry = Entry::file(self.path.clone(), self.position);
        Ok(attributes_of(&entry))
    }

    async fn set_attributes(&mut self, attributes: &Attributes) -> Result<(), FileError> {
        // Times and permissions are what the place makes them; a length is what was written.
        match attributes.size {
            Some(size) if size != self.position => Err(FileError::Unsupported),
            _ => Ok(()),
        }
    }

    async fn sync(&mut self) -> Result<(), FileError> {
        Err(FileError::Unsupported)
    }

    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError> {
        Err(FileError::Unsupported)
    }

    async fn close(mut self: Box<Self>) -> Result<Closed, FileError> {
        self.commit().await?;
        let mut path = vec![b'/'];
        path.extend_from_slice(self.path.as_bytes());
        Ok(Closed {
            upload: Some(Uploaded {
                path,
                length_bytes: self.position,
            }),
        })
    }
}
