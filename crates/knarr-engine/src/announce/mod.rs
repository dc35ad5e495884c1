//! Whoever is to hear of what jobs do: hooks, alerts, followers of events, meters.
//!
//! Constraints:
//!
//! * What is told of a record is written in the transaction of that record (K3, K8): both are there, or
//!   none is. Nobody waits for a receiver.
//! * Who is told of a run is settled when it begins. A job that is changed or removed while its files are in
//!   flight has them told as before (K8).
//! * What is judged by looking (held plans, endpoints, keys, what did not come) is judged in rounds, every
//!   [`ROUND`]: it may have been changed by another process.
//! * Hooks and alerts are about jobs. Commands that move files once, now, are watched by who gave them.

mod before;
mod follow;
mod meters;
mod rounds;
mod transaction;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use knarr_core::Timestamp;
use knarr_core::alert::{Condition, Rule, Subject};
use knarr_store::runs::RunId;
use tokio::sync::Notify;

use crate::node::Looks;
use crate::outbox::{Alerting, Waker};

pub use before::{Before, BeforeShape, HttpMethod, HttpShape, MOST_ATTEMPTS, TcpShape};
pub(crate) use follow::Following;
pub use meters::{BUCKETS_SECONDS, JobMeters, Meters};
pub(crate) use transaction::Announcing;

/// How often what is judged by looking is looked at.
pub const ROUND: Duration = Duration::from_secs(30);

/// What is done before a run of a job, and who is told of its files and runs: names of targets.
#[derive(Debug, Clone, Default)]
pub struct JobHooks {
    /// What has to succeed before a run looks at its source.
    pub before: Vec<Arc<Before>>,
    /// Told of each file that was delivered.
    pub after_file: Vec<String>,
    /// Told of each run that ended.
    pub after_run: Vec<String>,
}

/// Whether anybody follows the events of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Followed {
    /// Nobody: they are not written.
    #[default]
    No,
    /// Somebody does.
    Yes,
}

/// A certificate or key, and until when it is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its name in rules: the name of its file.
    pub name: String,
    /// When it is not valid any more; nothing if it is for ever.
    pub expires: Option<Timestamp>,
}

#[derive(Debug, Clone)]
struct Announced {
    hooks: JobHooks,
    looks: Looks,
}

#[derive(Debug, Default)]
struct Shared {
    jobs: RwLock<BTreeMap<String, Announced>>,
    alerting: RwLock<Alerting>,
    /// The names of endpoints in the configuration, by what their health is kept under.
    endpoints: RwLock<BTreeMap<String, String>>,
    credentials: RwLock<Vec<Credential>>,
    waker: Waker,
    followers: RwLock<Followers>,
    meters: Meters,
}

/// Who follows the events of files.
#[derive(Debug, Default)]
struct Followers {
    followed: Followed,
    woken: Vec<Arc<Notify>>,
}

/// Tells whoever is to hear of what jobs do. Cheap to clone; the default tells nobody.
#[derive(Debug, Clone, Default)]
pub struct Announcer(Arc<Shared>);

/// What an [`Announcer`] begins with.
#[derive(Debug, Default)]
pub struct AnnouncerOptions {
    /// The alert rules.
    pub rules: Vec<Rule>,
    /// Wakes the worker of the outbox.
    pub waker: Waker,
    /// Whether events of files are written.
    pub followed: Followed,
    /// Wake those who follow them.
    pub followers: Vec<Arc<Notify>>,
}

impl Announcer {
    /// An announcer that knows no job yet.
    #[must_use]
    pub fn new(options: AnnouncerOptions) -> Self {
        Self(Arc::new(Shared {
            alerting: RwLock::new(Alerting::new(options.rules)),
            waker: options.waker,
            followers: RwLock::new(Followers {
                followed: options.followed,
                woken: options.followers,
            }),
            ..Shared::default()
        }))
    }

