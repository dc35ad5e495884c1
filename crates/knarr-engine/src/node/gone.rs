//! Paths that the source has no more, and those that have another name there.

use knarr_core::RelPath;
use knarr_core::entry::{Entry, Kind};
use knarr_core::job::Deletes;
use knarr_core::record::Action;
use knarr_core::tree::{Synced, TreeItem};
use knarr_remote::{ErrorKind, ListOptions, Removal, RenameOptions, Replace};
use knarr_store::dirty::Dirty;

use crate::context::Tally;
use crate::journal::Change;
use crate::node::deliver::{Deletions, Delivering, Outcome};
use crate::observer::Event;
use crate::put::PutError;

/// The most empty directories in one that are removed with it.
const EMPTY: usize = 1_000;

impl Delivering {
    /// The source does not have it any more, or it is not meant.
    pub(super) async fn gone(
        &self,
        dirty: &Dirty,
        synced: Option<Synced>,
        deletions: Deletions,
    ) -> Result<Outcome, PutError> {
        if dirty.kind == Kind::Directory {
            if self.job.deletes == Deletes::Mirror {
                self.remove_empty(&dirty.path).await?;
            }
            return Ok(Outcome::Rescan(dirty.path.clone()));
        }
        let Some(synced) = synced else {
            return self.settle(dirty, Vec::new()).await;
        };
        let forget = Change::Forget {
            path: dirty.path.clone(),
            kind: dirty.kind,
        };
        if self.context.removes_source()
            && let Some(record) = self.finished_unrecorded(dirty, &synced).await?
        {
            let changes = vec![forget, Change::Custody(Box::new(record))];
            return self.settle(dirty, changes).await;
        }
        if self.job.deletes == Deletes::Keep {
            return self.settle(dirty, vec![forget]).await;
        }
        if deletions == Deletions::Held {
            return Ok(Outcome::Braked);
        }
        self.delete(dirty, &synced, forget).await
    }

    async fn delete(
        &self,
        dirty: &Dirty,
        synced: &Synced,
        forget: Change,
    ) -> Result<Outcome, PutError> {
        let removal = Removal {
            path: synced.at_destination().clone(),
            kind: dirty.kind,
            seen: Some(synced.destination.clone()),
        };
        let mut seen = Entry::file(dirty.path.clone(), synced.source.size);
        seen.kind = dirty.kind;
        let mut record = self.custody(Action::Deleted, &seen, dirty);
        record.destination = self.shown(&removal.path);
        let result = self
            .context
            .destination
            .remove(std::slice::from_ref(&removal))
            .await
            .pop();
        match result.unwrap_or(Ok(())) {
            Ok(()) => {
                self.remove_emptied(&dirty.path).await;
                Tally::add(&self.context.tally.deleted, 1);
                let (path, action) = (&dirty.path, Action::Deleted);
                self.context.observer.event(&Event::Finished {
                    path,
                    action,
                    bytes: 0,
                });
            }
            Err(error) if error.kind == ErrorKind::Changed => {
                record.action = Action::Skipped;
                record.message = Some(
                    "the source is gone, but the destination's file was changed there, so it stays"
                        .to_owned(),
                );
            }
            Err(error) => return Err(PutError::Remote(error)),
        }
        self.settle(dirty, vec![forget, Change::Custody(Box::new(record))])
            .await
    }

