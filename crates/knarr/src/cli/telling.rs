//! Who is told of what jobs do, wired up: targets, alert rules, hooks, the PostgreSQL notifier.
//!
//! Constraints: of all processes with one state directory, one delivers; it has a lock on that. A node that
//! finds the lock taken waits for it; a job that is run by hand leaves the delivery to who has it. Either
//! way nothing is lost: what is to be told is in the database.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use knarr_core::Clock;
use knarr_core::location::Location;
use knarr_engine::announce::{Announcer, AnnouncerOptions, Before, JobHooks};
use knarr_engine::node::Looks;
use knarr_engine::outbox::notifier::{self, Notifier};
use knarr_engine::outbox::shape::{Made, SecretRef, TargetShape};
use knarr_engine::outbox::{LocalFile, Waker, Worker};
use knarr_fs::lock::{FileLock, LockError, LockMode};
use knarr_store::events::EventId;
use knarr_store::secrets::SecretValue;
use knarr_store::{Reader, Store, StoreError};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::cli::context::Context;
use crate::command_error::CommandError;
use crate::config::{Config, Job};
use crate::environment::Environment;
use crate::secrets::key_source;

/// How long a job that was run by hand waits for its messages to be delivered.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks whether they were.
const LOOK: Duration = Duration::from_millis(25);
/// How often a node asks for the lock that another process has.
const ASK: Duration = Duration::from_secs(1);
/// How long deliveries may take to stop.
const STOPPING: Duration = Duration::from_secs(2);

/// Which process this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Teller {
    /// `knarr run`: delivers as long as it runs, and judges what did not come.
    Node,
    /// A job that is run by hand: delivers what it can.
    OneRun,
}

/// The targets of a configuration, ready to take messages.
pub(crate) struct Receivers {
    worker: Worker,
    notifiers: Vec<Notifier>,
    targets: Vec<String>,
    followers: Vec<String>,
    stop: CancellationToken,
}

/// Where others are put in the place of the receivers at work. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Exchange {
    next: Arc<(Mutex<Option<Receivers>>, Notify)>,
    waker: Waker,
    stop: CancellationToken,
}

/// Targets, rules and hooks of a configuration, ready to work.
pub(crate) struct Telling {
    announcer: Announcer,
    store: Store,
    teller: Teller,
    receivers: Receivers,
    exchange: Exchange,
}

/// Deliveries at work.
pub(crate) struct Delivering {
    announcer: Announcer,
    store: Store,
    teller: Teller,
    targets: Vec<String>,
    followers: Vec<String>,
    exchange: Exchange,
    has_lock: tokio::sync::watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Telling {
    /// Makes everything that the configuration names.
    ///
    /// # Errors
    /// If a secret or a file of a target is missing, or the state does not work.
    pub(crate) async fn prepare(
        context: &Context,
        config: &Config,
        store: &Store,
        teller: Teller,
    ) -> Result<Self, CommandError> {
        let exchange = Exchange {
            next: Arc::default(),
            waker: Waker::default(),
            stop: CancellationToken::new(),
        };
        let receivers = exchange.prepare(context, config, store).await?;
        if teller == Teller::Node {
            notifier::forget_others(store, &receivers.followers).await?;
        }
        let announcer = Announcer::new(AnnouncerOptions {
            rules: config.rules.clone(),
            waker: exchange.waker.clone(),
            ..AnnouncerOptions::default()
        });
        announcer.set_followers(receivers.woken());
        for job in config.jobs.values() {
            announce(&announcer, job, context, config, store)?;
        }
        announcer.set_credentials(super::credentials::read(config, context.clock.now()));
        Ok(Self {
            announcer,
            store: store.clone(),
            teller,
            receivers,
            exchange,
        })
    }

    /// Who tells.
    pub(crate) fn announcer(&self) -> Announcer {
        self.announcer.clone()
    }

    /// Where other receivers are put.
    pub(crate) fn exchange(&self) -> Exchange {
        self.exchange.clone()
    }

    /// Begins to deliver.
    pub(crate) fn start(self) -> Delivering {
        let Self {
            announcer,
            store,
            teller,
            receivers,
            exchange,
        } = self;
        let (targets, followers) = (receivers.targets.clone(), receivers.followers.clone());
        let (told, has_lock) = tokio::sync::watch::channel(false);
        let (at_work, until, waiting) = (store.clone(), exchange.clone(), announcer.clone());
        let task = tokio::spawn(async move {
            let locks = at_work.directory().join("locks");
            let Some(_lock) = lock(&locks, teller, &until.stop).await else {
                return;
            };
            told.send_replace(true);
            let rounds = async {
                if teller == Teller::Node {
                    waiting.rounds(&at_work, &until.stop).await;
                }
            };
            tokio::join!(until.deliver(receivers), rounds);
        });
        Delivering {
            announcer,
            store,
            teller,
            targets,
            followers,
            exchange,
            has_lock,
            task,
        }
    }
}

impl Receivers {
    /// What wakes those who follow events.
    fn woken(&self) -> Vec<Arc<Notify>> {
        self.notifiers.iter().map(Notifier::notify).collect()
    }
}

impl Exchange {
    /// Makes the targets of a configuration. Nothing is sent by that.
    ///
    /// # Errors
    /// If a secret or a file of a target is missing, or the state does not work.
    pub(crate) async fn prepare(
        &self,
        context: &Context,
        config: &Config,
        store: &Store,
    ) -> Result<Receivers, CommandError> {
        let node = node_name(config);
        let stop = self.stop.child_token();
        let clock: Arc<dyn Clock> = Arc::new(context.clock);
        let worker = Worker::new(store.clone(), Arc::clone(&clock), &node, stop.clone());
        let mut worker = worker.woken_by(self.waker.clone());
        let (mut targets, mut notifiers, mut followers) = (Vec::new(), Vec::new(), Vec::new());
        for (name, shape) in &config.targets {
            match made(context, config, store, (name, shape), &node)? {
                Made::Target(target, options) => {
                    worker.add(name, target, options);
                    targets.push(name.clone());
                }
                Made::Notifier(options) => {
                    let new = Notifier::new(name, &node, options, store.clone(), stop.clone());
                    notifiers.push(new.await.map_err(|error| wrong_target(name, error))?);
                    followers.push(name.clone());
                }
            }
        }
        Ok(Receivers {
            worker,
            notifiers,
            targets,
            followers,
            stop,
        })
    }

