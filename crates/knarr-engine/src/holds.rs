//! Held plans: what the brake stopped, and what a person approved.

use knarr_core::plan::{Brake, MassDeletion};
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::{ContentHash, RelPath, Timestamp};
use knarr_store::holds::NewHold;
use knarr_store::runs::RunId;
use knarr_store::{PairId, StoreError, Tx};

use crate::journal::PairLabel;
use crate::node::Deletions;

/// What is held because it is too much.
const MASS_DELETION: &str = "mass deletion";

pub(crate) fn new_hold(deletes: u64, total: u64, reason: MassDeletion) -> NewHold {
    let (kind, text) = match reason {
        MassDeletion::TooMany => (MASS_DELETION, "it would delete more than the brake allows"),
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
            // More came: whoever approves is to see how many there are.
            if held.held.deletes != new.deletes {
                tx.hold(pair, &new)?;
            }
            return Ok(true);
        }
    }
    tx.append_custody([&held_record(label, run.0, at, &new)])?;
    tx.hold(pair, &new)?;
    Ok(true)
}

/// What is to become of a job's deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What was seen as gone first until then was approved.
    pub(crate) approved_until: Option<Timestamp>,
    /// What becomes of everything else.
    pub(crate) others: Deletions,
    /// Whether anything is held, or was approved and is not carried out yet.
    pub(crate) is_open: bool,
}

impl Verdict {
    /// There is nothing to be said against them.
    pub(crate) const ALLOWED: Self = Self {
        approved_until: None,
        others: Deletions::Allowed,
        is_open: false,
    };
}

/// What is being carried out of an approved plan. The hold itself is gone by then: an approval is for one
/// plan, and used up by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Approved {
    /// When it began to be carried out: what was in the queue then is meant.
    at: Timestamp,
    /// How many deletions are left of it.
    left: u64,
}

impl Approved {
    fn setting(pair: PairId) -> String {
        format!("approved.{}", pair.number())
    }

    fn load(tx: &Tx<'_>, pair: PairId) -> Result<Option<Self>, StoreError> {
        let text = tx.setting(&Self::setting(pair))?;
        // What nobody can read was not approved.
        Ok(text.as_deref().and_then(|text| {
            let (at, left) = text.split_once(' ')?;
            Some(Self {
                at: Timestamp::from_nanoseconds(at.parse().ok()?),
                left: left.parse().ok()?,
            })
        }))
    }

    fn save(now: Option<Self>, tx: &mut Tx<'_>, pair: PairId) -> Result<(), StoreError> {
        let name = Self::setting(pair);
        match now {
            Some(Self { at, left }) => {
                tx.set_setting(&name, &format!("{} {left}", at.nanoseconds()))
            }
            None => tx.remove_setting(&name),
        }
    }
}

/// Decides about the deletions that wait in a job's queue, of which `done` approved ones were carried out
/// since this was asked last.
pub(crate) fn judge(
    tx: &mut Tx<'_>,
    pair: PairId,
    (run, label, at): (RunId, &PairLabel, Timestamp),
    brake: Brake,
    done: u64,
) -> Result<Verdict, StoreError> {
    let gone = tx.count_gone(pair)?;
    let before = Approved::load(tx, pair)?;
    let mut approved = before
        .map(|approved| Approved {
            left: approved.left.saturating_sub(done).min(gone),
            ..approved
        })
        .filter(|approved| approved.left > 0);
    let unapproved = gone - approved.map_or(0, |approved| approved.left);
    // Counting what was delivered looks at all of it: not for a few.
    let known = if unapproved > brake.files {
        tx.count_synced(pair)?
    } else {
        unapproved
    };
    let listed = known.saturating_sub(unapproved).max(1);
    let held = tx.held(pair)?;
    let mut others = Deletions::Allowed;
    if brake.holds(unapproved, known, listed).is_some() {
        let new = new_hold(unapproved, known, MassDeletion::TooMany);
        if hold_or_approved(tx, pair, (run, label, at), new)? {
            others = Deletions::Held;
        } else {
            approved = Some(Approved {
                at: tx.now(),
                left: gone,
            });
            tx.clear_hold(pair)?;
        }
    } else if held.is_some_and(|hold| hold.held.kind == MASS_DELETION) {
        // It was done already, or things came back: nothing is left that would have to be held.
        tx.clear_hold(pair)?;
    }
    if approved != before {
        Approved::save(approved, tx, pair)?;
    }
    Ok(Verdict {
        approved_until: approved.map(|approved| approved.at),
        others,
        is_open: approved.is_some() || tx.held(pair)?.is_some(),
    })
}

/// Turns an approval into what is being carried out: all that waits in the queue to be deleted.
pub(crate) fn use_approval(tx: &mut Tx<'_>, pair: PairId) -> Result<(), StoreError> {
    let left = tx.count_gone(pair)?;
    if take_approval(tx, pair)?.is_some() && left > 0 {
        let at = tx.now();
        Approved::save(Some(Approved { at, left }), tx, pair)?;
    }
    Ok(())
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
