//! What is looked after from time to time: the destination's drift, and what nobody goes on with.

use knarr_core::plan::Side;
use knarr_core::record::{Action, CustodyRecord};
use knarr_core::tree::Synced;
use knarr_core::{RelPath, Timestamp};
use knarr_store::dirty::Seen;
use knarr_store::history::TracePath;
use knarr_store::uploads::{StoredUpload, UploadId};

use super::Journal;
use crate::error::EngineError;
use crate::node::Mark;

/// How many of a path's newest records are looked through.
const RECORDS: usize = 64;

/// Something that is not at the destination any more as it was delivered.
#[derive(Debug)]
pub(crate) struct Drifted {
    /// What was delivered.
    pub(crate) synced: Synced,
    /// What is told about it.
    pub(crate) record: CustodyRecord,
    /// What has it delivered again.
    pub(crate) mark: Mark,
}

impl Journal {
    /// Forgets what has drifted and marks it as dirty, but for what is worked on or was delivered anew in
    /// the meantime. Returns the records of what was marked.
    pub(crate) async fn drifted(
        &self,
        differences: Vec<Drifted>,
    ) -> Result<Vec<CustodyRecord>, EngineError> {
        let at = self.clock.now();
        self.write(move |tx, pair| {
            let mut told = Vec::new();
            for difference in differences {
                let Drifted {
                    synced,
                    record,
                    mark,
                } = difference;
                let as_it_was = tx.synced(pair, &synced.path)?.as_ref() == Some(&synced);
                if !as_it_was || tx.dirty(pair, &synced.path)?.is_some() {
                    continue;
                }
                tx.remove_synced(pair, [&synced.path])?;
                tx.mark_dirty(pair, &[mark.stored(Seen::Scan, at)])?;
                told.push(record);
            }
            tx.append_custody(&told)?;
            Ok(told)
        })
        .await
    }

    /// The record of the last time that a path was delivered, unless something else became of it since.
    pub(crate) async fn last_delivery(
        &self,
        path: &RelPath,
    ) -> Result<Option<CustodyRecord>, EngineError> {
        let exact = TracePath::Exact(path.clone());
        let (job, source) = (self.label.job.clone(), self.shown_at(Side::Source, path));
        let records = self
            .read(move |reader| reader.trace(&exact, RECORDS))
            .await?;
        let last = records
            .into_iter()
            .rev()
            .map(|chained| chained.record)
            // A removal that failed says nothing about the delivery, nor does that somebody was told of it.
            .find(|record| {
                record.job == job
                    && record.source == source
                    && !matches!(record.action, Action::Failed | Action::Acknowledged)
            });
        let is_delivery =
            |record: &CustodyRecord| matches!(record.action, Action::Created | Action::Updated);
        Ok(last.filter(is_delivery))
    }

    /// When the destination was last compared with what was delivered.
    pub(crate) async fn last_verified(&self) -> Result<Option<Timestamp>, EngineError> {
        self.time_setting("verified").await
    }

    /// Notes that it was.
    pub(crate) async fn set_last_verified(&self, at: Timestamp) -> Result<(), EngineError> {
        self.set_time_setting("verified", at).await
    }

    /// When staged files that nobody goes on with were last looked for.
    pub(crate) async fn last_tidied(&self) -> Result<Option<Timestamp>, EngineError> {
        self.time_setting("tidied").await
    }

    /// Notes that they were.
    pub(crate) async fn set_last_tidied(&self, at: Timestamp) -> Result<(), EngineError> {
        self.set_time_setting("tidied", at).await
    }

    pub(super) async fn time_setting(
        &self,
        name: &'static str,
    ) -> Result<Option<Timestamp>, EngineError> {
        let name = format!("{name}.{}", self.pair.number());
        let text = self.read(move |reader| reader.setting(&name)).await?;
        // What is no time was never noted.
        let nanoseconds = text.and_then(|text| text.parse().ok());
        Ok(nanoseconds.map(Timestamp::from_nanoseconds))
    }

    pub(super) async fn set_time_setting(
        &self,
        name: &'static str,
        at: Timestamp,
    ) -> Result<(), EngineError> {
        self.write(move |tx, pair| {
            let name = format!("{name}.{}", pair.number());
            tx.set_setting(&name, &at.nanoseconds().to_string())
        })
        .await
    }

    /// Uploads of the pair that nobody went on with for too long, and the side they go to.
    pub(crate) async fn expired_uploads(
        &self,
        limit: usize,
    ) -> Result<Vec<(Side, StoredUpload)>, EngineError> {
        let (pair, now) = (self.pair, self.clock.now());
        let found = self
            .read(move |reader| reader.expired_uploads_of(pair, now, limit))
            .await?;
        let side = |upload: &StoredUpload| {
            [Side::Destination, Side::Source]
                .into_iter()
                .find(|side| self.label.base(*side) == upload.begun_as.endpoint)
        };
        Ok(found
            .into_iter()
            .filter_map(|upload| Some((side(&upload)?, upload)))
            .collect())
    }

    /// Whether an upload may be given up: nobody has gone on with it meanwhile, and its path does not
    /// wait for a delivery, which would. To be asked immediately before it is given up.
    pub(crate) async fn may_give_up(
        &self,
        upload: UploadId,
        path: &RelPath,
    ) -> Result<bool, EngineError> {
        let path = path.clone();
        // A transaction: it sees what every delivery has written so far.
        self.write(move |tx, pair| {
            if !tx.is_upload_expired(upload, tx.now())? {
                return Ok(false);
            }
            // What is parked waits for a person, who may never come.
            let waiting = tx.dirty(pair, &path)?;
            Ok(waiting.is_none_or(|dirty| dirty.parked.is_some()))
        })
        .await
    }

    /// Forgets an upload that was given up, unless somebody goes on with it by now.
    pub(crate) async fn forget_expired(&self, upload: UploadId) -> Result<(), EngineError> {
        self.write(move |tx, _| tx.remove_expired_upload(upload, tx.now()))
            .await
    }
}
