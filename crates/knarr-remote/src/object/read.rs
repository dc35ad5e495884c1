//! Reading an object in ranges, several ahead, delivered in order.
//!
//! Every range is asked for as the version that the first answer showed (`If-Match`), and every
//! answer is compared with it, as servers ignore conditions: two versions are never spliced.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use knarr_core::{Entry, RelPath};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::error::Failure;
use super::{Inner, entry_of, s3};
use crate::buffers::{Buffer, Buffers};
use crate::error::{ErrorKind, RemoteError, Retry};
use crate::remote::{ReadOptions, Reader};

/// Up to this length in bytes an object is asked for in one piece.
const WHOLE: u64 = 8 << 20;
/// The length of one range in bytes.
const RANGE: u64 = 4 << 20;
/// How many ranges are under way at once; all together are held in memory at most. Servers send a range
/// no faster than one of their threads reads it.
const RANGES_AHEAD: usize = 8;
/// The length of what is handed on of a range, in bytes. What comes from the network is cut as the packets
/// were; hashed and written like that it costs more than the copy that puts it together.
const CHUNK_BYTES: usize = 256 << 10;
/// How many chunks of one range may wait: all of it.
const CHUNKS_AHEAD: usize = RANGE as usize / CHUNK_BYTES;

type Chunk = Result<Bytes, RemoteError>;

/// Opens an object with one request, which also brings its first bytes.
pub(super) async fn open(
    inner: Arc<Inner>,
    path: &RelPath,
    options: ReadOptions,
) -> Result<ObjectReader, RemoteError> {
    let key = inner.prefix.key("open", path).map_err(|error| {
        // A name that no key can have is not there.
        RemoteError::new(ErrorKind::NotFound, "open", error.message).at(path)
    })?;
    let etag = options
        .expected
        .as_ref()
        .and_then(|expected| match &expected.identity {
            Some(knarr_core::Identity::Tag(tag)) => Some(s3::quoted(tag)),
            _ => None,
        });
    let known_size = options.expected.as_ref().map(|expected| expected.size);
    let mut first = None;
    let meta = if known_size.is_some_and(|size| size <= options.offset) {
        look(&inner, path, &key).await?
    } else {
        let whole = options.offset == 0 && known_size.is_some_and(|size| size <= WHOLE);
        let range = options.offset..options.offset.saturating_add(RANGE);
        let range = (!whole).then_some(GetRange::Bounded(range));
        let get = GetOptions {
            if_match: etag,
            range,
            ..GetOptions::default()
        };
        match inner.store.get_opts(&key, get).await {
            Ok(found) => {
                let meta = found.meta.clone();
                first = Some(found);
                meta
            }
            Err(error) => {
                let failure = Failure::store(&error);
                // Nothing lies in the range, as in an empty file; or some servers' way to say so.
                if failure.status != Some(416) && !says_range(&error) {
                    return Err(failure.into_remote("open", Some(path)));
                }
                look(&inner, path, &key).await?
            }
        }
    };
    let entry = entry_of(path.clone(), &meta);
    if options
        .expected
        .is_some_and(|expected| !expected.still_describes(&entry))
    {
        return Err(changed("open", path));
    }
    if first.is_none() && meta.size > options.offset {
        return Err(changed("open", path));
    }
    let mut reader = ObjectReader {
        position: options.offset,
        next_range: options.offset,
        inner,
        key,
        entry,
        meta,
        current: None,
        ahead: VecDeque::new(),
        tasks: JoinSet::new(),
        buffers: Buffers::new(CHUNK_BYTES),
        is_one_version: false,
    };
    if let Some(found) = first {
        reader.begin_with(found);
    }
    Ok(reader)
}

fn says_range(error: &object_store::Error) -> bool {
    let mut text = error.to_string();
    text.make_ascii_lowercase();
    text.contains("invalidrange") || text.contains("wanted range starting at")
}

