//! Any bytes as the stream of a client: what the fuzz target and the replay of its corpus run.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Buf as _, Bytes, BytesMut};

use crate::client::{PacketSink, PacketSource};
use crate::codec::{
    Attributes, FilesystemStatistics, LENGTH_BYTES, NameEntry, OpenFlags, ServerPacket,
};
use crate::server::{
    Closed, DirectoryBatch, Execution, FileError, FileSystem, HashRange, OpenDirectory, OpenFile,
    ServeLimits, ServeOptions, Silent, Upload, UserNames, serve,
};

/// Longest packet that is taken here, in bytes: small, so that what is beyond it is found.
const PACKET_BYTES: usize = 4096;
/// Files that may be open here.
const OPEN_HANDLES: usize = 8;
/// The longest file here, in bytes.
const FILE_BYTES: usize = 64 * 1024;

/// Serves `stream`, cut into pieces of `piece_bytes`, with a file system in memory.
///
/// # Panics
///
/// If the server panics, does not end, sends what cannot be read, sends more replies than it got requests, or
/// lets a client keep more than its limits say. All of these are bugs.
pub fn exercise(stream: &Bytes, piece_bytes: usize) {
    let source = Pieces {
        left: stream.clone(),
        piece_bytes: piece_bytes.max(1),
    };
    let received = Arc::new(Mutex::new(BytesMut::new()));
    let sink = Collected(Arc::clone(&received));
    let options = ServeOptions {
        limits: ServeLimits {
            packet_bytes: PACKET_BYTES,
            read_bytes: 1024,
            request_bytes: 16 * 1024,
            reply_bytes: 8 * 1024,
            open_handles: OPEN_HANDLES,
            directory_names: 3,
            ..ServeLimits::default()
        },
        execution: Execution::OnThisTask,
        ..ServeOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime of one thread needs nothing");
    let served = serve(
        source,
        sink,
        Arc::new(Memory::default()),
        options,
        Arc::new(Silent),
    );
    // Whether it ends well or with a reason is up to the bytes.
    runtime.block_on(served).ok();
    let mut received =
        std::mem::take(&mut *received.lock().unwrap_or_else(PoisonError::into_inner));
    let mut replies = 0;
    while received.len() >= LENGTH_BYTES {
        let length = received.get_u32() as usize;
        assert!(length <= received.len(), "the last packet is cut");
        let body = received.split_to(length).freeze();
        assert!(
            ServerPacket::decode(body).is_ok(),
            "the server sent what is no packet"
        );
        replies += 1;
    }
    assert!(received.is_empty(), "the last packet is cut");
    // The shortest packet has a length and a type.
    assert!(
        replies <= stream.len() / (LENGTH_BYTES + 1),
        "more replies than requests"
    );
}

struct Pieces {
    left: Bytes,
    piece_bytes: usize,
}

impl PacketSource for Pieces {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let bytes = self.left.len().min(self.piece_bytes);
        Ok((bytes > 0).then(|| self.left.split_to(bytes)))
    }
}

struct Collected(Arc<Mutex<BytesMut>>);

impl PacketSink for Collected {
    async fn send(&mut self, packets: Bytes) -> io::Result<()> {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        received.extend_from_slice(&packets);
        Ok(())
    }
}

type Content = Arc<Mutex<Vec<u8>>>;

/// One file, whatever it is called, and one directory.
#[derive(Default)]
struct Memory {
    content: Content,
    open: Arc<()>,
}

struct MemoryFile {
    content: Content,
    flags: OpenFlags,
    written_bytes: u64,
    _open: Arc<()>,
}

struct MemoryDirectory {
    names: u8,
    _open: Arc<()>,
}

fn locked(content: &Content) -> std::sync::MutexGuard<'_, Vec<u8>> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn too_long() -> FileError {
    FileError::Refused {
        reason: "no file is that long here",
    }
}

fn resize(content: &Content, size: u64) -> Result<(), FileError> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > FILE_BYTES {
        return Err(too_long());
    }
    locked(content).resize(size, 0);
    Ok(())
}

impl Memory {
    fn attributes(&self, path: &[u8]) -> Result<Attributes, FileError> {
        if path.is_empty() || path.ends_with(b"nothing") {
            return Err(FileError::NotFound);
        }
        Ok(Attributes {
            size: Some(locked(&self.content).len() as u64),
            ..Attributes::with_permissions(0o100_644)
        })
    }

    fn change(path: &[u8]) -> Result<(), FileError> {
        match path.first() {
            None => Err(FileError::NotFound),
            Some(b'!') => Err(FileError::Denied {
                reason: "nothing there may be changed",
            }),
            Some(_) => Ok(()),
        }
    }

    fn set(&self, path: &[u8], attributes: &Attributes) -> Result<(), FileError> {
        Self::change(path)?;
        attributes
            .size
            .map_or(Ok(()), |size| resize(&self.content, size))
    }

    /// One more thing is open.
    fn opened(&self) -> Arc<()> {
        assert!(
            // `check-file-name` opens one more, and closes it before its reply.
            Arc::strong_count(&self.open) <= OPEN_HANDLES + 1,
            "more is open than the limit says"
        );
        Arc::clone(&self.open)
    }
}

#[async_trait]
impl FileSystem for Memory {
    async fn canonical(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        Ok([b"/", path].concat())
    }

    async fn stat(&self, path: &[u8]) -> Result<Attributes, FileError> {
        self.attributes(path)
    }

