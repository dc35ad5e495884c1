//! Brings the content of one path to the destination: as it is, or what the steps make of it.

use knarr_core::record::{Action, CustodyRecord, StepRecord};
use knarr_core::{ContentHash, Entry};
use knarr_remote::{ErrorKind, NewNode, RemoteError, WriteOptions};

use crate::inspect::Inspection;
use crate::node::deliver::Delivering;
use crate::node::place::Decided;
use crate::node::room::Landed;
use crate::node::streamed::Streamed;
use crate::put::PutError;
use crate::transfer::{self, Moved, Opened, Target, Transfer, TransferError};

/// What was brought over, durable and visible.
#[derive(Debug)]
pub(crate) struct Delivered {
    /// With what the source is recorded as delivered.
    pub(crate) main: Landed,
    /// What else the steps made of it.
    pub(crate) others: Vec<Landed>,
    /// Of the source's content, if it was read.
    pub(crate) source_hash: Option<ContentHash>,
    /// Bytes that went over the wire.
    pub(crate) sent: u64,
    pub(crate) steps: Vec<StepRecord>,
}

const fn action_of(decided: &Decided) -> Action {
    if decided.replaced {
        Action::Updated
    } else {
        Action::Created
    }
}

/// Whether something has the name that was to be free, or is not what was to be replaced.
pub(crate) fn is_taken(error: &RemoteError) -> bool {
    matches!(error.kind, ErrorKind::AlreadyExists | ErrorKind::Changed)
}