    /// Carries a rename over, if that is possible; otherwise says nothing and the path is sent anew.
    pub(super) async fn renamed(
        &self,
        from: &RelPath,
        entry: &Entry,
        dirty: &Dirty,
    ) -> Result<Option<Outcome>, PutError> {
        let journal = &self.context.journal;
        let (path, kind) = (&dirty.path, entry.kind);
        if !self.job.mirrors_paths() || !self.context.destination.describe().capabilities.rename {
            return Ok(None);
        }
        let unchanged = match kind {
            Kind::Directory => journal
                .has_synced_below(from)
                .await
                .map_err(PutError::Engine)?,
            _ => {
                let synced = journal.synced(from).await.map_err(PutError::Engine)?;
                synced.is_some_and(|synced| synced.source.still_describes(entry))
            }
        };
        // Somebody else may have taken the old name already: then it is not ours to rename.
        let old_name_is_free = self
            .context
            .source
            .stat(from)
            .await
            .map_err(PutError::Remote)?
            .is_none();
        if !unchanged || !old_name_is_free {
            return Ok(None);
        }
        let options = RenameOptions {
            replace: Replace::Nothing,
        };
        match self.context.destination.rename(from, path, options).await {
            Ok(committed) => {
                let mut record = self.custody(Action::Renamed, entry, dirty);
                record.message = Some(format!("was \"{from}\""));
                record.destination = self.shown(path);
                let change = Change::RenameSynced {
                    from: from.clone(),
                    to: path.clone(),
                    source: (kind != Kind::Directory).then(|| entry.fingerprint()),
                    destination: (kind != Kind::Directory).then(|| committed.fingerprint()),
                };
                let changes = vec![change, Change::Custody(Box::new(record))];
                let outcome = if kind == Kind::Directory {
                    // It stays in the queue until what is below it was looked at.
                    let recorded = journal.record(changes).await;
                    recorded.map_err(PutError::Engine)?;
                    Outcome::Rescan(path.clone())
                } else {
                    self.settle(dirty, changes).await?
                };
                if self.job.deletes == Deletes::Mirror {
                    self.remove_emptied(from).await;
                }
                let action = Action::Renamed;
                self.context.observer.event(&Event::Finished {
                    path,
                    action,
                    bytes: 0,
                });
                Ok(Some(outcome))
            }
            Err(error) if error.retry == knarr_remote::Retry::EndpointDown => {
                Err(PutError::Remote(error))
            }
            Err(error) => {
                tracing::debug!(%path, %error, "a rename becomes a copy");
                Ok(None)
            }
        }
    }

    /// A directory that the source has no more, and of which nothing is delivered any more: what was in it went when
    /// the source still had one of that name. It goes with the empty ones in it.
    async fn remove_empty(&self, path: &RelPath) -> Result<(), PutError> {
        let (context, destination) = (&self.context, &self.context.destination);
        if !self.job.mirrors_paths() || !destination.describe().capabilities.directories {
            return Ok(());
        }
        let there = destination.stat(path).await.map_err(PutError::Remote)?;
        if there.is_none_or(|there| there.kind != Kind::Directory)
            || context
                .journal
                .has_synced_below(path)
                .await
                .map_err(PutError::Engine)?
        {
            return Ok(());
        }
        let options = ListOptions {
            below: Some(path.clone()),
            ..ListOptions::default()
        };
        let mut listing = destination.list(options).await.map_err(PutError::Remote)?;
        let mut directories = vec![path.clone()];
        while let Some(items) = listing.next_batch().await {
            for item in items {
                match item {
                    TreeItem::Entry(entry)
                        if entry.kind == Kind::Directory && directories.len() < EMPTY =>
                    {
                        directories.push(entry.path);
                    }
                    // It is not empty, or nobody knows.
                    _ => return Ok(()),
                }
            }
        }
        // The deepest first; what is not empty after all stays.
        directories.sort();
        let removal = |path| Removal {
            path,
            kind: Kind::Directory,
            seen: None,
        };
        let removals: Vec<Removal> = directories.into_iter().rev().map(removal).collect();
        for removed in destination.remove(&removals).await {
            if let Err(error) = removed {
                tracing::debug!(%path, %error, "an empty directory stays");
            }
        }
        Ok(())
    }

    /// When the last thing in a directory has gone, and the source has no such directory any more, it goes,
    /// too. One that is not empty stays: whatever is in it brings it up again.
    async fn remove_emptied(&self, path: &RelPath) {
        let (source, destination) = (&self.context.source, &self.context.destination);
        if !self.job.mirrors_paths() || !destination.describe().capabilities.directories {
            return;
        }
        let mut above = path.parent();
        while let Some(directory) = above {
            match source.stat(&directory).await {
                Ok(None) => {}
                Ok(Some(entry)) if entry.kind != Kind::Directory => {}
                Ok(Some(_)) | Err(_) => return,
            }
            above = directory.parent();
            let removal = Removal {
                path: directory,
                kind: Kind::Directory,
                seen: None,
            };
            let removed = destination.remove(std::slice::from_ref(&removal)).await;
            if !removed.into_iter().all(|result| result.is_ok()) {
                return;
            }
        }
    }
}
