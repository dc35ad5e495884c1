//! Everything that happens to files, as rows of a PostgreSQL table: `docs/notifier.md` shows it.
//!
//! Constraints: rows go in batches of at most [`NotifierOptions::batch`], the next batch once the one
//! before is committed there. How far it came stands in the store, and moves after that commit: what a
//! crash comes between is sent again, and the table takes a number of a node only once. So an outage, on
//! either side, loses nothing and doubles nothing. Nothing waits for the database.

mod recorder;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::retry::RetryPolicy;
use knarr_store::events::{EventId, FileEvent, StoredEvent};
use knarr_store::secrets::SecretValue;
use knarr_store::{Store, StoreError};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls};
use tokio_util::sync::CancellationToken;

pub(crate) use recorder::Waiting;
pub use recorder::{Recorder, event_of};

/// The table, the index and the view, as `docs/notifier.md` has them.
pub const SCHEMA: &str = include_str!("schema.sql");
/// How long to wait for a connection or a statement.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the names of our followers begin with.
const PREFIX: &str = "postgres.";
/// How long it sleeps at most when there is nothing to send.
const NAP: Duration = Duration::from_secs(1);
/// The pauses after failures.
const RETRY: RetryPolicy = RetryPolicy {
    attempts: u32::MAX,
    from: Duration::from_secs(1),
    to: Duration::from_secs(60),
};
const INSERT: &str = "INSERT INTO knarr_events \
    (node, id, node_name, at, event, job, run, path, action, size, done, message) \
    SELECT $1, e.id, $2, timestamptz 'epoch' + e.at * interval '1 microsecond', e.event, e.job, e.run, \
    e.path, e.action, e.size, e.done, e.message \
    FROM unnest($3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::text[], \
    $9::text[], $10::bigint[], $11::bigint[], $12::text[]) \
    AS e (id, at, event, job, run, path, action, size, done, message) \
    ON CONFLICT (node, id) DO NOTHING";

/// Whether the connection is encrypted.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PostgresSecurity {
    /// It is, and the server's certificate is verified.
    #[default]
    Tls,
    /// It is not, which is for a server on this machine only.
    None,
}

/// Where the rows go.
#[derive(Debug, Clone)]
pub struct NotifierOptions {
    /// The host, or the directory of the server's socket.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: Option<SecretValue>,
    /// Whether the connection is encrypted.
    pub security: PostgresSecurity,
    /// Certificates that are trusted besides the system's, in PEM.
    pub certificates: Option<Vec<u8>>,
    /// The most rows in one statement.
    pub batch: usize,
}

