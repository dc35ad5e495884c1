//! Requests about what is open.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::codec::{Attributes, FilesystemStatistics, Reply};
use crate::server::file_system::{DirectoryBatch, HashRange};
use crate::server::handles::Open;
use crate::server::session::{Session, end_of_file};
use crate::server::{Event, FileError, OpenFile, Operation};

/// How much is copied at a time on the server, in bytes.
const COPY_BYTES: usize = 256 * 1024;

/// Fewest bytes in a block that has a hash of its own, as the draft of `check-file` asks.
const BLOCK_BYTES: u32 = 256;

/// What `check-file` is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check<'a> {
    pub(crate) algorithms: &'a [u8],
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) block_bytes: u32,
}

/// What `copy-data` is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy<'a> {
    pub(crate) from: &'a [u8],
    pub(crate) from_offset: u64,
    pub(crate) length: u64,
    pub(crate) to: &'a [u8],
    pub(crate) to_offset: u64,
}

impl Session {
    /// Answers a READ, without copying what is read.
    pub(crate) async fn read(
        &mut self,
        id: u32,
        handle: &[u8],
        offset: u64,
        length: u32,
    ) -> Result<(), FileError> {
        let limit = self.options.limits.read_bytes;
        let wanted = usize::try_from(length).unwrap_or(usize::MAX).min(limit);
        let file = self.handles.file(handle)?;
        if wanted == 0 {
            self.outbox.reply(id, &Reply::Data(Bytes::new()));
            return Ok(());
        }
        let mut buffer = self.outbox.buffer(wanted);
        match file.file.read_at(offset, &mut buffer).await {
            Ok(0) => {
                self.outbox.unused(buffer);
                self.outbox.reply(id, &end_of_file());
            }
            Ok(read_bytes) => {
                file.read_bytes += read_bytes as u64;
                self.outbox.data(id, buffer);
            }
            Err(error) => {
                self.outbox.unused(buffer);
                return Err(error);
            }
        }
        Ok(())
    }

    pub(crate) async fn write(
        &mut self,
        handle: &[u8],
        offset: u64,
        data: &[Bytes],
    ) -> Result<(), FileError> {
        let length: usize = data.iter().map(Bytes::len).sum();
        if offset.checked_add(length as u64).is_none() {
            return Err(FileError::Invalid {
                reason: "no file is that long",
            });
        }
        let file = self.handles.file(handle)?;
        file.file.write_at(offset, data).await?;
        file.written_bytes += length as u64;
        Ok(())
    }

    pub(crate) async fn close_handle(&mut self, handle: &[u8]) -> Result<(), FileError> {
        let file = match self.handles.remove(handle)? {
            Open::File(file) => file,
            Open::Directory(_) => return Ok(()),
        };
        let closed = file.file.close().await;
        let upload = closed
            .as_ref()
            .ok()
            .and_then(|closed| closed.upload.as_ref());
        self.observer.observe(&Event::Closed {
            path: &file.path,
            read_bytes: file.read_bytes,
            written_bytes: file.written_bytes,
            uploaded_bytes: upload.map(|upload| upload.length_bytes),
            outcome: closed.as_ref().map(drop),
        });
        match closed {
            Ok(closed) => {
                if let Some(upload) = closed.upload {
                    self.observer.observe(&Event::Uploaded {
                        path: &upload.path,
                        length_bytes: upload.length_bytes,
                    });
                }
                Ok(())
            }
            Err(error) => {
                self.note(Operation::Close, &file.path, None, Err(&error));
                Err(error)
            }
        }
    }

    pub(crate) async fn stat_open(&mut self, handle: &[u8]) -> Result<Attributes, FileError> {
        match self.handles.get(handle)? {
            Open::File(file) => file.file.stat().await,
            Open::Directory(directory) => directory.stat().await,
        }
    }

    pub(crate) async fn set_attributes_open(
        &mut self,
        handle: &[u8],
        attributes: &Attributes,
    ) -> Result<(), FileError> {
        let (path, outcome) = match self.handles.get(handle)? {
            Open::File(file) => {
                let path = file.path.clone();
                (path, file.file.set_attributes(attributes).await)
            }
            Open::Directory(directory) => (Vec::new(), directory.set_attributes(attributes).await),
        };
        // Times go with each upload of some clients, and change nothing that anybody relies on.
        let is_told = attributes.size.is_some()
            || attributes.owner.is_some()
            || attributes.permissions.is_some();
        if is_told || outcome.is_err() {
            let told = outcome.as_ref().copied();
            self.note(Operation::Fsetstat, &path, None, told);
        }
        outcome
    }

