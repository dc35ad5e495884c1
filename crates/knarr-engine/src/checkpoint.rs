//! What an upload saves so that a later attempt, or another process, can go on (K9).
//!
//! Everything stands in the store's table of uploads: the backend's own text, and a row a part. How far a
//! staged file is (a contiguous offset) is kept as the part [`OFFSET`], which no backend counts up to.

use async_trait::async_trait;
use knarr_core::RelPath;
use knarr_core::entry::Fingerprint;
use knarr_remote::{
    CheckpointSink, CheckpointUpdate, ErrorKind, PartDone, RemoteError, ResumeState,
};
use knarr_store::uploads::{NewUpload, Part, StoredUpload};
use knarr_store::{PairId, Store, StoreError, Tx};

/// The number under which the acknowledged offset stands.
const OFFSET: u32 = u32::MAX;
/// How long an upload that nobody goes on with is kept.
const KEPT: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// Saves the checkpoints of one upload.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    pub(crate) store: Store,
    pub(crate) pair: PairId,
    pub(crate) endpoint: String,
    pub(crate) path: RelPath,
    pub(crate) source: Fingerprint,
    pub(crate) total_bytes: u64,
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
                let expires_at = tx.now().after(KEPT);
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
            Some(upload) => tx.add_parts(upload.id, [&part]),
            // Forgotten meanwhile: then this part does not count.
            None => Ok(()),
        }
    }
}

/// What an earlier attempt saved, if it was about the same version of the source.
pub(crate) async fn find(of: &Checkpoints) -> Result<Option<ResumeState>, StoreError> {
    let of = of.clone();
    let store = of.store.clone();
    store
        .read_async(move |reader| {
            let uploads = reader.uploads_to(&of.endpoint, of.path.as_bytes())?;
            let same = |upload: &&StoredUpload| {
                upload.begun_as.source == of.source && upload.begun_as.total_bytes == of.total_bytes
            };
            let Some(upload) = uploads.iter().find(same) else {
                return Ok(None);
            };
            let mut resume = ResumeState {
                state: upload.begun_as.upload.clone(),
                offset: 0,
                parts: Vec::new(),
            };
            for part in reader.parts(upload.id)? {
                match part.number {
                    OFFSET => resume.offset = part.size,
                    number => resume.parts.push(PartDone {
                        number,
                        size: part.size,
                        receipt: part.receipt,
                    }),
                }
            }
            Ok(Some(resume))
        })
        .await
}

/// Drops what was saved for a path.
pub(crate) fn clear(tx: &mut Tx<'_>, endpoint: &str, path: &RelPath) -> Result<(), StoreError> {
    for upload in tx.uploads_to(endpoint, path.as_bytes())? {
        tx.remove_upload(upload.id)?;
    }
    Ok(())
}
