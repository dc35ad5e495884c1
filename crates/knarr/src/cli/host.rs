//! The configuration of a node while it runs: the file, and what was added beside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use knarr_core::location::Location;
use knarr_core::{Clock as _, Timestamp};
use knarr_engine::announce::Announcer;
use knarr_engine::node::NodeJob;
use knarr_node::{Defined, Host, Reread, v1};
use knarr_remote::Remote;
use knarr_store::definitions::DefinitionKind;
use zeroize::Zeroizing;

use crate::cli::context::Context;
use crate::cli::run::open_job;
use crate::cli::sftp_server::uploads::Uploads;
use crate::cli::telling;
use crate::command_error::CommandError;
use crate::config::network::{self, Addition, Origin};
use crate::config::{Config, ConfigProblems, Endpoint, EndpointKind, Job, find};
use crate::location::Opener;

/// The configuration of a node, and how its places are opened.
pub(crate) struct NodeHost<'c> {
    context: &'c Context,
    /// With the file and all that was added.
    opener: Opener<'c>,
    /// The file alone.
    file: Config,
    /// The definitions of what was added, as JSON.
    added: BTreeMap<(DefinitionKind, String), String>,
    /// What was added and is wrong since the file was read again.
    broken: BTreeMap<String, String>,
    /// Which jobs run here; all, if it is empty.
    chosen: Vec<String>,
    /// Who tells of what jobs do.
    announcer: Announcer,
    /// Which jobs wait for uploads to the own SFTP server.
    uploads: Option<Arc<Uploads>>,
}

