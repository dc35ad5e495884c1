//! Reading: small files in one go, large ones by a thread of their own that reads ahead.

use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::{Entry, RelPath};
use knarr_fs::{FsError, Root};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::error::from_fs;
use super::{CHUNKS_AHEAD, SMALL_BYTES, blocking, lost};
use crate::buffers::Buffers;
use crate::error::{ErrorKind, RemoteError};
use crate::remote::{ReadOptions, Reader};

/// How much of a large file is read at once. Large enough that crossing threads does not count,
/// small enough that the chunks under way stay in the processor's cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Opens the file and, if it is small, reads it and looks at it again. Blocks.
pub(super) fn open(
    root: Arc<Root>,
    path: RelPath,
    options: &ReadOptions,
) -> Result<Box<dyn Reader>, RemoteError> {
    let (file, entry) = root
        .open_file(&path)
        .map_err(|error| from_fs("open", Some(&path), error))?;
    if options
        .expected
        .as_ref()
        .is_some_and(|expected| !expected.still_describes(&entry))
    {
        return Err(changed(&path, "it is not the version that was seen before"));
    }
    let Some(length) = entry.size.checked_sub(options.offset) else {
        return Err(changed(
            &path,
            "it is shorter than what was read of it before",
        ));
    };
    if length > SMALL_BYTES {
        return Ok(Box::new(LargeReader::start(
            root,
            file,
            entry,
            options.offset,
        )));
    }
    let reader = SmallReader::read(root, &file, entry, options.offset)?;
    Ok(Box::new(reader))
}

/// Reads a file whole that is still as it was `seen`. The content holds `room` as long as it is held
/// itself. Blocks.
pub(super) fn read_small(
    root: Arc<Root>,
    seen: &Entry,
    room: OwnedSemaphorePermit,
) -> Option<SmallReader> {
    let (file, entry) = root.open_file(&seen.path).ok()?;
    if entry != *seen {
        return None;
    }
    let reader = SmallReader::read(root, &file, entry, 0).ok()?;
    Some(SmallReader {
        _room: Some(room),
        ..reader
    })
}

/// Exactly `length` bytes from `offset`, into an empty buffer.
fn chunk(
    file: &File,
    path: &RelPath,
    offset: u64,
    length: u64,
    buffer: &mut Vec<u8>,
) -> Result<(), RemoteError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    buffer.reserve_exact(length);
    while buffer.len() < length {
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file, spare_capacity(buffer), at) {
            Ok(0) => return Err(changed(path, "it became shorter while it was read")),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(from_errno(path, errno)),
        }
    }
    // A capacity beyond what was asked for may have been filled, too, if the file grew.
    buffer.truncate(length);
    Ok(())
}

fn from_errno(path: &RelPath, errno: Errno) -> RemoteError {
    let source = std::io::Error::from(errno);
    let path_shown = std::path::PathBuf::from(path.as_os_str()).into();
    from_fs(
        "read",
        Some(path),
        FsError::Io {
            operation: "read",
            path: path_shown,
            source,
        },
    )
}

fn look_again(root: &Root, path: &RelPath) -> Result<Entry, RemoteError> {
    match root.stat(path) {
        Ok(Some(entry)) => Ok(entry),
        Ok(None) => Err(RemoteError::new(
            ErrorKind::NotFound,
            "look again at",
            "it was removed while it was read",
        )
        .at(path)),
        Err(error) => Err(from_fs("look again at", Some(path), error)),
    }
}

fn changed(path: &RelPath, message: &str) -> RemoteError {
    RemoteError::new(ErrorKind::Changed, "read", message).at(path)
}

/// A file that was read whole when it was opened.
pub(super) struct SmallReader {
    root: Arc<Root>,
    entry: Entry,
    content: Option<Bytes>,
    /// What it was right after the last byte.
    after: Option<Result<Entry, RemoteError>>,
    /// What it takes of the memory for content that waits, if that is limited.
    _room: Option<OwnedSemaphorePermit>,
}

impl SmallReader {
    /// Reads from `offset` to the end, and looks at the file again. Blocks.
    fn read(root: Arc<Root>, file: &File, entry: Entry, offset: u64) -> Result<Self, RemoteError> {
        let mut content = Vec::new();
        let length = entry.size.saturating_sub(offset);
        if length > 0 {
            chunk(file, &entry.path, offset, length, &mut content)?;
        }
        let after = Some(look_again(&root, &entry.path));
        let content = (!content.is_empty()).then(|| Bytes::from(content));
        Ok(Self {
            root,
            entry,
            content,
            after,
            _room: None,
        })
    }
}

#[async_trait]
impl Reader for SmallReader {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        Ok(self.content.take())
    }

    async fn finish(&mut self) -> Result<Entry, RemoteError> {
        if let Some(after) = self.after.take() {
            return after;
        }
        let (root, path) = (Arc::clone(&self.root), self.entry.path.clone());
        blocking(move || look_again(&root, &path)).await
    }
}

/// A file that a thread reads ahead.
struct LargeReader {
    root: Arc<Root>,
    entry: Entry,
    chunks: mpsc::Receiver<Result<Bytes, RemoteError>>,
    thread: Option<JoinHandle<()>>,
}

impl LargeReader {
    fn start(root: Arc<Root>, file: File, entry: Entry, offset: u64) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let (path, end) = (entry.path.clone(), entry.size);
        // Ends by itself: at the end of the file, or when the reader is dropped.
        let thread = tokio::task::spawn_blocking(move || {
            let mut at = offset;
            let buffers = Buffers::new(CHUNK_BYTES);
            while at < end {
                let length = (CHUNK_BYTES as u64).min(end - at);
                let mut buffer = buffers.take();
                let read = chunk(&file, &path, at, length, buffer.bytes());
                let read = read.map(|()| buffer.freeze());
                let failed = read.is_err();
                if sender.blocking_send(read).is_err() || failed {
                    return;
                }
                at += length;
            }
        });
        Self {
            root,
            entry,
            chunks,
            thread: Some(thread),
        }
    }
}

#[async_trait]
impl Reader for LargeReader {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        if let Some(chunk) = self.chunks.recv().await {
            return chunk.map(Some);
        }
        // The thread is through, or it is gone: a file cut short must not look like its end.
        match self.thread.take() {
            Some(thread) => thread.await.map(|()| None).map_err(lost),
            None => Ok(None),
        }
    }

    async fn finish(&mut self) -> Result<Entry, RemoteError> {
        let (root, path) = (Arc::clone(&self.root), self.entry.path.clone());
        blocking(move || look_again(&root, &path)).await
    }
}
