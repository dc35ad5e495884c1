//! The events of one run for those who follow them: starts and progress, beside the observer.

use std::sync::Arc;

use knarr_store::runs::RunId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::announce::Followed;
use crate::journal::Journal;
use crate::observer::{Event, Observer};
use crate::oneshot::Environment;
use crate::outbox::notifier::Recorder;

/// Writes what is seen until it is ended.
#[derive(Debug)]
pub(crate) struct Following {
    observer: Arc<dyn Observer>,
    writing: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Following {
    /// Begins to follow a run of a job, if anybody wants to know. Needs a runtime.
    pub(crate) fn start(environment: &Environment, job: &str, journal: &Journal) -> Self {
        let run = journal.run();
        let observer = environment
            .observer
            .for_run(job, run)
            .unwrap_or_else(|| Arc::clone(&environment.observer));
        let announcer = &environment.announcer;
        if announcer.followed() == Followed::No {
            return Self {
                observer,
                writing: None,
            };
        }
        let clock = Arc::clone(&environment.clock);
        let recorder = Arc::new(Recorder::new(job, Some(RunId(run)), clock));
        journal.announcing().follow(recorder.waiting());
        let (cancel, store) = (CancellationToken::new(), environment.store.clone());
        let (follower, until) = (announcer.follower(), cancel.clone());
        let writer = Arc::clone(&recorder);
        let task = tokio::spawn(async move { writer.run(&store, &follower, &until).await });
        Self {
            observer: Arc::new(Both {
                first: observer,
                second: recorder,
            }),
            writing: Some((cancel, task)),
        }
    }

    /// Who watches the run.
    pub(crate) fn observer(&self) -> Arc<dyn Observer> {
        Arc::clone(&self.observer)
    }

    /// Writes what was seen and not written yet.
    pub(crate) async fn end(mut self) {
        if let Some((cancel, task)) = self.writing.take() {
            cancel.cancel();
            // Whatever became of it is logged there.
            task.await.ok();
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some((cancel, _task)) = &self.writing {
            cancel.cancel();
        }
    }
}

/// Two who watch.
#[derive(Debug)]
struct Both {
    first: Arc<dyn Observer>,
    second: Arc<Recorder>,
}

impl Observer for Both {
    fn event(&self, event: &Event<'_>) {
        self.first.event(event);
        self.second.event(event);
    }
}
