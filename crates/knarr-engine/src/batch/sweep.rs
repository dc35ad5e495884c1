//! Removes what was staged in vain (K9: nothing is left for ever).

use knarr_core::Timestamp;
use knarr_core::entry::Kind;
use knarr_remote::Retry;
use knarr_store::batches::{BatchFile, BatchId, BatchState};

use super::flip::remove_staged;
use super::item::Item;
use crate::context::Context;
use crate::error::EngineError;

/// How many files are looked at together.
const PAGE: usize = 256;

/// Which of what earlier runs staged is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GiveUp {
    /// All: the batch that was published now is the one they belonged to.
    All,
    /// What lies there for longer than it is kept.
    Old,
}

/// Removes what attempts of this run left half staged, so that only what is complete is published.
///
/// # Errors
/// If the state cannot be read or written.
pub(super) async fn half_staged(context: &Context, batch: BatchId) -> Result<(), EngineError> {
    loop {
        let files = context
            .journal
            .batch_files(batch, BatchState::Begun, None, PAGE);
        let files = files.await?;
        if files.is_empty() || !remove(context, files).await? {
            return Ok(());
        }
    }
}

/// Removes what earlier runs staged and nobody will publish.
///
/// # Errors
/// If the state cannot be read or written. A place that does not answer is asked by the next run.
pub(crate) async fn earlier(context: &Context, give_up: GiveUp) -> Result<(), EngineError> {
    let now = context.clock.now();
    let before = match give_up {
        GiveUp::All => now.after(std::time::Duration::from_secs(1)),
        GiveUp::Old => {
            let kept = i64::try_from(context.journal.keep_unfinished().as_nanos());
            let kept = kept.unwrap_or(i64::MAX);
            Timestamp::from_nanoseconds(now.nanoseconds().saturating_sub(kept))
        }
    };
    let mut any = context.batches.get().is_some();
    loop {
        let files = context.journal.abandoned_files(before, PAGE).await?;
        any |= !files.is_empty();
        if files.is_empty() || !remove(context, files).await? {
            break;
        }
    }
    if any {
        context.journal.forget_empty_batches().await?;
    }
    Ok(())
}

/// Returns whether all could be removed.
async fn remove(context: &Context, files: Vec<BatchFile>) -> Result<bool, EngineError> {
    let (mut removed, mut all) = (Vec::with_capacity(files.len()), true);
    for file in files {
        let item = file.item.as_deref().and_then(Item::read);
        let kind = item.map_or(Kind::File, |item| item.staged.kind);
        let result = match &file.begun_as.staged {
            Some(staged) => remove_staged(context, staged, kind).await,
            None => Ok(()),
        };
        match result {
            Ok(()) => removed.push(file.id),
            Err(error) => {
                let path = &file.begun_as.path;
                tracing::warn!(%path, %error, "what was staged in vain cannot be removed yet");
                all = false;
                if error.retry == Retry::EndpointDown {
                    break;
                }
            }
        }
    }
    context.journal.forget_batch_files(removed).await?;
    Ok(all)
}
