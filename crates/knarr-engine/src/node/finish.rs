//! Sources that were delivered and are still there, though the job removes them or moves them aside.
//!
//! That is left by a process that died after the record of the delivery, by a removal that failed, and by
//! a job that kept its sources until now. Before such a source goes, the delivery has to be proven (K4).

use knarr_core::entry::{Entry, Kind};
use knarr_core::job::{After, Verify};
use knarr_core::plan::Side;
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::tree::Synced;
use knarr_store::dirty::Dirty;

use crate::dispose;
use crate::journal::entry_of;
use crate::node::deliver::{Delivering, Outcome};
use crate::put::{self, PutError};

/// What is known of an earlier delivery.
pub(super) enum Standing {
    /// It arrived, as the record or the destination proves.
    Proven,
    /// That is not known: it is delivered again.
    Unproven,
    /// It arrived, and was changed there since.
    Changed,
}

impl Delivering {
    /// Whether the delivery that the synced tree tells of is proven well enough for the source to go.
    pub(super) async fn standing(
        &self,
        entry: &Entry,
        synced: &Synced,
    ) -> Result<Standing, PutError> {
        let context = &self.context;
        let at = synced.at_destination();
        let there = context
            .destination
            .stat(at)
            .await
            .map_err(PutError::Remote)?;
        let last = context.journal.last_delivery(&entry.path).await;
        let recorded = last
            .map_err(PutError::Engine)?
            .is_some_and(|record| proves(&record, entry, context.verify));
        let Some(there) = there else {
            // Whoever it was for may have taken it.
            return Ok(if recorded {
                Standing::Proven
            } else {
                Standing::Unproven
            });
        };
        if !synced.destination.still_describes(&there) {
            return Ok(Standing::Changed);
        }
        if recorded || entry.kind == Kind::Symlink {
            return Ok(Standing::Proven);
        }
        if !self.job.steps.is_empty() {
            // What the steps made cannot be compared with what it was made from.
            return Ok(Standing::Unproven);
        }
        let (from, into) = (&context.source, &context.destination);
        Ok(
            if put::same_content(context, from, into, entry, &there).await? {
                Standing::Proven
            } else {
                Standing::Unproven
            },
        )
    }

    /// The record of a source that is gone, as this job removes its sources or moves them aside, and that
    /// nobody recorded: a process died in between (K11). None if there is nothing to tell.
    pub(super) async fn finished_unrecorded(
        &self,
        dirty: &Dirty,
        synced: &Synced,
    ) -> Result<Option<CustodyRecord>, PutError> {
        let context = &self.context;
        let last = context.journal.last_delivery(&dirty.path).await;
        if last.map_err(PutError::Engine)?.is_none() {
            return Ok(None);
        }
        let seen = entry_of(dirty.path.clone(), synced.source.clone());
        let mut record = context.journal.custody(
            match &context.after {
                After::Keep => return Ok(None),
                After::Delete => Action::SourceRemoved,
                After::Move(_) | After::Rename(_) => Action::SourceMoved,
            },
            &seen,
            Side::Destination,
        );
        // It stays on its side.
        record.destination.clear();
        let mut message =
            "found after an interruption: what was delivered is gone from its place".to_owned();
        if matches!(context.after, After::Move(_) | After::Rename(_)) {
            // Under another name, as something had that one already, it is not looked for.
            let Ok(aside) = dispose::aside(&context.after, &dirty.path) else {
                return Ok(None);
            };
            let found = context.source.stat(&aside).await;
            let found = found.map_err(PutError::Remote)?;
            let is_it = |entry: &Entry| {
                synced.source.still_describes(entry) && synced.source.identity == entry.identity
            };
            if !found.as_ref().is_some_and(is_it) {
                return Ok(None);
            }
            record.destination = context.journal.shown_at(Side::Source, &aside);
            message = "found after an interruption, moved aside".to_owned();
        }
        record.message = Some(message);
        Ok(Some(record))
    }

    /// Carries out what was to become of the source.
    pub(super) async fn finish(&self, dirty: &Dirty, entry: &Entry) -> Result<Outcome, PutError> {
        crate::dispose::dispose(&self.context, entry)
            .await
            .map_err(PutError::Engine)?;
        self.settle(dirty, Vec::new()).await
    }
}

/// Whether the record is of this version, and its evidence is what the job asks for.
fn proves(record: &CustodyRecord, entry: &Entry, verify: Verify) -> bool {
    if record.size != entry.size || record.mtime != entry.mtime {
        return false;
    }
    match (&record.evidence, verify) {
        (Evidence::None, _) => false,
        (Evidence::ReadBack { .. }, _) | (_, Verify::Size) => true,
        (_, Verify::Full) | (Evidence::SizeOnly { .. }, Verify::Offered) => false,
        (Evidence::Written { .. } | Evidence::ServerChecksum { .. }, Verify::Offered) => true,
    }
}
