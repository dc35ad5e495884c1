//! One command, once, now: copy, move, mirror, sync.
//!
//! Both sides are looked at, as rclone and rsync do; the synced tree of the pair settles what cannot
//! be compared (times of object stores) and what two-way needs to know. The command holds the lock of
//! its pair while it works. Given again after a crash, it goes on where it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use knarr_core::Clock;
use knarr_core::filter::Filter;
use knarr_core::job::{After, Verify};
use knarr_core::plan::{Brake, Decision, MassDeletion, Mode, Policy, Side};
use knarr_core::retry::RetryPolicy;
use knarr_core::run::RunEvent;
use knarr_remote::{MtimeSupport, Remote};
use knarr_store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acknowledge::Acknowledging;
use crate::announce::Announcer;
use crate::commit::CommitQueue;
use crate::context::{Context, Tally};
use crate::duplicates::Contents;
use crate::error::EngineError;
use crate::execute::Executor;
use crate::inspect::SideFiles;
use crate::journal::{Journal, PairLabel};
use crate::lock::PairLock;
use crate::observer::Observer;
use crate::plan_file::{self, PlanReader};
use crate::planning::{self, Look, Planned};
use crate::recover::{Roots, Whose, recover};
pub use crate::report::Report;
use crate::tidy::{self, Sweep};
use crate::turns::Slots;

/// What to do between two places.
#[derive(Debug, Clone)]
pub struct OneShot {
    /// The verb, for the record: `copy`, `move`, `mirror`, `sync`.
    pub command: String,
    /// Where from (the first location of a two-way sync).
    pub source: Arc<dyn Remote>,
    /// Where to (the second location of a two-way sync).
    pub destination: Arc<dyn Remote>,
    /// The policy; what depends on the two places is adjusted to them.
    pub policy: Policy,
    /// Which paths are meant, on both sides.
    pub filter: Arc<Filter>,
    /// What becomes of the source's files.
    pub after: After,
    /// How deliveries are verified.
    pub verify: Verify,
    /// How many files at once; nothing for what suits the places.
    pub transfers: Option<usize>,
    /// How failed attempts are repeated.
    pub retry: RetryPolicy,
    /// When removals are held.
    pub brake: Brake,
    /// Who approved what the brake would hold, if somebody did.
    pub approved_by: Option<String>,
}

/// What a command needs from the program around it.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The state.
    pub store: Store,
    /// Where lock files go.
    pub locks: PathBuf,
    /// How long what an interrupted transfer left is kept to go on from.
    pub keep_unfinished: Duration,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// Who is told of what jobs do.
    pub announcer: Announcer,
    /// Asks to stop.
    pub cancel: CancellationToken,
}

impl OneShot {
    /// Carries it out.
    ///
    /// # Errors
    /// An [`EngineError`] if a place cannot be looked at at all, another command has the pair, or the
    /// state cannot be written. What single files suffer is in the report.
    pub async fn run(self, environment: &Environment) -> Result<Report, EngineError> {
        let prepared = Prepared::new(self, environment).await?;
        let outcome = prepared.look_and_move().await;
        prepared.finish(outcome).await
    }

    /// Carries out exactly a plan that was reviewed. `reviewed` opens it anew at each call: first it is
    /// compared with what would be planned now, then it is carried out.
    ///
    /// # Errors
    /// [`EngineError::PlanMoved`] with the first path that differs, before anything is done;
    /// otherwise as [`OneShot::run`].
    pub async fn apply<R, F>(
        self,
        environment: &Environment,
        reviewed: F,
    ) -> Result<Report, EngineError>
    where
        R: std::io::BufRead + Send,
        F: Fn() -> Result<PlanReader<R>, EngineError> + Send + Sync,
    {
        let prepared = Prepared::new(self, environment).await?;
        let outcome = async {
            let planned = prepared.compare(&mut reviewed()?).await?;
            prepared.carry_out(&mut reviewed()?, planned).await
        };
        let outcome = outcome.await;
        prepared.finish(outcome).await
    }

    /// Only looks, and hands every decision to `each`.
    ///
    /// # Errors
    /// As [`OneShot::run`], or the first error of `each`.
    pub async fn plan<F>(
        self,
        environment: &Environment,
        mut each: F,
    ) -> Result<Planned, EngineError>
    where
        F: FnMut(Decision) -> Result<(), EngineError> + Send,
    {
        let label = self.label();
        let policy = adjusted(&self);
        let journal = Journal::open(environment, &label, None).await?;
        let mut planning = planning::start(Look {
            journal: &journal,
            source: &self.source,
            destination: &self.destination,
            filter: &self.filter,
            policy,
            now: environment.clock.now(),
            collect_directories: false,
        })
        .await?;
        while let Some(decisions) = planning.next().await {
            decisions.into_iter().try_for_each(&mut each)?;
        }
        planning.finish()
    }

    pub(crate) fn label(&self) -> PairLabel {
        PairLabel {
            job: self.command.clone(),
            source: self.source.describe().location.clone(),
            destination: self.destination.describe().location.clone(),
        }
    }
}