async fn look(inner: &Inner, path: &RelPath, key: &Path) -> Result<ObjectMeta, RemoteError> {
    match inner.head(key).await {
        Ok(Some(head)) => Ok(head.meta),
        Ok(None) => Err(RemoteError::new(ErrorKind::NotFound, "open", "it is not there").at(path)),
        Err(failure) => Err(failure.into_remote("open", Some(path))),
    }
}

fn changed(operation: &str, path: &RelPath) -> RemoteError {
    RemoteError::new(
        ErrorKind::Changed,
        operation,
        "it is another version than was seen",
    )
    .at(path)
}

/// Where the bytes of one range come from.
struct Source {
    from: From,
    left: u64,
}

enum From {
    /// The connection itself: nothing is read ahead.
    Answer(BoxStream<'static, object_store::Result<Bytes>>, Duration),
    /// A task that reads ahead.
    Task(mpsc::Receiver<Chunk>),
}

impl Source {
    fn direct(found: GetResult, length: u64, patience: Duration) -> Self {
        Self {
            from: From::Answer(found.into_stream(), patience),
            left: length,
        }
    }

    async fn next(&mut self, path: &RelPath) -> Result<Option<Bytes>, RemoteError> {
        loop {
            let chunk = match &mut self.from {
                From::Answer(stream, patience) => next_chunk(stream, *patience, path).await?,
                From::Task(chunks) => chunks.recv().await.transpose()?,
            };
            match chunk {
                Some(chunk) if chunk.is_empty() => {}
                Some(chunk) => {
                    self.left = self.left.checked_sub(chunk.len() as u64).ok_or_else(|| {
                        let message = "more bytes came than were asked for";
                        RemoteError::new(ErrorKind::Protocol, "read", message).at(path)
                    })?;
                    return Ok(Some(chunk));
                }
                None if self.left == 0 => return Ok(None),
                None => {
                    let message = format!("the answer ended {} bytes too early", self.left);
                    let error = RemoteError::new(ErrorKind::Unreachable, "read", message);
                    return Err(error.at(path).with_retry(Retry::Later));
                }
            }
        }
    }
}

async fn next_chunk(
    stream: &mut BoxStream<'static, object_store::Result<Bytes>>,
    patience: Duration,
    path: &RelPath,
) -> Result<Option<Bytes>, RemoteError> {
    match tokio::time::timeout(patience, stream.next()).await {
        Ok(chunk) => chunk
            .transpose()
            .map_err(|error| Failure::store(&error).into_remote("read", Some(path))),
        Err(_elapsed) => {
            let message = format!("no byte came for {} s", patience.as_secs());
            Err(RemoteError::new(ErrorKind::Unreachable, "read", message).at(path))
        }
    }
}

/// An object being read.
pub(super) struct ObjectReader {
    inner: Arc<Inner>,
    key: Path,
    entry: Entry,
    meta: ObjectMeta,
    /// How far was delivered.
    position: u64,
    /// Where the next range that nobody asked for begins.
    next_range: u64,
    current: Option<Source>,
    ahead: VecDeque<Source>,
    tasks: JoinSet<()>,
    buffers: Arc<Buffers>,
    /// Whether all comes in one answer, which is about one version.
    is_one_version: bool,
}

impl ObjectReader {
    /// Begins with the first answer.
    fn begin_with(&mut self, found: GetResult) {
        let length = found.range.end - found.range.start;
        self.next_range = self.position + length;
        if self.next_range == self.meta.size {
            self.is_one_version = self.meta.e_tag.is_some();
            self.current = Some(Source::direct(found, length, self.inner.patience));
            return;
        }
        let range = self.position..self.next_range;
        self.current = Some(self.fetch(range, Some(found)));
    }

    fn read_ahead(&mut self) {
        while self.ahead.len() + 1 < RANGES_AHEAD && self.next_range < self.meta.size {
            let range = self.next_range..self.meta.size.min(self.next_range + RANGE);
            self.next_range = range.end;
            let source = self.fetch(range, None);
            self.ahead.push_back(source);
        }
        // What has ended has nothing more to say.
        while self.tasks.try_join_next().is_some() {}
    }

