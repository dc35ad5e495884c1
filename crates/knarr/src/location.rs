//! From a location, as it was written, to the remote behind it.
//!
//! Constraints: no network is touched before an operation needs it, but where a *source* may be a
//! single file, which has to be asked; secrets are fetched only for the endpoint that is opened.

mod object;
mod sftp;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use knarr_core::RelPath;
use knarr_core::entry::Kind;
use knarr_core::job::Verify;
use knarr_core::location::Location;
use knarr_engine::Steps;
use knarr_engine::Turns;
use knarr_remote::decorate::limit::{self, Bandwidth, Limited};
use knarr_remote::local::LocalRemote;
use knarr_remote::sftp::SftpRemote;
use knarr_remote::{ErrorKind, Remote, RemoteError};
use knarr_steps::StepSpec;
use tokio::sync::OnceCell;

use crate::cli::context::Context;
use crate::command_error::CommandError;
use crate::config::{Config, Endpoint, EndpointKind, Limits, ObjectSettings, SftpSettings};
use crate::secrets::Secrets;
use crate::suggest;

/// What a location is to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is read, and may be a single file.
    Source,
    /// It is written to, and is a directory.
    Destination,
}

/// Who answers what a server asks during the log-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asking {
    /// The person at the terminal, if there is one.
    Person,
    /// Nobody: it runs by itself.
    Nobody,
}

/// The remote behind a location.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    /// The directory, or the directory that the single file lies in.
    pub(crate) remote: Arc<dyn Remote>,
    /// The file, if the location names one.
    pub(crate) single_file: Option<RelPath>,
    /// What the endpoint may be asked for at once.
    pub(crate) limits: Limits,
    /// The name of the endpoint and its turns, if it limits how many files are on their way.
    pub(crate) turns: Option<(String, Turns)>,
    /// How deliveries to the endpoint are verified.
    pub(crate) verify: Option<Verify>,
    /// Who knows how much room is left there.
    pub(crate) space: Arc<dyn knarr_engine::conditions::Space>,
}

/// Who knows how much room is left.
#[derive(Debug, Clone)]
enum Space {
    Local(PathBuf),
    Sftp(SftpRemote),
    Unknown,
}

#[async_trait]
impl knarr_engine::conditions::Space for Space {
    async fn free(&self) -> Result<(Option<u64>, Option<u64>), RemoteError> {
        Ok(match self {
            Self::Local(path) => {
                let space = knarr_fs::Root::open(path).and_then(|root| root.space());
                let space = space.ok();
                let inodes = space.as_ref().and_then(|space| space.free_inodes);
                (space.map(|space| space.free_bytes), inodes)
            }
            Self::Sftp(remote) => (remote.available_bytes().await?, None),
            Self::Unknown => (None, None),
        })
    }
}

impl Opened {
    /// Bytes that can still be written there, if anybody knows.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub(crate) async fn free_bytes(&self) -> Result<Option<u64>, CommandError> {
        Ok(self.space.free().await?.0)
    }
}

/// Opens locations. Clones share all that is open; each keeps the configuration that it was cloned with.
#[derive(Clone)]
pub(crate) struct Opener<'c> {
    context: &'c Context,
    config: Arc<Config>,
    asking: Asking,
    shared: Arc<Shared<'c>>,
}

struct Shared<'c> {
    secrets: Secrets<'c>,
    ssh: OnceCell<sftp::Ssh>,
    /// One for each endpoint that has a limit, shared by all who use it.
    bandwidths: Mutex<HashMap<String, Arc<Bandwidth>>>,
    /// The same for how many files are on their way.
    turns: Mutex<HashMap<String, Turns>>,
}

/// A place in the form in which it is opened.
enum Place {
    Local(PathBuf),
    Sftp(SftpSettings, Limits),
    Object(ObjectSettings, Limits),
}

impl Place {
    /// The place that holds this one, and the name of this one in it.
    fn split(&self) -> Option<(Self, RelPath)> {
        let cut = |path: &str| -> Option<(String, RelPath)> {
            if path.is_empty() || path.ends_with('/') {
                return None;
            }
            let (above, name) = match path.rfind('/') {
                Some(slash) => path.split_at_checked(slash + 1)?,
                None => ("", path),
            };
            Some((above.to_owned(), RelPath::from_name(name.as_bytes()).ok()?))
        };
        match self {
            Self::Local(path) => {
                let name = path.file_name()?;
                let name = RelPath::from_name(name.as_encoded_bytes()).ok()?;
                let above = path.parent().filter(|above| !above.as_os_str().is_empty());
                Some((
                    Self::Local(above.unwrap_or(Path::new(".")).to_owned()),
                    name,
                ))
            }
            Self::Sftp(settings, limits) => {
                let (path, name) = cut(&settings.path)?;
                let settings = SftpSettings {
                    path,
                    ..settings.clone()
                };
                Some((Self::Sftp(settings, *limits), name))
            }
            Self::Object(settings, limits) => {
                let (prefix, name) = cut(&settings.prefix)?;
                let settings = ObjectSettings {
                    prefix: prefix.trim_end_matches('/').to_owned(),
                    ..settings.clone()
                };
                Some((Self::Object(settings, *limits), name))
            }
        }
    }
}