/// Why rows cannot be sent. The texts hold no secret.
#[derive(Debug, thiserror::Error)]
pub enum NotifierError {
    /// Everybody on the way could read it.
    #[error(
        "rows to {0} would not be encrypted: use `security: tls` (`none` is for this machine only)"
    )]
    Plain(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS for {host}: {reason}")]
    Tls {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// The state cannot be read or written.
    #[error("the state directory does not work")]
    Store(#[source] StoreError),
    /// The server did not do it.
    #[error("the PostgreSQL server did not {what}")]
    Server {
        /// What it was asked to do.
        what: &'static str,
        /// What it said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server did not answer.
    #[error("the PostgreSQL server did not {what} within {PATIENCE:?}")]
    Late {
        /// What it was asked to do.
        what: &'static str,
    },
}

/// Sends what happened to a PostgreSQL server.
pub struct Notifier {
    follower: String,
    node: String,
    options: NotifierOptions,
    tls: Option<tls::Connector>,
    store: Store,
    notify: Arc<Notify>,
    cancel: CancellationToken,
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier")
            .field("follower", &self.follower)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The name under which the notifier of a target follows the events.
#[must_use]
pub fn follower_of(target: &str) -> String {
    format!("{PREFIX}{target}")
}

/// Forgets the notifiers of targets that are not `configured` any more, so that events are not kept for
/// them. Called at the start of a node, once its configuration was read.
///
/// # Errors
/// If the state cannot be read or written.
pub async fn forget_others(store: &Store, configured: &[String]) -> Result<(), StoreError> {
    let followers = store.read_async(|reader| reader.event_followers()).await?;
    for follower in followers {
        let target = follower.strip_prefix(PREFIX);
        if target.is_none_or(|target| configured.iter().any(|name| name == target)) {
            continue;
        }
        loop {
            let name = follower.clone();
            let removed = store.transact(move |tx| tx.remove_event_cursor(&name));
            if removed.await? == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// A connection to the server; closed when dropped.
struct Session {
    client: Client,
    connection: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Notifier {
    /// A notifier under the name of its target, for the node of this name. From now on events are kept
    /// until it sent them.
    ///
    /// # Errors
    /// If it would not be encrypted, or the state cannot be written.
    pub async fn new(
        target: &str,
        node: &str,
        options: NotifierOptions,
        store: Store,
        cancel: CancellationToken,
    ) -> Result<Self, NotifierError> {
        let host = options.host.as_str();
        let is_here = host.starts_with('/') || ["localhost", "127.0.0.1", "::1"].contains(&host);
        let tls = match options.security {
            PostgresSecurity::Tls => {
                Some(
                    tls::Connector::new(&options).map_err(|reason| NotifierError::Tls {
                        host: host.to_owned(),
                        reason,
                    })?,
                )
            }
            PostgresSecurity::None if is_here => None,
            PostgresSecurity::None => return Err(NotifierError::Plain(host.to_owned())),
        };
        let follower = follower_of(target);
        let name = follower.clone();
        store
            .transact(move |tx| match tx.event_cursor(&name)? {
                Some(_) => Ok(()),
                None => tx.set_event_cursor(&name, EventId::FIRST),
            })
            .await
            .map_err(NotifierError::Store)?;
        Ok(Self {
            follower,
            node: node.to_owned(),
            options,
            tls,
            store,
            notify: Arc::default(),
            cancel,
        })
    }

    /// Has it look for new events at once, once notified.
    #[must_use]
    pub fn notify(&self) -> Arc<Notify> {
        Arc::clone(&self.notify)
    }

    /// Connects, and makes the table if it is not there; sends nothing.
    ///
    /// # Errors
    /// If the server does not do that.
    pub async fn test(&self) -> Result<(), NotifierError> {
        let session = self.connect().await?;
        prepare(&session.client).await
    }

    /// Sends until cancelled.
    pub async fn run(self) {
        let mut failures = 0_u32;
        while !self.cancel.is_cancelled() {
            let ended = tokio::select! {
                () = self.cancel.cancelled() => return,
                ended = self.send_all(&mut failures) => ended,
            };
            failures = failures.saturating_add(1);
            let pause = RETRY.backoff(failures, super::worker::chance());
            let error = crate::error::chain(&ended);
            let wait = pause.as_secs();
            tracing::warn!(target = %self.follower, "events wait; tried again in {wait} s: {error}");
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Connects and sends until something fails.
    async fn send_all(&self, failures: &mut u32) -> NotifierError {
        match self.try_send_all(failures).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_send_all(
        &self,
        failures: &mut u32,
    ) -> Result<std::convert::Infallible, NotifierError> {
        let store = self.store.clone();
        let id = tokio::task::spawn_blocking(move || store.node_id())
            .await
            .unwrap_or(Err(StoreError::Closed))
            .map_err(NotifierError::Store)?
            .to_string();
        let session = self.connect().await?;
        prepare(&session.client).await?;
        loop {
            let (follower, batch) = (self.follower.clone(), self.options.batch);
            let events = self
                .store
                .read_async(move |reader| {
                    let cursor = reader.event_cursor(&follower)?.unwrap_or(EventId::FIRST);
                    reader.events_after(cursor, batch)
                })
                .await
                .map_err(NotifierError::Store)?;
            let Some(last) = events.last().map(|event| event.id) else {
                tokio::select! {
                    () = self.notify.notified() => {}
                    () = tokio::time::sleep(NAP) => {}
                }
                continue;
            };
            insert(&session.client, &id, &self.node, &events).await?;
            *failures = 0;
            let follower = self.follower.clone();
            self.store
                .transact(move |tx| tx.set_event_cursor(&follower, last))
                .await
                .map_err(NotifierError::Store)?;
        }
    }

    async fn connect(&self) -> Result<Session, NotifierError> {
        let options = &self.options;
        let mut config = Config::new();
        config
            .host(&options.host)
            .port(options.port)
            .dbname(&options.database)
            .user(&options.user)
            .application_name("knarr")
            .connect_timeout(PATIENCE);
        if let Some(password) = &options.password {
            config.password(password.as_bytes());
        }
        let what = "take the connection";
        let connection = match &self.tls {
            Some(tls) => {
                config.ssl_mode(SslMode::Require);
                let (client, connection) = within(what, config.connect(tls.clone())).await?;
                let connection = tokio::spawn(async move {
                    // Why it ended is what the next statement says.
                    connection.await.ok();
                });
                Session { client, connection }
            }
            None => {
                config.ssl_mode(SslMode::Disable);
                let (client, connection) = within(what, config.connect(NoTls)).await?;
                let connection = tokio::spawn(async move {
                    connection.await.ok();
                });
                Session { client, connection }
            }
        };
        Ok(connection)
    }
}

async fn within<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, NotifierError> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(NotifierError::Server { what, source }),
        Err(_elapsed) => Err(NotifierError::Late { what }),
    }
}

/// Makes the table, if it is not there; a user who may only insert needs no more than that.
async fn prepare(client: &Client) -> Result<(), NotifierError> {
    let what = "look for the table knarr_events";
    let asked = client.query_one("SELECT to_regclass('knarr_events') IS NOT NULL", &[]);
    let is_there: bool = within(what, asked).await?.get(0);
    if is_there {
        return Ok(());
    }
    within("make the table knarr_events", client.batch_execute(SCHEMA)).await
}

async fn insert(
    client: &Client,
    node: &str,
    node_name: &str,
    events: &[StoredEvent],
) -> Result<(), NotifierError> {
    let rows = Rows::of(events);
    let statement = within("know the table knarr_events", client.prepare(INSERT)).await?;
    let values: [&(dyn ToSql + Sync); 12] = [
        &node,
        &node_name,
        &rows.ids,
        &rows.times,
        &rows.events,
        &rows.jobs,
        &rows.runs,
        &rows.paths,
        &rows.actions,
        &rows.sizes,
        &rows.done,
        &rows.messages,
    ];
    let inserted = client.execute(&statement, &values);
    within("take the events", inserted).await.map(drop)
}

/// Events, column by column.
#[derive(Default)]
struct Rows {
    ids: Vec<i64>,
    times: Vec<i64>,
    events: Vec<&'static str>,
    jobs: Vec<String>,
    runs: Vec<Option<i64>>,
    paths: Vec<String>,
    actions: Vec<Option<String>>,
    sizes: Vec<Option<i64>>,
    done: Vec<Option<i64>>,
    messages: Vec<Option<String>>,
}

impl Rows {
    fn of(events: &[StoredEvent]) -> Self {
        let mut rows = Self::default();
        for stored in events {
            let event = &stored.event;
            let (action, done, message) = match &event.what {
                FileEvent::Enqueued | FileEvent::Started => (None, None, None),
                FileEvent::Progress { done } => (None, Some(*done), None),
                FileEvent::Completed { action } => (Some(action.clone()), None, None),
                FileEvent::Failed { message } => (None, None, Some(text(message))),
            };
            rows.ids.push(stored.id.0);
            rows.times.push(event.at.nanoseconds().div_euclid(1_000));
            rows.events.push(event.what.name());
            rows.jobs.push(text(&event.job));
            rows.runs.push(event.run.map(|run| run.0.cast_signed()));
            let path = event.path.as_utf8();
            rows.paths
                .push(path.map_or_else(|| event.path.to_string(), str::to_owned));
            rows.actions.push(action);
            rows.sizes.push(event.size.map(u64::cast_signed));
            rows.done.push(done.map(u64::cast_signed));
            rows.messages.push(message);
        }
        rows
    }
}

/// A text that PostgreSQL takes: without NUL.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
