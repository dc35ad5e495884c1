//! What becomes of a source after its delivery was verified and recorded (K4).

use std::sync::Arc;

use knarr_core::job::After;
use knarr_core::path::PathError;
use knarr_core::plan::Side;
use knarr_core::record::Action;
use knarr_core::{Entry, Kind, RelPath};
use knarr_remote::{ErrorKind, RemoteError, Removal, RenameOptions, Replace};

use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::Change;
use crate::observer::Trouble;
use crate::put;

/// Removes the delivered source, or moves it aside. Directories stay until they are empty and the
/// whole run is through.
pub(crate) async fn dispose(context: &Arc<Context>, entry: &Entry) -> Result<(), EngineError> {
    if entry.kind == Kind::Directory {
        return Ok(());
    }
    let (action, done) = match &context.after {
        After::Keep => return Ok(()),
        After::Delete => {
            let removal = Removal {
                path: entry.path.clone(),
                kind: entry.kind,
                seen: Some(entry.fingerprint()),
            };
            let mut results = context.source.remove(&[removal]).await;
            let done = results.pop().unwrap_or(Ok(()));
            (Action::SourceRemoved, done.map(|()| None))
        }
        After::Move(_) | After::Rename(_) => {
            let done = match aside(&context.after, &entry.path) {
                Ok(aside) => move_aside(context, &entry.path, aside).await,
                Err(error) => Err(invalid(&error)),
            };
            (Action::SourceMoved, done.map(Some))
        }
    };
    if done.is_ok() {
        dispose_company(context, entry).await;
    }
    let mut record = context.journal.custody(action, entry, Side::Destination);
    // It stays on its side. Where it was delivered to is told by the record of that.
    record.destination.clear();
    let changes = match done {
        Ok(aside) => {
            if let Some(aside) = aside {
                record.destination = context.journal.shown_at(Side::Source, &aside);
            }
            vec![
                Change::Forget {
                    path: entry.path.clone(),
                    kind: entry.kind,
                },
                Change::Custody(Box::new(record)),
            ]
        }
        Err(error) => {
            // The delivery stands; the source is looked at again by the next run.
            record.action = Action::Failed;
            record.message = Some(format!(
                "delivered, but the source could not be removed: {error}"
            ));
            context.tally.note_error(&error);
            Tally::add(&context.tally.failed, 1);
            context.trouble(
                Some(&entry.path),
                Trouble::Error,
                &crate::error::chain(&error),
            );
            vec![Change::Custody(Box::new(record))]
        }
    };
    context.journal.record(changes).await
}

/// The name of a delivered source in the directory it is moved to, or with what is added to it.
///
/// # Errors
/// If that is no path.
pub(crate) fn aside(after: &After, path: &RelPath) -> Result<RelPath, PathError> {
    match after {
        After::Move(directory) => RelPath::new(directory.trim_matches('/').as_bytes())
            .and_then(|directory| directory.join(path)),
        After::Rename(suffix) => path.with_name(&[path.name(), suffix.as_bytes()].concat()),
        After::Keep | After::Delete => Ok(path.clone()),
    }
}

fn invalid(error: &PathError) -> RemoteError {
    let message = error.to_string();
    RemoteError::new(ErrorKind::InvalidName, "move the source aside", message)
}

/// Gives the source its other name, or the next free one beside it. Returns that.
async fn move_aside(
    context: &Context,
    path: &RelPath,
    aside: RelPath,
) -> Result<RelPath, RemoteError> {
    let options = || RenameOptions {
        replace: Replace::Nothing,
    };
    match context.source.rename(path, &aside, options()).await {
        Err(error) if error.kind == ErrorKind::AlreadyExists => {
            let free = put::free_name(context.source.as_ref(), &aside).await?;
            context.source.rename(path, &free, options()).await?;
            Ok(free)
        }
        other => other.map(|_entry| aside),
    }
}

/// What came along with a file, its checksum, goes the same way. If that fails, it stays: nobody needs it.
async fn dispose_company(context: &Context, entry: &Entry) {
    let Some(side) = context.checks.side_file(&entry.path) else {
        return;
    };
    // Only the one that was read: that of the next version may be there already.
    let Some(seen) = context.side_files.take(&side) else {
        return;
    };
    let done = match &context.after {
        After::Keep => return,
        After::Delete => {
            let removal = Removal {
                path: side.clone(),
                kind: Kind::File,
                seen: Some(seen),
            };
            let mut results = context.source.remove(&[removal]).await;
            results.pop().unwrap_or(Ok(()))
        }
        After::Move(_) | After::Rename(_) => {
            let there = context.source.stat(&side).await;
            match (there, aside(&context.after, &side)) {
                (Ok(Some(there)), Ok(aside)) if seen.still_describes(&there) => {
                    move_aside(context, &side, aside).await.map(drop)
                }
                (Ok(_), Ok(_)) => return,
                (Err(error), _) => Err(error),
                (_, Err(error)) => Err(invalid(&error)),
            }
        }
    };
    if let Err(error) = done {
        tracing::warn!(path = %side, %error, "the file with the checksum stays at the source");
    }
}
