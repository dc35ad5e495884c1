//! Takes connections.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use russh::server::Config;
use russh::{MethodKind, MethodSet, SshId};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::event::{Refusal, ServeEvent, ServeObserver, SessionName};
use crate::ssh::algorithms::preferred;
use crate::ssh::connection;
use crate::ssh::penalties::PenaltyTable;
use crate::ssh::startups::Count;
use crate::ssh::{HostKeys, ServerOptions};
use crate::users::Users;
use crate::users::password::PasswordChecks;

/// How much a client may send ahead on a channel, in bytes.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The longest packet, in bytes: what OpenSSH has.
const PACKET_BYTES: u32 = 32 * 1024;
/// Messages of a channel that russh keeps before it waits.
const CHANNEL_MESSAGES: usize = 32;
/// How long to wait when the system has no descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// The server.
#[derive(Debug)]
pub struct SshServer {
    shared: Arc<Shared>,
}

/// What its connections share.
pub(crate) struct Shared {
    pub(crate) options: ServerOptions,
    pub(crate) users: Arc<Users>,
    pub(crate) observer: Arc<dyn ServeObserver>,
    pub(crate) config: Arc<Config>,
    pub(crate) passwords: PasswordChecks,
    /// Connections, and those of them that have not logged in.
    pub(crate) connections: Count,
    pub(crate) waiting: Count,
    pub(crate) tasks: TaskTracker,
    penalties: Mutex<PenaltyTable>,
    numbers: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("options", &self.options)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn penalties(&self) -> MutexGuard<'_, PenaltyTable> {
        self.penalties
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl SshServer {
    /// A server for these users.
    #[must_use]
    pub fn new(
        options: ServerOptions,
        users: Arc<Users>,
        host_keys: &HostKeys,
        observer: Arc<dyn ServeObserver>,
    ) -> Self {
        let config = Arc::new(config(&options, host_keys));
        let penalties = PenaltyTable::new(options.penalties.clone());
        Self {
            shared: Arc::new(Shared {
                options,
                users,
                observer,
                config,
                passwords: PasswordChecks::default(),
                connections: Count::default(),
                waiting: Count::default(),
                tasks: TaskTracker::new(),
                penalties: Mutex::new(penalties),
                numbers: AtomicU64::new(0),
            }),
        }
    }

    /// How many connections there are now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.now()
    }

    /// Serves what comes to `listeners` until `stop` is cancelled, and then until the connections have ended, which
    /// takes little longer than [`ServerOptions::stopping`]. Needs a runtime with threads for blocking work.
    pub async fn run(&self, listeners: Vec<TcpListener>, stop: CancellationToken) {
        let tasks = &self.shared.tasks;
        for listener in listeners {
            let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
            tasks.spawn(async move { accept(&shared, &listener, &stop).await });
        }
        stop.cancelled().await;
        tasks.close();
        // Twice the time in which each connection ends by itself: a file system that hangs must not hold us.
        let most = self.shared.options.stopping * 2 + Duration::from_secs(2);
        if tokio::time::timeout(most, tasks.wait()).await.is_err() {
            tracing::warn!("connections did not end in time");
        }
    }
}

fn config(options: &ServerOptions, host_keys: &HostKeys) -> Config {
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    methods.push(MethodKind::Password);
    methods.push(MethodKind::KeyboardInteractive);
    Config {
        server_id: SshId::Standard("SSH-2.0-Knarr".into()),
        methods,
        auth_rejection_time: options.refusal,
        // Everyone begins by asking for the methods.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: host_keys.keys().to_vec(),
        limits: russh::Limits::new(
            options.rekey_bytes.min(1 << 30),
            options.rekey_bytes.min(1 << 30),
            Duration::from_secs(3600),
        ),
        window_size: WINDOW_BYTES,
        maximum_packet_size: PACKET_BYTES,
        channel_buffer_size: CHANNEL_MESSAGES,
        event_buffer_size: CHANNEL_MESSAGES,
        preferred: preferred(&host_keys.algorithms()),
        // The question for the methods counts as one.
        max_auth_attempts: options.log_in_tries + 1,
        inactivity_timeout: options.idle.map(|idle| idle + options.keepalive),
        keepalive_interval: Some(options.keepalive),
        keepalive_max: 3,
        nodelay: true,
        ..Config::default()
    }
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener, stop: &CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => take(shared, stream, peer, stop),
            // A client that was gone before we looked, or no descriptor left.
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

fn take(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, stop: &CancellationToken) {
    let refused = if shared.penalties().holds(peer.ip(), Instant::now()) {
        Some(Refusal::Penalty)
    } else if shared.connections.now() >= shared.options.connections {
        Some(Refusal::Full)
    } else if !shared.options.startups.take(shared.waiting.now(), dice()) {
        Some(Refusal::Startups)
    } else {
        None
    };
    if let Some(reason) = refused {
        shared
            .observer
            .observe(&ServeEvent::Refused { peer, reason });
        return;
    }
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%peer, %error, "cannot set up a connection");
        return;
    }
    let name = SessionName {
        number: shared.numbers.fetch_add(1, Ordering::Relaxed) + 1,
        peer,
    };
    let (counted, waits) = (shared.connections.enter(), shared.waiting.enter());
    let (owned, stop) = (Arc::clone(shared), stop.clone());
    shared.tasks.spawn(async move {
        connection::run(owned, stream, name, waits, stop).await;
        drop(counted);
    });
}

/// Small packets go at once, and a client that vanished is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    #[cfg(target_os = "linux")]
    {
        rustix::net::sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
        rustix::net::sockopt::set_tcp_keepintvl(stream, Duration::from_secs(20))?;
        rustix::net::sockopt::set_tcp_keepcnt(stream, 6)?;
    }
    Ok(())
}

fn dice() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness the first ones are turned away.
    aws_lc_rs::rand::fill(&mut bytes).map_or(0, |()| u32::from_le_bytes(bytes))
}