/// A run that has begun.
pub(crate) struct Prepared {
    pub(crate) context: Arc<Context>,
    pub(crate) spec: OneShot,
    /// Who approved what an earlier run held.
    approved: Option<String>,
    /// The directories it began with.
    roots: Roots,
    tasks: TaskTracker,
    _lock: PairLock,
}

/// How looking and moving ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) planned: Planned,
    pub(crate) held: Option<(MassDeletion, u64)>,
}

impl Prepared {
    pub(crate) async fn new(spec: OneShot, environment: &Environment) -> Result<Self, EngineError> {
        let label = spec.label();
        let lock = PairLock::acquire(&environment.locks, &label)?;
        let journal = Journal::open(environment, &label, Some(&spec.command)).await?;
        let approved = journal.take_approval().await?;
        let tasks = TaskTracker::new();
        let transfers = spec.transfers.unwrap_or_else(|| {
            let of = |remote: &Arc<dyn Remote>| remote.describe().capabilities.transfers;
            of(&spec.source).max(of(&spec.destination))
        });
        let commits = CommitQueue::start(&tasks, &journal);
        let context = Arc::new(Context {
            source: Arc::clone(&spec.source),
            destination: Arc::clone(&spec.destination),
            journal,
            policy: adjusted(&spec),
            verify: spec.verify,
            after: spec.after.clone(),
            checks: Arc::default(),
            side_files: SideFiles::default(),
            acknowledging: Acknowledging::default(),
            contents: Contents::default(),
            retry: spec.retry,
            observer: Arc::clone(&environment.observer),
            clock: Arc::clone(&environment.clock),
            cancel: environment.cancel.clone(),
            commits,
            slots: Slots::new(transfers, &environment.cancel),
            tally: Tally::default(),
            batches: std::sync::OnceLock::new(),
            tasks: tasks.clone(),
        });
        recover(&context, Whose::Earlier).await?;
        let roots = Roots::note(&context).await?;
        Ok(Self {
            context,
            roots,
            spec,
            approved,
            tasks,
            _lock: lock,
        })
    }

    async fn look_and_move(&self) -> Result<Outcome, EngineError> {
        let context = &self.context;
        let moving = context.removes_source();
        let mut executor = Executor::new(context);
        let roots = self.roots().await;
        let mut planning = planning::start(self.look(moving)).await?;
        while let Some(decisions) = planning.next().await {
            for decision in decisions {
                executor.take(decision).await?;
            }
            if context.cancel.is_cancelled() {
                break;
            }
        }
        let removals = executor.settle().await?;
        let directories = planning.take_source_directories();
        let planned = planning.finish()?;
        let mut held = self.held(&planned, removals);
        if removals > 0
            && held.is_none()
            && !self.is_approved()
            && self.is_elsewhere(&roots).await?
        {
            held = Some(MassDeletion::SuspiciouslyEmpty);
        }
        if context.cancel.is_cancelled() {
            return Ok(Outcome {
                planned,
                held: None,
            });
        }
        if let Some(reason) = held {
            context.journal.hold(removals, &planned, reason).await?;
            return Ok(Outcome {
                planned,
                held: Some((reason, removals)),
            });
        }
        let approved = self.approved.as_ref().or(self.spec.approved_by.as_ref());
        let decided_by = approved.map_or("plan", String::as_str);
        executor.remove(decided_by).await?;
        context.journal.release_hold().await?;
        for (side, identity) in &roots {
            context.journal.note_root(*side, identity).await?;
        }
        if moving {
            executor.remove_source_directories(directories).await?;
        }
        Ok(Outcome {
            planned,
            held: None,
        })
    }

    /// Plans anew and compares, decision by decision.
    async fn compare<R>(&self, reviewed: &mut PlanReader<R>) -> Result<Planned, EngineError>
    where
        R: std::io::BufRead + Send,
    {
        let mut planning = planning::start(self.look(false)).await?;
        while let Some(decisions) = planning.next().await {
            for now in decisions {
                if let Some(moved) =
                    plan_file::difference(reviewed.next_decision()?.as_ref(), Some(&now))
                {
                    return Err(moved);
                }
            }
        }
        if let Some(moved) = plan_file::difference(reviewed.next_decision()?.as_ref(), None) {
            return Err(moved);
        }
        planning.finish()
    }

    async fn carry_out<R>(
        &self,
        reviewed: &mut PlanReader<R>,
        planned: Planned,
    ) -> Result<Outcome, EngineError>
    where
        R: std::io::BufRead + Send,
    {
        let mut executor = Executor::new(&self.context);
        while let Some(decision) = reviewed.next_decision()? {
            executor.take(decision).await?;
        }
        executor.settle().await?;
        // Whoever reviewed the plan has seen what it removes.
        executor.remove("reviewed plan").await?;
        self.context.journal.release_hold().await?;
        Ok(Outcome {
            planned,
            held: None,
        })
    }

