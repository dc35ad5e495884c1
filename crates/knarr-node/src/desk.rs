//! The desk at which changes of jobs are made, one after the other.
//!
//! The order of writes: what is wrong is refused before anything changed; then the definition is on record;
//! then the configuration in memory has it; then it is at work. A crash in between leaves a definition on
//! record, which begins with the next start. A job whose places cannot be opened is on record all the same,
//! says why, and is tried again every [`AGAIN`].

mod own;
mod reload;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::Clock;
use knarr_engine::node::{Control, ControlError, NodeJob};
use knarr_remote::Remote;
use knarr_store::definitions::{Definition, DefinitionKind};
use knarr_store::{Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::host::{Defined, Host};
use crate::query::{self, QueryError};
use crate::v1;
use crate::v1::change::What;

/// How often a job is tried again whose places could not be opened.
const AGAIN: Duration = Duration::from_secs(30);
/// How long the places of a job may take to open.
const OPENING: Duration = Duration::from_secs(20);
/// How many requests wait at most.
const QUEUED_REQUESTS: usize = 64;
/// How many next times are shown of one job.
const NEXT_TIMES: usize = 5;

/// Why something is not done.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The document is wrong.
    #[error("{}", shown(.0))]
    Wrong(Vec<v1::Problem>),
    /// It cannot be done as things are.
    #[error("{0}")]
    Refused(String),
    /// What is asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// The state cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node does not do it.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl From<QueryError> for DeskError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Argument(message) => Self::Refused(message),
            QueryError::Missing(message) => Self::Missing(message),
            QueryError::Store(error) => Self::Store(error),
        }
    }
}

/// All problems, one a line.
fn shown(problems: &[v1::Problem]) -> String {
    let line = |problem: &v1::Problem| {
        let mut line = String::new();
        if problem.line > 0 {
            line = format!("line {}, column {}: ", problem.line, problem.column);
        }
        if !problem.place.is_empty() {
            line = format!("{line}{}: ", problem.place);
        }
        line.push_str(&problem.message);
        if !problem.help.is_empty() {
            line = format!("{line} ({})", problem.help);
        }
        line
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Whether names have to be new, or have to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    Add,
    Update,
}

type Reply<T> = oneshot::Sender<Result<T, DeskError>>;

pub(crate) enum Request {
    Validate(v1::Document, Reply<v1::Validated>),
    Plan(v1::Document, Reply<v1::Changes>),
    Put(Put, v1::Document, String, Reply<v1::Changes>),
    Remove(DefinitionKind, String, Reply<v1::Changed>),
    Jobs(Option<String>, Reply<Vec<v1::Job>>),
    Endpoints(Reply<Vec<v1::Endpoint>>),
    Endpoint(String, Reply<Arc<dyn Remote>>),
    Open(String, Reply<NodeJob>),
    Token(String, Reply<Option<Zeroizing<String>>>),
    Reload(Reply<v1::Reloaded>),
}

/// Where requests are handed in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Counter {
    requests: mpsc::Sender<Request>,
}

impl Counter {
    pub(crate) async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, DeskError> {
        let stopped = || DeskError::Control(ControlError::Stopped);
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(request(reply)).await;
        sent.map_err(|_gone| stopped())?;
        answer.await.map_err(|_gone| stopped())?
    }
}

/// The desk, with the program's [`Host`].
pub struct Desk<H> {
    host: H,
    store: Store,
    clock: Arc<dyn Clock>,
    control: Option<Control>,
    counter: Counter,
    requests: mpsc::Receiver<Request>,
    /// What is not at work although it should be: why.
    problems: BTreeMap<String, String>,
    /// Why the file as it is now is not in force, and when the one was read that is.
    file: Arc<std::sync::Mutex<FileState>>,
}

/// How the file is.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileState {
    pub(crate) name: String,
    pub(crate) problem: String,
    pub(crate) read_at: i64,
}

impl<H: Host> std::fmt::Debug for Desk<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl<H: Host> Desk<H> {
    /// A desk. Without a `control` no node runs: then only definitions are changed.
    #[must_use]
    pub fn new(host: H, store: Store, clock: Arc<dyn Clock>, control: Option<Control>) -> Self {
        let (sender, requests) = mpsc::channel(QUEUED_REQUESTS);
        let file = FileState {
            name: host.file(),
            problem: String::new(),
            read_at: clock.now().nanoseconds(),
        };
        Self {
            host,
            store,
            clock,
            control,
            counter: Counter { requests: sender },
            requests,
            problems: BTreeMap::new(),
            file: Arc::new(std::sync::Mutex::new(file)),
        }
    }

