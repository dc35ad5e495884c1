//! The configuration of a node while it runs: the file, and what was added beside it.

mod again;
mod show;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use knarr_core::location::Location;
use knarr_core::{Clock as _, Timestamp};
use knarr_engine::announce::{Announcer, Credential};
use knarr_engine::node::NodeJob;
use knarr_node::{Broken, Defined, Host, Opening, Reread, v1};
use knarr_remote::Remote;
use knarr_store::definitions::DefinitionKind;
use zeroize::Zeroizing;

use crate::cli::context::Context;
use crate::cli::run::open_job;
use crate::cli::sftp_server::node::LetIn;
use crate::cli::sftp_server::uploads::Uploads;
use crate::cli::telling::{self, Exchange};
use crate::cli::{alert, credentials};
use crate::command_error::CommandError;
use crate::config::network::{self, Addition, Origin};
use crate::config::{Config, ConfigProblems, Job, ServedUser};
use crate::location::Opener;

/// The configuration of a node, and how its places are opened.
pub(crate) struct NodeHost<'c> {
    context: &'c Context,
    /// With the file and all that was added.
    opener: Opener<'c>,
    /// The file alone.
    file: Config,
    /// The definitions of what was added, as JSON.
    added: BTreeMap<Key, String>,
    /// What was added and is wrong by now: why.
    broken: BTreeMap<Key, String>,
    /// The file as the node was started with it.
    started: BTreeMap<String, String>,
    /// Which jobs run here; all, if it is empty.
    chosen: Vec<String>,
    /// Who tells of what jobs do.
    announcer: Announcer,
    /// Which jobs wait for uploads to the own SFTP server.
    uploads: Option<Arc<Uploads>>,
    /// Where other targets are put.
    exchange: Option<Exchange>,
    /// Who is let in by the own SFTP server, if one listens.
    let_in: Option<LetIn>,
    /// Users who are not let in although they should be: why.
    left_out: BTreeMap<String, String>,
    /// What expires, as it was told last.
    credentials: Vec<Credential>,
}

/// What is defined, and its name.
type Key = (DefinitionKind, String);

impl<'c> NodeHost<'c> {
    pub(crate) fn new(context: &'c Context, opener: Opener<'c>, chosen: Vec<String>) -> Self {
        Self {
            context,
            file: opener.config().clone(),
            started: opener.config().written.clone(),
            credentials: credentials::read(opener.config(), context.clock.now()),
            opener,
            added: BTreeMap::new(),
            broken: BTreeMap::new(),
            chosen,
            announcer: Announcer::default(),
            uploads: None,
            exchange: None,
            let_in: None,
            left_out: BTreeMap::new(),
        }
    }

    /// The same; when the file is read again, other targets are put there.
    pub(crate) fn delivering(self, exchange: Exchange) -> Self {
        let exchange = Some(exchange);
        Self { exchange, ..self }
    }

    /// The same; who is let in by the SFTP server is said here.
    pub(crate) fn letting_in(self, let_in: Option<LetIn>) -> Self {
        Self { let_in, ..self }
    }

    /// The same; which jobs wait for uploads is told here.
    pub(crate) fn waiting_for(self, uploads: Arc<Uploads>) -> Self {
        let uploads = Some(uploads);
        Self { uploads, ..self }
    }

    /// The same; what jobs do is told by this one.
    pub(crate) fn telling(self, announcer: Announcer) -> Self {
        Self { announcer, ..self }
    }

    /// The configuration of the file and all that was added.
    pub(crate) fn config(&self) -> &Config {
        self.opener.config()
    }

    pub(crate) const fn opener(&self) -> &Opener<'c> {
        &self.opener
    }

    fn is_chosen(&self, job: &str) -> bool {
        self.chosen.is_empty() || self.chosen.iter().any(|chosen| chosen == job)
    }

    fn parse(&self, text: &str, name: &str, there: &Config) -> Result<Addition, ConfigProblems> {
        let home = self.context.environment.home.as_deref();
        network::parse(text, Path::new(name), there, home)
    }

    /// The configuration of a file with what was added; and what of that is wrong with it.
    fn merged(&self, file: &Config) -> (Config, BTreeMap<Key, String>) {
        let (mut config, mut broken) = (file.clone(), BTreeMap::new());
        let (of_file, mut left): (Vec<Defined>, Vec<Defined>) = self
            .added
            .iter()
            .map(defined)
            .partition(|one| stands_in(file, one.kind, &one.name));
        for one in of_file {
            let why = format!("`{}` stands in the file, too, and that counts", one.name);
            broken.insert((one.kind, one.name), why);
        }
        if let Ok(addition) = self.parse(&document(&left), "what was added", &config) {
            take(&mut config, addition);
            return (config, broken);
        }
        // Which of them is wrong? Some need others that come later in the order.
        loop {
            let (before, mut rest) = (left.len(), Vec::new());
            for one in left {
                let text = document(std::slice::from_ref(&one));
                match self.parse(&text, &one.name, &config) {
                    Ok(addition) => take(&mut config, addition),
                    Err(problems) => rest.push((one, in_words(&problems))),
                }
            }
            if rest.is_empty() || rest.len() == before {
                let wrong = rest
                    .into_iter()
                    .map(|(one, why)| ((one.kind, one.name), why));
                broken.extend(wrong);
                return (config, broken);
            }
            left = rest.into_iter().map(|(one, _)| one).collect();
        }
    }
}