    fn look(&self, collect_directories: bool) -> Look<'_> {
        let context = &self.context;
        Look {
            journal: &context.journal,
            source: &context.source,
            destination: &context.destination,
            filter: &self.spec.filter,
            policy: context.policy.clone(),
            now: context.clock.now(),
            collect_directories,
        }
    }

    /// Whether a person approved what this run removes.
    const fn is_approved(&self) -> bool {
        self.spec.approved_by.is_some() || self.approved.is_some()
    }

    /// Which directories the roots are whose lacks lead to removals. Taken before they are listed: a
    /// disk that goes away meanwhile is noticed by the listing.
    async fn roots(&self) -> Vec<(Side, String)> {
        let sides: &[Side] = match self.spec.policy.mode {
            Mode::Copy => &[],
            Mode::Mirror => &[Side::Source],
            Mode::TwoWay => &[Side::Source, Side::Destination],
        };
        let mut roots = Vec::new();
        for side in sides {
            // Whether it is there at all is for the listing to say.
            if let Ok(Some(identity)) = self.context.side(*side).root_identity().await {
                roots.push((*side, identity.to_string()));
            }
        }
        roots
    }

    /// Whether one of the roots is another directory than at the last run (K5).
    async fn is_elsewhere(&self, roots: &[(Side, String)]) -> Result<bool, EngineError> {
        for (side, identity) in roots {
            if self.context.journal.is_other_root(*side, identity).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn held(&self, planned: &Planned, removals: u64) -> Option<MassDeletion> {
        if self.is_approved() {
            return None;
        }
        let counts = &planned.counts;
        let (known, listed) = match self.spec.policy.mode {
            Mode::TwoWay => (
                counts.synced_entries,
                counts.source_entries.min(counts.destination_entries),
            ),
            Mode::Copy | Mode::Mirror => (counts.destination_entries, counts.source_entries),
        };
        self.spec.brake.holds(removals, known, listed)
    }

    pub(crate) async fn finish(
        self,
        outcome: Result<Outcome, EngineError>,
    ) -> Result<Report, EngineError> {
        let Self {
            context,
            spec: _,
            approved: _,
            roots,
            tasks,
            _lock,
        } = self;
        if outcome.is_ok() && context.journal.has_open_intents() {
            recover(&context, Whose::ThisRun(roots)).await?;
        }
        if outcome.is_ok() && !context.cancel.is_cancelled() {
            tidy::tidy(&context, Sweep::Daily).await?;
        }
        let failed = context.tally.failed.load(Ordering::Relaxed);
        let event = match &outcome {
            Err(_) => RunEvent::Failed,
            Ok(_) if context.cancel.is_cancelled() => RunEvent::Interrupted,
            Ok(outcome) if outcome.held.is_some() => RunEvent::Held,
            Ok(outcome) => RunEvent::Finished {
                failed: failed + outcome.planned.counts.source_incomplete,
            },
        };
        let counts = outcome
            .as_ref()
            .map(|outcome| outcome.planned.counts)
            .unwrap_or_default();
        let held = outcome.as_ref().ok().and_then(|outcome| outcome.held);
        let report = Report {
            incomplete: counts.source_incomplete + counts.destination_incomplete,
            held_removals: held.map_or(0, |(_, removals)| removals),
            held: held.map(|(reason, _)| reason),
            ..Report::of(&context, event, counts.source_entries)?
        };
        context.journal.finish(event, &report, None).await?;
        drop(context);
        tasks.close();
        tasks.wait().await;
        outcome.map(|_| report)
    }
}

/// The policy, fitted to what the two places can do.
pub(crate) fn adjusted(spec: &OneShot) -> Policy {
    adjusted_policy(
        spec.policy.clone(),
        &spec.source,
        &spec.destination,
        &spec.after,
    )
}

/// The same for a policy that is not part of a command.
pub(crate) fn adjusted_policy(
    mut policy: Policy,
    source: &Arc<dyn Remote>,
    destination: &Arc<dyn Remote>,
    after: &After,
) -> Policy {
    let (source, destination) = (
        &source.describe().capabilities,
        &destination.describe().capabilities,
    );
    let mut tolerance = 0;
    for capabilities in [source, destination] {
        match capabilities.mtime {
            MtimeSupport::Kept {
                precision_nanoseconds,
            } => {
                tolerance = tolerance.max(precision_nanoseconds.saturating_sub(1));
            }
            MtimeSupport::OwnTime => policy.mtimes_comparable = false,
        }
    }
    policy.mtime_tolerance = policy
        .mtime_tolerance
        .max(std::time::Duration::from_nanos(tolerance));
    policy.directories = source.directories && destination.directories;
    let links = match policy.mode {
        Mode::TwoWay => source.symlinks && destination.symlinks,
        Mode::Copy | Mode::Mirror => destination.symlinks,
    };
    if !links && policy.symlinks == knarr_core::plan::SymlinkPolicy::Keep {
        policy.symlinks = knarr_core::plan::SymlinkPolicy::Unsupported;
    }
    // Where the source goes afterwards, an equal size and time are not enough to say that the
    // destination has it already (K4): contents are compared.
    policy.checksum |= !matches!(after, After::Keep);
    policy
}