    /// Puts others in the place of those at work. What waits for a target that is there no more stays.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn replace(
        &self,
        receivers: Receivers,
        announcer: &Announcer,
        store: &Store,
    ) -> Result<(), CommandError> {
        announcer.set_followers(receivers.woken());
        let followers = receivers.followers.clone();
        let (next, changed) = &*self.next;
        *next.lock().unwrap_or_else(PoisonError::into_inner) = Some(receivers);
        changed.notify_one();
        Ok(notifier::forget_others(store, &followers).await?)
    }

    /// Delivers until it is stopped: with these, then with those that come in their place.
    async fn deliver(&self, first: Receivers) {
        let (next, changed) = &*self.next;
        let mut present = Some(first);
        while let Some(receivers) = present.take() {
            let mut tasks = JoinSet::new();
            tasks.spawn(receivers.worker.run());
            for notifier in receivers.notifiers {
                tasks.spawn(notifier.run());
            }
            let others = async {
                loop {
                    changed.notified().await;
                    let others = next.lock().unwrap_or_else(PoisonError::into_inner).take();
                    // Nothing is there if two came and the second was taken with the first.
                    if let Some(others) = others {
                        return others;
                    }
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                others = others => present = Some(others),
            }
            // Never two at once: what one of them sends would be sent by the other, too.
            receivers.stop.cancel();
            while let Some(ended) = tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::error!("a part of what tells people stopped with a bug: {error}");
                }
            }
        }
    }
}

impl Delivering {
    /// Ends it. A job that was run by hand waits before, for a bounded time, until its messages were
    /// delivered, or tried in vain.
    pub(crate) async fn end(self) {
        if self.teller == Teller::OneRun {
            self.announcer.wake();
            // Without the lock another process delivers.
            tokio::time::timeout(PATIENCE, self.until_tried())
                .await
                .ok();
            self.tell_what_waits().await;
        }
        self.exchange.stop.cancel();
        tokio::time::timeout(STOPPING, self.task).await.ok();
    }

