//! Uploads to a local directory: small files wait in memory, large ones go to the disk at once.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::entry::Kind;
use knarr_core::{ContentHash, RelPath};
use knarr_fs::root::Attributes;
use knarr_fs::stage::{StagedFile, Start, staged_path};
use knarr_fs::{ErrorClass, FsError, Root};
use tokio::sync::oneshot;

use super::commit::{Content, LocalStaged, replace_of, write_small};
use super::error::from_fs;
use super::writer::Writer;
use super::{IfMissing, Place, SMALL_BYTES, blocking};
use crate::error::{ErrorKind, RemoteError, Retry};
use crate::remote::{NewNode, Removal, Replace, WriteOptions};
use crate::upload::{
    CheckpointSink, CheckpointUpdate, Committer, ResumeState, Staged, StagedId, Upload,
};

/// After how many bytes a large file is flushed and a checkpoint saved.
const CHECKPOINT_BYTES: u64 = 64 << 20;

struct LocalUpload {
    place: Arc<Place>,
    committer: Arc<dyn Committer>,
    path: RelPath,
    id: StagedId,
    attributes: Attributes,
    replace: Replace,
    checkpoints: Option<Arc<dyn CheckpointSink>>,
    body: Body,
    /// How far the caller has come.
    position: u64,
    sent: u64,
}

/// Where the bytes are.
enum Body {
    /// In memory, as they came.
    Small { chunks: Vec<Bytes>, length: u64 },
    /// On the way to the disk.
    Large(Box<Large>),
    /// There are none: a directory or a link.
    Node(NewNode),
}

struct Large {
    root: Arc<Root>,
    writer: Writer,
    earlier: Option<Earlier>,
    /// How far the last checkpoint came that was asked for.
    checkpoint: u64,
    answer: Option<oneshot::Receiver<u64>>,
}

/// What an earlier attempt left, read back and hashed: only so does the hash of the whole say anything
/// about the file. A caller who hands in the same bytes again has them compared.
struct Earlier {
    length: u64,
    on_disk: blake3::Hasher,
    handed_in: blake3::Hasher,
}

impl fmt::Debug for LocalUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalUpload")
            .field("path", &self.path)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// Begins to write `options.node` for `path`.
pub(super) async fn begin(
    place: Arc<Place>,
    committer: Arc<dyn Committer>,
    path: &RelPath,
    options: WriteOptions,
) -> Result<Box<dyn Upload>, RemoteError> {
    let (id, resume) = (options.staged_id, options.resume);
    let mut upload = LocalUpload {
        place,
        committer,
        path: path.clone(),
        id,
        attributes: Attributes {
            mtime: options.mtime,
            mode: options.mode,
        },
        replace: options.replace,
        checkpoints: options.checkpoints,
        body: Body::Small {
            chunks: Vec::new(),
            length: 0,
        },
        position: 0,
        sent: 0,
    };
    match options.node {
        NewNode::File { size } => {
            let offset = resume.map_or(0, |resume| known_offset(&resume, path, id));
            if offset > 0 || size.is_some_and(|size| size > SMALL_BYTES) {
                upload.open_large(size, offset).await?;
            }
        }
        node => upload.body = Body::Node(node),
    }
    Ok(Box::new(upload))
}

/// What is saved for a later attempt: the staged path is all it takes to find the bytes again.
fn state_text(path: &RelPath, id: StagedId) -> String {
    let staged = staged_path(path, id.0);
    serde_json::json!({ "version": 1, "staged": staged }).to_string()
}

/// Removes the staged file that `state` names, which must be one of ours beside `path`. Blocks.
pub(super) fn abandon(root: &Root, path: &RelPath, state: &str) -> Result<(), RemoteError> {
    #[derive(serde::Deserialize)]
    struct State {
        version: u32,
        staged: RelPath,
    }
    let unreadable = |message: &str| {
        RemoteError::new(
            ErrorKind::InvalidName,
            "give up what is staged for",
            message,
        )
        .at(path)
    };
    let state: State = serde_json::from_str(state)
        .map_err(|error| unreadable("what was saved about it cannot be read").caused_by(error))?;
    let is_ours = state.version == 1
        && state.staged.parent() == path.parent()
        && knarr_fs::stage::staged_id(state.staged.name()).is_some();
    if !is_ours {
        return Err(unreadable("what was saved does not name a staged file"));
    }
    let removal = Removal {
        path: state.staged,
        kind: Kind::File,
        seen: None,
    };
    super::change::remove(root, &[removal])
        .pop()
        .unwrap_or(Ok(()))
}

/// How much of an earlier attempt can be counted on, if it was one at the same staged file.
fn known_offset(resume: &ResumeState, path: &RelPath, id: StagedId) -> u64 {
    if resume.state == state_text(path, id) {
        resume.offset
    } else {
        0
    }
}

