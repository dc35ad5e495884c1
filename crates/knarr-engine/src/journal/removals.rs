//! Removals that a run has planned, and those that are held.

use knarr_core::Entry;
use knarr_core::plan::{Brake, MassDeletion, Side};
use knarr_store::deletions::Deletion;

use super::{Journal, engine_side, entry_of, store_side};
use crate::error::EngineError;
use crate::holds::{
    Verdict, held_record, hold_or_approved, judge, new_hold, take_approval, use_approval,
};
use crate::planning::Planned;
use std::sync::Arc;

impl Journal {
    /// Adds removals to those the run has planned.
    pub(crate) async fn spool(&self, removals: Vec<(Side, Entry)>) -> Result<(), EngineError> {
        let run = self.run;
        self.write(move |tx, _| {
            let deletions: Vec<Deletion> = removals
                .into_iter()
                .map(|(side, entry)| Deletion {
                    side: store_side(side),
                    seen: entry.fingerprint(),
                    path: entry.path,
                })
                .collect();
            tx.spool_deletions(run, &deletions)
        })
        .await
    }

    /// Takes removals off the end of what the run has planned.
    pub(crate) async fn unspool(&self, limit: usize) -> Result<Vec<(Side, Entry)>, EngineError> {
        let run = self.run;
        let deletions = self
            .write(move |tx, _| tx.take_deletions(run, limit))
            .await?;
        Ok(deletions
            .into_iter()
            .map(|deletion| {
                let entry = entry_of(deletion.path, deletion.seen);
                (engine_side(deletion.side), entry)
            })
            .collect())
    }

    /// Holds the removals of a run until a person approves.
    pub(crate) async fn hold(
        &self,
        removals: u64,
        planned: &Planned,
        reason: MassDeletion,
    ) -> Result<(), EngineError> {
        let counts = &planned.counts;
        let total = counts.destination_entries.max(counts.synced_entries);
        let new = new_hold(removals, total, reason);
        let (run, label, at) = (self.run, Arc::clone(&self.label), self.clock.now());
        self.write(move |tx, pair| {
            // The next run plans anew; what is kept is the fact, for `knarr approve` and `status`.
            tx.clear_deletions(run)?;
            tx.append_custody([&held_record(&label, run.0, at, &new)])?;
            tx.hold(pair, &new)
        })
        .await
    }

    /// Whether a person approved what is held; then it is held no more.
    pub(crate) async fn take_approval(&self) -> Result<Option<String>, EngineError> {
        self.write(take_approval).await
    }

    /// What was held was carried out by a run that was told to, or is not to be done any more.
    pub(crate) async fn release_hold(&self) -> Result<(), EngineError> {
        self.write(|tx, pair| match tx.held(pair)? {
            Some(_) => tx.clear_hold(pair),
            None => Ok(()),
        })
        .await
    }

    /// What is to become of a job's deletions, given how many of the approved ones were carried out since
    /// this was asked last.
    pub(crate) async fn judge_deletions(
        &self,
        brake: Brake,
        done: u64,
    ) -> Result<Verdict, EngineError> {
        let (run, label, at) = (self.run, Arc::clone(&self.label), self.clock.now());
        self.write(move |tx, pair| judge(tx, pair, (run, &label, at), brake, done))
            .await
    }

    /// What was just marked as gone is what a person approved: the approval is used up. Blocks.
    pub(crate) fn use_approval_blocking(&self) -> Result<(), EngineError> {
        let pair = self.pair;
        let pending = self.store.transact(move |tx| use_approval(tx, pair));
        pending.wait().map_err(EngineError::Store)
    }

    /// Holds what a scan takes for gone that found a directory empty or exchanged, unless it is approved.
    /// Returns whether it is held. Blocks.
    pub(crate) fn hold_unless_approved_blocking(&self, gone: u64) -> Result<bool, EngineError> {
        let (pair, run, label) = (self.pair, self.run, Arc::clone(&self.label));
        let at = self.clock.now();
        let pending = self.store.transact(move |tx| {
            let new = new_hold(gone, gone, MassDeletion::SuspiciouslyEmpty);
            hold_or_approved(tx, pair, (run, &label, at), new)
        });
        pending.wait().map_err(EngineError::Store)
    }
}
