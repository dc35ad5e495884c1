//! One watched directory of a job, from its appearance to its disappearance, again and again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use knarr_core::plan::Side;
use knarr_fs::Root;
use knarr_fs::watch::{WatchEvent, Watcher};
use knarr_remote::local::LocalRemote;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acknowledge::{self, Telling};
use crate::announce::Following;
use crate::context::Context;
use crate::duplicates::{self, Duplicates};
use crate::error::EngineError;
use crate::journal::{Journal, PairLabel};
use crate::lock::PairLock;
use crate::node::compare::OTHER_PLACE;
use crate::node::drift::Drift;
use crate::node::health::Circuit;
use crate::node::observe::{Ended, Observing};
use crate::node::parts::Parts;
use crate::node::progress::Progress;
use crate::node::scan::Scanning;
use crate::node::scans::Scans;
use crate::node::spec::WatchJob;
use crate::node::told::Told;
use crate::node::work::{Until, Working};
use crate::observer::{Event, Trouble};
use crate::oneshot::Environment;
use crate::tidy::{self, Sweep};

/// How often a missing directory is looked for.
const ROOT_POLL: Duration = Duration::from_secs(2);

/// One watched directory.
#[derive(Debug)]
pub(crate) struct Lane {
    job: Arc<WatchJob>,
    source: PathBuf,
    environment: Environment,
    told: Arc<Told>,
}

/// What one incarnation of the directory shares.
struct Incarnation {
    root: Root,
    journal: Journal,
    cancel: CancellationToken,
    wake: Arc<Notify>,
    scans: Scans,
}

impl Lane {
    /// A lane whose events are handed to `told`, too.
    pub(crate) fn new(
        job: Arc<WatchJob>,
        source: PathBuf,
        environment: Environment,
        told: Arc<Told>,
    ) -> Self {
        let environment = Environment {
            observer: Arc::<Told>::clone(&told),
            ..environment
        };
        Self {
            job,
            source,
            environment,
            told,
        }
    }

    pub(crate) async fn run(mut self) -> Result<(), EngineError> {
        let label = PairLabel {
            job: self.job.name.clone(),
            source: self.source.display().to_string(),
            destination: self.job.destination.describe().location.clone(),
        };
        let _lock = PairLock::acquire(&self.environment.locks, &label)?;
        let journal = Journal::open(&self.environment, &label, Some("watch")).await?;
        self.told.begun(journal.run(), "watch");
        journal.begin_lane().await?;
        let following = Following::start(&self.environment, &self.job.name, &journal);
        self.environment.observer = following.observer();
        let cancel = self.environment.cancel.clone();
        let mut told = false;
        while !cancel.is_cancelled() {
            match Root::open(&self.source) {
                Ok(root) => {
                    told = false;
                    self.incarnation(root, &journal).await?;
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        self.say(&format!(
                            "waiting for the directory: {}",
                            crate::error::chain(&error)
                        ));
                    }
                }
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(ROOT_POLL) => {}
            }
        }
        following.end().await;
        journal.finish_lane().await
    }

    /// Observes and works until the directory is gone or we are asked to stop.
    async fn incarnation(&self, root: Root, journal: &Journal) -> Result<(), EngineError> {
        let trusted = self.check_identity(&root, journal).await?;
        let cancel = self.environment.cancel.child_token();
        let incarnation = Incarnation {
            root,
            journal: journal.clone(),
            cancel: cancel.clone(),
            wake: Arc::new(Notify::new()),
            scans: Scans::default(),
        };
        let tasks = TaskTracker::new();
        let progress = Arc::new(Progress::new(
            Arc::clone(&self.environment.observer),
            Arc::clone(&self.environment.clock),
        ));
        let working = self.working(&incarnation, &tasks, Arc::clone(&progress));
        let (context, circuit) = (
            Arc::clone(&working.delivering.context),
            working.circuit.clone(),
        );
        let drift = Drift {
            delivering: Arc::clone(&working.delivering),
            circuit: circuit.clone(),
            wake: Arc::clone(&incarnation.wake),
        };
        let observing = self.observing(&incarnation);
        journal.set_degraded(None)?;
        let starting = tokio::task::spawn_blocking(move || {
            let watcher = observing.start_watcher();
            (observing, watcher)
        });
        let (observing, watcher) = starting
            .await
            .map_err(|_panic| EngineError::Internal("the watcher panicked"))?;
        // Watched first, then scanned: what changes in between is told, what changed before is seen.
        incarnation.scans.want(None);
        let watched = watcher.is_some();
        let guard = cancel.clone().drop_guard();
        let acknowledging = Arc::clone(&context);
        let (worked, observed, scanned, shown, compared, tidied, acknowledged) = tokio::join!(
            cancelling(&cancel, working.run(Until::Asked)),
            cancelling(&cancel, observe(observing, watcher)),
            cancelling(&cancel, self.scanning(&incarnation, watched, trusted)),
            cancelling(&cancel, progress.write(journal, &cancel)),
            cancelling(&cancel, drift.run()),
            cancelling(&cancel, tidying(context, circuit, self.job.duplicates)),
            cancelling(
                &cancel,
                acknowledge::keep_up(acknowledging, &cancel, Telling::Everybody)
            ),
        );
        drop(guard);
        tasks.close();
        tasks.wait().await;
        worked
            .and(scanned)
            .and(observed)
            .and(shown)
            .and(compared)
            .and(tidied)
            .and(acknowledged)
    }

    /// Whether the directory is the one it was: if not, nothing is taken for deleted.
    async fn check_identity(&self, root: &Root, journal: &Journal) -> Result<bool, EngineError> {
        let identity = match root.identity() {
            Ok(identity) => identity,
            Err(error) => {
                self.say(&format!(
                    "its identity cannot be told: {}",
                    crate::error::chain(&error)
                ));
                return Ok(false);
            }
        };
        let same = journal
            .check_root(Side::Source, &identity.to_string())
            .await?;
        if !same {
            self.say(OTHER_PLACE);
        }
        Ok(same)
    }

    fn working(
        &self,
        incarnation: &Incarnation,
        tasks: &TaskTracker,
        progress: Arc<Progress>,
    ) -> Working {
        let environment = Environment {
            cancel: incarnation.cancel.clone(),
            ..self.environment.clone()
        };
        let parts = Parts {
            job: &self.job,
            source: Arc::new(LocalRemote::new(self.source.clone())),
            journal: &incarnation.journal,
            environment: &environment,
            tasks,
            progress,
        };
        parts.working(&incarnation.wake, &incarnation.scans)
    }

    fn observing(&self, incarnation: &Incarnation) -> Observing {
        Observing {
            job: Arc::clone(&self.job),
            root: incarnation.root.clone(),
            journal: incarnation.journal.clone(),
            clock: Arc::clone(&self.environment.clock),
            observer: Arc::clone(&self.environment.observer),
            cancel: incarnation.cancel.clone(),
            wake: Arc::clone(&incarnation.wake),
            scans: incarnation.scans.clone(),
        }
    }

    /// Scans when asked, and every so often.
    async fn scanning(
        &self,
        incarnation: &Incarnation,
        watched: bool,
        trusted: bool,
    ) -> Result<(), EngineError> {
        let scanning = Arc::new(Scanning {
            job: Arc::clone(&self.job),
            root: incarnation.root.clone(),
            journal: incarnation.journal.clone(),
            clock: Arc::clone(&self.environment.clock),
            observer: Arc::clone(&self.environment.observer),
            trusted,
        });
        let mut polled = !watched;
        let mut everything_at = Instant::now();
        loop {
            let pause = if polled {
                self.job.poll
            } else {
                jittered(self.job.rescan, &self.source)
            };
            let round = tokio::select! {
                () = incarnation.cancel.cancelled() => return Ok(()),
                round = incarnation.scans.next() => round,
                // However often parts of it are looked at meanwhile.
                () = tokio::time::sleep_until(everything_at + pause) => {
                    incarnation.scans.want(None);
                    incarnation.scans.next().await
                }
            };
            if round.is_everything() {
                incarnation.journal.set_scanning(true).await?;
            }
            for request in &round.requests {
                let (shared, request) = (Arc::clone(&scanning), request.clone());
                let blocking = tokio::task::spawn_blocking(move || shared.scan(&request));
                let scanned = blocking
                    .await
                    .map_err(|_panic| EngineError::Internal("a scan panicked"))??;
                tracing::debug!(job = %self.job.name, ?scanned, "scanned");
                incarnation.wake.notify_one();
                if incarnation.cancel.is_cancelled() {
                    return Ok(());
                }
            }
            if round.is_everything() {
                incarnation.journal.set_scanning(false).await?;
                everything_at = Instant::now();
            }
            round.finished();
            polled = !watched || incarnation.journal.is_degraded().await?;
            if !watched && incarnation.root.check_in_place().is_err() {
                return Ok(());
            }
        }
    }

    fn say(&self, message: &str) {
        let message = format!(
            "job `{}`: {}: {message}",
            self.job.name,
            self.source.display()
        );
        let (path, kind) = (None, Trouble::Notice);
        self.environment.observer.event(&Event::Trouble {
            path,
            kind,
            message: &message,
        });
    }
}

