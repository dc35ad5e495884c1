//! What came of a run.

use std::sync::atomic::Ordering;

use knarr_core::plan::MassDeletion;
use knarr_core::run::{Run, RunEvent, RunState};

use crate::context::Context;
use crate::error::EngineError;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// The run's number, for `knarr history`.
    pub run: u64,
    /// How it ended.
    pub state: RunState,
    /// Entries new at the side they went to.
    pub created: u64,
    /// Entries replaced.
    pub updated: u64,
    /// Entries renamed instead of sent again.
    pub renamed: u64,
    /// Entries removed.
    pub deleted: u64,
    /// Entries both sides had already.
    pub adopted: u64,
    /// Conflicts; both versions were kept.
    pub conflicts: u64,
    /// Paths that cannot be handled.
    pub problems: u64,
    /// Paths that failed.
    pub failed: u64,
    /// Paths left alone on purpose.
    pub skipped: u64,
    /// Bytes of what was created and updated.
    pub bytes: u64,
    /// Bytes that went over the wire.
    pub sent_bytes: u64,
    /// Entries of the source's listing.
    pub source_entries: u64,
    /// Parts of listings that could not be seen.
    pub incomplete: u64,
    /// Removals that were not carried out.
    pub held_removals: u64,
    /// Why they were held.
    pub held: Option<MassDeletion>,
    /// Whether an endpoint could not be reached.
    pub unreachable: bool,
}

impl Report {
    /// What was counted so far, of a run that ends with `event` after a look at so many entries.
    pub(crate) fn of(
        context: &Context,
        event: RunEvent,
        source_entries: u64,
    ) -> Result<Self, EngineError> {
        let state = Run::begin()
            .apply(event)
            .map_err(|_illegal| EngineError::Internal("a run ended twice"))?
            .state();
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let tally = &context.tally;
        Ok(Self {
            run: context.journal.run(),
            state,
            created: get(&tally.created),
            updated: get(&tally.updated),
            renamed: get(&tally.renamed),
            deleted: get(&tally.deleted),
            adopted: get(&tally.adopted),
            conflicts: get(&tally.conflicts),
            problems: get(&tally.problems),
            failed: get(&tally.failed),
            skipped: get(&tally.skipped),
            bytes: get(&tally.bytes),
            sent_bytes: get(&tally.sent),
            source_entries,
            incomplete: 0,
            held_removals: 0,
            held: None,
            unreachable: tally.unreachable.load(Ordering::Relaxed),
        })
    }
}
