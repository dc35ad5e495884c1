//! Two legitimate histories of one path: both are kept, on both sides (K6).
//!
//! Order: the loser is renamed on its own side first, so that from then on nothing can overwrite it;
//! then the winner is brought to the loser's side, then the loser under its new name to the winner's.
//! A crash in between leaves two ordinary new files, which the next run brings over.

use std::sync::Arc;

use knarr_core::plan::{Beside, Compare, Conflict, numbered_path};
use knarr_core::record::Action;
use knarr_core::{Entry, Kind, RelPath};
use knarr_remote::{ErrorKind, RemoteError, RenameOptions, Replace};

use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::Change;
use crate::observer::Trouble;
use crate::put::{Put, PutError, adopt, put, same_content};

/// How often another name is tried when the conflict name is taken.
const OTHER_NAMES: u32 = 100;

/// Keeps both versions. Returns whether that worked.
///
/// # Errors
/// Only if the state could not be recorded.
pub(crate) async fn keep_both(
    context: &Arc<Context>,
    conflict: Conflict,
) -> Result<bool, EngineError> {
    let both_files = conflict.source.kind == Kind::File && conflict.destination.kind == Kind::File;
    if both_files && conflict.source.size == conflict.destination.size {
        let same = same_content(
            context,
            &context.source,
            &context.destination,
            &conflict.source,
            &conflict.destination,
        );
        match same.await {
            Ok(true) => {
                let to = conflict.winner.other();
                adopt(
                    context,
                    to,
                    conflict.winner().clone(),
                    conflict.loser().clone(),
                )
                .await?;
                return Ok(true);
            }
            Ok(false) => {}
            Err(PutError::Engine(error)) => return Err(error),
            Err(error) => {
                let message = crate::error::chain(&error);
                return failed(context, &conflict, message).await;
            }
        }
    }
    let loser_side = conflict.winner.other();
    let aside = match rename_aside(context, &conflict).await {
        Ok(aside) => aside,
        Err(error) => {
            let message = crate::error::chain(&error);
            return failed(context, &conflict, message).await;
        }
    };
    let message = format!(
        "both sides changed it; the version of the {} is kept as \"{}\"",
        match loser_side {
            knarr_core::plan::Side::Source => "first location",
            knarr_core::plan::Side::Destination => "second location",
        },
        aside.path
    );
    let mut record = context
        .journal
        .custody(Action::Conflict, conflict.winner(), loser_side);
    record.message = Some(message.clone());
    let mut changes = vec![Change::Custody(Box::new(record))];
    if conflict.winner().kind != conflict.loser().kind {
        let (path, kind) = (conflict.loser().path.clone(), conflict.loser().kind);
        changes.push(Change::Forget { path, kind });
    }
    context.journal.record(changes).await?;
    Tally::add(&context.tally.conflicts, 1);
    context.trouble(Some(&conflict.source.path), Trouble::Conflict, &message);
    let bring = |to, entry: &Entry| Put {
        to,
        entry: entry.clone(),
        replaces: None,
        beside: Beside::No,
        compare: Compare::No,
    };
    let winner = put(context, bring(loser_side, conflict.winner())).await?;
    let loser = put(context, bring(conflict.winner, &aside)).await?;
    Ok(winner && loser)
}

/// Gives the loser its conflict name, on its own side.
async fn rename_aside(context: &Context, conflict: &Conflict) -> Result<Entry, RemoteError> {
    let remote = context.side(conflict.winner.other());
    let loser = conflict.loser();
    // What lies there now has to be what was seen, or the rename would move an edit nobody planned.
    let now = remote.stat(&loser.path).await?;
    if !now.is_some_and(|now| loser.fingerprint().still_describes(&now)) {
        let message = "it changed since it was looked at";
        return Err(
            RemoteError::new(ErrorKind::Changed, "keep a conflict", message).at(&loser.path),
        );
    }
    let mut aside: RelPath = conflict.conflict_path.clone();
    for number in 2..OTHER_NAMES {
        let taken_there = context.side(conflict.winner).stat(&aside).await?.is_some();
        if !taken_there {
            let options = RenameOptions {
                replace: Replace::Nothing,
            };
            match remote.rename(&loser.path, &aside, options).await {
                Err(error) if error.kind == ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
        aside = numbered_path(&conflict.conflict_path, number);
    }
    let message = "all conflict names are taken: tidy up the old conflicts";
    Err(RemoteError::new(ErrorKind::AlreadyExists, "keep a conflict", message).at(&loser.path))
}

async fn failed(
    context: &Arc<Context>,
    conflict: &Conflict,
    message: String,
) -> Result<bool, EngineError> {
    let to = conflict.winner.other();
    let mut record = context
        .journal
        .custody(Action::Failed, conflict.winner(), to);
    record.message = Some(message.clone());
    context
        .journal
        .record(vec![Change::Custody(Box::new(record))])
        .await?;
    Tally::add(&context.tally.failed, 1);
    context.trouble(Some(&conflict.source.path), Trouble::Error, &message);
    Ok(false)
}
