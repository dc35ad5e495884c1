//! The own SFTP server of the configuration: by itself, or inside of `knarr run`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use knarr_core::location::Location;
use knarr_serve::event::ServeObserver;
use knarr_serve::places::{Mount, Store, UserPlaces};
use knarr_serve::ssh::{HostKeys, SshServer};
use knarr_serve::users::{AuthorizedKey, PasswordHash, User, Users};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cli::context::Context;
use crate::cli::sftp_server::audit::Audit;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::{SecretSource, ServedMount, ServedUser, SftpServer, UserPassword};
use crate::location::{Asking, Opener, Role};

/// Where the host keys are in the state directory.
const HOST_KEYS: &str = "host-keys";

/// A server that listens already, and serves when it is run.
pub(crate) struct Listening {
    server: SshServer,
    listeners: Vec<TcpListener>,
}

impl Listening {
    /// Serves until `stop` is cancelled, and then until the clients are gone, which takes some seconds at most.
    pub(crate) async fn run(self, stop: CancellationToken) {
        self.server.run(self.listeners, stop).await;
    }
}

/// Who is let in by a server that listens.
#[derive(Default)]
pub(crate) struct LetIn {
    users: Arc<Users>,
    /// Each user, and how its places are defined.
    known: BTreeMap<String, (String, User)>,
}

impl LetIn {
    /// Lets in the users of the configuration of now, and nobody else. A user that is as before keeps the
    /// connections; whoever is another or gone loses them. Returns who cannot be let in, and why.
    pub(crate) async fn replace(&mut self, opener: &Opener<'_>) -> BTreeMap<String, String> {
        let (mut known, mut wrong) = (BTreeMap::new(), BTreeMap::new());
        let server = opener.config().sftp_server.as_ref();
        for served in server.map_or(&[][..], |server| &server.users) {
            let name = &served.user.name;
            let places = places_in_words(served, opener);
            match ready(served, opener, self.known.get(name), &places).await {
                Ok(user) => {
                    known.insert(name.clone(), (places, user));
                }
                Err(error) => {
                    let why = error.on_one_line();
                    tracing::error!(user = %name, "the user is not let in: {why}");
                    wrong.insert(name.clone(), why);
                }
            }
        }
        self.known = known;
        self.users
            .replace(self.known.values().map(|(_, user)| user.clone()));
        wrong
    }
}

/// How the places of a user are defined: if that is the same, what is open of them stays.
fn places_in_words(served: &ServedUser, opener: &Opener<'_>) -> String {
    let endpoints = served
        .mounts
        .iter()
        .filter_map(|mount| match &mount.location {
            Location::Endpoint { name, .. } => opener.config().endpoints.get(name),
            _ => None,
        });
    let endpoints: Vec<_> = endpoints.collect();
    format!("{:?} {:?} {endpoints:?}", served.mounts, served.quota)
}

/// Prepares the server of the configuration, if there is one: its keys, its users, its addresses.
///
/// # Errors
/// If something of that cannot be had; nothing is served then.
pub(crate) async fn listen(
    opener: &Opener<'_>,
    state: &Path,
    observer: Arc<dyn ServeObserver>,
) -> Result<Option<(Listening, LetIn)>, CommandError> {
    let Some(config) = opener.config().sftp_server.clone() else {
        return Ok(None);
    };
    let mut let_in = LetIn::default();
    for served in &config.users {
        let places = places_in_words(served, opener);
        let user = ready(served, opener, None, &places).await?;
        let_in.known.insert(user.name.clone(), (places, user));
    }
    let_in
        .users
        .replace(let_in.known.values().map(|(_, user)| user.clone()));
    let host_keys = host_keys(&config, state).await?;
    let mut listeners = Vec::with_capacity(config.listen.len());
    for address in &config.listen {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            CommandError::failed(Unbound {
                address: *address,
                source: error,
            })
            .hint("is another server there? `listen` of `sftp_server` names the address")
        })?;
        let address = listener.local_addr().unwrap_or(*address);
        tracing::info!(%address, "the SFTP server listens");
        listeners.push(listener);
    }
    for fingerprint in host_keys.fingerprints() {
        tracing::info!(%fingerprint, "host key");
    }
    let users = Arc::clone(&let_in.users);
    let server = SshServer::new(config.options, users, &host_keys, observer);
    Ok(Some((Listening { server, listeners }, let_in)))
}