impl LocalUpload {
    async fn save(&self, update: CheckpointUpdate) -> Result<(), RemoteError> {
        match &self.checkpoints {
            Some(sink) => sink.save(update).await,
            None => Ok(()),
        }
    }

    /// Opens the staged file and starts its thread.
    async fn open_large(&mut self, size: Option<u64>, offset: u64) -> Result<(), RemoteError> {
        let (place, path, id) = (Arc::clone(&self.place), self.path.clone(), self.id);
        let (root, file, earlier) = blocking(move || {
            let root = place.root(IfMissing::Make)?;
            let (mut file, earlier) = open_staged(&root, &path, id, offset)
                .map_err(|error| from_fs("stage", Some(&path), error))?;
            if let Some(size) = size {
                file.reserve(size)
                    .map_err(|error| from_fs("stage", Some(&path), error))?;
            }
            Ok((root, file, earlier))
        })
        .await?;
        let checkpoint = earlier.as_ref().map_or(0, |earlier| earlier.length);
        let writer = Writer::start(file);
        self.body = Body::Large(Box::new(Large {
            root,
            writer,
            earlier,
            checkpoint,
            answer: None,
        }));
        if checkpoint == 0 {
            let state = state_text(&self.path, self.id);
            self.save(CheckpointUpdate::Started { state }).await?;
        }
        Ok(())
    }

    /// What was kept in memory turned out to be a large file.
    async fn grow(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        let Body::Small { chunks, .. } = &mut self.body else {
            return Ok(());
        };
        let chunks = std::mem::take(chunks);
        self.open_large(None, 0).await?;
        if let Body::Large(large) = &mut self.body {
            for chunk in chunks {
                large.writer.write(chunk).await?;
            }
            large.writer.write(chunk).await?;
        }
        Ok(())
    }

    async fn write_large(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        let (position, path) = (self.position, &self.path);
        let Body::Large(large) = &mut self.body else {
            return Ok(());
        };
        let chunk = large.without_earlier(chunk, position, path)?;
        if chunk.is_empty() {
            return Ok(());
        }
        self.sent += chunk.len() as u64;
        let arrived = position + chunk.len() as u64;
        large.writer.write(chunk).await?;
        if self.checkpoints.is_none() {
            return Ok(());
        }
        if large.answer.is_none() && arrived >= large.checkpoint + CHECKPOINT_BYTES {
            large.checkpoint = arrived;
            large.answer = Some(large.writer.checkpoint().await?);
        }
        // Not waited for: the disk flushes while the next chunks come.
        if let Some(Ok(offset)) = large.answer.as_mut().map(oneshot::Receiver::try_recv) {
            large.answer = None;
            self.save(CheckpointUpdate::Advanced { offset }).await?;
        }
        Ok(())
    }
}

/// Opens the staged file: what an earlier attempt left if it is there, else a new one.
fn open_staged(
    root: &Root,
    path: &RelPath,
    id: StagedId,
    offset: u64,
) -> Result<(StagedFile, Option<Earlier>), FsError> {
    if offset > 0 {
        match continue_staged(root, path, id, offset) {
            Ok((file, earlier)) => return Ok((file, Some(earlier))),
            // It is gone, too short, or another's: begin anew.
            Err(FsError::Length { .. } | FsError::NotOurs { .. }) => {}
            Err(error) if error.class() == ErrorClass::Vanished => {}
            Err(error) => return Err(error),
        }
    }
    StagedFile::create(root, path, id.0, Start::New).map(|file| (file, None))
}

fn continue_staged(
    root: &Root,
    path: &RelPath,
    id: StagedId,
    offset: u64,
) -> Result<(StagedFile, Earlier), FsError> {
    let mut file = StagedFile::create(root, path, id.0, Start::Resume { offset })?;
    let mut on_disk = blake3::Hasher::new();
    file.read_back(|bytes| {
        on_disk.update(bytes);
    })?;
    let earlier = Earlier {
        length: offset,
        on_disk,
        handed_in: blake3::Hasher::new(),
    };
    Ok((file, earlier))
}

impl Large {
    /// Splits off what an earlier attempt brought over; compares it once it is complete.
    fn without_earlier(
        &mut self,
        mut chunk: Bytes,
        position: u64,
        path: &RelPath,
    ) -> Result<Bytes, RemoteError> {
        let Some(earlier) = &mut self.earlier else {
            return Ok(chunk);
        };
        let Some(missing) = earlier
            .length
            .checked_sub(position)
            .filter(|missing| *missing > 0)
        else {
            return Ok(chunk);
        };
        let known = usize::try_from(missing)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        earlier.handed_in.update(&chunk.split_to(known));
        if known as u64 == missing && earlier.handed_in.finalize() != earlier.on_disk.finalize() {
            let message = "what an earlier attempt staged is not the beginning of this file; \
                           it will be written anew";
            return Err(
                RemoteError::new(ErrorKind::Changed, "continue to write", message)
                    .with_retry(Retry::Later)
                    .at(path),
            );
        }
        Ok(chunk)
    }
}

