//! What one attempt leaves for the next one, and the look before it.

use knarr_core::RelPath;
use knarr_core::entry::Fingerprint;
use knarr_core::plan::{Decision, Operation, Policy, Side, decide_existing};
use knarr_remote::{ErrorKind, RemoteError, Removal};
use knarr_store::intents::IntentId;

use super::Put;
use crate::context::{Context, Tally};
use crate::journal::Change;
use crate::observer::Trouble;

/// What is enough to say that both sides have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Trust {
    /// What the policy says.
    #[default]
    Policy,
    /// Only equal contents: what an attempt brought there may be damaged.
    Contents,
}

/// What an attempt committed and then found to be damaged.
#[derive(Debug, Clone)]
pub(super) struct Mend {
    pub(super) path: RelPath,
    pub(super) there: Fingerprint,
}

/// What earlier attempts at the same entry left.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// What was meant by attempts of which nobody knows whether they were carried out.
    unclear: Vec<IntentId>,
    /// What was meant and surely is not there.
    refuted: Vec<IntentId>,
    pub(super) mend: Option<Mend>,
    pub(super) trust: Trust,
}

impl Earlier {
    pub(super) fn new(unclear: Vec<IntentId>) -> Self {
        Self {
            unclear,
            ..Self::default()
        }
    }

    /// A commit did not answer that it is done.
    pub(super) fn failed(&mut self, error: &RemoteError, intent: Option<IntentId>) {
        match error.kind {
            // The place refused, so what is there is not ours.
            ErrorKind::Changed | ErrorKind::AlreadyExists => self.refuted.extend(intent),
            // Also so says a place that read back other bytes than were sent.
            ErrorKind::Protocol => {
                self.trust = Trust::Contents;
                self.unclear.extend(intent);
            }
            _ => self.unclear.extend(intent),
        }
    }

    /// It is committed, and nobody knows yet whether it is right.
    pub(super) fn unverified(&mut self, intent: Option<IntentId>) {
        self.unclear.extend(intent);
    }

    /// It is committed and wrong (K3): nobody may find it and take it for a delivery.
    pub(super) fn damaged(&mut self, mend: Mend, intent: Option<IntentId>) {
        self.refuted.extend(intent);
        self.mend = Some(mend);
        self.trust = Trust::Contents;
    }

    /// Removes what is proven to be damaged and is not mended any more: by its length and time the next run
    /// would take it for the file (K3). Returns whether it was removed.
    pub(super) async fn discard(&mut self, context: &Context, to: Side) -> bool {
        let Some(Mend { path, there }) = self.mend.take() else {
            return false;
        };
        let removal = Removal {
            path,
            kind: there.kind,
            seen: Some(there),
        };
        let (_, into) = context.sides(to);
        let removed = into.remove(std::slice::from_ref(&removal)).await.pop();
        if let Some(Err(error)) = &removed {
            let message = format!("it is damaged and could not be removed: {error}");
            context.trouble(Some(&removal.path), Trouble::Notice, &message);
        }
        matches!(removed, Some(Ok(())))
    }

    /// What is to be forgotten with the record of a failure.
    pub(super) fn take_refuted(&mut self) -> impl Iterator<Item = Change> + use<> {
        std::mem::take(&mut self.refuted)
            .into_iter()
            .map(Change::ClearIntent)
    }

    /// What is to be forgotten with the record of what is there.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Change> + use<> {
        let unclear = std::mem::take(&mut self.unclear);
        self.take_refuted()
            .chain(unclear.into_iter().map(Change::ClearIntent))
    }

    /// Whether the next attempt has something to do. An attempt that may have left damage must not
    /// take what it finds for its own work.
    pub(super) async fn goes_on(&self, context: &Context, put: &mut Put) -> bool {
        self.trust == Trust::Policy
            || self.mend.is_some()
            || !matches!(look(context, put, self.trust).await, Ok(false))
    }
}

/// Looks at both sides again and decides anew. `false` if there is nothing left to do.
pub(super) async fn look(
    context: &Context,
    put: &mut Put,
    trust: Trust,
) -> Result<bool, RemoteError> {
    let (from, into) = context.sides(put.to);
    let path = put.entry.path.clone();
    let Some(entry) = from.stat(&path).await? else {
        return Ok(false);
    };
    if entry.kind != put.entry.kind {
        // It is another thing now; the next run plans it.
        return Ok(false);
    }
    put.entry = entry;
    let Some(there) = into.stat(&path).await? else {
        put.replaces = None;
        return Ok(true);
    };
    let policy = Policy {
        adopt: false,
        checksum: context.policy.checksum || trust == Trust::Contents,
        ..context.policy.clone()
    };
    match decide_existing(put.entry.clone(), there, &policy) {
        Some(Decision::Operation(Operation::Put {
            replaces,
            beside,
            compare,
            ..
        })) => {
            (put.replaces, put.beside, put.compare) = (replaces, beside, compare);
            Ok(true)
        }
        Some(Decision::Problem(problem)) => {
            context.trouble(Some(&problem.path), Trouble::Problem, &problem.message);
            Tally::add(&context.tally.problems, 1);
            Ok(false)
        }
        Some(Decision::Operation(_) | Decision::Conflict(_)) | None => Ok(false),
    }
}
