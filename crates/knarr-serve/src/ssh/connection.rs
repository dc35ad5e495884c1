//! One connection: watches over the session of russh from its first byte to its end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use russh::Disconnect;
use russh::server::{Handle, RunningSession};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::event::{ServeEvent, SessionName};
use crate::ssh::channel::Inbox;
use crate::ssh::handler::{Handler, HandlerError};
use crate::ssh::penalties::Offence;
use crate::ssh::server::Shared;
use crate::ssh::startups::{Count, Counted};
use crate::ssh::stream::CutStream;
use crate::users::Presence;

/// How much is read ahead of a connection, in bytes: more would only be copied once more.
const READ_AHEAD_BYTES: usize = 4 * 1024;
/// How long a farewell may take before the stream is cut.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often it is looked whether files are still open.
const LOOK: Duration = Duration::from_millis(25);

/// What the tasks of a connection share.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) name: SessionName,
    /// Ends the stream.
    pub(crate) cut: CancellationToken,
    /// Attempts to log in that failed.
    pub(crate) failures: AtomicUsize,
    pub(crate) channels: Count,
    pub(crate) open_files: AtomicUsize,
    /// The user, from when on the log-in is done.
    presence: Mutex<Option<Presence>>,
    entered: Notify,
    is_in: AtomicBool,
    /// What is still to be received, by channel.
    inboxes: Mutex<Vec<std::sync::Weak<Inbox>>>,
}

impl Connection {
    /// The log-in is done.
    pub(crate) fn enter(&self, presence: Presence) {
        *self.presence.lock().unwrap_or_else(PoisonError::into_inner) = Some(presence);
        self.is_in.store(true, Ordering::Release);
        self.entered.notify_one();
    }

    pub(crate) fn is_in(&self) -> bool {
        self.is_in.load(Ordering::Acquire)
    }

    fn known(&self) -> Option<Arc<crate::users::Known>> {
        let presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence
            .as_ref()
            .map(|presence| Arc::clone(&presence.known))
    }

    /// An inbox that is to be ended with the connection.
    pub(crate) fn remember(&self, inbox: &Arc<Inbox>) {
        let mut inboxes = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        inboxes.push(Arc::downgrade(inbox));
    }

    fn end_inboxes(&self) {
        let inboxes = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        for inbox in inboxes.iter().filter_map(std::sync::Weak::upgrade) {
            inbox.end();
        }
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Client,
    Slow,
    Idle,
    Changed,
    Stopped,
}

impl Ending {
    const fn text(self) -> &'static str {
        match self {
            Self::Client => "the client ended it",
            Self::Slow => "the client did not log in in time",
            Self::Idle => "the client was silent for too long",
            Self::Changed => "the user was changed or removed",
            Self::Stopped => "the server is stopping",
        }
    }
}

/// Serves a connection to its end.
pub(crate) async fn run(
    shared: Arc<Shared>,
    stream: TcpStream,
    name: SessionName,
    waits: Counted,
    stop: CancellationToken,
) {
    let connection = Arc::new(Connection {
        shared: Arc::clone(&shared),
        name: name.clone(),
        cut: CancellationToken::new(),
        failures: AtomicUsize::new(0),
        channels: Count::default(),
        open_files: AtomicUsize::new(0),
        presence: Mutex::new(None),
        entered: Notify::new(),
        is_in: AtomicBool::new(false),
        inboxes: Mutex::new(Vec::new()),
    });
    let (ending, failure) = serve(&connection, stream, waits, stop).await;
    // Whatever is left of it: the session, and channels that wait for it.
    connection.end_inboxes();
    connection.cut.cancel();
    if !connection.is_in() {
        let offence = match ending {
            Ending::Slow => Some(Offence::TooSlow),
            Ending::Stopped => None,
            _ if connection.failures.load(Ordering::Acquire) > 0 => Some(Offence::FailedLogIn),
            _ => Some(Offence::NoLogIn),
        };
        if let Some(offence) = offence {
            shared
                .penalties()
                .add(name.peer.ip(), offence, Instant::now());
        }
    }
    let known = connection.known();
    let reason = failure.unwrap_or_else(|| ending.text().to_owned());
    shared.observer.observe(&ServeEvent::Ended {
        session: &name,
        user: known.as_ref().map(|known| known.user.name.as_str()),
        reason: &reason,
    });
}

