//! Makes the changes of records inside a transaction.

use std::sync::Arc;

use knarr_core::tree::Synced;
use knarr_store::synced::Recognise;
use knarr_store::{PairId, StoreError, Tx};

use crate::journal::{Change, PairLabel};

/// What is needed to make changes inside a transaction.
#[derive(Debug, Clone)]
pub(crate) struct Applying {
    pub(crate) pair: PairId,
    pub(crate) recognise: Recognise,
    pub(crate) label: Arc<PairLabel>,
}

impl Applying {
    /// Makes all of `changes`.
    pub(crate) fn apply(&self, tx: &mut Tx<'_>, changes: &[Change]) -> Result<(), StoreError> {
        self.apply_to_tree(tx, changes)?;
        Self::append_custody(tx, changes)
    }

    /// Makes those of `changes` that are no custody records.
    pub(crate) fn apply_to_tree(
        &self,
        tx: &mut Tx<'_>,
        changes: &[Change],
    ) -> Result<(), StoreError> {
        let pair = self.pair;
        // Renames and removals first, in their order; then the many rows of one kind together.
        for change in changes {
            match change {
                Change::Forget { path, kind } => {
                    tx.remove_synced(pair, [path])?;
                    tracing::trace!(%path, %kind, "forgotten");
                }
                Change::RenameSynced {
                    from,
                    to,
                    source,
                    destination,
                } => {
                    tx.rename_synced(pair, from, to)?;
                    if let (Some(source), Some(destination)) = (source, destination)
                        && let Some(synced) = tx.synced(pair, to)?
                    {
                        let (source, destination) = (source.clone(), destination.clone());
                        let synced = Synced {
                            source,
                            destination,
                            ..synced
                        };
                        tx.upsert_synced(pair, self.recognise, [&synced])?;
                    }
                }
                Change::ClearCheckpoint { to, path } => {
                    crate::checkpoint::clear(tx, self.label.base(*to), path)?;
                }
                Change::ClearIntent(intent) => tx.remove_intent(*intent)?,
                Change::Published(file) => tx.set_published(*file)?,
                Change::Staged { path, item } => tx.set_staged(pair, path, item)?,
                Change::Settle { path, generation } => {
                    tx.settle(pair, path, *generation)?;
                }
                Change::Note(note) => note.apply(tx, pair)?,
                Change::Synced(_) | Change::Custody(_) => {}
            }
        }
        let synced = changes.iter().filter_map(|change| match change {
            Change::Synced(synced) => Some(&**synced),
            _ => None,
        });
        tx.upsert_synced(pair, self.recognise, synced)
    }

    /// Appends the custody records among `changes`, in their order.
    pub(crate) fn append_custody<'c>(
        tx: &mut Tx<'_>,
        changes: impl IntoIterator<Item = &'c Change>,
    ) -> Result<(), StoreError> {
        let custody = changes.into_iter().filter_map(|change| match change {
            Change::Custody(record) => Some(&**record),
            _ => None,
        });
        let mut custody = custody.peekable();
        if custody.peek().is_some() {
            tx.append_custody(custody)?;
        }
        Ok(())
    }
}