impl<'c> Opener<'c> {
    /// With the configuration of `context`.
    ///
    /// # Errors
    /// If the configuration is wrong.
    pub(crate) fn new(context: &'c Context) -> Result<Self, CommandError> {
        Ok(Self::with_config(
            context,
            context.config()?,
            Asking::Person,
        ))
    }

    /// With a configuration that is known already.
    pub(crate) fn with_config(context: &'c Context, config: Config, asking: Asking) -> Self {
        let asking = match asking {
            Asking::Person if context.environment.stdin_is_terminal => Asking::Person,
            _ => Asking::Nobody,
        };
        let shared = Shared {
            secrets: Secrets::new(context, &config),
            ssh: OnceCell::new(),
            bandwidths: Mutex::default(),
            turns: Mutex::default(),
        };
        Self {
            context,
            config: Arc::new(config),
            asking,
            shared: Arc::new(shared),
        }
    }

    /// The configuration.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Changes the configuration. What is open stays open, with the limits of now.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Config)) {
        change(Arc::make_mut(&mut self.config));
        let endpoints = &self.config.endpoints;
        let mut bandwidths = self
            .shared
            .bandwidths
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        bandwidths.retain(|name, bandwidth| {
            let limits = endpoints.get(name).map(|endpoint| endpoint.limits);
            let rate = limits.and_then(|limits| limits.bandwidth_bytes_per_second);
            bandwidth.set(rate.unwrap_or(0));
            rate.is_some()
        });
        let turns = self.shared.turns.lock();
        let mut turns = turns.unwrap_or_else(PoisonError::into_inner);
        turns.retain(|name, turns| {
            let limits = endpoints.get(name).map(|endpoint| endpoint.limits);
            let limit = limits.and_then(|limits| limits.transfers);
            turns.set_limit(limit.unwrap_or(usize::MAX));
            limit.is_some()
        });
    }

    /// The secrets, and the store they are in.
    pub(crate) fn secrets(&self) -> &Secrets<'c> {
        &self.shared.secrets
    }

    /// The steps of a job, with their keys.
    ///
    /// # Errors
    /// If a secret or a file that they name cannot be had.
    pub(crate) async fn steps(
        &self,
        specs: Vec<StepSpec>,
        files: &BTreeMap<String, PathBuf>,
    ) -> Result<Steps, CommandError> {
        crate::steps::ready(specs, files, self.secrets(), self.context, &self.config).await
    }

    /// Opens `location`.
    ///
    /// # Errors
    /// If its endpoint or a secret is not known, or it cannot be opened.
    pub(crate) async fn open(
        &self,
        location: &Location,
        role: Role,
    ) -> Result<Opened, CommandError> {
        let (place, limits, verify) = self.place(location)?;
        let bandwidth = self.bandwidth(location, limits);
        let turns = self.turns(location, limits);
        let opened = |(remote, space): (Arc<dyn Remote>, Space), single_file| Opened {
            remote: match &bandwidth {
                Some(bandwidth) => limited(remote, bandwidth),
                None => remote,
            },
            single_file,
            turns: turns.clone(),
            limits,
            verify,
            space: Arc::new(space),
        };
        if role == Role::Source && !names_directory(location) {
            if let Place::Local(path) = &place {
                if !path.is_dir()
                    && std::fs::symlink_metadata(path).is_ok()
                    && let Some((above, name)) = place.split()
                {
                    return Ok(opened(self.remote(&above).await?, Some(name)));
                }
            } else if let Some((above, name)) = place.split() {
                let (remote, space) = self.remote(&above).await?;
                let entry = match remote.stat(&name).await {
                    // Some stores fail on a key that is only the beginning of others. As a directory
                    // it is listed next, and that says what is wrong, if anything is.
                    Err(error) if matches!(error.kind, ErrorKind::Other | ErrorKind::Throttled) => {
                        None
                    }
                    entry => entry?,
                };
                if entry.is_some_and(|entry| entry.kind != Kind::Directory) {
                    return Ok(opened((remote, space), Some(name)));
                }
            }
        }
        Ok(opened(self.remote(&place).await?, None))
    }

    /// The directory of this machine that `location` is, if it is one.
    pub(crate) fn local_directory(&self, location: &Location) -> Option<PathBuf> {
        match self.place(location) {
            Ok((Place::Local(path), _, _)) => Some(path),
            _ => None,
        }
    }

    fn bandwidth(&self, location: &Location, limits: Limits) -> Option<Arc<Bandwidth>> {
        let Location::Endpoint { name, .. } = location else {
            return None;
        };
        let rate = limits.bandwidth_bytes_per_second?;
        let mut bandwidths = self
            .shared
            .bandwidths
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let bandwidth = bandwidths
            .entry(name.clone())
            .or_insert_with(|| Bandwidth::new(rate));
        Some(Arc::clone(bandwidth))
    }

    /// The turns of an endpoint that limits how many files are on their way, and its name.
    fn turns(&self, location: &Location, limits: Limits) -> Option<(String, Turns)> {
        let Location::Endpoint { name, .. } = location else {
            return None;
        };
        let limit = limits.transfers?;
        let turns = self.shared.turns.lock();
        let mut turns = turns.unwrap_or_else(PoisonError::into_inner);
        let turns = turns
            .entry(name.clone())
            .or_insert_with(|| Turns::new(limit));
        Some((name.clone(), turns.clone()))
    }

    /// Opens the root of an endpoint.
    ///
    /// # Errors
    /// As [`Opener::open`].
    pub(crate) async fn open_endpoint(&self, endpoint: &Endpoint) -> Result<Opened, CommandError> {
        let location = Location::Endpoint {
            name: endpoint.name.clone(),
            path: String::new(),
        };
        self.open(&location, Role::Destination).await
    }

    fn place(&self, location: &Location) -> Result<(Place, Limits, Option<Verify>), CommandError> {
        let none = Limits::default();
        Ok(match location {
            Location::Local { path } => (Place::Local(self.local(path)), none, None),
            Location::Sftp {
                user,
                host,
                port,
                path,
            } => {
                let settings = SftpSettings {
                    host: host.clone(),
                    port: *port,
                    user: user.clone(),
                    path: path.clone(),
                    ..SftpSettings::default()
                };
                (Place::Sftp(settings, none), none, None)
            }
            Location::Object {
                store,
                bucket,
                prefix,
            } => {
                let settings = ObjectSettings::new(*store, bucket.clone(), prefix.clone());
                (Place::Object(settings, none), none, None)
            }
            Location::Endpoint { name, path } => {
                let endpoint = self
                    .config
                    .endpoints
                    .get(name)
                    .ok_or_else(|| self.unknown_endpoint(name))?;
                let place = place_below(endpoint, path);
                (place, endpoint.limits, endpoint.verify)
            }
        })
    }

    fn unknown_endpoint(&self, name: &str) -> CommandError {
        let known: Vec<&str> = self.config.endpoints.keys().map(String::as_str).collect();
        let error = CommandError::usage(format!("there is no endpoint `{name}`"));
        let error = match &self.config.file {
            None => error.hint("no configuration was found: `knarr init` writes one"),
            Some(_) if known.is_empty() => error.hint("the configuration names no endpoint"),
            Some(_) => error.hint(suggest::help(name, &known, "known endpoints")),
        };
        error.hint(format!(
            "for a local file with a colon in its name write ./{name}:…"
        ))
    }

    fn local(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), &self.context.environment.home) {
            // The shell leaves it alone behind `file://` and in a configuration.
            (Some(below), Some(home)) => home.join(below),
            _ => self.context.environment.absolute(Path::new(path)),
        }
    }

    async fn remote(&self, place: &Place) -> Result<(Arc<dyn Remote>, Space), CommandError> {
        Ok(match place {
            Place::Local(path) => (Arc::new(LocalRemote::new(path)), Space::Local(path.clone())),
            Place::Sftp(settings, limits) => {
                let ssh = self
                    .shared
                    .ssh
                    .get_or_try_init(|| sftp::Ssh::load(&self.context.environment))
                    .await?;
                let remote = ssh
                    .open(settings, *limits, self.secrets(), self.asking)
                    .await?;
                (Arc::new(remote.clone()), Space::Sftp(remote))
            }
            Place::Object(settings, limits) => (
                object::open(settings, *limits, self.secrets()).await?,
                Space::Unknown,
            ),
        })
    }
}

