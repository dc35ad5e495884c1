//! One run of a job that looks at its source when it is time, or when somebody asks.
//!
//! The same loop as everywhere: the source is listed and compared with what was delivered from it (the
//! *ledger*: the synced tree of the pair), what differs is marked in the dirty set, and that is worked
//! off. So a file is taken once for each version of it, whatever happens in between: what was delivered
//! and not recorded is recognised, what was delivered and could not be removed is removed by the next run
//! and not delivered twice, and what could not be delivered stays in the set.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use knarr_core::entry::{Entry, Kind};
use knarr_core::job::{After, Deletes};
use knarr_core::plan::{MassDeletion, NoRenames, Side};
use knarr_core::run::RunEvent;
use knarr_core::tree::TreeItem;
use knarr_core::{RelPath, Timestamp};
use knarr_remote::{ListOptions, Listing, Remote};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Context;
use crate::error::EngineError;
use crate::journal::{As, Journal, PairLabel};
use crate::lock::PairLock;
use crate::node::{
    Comparing, Emptied, OTHER_PLACE, Parts, Progress, Scanned, Scans, Until, WatchJob,
};
use crate::oneshot::Environment;
use crate::report::Report;
use crate::tidy::{self, Sweep};

/// A job that takes what a place has whenever it runs.
#[derive(Debug, Clone)]
pub struct PickupJob {
    /// What it does with each file.
    pub job: Arc<WatchJob>,
    /// Where from.
    pub source: Arc<dyn Remote>,
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
}

impl Cause {
    /// As it stands in the history.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Schedule => "schedule",
            Self::AfterJob => "after job",
        }
    }
}

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
        let label = self.label();
        // Several jobs may take different files from one place to another.
        let own = PairLabel {
            source: format!("{}\0{}", label.job, label.source),
            ..label.clone()
        };
        let lock = PairLock::acquire(&environment.locks, &own)?;
        let as_what = As::Job {
            cause: cause.name(),
        };
        let journal = Journal::open_as(environment, &label, Some(KIND), as_what).await?;
        journal.begin_lane().await?;
        let tasks = TaskTracker::new();
        // Ends this run, and nothing else.
        let inner = Environment {
            cancel: environment.cancel.child_token(),
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
        let looked = match self.job.steps.recipe(inner.clock.now()) {
            Ok(_ready) => self.look(&context).await,
            Err(error) => Err(EngineError::Steps(error)),
        };
        let outcome = match looked {
            Ok(scanned) => {
                let work = async {
                    let worked = working.run(Until::Drained).await;
                    worked_off.cancel();
                    worked
                };
                let (worked, shown) = tokio::join!(work, progress.write(&journal, &worked_off));
                worked.and(shown)?;
                match given_up.get() {
                    Some(error) => Outcome::Unreachable(crate::error::chain(error)),
                    None if environment.cancel.is_cancelled() => Outcome::Stopped,
                    None => Outcome::Through(scanned),
                }
            }
            Err(EngineError::Look { location, source }) => {
                drop(working);
                let error = EngineError::Look { location, source };
                Outcome::Unreachable(crate::error::chain(&error))
            }
            Err(error @ EngineError::Steps(_)) => {
                drop(working);
                Outcome::Unfit(crate::error::chain(&error))
            }
            Err(error) => return Err(error),
        };
        let ended = Self::finish(&context, outcome).await?;
        // What still waits for a place to be back.
        inner.cancel.cancel();
        drop(context);
        tasks.close();
        tasks.wait().await;
        drop(lock);
        Ok(ended)
    }

    async fn finish(context: &Context, outcome: Outcome) -> Result<Ended, EngineError> {
        let mut held_removals = 0;
        let (event, message, scanned) = match outcome {
            Outcome::Unreachable(message) => {
                context.tally.unreachable.store(true, Ordering::Relaxed);
                (RunEvent::Failed, Some(message), Scanned::default())
            }
            Outcome::Unfit(message) => (RunEvent::Failed, Some(message), Scanned::default()),
            Outcome::Stopped => (RunEvent::Interrupted, None, Scanned::default()),
            Outcome::Through(scanned) => {
                tidy::tidy(context, Sweep::Daily).await?;
                held_removals = context.journal.held_deletions().await?;
                let failed = context.tally.failed.load(Ordering::Relaxed);
                let failed = failed + scanned.incomplete + scanned.problems;
                let event = match held_removals {
                    0 => RunEvent::Finished { failed },
                    _ => RunEvent::Held,
                };
                (event, None, scanned)
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

    /// Lists the source and marks what is not as it was delivered.
    async fn look(&self, context: &Arc<Context>) -> Result<Scanned, EngineError> {
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
            let items = |listing| Items {
                listing,
                batch: Vec::new().into_iter(),
                job: Arc::clone(&job),
                now,
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
            let mut scanned = comparing.compare(items(listing), None)?;
            if let Some(listing) = again {
                scanned.marked += comparing.mark_unfinished(items(listing))?;
            }
            Ok(scanned)
        });
        looking
            .await
            .map_err(|_panic| EngineError::Internal("a look at a source panicked"))?
    }

    /// What a run would take now, and why it would leave every other file. Moves and records nothing.
    ///
    /// # Errors
    /// If the source cannot be listed, or the state cannot be read.
    pub async fn preview(
        &self,
        environment: &Environment,
        mut tell: impl FnMut(Preview<'_>),
    ) -> Result<(), EngineError> {
        let journal =
            Journal::open_as(environment, &self.label(), None, As::Job { cause: "" }).await?;
        let listing = self.source.list(ListOptions::default()).await;
        let mut listing = listing.map_err(|source| EngineError::Look {
            location: self.source.describe().location.clone(),
            source,
        })?;
        let now = environment.clock.now();
        while let Some(items) = listing.next_batch().await {
            for item in items {
                match item {
                    TreeItem::Entry(entry) if entry.kind == Kind::Directory => {}
                    TreeItem::Entry(entry) => {
                        let verdict = self.verdict(&entry, &journal, now).await?;
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
        Ok(match (taken, &self.job.after) {
            (false, _) => Verdict::Take,
            (true, After::Keep) => Verdict::Leave("it was delivered before, as it is".to_owned()),
            (true, _) => Verdict::Finish,
        })
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

/// What a run would do.
#[derive(Debug)]
pub enum Preview<'a> {
    /// With a file.
    File(&'a Entry, Verdict),
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
    Through(Scanned),
    /// A place does not answer.
    Unreachable(String),
    /// The job cannot work as it is.
    Unfit(String),
    /// We were asked to stop.
    Stopped,
}

/// A listing as an iterator for the planner's thread, without what is too young, too old, too small or too
/// large.
struct Items {
    listing: Listing,
    batch: std::vec::IntoIter<TreeItem>,
    job: Arc<WatchJob>,
    now: Timestamp,
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
                TreeItem::Entry(entry) if !self.job.filter.takes_entry(&entry, self.now) => {
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
