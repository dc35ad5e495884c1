//! Outputs of steps that are few: each is staged at the destination while it comes out, and gets its name
//! when the last byte of all of them was verified.

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::record::Action;
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_remote::Upload;
use knarr_steps::{Head, Node};

use crate::node::deliver::Delivering;
use crate::node::place::Decided;
use crate::node::room::{self, LEFT, Landed, Otherwise, Room};
use crate::put::PutError;
use crate::transfer::{Outputs, TransferError};

/// The most outputs of a file that are staged at once; steps that make more of them unpack.
const MOST: usize = 16;

/// An output that is complete, and waits until all of them are verified.
pub(super) enum Waiting {
    /// On its way.
    Written(Written),
    /// What is at the destination is the same.
    There(Entry, ContentHash),
}

/// Bytes that went to a staged name, without their end.
pub(super) struct Written {
    upload: Box<dyn Upload>,
    length: u64,
    hash: ContentHash,
    action: Action,
}

/// Stages what comes out of the steps.
pub(super) struct Streamed<'a> {
    delivering: &'a Delivering,
    entry: &'a Entry,
    decided: &'a Decided,
    current: Option<Current>,
    pub(super) waiting: Vec<Waiting>,
    /// Bytes that were put out.
    pub(super) length: u64,
    /// The error, where it is more than a [`TransferError`] can say.
    pub(super) failed: Option<PutError>,
}

struct Current {
    into: Option<Writing>,
    there: Option<Box<Entry>>,
    otherwise: Option<String>,
    hasher: blake3::Hasher,
    length: u64,
}

struct Writing {
    upload: Box<dyn Upload>,
    action: Action,
    path: RelPath,
}

impl<'a> Streamed<'a> {
    pub(super) const fn new(
        delivering: &'a Delivering,
        entry: &'a Entry,
        decided: &'a Decided,
    ) -> Self {
        Self {
            delivering,
            entry,
            decided,
            current: None,
            waiting: Vec::new(),
            length: 0,
            failed: None,
        }
    }

    /// Removes all that was put out.
    pub(super) async fn abort(&mut self) {
        if let Some(Writing { upload, .. }) = self.current.take().and_then(|current| current.into) {
            upload.abort().await;
        }
        for waiting in self.waiting.drain(..) {
            if let Waiting::Written(Written { upload, .. }) = waiting {
                upload.abort().await;
            }
        }
    }

    fn keep<T>(&mut self, result: Result<T, PutError>) -> Result<T, TransferError> {
        result.map_err(|error| match error {
            PutError::Transfer(error) => error,
            error => {
                self.failed = Some(error);
                TransferError::Cancelled
            }
        })
    }
}

#[async_trait]
impl Outputs for Streamed<'_> {
    async fn begin(&mut self, head: Head) -> Result<(), TransferError> {
        if self.waiting.len() >= MOST || head.node != Node::File {
            return Err(TransferError::NoTarget);
        }
        let begun = begin(self.delivering, self.entry, self.decided, &head).await;
        self.current = Some(self.keep(begun)?);
        Ok(())
    }

    async fn chunk(&mut self, chunk: Bytes) -> Result<(), TransferError> {
        let Some(current) = &mut self.current else {
            return Err(TransferError::NoTarget);
        };
        current.hasher.update(&chunk);
        current.length += chunk.len() as u64;
        if let Some(writing) = &mut current.into {
            let written = writing.upload.write(chunk).await;
            written.map_err(TransferError::Destination)?;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), TransferError> {
        let Some(current) = self.current.take() else {
            return Err(TransferError::NoTarget);
        };
        self.length += current.length;
        let ended = end(self.delivering, current).await;
        let waiting = self.keep(ended)?;
        self.waiting.push(waiting);
        Ok(())
    }
}

async fn begin(
    delivering: &Delivering,
    entry: &Entry,
    decided: &Decided,
    head: &Head,
) -> Result<Current, PutError> {
    let (writes, there, otherwise) = match delivering.room(entry, head, decided).await? {
        Room::Free(path, replace) => (Some((path, replace)), None, None),
        Room::Taken(there, Otherwise::Write(path, replace)) => {
            (Some((path, replace)), Some(there), None)
        }
        Room::Taken(there, Otherwise::Leave) => (None, Some(there), Some(LEFT.to_owned())),
        Room::Taken(there, Otherwise::Refuse(reason)) => (None, Some(there), Some(reason)),
    };
    let into = match writes {
        Some((path, replace)) => Some(Writing {
            action: room::action_of(&replace),
            upload: delivering.open_output(entry, head, &path, replace).await?,
            path,
        }),
        None => None,
    };
    Ok(Current {
        into,
        there,
        otherwise,
        hasher: blake3::Hasher::new(),
        length: 0,
    })
}

async fn end(delivering: &Delivering, current: Current) -> Result<Waiting, PutError> {
    let Current {
        into,
        there,
        otherwise,
        hasher,
        length,
    } = current;
    let hash = ContentHash::from(hasher.finalize());
    let Some(Writing {
        upload,
        action,
        path,
    }) = into
    else {
        if let Some(there) = there
            && delivering.holds(&there, length, hash).await?
        {
            return Ok(Waiting::There(*there, hash));
        }
        return Err(room::refused(otherwise.unwrap_or_else(|| LEFT.to_owned())));
    };
    // It would be kept beside what is there: not if that is the same.
    if let Some(there) = there.filter(|there| there.path != path)
        && delivering.holds(&there, length, hash).await?
    {
        upload.abort().await;
        return Ok(Waiting::There(*there, hash));
    }
    Ok(Waiting::Written(Written {
        upload,
        length,
        hash,
        action,
    }))
}

impl Delivering {
    /// Completes what was put out and verified, and gives it its names.
    pub(super) async fn land_all(&self, waiting: Vec<Waiting>) -> Result<Vec<Landed>, PutError> {
        let land = async |waiting| match waiting {
            Waiting::Written(Written {
                upload,
                length,
                hash,
                action,
            }) => {
                let staged = upload.stage(length, hash).await;
                let staged = staged
                    .map_err(|error| PutError::Transfer(TransferError::Destination(error)))?;
                self.land(staged, Some(hash), action).await
            }
            Waiting::There(there, hash) => Ok(room::landed_before(there, Some(hash))),
        };
        let landed = futures::future::join_all(waiting.into_iter().map(land)).await;
        landed.into_iter().collect()
    }
}
