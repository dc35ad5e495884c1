//! One run of a job that looks at its source when it is time, or when somebody asks.
//!
//! The same loop as everywhere: the source is listed and compared with what was delivered from it (the
//! *ledger*: the synced tree of the pair), what differs is marked in the dirty set, and that is worked
//! off. So a file is taken once for each version of it, whatever happens in between: what was delivered
//! and not recorded is recognised, what was delivered and could not be removed is removed by the next run
//! and not delivered twice, and what could not be delivered stays in the set.

mod preview;
mod together;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use knarr_core::entry::{Entry, Kind};
use knarr_core::filter::Filter;
use knarr_core::job::{After, Deletes};
use knarr_core::matching::Matching;
use knarr_core::parameters::Values;
use knarr_core::plan::{MassDeletion, NoRenames, Side};
use knarr_core::run::{RunEvent, RunState};
use knarr_core::tree::TreeItem;
use knarr_core::{RelPath, Timestamp};
use knarr_remote::{ListOptions, Listing, Remote, Retry};
use knarr_store::runs::RunFilter;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acknowledge::{self, Telling};
use crate::announce::Following;
use crate::conditions::{Conditions, Refusal, Surveyed};
use crate::context::Context;
use crate::duplicates::{self, Duplicates};
use crate::error::EngineError;
use crate::journal::{As, Journal, PairLabel};
use crate::lock::PairLock;
use crate::node::{
    Comparing, Emptied, OTHER_PLACE, Parts, Progress, Scanned, Scans, Until, WatchJob,
};
use crate::oneshot::Environment;
use crate::report::Report;
use crate::tidy::{self, Sweep};

pub use self::preview::{Preview, Verdict};
use self::together::{PublicationEnd, Published};

/// A job that takes what a place has whenever it runs.
#[derive(Debug, Clone)]
pub struct PickupJob {
    /// What it does with each file.
    pub job: Arc<WatchJob>,
    /// Where from.
    pub source: Arc<dyn Remote>,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    /// It only finishes what an earlier one decided.
    WhatWasBegun,
}

/// What set a run off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked for it.
    Manual,
    /// It was time.
    Schedule,
    /// Another job ended.
    AfterJob,
    /// A file was uploaded completely.
    Upload,
    /// Somebody called the job's URL.
    Http,
    /// The process before this one ended in the middle of a publication.
    Unfinished,
}

impl Cause {
    /// As it stands in the history.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Schedule => "schedule",
            Self::AfterJob => "after job",
            Self::Upload => "upload",
            Self::Http => "http",
            Self::Unfinished => "unfinished",
        }
    }
}

/// How often a run looks whether it may go on.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(5);

/// What a run writes into the history as its kind.
const KIND: &str = "pickup";

