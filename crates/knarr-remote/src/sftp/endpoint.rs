//! One server, and the few connections that everybody who talks to it shares.
//!
//! Constraints: at most [`SftpOptions::connections`] connections, each made when it is first needed. A
//! connection that died is made anew by whoever needs it next. Those who wait while somebody connects
//! share the outcome, also if it is a failure: a server that is down is asked once, not once per file.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use knarr_sftp::ClientOptions;
use knarr_sftp::codec::Extension;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::{ErrorKind, RemoteError, Retry};
use crate::sftp::connection::Connection;
use crate::sftp::error;
use crate::ssh::{SftpError, SshOptions, SshSession};

/// Connections unless said otherwise: one is bounded by one core of the server's.
const CONNECTIONS: usize = 2;
/// The same where a round trip takes [`LONG_ROUND_TRIP`] or more: OpenSSH takes 2 MiB a round trip on each.
const LONG_LINE_CONNECTIONS: usize = 4;
/// What makes a line a long one.
const LONG_ROUND_TRIP: Duration = Duration::from_millis(8);

/// Names that one directory may have, unless said otherwise.
const NAMES_PER_DIRECTORY: u64 = 5_000_000;

/// How long nobody tries to make a further connection after one could not be made.
const SPARE_PAUSE: Duration = Duration::from_secs(30);

/// What to do where a server cannot rename over what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplaceWithoutPosixRename {
    /// Fail, and say so: replacing by removing first leaves a moment without any file (K2).
    #[default]
    Refuse,
    /// Remove what is there and then rename.
    Allow,
}

/// Whether written files are flushed to the server's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flush {
    /// Where the server offers `fsync@openssh.com`.
    #[default]
    Offered,
    /// Never: it is left to the server when it writes.
    Never,
}

/// How to talk to one server.
#[derive(Debug, Clone)]
pub struct SftpOptions {
    /// How to connect.
    pub ssh: SshOptions,
    /// How many connections to have at most; unless said otherwise, two, and four over a long line.
    pub connections: Option<usize>,
    /// How long the SFTP server may be silent while requests wait, while its SSH server is there.
    pub idle_limit: Duration,
    /// What to do where it cannot rename over what is there.
    pub replace_without_posix_rename: ReplaceWithoutPosixRename,
    /// Whether to flush.
    pub flush: Flush,
    /// Extensions that are not used even where they are offered.
    pub without: Vec<Extension>,
    /// Names that one directory may have: a server that invents names without end is cut off here.
    pub names_per_directory: u64,
}

impl SftpOptions {
    /// The usual way to talk.
    #[must_use]
    pub const fn new(ssh: SshOptions) -> Self {
        Self {
            ssh,
            connections: None,
            // Flushing a large file to a slow disk may take minutes; a dead line is noticed by the
            // keepalives of SSH.
            idle_limit: Duration::from_mins(5),
            replace_without_posix_rename: ReplaceWithoutPosixRename::Refuse,
            flush: Flush::Offered,
            without: Vec::new(),
            names_per_directory: NAMES_PER_DIRECTORY,
        }
    }
}

/// One server. Clones share its connections.
#[derive(Clone)]
pub struct SftpEndpoint {
    shared: Arc<Shared>,
}

struct Shared {
    options: SftpOptions,
    name: String,
    location: String,
    slots: Vec<Slot>,
}

/// Room for one connection.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    /// Counts attempts to connect, so that who waited for one can tell.
    attempts: AtomicU64,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// How and when the last attempt failed.
    failure: Option<(Failure, Instant)>,
}

/// A failure that many can be told about.
#[derive(Debug, Clone)]
struct Failure {
    kind: ErrorKind,
    retry: Retry,
    operation: String,
    message: String,
}