fn in_words(problems: &ConfigProblems) -> String {
    let told = problems.data().into_iter();
    let told = told.map(|problem| format!("{}: {}", problem.place, problem.message));
    told.collect::<Vec<_>>().join("; ")
}

/// Whether a name stands in a file.
fn stands_in(file: &Config, kind: DefinitionKind, name: &str) -> bool {
    match kind {
        DefinitionKind::Job => file.jobs.contains_key(name),
        DefinitionKind::Endpoint => file.endpoints.contains_key(name),
        DefinitionKind::User => users_of(file).any(|user| user.user.name == name),
    }
}

/// The users of the SFTP server of a configuration.
fn users_of(config: &Config) -> impl Iterator<Item = &ServedUser> {
    config.sftp_server.iter().flat_map(|server| &server.users)
}

fn defined(((kind, name), definition): (&(DefinitionKind, String), &String)) -> Defined {
    Defined {
        kind: *kind,
        name: name.clone(),
        definition: definition.clone(),
    }
}

/// Definitions as one document.
fn document(defined: &[Defined]) -> String {
    let section = |kind| {
        let of_kind = defined.iter().filter(|one| one.kind == kind);
        let entries = of_kind.map(|one| {
            let name = serde_json::Value::from(one.name.as_str());
            format!("{name}: {}", one.definition)
        });
        entries.collect::<Vec<_>>().join(", ")
    };
    let users = section(DefinitionKind::User);
    let users = if users.is_empty() {
        String::new()
    } else {
        format!(", \"sftp_server\": {{\"users\": {{{users}}}}}")
    };
    format!(
        "{{\"endpoints\": {{{}}}, \"jobs\": {{{}}}{users}}}",
        section(DefinitionKind::Endpoint),
        section(DefinitionKind::Job)
    )
}

fn take(config: &mut Config, addition: Addition) {
    for (endpoint, _json) in addition.endpoints {
        config.endpoints.insert(endpoint.name.clone(), endpoint);
    }
    for (job, _json) in addition.jobs {
        config.jobs.insert(job.name.clone(), job);
    }
    if let Some(server) = &mut config.sftp_server {
        for (user, _json) in addition.users {
            server
                .users
                .retain(|known| known.user.name != user.user.name);
            server.users.push(user);
        }
    }
}

/// Problems in the form of the protocol.
pub(crate) fn in_protocol(problems: &ConfigProblems) -> Vec<v1::Problem> {
    let number = |number: Option<usize>| u32::try_from(number.unwrap_or(0)).unwrap_or(0);
    let problem = |data: crate::config::ProblemData| v1::Problem {
        line: number(data.line),
        column: number(data.column),
        place: data.place,
        message: data.message,
        help: data.help.unwrap_or_default(),
    };
    problems.data().into_iter().map(problem).collect()
}

fn problem(message: String) -> Vec<v1::Problem> {
    vec![v1::Problem {
        message,
        ..v1::Problem::default()
    }]
}

/// The endpoints that a job names.
pub(crate) fn endpoints_of(job: &Job) -> impl Iterator<Item = &str> {
    let acknowledge = job.acknowledge.iter();
    let acknowledge = acknowledge.filter_map(|acknowledge| acknowledge.to.as_ref());
    let places = job.from.iter().chain(std::iter::once(&job.to.base));
    let places = places.chain(acknowledge);
    places.filter_map(|place| match place {
        Location::Endpoint { name, .. } => Some(name.as_str()),
        _ => None,
    })
}