/// Gives up what nobody goes on with, at the start and then daily. Owns the context, as commits end when
/// the last owner is gone.
async fn tidying(
    context: Arc<Context>,
    circuit: Circuit,
    duplicates: Option<Duplicates>,
) -> Result<(), EngineError> {
    loop {
        circuit.until_up().await;
        if context.cancel.is_cancelled() {
            return Ok(());
        }
        tidy::tidy(&context, Sweep::Now).await?;
        duplicates::forget_old(&context, duplicates).await?;
        tokio::select! {
            () = context.cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(tidy::EVERY) => {}
        }
    }
}

/// Runs the watcher's consumer on a thread of its own.
async fn observe(
    observing: Observing,
    watcher: Option<(Watcher, Receiver<WatchEvent>)>,
) -> Result<(), EngineError> {
    let Some((watcher, events)) = watcher else {
        observing.cancel.cancelled().await;
        return Ok(());
    };
    let running = tokio::task::spawn_blocking(move || {
        let ended = observing.run(&events);
        drop(watcher);
        if matches!(ended, Ok(Ended::RootGone)) {
            tracing::warn!(root = %observing.root.display().display(), "the watched directory is gone");
        }
        ended
    });
    let ended = running
        .await
        .map_err(|_panic| EngineError::Internal("an observer panicked"))?;
    ended.map(drop)
}

/// When one part of a lane ends, the others end, too.
async fn cancelling<F>(cancel: &CancellationToken, part: F) -> Result<(), EngineError>
where
    F: Future<Output = Result<(), EngineError>>,
{
    let result = part.await;
    cancel.cancel();
    result
}

/// Spread over a tenth, so that many lanes do not scan at once; the same for the same directory.
fn jittered(period: Duration, source: &std::path::Path) -> Duration {
    let hash = knarr_core::ContentHash::of(source.as_os_str().as_encoded_bytes());
    let share = f64::from(hash.as_bytes()[0]) / 255.0;
    period.mul_f64(0.95 + 0.1 * share)
}