impl PickupJob {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.job.name
    }

    fn label(&self) -> PairLabel {
        PairLabel {
            job: self.job.name.clone(),
            source: self.source.describe().location.clone(),
            destination: self.job.destination.describe().location.clone(),
        }
    }

    /// Looks at the source once, and delivers what is new there until nothing is left to do. Returns when
    /// everything is delivered, recorded and taken care of at the source, or parked, or when
    /// `environment.cancel` is cancelled.
    ///
    /// # Errors
    /// If another run of the job is under way, or the state cannot be read or written. A place that does
    /// not answer is no error but a run that failed, as the report says.
    pub async fn run(&self, environment: &Environment, cause: Cause) -> Result<Ended, EngineError> {
        self.run_telling(environment, cause, &BTreeMap::new(), drop)
            .await
    }

    /// The same with values of parameters of the run; `begun` is told the run's number as soon as it has one.
    ///
    /// # Errors
    /// As [`PickupJob::run`], and [`EngineError::Parameters`] for values that the job does not allow.
    pub async fn run_telling(
        &self,
        environment: &Environment,
        cause: Cause,
        given: &BTreeMap<String, String>,
        begun: impl FnOnce(u64) + Send,
    ) -> Result<Ended, EngineError> {
        // Whoever asks for what was begun to be finished knows no values, and that needs none.
        let (values, scope) = match self.values(given) {
            Err(_) if cause == Cause::Unfinished => {
                (self.job.parameters.any(), Scope::WhatWasBegun)
            }
            values => (values?, Scope::All),
        };
        let as_of_now = self.as_of_now(environment, &values).await?;
        let cause = if values.is_empty() {
            cause.name().to_owned()
        } else {
            format!("{} ({values})", cause.name())
        };
        let run = as_of_now.run_as_it_is(environment, &cause, scope, begun);
        run.await
    }

    /// The values of a run's parameters, from what is given for it.
    ///
    /// # Errors
    /// [`EngineError::Parameters`] if that is not what the job allows.
    pub fn values(&self, given: &BTreeMap<String, String>) -> Result<Values, EngineError> {
        let values = self.job.parameters.resolve(given);
        values.map_err(|source| EngineError::Parameters {
            job: self.job.name.clone(),
            source,
        })
    }

    /// The job with all that depends on the time and the run's parameters fixed.
    async fn as_of_now(
        &self,
        environment: &Environment,
        values: &Values,
    ) -> Result<Self, EngineError> {
        let filter = match &self.job.matching {
            None => Arc::clone(&self.job.filter),
            Some(matching) => Arc::new(self.filter(matching, environment, values).await?),
        };
        let acknowledge = self.job.acknowledge.as_ref();
        let acknowledge = acknowledge.map(|how| how.bound(values));
        let job = WatchJob {
            filter,
            template: self.job.template.bound(values),
            acknowledge: acknowledge.map(Arc::new),
            ..self.job.as_ref().clone()
        };
        Ok(Self {
            job: Arc::new(job),
            source: Arc::clone(&self.source),
        })
    }

    /// Which files a run means that begins now.
    async fn filter(
        &self,
        matching: &Matching,
        environment: &Environment,
        values: &Values,
    ) -> Result<Filter, EngineError> {
        let job = self.job.name.clone();
        let last = environment.store.read_async(move |reader| {
            let filter = RunFilter {
                job: Some(job),
                state: Some(RunState::Done),
                ..RunFilter::default()
            };
            reader.runs(&filter, 1)
        });
        let last = last.await.map_err(EngineError::Store)?;
        let last = last.first().map(|run| run.started_at);
        let filter = matching.at_with(environment.clock.now(), last, values);
        filter.map_err(|error| EngineError::Job {
            job: self.job.name.clone(),
            reason: error.to_string(),
        })
    }

    async fn run_as_it_is(
        &self,
        environment: &Environment,
        cause: &str,
        scope: Scope,
        begun: impl FnOnce(u64) + Send,
    ) -> Result<Ended, EngineError> {
        let label = self.label();
        // Several jobs may take different files from one place to another.
        let own = PairLabel {
            source: format!("{}\0{}", label.job, label.source),
            ..label.clone()
        };
        let lock = PairLock::acquire(&environment.locks, &own)?;
        let as_what = As::Job { cause };
        let journal = Journal::open_as(environment, &label, Some(KIND), as_what).await?;
        begun(journal.run());
        journal.begin_lane().await?;
        let tasks = TaskTracker::new();
        let following = Following::start(environment, self.name(), &journal);
        // Ends this run, and nothing else.
        let inner = Environment {
            cancel: environment.cancel.child_token(),
            observer: following.observer(),
            ..environment.clone()
        };
        let progress = Arc::new(Progress::new(
            Arc::clone(&inner.observer),
            Arc::clone(&inner.clock),
        ));
        let parts = Parts {
            job: &self.job,
            source: Arc::clone(&self.source),
            journal: &journal,
            environment: &inner,
            tasks: &tasks,
            progress: Arc::clone(&progress),
        };
        let working = parts.working(&Arc::new(Notify::new()), &Scans::default());
        let context = Arc::clone(&working.delivering.context);
        let given_up = Arc::clone(&working.given_up);
        // The progress is written until the work ends, the rest goes on until the end of the run.
        let worked_off = CancellationToken::new();
        // What was decided is finished, whatever holds now.
        let prepared = match self.finish_publication(&context).await? {
            Err(refusal) => Err(refusal),
            Ok(()) if scope == Scope::WhatWasBegun => {
                let message = "what was begun is finished; more needs values for its parameters";
                Err(Refusal::Skip(message.to_owned()))
            }
            Ok(()) => tokio::select! {
                () = context.cancel.cancelled() => Err(Refusal::Skip("it was stopped".to_owned())),
                prepared = self.prepare(&context, environment) => prepared?,
            },
        };
        let looked = match prepared {
            Ok(surveyed) => self.gather_and_look(&context, surveyed).await.map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        };
        let stopped_because = Arc::new(OnceLock::new());
        tasks.spawn(stop_in_blackout(
            Arc::clone(&self.job.conditions),
            Arc::clone(&context),
            Arc::clone(&stopped_because),
        ));
        let outcome = match looked {
            Ok(Err(_)) if environment.cancel.is_cancelled() => {
                drop(working);
                Outcome::Stopped(None)
            }
            Ok(Err(refusal)) => {
                drop(working);
                Outcome::Refused(refusal)
            }
            Ok(Ok(scanned)) => {
                let endpoint = &self.source.describe().endpoint;
                journal.endpoint_answered(endpoint).await?;
                let work = async {
                    let worked = working.run(Until::Drained).await;
                    worked_off.cancel();
                    worked
                };
                let acknowledging =
                    acknowledge::keep_up(Arc::clone(&context), &worked_off, Telling::Nobody);
                let showing = progress.write(&journal, &worked_off);
                let (worked, shown, told) = tokio::join!(work, showing, acknowledging);
                worked.and(shown).and(told)?;
                match (given_up.get(), stopped_because.get()) {
                    (Some(error), _) => Outcome::Unreachable(crate::error::chain(error)),
                    (None, Some(Refusal::Skip(reason) | Refusal::Fail(reason))) => {
                        Outcome::Stopped(Some(format!("stopped: {reason}; the next run goes on")))
                    }
                    (None, None) if environment.cancel.is_cancelled() => Outcome::Stopped(None),
                    (None, None) => {
                        let published = self.publish(&context, &scanned).await?;
                        Outcome::Through(scanned, published)
                    }
                }
            }
            Err(EngineError::Look { location, source }) => {
                drop(working);
                if source.retry == Retry::EndpointDown {
                    let endpoint = &self.source.describe().endpoint;
                    let reason = crate::error::chain(&source);
                    journal.endpoint_unreachable(endpoint, &reason).await?;
                }
                let error = EngineError::Look { location, source };
                Outcome::Unreachable(crate::error::chain(&error))
            }
            Err(error) => return Err(error),
        };
        let ended = Self::finish(&context, outcome, self.job.duplicates).await?;
        // What still waits for a place to be back.
        inner.cancel.cancel();
        drop(context);
        tasks.close();
        tasks.wait().await;
        following.end().await;
        environment.announcer.wake();
        drop(lock);
        Ok(ended)
    }

    /// Does what has to succeed before a run. `Err` says why the run does not begin.
    async fn before(&self, environment: &Environment, run: u64) -> Result<(), String> {
        for before in environment.announcer.before(self.name()) {
            before.hold(self.name(), run, &environment.cancel).await?;
        }
        Ok(())
    }

    async fn finish(
        context: &Context,
        outcome: Outcome,
        duplicates: Option<Duplicates>,
    ) -> Result<Ended, EngineError> {
        let mut held_removals = 0;
        let (event, message, scanned) = match outcome {
            Outcome::Unreachable(message) => {
                context.tally.unreachable.store(true, Ordering::Relaxed);
                (RunEvent::Failed, Some(message), Scanned::default())
            }
            Outcome::Refused(Refusal::Fail(message)) => {
                (RunEvent::Failed, Some(message), Scanned::default())
            }
            Outcome::Refused(Refusal::Skip(message)) => {
                (RunEvent::Skipped, Some(message), Scanned::default())
            }
            Outcome::Stopped(message) => (RunEvent::Interrupted, message, Scanned::default()),
            Outcome::Through(scanned, published) => {
                acknowledge::finish_run(context).await?;
                duplicates::forget_old(context, duplicates).await?;
                tidy::tidy(context, Sweep::Daily).await?;
                held_removals = context.journal.held_deletions().await?;
                let failed = context.tally.failed.load(Ordering::Relaxed);
                let failed = failed + scanned.incomplete + scanned.problems;
                let event = match (held_removals, published.end) {
                    (0, PublicationEnd::Good) => RunEvent::Finished { failed },
                    (0, PublicationEnd::Nothing) => RunEvent::Failed,
                    (0, PublicationEnd::Stopped) => RunEvent::Interrupted,
                    _ => RunEvent::Held,
                };
                (event, published.message, scanned)
            }
        };
        let report = Report {
            incomplete: scanned.incomplete,
            problems: scanned.problems,
            held_removals,
            held: (held_removals > 0).then_some(MassDeletion::TooMany),
            ..Report::of(context, event, scanned.entries)?
        };
        context.journal.begin_lane().await?;
        let told = message.clone();
        context.journal.finish(event, &report, told).await?;
        Ok(Ended { report, message })
    }

    /// Whether the run may take place, and what of the source it is about.
    async fn prepare(
        &self,
        context: &Arc<Context>,
        environment: &Environment,
    ) -> Result<Result<Surveyed, Refusal>, EngineError> {
        let (job, now) = (&self.job, context.clock.now());
        if let Err(error) = job.steps.recipe(now) {
            let error = EngineError::Steps(error);
            return Ok(Err(Refusal::Fail(crate::error::chain(&error))));
        }
        if let Err(refusal) = self.can_publish() {
            return Ok(Err(refusal));
        }
        if let Err(refusal) = job.conditions.check_time(now) {
            return Ok(Err(refusal));
        }
        if let Err(reason) = self.before(environment, context.journal.run()).await {
            let error = EngineError::Before(reason);
            return Ok(Err(Refusal::Fail(error.to_string())));
        }
        match self.may_run(now).await {
            Err(error @ EngineError::Look { .. }) => {
                context.tally.unreachable.store(true, Ordering::Relaxed);
                Ok(Err(Refusal::Fail(crate::error::chain(&error))))
            }
            surveyed => surveyed,
        }
    }

    /// Whether the conditions of the job hold.
    async fn may_run(&self, now: Timestamp) -> Result<Result<Surveyed, Refusal>, EngineError> {
        let job = &self.job;
        if let Err(refusal) = job.conditions.check_time(now) {
            return Ok(Err(refusal));
        }
        if let Err(refusal) = job.conditions.check_space().await {
            return Ok(Err(refusal));
        }
        let is_meant = |entry: &Entry| {
            job.takes_path_from_root(&entry.path, entry.kind) && job.filter.takes_entry(entry, now)
        };
        let source = self.source.as_ref();
        let surveying = job.conditions.survey(job.choice, source, is_meant, now);
        surveying.await
    }

    /// Lists the source and marks what is not as it was delivered.
    async fn look(
        &self,
        context: &Arc<Context>,
        surveyed: Surveyed,
    ) -> Result<Scanned, EngineError> {
        let trusted = self.is_trusted(context).await?;
        let list = || async {
            let job = Arc::clone(&self.job);
            let options = ListOptions {
                filter: Some(Arc::new(move |path: &RelPath, kind: Kind| {
                    job.takes_path(path, kind)
                })),
                ..ListOptions::default()
            };
            let listing = self.source.list(options).await;
            listing.map_err(|source| EngineError::Look {
                location: self.source.describe().location.clone(),
                source,
            })
        };
        let listing = tokio::select! {
            // The run ends without having looked.
            () = context.cancel.cancelled() => return Ok(Scanned::default()),
            listing = list() => listing?,
        };
        // What was delivered and is still there, though it should have gone, is found by a second look.
        // As a rule there is nothing of the kind.
        let again = match self.job.after {
            After::Keep => None,
            _ if context.journal.is_first_contact().await? => None,
            _ => Some(list().await?),
        };
        let (job, context) = (Arc::clone(&self.job), Arc::clone(context));
        let looking = tokio::task::spawn_blocking(move || {
            let now = context.clock.now();
            let only = surveyed.only.map(Arc::new);
            let items = |listing, only: Option<&Arc<BTreeSet<RelPath>>>| Items {
                listing,
                batch: Vec::new().into_iter(),
                job: Arc::clone(&job),
                now,
                only: only.map(Arc::clone),
            };
            let comparing = Comparing {
                job: &job,
                journal: &context.journal,
                clock: context.clock.as_ref(),
                observer: context.observer.as_ref(),
                shown: &context.source.describe().location,
                trusted,
                renames: &NoRenames,
                emptied: match job.deletes {
                    Deletes::Keep => Emptied::IsUsual,
                    Deletes::Mirror => Emptied::Tells,
                },
            };
            if !trusted {
                comparing.say(OTHER_PLACE);
            }
            let mut scanned = comparing.compare(items(listing, only.as_ref()), None)?;
            if let Some(listing) = again {
                // What was delivered goes, also when its manifest is gone.
                let unfinished = only.as_ref().filter(|_| job.manifest.is_none());
                scanned.marked += comparing.mark_unfinished(items(listing, unfinished))?;
            }
            Ok(scanned)
        });
        looking
            .await
            .map_err(|_panic| EngineError::Internal("a look at a source panicked"))?
    }

    /// Whether the source is the place it was, as far as that can be told.
    async fn is_trusted(&self, context: &Context) -> Result<bool, EngineError> {
        match self.source.root_identity().await {
            Ok(Some(identity)) => {
                let journal = &context.journal;
                journal
                    .check_root(Side::Source, &identity.to_string())
                    .await
            }
            // Whether it is there at all is for the listing to say.
            Ok(None) => Ok(true),
            // Nothing is taken for deleted.
            Err(_) => Ok(false),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What was done.
    pub report: Report,
    /// Why it failed, if it did.
    pub message: Option<String>,
}

enum Outcome {
    /// Everything was looked at, and worked off.
    Through(Scanned, Published),
    /// A place does not answer.
    Unreachable(String),
    /// A condition does not hold, or the job cannot work as it is.
    Refused(Refusal),
    /// We were asked to stop, for this reason if it is not the usual one.
    Stopped(Option<String>),
}

/// A listing as an iterator for the planner's thread, without what is too young, too old, too small or too
/// large.
struct Items {
    listing: Listing,
    batch: std::vec::IntoIter<TreeItem>,
    job: Arc<WatchJob>,
    now: Timestamp,
    /// The only files that are taken, if not all are.
    only: Option<Arc<BTreeSet<RelPath>>>,
}

impl Iterator for Items {
    type Item = TreeItem;

    fn next(&mut self) -> Option<TreeItem> {
        loop {
            let Some(item) = self.batch.next() else {
                self.batch = self.listing.blocking_next_batch()?.into_iter();
                continue;
            };
            return Some(match item {
                TreeItem::Entry(entry)
                    if !self.job.filter.takes_entry(&entry, self.now) || self.is_left(&entry) =>
                {
                    TreeItem::Excluded {
                        path: entry.path,
                        kind: entry.kind,
                    }
                }
                item => item,
            });
        }
    }
}

impl Items {
    fn is_left(&self, entry: &Entry) -> bool {
        let only = self.only.as_ref();
        entry.kind != Kind::Directory && only.is_some_and(|only| !only.contains(&entry.path))
    }
}

/// Stops a run when hours begin in which it must not go on.
async fn stop_in_blackout(
    conditions: Arc<Conditions>,
    context: Arc<Context>,
    because: Arc<OnceLock<Refusal>>,
) {
    loop {
        tokio::select! {
            () = context.cancel.cancelled() => return,
            () = tokio::time::sleep(LOOK_AT_CLOCK) => {}
        }
        if let Err(refusal) = conditions.check_time(context.clock.now()) {
            because.get_or_init(|| refusal);
            context.cancel.cancel();
        }
    }
}
