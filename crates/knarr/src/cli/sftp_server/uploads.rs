//! Runs jobs when clients of the own SFTP server have uploaded something.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use knarr_engine::node::{Control, ControlError};
use knarr_engine::pickup::Cause;
use knarr_serve::event::{ServeEvent, ServeObserver};
use tokio::sync::Notify;

use crate::cli::sftp_server::audit::Audit;
use crate::config::Config;

/// How often a job that could not begin is asked for again.
const AGAIN: Duration = Duration::from_secs(5);

/// Logs and records what clients do, and begins the runs that wait for their uploads. However many uploads end meanwhile,
/// a job is asked for once; a run that is under way then is followed by one more.
#[derive(Debug)]
pub(crate) struct Uploads {
    waiting: Arc<Waiting>,
    asked: Arc<Asked>,
    audit: Arc<Audit>,
}

/// Users, and the job that waits for each of them.
type Waiting = RwLock<Vec<(String, String)>>;

#[derive(Debug, Default)]
struct Asked {
    jobs: Mutex<BTreeSet<String>>,
    changed: Notify,
}

impl Uploads {
    /// For the jobs of a configuration. Ends with the node that `control` belongs to.
    pub(crate) fn new(config: &Config, control: Control, audit: Arc<Audit>) -> Self {
        let asked = Arc::new(Asked::default());
        let waiting = Arc::<Waiting>::default();
        tokio::spawn(begin(
            Arc::clone(&asked),
            Arc::clone(&waiting),
            control,
            Arc::clone(&audit),
        ));
        let uploads = Self {
            waiting,
            asked,
            audit,
        };
        uploads.replace(config);
        uploads
    }

    /// From now on these jobs wait. Each is asked for once: something may have come when nobody waited for it.
    pub(crate) fn replace(&self, config: &Config) {
        let waiting = waiting(config);
        for (_, job) in &waiting {
            self.ask(job);
        }
        *self.waiting.write().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    fn ask(&self, job: &str) {
        let mut asked = self
            .asked
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        asked.insert(job.to_owned());
        self.asked.changed.notify_one();
    }
}

impl ServeObserver for Uploads {
    fn observe(&self, event: &ServeEvent<'_>) {
        self.audit.observe(event);
        let ServeEvent::Uploaded { user, .. } = event else {
            return;
        };
        let waiting = self.waiting.read().unwrap_or_else(PoisonError::into_inner);
        let jobs = waiting.iter().filter(|(who, _)| who == user);
        let mut asked = self
            .asked
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (_, job) in jobs {
            asked.insert(job.clone());
            self.asked.changed.notify_one();
        }
    }
}

fn waiting(config: &Config) -> Vec<(String, String)> {
    let waits = |job: &crate::config::Job| {
        let name = job.name.clone();
        let users = job.after_upload.clone();
        users.into_iter().map(move |user| (user, name.clone()))
    };
    config.jobs.values().flat_map(waits).collect()
}

fn is_waiting(waiting: &Waiting, job: &str) -> bool {
    let waiting = waiting.read().unwrap_or_else(PoisonError::into_inner);
    waiting.iter().any(|(_, name)| name == job)
}

async fn begin(asked: Arc<Asked>, waiting: Arc<Waiting>, control: Control, audit: Arc<Audit>) {
    loop {
        tokio::select! {
            () = asked.changed.notified() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
        let jobs = std::mem::take(&mut *asked.jobs.lock().unwrap_or_else(PoisonError::into_inner));
        if !jobs.is_empty() {
            // The story of a file begins with its upload, so that is on record first.
            let audit = Arc::clone(&audit);
            let written = tokio::task::spawn_blocking(move || audit.wait_until_written());
            written.await.ok();
        }
        for job in jobs {
            match control.trigger(&job, Cause::Upload).await {
                Ok(()) => {}
                Err(ControlError::Stopped) => return,
                // It is about to be there, or cannot be opened just now.
                Err(ControlError::Unknown { .. }) if is_waiting(&waiting, &job) => {
                    let mut again = asked.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                    again.insert(job);
                }
                Err(error @ (ControlError::Unknown { .. } | ControlError::Watches { .. })) => {
                    tracing::debug!(job, %error, "nobody waits for the upload any more");
                }
                // As a rule it is just being replaced.
                Err(error) => {
                    tracing::warn!(job, %error, "an upload came, and no run begins yet");
                    let mut again = asked.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                    again.insert(job);
                }
            }
        }
    }
}
