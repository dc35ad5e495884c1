//! What is staged to be published together.

use knarr_core::{RelPath, Timestamp};
use knarr_remote::StagedId;
use knarr_store::batches::{
    BatchFile, BatchFileId, BatchId, BatchState, Claim, NewBatchFile, Parked, Turn,
};

use super::Journal;
use crate::error::EngineError;

impl Journal {
    /// Begins a batch of this run.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn begin_batch(&self) -> Result<BatchId, EngineError> {
        let run = self.run;
        self.write(move |tx, pair| tx.begin_batch(pair, run)).await
    }

    /// The id for the name under which `path` waits for its publication; the same in every run.
    pub(crate) fn waiting_id(&self, path: &RelPath) -> StagedId {
        let owner = [b"waits for its publication\0", &*self.owner].concat();
        StagedId::derive(&owner, path)
    }

    /// Notes that a file is about to be staged; durable when this returns.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn claim(&self, new: NewBatchFile) -> Result<Claim, EngineError> {
        self.write(move |tx, pair| tx.claim(pair, &new)).await
    }

    /// Takes back what was staged of a source.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn restage(&self, source: &RelPath) -> Result<(), EngineError> {
        let source = source.clone();
        self.write(move |tx, pair| tx.restage(pair, &source)).await
    }

    /// Batches of the pair that are being published.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub(crate) async fn decided_batches(&self) -> Result<Vec<BatchId>, EngineError> {
        let pair = self.pair;
        self.read(move |reader| reader.decided_batches(pair)).await
    }

    /// Files of a batch in this state, in the order in which they are published.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub(crate) async fn batch_files(
        &self,
        batch: BatchId,
        state: BatchState,
        after: Option<(Turn, BatchFileId)>,
        limit: usize,
    ) -> Result<Vec<BatchFile>, EngineError> {
        self.read(move |reader| reader.batch_files(batch, state, after, limit))
            .await
    }

    /// Files that earlier runs staged before `before` and never published.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub(crate) async fn abandoned_files(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<BatchFile>, EngineError> {
        let (pair, run) = (self.pair, self.run);
        self.read(move |reader| reader.abandoned_files(pair, run, before, limit))
            .await
    }

    /// Decides that all of a batch is published: from now on that is finished, whatever happens.
    ///
    /// # Errors
    /// If that could not be made durable; then nothing of it may be published.
    pub(crate) async fn decide_batch(&self, batch: BatchId) -> Result<(), EngineError> {
        self.write(move |tx, _| tx.decide_batch(batch)).await
    }

    /// Takes the decision back.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn undecide_batch(&self, batch: BatchId) -> Result<(), EngineError> {
        self.write(move |tx, _| tx.undecide_batch(batch)).await
    }

    /// Forgets files of batches.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn forget_batch_files(
        &self,
        files: Vec<BatchFileId>,
    ) -> Result<(), EngineError> {
        self.write(move |tx, _| tx.forget_batch_files(files)).await
    }

    /// Forgets batches of which nothing is left.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn forget_empty_batches(&self) -> Result<(), EngineError> {
        let run = self.run;
        self.write(move |tx, pair| tx.forget_empty_batches(pair, run))
            .await
    }

    /// Drops what waits of an interrupted run: the look of this run finds it again.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn drop_waiting(&self, parked: Parked) -> Result<(), EngineError> {
        self.write(move |tx, pair| tx.drop_waiting(pair, parked))
            .await
    }
}