impl<'c> NodeHost<'c> {
    pub(crate) fn new(context: &'c Context, opener: Opener<'c>, chosen: Vec<String>) -> Self {
        Self {
            context,
            file: opener.config().clone(),
            opener,
            added: BTreeMap::new(),
            broken: BTreeMap::new(),
            chosen,
            announcer: Announcer::default(),
            uploads: None,
        }
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
    pub(crate) const fn config(&self) -> &Config {
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
    fn merged(&self, file: &Config) -> (Config, BTreeMap<String, String>) {
        let (mut config, mut broken) = (file.clone(), BTreeMap::new());
        let all: Vec<Defined> = self.added.iter().map(defined).collect();
        if let Ok(addition) = self.parse(&document(&all), "what was added", &config) {
            take(&mut config, addition);
            return (config, broken);
        }
        for one in all {
            let text = document(std::slice::from_ref(&one));
            match self.parse(&text, &one.name, &config) {
                Ok(addition) => take(&mut config, addition),
                Err(problems) => {
                    let told = problems.data().into_iter();
                    let told =
                        told.map(|problem| format!("{}: {}", problem.place, problem.message));
                    broken.insert(one.name, told.collect::<Vec<_>>().join("; "));
                }
            }
        }
        (config, broken)
    }
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
    format!(
        "{{\"endpoints\": {{{}}}, \"jobs\": {{{}}}}}",
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
fn endpoints_of(job: &Job) -> impl Iterator<Item = &str> {
    let places = job.from.iter().chain(std::iter::once(&job.to.base));
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
        Ok(endpoints.chain(jobs).collect())
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
            self.broken.remove(&one.name);
            let key = (one.kind, one.name.clone());
            self.added.insert(key, one.definition.clone());
        }
        Ok(())
    }

    fn remove(&mut self, kind: DefinitionKind, name: &str) -> Result<(), String> {
        let jobs = &self.opener.config().jobs;
        let needs = |job: &&Job| match kind {
            DefinitionKind::Job => job.after_job.as_deref() == Some(name),
            DefinitionKind::Endpoint => endpoints_of(job).any(|endpoint| endpoint == name),
        };
        if let Some(job) = jobs.values().find(needs) {
            return Err(format!(
                "the job `{}` needs `{name}`: change that first",
                job.name
            ));
        }
        self.opener.change(|config| match kind {
            DefinitionKind::Job => drop(config.jobs.remove(name)),
            DefinitionKind::Endpoint => drop(config.endpoints.remove(name)),
        });
        if kind == DefinitionKind::Job {
            self.announcer.remove_job(name);
        }
        self.added.remove(&(kind, name.to_owned()));
        self.broken.remove(name);
        Ok(())
    }

    fn definition(&self, kind: DefinitionKind, name: &str) -> Option<String> {
        self.added.get(&(kind, name.to_owned())).cloned()
    }

    fn is_of_the_file(&self, kind: DefinitionKind, name: &str) -> bool {
        match kind {
            DefinitionKind::Job => self.file.jobs.contains_key(name),
            DefinitionKind::Endpoint => self.file.endpoints.contains_key(name),
        }
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
        let endpoints = self.opener.config().endpoints.values();
        let endpoint = |endpoint: &Endpoint| {
            let (kind, place) = described(endpoint);
            let origin = if self.file.endpoints.contains_key(&endpoint.name) {
                v1::job::Origin::File
            } else {
                v1::job::Origin::Added
            };
            v1::Endpoint {
                name: endpoint.name.clone(),
                r#type: kind.to_owned(),
                origin: origin.into(),
                place,
            }
        };
        endpoints.map(endpoint).collect()
    }

    async fn open(&self, job: &str) -> Result<Option<NodeJob>, String> {
        if let Some(problem) = self.broken.get(job) {
            return Err(problem.clone());
        }
        let Some(job) = self.opener.config().jobs.get(job).cloned() else {
            return Ok(None);
        };
        if !self.is_chosen(&job.name) {
            return Ok(None);
        }
        let opened = self.announced(job).await;
        opened.map(Some).map_err(|error| error.on_one_line())
    }

    async fn endpoint(&self, name: &str) -> Result<Arc<dyn Remote>, Option<String>> {
        let endpoint = self.opener.config().endpoints.get(name).ok_or(None)?;
        let opened = self.opener.open_endpoint(endpoint).await;
        opened
            .map(|opened| opened.remote)
            .map_err(|error| Some(error.on_one_line()))
    }

    async fn http_token(&self, job: &str) -> Result<Option<Zeroizing<String>>, String> {
        let Some(job) = self.opener.config().jobs.get(job) else {
            return Ok(None);
        };
        let token = self.opener.secrets().get_if(job.http_token.as_ref()).await;
        token.map_err(|error| error.on_one_line())
    }

    fn reread(&mut self) -> Result<Reread, Vec<v1::Problem>> {
        let loaded = find::load(
            self.context.global.config.as_deref(),
            &self.context.environment,
        );
        let file = match loaded {
            Ok(Some(file)) => file,
            Ok(None) => return Err(problem("the file is gone".to_owned())),
            Err(find::FindError::Wrong(problems)) => return Err(in_protocol(&problems)),
            Err(error) => return Err(problem(knarr_engine::chain(&error))),
        };
        for (kind, name) in self.added.keys() {
            let taken = match kind {
                DefinitionKind::Job => file.jobs.contains_key(name),
                DefinitionKind::Endpoint => file.endpoints.contains_key(name),
            };
            if taken {
                return Err(problem(format!(
                    "`{name}` was added to the running node: `knarr job rm` or `knarr endpoint rm` it first"
                )));
            }
        }
        let reread = self.difference(&file);
        let (config, broken) = self.merged(&file);
        for name in &reread.removed {
            self.announcer.remove_job(name);
        }
        self.announcer.set_rules(file.rules.clone());
        if let Some(uploads) = &self.uploads {
            uploads.replace(&file);
        }
        self.opener.change(|present| *present = config);
        self.file = file;
        self.broken = broken;
        Ok(reread)
    }

    fn file(&self) -> String {
        let file = self.file.file.as_ref();
        file.map(|file| file.display().to_string())
            .unwrap_or_default()
    }
}

impl NodeHost<'_> {
    /// A job with its places opened, of which the one who tells knows.
    async fn announced(&self, job: Job) -> Result<NodeJob, CommandError> {
        let store = self.opener.secrets().store().await?;
        telling::announce(
            &self.announcer,
            &job,
            self.context,
            self.opener.config(),
            store,
        )?;
        open_job(job, &self.opener, &self.announcer).await
    }

    /// What another file changes.
    fn difference(&self, file: &Config) -> Reread {
        let mut reread = Reread::default();
        let differs = |place: &str| self.file.written.get(place) != file.written.get(place);
        let is_other = |job: &Job| {
            differs(&format!("jobs.{}", job.name))
                || endpoints_of(job).any(|endpoint| differs(&format!("endpoints.{endpoint}")))
        };
        for job in file.jobs.values().filter(|job| self.is_chosen(&job.name)) {
            if !self.file.jobs.contains_key(&job.name) {
                reread.added.push(job.name.clone());
            } else if is_other(job) {
                reread.changed.push(job.name.clone());
            }
        }
        for name in self.file.jobs.keys() {
            if !file.jobs.contains_key(name) {
                reread.removed.push(name.clone());
            }
        }
        let present = self.opener.config().jobs.values();
        let added = present.filter(|job| job.origin == Origin::Network);
        reread.changed.extend(
            added
                .filter(|job| {
                    endpoints_of(job).any(|endpoint| differs(&format!("endpoints.{endpoint}")))
                })
                .map(|job| job.name.clone()),
        );
        // What was broken may be right now.
        reread.changed.extend(self.broken.keys().cloned());
        reread
    }
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

/// The kind of an endpoint and where it is, without users and secrets.
fn described(endpoint: &Endpoint) -> (&'static str, String) {
    use knarr_core::location::ObjectStoreKind;
    match &endpoint.kind {
        EndpointKind::Local(path) => ("local", path.display().to_string()),
        EndpointKind::Sftp(settings) => ("sftp", settings.host.clone()),
        EndpointKind::Object(settings) => {
            let kind = match settings.store {
                ObjectStoreKind::S3 => "s3",
                ObjectStoreKind::Gcs => "gcs",
                ObjectStoreKind::Azure => "azure",
            };
            (kind, settings.bucket.clone())
        }
    }
}