    pub(crate) fn counter(&self) -> Counter {
        self.counter.clone()
    }

    pub(crate) fn file(&self) -> Arc<std::sync::Mutex<FileState>> {
        Arc::clone(&self.file)
    }

    /// Takes over what was added before. What is wrong by now is told as the problem of that job, and of no
    /// other. Returns the names of the jobs that are right.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn recall(&mut self) -> Result<Vec<String>, DeskError> {
        let stored = self.store.read_async(|reader| reader.definitions()).await?;
        let defined: Vec<Defined> = stored.into_iter().map(defined).collect();
        let names = |of: &[Defined]| {
            let jobs = of.iter().filter(|one| one.kind == DefinitionKind::Job);
            jobs.map(|one| one.name.clone()).collect::<Vec<_>>()
        };
        if self.host.put(&defined).is_ok() {
            return Ok(names(&defined));
        }
        // One of them is wrong by now: which?
        let mut right = Vec::new();
        for one in defined {
            match self.host.put(std::slice::from_ref(&one)) {
                Ok(()) => right.push(one),
                Err(problems) => {
                    let message = shown(&problems);
                    tracing::error!(name = %one.name, "what was added is not at work: {message}");
                    if one.kind == DefinitionKind::Job {
                        self.problems.insert(one.name, message);
                    }
                }
            }
        }
        Ok(names(&right))
    }

    /// Serves requests until asked to stop. `began` are the jobs that were recalled and have to be begun.
    pub async fn serve(mut self, began: Vec<String>, stop: CancellationToken) {
        for job in began {
            self.begin(&job).await;
        }
        let mut again = tokio::time::interval(AGAIN);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        again.reset();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _tick = again.tick() => self.try_again().await,
                request = self.requests.recv() => match request {
                    Some(request) => self.obey(request).await,
                    None => return,
                },
            }
        }
    }

    async fn try_again(&mut self) {
        let waiting: Vec<String> = self.problems.keys().cloned().collect();
        for job in waiting {
            self.begin(&job).await;
        }
    }

    async fn obey(&mut self, request: Request) {
        match request {
            Request::Validate(document, reply) => {
                let problems = self.host.read(&document).err().unwrap_or_default();
                answer(reply, Ok(v1::Validated { problems }));
            }
            Request::Plan(document, reply) => {
                let plan = self.plan(&document).map(|(changes, _)| changes);
                answer(reply, plan);
            }
            Request::Put(put, document, by, reply) => {
                let changes = self.put(put, &document, &by).await;
                answer(reply, changes);
            }
            Request::Remove(kind, name, reply) => {
                let changed = self.remove(kind, &name).await;
                answer(reply, changed);
            }
            Request::Jobs(only, reply) => {
                let jobs = self.jobs(only.as_deref()).await;
                answer(reply, jobs);
            }
            Request::Endpoints(reply) => answer(reply, Ok(self.host.endpoints())),
            Request::Endpoint(name, reply) => {
                let opened = self.host.endpoint(&name).await;
                let opened = opened.map_err(|why| match why {
                    Some(why) => DeskError::Refused(why),
                    None => DeskError::Missing(format!("there is no endpoint `{name}`")),
                });
                answer(reply, opened);
            }
            Request::Open(job, reply) => {
                let opened = self.open(&job).await;
                answer(reply, opened);
            }
            Request::Token(job, reply) => {
                let token = self.host.http_token(&job).await;
                answer(reply, token.map_err(DeskError::Refused));
            }
            Request::Reload(reply) => {
                let reloaded = self.reload().await;
                answer(reply, reloaded);
            }
        }
    }

    /// What a document would change.
    ///
    /// # Errors
    /// If it is wrong.
    pub fn plan(&self, document: &v1::Document) -> Result<(v1::Changes, Vec<Defined>), DeskError> {
        let defined = self.host.read(document).map_err(DeskError::Wrong)?;
        let change = |one: &Defined| {
            let (what, keys) = if self.host.is_of_the_file(one.kind, &one.name) {
                (What::OfTheFile, Vec::new())
            } else {
                match self.host.definition(one.kind, &one.name) {
                    None => (What::Added, Vec::new()),
                    Some(before) if before == one.definition => (What::Unchanged, Vec::new()),
                    Some(before) => (What::Changed, differing(&before, &one.definition)),
                }
            };
            v1::Change {
                kind: kind_name(one.kind).to_owned(),
                name: one.name.clone(),
                what: what.into(),
                keys,
            }
        };
        let changes = defined.iter().map(change).collect();
        Ok((v1::Changes { changes }, defined))
    }

    /// Adds or replaces what a document defines, all or nothing.
    ///
    /// # Errors
    /// See [`DeskError`]; then nothing changed.
    async fn put(
        &mut self,
        put: Put,
        document: &v1::Document,
        by: &str,
    ) -> Result<v1::Changes, DeskError> {
        let (changes, defined) = self.plan(document)?;
        if defined.is_empty() {
            let message = "the document has no jobs and no endpoints".to_owned();
            return Err(DeskError::Refused(message));
        }
        for change in &changes.changes {
            let (kind, name) = (&change.kind, &change.name);
            let refused = match (change.what(), put) {
                (What::OfTheFile, _) => format!(
                    "the {kind} `{name}` stands in the node's file: change it there, then `knarr reload`"
                ),
                (What::Added, Put::Update) => {
                    format!("there is no {kind} `{name}` to update: `knarr job add` adds it")
                }
                (What::Changed | What::Unchanged, Put::Add) => {
                    format!("there is {kind} `{name}` already: `knarr job update` replaces it")
                }
                _ => continue,
            };
            return Err(DeskError::Refused(refused));
        }
        let changed: Vec<Defined> = defined
            .into_iter()
            .zip(&changes.changes)
            .filter(|(_, change)| change.what() != What::Unchanged)
            .map(|(one, _)| one)
            .collect();
        let (stored, by) = (changed.clone(), by.to_owned());
        self.store
            .transact(move |tx| {
                stored.iter().try_for_each(|one| {
                    tx.put_definition(one.kind, &one.name, &one.definition, &by)
                })
            })
            .await?;
        self.host.put(&changed).map_err(DeskError::Wrong)?;
        for job in self.concerned(&changed) {
            self.begin(&job).await;
        }
        Ok(changes)
    }

    /// The jobs that are new or changed, and those that name an endpoint that is.
    fn concerned(&self, changed: &[Defined]) -> Vec<String> {
        let mut jobs: Vec<String> = Vec::new();
        let of = |kind| changed.iter().filter(move |one| one.kind == kind);
        jobs.extend(of(DefinitionKind::Job).map(|one| one.name.clone()));
        let endpoints: Vec<String> = of(DefinitionKind::Endpoint)
            .map(|one| format!("{}:", one.name))
            .collect();
        if !endpoints.is_empty() {
            for job in self.host.jobs(None, 0) {
                let names = |place: &String| endpoints.iter().any(|name| place.starts_with(name));
                if !jobs.contains(&job.name)
                    && (names(&job.destination) || job.sources.iter().any(names))
                {
                    jobs.push(job.name);
                }
            }
        }
        jobs
    }

    async fn open(&self, job: &str) -> Result<NodeJob, DeskError> {
        match tokio::time::timeout(OPENING, self.host.open(job)).await {
            Ok(Ok(Some(opened))) => Ok(opened),
            Ok(Ok(None)) => Err(DeskError::Missing(format!("there is no job `{job}`"))),
            Ok(Err(why)) => Err(DeskError::Refused(why)),
            Err(_elapsed) => {
                let message = "one of its places does not answer".to_owned();
                Err(DeskError::Refused(message))
            }
        }
    }

    /// Has a job begin, in place of what was there; or notes why it cannot.
    async fn begin(&mut self, job: &str) {
        let Some(control) = self.control.clone() else {
            return;
        };
        let opened = match self.open(job).await {
            Ok(opened) => opened,
            Err(DeskError::Missing(_)) => {
                self.problems.remove(job);
                return;
            }
            Err(error) => {
                let message = error.to_string();
                if self.problems.get(job) != Some(&message) {
                    tracing::error!(job, "the job is not at work: {message}");
                }
                self.problems.insert(job.to_owned(), message);
                // What ran with the definition of before must not go on.
                let _unknown: Result<(), ControlError> = control.remove(job).await;
                return;
            }
        };
        let begun = match control.replace(opened.clone()).await {
            Err(ControlError::Unknown { .. }) => control.add(opened).await,
            replaced => replaced,
        };
        match begun {
            Ok(()) => {
                self.problems.remove(job);
            }
            Err(error) => {
                self.problems.insert(job.to_owned(), error.to_string());
            }
        }
    }

    async fn remove(&mut self, kind: DefinitionKind, name: &str) -> Result<v1::Changed, DeskError> {
        let noun = kind_name(kind);
        if self.host.is_of_the_file(kind, name) {
            return Err(DeskError::Refused(format!(
                "the {noun} `{name}` stands in the node's file: remove it there, then `knarr reload`"
            )));
        }
        let known = self.host.definition(kind, name).is_some();
        if !known && !self.problems.contains_key(name) {
            return Err(DeskError::Missing(format!("there is no {noun} `{name}`")));
        }
        if known {
            self.host.remove(kind, name).map_err(DeskError::Refused)?;
        }
        if let (DefinitionKind::Job, Some(control)) = (kind, &self.control) {
            // Not at work: then there is nothing to stop.
            let _unknown: Result<(), ControlError> = control.remove(name).await;
        }
        if kind == DefinitionKind::Job {
            self.problems.remove(name);
        }
        let owned = name.to_owned();
        let removed = self
            .store
            .transact(move |tx| tx.remove_definition(kind, &owned))
            .await?;
        Ok(v1::Changed { changed: removed })
    }

    async fn jobs(&self, only: Option<&str>) -> Result<Vec<v1::Job>, DeskError> {
        let times = if only.is_some() { NEXT_TIMES } else { 1 };
        let mut jobs = self.host.jobs(only, times);
        let stored = self.store.read_async(|reader| reader.definitions()).await?;
        for one in stored.iter().filter(|one| one.kind == DefinitionKind::Job) {
            let mut known = jobs.iter_mut().find(|job| job.name == one.name);
            if known.is_none() && only.is_none_or(|only| only == one.name) {
                // It is wrong by now: only its name and its problem can be shown.
                jobs.push(v1::Job {
                    name: one.name.clone(),
                    ..v1::Job::default()
                });
                known = jobs.last_mut();
            }
            if let Some(job) = known {
                job.set_origin(v1::job::Origin::Added);
                job.added_at = Some(one.added_at.nanoseconds());
                job.added_by.clone_from(&one.added_by);
                job.updated_at = Some(one.updated_at.nanoseconds());
                if only.is_some() {
                    job.definition.clone_from(&one.definition);
                }
            }
        }
        jobs.sort_by(|left, right| left.name.cmp(&right.name));
        let store = self.store.clone();
        let filled = tokio::task::spawn_blocking(move || {
            query::fill_jobs(&store, &mut jobs)?;
            Ok::<_, QueryError>(jobs)
        });
        let mut jobs = match filled.await {
            Ok(jobs) => jobs?,
            Err(_panic) => return Err(DeskError::Refused("internal error".to_owned())),
        };
        let now = match &self.control {
            Some(control) => control.list().await?,
            None => Vec::new(),
        };
        for job in &mut jobs {
            let at_work = now.iter().find(|now| now.name == job.name);
            let problem = self.problems.get(&job.name).cloned();
            job.problem = problem
                .or_else(|| at_work.and_then(|now| now.problem.clone()))
                .unwrap_or_default();
        }
        Ok(jobs)
    }
}

fn defined(stored: Definition) -> Defined {
    Defined {
        kind: stored.kind,
        name: stored.name,
        definition: stored.definition,
    }
}

const fn kind_name(kind: DefinitionKind) -> &'static str {
    match kind {
        DefinitionKind::Endpoint => "endpoint",
        DefinitionKind::Job => "job",
    }
}

/// The keys at the top of two definitions whose values differ.
fn differing(before: &str, after: &str) -> Vec<String> {
    let keys = |text: &str| match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(keys)) => keys,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (keys(before), keys(after));
    let all: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differs = |key: &&&String| before.get(**key) != after.get(**key);
    all.iter()
        .filter(differs)
        .map(|key| (*key).clone())
        .collect()
}

fn answer<T>(reply: Reply<T>, with: Result<T, DeskError>) {
    // Whoever asked has gone; what was asked for is done all the same.
    let _gone: Result<(), Result<T, DeskError>> = reply.send(with);
}