impl Delivering {
    pub(super) fn transfer<'a>(
        &'a self,
        entry: &'a Entry,
        target: Option<Target>,
        opened: Opened,
    ) -> Transfer<'a> {
        Transfer {
            source: self.context.source.as_ref(),
            entry,
            destination: self.context.destination.as_ref(),
            target,
            observer: self.context.observer.as_ref(),
            cancel: &self.context.cancel,
            opened,
        }
    }

    /// The checks that the job asks for, of one file.
    pub(super) async fn inspection(&self, entry: &Entry) -> Result<Inspection, PutError> {
        let (source, cancel) = (self.context.source.as_ref(), &self.context.cancel);
        let side_files = &self.context.side_files;
        let begun = self.job.checks.begin(source, entry, cancel, side_files);
        let mut begun = begun.await.map_err(PutError::Transfer)?;
        let batches = self.context.batches.get();
        if let Some((expected, manifest)) = batches.and_then(|all| all.expected(&entry.path))
            && let Some((algorithm, checksum)) = &expected.checksum
        {
            begun.expect(*algorithm, checksum.clone(), manifest.clone());
        }
        Ok(begun)
    }

    /// Brings a file over. Nothing if it is left.
    pub(super) async fn put_file(
        &self,
        entry: &Entry,
        decided: &mut Decided,
    ) -> Result<Option<Delivered>, PutError> {
        // When the commit finds what nobody knew of, that is looked at and decided on.
        for _ in 0..3 {
            let written = if self.job.steps.is_empty() {
                self.put_plain(entry, decided).await
            } else {
                self.put_through(entry, decided).await.map(Some)
            };
            match written {
                Err(PutError::Remote(error)) if is_taken(&error) => decided.synced = None,
                written => return written,
            }
            decided.look = true;
        }
        Err(PutError::Transfer(TransferError::Changed))
    }

    async fn put_plain(
        &self,
        entry: &Entry,
        decided: &mut Decided,
    ) -> Result<Option<Delivered>, PutError> {
        let Ok(slot) = self.context.slots.acquire().await else {
            return Err(PutError::Transfer(TransferError::Cancelled));
        };
        let opened = std::mem::take(&mut decided.opened);
        let Some(target) = self.target(entry, entry.path.clone(), decided).await? else {
            if decided.same.is_some() && !self.job.checks.is_empty() {
                // That it is there already does not make it right.
                let mut inspection = self.inspection(entry).await?;
                let transfer = self.transfer(entry, None, opened);
                let inspected = transfer::inspect(&transfer, &mut inspection).await;
                inspected.map_err(PutError::Transfer)?;
                decided.sha256 = inspection.take_sha256();
            }
            return Ok(None);
        };
        if let Some(reused) = decided.reused.take() {
            let action = action_of(decided);
            let delivered = self.delivered_before(target.path, action, reused);
            return Ok(Some(delivered));
        }
        let mut inspection = self.inspection(entry).await?;
        let transfer = self.transfer(entry, Some(target), opened);
        let moved = transfer::plain(&transfer, &mut inspection).await;
        let Moved { staged, hash, sent } = moved.map_err(PutError::Transfer)?;
        decided.sha256 = inspection.take_sha256();
        let slot = transfer::after_staging(slot, &staged);
        let action = action_of(decided);
        let landed = self.land(staged, Some(hash), action).await;
        drop(slot);
        Ok(Some(Delivered {
            main: landed?,
            others: Vec::new(),
            source_hash: Some(hash),
            sent,
            steps: Vec::new(),
        }))
    }

    /// Brings over what the steps make of a file.
    async fn put_through(
        &self,
        entry: &Entry,
        decided: &mut Decided,
    ) -> Result<Delivered, PutError> {
        let Ok(_slot) = self.context.slots.acquire().await else {
            return Err(PutError::Transfer(TransferError::Cancelled));
        };
        let recipe = self.job.steps.recipe(self.context.clock.now());
        let recipe = recipe.map_err(|error| PutError::Transfer(TransferError::Step(error)))?;
        let opened = std::mem::take(&mut decided.opened);
        let transfer = self.transfer(entry, None, opened);
        let mut inspection = self.inspection(entry).await?;
        let mut outputs = Streamed::new(self, entry, decided);
        let driving = transfer::drive(&transfer, &recipe, &mut inspection, &mut outputs);
        let driven = match driving.await {
            Ok(driven) => driven,
            Err(error) => {
                outputs.abort().await;
                return Err(outputs.failed.take().unwrap_or(PutError::Transfer(error)));
            }
        };
        let sent = outputs.length;
        let sha256 = inspection.take_sha256();
        let mut landed = self.land_all(outputs.waiting).await?.into_iter();
        let Some(main) = landed.next() else {
            return Err(PutError::Transfer(TransferError::NoTarget));
        };
        decided.sha256 = sha256;
        Ok(Delivered {
            main,
            others: landed.collect(),
            source_hash: Some(driven.source_hash),
            sent,
            steps: driven.steps,
        })
    }

    pub(super) async fn put_link(
        &self,
        entry: &Entry,
        decided: &mut Decided,
    ) -> Result<Option<Delivered>, PutError> {
        let Some(target) = self.target(entry, entry.path.clone(), decided).await? else {
            return Ok(None);
        };
        let node = NewNode::Symlink {
            target: entry.link_target.clone().unwrap_or_default(),
        };
        let options = WriteOptions {
            replace: target.replace,
            ..WriteOptions::new(node, target.staged_id)
        };
        let written = async {
            let destination = &self.context.destination;
            let upload = destination.write(&target.path, options).await?;
            upload.stage(0, ContentHash::of(b"")).await
        };
        let staged = written.await.map_err(PutError::Remote)?;
        let action = action_of(decided);
        Ok(Some(Delivered {
            main: self.land(staged, None, action).await?,
            others: Vec::new(),
            source_hash: None,
            sent: 0,
            steps: Vec::new(),
        }))
    }

    /// The record of one output of the steps, from what holds for all of them.
    pub(crate) fn output_record(&self, shared: &CustodyRecord, landed: &Landed) -> CustodyRecord {
        CustodyRecord {
            at: self.context.clock.now(),
            action: landed.action,
            destination: self.shown(&landed.path),
            evidence: landed.committed.evidence.clone(),
            ..shared.clone()
        }
    }
}