async fn serve(
    connection: &Arc<Connection>,
    stream: TcpStream,
    waits: Counted,
    stop: CancellationToken,
) -> (Ending, Option<String>) {
    let deadline = tokio::time::Instant::now() + connection.shared.options.log_in_grace;
    // russh reads the length of a packet and its body apart: of small packets both come at once, and often several.
    let stream = CutStream::new(stream, &connection.cut);
    let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
    let handler = Handler::new(Arc::clone(connection));
    let config = Arc::clone(&connection.shared.config);
    let started = tokio::select! {
        started = russh::server::run_stream(config, stream, handler) => started,
        () = sleep_until(deadline) => return (Ending::Slow, None),
        () = stop.cancelled() => return (Ending::Stopped, None),
    };
    let mut running = match started {
        Ok(running) => running,
        Err(error) => return (Ending::Client, Some(error.to_string())),
    };
    let handle = running.handle();
    let ending = tokio::select! {
        ended = &mut running => return (Ending::Client, told(ended)),
        () = connection.entered.notified() => None,
        () = sleep_until(deadline) => Some(Ending::Slow),
        () = stop.cancelled() => Some(Ending::Stopped),
    };
    drop(waits);
    if let Some(ending) = ending {
        return (ending, None);
    }
    let Some(known) = connection.known() else {
        return (Ending::Client, None);
    };
    let ending = tokio::select! {
        ended = &mut running => return (Ending::Client, told(ended)),
        () = known.ended.cancelled() => Ending::Changed,
        () = silence(connection) => Ending::Idle,
        () = stop.cancelled() => Ending::Stopped,
    };
    if ending == Ending::Stopped {
        settle(connection, &mut running).await;
    }
    farewell(connection, &handle, running, ending).await;
    (ending, None)
}

fn told(ended: Result<(), HandlerError>) -> Option<String> {
    ended.err().map(|error| error.to_string())
}

/// Returns when the connection has had no channel for as long as a client may be silent.
async fn silence(connection: &Connection) {
    let Some(idle) = connection.shared.options.idle else {
        return std::future::pending().await;
    };
    // Without a channel nothing is in flight that one could wait for.
    let idle = idle.min(connection.shared.options.log_in_grace);
    let mut since = tokio::time::Instant::now();
    loop {
        sleep((idle / 4).max(LOOK)).await;
        if connection.channels.now() > 0 {
            since = tokio::time::Instant::now();
        } else if since.elapsed() >= idle {
            return;
        }
    }
}

/// Gives open files time to be closed, and requests that have arrived time to be carried out.
async fn settle(connection: &Connection, running: &mut RunningSession<Handler>) {
    let all = async {
        let closed = async {
            while connection.open_files.load(Ordering::Acquire) > 0 {
                sleep(LOOK).await;
            }
        };
        let most = connection.shared.options.stopping;
        if tokio::time::timeout(most, closed).await.is_err() {
            tracing::debug!("files are still open: what was written of them is kept");
        }
        connection.end_inboxes();
        let ended = async {
            while connection.channels.now() > 0 {
                sleep(LOOK).await;
            }
        };
        // Nobody to tell: what follows is the end either way.
        tokio::time::timeout(most, ended).await.ok();
    };
    tokio::select! {
        () = all => {}
        _ended = running => {}
    }
}

async fn farewell(
    connection: &Connection,
    handle: &Handle,
    running: RunningSession<Handler>,
    ending: Ending,
) {
    connection.end_inboxes();
    let said = async {
        let text = ending.text().to_owned();
        let sent = handle.disconnect(Disconnect::ByApplication, text, String::new());
        if sent.await.is_ok() {
            running.await.ok();
        }
    };
    tokio::time::timeout(FAREWELL, said).await.ok();
}
