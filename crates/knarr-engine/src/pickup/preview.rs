//! What a run would do, without doing it.

use std::collections::{BTreeMap, BTreeSet};

use knarr_core::choose::Chooser;
use knarr_core::entry::{Entry, Kind};
use knarr_core::job::After;
use knarr_core::tree::TreeItem;
use knarr_core::{RelPath, Timestamp};
use knarr_remote::{ListOptions, Listing};

use super::PickupJob;
use crate::conditions::Refusal;
use crate::duplicates;
use crate::error::EngineError;
use crate::journal::{As, Journal};
use crate::manifest::Patience;
use crate::oneshot::Environment;

/// What a run would do.
#[derive(Debug)]
pub enum Preview<'a> {
    /// With a file.
    File(&'a Entry, Verdict),
    /// There would be no run now, for this reason. What follows is what it would do otherwise.
    NotNow(&'a str),
    /// Something of which nothing can be told.
    Trouble(&'a str),
}

/// What a run would do with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver it.
    Take,
    /// Only remove it, or move it aside: it was delivered before.
    Finish,
    /// Leave it, for this reason.
    Leave(String),
}

impl PickupJob {
    /// What a run would take now, and why it would leave every other file. Moves and records nothing.
    ///
    /// # Errors
    /// If the source cannot be listed, or the state cannot be read.
    pub async fn preview(
        &self,
        environment: &Environment,
        tell: impl FnMut(Preview<'_>) + Send,
    ) -> Result<(), EngineError> {
        self.preview_given(environment, &BTreeMap::new(), tell)
            .await
    }

    /// The same with values of parameters of the run.
    ///
    /// # Errors
    /// As [`PickupJob::preview`], and [`EngineError::Parameters`] for values that the job does not allow.
    pub async fn preview_given(
        &self,
        environment: &Environment,
        given: &BTreeMap<String, String>,
        mut tell: impl FnMut(Preview<'_>) + Send,
    ) -> Result<(), EngineError> {
        let values = self.values(given)?;
        let job = self.as_of_now(environment, &values).await?;
        job.preview_as_it_is(environment, &mut tell).await
    }

    async fn preview_as_it_is(
        &self,
        environment: &Environment,
        tell: &mut (dyn FnMut(Preview<'_>) + Send),
    ) -> Result<(), EngineError> {
        let journal =
            Journal::open_as(environment, &self.label(), None, As::Job { cause: "" }).await?;
        let now = environment.clock.now();
        let only = match self.may_run(now).await? {
            Ok(surveyed) => surveyed.only,
            Err(Refusal::Skip(reason) | Refusal::Fail(reason)) => {
                tell(Preview::NotNow(&reason));
                None
            }
        };
        let manifests = self.manifests(&journal, environment.clock.as_ref(), Patience::None);
        let manifests = manifests.await?;
        let chosen = match self.job.choice.limit {
            Some(limit) => Some(self.chosen(limit, only.as_ref(), &journal, now).await?),
            None => None,
        };
        let mut listing = self.list_all().await?;
        while let Some(items) = listing.next_batch().await {
            for item in items {
                match item {
                    TreeItem::Entry(entry) if entry.kind == Kind::Directory => {}
                    TreeItem::Entry(entry) => {
                        let mut verdict = self.verdict(&entry, &journal, now).await?;
                        let is_left = |set: &Option<BTreeSet<RelPath>>| {
                            set.as_ref().is_some_and(|set| !set.contains(&entry.path))
                        };
                        if verdict == Verdict::Take && is_left(&only) {
                            let reason = "it is not among the newest".to_owned();
                            verdict = Verdict::Leave(reason);
                        } else if verdict == Verdict::Take && is_left(&chosen) {
                            let reason = "a later run takes it: `limit`".to_owned();
                            verdict = Verdict::Leave(reason);
                        } else if verdict == Verdict::Take
                            && let Some(manifests) = &manifests
                            && let Some(reason) = manifests.why_left(&entry.path)
                        {
                            verdict = Verdict::Leave(reason);
                        }
                        tell(Preview::File(&entry, verdict));
                    }
                    TreeItem::Problem(problem) => tell(Preview::Trouble(&problem.message)),
                    TreeItem::Incomplete(part) => tell(Preview::Trouble(&part.reason)),
                    TreeItem::Excluded { .. } => {}
                }
            }
        }
        Ok(())
    }

    async fn list_all(&self) -> Result<Listing, EngineError> {
        let listing = self.source.list(ListOptions::default()).await;
        listing.map_err(|source| EngineError::Look {
            location: self.source.describe().location.clone(),
            source,
        })
    }

    /// Which files a run takes now, where it takes no more than so many.
    async fn chosen(
        &self,
        limit: usize,
        only: Option<&BTreeSet<RelPath>>,
        journal: &Journal,
        now: Timestamp,
    ) -> Result<BTreeSet<RelPath>, EngineError> {
        let mut chooser = Chooser::new(limit);
        let mut listing = self.list_all().await?;
        while let Some(items) = listing.next_batch().await {
            for item in items {
                let TreeItem::Entry(entry) = item else {
                    continue;
                };
                let is_meant = only.is_none_or(|only| only.contains(&entry.path));
                if is_meant
                    && entry.kind != Kind::Directory
                    && self.verdict(&entry, journal, now).await? == Verdict::Take
                {
                    let order = self.job.choice.order;
                    let rank = order.rank(&entry.path, entry.mtime, entry.size);
                    chooser.offer(rank, entry.path);
                }
            }
        }
        Ok(chooser.into_chosen().into_iter().collect())
    }

    async fn verdict(
        &self,
        entry: &Entry,
        journal: &Journal,
        now: Timestamp,
    ) -> Result<Verdict, EngineError> {
        if let Some(reason) = self.job.filter.why_not(entry, now) {
            return Ok(Verdict::Leave(reason.to_string()));
        }
        if !self.job.takes_path_from_root(&entry.path, entry.kind) {
            let reason = "it lies where delivered files are moved to";
            return Ok(Verdict::Leave(reason.to_owned()));
        }
        if entry.kind == Kind::Special {
            let reason = "a FIFO, socket or device is not copied";
            return Ok(Verdict::Leave(reason.to_owned()));
        }
        let taken = journal.synced(&entry.path).await?.is_some_and(|synced| {
            synced.source.still_describes(entry) && synced.source.identity == entry.identity
        });
        if !taken {
            let (source, how) = (self.source.as_ref(), self.job.duplicates);
            let reason = duplicates::preview(journal, source, how, entry, now).await?;
            return Ok(reason.map_or(Verdict::Take, Verdict::Leave));
        }
        Ok(match &self.job.after {
            After::Keep => Verdict::Leave("it was delivered before, as it is".to_owned()),
            _ => Verdict::Finish,
        })
    }
}
