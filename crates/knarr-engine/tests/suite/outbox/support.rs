//! A store with an outbox, a clock that is set by hand, and a worker.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use knarr_core::retry::RetryPolicy;
use knarr_core::time::ManualClock;
use knarr_core::{Clock, RelPath, Timestamp};
use knarr_engine::outbox::{FileFacts, Target, TargetOptions, Waker, Worker};
use knarr_store::outbox::{NewMessage, OutboxFilter, OutboxId, Stored};
use knarr_store::runs::RunId;
use knarr_store::{Store, StoreOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const START: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// A state directory with its clock.
pub(crate) struct Office {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Store,
}

/// A worker that runs.
pub(crate) struct Running {
    pub(crate) waker: Waker,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Stops it as a node does, and waits for it.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(Duration::from_secs(60), self.task)
            .await
            .expect("it stops when it is cancelled")
            .unwrap();
    }
}

impl Office {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(START));
        let store = open(directory.path().join("state"), &clock);
        Self {
            directory,
            clock,
            store,
        }
    }

    /// Closes the store and opens it again, as a node does that starts after a crash.
    pub(crate) fn reopened(self) -> Self {
        let Self {
            directory,
            clock,
            store,
        } = self;
        drop(store);
        let store = open(directory.path().join("state"), &clock);
        Self {
            directory,
            clock,
            store,
        }
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// An executable script.
    pub(crate) fn script(&self, name: &str, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    pub(crate) fn start(&self, targets: &[(&str, Arc<dyn Target>)]) -> Running {
        let cancel = CancellationToken::new();
        let mut worker = Worker::new(self.store.clone(), self.clock(), "edge-1", cancel.clone());
        for (name, target) in targets {
            worker.add(*name, Arc::clone(target), options());
        }
        let waker = worker.waker();
        let task = tokio::spawn(worker.run());
        Running {
            waker,
            cancel,
            task,
        }
    }

    pub(crate) async fn enqueue(&self, messages: Vec<NewMessage>) {
        self.store
            .transact(move |tx| {
                for message in &messages {
                    tx.enqueue(message)?;
                }
                Ok(())
            })
            .await
            .unwrap();
    }

    pub(crate) fn rows(&self, filter: OutboxFilter) -> Vec<Stored> {
        self.store
            .read(|reader| reader.outbox(filter, None, OutboxId::FIRST, 10_000))
            .unwrap()
    }

    /// Lets time go on, minute by minute, and everybody look each time.
    pub(crate) async fn pass(&self, running: &Running, minutes: u32) {
        for _ in 0..minutes {
            self.clock.advance(Duration::from_secs(60));
            running.waker.wake();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Lets time go on until it holds.
    pub(crate) async fn pass_until(
        &self,
        running: &Running,
        what: &str,
        mut holds: impl FnMut() -> bool,
    ) {
        let begin = Instant::now();
        while !holds() {
            assert!(
                begin.elapsed() < Duration::from_secs(120),
                "in vain: {what}"
            );
            self.clock.advance(Duration::from_secs(60));
            running.waker.wake();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn open(path: PathBuf, clock: &Arc<ManualClock>) -> Store {
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    Store::open(StoreOptions::new(path, clock)).unwrap().store
}

pub(crate) fn options() -> TargetOptions {
    TargetOptions {
        at_once: 4,
        retry: RetryPolicy {
            attempts: 4,
            from: Duration::from_secs(5),
            to: Duration::from_secs(600),
        },
    }
}

/// Waits, without moving the clock.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn path(text: &[u8]) -> RelPath {
    RelPath::new(text.to_vec()).unwrap()
}

/// What is said of a file that was delivered.
pub(crate) fn facts(name: &[u8]) -> FileFacts {
    FileFacts {
        path: path(name),
        action: "created".to_owned(),
        source: "/in".to_owned(),
        destination: "/out".to_owned(),
        destination_root: "/out".to_owned(),
        destination_path: path(name),
        size: 10,
        hash: None,
        at: START,
        message: None,
    }
}

pub(crate) fn message(name: &str, job: &str, target: &str) -> NewMessage {
    facts(name.as_bytes()).message(job, RunId(7), target)
}
