//! Removals and renames.

use std::sync::Arc;

use knarr_core::entry::Fingerprint;
use knarr_core::plan::Side;
use knarr_core::record::Action;
use knarr_core::tree::Synced;
use knarr_core::{Entry, Kind};
use knarr_remote::{ErrorKind, RemoteError, Removal, RenameOptions, Replace};

use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::{Change, intents};
use crate::observer::{Event, Trouble};
use crate::put::{self, Put};

/// How many removals go to the place at once.
pub(crate) const REMOVALS: usize = 500;

/// Removes what was seen, and records it. What is another version by now stays.
///
/// # Errors
/// Only if the state could not be recorded.
pub(crate) async fn remove(
    context: &Arc<Context>,
    to: Side,
    seen: Vec<Entry>,
    decided_by: &str,
) -> Result<(), EngineError> {
    let removals: Vec<Removal> = seen
        .iter()
        .map(|entry| Removal {
            path: entry.path.clone(),
            kind: entry.kind,
            seen: Some(entry.fingerprint()),
        })
        .collect();
    let intended: Vec<_> = seen
        .iter()
        .map(|entry| intents::removal(to, entry))
        .collect();
    let intent = context.journal.intend(intended.clone()).await?;
    let results = context.side(to).remove(&removals).await;
    let mut changes = Vec::with_capacity(seen.len() * 2 + 1);
    let mut left = Vec::new();
    for ((entry, result), intended) in seen.iter().zip(results).zip(intended) {
        let forget = || Change::Forget {
            path: entry.path.clone(),
            kind: entry.kind,
        };
        let mut record = context.journal.custody(Action::Deleted, entry, to);
        record.decided_by = decided_by.to_owned();
        match result {
            Ok(()) => {
                changes.push(forget());
                Tally::add(&context.tally.deleted, 1);
                let (path, action) = (&entry.path, Action::Deleted);
                context.observer.event(&Event::Finished {
                    path,
                    action,
                    bytes: 0,
                });
            }
            // Something new is inside, or it was filled again: it stays, and the next run looks anew.
            Err(error) if entry.kind == Kind::Directory && error.kind == ErrorKind::NotEmpty => {
                changes.push(forget());
                continue;
            }
            Err(error) => {
                record.action = Action::Failed;
                record.message = Some(crate::error::chain(&error));
                trouble(context, entry, &error);
                if !is_refusal(&error) {
                    left.push(intended);
                }
            }
        }
        changes.push(Change::Custody(Box::new(record)));
    }
    context.journal.record_leaving(changes, intent, left).await
}

/// Whether it surely was not removed. After any other error it may be gone, and its answer lost (K11).
const fn is_refusal(error: &RemoteError) -> bool {
    matches!(
        error.kind,
        ErrorKind::Changed | ErrorKind::NotEmpty | ErrorKind::PermissionDenied
    )
}

fn trouble(context: &Context, entry: &Entry, error: &RemoteError) {
    context.tally.note_error(error);
    if error.kind == ErrorKind::Changed {
        // A person or program was faster: its version stays.
        Tally::add(&context.tally.skipped, 1);
        let message = "it changed after it was planned to be removed, so it stays";
        context.trouble(Some(&entry.path), Trouble::Notice, message);
        return;
    }
    Tally::add(&context.tally.failed, 1);
    context.trouble(
        Some(&entry.path),
        Trouble::Error,
        &crate::error::chain(error),
    );
}

/// Gives what was delivered as `from` the name that `entry` has now. Where that does not work, the
/// entry is brought over as if it were new.
///
/// # Errors
/// Only if the state could not be recorded.
pub(crate) async fn rename(
    context: &Arc<Context>,
    to: Side,
    from: &Synced,
    entry: Entry,
) -> Result<bool, EngineError> {
    let there = match to {
        Side::Destination => &from.destination,
        Side::Source => &from.source,
    };
    match try_rename(context, to, from, there, &entry).await {
        Ok(committed) => {
            let mut record = context.journal.custody(Action::Renamed, &entry, to);
            record.message = Some(format!("was \"{}\"", from.path));
            record.source_hash = from.hash;
            let synced = put::synced(to, &entry, &committed, &entry.path, from.hash);
            let changes = vec![
                Change::Forget {
                    path: from.path.clone(),
                    kind: from.kind(),
                },
                Change::Synced(Box::new(synced)),
                Change::Custody(Box::new(record)),
            ];
            context.journal.record(changes).await?;
            Tally::add(&context.tally.renamed, 1);
            let (path, action) = (&entry.path, Action::Renamed);
            context.observer.event(&Event::Finished {
                path,
                action,
                bytes: 0,
            });
            Ok(true)
        }
        Err(error) => {
            tracing::debug!(path = %entry.path, %error, "a rename becomes a copy");
            let (beside, compare) = (knarr_core::plan::Beside::No, knarr_core::plan::Compare::No);
            put::put(
                context,
                Put {
                    to,
                    entry,
                    replaces: None,
                    beside,
                    compare,
                },
            )
            .await
        }
    }
}

async fn try_rename(
    context: &Context,
    to: Side,
    from: &Synced,
    there: &Fingerprint,
    entry: &Entry,
) -> Result<Entry, RemoteError> {
    let remote = context.side(to);
    let refuse =
        |kind, message: &str| Err(RemoteError::new(kind, "rename", message).at(&from.path));
    if !remote.describe().capabilities.rename || from.destination_path.is_some() {
        return refuse(ErrorKind::Unsupported, "the place cannot rename");
    }
    match remote.stat(&from.path).await? {
        Some(now) if there.still_describes(&now) => {}
        _ => return refuse(ErrorKind::Changed, "it is not what was delivered any more"),
    }
    remote
        .rename(
            &from.path,
            &entry.path,
            RenameOptions {
                replace: Replace::Nothing,
            },
        )
        .await
}
