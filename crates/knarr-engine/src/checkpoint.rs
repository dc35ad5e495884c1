//! What an upload saves so that a later attempt, or another process, can go on (K9).
//!
//! Everything stands in the store's table of uploads: the backend's own text, and a row a part. How far a
//! staged file is (a contiguous offset) is kept as the part [`OFFSET`], which no backend counts up to.

use std::time::Duration;

use async_trait::async_trait;
use knarr_core::RelPath;
use knarr_core::entry::Fingerprint;
use knarr_remote::{
    CheckpointSink, CheckpointUpdate, ErrorKind, PartDone, RemoteError, ResumeState,
};
use knarr_store::uploads::{NewUpload, Part};
use knarr_store::{PairId, Store, StoreError, Tx};

/// The number under which the acknowledged offset stands.
const OFFSET: u32 = u32::MAX;

/// Saves the checkpoints of one upload.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    pub(crate) store: Store,
    pub(crate) pair: PairId,
    pub(crate) endpoint: String,
    pub(crate) path: RelPath,
    pub(crate) source: Fingerprint,
    pub(crate) total_bytes: u64,
    /// How long it is kept when nobody goes on with it.
    pub(crate) keep: Duration,
}

#[async_trait]
impl CheckpointSink for Checkpoints {
    async fn save(&self, update: CheckpointUpdate) -> Result<(), RemoteError> {
        let of = self.clone();
        let saved = self.store.transact(move |tx| of.apply(tx, update)).await;
        saved.map_err(|error| {
            let message = "the state directory does not work, so the upload could not be resumed";
            RemoteError::new(ErrorKind::Other, "save a checkpoint for", message)
                .at(&self.path)
                .caused_by(error)
        })
    }
}

impl Checkpoints {
    fn apply(&self, tx: &mut Tx<'_>, update: CheckpointUpdate) -> Result<(), StoreError> {
        match update {
            CheckpointUpdate::Started { state } => {
                clear(tx, &self.endpoint, &self.path)?;
                let expires_at = tx.now().after(self.keep);
                tx.begin_upload(&NewUpload {
                    pair: Some(self.pair),
                    endpoint: self.endpoint.clone(),
                    destination: self.path.as_bytes().to_vec(),
                    upload: state,
                    part_bytes: 0,
                    total_bytes: self.total_bytes,
                    source: self.source.clone(),
                    expires_at,
                })
                .map(drop)
            }
            CheckpointUpdate::Advanced { offset } => self.add(
                tx,
                Part {
                    number: OFFSET,
                    receipt: String::new(),
                    checksum: None,
                    size: offset,
                },
            ),
            CheckpointUpdate::PartDone(PartDone {
                number,
                size,
                receipt,
            }) => self.add(
                tx,
                Part {
                    number,
                    receipt,
                    checksum: None,
                    size,
                },
            ),
            CheckpointUpdate::Forgotten => clear(tx, &self.endpoint, &self.path),
        }
    }

    fn add(&self, tx: &mut Tx<'_>, part: Part) -> Result<(), StoreError> {
        match tx.uploads_to(&self.endpoint, self.path.as_bytes())?.first() {
            Some(upload) => {
                tx.extend_upload(upload.id, tx.now().after(self.keep))?;
                tx.add_parts(upload.id, [&part])
            }
            // Forgotten meanwhile: then this part does not count.
            None => Ok(()),
        }
    }
}

/// What an earlier attempt saved.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    /// To go on from: it was about the same version of the source. From now on it is kept anew.
    pub(crate) resume: Option<ResumeState>,
    /// Of other versions, and begun by this pair: nobody goes on with them.
    pub(crate) worthless: Vec<String>,
}

/// Looks for what earlier attempts saved.
pub(crate) async fn find(of: &Checkpoints) -> Result<Earlier, StoreError> {
    let (looking, store) = (of.clone(), of.store.clone());
    let found = store
        .read_async(move |reader| reader.uploads_to(&looking.endpoint, looking.path.as_bytes()))
        .await?;
    let mut earlier = Earlier::default();
    for upload in found {
        let begun = &upload.begun_as;
        let same = begun.source == of.source && begun.total_bytes == of.total_bytes;
        if earlier.resume.is_some() {
            break;
        }
        if !same {
            if begun.pair == Some(of.pair) {
                earlier.worthless.push(upload.begun_as.upload);
            }
            continue;
        }
        let keep = of.keep;
        let parts = store.transact(move |tx| {
            tx.extend_upload(upload.id, tx.now().after(keep))?;
            tx.parts(upload.id)
        });
        earlier.resume = Some(resume(begun.upload.clone(), parts.await?));
    }
    Ok(earlier)
}

fn resume(state: String, saved: Vec<Part>) -> ResumeState {
    let mut resume = ResumeState {
        state,
        offset: 0,
        parts: Vec::new(),
    };
    for part in saved {
        match part.number {
            OFFSET => resume.offset = part.size,
            number => resume.parts.push(PartDone {
                number,
                size: part.size,
                receipt: part.receipt,
            }),
        }
    }
    resume
}

/// Drops what was saved for a path.
pub(crate) fn clear(tx: &mut Tx<'_>, endpoint: &str, path: &RelPath) -> Result<(), StoreError> {
    for upload in tx.uploads_to(endpoint, path.as_bytes())? {
        tx.remove_upload(upload.id)?;
    }
    Ok(())
}