    pub(crate) async fn statistics_open(
        &mut self,
        handle: &[u8],
    ) -> Result<FilesystemStatistics, FileError> {
        match self.handles.get(handle)? {
            Open::File(file) => file.file.statistics().await,
            Open::Directory(directory) => directory.statistics().await,
        }
    }

    pub(crate) async fn read_directory(&mut self, handle: &[u8]) -> Result<Reply, FileError> {
        let limit = self.options.limits.directory_names;
        match self.handles.directory(handle)?.next(limit).await? {
            DirectoryBatch::Names(names) => Ok(Reply::Names(names)),
            DirectoryBatch::End => Ok(end_of_file()),
        }
    }

    /// Copies between two open files, or inside one.
    pub(crate) async fn copy_data(&mut self, copy: Copy<'_>) -> Result<(), FileError> {
        let invalid = |reason| FileError::Invalid { reason };
        if copy.from == copy.to {
            let distance = copy.from_offset.abs_diff(copy.to_offset);
            if copy.length == 0 || distance < copy.length {
                return Err(invalid("the range would be copied over itself"));
            }
        }
        // Up to the end that the source has now: what is written meanwhile, to the same file by another
        // handle for instance, is not copied.
        let end = self.handles.file(copy.from)?.file.stat().await?.size;
        let rest = end.map_or(u64::MAX, |end| end.saturating_sub(copy.from_offset));
        let mut left = if copy.length == 0 {
            rest
        } else {
            copy.length.min(rest)
        };
        let (mut from_offset, mut to_offset) = (copy.from_offset, copy.to_offset);
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let mut buffer = Vec::with_capacity(wanted);
            let source = self.handles.file(copy.from)?;
            let read_bytes = source.file.read_at(from_offset, &mut buffer).await?;
            if read_bytes == 0 {
                break;
            }
            source.read_bytes += read_bytes as u64;
            self.write(copy.to, to_offset, &[Bytes::from(buffer)])
                .await?;
            let read_bytes = read_bytes as u64;
            left -= read_bytes.min(left);
            from_offset = from_offset.saturating_add(read_bytes);
            to_offset = to_offset.saturating_add(read_bytes);
        }
        Ok(())
    }

    pub(crate) async fn check_open(
        &mut self,
        handle: &[u8],
        check: Check<'_>,
    ) -> Result<Reply, FileError> {
        let (algorithm, range) = self.check_of(check)?;
        let file = self.handles.file(handle)?;
        let hashes = file.file.hash(algorithm, range).await?;
        Ok(check_reply(algorithm, &hashes))
    }

    pub(crate) async fn check_file(
        &mut self,
        mut file: Box<dyn OpenFile>,
        check: Check<'_>,
    ) -> Result<Reply, FileError> {
        let (algorithm, range) = self.check_of(check)?;
        let hashes = file.hash(algorithm, range).await?;
        file.close().await?;
        Ok(check_reply(algorithm, &hashes))
    }

    /// The first algorithm of the client's list that is known here, and what is to be hashed.
    fn check_of(&self, check: Check<'_>) -> Result<(&'static str, HashRange), FileError> {
        if check.block_bytes != 0 && check.block_bytes < BLOCK_BYTES {
            return Err(FileError::Invalid {
                reason: "blocks to hash need 256 bytes at least",
            });
        }
        let offered = self.file_system.hash_algorithms();
        let algorithm = check
            .algorithms
            .split(|byte| *byte == b',')
            .find_map(|name| {
                offered
                    .iter()
                    .find(|known| known.as_bytes() == name)
                    .copied()
            });
        let algorithm = algorithm.ok_or(FileError::Refused {
            reason: "none of these hash algorithms is known here",
        })?;
        let range = HashRange {
            offset: check.offset,
            length: check.length,
            block_bytes: check.block_bytes,
            answer_bytes: self.options.limits.read_bytes,
        };
        Ok((algorithm, range))
    }
}

fn check_reply(algorithm: &str, hashes: &[u8]) -> Reply {
    let mut payload = BytesMut::with_capacity(32 + hashes.len());
    for text in ["check-file", algorithm] {
        payload.put_u32(u32::try_from(text.len()).unwrap_or(0));
        payload.put_slice(text.as_bytes());
    }
    payload.put_slice(hashes);
    Reply::Extended(payload.freeze())
}
