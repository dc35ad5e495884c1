//! Runs that publish what they deliver together: all of it, or what each manifest lists.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use knarr_core::Clock;
use knarr_core::entry::Entry;
use knarr_store::batches::Parked;

use super::PickupJob;
use crate::batch::flip::{self, Stuck};
use crate::batch::sweep::{self, GiveUp};
use crate::batch::{Batches, Group, Members, Publish};
use crate::conditions::{Refusal, Surveyed};
use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::Journal;
use crate::manifest::{Looking, Manifests, Patience};
use crate::node::Scanned;
use crate::observer::Trouble;

/// How many reasons a run tells.
const REASONS: usize = 5;

/// What came of the publication.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) end: PublicationEnd,
    /// What is to be told of it.
    pub(super) message: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum PublicationEnd {
    /// There is something new at the destination, or nothing was to be.
    #[default]
    Good,
    /// Nothing is visible that should be.
    Nothing,
    /// We were asked to stop in the middle of it.
    Stopped,
}

impl PickupJob {
    /// Whether the destination can do what the job asks of it.
    pub(super) fn can_publish(&self) -> Result<(), Refusal> {
        let together =
            self.job.manifest.is_some() || matches!(self.job.publish, Publish::Together { .. });
        let destination = self.job.destination.describe();
        if !together || destination.capabilities.rename {
            return Ok(());
        }
        Err(Refusal::Fail(format!(
            "{} cannot rename files, so they cannot be published together: use `publish: each`",
            destination.location
        )))
    }

    /// Finishes the publication that an earlier run decided.
    pub(super) async fn finish_publication(
        &self,
        context: &Arc<Context>,
    ) -> Result<Result<(), Refusal>, EngineError> {
        let recovered = flip::recover(context, self.job.if_exists).await?;
        Ok(recovered.map_err(|stuck| {
            if let Stuck::Halfway(error) = &stuck {
                context.tally.note_error(error);
            }
            Refusal::Fail(stuck.message())
        }))
    }

    /// Makes the batches of the run, if it has any; then looks at the source.
    pub(super) async fn gather_and_look(
        &self,
        context: &Arc<Context>,
        surveyed: Surveyed,
    ) -> Result<Scanned, EngineError> {
        let surveyed = tokio::select! {
            // The run ends without having looked.
            () = context.cancel.cancelled() => return Ok(Scanned::default()),
            gathered = self.gather(context, surveyed) => gathered?,
        };
        self.look(context, surveyed).await
    }

    /// What the manifests at the source say, if the job goes by manifests.
    pub(super) async fn manifests(
        &self,
        journal: &Journal,
        clock: &dyn Clock,
        patience: Patience,
    ) -> Result<Option<Manifests>, EngineError> {
        let Some(spec) = &self.job.manifest else {
            return Ok(None);
        };
        let job = &self.job;
        let why_not = |entry: &Entry| {
            if let Some(reason) = job.filter.why_not(entry, clock.now()) {
                return Some(reason.to_string());
            }
            let is_meant = job.takes_path_from_root(&entry.path, entry.kind);
            (!is_meant).then(|| "it lies where delivered files are moved to".to_owned())
        };
        let looking = Looking {
            source: self.source.as_ref(),
            journal,
            spec,
            settle: job.settle,
            now: &|| clock.now(),
            why_not: &why_not,
        };
        looking.look(patience).await.map(Some)
    }

