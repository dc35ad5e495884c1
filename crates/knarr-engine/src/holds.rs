//! Held plans: what the brake stopped, and what a person approved.

use knarr_core::plan::MassDeletion;
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::{ContentHash, RelPath, Timestamp};
use knarr_store::holds::NewHold;
use knarr_store::runs::RunId;
use knarr_store::{PairId, StoreError, Tx};

use crate::journal::PairLabel;

pub(crate) fn new_hold(deletes: u64, total: u64, reason: MassDeletion) -> NewHold {
    let (kind, text) = match reason {
        MassDeletion::TooMany => (
            "mass deletion",
            "it would delete more than the brake allows",
        ),
        MassDeletion::SuspiciouslyEmpty => (
            "suspiciously empty",
            "the source is empty or another than before",
        ),
    };
    // Approved is what was reviewed: as many deletions, for the same reason.
    let digest = ContentHash::of(format!("{kind}/{deletes}").as_bytes());
    NewHold {
        kind: kind.to_owned(),
        deletes,
        total,
        reason: text.to_owned(),
        digest,
    }
}

pub(crate) fn hold_or_approved(
    tx: &mut Tx<'_>,
    pair: PairId,
    (run, label, at): (RunId, &PairLabel, Timestamp),
    new: NewHold,
) -> Result<bool, StoreError> {
    if let Some(held) = tx.held(pair)? {
        if let Some(approval) = held.approval {
            if new.deletes <= held.held.deletes.saturating_add(held.held.deletes / 10) {
                tracing::info!(by = approval.by, "approved deletions go on");
                return Ok(false);
            }
        } else if held.held.kind == new.kind {
            return Ok(true);
        }
    }
    tx.append_custody([&held_record(label, run.0, at, &new)])?;
    tx.hold(pair, &new)?;
    Ok(true)
}

pub(crate) fn take_approval(tx: &mut Tx<'_>, pair: PairId) -> Result<Option<String>, StoreError> {
    let Some(approval) = tx.held(pair)?.and_then(|hold| hold.approval) else {
        return Ok(None);
    };
    tx.clear_hold(pair)?;
    Ok(Some(approval.by))
}

pub(crate) fn held_record(
    label: &PairLabel,
    run: u64,
    at: Timestamp,
    hold: &NewHold,
) -> CustodyRecord {
    CustodyRecord {
        at,
        run,
        job: label.job.clone(),
        // About everything below the root; a record has a path.
        path: RelPath::from_name(b"*").expect("a star is a name"),
        action: Action::Held,
        source: label.source.clone(),
        destination: label.destination.clone(),
        size: 0,
        mtime: None,
        source_hash: None,
        evidence: Evidence::None,
        seen_at: None,
        complete_because: None,
        steps: Vec::new(),
        attempt: 1,
        moved_bytes: 0,
        duration_microseconds: 0,
        message: Some(format!(
            "{} of {} would be deleted: {}",
            hold.deletes, hold.total, hold.reason
        )),
        decided_by: "brake".to_owned(),
    }
}