#[async_trait]
impl Upload for LocalUpload {
    fn resumed_at(&self) -> u64 {
        match &self.body {
            Body::Large(large) => large.earlier.as_ref().map_or(0, |earlier| earlier.length),
            Body::Small { .. } | Body::Node(_) => 0,
        }
    }

    async fn resumed_hash(&mut self) -> Result<Option<blake3::Hasher>, RemoteError> {
        let Body::Large(large) = &self.body else {
            return Ok(None);
        };
        let Some(earlier) = &large.earlier else {
            return Ok(None);
        };
        self.position = earlier.length;
        Ok(Some(earlier.on_disk.clone()))
    }

    fn sent(&self) -> u64 {
        self.sent
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        let length_of_chunk = chunk.len() as u64;
        match &mut self.body {
            _ if chunk.is_empty() => {}
            Body::Node(_) => {
                let message = "only files have content";
                return Err(RemoteError::new(ErrorKind::WrongKind, "write", message).at(&self.path));
            }
            Body::Small { chunks, length } if *length + length_of_chunk <= SMALL_BYTES => {
                *length += length_of_chunk;
                self.sent += length_of_chunk;
                chunks.push(chunk);
            }
            Body::Small { .. } => {
                self.sent += length_of_chunk;
                self.grow(chunk).await?;
            }
            Body::Large(_) => self.write_large(chunk).await?,
        }
        self.position += length_of_chunk;
        Ok(())
    }

    async fn stage(self: Box<Self>, length: u64, hash: ContentHash) -> Result<Staged, RemoteError> {
        let Self {
            place,
            committer,
            path,
            id,
            attributes,
            replace,
            body,
            position,
            ..
        } = *self;
        if position != length {
            if let Body::Large(large) = body {
                large.writer.abort().await;
            }
            let message = format!("{position} bytes were written instead of {length}");
            return Err(RemoteError::new(ErrorKind::Changed, "stage", message).at(&path));
        }
        let (root, content) = match body {
            Body::Node(NewNode::Symlink { target }) => (None, Content::Link(target)),
            Body::Node(_) => (None, Content::Directory),
            Body::Large(large) => {
                let staged = large
                    .writer
                    .finish(length, attributes, replace_of(&replace))
                    .await?;
                (Some(large.root), Content::OnDisk(staged))
            }
            Body::Small { chunks, .. } => {
                let permits = u32::try_from(length.div_ceil(1_024)).unwrap_or(u32::MAX);
                match Arc::clone(&place.waiting).try_acquire_many_owned(permits) {
                    Ok(permit) => (
                        None,
                        Content::InMemory {
                            chunks,
                            _permit: permit,
                        },
                    ),
                    // Too much waits already: this one waits on the disk.
                    Err(_full) => {
                        let (place, path) = (Arc::clone(&place), path.clone());
                        let replace = replace_of(&replace);
                        blocking(move || {
                            let root = place.root(IfMissing::Make)?;
                            let staged =
                                write_small(&root, &path, id, &chunks, attributes, replace)?;
                            Ok((Some(root), Content::OnDisk(staged)))
                        })
                        .await?
                    }
                }
            }
        };
        let state = LocalStaged {
            place,
            root,
            id,
            attributes,
            replace,
            hash,
            content,
        };
        Ok(Staged {
            committer,
            path,
            state: Box::new(state),
        })
    }

    async fn suspend(self: Box<Self>) {
        let Self {
            path,
            checkpoints,
            body,
            ..
        } = *self;
        let (Body::Large(mut large), Some(sink)) = (body, checkpoints) else {
            return;
        };
        let saved = async {
            let answer = large.writer.checkpoint().await?;
            // Without an answer the thread failed, and says why when it is left.
            if let Ok(offset) = answer.await {
                sink.save(CheckpointUpdate::Advanced { offset }).await?;
            }
            large.writer.leave().await
        };
        if let Err(error) = saved.await {
            tracing::warn!(%error, %path, "the last checkpoint was not saved");
        }
    }

    async fn abort(self: Box<Self>) {
        let Self {
            path,
            checkpoints,
            body,
            ..
        } = *self;
        let Body::Large(large) = body else { return };
        large.writer.abort().await;
        if let Some(sink) = checkpoints
            && let Err(error) = sink.save(CheckpointUpdate::Forgotten).await
        {
            tracing::warn!(%error, %path, "a checkpoint was not removed");
        }
    }
}