#[async_trait]
impl Host for NodeHost<'_> {
    fn read(&self, document: &v1::Document) -> Result<Vec<Defined>, Vec<v1::Problem>> {
        let parsed = self.parse(&document.yaml, &document.name, self.opener.config());
        let addition = parsed.map_err(|problems| in_protocol(&problems))?;
        let endpoints = addition
            .endpoints
            .into_iter()
            .map(|(endpoint, definition)| Defined {
                kind: DefinitionKind::Endpoint,
                name: endpoint.name,
                definition,
            });
        let jobs = addition.jobs.into_iter().map(|(job, definition)| Defined {
            kind: DefinitionKind::Job,
            name: job.name,
            definition,
        });
        let users = addition
            .users
            .into_iter()
            .map(|(user, definition)| Defined {
                kind: DefinitionKind::User,
                name: user.user.name,
                definition,
            });
        Ok(endpoints.chain(jobs).chain(users).collect())
    }

    fn recall(&mut self, stored: Vec<Defined>) -> Vec<Broken> {
        let stored = stored.into_iter();
        self.added = stored
            .map(|one| ((one.kind, one.name), one.definition))
            .collect();
        let (config, broken) = self.merged(&self.file);
        self.opener.change(|present| *present = config);
        self.broken = broken;
        let broken = self.broken.iter().map(|((kind, name), why)| Broken {
            kind: *kind,
            name: name.clone(),
            why: why.clone(),
        });
        broken.collect()
    }

    fn put(&mut self, defined: &[Defined]) -> Result<(), Vec<v1::Problem>> {
        for one in defined {
            if self.is_of_the_file(one.kind, &one.name) {
                let message = format!("`{}` stands in the file, too", one.name);
                return Err(problem(message));
            }
        }
        let parsed = self.parse(&document(defined), "what was added", self.opener.config());
        let addition = parsed.map_err(|problems| in_protocol(&problems))?;
        self.opener.change(|config| take(config, addition));
        for one in defined {
            let key = (one.kind, one.name.clone());
            self.broken.remove(&key);
            self.added.insert(key, one.definition.clone());
        }
        self.mend();
        Ok(())
    }

    fn remove(&mut self, kind: DefinitionKind, name: &str) -> Result<(), String> {
        let key = (kind, name.to_owned());
        if !self.broken.contains_key(&key)
            && let Some(needs) = self.needed_by(kind, name)
        {
            return Err(format!("{needs} needs `{name}`: change that first"));
        }
        self.opener.change(|config| match kind {
            DefinitionKind::Job => drop(config.jobs.remove(name)),
            DefinitionKind::Endpoint => drop(config.endpoints.remove(name)),
            DefinitionKind::User => {
                if let Some(server) = &mut config.sftp_server {
                    server.users.retain(|user| user.user.name != name);
                }
            }
        });
        self.added.remove(&key);
        self.broken.remove(&key);
        self.mend();
        Ok(())
    }

    fn forget(&mut self, job: &str) {
        if !self.opener.config().jobs.contains_key(job) {
            self.announcer.remove_job(job);
        }
    }

    fn definition(&self, kind: DefinitionKind, name: &str) -> Option<String> {
        self.added.get(&(kind, name.to_owned())).cloned()
    }

    fn is_of_the_file(&self, kind: DefinitionKind, name: &str) -> bool {
        stands_in(&self.file, kind, name)
    }

    fn jobs(&self, only: Option<&str>, times: usize) -> Vec<v1::Job> {
        let now = self.context.clock.now();
        let jobs = &self.opener.config().jobs;
        match only {
            Some(name) => jobs
                .get(name)
                .map(|job| facts(job, now, times))
                .into_iter()
                .collect(),
            None => jobs.values().map(|job| facts(job, now, times)).collect(),
        }
    }

    fn endpoints(&self) -> Vec<v1::Endpoint> {
        show::endpoints(self)
    }

    fn users(&self) -> Vec<v1::User> {
        show::users(self)
    }

    async fn serve_users(&mut self) {
        if let Some(let_in) = &mut self.let_in {
            self.left_out = let_in.replace(&self.opener).await;
        }
    }

    fn rules(&self) -> Vec<v1::AlertRule> {
        self.file.rules.iter().map(alert::rule_of).collect()
    }

    fn open<'h>(&self, job: &str) -> Opening<'h, Result<Option<NodeJob>, String>>
    where
        Self: 'h,
    {
        let key = (DefinitionKind::Job, job.to_owned());
        if let Some(problem) = self.broken.get(&key).cloned()
            && !self.is_of_the_file(key.0, job)
        {
            return Box::pin(async move { Err(problem) });
        }
        let job = self.opener.config().jobs.get(job).cloned();
        let Some(job) = job.filter(|job| self.is_chosen(&job.name)) else {
            return Box::pin(async { Ok(None) });
        };
        let (context, opener) = (self.context, self.opener.clone());
        let announcer = self.announcer.clone();
        Box::pin(async move {
            let opened = announced(job, context, &opener, &announcer).await;
            opened.map(Some).map_err(|error| error.on_one_line())
        })
    }

    fn endpoint<'h>(&self, name: &str) -> Opening<'h, Result<Arc<dyn Remote>, Option<String>>>
    where
        Self: 'h,
    {
        let key = (DefinitionKind::Endpoint, name.to_owned());
        let problem = self.broken.get(&key).cloned();
        let Some(endpoint) = self.opener.config().endpoints.get(name).cloned() else {
            return Box::pin(async move { Err(problem) });
        };
        let opener = self.opener.clone();
        Box::pin(async move {
            let opened = opener.open_endpoint(&endpoint).await;
            opened
                .map(|opened| opened.remote)
                .map_err(|error| Some(error.on_one_line()))
        })
    }

    fn test_alert<'h>(&self, name: &str) -> Opening<'h, Result<Vec<v1::TestedTarget>, String>>
    where
        Self: 'h,
    {
        let (context, opener, name) = (self.context, self.opener.clone(), name.to_owned());
        Box::pin(async move {
            let store = opener.secrets().store().await;
            let store = store.map_err(|error| error.on_one_line())?;
            let tested = alert::test_all(&name, opener.config(), context, store).await;
            tested.map_err(|error| error.on_one_line())
        })
    }

    async fn http_token(&self, job: &str) -> Result<Option<Zeroizing<String>>, String> {
        let Some(job) = self.opener.config().jobs.get(job) else {
            return Ok(None);
        };
        let token = self.opener.secrets().get_if(job.http_token.as_ref()).await;
        token.map_err(|error| error.on_one_line())
    }

    async fn reread(&mut self) -> Result<Reread, Vec<v1::Problem>> {
        self.read_again().await
    }

    fn file(&self) -> String {
        let file = self.file.file.as_ref();
        file.map(|file| file.display().to_string())
            .unwrap_or_default()
    }
}