impl fmt::Debug for SftpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SftpEndpoint")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl SftpEndpoint {
    /// A server that will be connected to when it is needed.
    #[must_use]
    pub fn new(options: SftpOptions) -> Self {
        let ssh = &options.ssh;
        let host = if ssh.host.contains(':') {
            format!("[{}]", ssh.host)
        } else {
            ssh.host.clone()
        };
        let name = format!("sftp://{}@{host}:{}", ssh.user, ssh.port);
        let location = if ssh.port == 22 {
            format!("sftp://{}@{host}", ssh.user)
        } else {
            name.clone()
        };
        let slots = (0..options.connections.unwrap_or(LONG_LINE_CONNECTIONS).max(1))
            .map(|_| Slot::default())
            .collect();
        Self {
            shared: Arc::new(Shared {
                options,
                name,
                location,
                slots,
            }),
        }
    }

    /// How it is talked to.
    #[must_use]
    pub fn options(&self) -> &SftpOptions {
        &self.shared.options
    }

    /// Its name: `sftp://user@host:port`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The start of locations on it, without a port that is the usual one.
    pub(super) fn location(&self) -> &str {
        &self.shared.location
    }

    /// Connects if no connection is up, and asks the server for a sign of life.
    ///
    /// # Errors
    /// Why it cannot be talked to.
    pub async fn probe(&self) -> Result<(), RemoteError> {
        let connection = self.connection().await?;
        match connection.client().real_path(b".").await {
            Ok(_path) => Ok(()),
            Err(source) if source.is_connection_lost() => Err(error::translate(
                &connection,
                "ask for a sign of life",
                source,
            )),
            // It answered.
            Err(_refusal) => Ok(()),
        }
    }

    /// Ends all connections. What is under way on them fails; the next operation connects anew.
    pub async fn disconnect(&self) {
        for slot in &self.shared.slots {
            if let Some(connection) = slot.state.lock().await.connection.take() {
                connection.client().close();
            }
        }
    }

    /// The connection for small things: always the first, so that small things travel together.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, RemoteError> {
        let slot = self
            .shared
            .slots
            .first()
            .expect("there is at least one slot");
        self.in_slot(slot).await
    }

    /// How many connections a large transfer may use, the `first` among them.
    pub(super) fn connections_with(&self, first: &Connection) -> usize {
        let round_trip = first.client().round_trip().unwrap_or_default();
        let usual = if round_trip >= LONG_ROUND_TRIP {
            LONG_LINE_CONNECTIONS
        } else {
            CONNECTIONS
        };
        self.options().connections.unwrap_or(usual).max(1)
    }

    /// A further connection for a large transfer, the one in this slot; nothing if there is no such slot,
    /// or the server takes no more connections.
    pub(super) async fn further_connection(&self, index: usize) -> Option<Arc<Connection>> {
        let slot = self.shared.slots.get(index)?;
        // A server that takes no more connections is not asked again for each file.
        let failed_lately = slot.state.try_lock().is_ok_and(|state| {
            state
                .failure
                .as_ref()
                .is_some_and(|(_, when)| when.elapsed() < SPARE_PAUSE)
        });
        if failed_lately {
            return None;
        }
        match self.in_slot(slot).await {
            Ok(connection) => Some(connection),
            Err(error) => {
                tracing::debug!(endpoint = self.name(), %error, "goes on with fewer connections");
                None
            }
        }
    }

    async fn in_slot(&self, slot: &Slot) -> Result<Arc<Connection>, RemoteError> {
        let attempts_before = slot.attempts.load(Ordering::Acquire);
        let mut state = slot.state.lock().await;
        if let Some(connection) = &state.connection {
            if connection.is_up() {
                return Ok(Arc::clone(connection));
            }
            state.connection = None;
        }
        let attempts = slot.attempts.load(Ordering::Acquire);
        if attempts != attempts_before
            && let Some((failure, _)) = &state.failure
        {
            return Err(failure.to_error());
        }
        let outcome = self.connect().await;
        slot.attempts.fetch_add(1, Ordering::AcqRel);
        match outcome {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *state = State {
                    connection: Some(Arc::clone(&connection)),
                    failure: None,
                };
                Ok(connection)
            }
            Err(error) => {
                state.failure = Some((Failure::of(&error), Instant::now()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Connection, RemoteError> {
        let options = &self.shared.options;
        let operation = || format!("connect to {}", self.shared.name);
        let session = SshSession::connect(&options.ssh).await;
        let session = session.map_err(|error| error.into_remote(operation()))?;
        let client_options = ClientOptions {
            idle_limit: options.idle_limit,
            without: options.without.clone(),
            ..ClientOptions::default()
        };
        let client = session
            .start_sftp(client_options)
            .await
            .map_err(|error| match error {
                SftpError::Ssh(error) => error.into_remote(operation()),
                SftpError::Start(source) => error::not_started(operation(), source),
            })?;
        Ok(Connection::new(client, session, self.shared.name.clone()))
    }
}

impl Failure {
    fn of(error: &RemoteError) -> Self {
        let mut message = error.message.clone();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self {
            kind: error.kind,
            retry: error.retry,
            operation: error.operation.clone(),
            message,
        }
    }

    fn to_error(&self) -> RemoteError {
        RemoteError::new(self.kind, self.operation.clone(), self.message.clone())
            .with_retry(self.retry)
    }
}
