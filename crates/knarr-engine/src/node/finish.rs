//! Sources that were delivered and are still there, though the job removes them or moves them aside.
//!
//! That is left by a process that died after the record of the delivery, by a removal that failed, and by
//! a job that kept its sources until now. Before such a source goes, the delivery has to be proven (K4).

use knarr_core::entry::{Entry, Kind};
use knarr_core::job::Verify;
use knarr_core::record::{CustodyRecord, Evidence};
use knarr_core::tree::Synced;
use knarr_store::dirty::Dirty;

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