/// The remote with a limit, which may be shared with others.
pub(crate) fn limited(remote: Arc<dyn Remote>, bandwidth: &Arc<Bandwidth>) -> Arc<dyn Remote> {
    let limits = limit::Limits {
        bandwidth: Some(Arc::clone(bandwidth)),
        calls: None,
    };
    Arc::new(Limited::new(remote, limits))
}

/// Whether it says itself that it is a directory.
fn names_directory(location: &Location) -> bool {
    match location {
        Location::Local { path }
        | Location::Sftp { path, .. }
        | Location::Endpoint { path, .. } => path.is_empty() || path.ends_with('/'),
        Location::Object { prefix, .. } => prefix.is_empty(),
    }
}

fn place_below(endpoint: &Endpoint, path: &str) -> Place {
    match &endpoint.kind {
        EndpointKind::Local(root) => Place::Local(root.join(path.trim_start_matches('/'))),
        EndpointKind::Sftp(settings) => {
            let mut settings = settings.as_ref().clone();
            settings.path = if path.is_empty() {
                settings.path
            } else if path.starts_with('/') || settings.path.is_empty() {
                path.to_owned()
            } else {
                format!("{}/{path}", settings.path.trim_end_matches('/'))
            };
            Place::Sftp(settings, endpoint.limits)
        }
        EndpointKind::Object(settings) => {
            let mut settings = settings.as_ref().clone();
            let path = path.trim_matches('/');
            settings.prefix = match (settings.prefix.is_empty(), path.is_empty()) {
                (true, _) => path.to_owned(),
                (false, true) => settings.prefix,
                (false, false) => format!("{}/{path}", settings.prefix),
            };
            Place::Object(settings, endpoint.limits)
        }
    }
}
