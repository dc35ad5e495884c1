//! Carries out decisions in their phases (see [`knarr_core::plan`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use knarr_core::plan::{Decision, Operation, Phase, Side};
use knarr_core::record::Action;
use knarr_core::{Entry, Kind};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bulk::{self, Bulk};
use crate::conflict;
use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::Change;
use crate::observer::{Event, Trouble};
use crate::put::{self, Put};
use crate::removal;

/// How many operations may be under way, staged and waiting for their commit included.
const WINDOW: usize = 2_048;
/// How many records of nothing but agreement go into one transaction.
const RECORDS: usize = 2_000;

/// Takes decisions and carries them out, many at once.
#[derive(Debug)]
pub(crate) struct Executor {
    context: Arc<Context>,
    tasks: JoinSet<Result<(), EngineError>>,
    window: Arc<Semaphore>,
    bulk: Option<Bulk>,
    changes: Vec<Change>,
    removals: Vec<(Side, Entry)>,
    removed: u64,
    last: Vec<Put>,
}

impl Executor {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        Self {
            context: Arc::clone(context),
            tasks: JoinSet::new(),
            window: Arc::new(Semaphore::new(WINDOW)),
            bulk: Bulk::between(context),
            changes: Vec::new(),
            removals: Vec::new(),
            removed: 0,
            last: Vec::new(),
        }
    }

    /// Starts with `decision`; waits while too much is under way.
    ///
    /// # Errors
    /// If the state could not be recorded, now or by something started earlier.
    pub(crate) async fn take(&mut self, decision: Decision) -> Result<(), EngineError> {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(|_panic| EngineError::Internal("an operation ended in a panic"))??;
        }
        match decision {
            Decision::Operation(operation) => self.operate(operation).await,
            Decision::Conflict(conflict) => {
                // Renames a file out of the way: what comes below its name has to wait for it.
                conflict::keep_both(&self.context, conflict).await.map(drop)
            }
            Decision::Problem(problem) => {
                let context = &self.context;
                Tally::add(&context.tally.problems, 1);
                context.trouble(Some(&problem.path), Trouble::Problem, &problem.message);
                let mut entry = Entry::file(problem.path, 0);
                entry.kind = problem.kind;
                let mut record =
                    context
                        .journal
                        .custody(Action::Problem, &entry, Side::Destination);
                record.message = Some(problem.message);
                self.note(Change::Custody(Box::new(record))).await
            }
        }
    }

    async fn operate(&mut self, operation: Operation) -> Result<(), EngineError> {
        match operation {
            Operation::Put {
                to,
                entry,
                replaces,
                beside,
                compare,
                phase,
            } => {
                let put = Put {
                    to,
                    entry,
                    replaces,
                    beside,
                    compare,
                };
                if phase == Phase::AfterRemovals {
                    self.last.push(put);
                    return Ok(());
                }
                self.put(put).await
            }
            Operation::Rename { to, from, entry } => {
                removal::rename(&self.context, to, &from, entry)
                    .await
                    .map(drop)
            }
            Operation::Remove {
                to,
                seen,
                blocking: true,
            } => removal::remove(&self.context, to, vec![seen], "plan").await,
            Operation::Remove {
                to,
                seen,
                blocking: false,
            } => {
                self.removed += 1;
                self.removals.push((to, seen));
                if self.removals.len() >= RECORDS {
                    self.spool().await
                } else {
                    Ok(())
                }
            }
            Operation::Adopt {
                source,
                destination,
            } => {
                Tally::add(&self.context.tally.adopted, 1);
                let path = source.path.clone();
                let synced =
                    put::synced(Side::Destination, &source, &destination, &path, source.hash);
                self.note(Change::Synced(Box::new(synced))).await
            }
            Operation::Forget { path, kind } => self.note(Change::Forget { path, kind }).await,
        }
    }

    async fn put(&mut self, put: Put) -> Result<(), EngineError> {
        let bytes = put.entry.size;
        self.context
            .observer
            .event(&Event::Planned { items: 1, bytes });
        if let Some(bulk) = &mut self.bulk
            && Bulk::takes(&put)
        {
            if let Some(batch) = bulk.add(put) {
                let turns = bulk.turns();
                self.start_batch(batch, turns).await;
            }
            return Ok(());
        }
        let Ok(permit) = Arc::clone(&self.window).acquire_owned().await else {
            return Ok(());
        };
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let done = put::put(&context, put).await.map(drop);
            drop(permit);
            done
        });
        Ok(())
    }

    async fn start_batch(&mut self, batch: bulk::Batch, turns: Arc<Semaphore>) {
        // Two at work and two prepared are enough; more would only hold memory.
        while self.tasks.len() >= 4 && turns.available_permits() == 0 {
            if self.tasks.join_next().await.is_none() {
                break;
            }
        }
        let context = Arc::clone(&self.context);
        self.tasks
            .spawn(async move { bulk::copy(&context, batch, turns).await });
    }

    async fn note(&mut self, change: Change) -> Result<(), EngineError> {
        self.changes.push(change);
        if self.changes.len() >= RECORDS {
            self.flush_notes().await
        } else {
            Ok(())
        }
    }

    async fn flush_notes(&mut self) -> Result<(), EngineError> {
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() {
            Ok(())
        } else {
            self.context.journal.record(changes).await
        }
    }

    async fn spool(&mut self) -> Result<(), EngineError> {
        let removals = std::mem::take(&mut self.removals);
        if removals.is_empty() {
            Ok(())
        } else {
            self.context.journal.spool(removals).await
        }
    }

    /// Waits until everything started is done; returns how many removals wait for [`Executor::remove`].
    ///
    /// # Errors
    /// If the state could not be recorded.
    pub(crate) async fn settle(&mut self) -> Result<u64, EngineError> {
        if let Some(bulk) = &mut self.bulk {
            let (batch, turns) = (bulk.take(), bulk.turns());
            self.start_batch(batch, turns).await;
        }
        self.join_all().await?;
        self.flush_notes().await?;
        self.spool().await?;
        Ok(self.removed)
    }

    /// Carries out the removals in reverse order, then what waited for them.
    ///
    /// # Errors
    /// If the state could not be recorded.
    pub(crate) async fn remove(&mut self, decided_by: &str) -> Result<(), EngineError> {
        self.context.observer.event(&Event::Planned {
            items: self.removed,
            bytes: 0,
        });
        loop {
            if self.context.cancel.is_cancelled() {
                return Ok(());
            }
            // From the end, so that what a directory holds goes before the directory.
            let batch = self.context.journal.unspool(removal::REMOVALS).await?;
            if batch.is_empty() {
                break;
            }
            for side in [Side::Destination, Side::Source] {
                let here: Vec<Entry> = batch
                    .iter()
                    .filter(|(of, _)| *of == side)
                    .map(|(_, entry)| entry.clone())
                    .collect();
                if !here.is_empty() {
                    removal::remove(&self.context, side, here, decided_by).await?;
                }
            }
        }
        self.removed = 0;
        for put in std::mem::take(&mut self.last) {
            self.put(put).await?;
        }
        self.settle().await.map(drop)
    }

    /// The directories a move has emptied at the source are removed with it: children first.
    ///
    /// # Errors
    /// If the state could not be recorded.
    pub(crate) async fn remove_source_directories(
        &mut self,
        mut directories: Vec<Entry>,
    ) -> Result<(), EngineError> {
        if self.context.tally.failed.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        while !directories.is_empty() {
            let split = directories.len().saturating_sub(removal::REMOVALS);
            let mut batch = directories.split_off(split);
            batch.reverse();
            batch.retain(|entry| entry.kind == Kind::Directory);
            removal::remove(&self.context, Side::Source, batch, "move").await?;
        }
        Ok(())
    }

    async fn join_all(&mut self) -> Result<(), EngineError> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|_panic| EngineError::Internal("an operation ended in a panic"))??;
        }
        Ok(())
    }
}