    async fn until_tried(&self) {
        loop {
            if self.task.is_finished() {
                return;
            }
            let (targets, followers) = (self.targets.clone(), self.followers.clone());
            let read = self
                .store
                .read_async(move |reader| is_tried(reader, &targets, &followers));
            if read.await.unwrap_or(true) && (*self.has_lock.borrow() || self.task.is_finished()) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn tell_what_waits(&self) {
        if !*self.has_lock.borrow() {
            return;
        }
        let counts = self.store.read_async(|reader| reader.outbox_counts()).await;
        for count in counts.unwrap_or_default() {
            if count.waiting > 0 {
                let (waiting, target) = (count.waiting, &count.target);
                tracing::warn!(
                    "{waiting} messages wait for the target `{target}`: `knarr run` delivers them, \
                     and so does the next run; `knarr status` says why"
                );
            }
        }
    }
}

/// Whether nothing is due: what is in the outbox waits for another attempt, or for a person.
fn is_tried(
    reader: &Reader<'_>,
    targets: &[String],
    followers: &[String],
) -> Result<bool, StoreError> {
    let now = reader_time();
    for target in targets {
        let heads = reader.outbox_heads(target, 1)?;
        if heads.first().is_some_and(|head| head.due_at <= now) {
            return Ok(false);
        }
    }
    for follower in followers {
        let cursor = reader.event_cursor(&notifier::follower_of(follower))?;
        let cursor = cursor.unwrap_or(EventId::FIRST);
        if !reader.events_after(cursor, 1)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn reader_time() -> knarr_core::Timestamp {
    knarr_core::time::SystemClock.now()
}

async fn lock(directory: &Path, teller: Teller, stop: &CancellationToken) -> Option<FileLock> {
    if let Err(error) = std::fs::create_dir_all(directory) {
        tracing::error!("cannot make {}: {error}", directory.display());
        return None;
    }
    let path = directory.join("outbox.lock");
    loop {
        match FileLock::acquire(&path, LockMode::Exclusive, "deliver messages") {
            Ok(lock) => return Some(lock),
            Err(LockError::Held { .. }) if teller == Teller::Node => {}
            Err(LockError::Held { .. }) => return None,
            Err(error) => {
                tracing::error!(
                    "messages are not delivered: {}",
                    knarr_engine::chain(&error)
                );
                return None;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(ASK) => {}
        }
    }
}

/// Makes a target as the configuration has it.
///
/// # Errors
/// If a secret or a file is missing.
pub(crate) fn made(
    context: &Context,
    config: &Config,
    store: &Store,
    (name, shape): (&str, &TargetShape),
    node: &str,
) -> Result<Made, CommandError> {
    let clock: Arc<dyn Clock> = Arc::new(context.clock);
    let fetch = |secret: &SecretRef| fetch(context, store, secret);
    shape
        .clone()
        .make(&local_file(config), node, &fetch, &clock)
        .map_err(|error| wrong_target(name, error))
}

fn wrong_target(name: &str, error: impl std::error::Error + 'static) -> CommandError {
    let why = knarr_engine::chain(&error);
    CommandError::usage(format!("the target `{name}` cannot be used: {why}"))
        .hint("`knarr alert test` sends it a message")
}

/// What an announcer has to know of a job of the configuration file.
///
/// # Errors
/// If a secret or a file of what is done before a run is missing.
pub(crate) fn announce(
    announcer: &Announcer,
    job: &Job,
    context: &Context,
    config: &Config,
    store: &Store,
) -> Result<(), CommandError> {
    let fetch = |secret: &SecretRef| fetch(context, store, secret);
    let mut before = Vec::new();
    for shape in &job.hooks.before {
        let made = Before::make(shape.clone(), &local_file(config), &fetch);
        before.push(Arc::new(made.map_err(|error| {
            let why = knarr_engine::chain(&error);
            CommandError::usage(format!("`hooks.before` of the job `{}`: {why}", job.name))
        })?));
    }
    let looks = match job.from {
        Some(_) => Looks::InRuns,
        None => Looks::Always,
    };
    let hooks = JobHooks {
        before,
        after_file: job.hooks.after_file.clone(),
        after_run: job.hooks.after_run.clone(),
    };
    announcer.set_job(&job.name, looks, hooks);
    Ok(())
}

/// Tells an announcer what the endpoint of a place is called in the configuration.
pub(crate) fn name_endpoint(announcer: &Announcer, written: &Location, known_as: &str) {
    if let Location::Endpoint { name, .. } = written {
        announcer.name_endpoint(known_as, name);
    } else if !matches!(written, Location::Local { .. }) {
        announcer.name_endpoint(known_as, known_as);
    }
}

fn local_file(config: &Config) -> LocalFile {
    LocalFile::read_from(config.file.clone().unwrap_or_default())
}

fn fetch(context: &Context, store: &Store, secret: &SecretRef) -> Result<SecretValue, String> {
    match secret {
        SecretRef::Env(name) => Environment::variable(name)
            .map(|value| SecretValue::new(value.into_bytes()))
            .ok_or_else(|| format!("the environment variable {name} is not set")),
        SecretRef::Secret(name) => {
            let key = key_source(context, store);
            let secrets = knarr_store::secrets::Secrets::new(store.clone(), key);
            secrets
                .get(name)
                .map_err(|error| knarr_engine::chain(&error))
        }
    }
}

/// The name of this node in what it tells.
pub(crate) fn node_name(config: &Config) -> String {
    config.node_name.clone().unwrap_or_else(|| {
        let system = rustix::system::uname();
        system.nodename().to_string_lossy().into_owned()
    })
}
