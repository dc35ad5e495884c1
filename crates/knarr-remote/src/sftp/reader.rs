//! Reads a file, with many requests ahead, over several connections if it is large.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join;
use knarr_core::entry::{Fingerprint, Kind};
use knarr_core::{Entry, RelPath};
use knarr_sftp::client::{AtEnd, FileReader, ReadOptions as Requests};
use knarr_sftp::{Attributes, OpenFlags};

use crate::buffers::{Buffer, Buffers};
use crate::error::{ErrorKind, RemoteError};
use crate::remote::{ReadOptions, Reader};
use crate::sftp::connection::Connection;
use crate::sftp::endpoint::SftpEndpoint;
use crate::sftp::joining::Opening;
use crate::sftp::{Place, entries, error};

/// Bytes of a chunk that is handed on.
const CHUNK_BYTES: usize = 256 * 1024;

/// Files up to this length are handed on as they come.
const WHOLE_BYTES: u64 = 128 * 1024;

/// A file that is being read.
#[derive(Debug)]
pub(super) struct SftpReader {
    connection: Arc<Connection>,
    /// Keeps the other connections.
    _endpoint: SftpEndpoint,
    full: Vec<u8>,
    entry: Entry,
    reader: FileReader,
    buffers: Arc<Buffers>,
    /// What has arrived of the next chunk.
    filling: Option<Buffer>,
    /// What did not fit into it.
    rest: Bytes,
}

/// Opens a file.
///
/// What is expected to be a file is looked at and opened on one round trip. Otherwise it is looked at
/// first: opening a link would follow it, and opening a pipe would block the server.
pub(super) async fn open(
    place: &Place,
    path: &RelPath,
    options: ReadOptions,
) -> Result<SftpReader, RemoteError> {
    let full = place.root().full(path);
    let connection = place.endpoint.connection().await?;
    let client = connection.client();
    let looked_for_file = options
        .expected
        .as_ref()
        .is_some_and(|expected| expected.kind == Kind::File);
    let (attributes, opened) = if looked_for_file {
        let opening = client.open(&full, OpenFlags::READ, Attributes::default());
        let (attributes, opened) = join(client.lstat(&full), opening).await;
        (attributes, Some(opened))
    } else {
        (client.lstat(&full).await, None)
    };
    let attributes = attributes.map_err(|source| error::at(&connection, "open", path, source))?;
    let entry = entries::entry(path.clone(), &attributes);
    check(&entry, options.expected.as_ref(), options.offset)?;
    let opened = match opened {
        Some(opened) => opened,
        None => {
            client
                .open(&full, OpenFlags::READ, Attributes::default())
                .await
        }
    };
    let handle = opened.map_err(|source| error::at(&connection, "open", path, source))?;
    let requests = Requests {
        offset: options.offset,
        end: Some(entry.size),
        at_end: AtEnd::Stop,
        ..Requests::default()
    };
    let reader = FileReader::new(vec![handle], &requests)
        .map_err(|source| error::at(&connection, "read", path, source))?;
    let opening = Opening {
        path: full.clone(),
        flags: OpenFlags::READ,
        // Only of the very same version of the file.
        looks: Some((attributes.size, attributes.modified_seconds())),
    };
    let left = entry.size.saturating_sub(options.offset);
    let reader = reader.joined_by(opening.beside(&connection, &place.endpoint, left));
    Ok(SftpReader {
        connection,
        _endpoint: place.endpoint.clone(),
        full,
        entry,
        reader,
        buffers: Buffers::new(CHUNK_BYTES),
        filling: None,
        rest: Bytes::new(),
    })
}

fn check(entry: &Entry, expected: Option<&Fingerprint>, offset: u64) -> Result<(), RemoteError> {
    if entry.kind != Kind::File {
        let changed = expected.is_some_and(|expected| expected.kind != entry.kind);
        let kind = if changed {
            ErrorKind::Changed
        } else {
            ErrorKind::WrongKind
        };
        let message = format!("it is a {}, not a file", entry.kind);
        return Err(RemoteError::new(kind, "open", message).at(&entry.path));
    }
    if let Some(expected) = expected {
        entries::check_seen("open", &entry.path, Some(entry), expected)?;
    }
    if offset > entry.size {
        let message = format!("it has {} bytes, fewer than {offset}", entry.size);
        return Err(RemoteError::new(ErrorKind::Changed, "open", message).at(&entry.path));
    }
    Ok(())
}

impl SftpReader {
    /// Puts a piece behind those of the next chunk, which is returned when it is full. The pieces are
    /// as the server's packets were cut, and hashing and writing them one by one costs more than this
    /// copy.
    fn collect(&mut self, mut piece: Bytes, filling: Option<Buffer>) -> Option<Bytes> {
        if filling.is_none() && self.entry.size <= WHOLE_BYTES {
            return Some(piece);
        }
        let mut filling = filling.unwrap_or_else(|| self.buffers.take());
        let fits = piece.split_to(piece.len().min(filling.room()));
        filling.bytes().extend_from_slice(&fits);
        self.rest = piece;
        if filling.room() == 0 {
            return Some(filling.freeze());
        }
        self.filling = Some(filling);
        None
    }
}

#[async_trait]
impl Reader for SftpReader {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        loop {
            let piece = match std::mem::take(&mut self.rest) {
                rest if rest.is_empty() => self.reader.next().await,
                rest => Ok(Some(rest)),
            };
            match (piece, self.filling.take()) {
                (Ok(Some(piece)), filling) => {
                    if let Some(chunk) = self.collect(piece, filling) {
                        return Ok(Some(chunk));
                    }
                }
                // What arrived before the end, or before a failure, counts; that is told by the next call.
                (_, Some(filled)) => return Ok(Some(filled.freeze())),
                (Ok(None), None) => return Ok(None),
                (Err(source), None) => {
                    let path = &self.entry.path;
                    return Err(error::at(&self.connection, "read", path, source));
                }
            }
        }
    }

    async fn finish(&mut self) -> Result<Entry, RemoteError> {
        // By name, not by handle: a file that took its place is another version, too.
        let looked = entries::look(&self.connection, &self.full, &self.entry.path).await?;
        looked.ok_or_else(|| {
            RemoteError::new(
                ErrorKind::NotFound,
                "look again at",
                "it was removed meanwhile",
            )
            .at(&self.entry.path)
        })
    }
}