    /// A job is there, or is another than before.
    pub fn set_job(&self, name: &str, looks: Looks, hooks: JobHooks) {
        let announced = Announced { hooks, looks };
        write(&self.0.jobs).insert(name.to_owned(), announced);
    }

    /// A job is there no more.
    pub fn remove_job(&self, name: &str) {
        write(&self.0.jobs).remove(name);
    }

    /// From now on these are the rules.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        *write(&self.0.alerting) = Alerting::new(rules);
    }

    /// From now on these follow the events of files, and are woken by who writes some.
    pub fn set_followers(&self, woken: Vec<Arc<Notify>>) {
        let followed = if woken.is_empty() {
            Followed::No
        } else {
            Followed::Yes
        };
        *write(&self.0.followers) = Followers { followed, woken };
    }

    /// What wakes the worker of the outbox.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.0.waker.clone()
    }

    /// What the endpoint that is known as `known_as` (as [`knarr_remote::Description::endpoint`] has it) is
    /// called in the configuration.
    pub fn name_endpoint(&self, known_as: &str, name: &str) {
        write(&self.0.endpoints).insert(known_as.to_owned(), name.to_owned());
    }

    /// The certificates and keys that are in use, and until when they are valid.
    pub fn set_credentials(&self, credentials: Vec<Credential>) {
        *write(&self.0.credentials) = credentials;
    }

    /// What was counted since the process began.
    #[must_use]
    pub fn meters(&self) -> &Meters {
        &self.0.meters
    }

    /// Whether events of files are written.
    #[must_use]
    pub fn followed(&self) -> Followed {
        read(&self.0.followers).followed
    }

    /// The rules.
    #[must_use]
    pub fn alerting(&self) -> Alerting {
        read(&self.0.alerting).clone()
    }

    /// What the health of an endpoint is told under: its name in the configuration, if it has one.
    #[must_use]
    pub fn endpoint_name(&self, known_as: &str) -> String {
        read(&self.0.endpoints)
            .get(known_as)
            .cloned()
            .unwrap_or_else(|| known_as.to_owned())
    }

    /// What all endpoints are told under.
    #[must_use]
    pub fn endpoint_names(&self) -> Vec<String> {
        read(&self.0.endpoints).values().cloned().collect()
    }

    /// Wakes the worker of the outbox and those who follow events.
    pub fn wake(&self) {
        self.0.waker.wake();
        let followers = read(&self.0.followers);
        followers.woken.iter().for_each(|woken| woken.notify_one());
    }

    /// One of those who follow events, to be woken by who writes some.
    pub(crate) fn follower(&self) -> Arc<Notify> {
        let followers = read(&self.0.followers);
        followers
            .woken
            .first()
            .map_or_else(Arc::default, Arc::clone)
    }

    pub(crate) fn before(&self, job: &str) -> Vec<Arc<Before>> {
        let jobs = read(&self.0.jobs);
        jobs.get(job)
            .map(|announced| announced.hooks.before.clone())
            .unwrap_or_default()
    }

    fn announced(&self, job: &str) -> Option<Announced> {
        read(&self.0.jobs).get(job).cloned()
    }

    /// Whether a rule listens to what arrives for a job.
    fn listens_to_arrivals(&self, job: &str) -> bool {
        let subject = Subject::job(job);
        let alerting = read(&self.0.alerting);
        let mut rules = alerting.rules().iter();
        rules.any(|rule| {
            rule.is_about(&subject)
                && matches!(
                    rule.condition,
                    Condition::NothingBy(_) | Condition::NothingFor(_)
                )
        })
    }

    /// What is told of one run of a job, or of a directory that it watches.
    pub(crate) fn bind(&self, job: &str, run: RunId, destination_root: &str) -> Announcing {
        Announcing::new(self.clone(), job, run, destination_root)
    }
}

/// A panic under the lock leaves nothing half done: values are exchanged whole.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