    async fn lstat(&self, path: &[u8]) -> Result<Attributes, FileError> {
        self.attributes(path)
    }

    async fn set_attributes(&self, path: &[u8], attributes: &Attributes) -> Result<(), FileError> {
        self.set(path, attributes)
    }

    async fn set_link_attributes(
        &self,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), FileError> {
        self.set(path, attributes)
    }

    async fn open(
        &self,
        path: &[u8],
        flags: OpenFlags,
        _attributes: &Attributes,
    ) -> Result<Box<dyn OpenFile>, FileError> {
        Self::change(path)?;
        if flags.contains(OpenFlags::TRUNCATE) {
            locked(&self.content).clear();
        }
        Ok(Box::new(MemoryFile {
            content: Arc::clone(&self.content),
            flags,
            written_bytes: 0,
            _open: self.opened(),
        }))
    }

    async fn open_directory(&self, path: &[u8]) -> Result<Box<dyn OpenDirectory>, FileError> {
        Self::change(path)?;
        Ok(Box::new(MemoryDirectory {
            names: 5,
            _open: self.opened(),
        }))
    }

    async fn make_directory(&self, path: &[u8], _attributes: &Attributes) -> Result<(), FileError> {
        Self::change(path)
    }

    async fn remove_file(&self, path: &[u8]) -> Result<(), FileError> {
        Self::change(path)
    }

    async fn remove_directory(&self, path: &[u8]) -> Result<(), FileError> {
        Self::change(path)
    }

    async fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        Self::change(from).and_then(|()| Self::change(to))
    }

    async fn rename_over(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        self.rename(from, to).await
    }

    async fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        Ok(path.to_vec())
    }

    async fn make_link(&self, _target: &[u8], link: &[u8]) -> Result<(), FileError> {
        Self::change(link)
    }

    async fn make_hard_link(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        self.rename(from, to).await
    }

    async fn statistics(&self, _path: &[u8]) -> Result<FilesystemStatistics, FileError> {
        Err(FileError::Unsupported)
    }

    fn user_names(&self) -> &dyn UserNames {
        self
    }

    fn hash_algorithms(&self) -> &'static [&'static str] {
        &["sha256"]
    }
}

impl UserNames for Memory {
    fn user(&self, id: u32) -> String {
        format!("user{id}")
    }

    fn group(&self, _id: u32) -> String {
        String::new()
    }
}

#[async_trait]
impl OpenFile for MemoryFile {
    async fn read_at(&mut self, offset: u64, into: &mut Vec<u8>) -> Result<usize, FileError> {
        let content = locked(&self.content);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = content.get(offset..).unwrap_or_default();
        let room = into.capacity() - into.len();
        let bytes = rest.get(..room).unwrap_or(rest);
        into.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    async fn write_at(&mut self, offset: u64, data: &[Bytes]) -> Result<(), FileError> {
        if !self.flags.contains(OpenFlags::WRITE) {
            return Err(FileError::Denied {
                reason: "it is open for reading",
            });
        }
        let data = data.concat();
        let end = offset.saturating_add(data.len() as u64);
        if locked(&self.content).len() as u64 <= end {
            resize(&self.content, end)?;
        }
        let start = usize::try_from(offset).map_err(|_| too_long())?;
        let mut content = locked(&self.content);
        let place = content
            .get_mut(start..start + data.len())
            .ok_or_else(too_long)?;
        place.copy_from_slice(&data);
        self.written_bytes += data.len() as u64;
        Ok(())
    }

    async fn stat(&mut self) -> Result<Attributes, FileError> {
        Ok(Attributes {
            size: Some(locked(&self.content).len() as u64),
            ..Attributes::default()
        })
    }

    async fn set_attributes(&mut self, attributes: &Attributes) -> Result<(), FileError> {
        attributes
            .size
            .map_or(Ok(()), |size| resize(&self.content, size))
    }

    async fn sync(&mut self) -> Result<(), FileError> {
        Ok(())
    }

    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError> {
        Err(FileError::Unsupported)
    }

    async fn hash(
        &mut self,
        _algorithm: &'static str,
        range: HashRange,
    ) -> Result<Vec<u8>, FileError> {
        Ok(vec![0x5a; range.answer_bytes.min(32)])
    }

    async fn close(self: Box<Self>) -> Result<Closed, FileError> {
        let upload = (self.written_bytes > 0).then(|| Upload {
            path: b"/file".to_vec(),
            length_bytes: self.written_bytes,
        });
        Ok(Closed { upload })
    }
}

#[async_trait]
impl OpenDirectory for MemoryDirectory {
    async fn next(&mut self, limit: usize) -> Result<DirectoryBatch, FileError> {
        let count = usize::from(self.names).min(limit);
        if count == 0 {
            return Ok(DirectoryBatch::End);
        }
        self.names -= u8::try_from(count).unwrap_or(self.names);
        let name = NameEntry {
            name: Bytes::from_static(b"name\xff"),
            long_name: Bytes::from_static(b"-rw-r--r-- name\xff"),
            attributes: Attributes::default(),
        };
        Ok(DirectoryBatch::Names(vec![name; count]))
    }

    async fn stat(&mut self) -> Result<Attributes, FileError> {
        Ok(Attributes::with_permissions(0o040_755))
    }

    async fn set_attributes(&mut self, _attributes: &Attributes) -> Result<(), FileError> {
        Err(FileError::Unsupported)
    }

    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError> {
        Err(FileError::Unsupported)
    }
}
