//! One part on its way.

use std::sync::Arc;

use bytes::Bytes;
use knarr_core::RelPath;
use object_store::path::Path;
use tokio::sync::OwnedSemaphorePermit;

use super::error::Failure;
use super::parts::SavedUpload;
use super::resume::ListedPart;
use super::{Inner, proof, resume};
use crate::error::{RemoteError, Retry};
use crate::upload::{CheckpointSink, CheckpointUpdate, PartDone};

/// Which attempt began an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    /// This one.
    Now,
    /// An earlier one: the store may have lost it meanwhile.
    Earlier,
}

/// A part that is there: sent by this attempt, or found.
#[derive(Debug)]
pub(super) struct PartThere {
    pub(super) done: PartDone,
    /// The bytes that this attempt sent for it.
    pub(super) sent: u64,
}

/// One part on its way; holds its place in memory until it is there and saved.
pub(super) struct SendPart {
    pub(super) inner: Arc<Inner>,
    pub(super) path: RelPath,
    pub(super) key: Path,
    pub(super) saved: SavedUpload,
    pub(super) begun: Begun,
    pub(super) number: u32,
    pub(super) length: u64,
    pub(super) chunks: Vec<Bytes>,
    /// What the store lists under the number, if an earlier attempt may have sent the same.
    pub(super) listed: Option<ListedPart>,
    pub(super) sink: Option<Arc<dyn CheckpointSink>>,
    pub(super) slots: OwnedSemaphorePermit,
}

impl SendPart {
    pub(super) async fn run(mut self) -> Result<PartThere, RemoteError> {
        let (receipt, sent) = match self.found().await {
            Some(receipt) => (receipt, 0),
            None => (self.send().await?, self.length),
        };
        let done = PartDone {
            number: self.number,
            size: self.length,
            receipt,
        };
        if let Some(sink) = &self.sink {
            sink.save(CheckpointUpdate::PartDone(done.clone())).await?;
        }
        drop(self.slots);
        Ok(PartThere { done, sent })
    }

    /// The receipt of a part that an earlier attempt sent without hearing of it.
    async fn found(&mut self) -> Option<String> {
        let listed = self.listed.take()?;
        let chunks = self.chunks.clone();
        let compared = tokio::task::spawn_blocking(move || {
            proof::is_of(&listed, &chunks).then(|| listed.receipt())
        });
        let receipt = compared.await.ok().flatten();
        if receipt.is_some() {
            tracing::debug!(path = %self.path, part = self.number, "the store has this part already");
        }
        receipt
    }

    async fn send(&mut self) -> Result<String, RemoteError> {
        let index = usize::try_from(self.number).unwrap_or(usize::MAX);
        let payload = std::mem::take(&mut self.chunks).into_iter().collect();
        let put = self
            .inner
            .store
            .put_part(&self.key, &self.saved.upload_id, index, payload)
            .await;
        let failure = match put {
            Ok(part) => return Ok(part.content_id),
            Err(error) => Failure::store(&error),
        };
        let denied = self.begun == Begun::Earlier && failure.is_denied();
        if failure.is_upload_gone()
            || denied && resume::is_lost(&self.inner, &self.key, &self.saved).await
        {
            forget(&self.inner, &self.path, &self.saved, self.sink.as_ref()).await?;
            let error = failure.into_remote("write", Some(&self.path));
            return Err(error.with_retry(Retry::Later));
        }
        Err(failure.into_remote("write", Some(&self.path)))
    }
}

/// Forgets an upload that the store does not go on with: the next attempt begins a new one.
pub(super) async fn forget(
    inner: &Inner,
    path: &RelPath,
    saved: &SavedUpload,
    sink: Option<&Arc<dyn CheckpointSink>>,
) -> Result<(), RemoteError> {
    if let Err(error) = resume::abort(inner, saved).await {
        tracing::debug!(%path, %error, "an upload that the store refuses could not be aborted");
    }
    match sink {
        Some(sink) => sink.save(CheckpointUpdate::Forgotten).await,
        None => Ok(()),
    }
}