    /// Has a task read a range, of which the answer may be there already.
    fn fetch(&mut self, range: std::ops::Range<u64>, answer: Option<GetResult>) -> Source {
        let left = range.end - range.start;
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let fetch = Fetch {
            inner: Arc::clone(&self.inner),
            key: self.key.clone(),
            path: self.entry.path.clone(),
            meta: self.meta.clone(),
            range,
            buffers: Arc::clone(&self.buffers),
            sender,
        };
        self.tasks.spawn(fetch.run(answer));
        Source {
            from: From::Task(chunks),
            left,
        }
    }
}

struct Fetch {
    inner: Arc<Inner>,
    key: Path,
    path: RelPath,
    meta: ObjectMeta,
    range: std::ops::Range<u64>,
    buffers: Arc<Buffers>,
    sender: mpsc::Sender<Chunk>,
}

impl Fetch {
    async fn run(self, answer: Option<GetResult>) {
        let mut filling = self.buffers.take();
        let ended = match answer {
            Some(answer) => self.pump(answer, &mut filling).await,
            None => match self.ask().await {
                Ok(answer) => self.pump(answer, &mut filling).await,
                Err(error) => Err(error),
            },
        };
        // What arrived before a failure counts. A reader that is gone does not need to know.
        if !filling.bytes().is_empty() {
            self.sender.send(Ok(filling.freeze())).await.unwrap_or(());
        }
        if let Err(error) = ended {
            self.sender.send(Err(error)).await.unwrap_or(());
        }
    }

    async fn ask(&self) -> Result<GetResult, RemoteError> {
        let options = GetOptions {
            if_match: self.meta.e_tag.as_deref().map(s3::quoted),
            range: Some(GetRange::Bounded(self.range.clone())),
            ..GetOptions::default()
        };
        let found = match self.inner.store.get_opts(&self.key, options).await {
            Ok(found) => found,
            Err(error) => {
                let failure = Failure::store(&error);
                if failure.is_not_found() || failure.status == Some(416) {
                    return Err(changed("read", &self.path));
                }
                return Err(failure.into_remote("read", Some(&self.path)));
            }
        };
        let tag = |meta: &ObjectMeta| meta.e_tag.as_deref().map(|etag| s3::bare(etag).to_owned());
        if tag(&found.meta) != tag(&self.meta) || found.meta.size != self.meta.size {
            return Err(changed("read", &self.path));
        }
        Ok(found)
    }

    /// Hands on what comes, until the end or until nobody takes it any more.
    async fn pump(&self, answer: GetResult, filling: &mut Buffer) -> Result<(), RemoteError> {
        let mut source = answer.into_stream();
        while let Some(mut piece) = next_chunk(&mut source, self.inner.patience, &self.path).await?
        {
            while !piece.is_empty() {
                let fits = piece.split_to(piece.len().min(filling.room()));
                filling.bytes().extend_from_slice(&fits);
                if filling.room() > 0 {
                    continue;
                }
                let full = std::mem::replace(filling, self.buffers.take());
                if self.sender.send(Ok(full.freeze())).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Reader for ObjectReader {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        self.read_ahead();
        loop {
            let Some(current) = &mut self.current else {
                return Ok(None);
            };
            if let Some(chunk) = current.next(&self.entry.path).await? {
                self.position += chunk.len() as u64;
                return Ok(Some(chunk));
            }
            self.current = self.ahead.pop_front();
            self.read_ahead();
        }
    }

    async fn finish(&mut self) -> Result<Entry, RemoteError> {
        if self.is_one_version {
            // A newer one is the next look's business; a mixture is impossible.
            return Ok(self.entry.clone());
        }
        let meta = look(&self.inner, &self.entry.path, &self.key).await?;
        Ok(entry_of(self.entry.path.clone(), &meta))
    }
}
