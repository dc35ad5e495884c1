//! A state directory, an observer, and commands between two directories.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use knarr_core::filter::Filter;
use knarr_core::job::{After, Deletes, Verify};
use knarr_core::plan::{Brake, IfExists, Mode, Policy, SymlinkPolicy};
use knarr_core::retry::RetryPolicy;
use knarr_core::template::Template;
use knarr_core::time::SystemClock;
use knarr_engine::conditions::Choice;
use knarr_engine::node::{Completeness, Looks, WatchJob};
use knarr_engine::observer::Collecting;
use knarr_engine::oneshot::{Environment, OneShot, Report};
use knarr_engine::{EngineError, Observer, Steps};
use knarr_remote::Remote;
use knarr_remote::local::LocalRemote;
use knarr_store::{Store, StoreOptions};
use tokio_util::sync::CancellationToken;

/// A place for a test: a state directory and two sides.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) environment: Environment,
    pub(crate) seen: Arc<Collecting>,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for side in ["a", "b"] {
            std::fs::create_dir(directory.path().join(side)).unwrap();
        }
        let (environment, seen) = environment(&directory.path().join("state"));
        Self {
            directory,
            environment,
            seen,
        }
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    pub(crate) fn write(&self, below: &str, content: &[u8]) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn read(&self, below: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path(below)).ok()
    }

    pub(crate) fn command(&self, mode: Mode) -> OneShot {
        command(mode, local(&self.path("a")), local(&self.path("b")))
    }

    pub(crate) async fn run(&self, command: OneShot) -> Report {
        command.run(&self.environment).await.unwrap()
    }

    pub(crate) async fn try_run(&self, command: OneShot) -> Result<Report, EngineError> {
        command.run(&self.environment).await
    }

    /// The same state, as another process would open it after this one ended.
    pub(crate) fn restart(&mut self) {
        let (environment, seen) = environment(&self.path("state"));
        (self.environment, self.seen) = (environment, seen);
    }

    pub(crate) fn store(&self) -> &Store {
        &self.environment.store
    }

    pub(crate) fn assert_chain(&self) {
        let verdict = self.store().verify_chain(None).unwrap();
        assert!(
            matches!(verdict, knarr_store::chain::ChainVerdict::Intact(_)),
            "{verdict:?}"
        );
    }
}

pub(crate) fn environment(state: &Path) -> (Environment, Arc<Collecting>) {
    let seen = Arc::new(Collecting::default());
    let clock: Arc<dyn knarr_core::Clock> = Arc::new(SystemClock);
    let opened = Store::open(StoreOptions::new(state, Arc::clone(&clock))).unwrap();
    let environment = Environment {
        store: opened.store,
        locks: state.join("locks"),
        keep_unfinished: knarr_engine::KEEP_UNFINISHED,
        clock,
        observer: Arc::clone(&seen) as Arc<dyn Observer>,
        announcer: knarr_engine::announce::Announcer::default(),
        cancel: CancellationToken::new(),
    };
    (environment, seen)
}

pub(crate) fn local(path: &Path) -> Arc<dyn Remote> {
    Arc::new(LocalRemote::new(path))
}

pub(crate) fn quick_retry() -> RetryPolicy {
    RetryPolicy {
        attempts: 3,
        from: Duration::from_millis(20),
        to: Duration::from_millis(100),
    }
}

pub(crate) fn command(
    mode: Mode,
    source: Arc<dyn Remote>,
    destination: Arc<dyn Remote>,
) -> OneShot {
    OneShot {
        command: match mode {
            Mode::Copy => "copy",
            Mode::Mirror => "mirror",
            Mode::TwoWay => "sync",
        }
        .to_owned(),
        source,
        destination,
        policy: Policy::new(mode),
        filter: Arc::new(Filter::default()),
        after: After::Keep,
        verify: Verify::Offered,
        transfers: None,
        retry: quick_retry(),
        brake: Brake::default(),
        approved_by: None,
    }
}

pub(crate) fn watch_job(name: &str, source: &Path, destination: Arc<dyn Remote>) -> WatchJob {
    WatchJob {
        endpoints: Vec::new(),
        name: name.to_owned(),
        looks: Looks::Always,
        sources: vec![source.to_path_buf()],
        filter: Arc::new(Filter::new([], knarr_core::filter::TEMPORARY_NAMES).unwrap()),
        matching: None,
        choice: Choice::default(),
        conditions: Arc::default(),
        checks: Arc::default(),
        parameters: Arc::default(),
        acknowledge: None,
        duplicates: None,
        settle: Duration::from_millis(300),
        complete: Completeness::default(),
        steps: Steps::default(),
        destination,
        template: Template::parse("").unwrap(),
        time_zone: jiff::tz::TimeZone::UTC,
        publish: knarr_engine::Publish::Each,
        manifest: None,
        after: After::Keep,
        deletes: Deletes::Keep,
        if_exists: IfExists::Differs,
        symlinks: SymlinkPolicy::Keep,
        verify: Verify::Offered,
        retry: quick_retry(),
        rescan: Duration::from_secs(3600),
        poll: Duration::from_secs(2),
        verify_destination: None,
        transfers: None,
        turns: Vec::new(),
        priority: knarr_core::job::Priority::Normal,
        brake: Brake::default(),
    }
}

/// Waits until `done`, for at most 20 s.
pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("in vain: {what}");
}
