//! The desk at which changes of jobs are made, one after the other.
//!
//! The order of writes: what is wrong is refused before anything changed; then the definition is on record;
//! then the configuration in memory has it; then it is at work. A crash in between leaves a definition on
//! record, which begins with the next start. A job whose places cannot be opened is on record all the same,
//! says why, and is tried again every [`AGAIN`].

mod list;
mod own;
mod reload;
mod works;

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

use crate::desk::works::{AtWork, Done, Works, opened};
use crate::host::{Broken, Defined, Host};
use crate::query::QueryError;
use crate::v1;
use crate::v1::change::What;

/// How often a job is tried again whose places could not be opened.
const AGAIN: Duration = Duration::from_secs(30);
/// How long the places of a job may take to open.
const OPENING: Duration = Duration::from_secs(20);
/// How many requests wait at most.
const QUEUED_REQUESTS: usize = 64;

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
    Remove(DefinitionKind, String, String, Reply<v1::Changed>),
    Jobs(Option<String>, Reply<Vec<v1::Job>>),
    Endpoints(Reply<Vec<v1::Endpoint>>),
    Endpoint(String, Reply<Arc<dyn Remote>>),
    Users(Reply<Vec<v1::User>>),
    Rules(Reply<Vec<v1::AlertRule>>),
    TestAlert(String, Reply<Vec<v1::TestedTarget>>),
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
    /// What it says otherwise than the node does, until that is started anew.
    pub(crate) needs_restart: Vec<String>,
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
            needs_restart: Vec::new(),
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
        let jobs = stored.iter().filter(|one| one.kind == DefinitionKind::Job);
        let mut jobs: Vec<String> = jobs.map(|one| one.name.clone()).collect();
        for Broken { kind, name, why } in
            self.host.recall(stored.into_iter().map(defined).collect())
        {
            tracing::error!(name, "what was added is not at work: {why}");
            if kind == DefinitionKind::Job {
                jobs.retain(|job| *job != name);
                if !self.host.is_of_the_file(kind, &name) {
                    self.problems.insert(name, why);
                }
            }
        }
        Ok(jobs)
    }

    /// Has the SFTP server let in the users that were recalled, too.
    pub async fn serve_users(&mut self) {
        self.host.serve_users().await;
    }

    /// Serves requests until asked to stop. `began` are the jobs that were recalled and have to be begun.
    pub async fn serve<'h>(mut self, began: Vec<String>, stop: CancellationToken)
    where
        H: 'h,
    {
        let mut works: Works<'h> = Works::new();
        works.change(&self, &began, || {});
        let mut again = tokio::time::interval(AGAIN);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        again.reset();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _tick = again.tick() => {
                    let waiting: Vec<String> = self.problems.keys().cloned().collect();
                    works.change(&self, &waiting, || {});
                }
                Some(done) = works.next() => self.note(&mut works, done),
                request = self.requests.recv() => match request {
                    Some(request) => self.obey(&mut works, request).await,
                    None => return,
                },
            }
        }
    }

    /// Notes what became of a job.
    fn note<'h>(&mut self, works: &mut Works<'h>, done: Done)
    where
        H: 'h,
    {
        let Done::Job(job, at_work) = done else {
            return;
        };
        match at_work {
            AtWork::Yes => {
                self.problems.remove(&job);
            }
            AtWork::Gone => {
                self.problems.remove(&job);
                self.host.forget(&job);
            }
            AtWork::No(message) => {
                if self.problems.get(&job) != Some(&message) {
                    tracing::error!(job, "the job is not at work: {message}");
                }
                self.problems.insert(job.clone(), message);
            }
        }
        works.ended(self, &job);
    }

    async fn obey<'h>(&mut self, works: &mut Works<'h>, request: Request)
    where
        H: 'h,
    {
        match request {
            Request::Validate(document, reply) => {
                let problems = self.host.read(&document).err().unwrap_or_default();
                answer(reply, Ok(v1::Validated { problems }));
            }
            Request::Plan(document, reply) => {
                let plan = self.plan(&document).map(|(changes, _)| changes);
                answer(reply, plan);
            }
            Request::Put(put, document, by, reply) => match self.put(put, &document, &by).await {
                Ok((changes, jobs)) => {
                    works.change(self, &jobs, || answer(reply, Ok(changes)));
                }
                Err(error) => answer(reply, Err(error)),
            },
            Request::Remove(kind, name, by, reply) => match self.remove(kind, &name, &by).await {
                Ok((changed, jobs)) => {
                    works.change(self, &jobs, move || answer(reply, Ok(changed)));
                }
                Err(error) => answer(reply, Err(error)),
            },
            Request::Reload(reply) => match self.reload().await {
                Ok((reloaded, jobs)) => {
                    works.change(self, &jobs, || answer(reply, Ok(reloaded)));
                }
                Err(error) => answer(reply, Err(error)),
            },
            request => self.look(works, request).await,
        }
    }

    /// What changes nothing.
    async fn look<'h>(&mut self, works: &mut Works<'h>, request: Request)
    where
        H: 'h,
    {
        match request {
            Request::Jobs(only, reply) => {
                let jobs = self.jobs(only.as_deref());
                works.answer(async move { answer(reply, jobs.await) });
            }
            Request::Endpoints(reply) => {
                let endpoints = self.endpoints().await;
                answer(reply, endpoints);
            }
            Request::Endpoint(name, reply) => {
                let opening = self.host.endpoint(&name);
                works.answer(async move {
                    let opened = opening.await.map_err(|why| match why {
                        Some(why) => DeskError::Refused(why),
                        None => DeskError::Missing(format!("there is no endpoint `{name}`")),
                    });
                    answer(reply, opened);
                });
            }
            Request::Users(reply) => {
                let users = self.users().await;
                answer(reply, users);
            }
            Request::Rules(reply) => answer(reply, Ok(self.host.rules())),
            Request::TestAlert(name, reply) => {
                let testing = self.host.test_alert(&name);
                works.answer(async move {
                    answer(reply, testing.await.map_err(DeskError::Missing));
                });
            }
            Request::Open(job, reply) => {
                let opening = self.host.open(&job);
                works.answer(async move { answer(reply, opened(&job, opening).await) });
            }
            Request::Token(job, reply) => {
                let token = self.host.http_token(&job).await;
                answer(reply, token.map_err(DeskError::Refused));
            }
            // Those that change something were dealt with.
            Request::Validate(..)
            | Request::Plan(..)
            | Request::Put(..)
            | Request::Remove(..)
            | Request::Reload(..) => {}
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

    /// Adds or replaces what a document defines, all or nothing. Also the jobs that change by it.
    ///
    /// # Errors
    /// See [`DeskError`]; then nothing changed.
    async fn put(
        &mut self,
        put: Put,
        document: &v1::Document,
        by: &str,
    ) -> Result<(v1::Changes, Vec<String>), DeskError> {
        let (changes, defined) = self.plan(document)?;
        if defined.is_empty() {
            let message = "the document has no jobs, no endpoints and no users".to_owned();
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
        for one in &changed {
            let kind = kind_name(one.kind);
            tracing::info!(
                kind,
                name = one.name,
                by,
                "a definition is added or changed"
            );
        }
        let (stored, by) = (changed.clone(), by.to_owned());
        self.store
            .transact(move |tx| {
                stored.iter().try_for_each(|one| {
                    tx.put_definition(one.kind, &one.name, &one.definition, &by)
                })
            })
            .await?;
        self.host.put(&changed).map_err(DeskError::Wrong)?;
        if changed.iter().any(|one| one.kind != DefinitionKind::Job) {
            self.host.serve_users().await;
        }
        let jobs = self.concerned(&changed);
        Ok((changes, jobs))
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
                // Elsewhere than in its places, too: to be opened once more does no harm.
                let written = self.host.definition(DefinitionKind::Job, &job.name);
                let is_written = |name: &String| {
                    let quoted = format!("\"{name}");
                    written.as_ref().is_some_and(|text| text.contains(&quoted))
                };
                if !jobs.contains(&job.name)
                    && (names(&job.destination)
                        || job.sources.iter().any(names)
                        || endpoints.iter().any(is_written))
                {
                    jobs.push(job.name);
                }
            }
        }
        jobs
    }

    /// Removes a definition that was added. Also the jobs that change by it.
    async fn remove(
        &mut self,
        kind: DefinitionKind,
        name: &str,
        by: &str,
    ) -> Result<(v1::Changed, Vec<String>), DeskError> {
        let noun = kind_name(kind);
        if self.host.is_of_the_file(kind, name) {
            return Err(DeskError::Refused(format!(
                "the {noun} `{name}` stands in the node's file: remove it there, then `knarr reload`"
            )));
        }
        let Some(definition) = self.host.definition(kind, name) else {
            return Err(DeskError::Missing(format!("there is no {noun} `{name}`")));
        };
        self.host.remove(kind, name).map_err(DeskError::Refused)?;
        tracing::info!(kind = noun, name, by, "a definition is removed");
        let owned = name.to_owned();
        let removed = self
            .store
            .transact(move |tx| tx.remove_definition(kind, &owned))
            .await;
        let removed = match removed {
            Ok(removed) => removed,
            Err(error) => {
                // It is on record still, so it is in force still.
                let kept = Defined {
                    kind,
                    name: name.to_owned(),
                    definition,
                };
                if let Err(problems) = self.host.put(&[kept]) {
                    tracing::error!(kind = noun, name, ?problems, "cannot be kept");
                }
                return Err(error.into());
            }
        };
        let jobs = match kind {
            DefinitionKind::Job => vec![name.to_owned()],
            DefinitionKind::User => {
                self.host.serve_users().await;
                Vec::new()
            }
            DefinitionKind::Endpoint => Vec::new(),
        };
        Ok((v1::Changed { changed: removed }, jobs))
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
        DefinitionKind::User => "user",
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