impl NodeHost<'_> {
    /// Takes over what was wrong and is right now.
    fn mend(&mut self) {
        if !self.broken.is_empty() {
            let (config, broken) = self.merged(&self.file);
            self.opener.change(|present| *present = config);
            self.broken = broken;
        }
    }

    /// Who needs something, in words.
    fn needed_by(&self, kind: DefinitionKind, name: &str) -> Option<String> {
        let config = self.opener.config();
        let needs = |job: &&Job| match kind {
            DefinitionKind::Job => job.after_job.as_deref() == Some(name),
            DefinitionKind::Endpoint => endpoints_of(job).any(|endpoint| endpoint == name),
            DefinitionKind::User => job.after_upload.iter().any(|user| user == name),
        };
        if let Some(job) = config.jobs.values().find(needs) {
            return Some(format!("the job `{}`", job.name));
        }
        if kind != DefinitionKind::Endpoint {
            return None;
        }
        let sees = |user: &&ServedUser| {
            let mut mounts = user.mounts.iter();
            mounts.any(|mount| {
                matches!(&mount.location, Location::Endpoint { name: at, .. } if at == name)
            })
        };
        let user = users_of(config).find(sees)?;
        Some(format!("the user `{}`", user.user.name))
    }
}

/// A job with its places opened, of which the one who tells knows.
async fn announced(
    job: Job,
    context: &Context,
    opener: &Opener<'_>,
    announcer: &Announcer,
) -> Result<NodeJob, CommandError> {
    let store = opener.secrets().store().await?;
    telling::announce(announcer, &job, context, opener.config(), store)?;
    open_job(job, opener, announcer).await
}

/// What a job's definition tells.
pub(crate) fn facts(job: &Job, now: Timestamp, times: usize) -> v1::Job {
    let sources = match &job.from {
        Some(from) => vec![from.to_string()],
        None => job
            .watch
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
    };
    let origin = match job.origin {
        Origin::File => v1::job::Origin::File,
        Origin::Network => v1::job::Origin::Added,
    };
    let zone = job.schedules.first().map(|schedule| schedule.time_zone());
    v1::Job {
        name: job.name.clone(),
        origin: origin.into(),
        sources,
        destination: job.to.written.clone(),
        triggers: crate::cli::job::triggers(job),
        schedules: job
            .schedules
            .iter()
            .map(|schedule| schedule.describe())
            .collect(),
        next: crate::cli::job::next_times(job, now, times)
            .into_iter()
            .map(Timestamp::nanoseconds)
            .collect(),
        time_zone: zone
            .and_then(|zone| zone.iana_name())
            .unwrap_or_default()
            .to_owned(),
        ..v1::Job::default()
    }
}