/// `knarr sftp-server`: the server alone, until it is told to stop.
pub(super) fn run(context: &Context) -> CommandResult {
    let config = context.required_config()?;
    if config.sftp_server.is_none() {
        return Err(
            CommandError::usage("the configuration has no section `sftp_server`").hint(
                "docs/sftp-server.md shows one; --stdio serves a client on the standard streams",
            ),
        );
    }
    let state = context.state_of(&config)?;
    let runtime = context.runtime()?;
    let store = context.open_store(&state)?;
    let result = runtime.block_on(async {
        let retention = config.retention;
        let opener = Opener::with_config(context, config, Asking::Nobody);
        let audit = Audit::start(store.clone()).map_err(CommandError::failed)?;
        let audit = Arc::new(audit);
        let told = Arc::<Audit>::clone(&audit);
        let Some((listening, let_in)) = listen(&opener, &state, told).await? else {
            return Ok(Outcome::Done);
        };
        if let_in.users.is_empty() {
            return Err(CommandError::usage("nobody may log in").hint(
                "write users into the configuration; those that were added are served by `knarr run`",
            ));
        }
        let stop = CancellationToken::new();
        crate::cli::stop::on_signals(&stop);
        tokio::spawn(crate::retention::keep(store, retention, stop.clone()));
        listening.run(stop).await;
        audit.end();
        tracing::info!("stopped");
        Ok(Outcome::Done)
    });
    // A file system that hangs must not hold us.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
struct Unbound {
    address: std::net::SocketAddr,
    #[source]
    source: std::io::Error,
}

#[derive(Debug, thiserror::Error)]
enum UserError {
    #[error("the password of the user `{user}` cannot be used")]
    Password {
        user: String,
        #[source]
        source: knarr_serve::users::PasswordError,
    },
    #[error("cannot read {}, which holds keys of the user `{user}`", path.display())]
    KeyFile {
        user: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}, line {line}, which holds keys of the user `{user}`", path.display())]
    Key {
        user: String,
        path: PathBuf,
        line: usize,
        #[source]
        source: knarr_serve::users::KeyError,
    },
}

async fn host_keys(config: &SftpServer, state: &Path) -> Result<HostKeys, CommandError> {
    let directory = config
        .host_keys
        .clone()
        .unwrap_or_else(|| state.join(HOST_KEYS));
    let opened = tokio::task::spawn_blocking(move || HostKeys::open(&directory)).await;
    opened
        .map_err(CommandError::failed)?
        .map_err(CommandError::failed)
}

/// The user, with everything that had to be fetched. What is the same as it was `before` is taken from there:
/// a place that is open, the hash of a password.
async fn ready(
    served: &ServedUser,
    opener: &Opener<'_>,
    before: Option<&(String, User)>,
    places: &str,
) -> Result<User, CommandError> {
    let mut user = served.user.clone();
    for path in &served.key_files {
        user.keys.extend(key_file(&user.name, path)?);
    }
    user.password = match &served.password {
        None => None,
        Some(UserPassword::Hash(hash)) => Some(hash.clone()),
        Some(UserPassword::Secret(source)) => {
            let before = before.and_then(|(_, user)| user.password.clone());
            Some(password(&user.name, source, opener, before).await?)
        }
    };
    if let Some((_, before)) = before.filter(|(known, _)| known == places) {
        user.places = before.places.clone();
        return Ok(user);
    }
    let mut mounts = Vec::with_capacity(served.mounts.len());
    for mount in &served.mounts {
        mounts.push(open(mount, opener).await?);
    }
    user.places = UserPlaces {
        mounts,
        quota: served.quota,
    };
    Ok(user)
}

fn key_file(user: &str, path: &Path) -> Result<Vec<AuthorizedKey>, CommandError> {
    let text = std::fs::read_to_string(path).map_err(|source| {
        CommandError::usage(UserError::KeyFile {
            user: user.to_owned(),
            path: path.to_owned(),
            source,
        })
    })?;
    AuthorizedKey::parse_lines(&text).map_err(|(line, source)| {
        CommandError::usage(UserError::Key {
            user: user.to_owned(),
            path: path.to_owned(),
            line,
            source,
        })
    })
}

/// The hash of a password that is a secret; the secret may be the hash itself.
async fn password(
    user: &str,
    source: &SecretSource,
    opener: &Opener<'_>,
    before: Option<PasswordHash>,
) -> Result<PasswordHash, CommandError> {
    let text = opener.secrets().get(source).await?;
    let hashed = tokio::task::spawn_blocking(move || {
        if let Some(before) = before.filter(|before| before.matches(&text)) {
            Ok(before)
        } else if text.starts_with("$argon2") {
            PasswordHash::parse(&text)
        } else {
            PasswordHash::of(&text)
        }
    });
    let hash = hashed.await.map_err(CommandError::failed)?;
    hash.map_err(|source| {
        CommandError::usage(UserError::Password {
            user: user.to_owned(),
            source,
        })
    })
}

async fn open(mount: &ServedMount, opener: &Opener<'_>) -> Result<Mount, CommandError> {
    let store = match opener.local_directory(&mount.location) {
        Some(directory) => Store::Local {
            directory,
            missing: mount.missing,
        },
        None => {
            let opened = opener.open(&mount.location, Role::Destination).await?;
            Store::Remote(opened.remote)
        }
    };
    Ok(Mount {
        name: mount.name.clone().into_bytes(),
        store,
        permissions: mount.permissions,
        rules: mount.rules.clone(),
    })
}