    async fn gather(
        &self,
        context: &Arc<Context>,
        surveyed: Surveyed,
    ) -> Result<Surveyed, EngineError> {
        let journal = &context.journal;
        let manifests = self.manifests(journal, context.clock.as_ref(), Patience::Settles);
        if let Some(manifests) = manifests.await? {
            journal.drop_waiting(Parked::Goes).await?;
            let remark = remark(context, &manifests);
            let only = Some(manifests.only());
            let mut groups = Vec::with_capacity(manifests.complete.len());
            for manifest in &manifests.complete {
                let id = journal.begin_batch().await?;
                let path = manifest.entry.path.clone();
                groups.push(Group::of_manifest(id, path, manifest.due));
            }
            let members = Members::Listed(manifests.into_members());
            context
                .batches
                .get_or_init(|| Batches::new(groups, members, remark));
            return Ok(Surveyed { only });
        }
        if let Publish::Together { last } = &self.job.publish {
            journal.drop_waiting(Parked::Stays).await?;
            let groups = vec![Group::of_run(journal.begin_batch().await?)];
            let members = Members::All { last: last.clone() };
            context
                .batches
                .get_or_init(|| Batches::new(groups, members, None));
        }
        Ok(surveyed)
    }

    /// Publishes what was staged, now that everything was tried.
    pub(super) async fn publish(
        &self,
        context: &Arc<Context>,
        scanned: &Scanned,
    ) -> Result<Published, EngineError> {
        let Some(batches) = context.batches.get() else {
            // Of earlier versions of the job.
            sweep::earlier(context, GiveUp::All).await?;
            return Ok(Published::default());
        };
        let mut reasons = Vec::new();
        let mut stopped = false;
        for group in batches.groups() {
            if batches.may_leave() && scanned.incomplete + scanned.problems > 0 {
                let reason = "something at the source cannot be listed or handled";
                group.fail(None, reason);
            }
            if group.lacks_something() {
                group.fail(None, "not all that it lists was staged");
            }
            if let Some(reason) = group.why_not() {
                reasons.push(reason);
                continue;
            }
            let Err(stuck) = flip::publish(context, group.id, self.job.if_exists).await? else {
                continue;
            };
            stopped = matches!(stuck, Stuck::Stopped);
            if !stopped {
                Tally::add(&context.tally.failed, 1);
            }
            reasons.push(stuck.message());
            if let Stuck::Halfway(error) = &stuck {
                context.tally.note_error(error);
            }
            if matches!(stuck, Stuck::Halfway(_) | Stuck::Stopped) {
                break;
            }
        }
        let give_up = if reasons.is_empty() && batches.may_leave() {
            GiveUp::All
        } else {
            GiveUp::Old
        };
        sweep::earlier(context, give_up).await?;
        let tally = &context.tally;
        let counters = [&tally.created, &tally.updated, &tally.adopted];
        let nothing = counters
            .iter()
            .all(|counter| counter.load(Ordering::Relaxed) == 0);
        let end = match (reasons.is_empty(), stopped) {
            (_, true) => PublicationEnd::Stopped,
            (false, _) if nothing => PublicationEnd::Nothing,
            _ => PublicationEnd::Good,
        };
        reasons.extend(batches.remark().map(str::to_owned));
        Ok(Published {
            end,
            message: several(&reasons),
        })
    }
}

/// What is to be told of manifests of which nothing is taken; those that cannot be used count as failed.
fn remark(context: &Context, manifests: &Manifests) -> Option<String> {
    let mut reasons = Vec::new();
    for (path, reason) in &manifests.broken {
        let reason = format!("it cannot be used as a manifest: {reason}; nothing of it was taken");
        Tally::add(&context.tally.failed, 1);
        context.trouble(Some(path), Trouble::Problem, &reason);
        reasons.push(format!("\"{path}\": {reason}"));
    }
    for (path, reason) in &manifests.waiting {
        let reason = format!("nothing of the manifest was taken: {reason}");
        context.trouble(Some(path), Trouble::Notice, &reason);
        reasons.push(format!("\"{path}\": {reason}"));
    }
    several(&reasons)
}

fn several(reasons: &[String]) -> Option<String> {
    let told: Vec<&str> = reasons.iter().take(REASONS).map(String::as_str).collect();
    let more = reasons.len().saturating_sub(REASONS);
    let told = told.join("; ");
    match (reasons.is_empty(), more) {
        (true, _) => None,
        (_, 0) => Some(told),
        _ => Some(format!("{told}; and {more} more")),
    }
}
