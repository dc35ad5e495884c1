//! A TCP proxy that misbehaves on command.
//!
//! Constraints:
//!
//! * Faults are placed by byte offset and direction, so they hit the same spot in every run.
//! * Latency is a delay line, not a pause: bytes leave exactly `latency` after they came in, as many
//!   as there are, so the bandwidth stays what the machine gives. What is on the line is bounded
//!   ([`IN_FLIGHT_BYTES`]), like the window of a real connection.
//! * A reset is a real RST on an open connection, not a close.
//!
//! Each direction of a connection has a reader and a writer thread with a queue between them. All
//! waits have a time limit after which they look whether the connection was ended meanwhile.

mod line;
mod pump;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::TestkitError;
use crate::error::must;

/// Most bytes that a delayed direction holds.
pub const IN_FLIGHT_BYTES: usize = 64 << 20;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: uploads.
    ToServer,
    /// From the server to the client: downloads.
    ToClient,
}

/// What happens at the place of a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Both sides get a reset. Bytes that are still under way may be lost with it.
    Reset,
    /// Both sides see an orderly end.
    Close,
    /// The receiver sees the end of this direction; the other direction goes on.
    HalfClose,
    /// This connection carries nothing more, in both directions, and stays open.
    BlackHole,
    /// The byte at the place is inverted; everything goes on.
    Corrupt,
    /// This direction pauses for so long, then goes on.
    Stall(Duration),
}

/// A fault at a fixed place. It happens once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// On the n-th connection since the start, from 1; `None`: on whichever gets there first.
    pub connection: Option<u64>,
    /// In this direction.
    pub direction: Direction,
    /// After so many bytes of it.
    pub at_byte: u64,
    /// This happens.
    pub action: Action,
}

/// What the proxy does with all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Forwards.
    Forward,
    /// Accepts, carries nothing, and says nothing: a cable that was pulled.
    BlackHole,
    /// Resets new connections at once; those that exist go on.
    Refuse,
}

/// What went through so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Connections accepted.
    pub connections: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Bytes given to the server.
    pub to_server: u64,
    /// Bytes given to the client.
    pub to_client: u64,
    /// Faults that have happened.
    pub faults: u64,
}

/// What a [`FaultProxy`] is to be like; see [`FaultProxy::to`].
#[derive(Debug, Clone)]
pub struct FaultProxyBuilder {
    upstream: SocketAddr,
    control: Control,
}

impl FaultProxyBuilder {
    /// Each byte takes so long, in each direction: a round trip takes twice that.
    #[must_use]
    pub fn latency(mut self, one_way: Duration) -> Self {
        self.control.latency = one_way;
        self
    }

    /// At most so many bytes per second, in each direction of each connection.
    #[must_use]
    pub fn throttle(mut self, bytes_per_second: u64) -> Self {
        self.control.throttle = Some(bytes_per_second);
        self
    }

    /// Adds a fault.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.control.faults.push(fault);
        self
    }

    /// Starts the proxy.
    ///
    /// # Panics
    ///
    /// If no loopback port can be had.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> FaultProxy {
        must(self.try_start())
    }

    /// Starts the proxy.
    ///
    /// # Errors
    ///
    /// If no loopback port can be had.
    pub fn try_start(self) -> Result<FaultProxy, TestkitError> {
        let spawn_error = |source| TestkitError::Spawn {
            program: "the fault proxy".to_owned(),
            source,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(spawn_error)?;
        let address = listener.local_addr().map_err(spawn_error)?;
        let shared = Arc::new(Shared {
            upstream: self.upstream,
            control: Mutex::new(self.control),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            to_server: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        });
        let acceptor = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("fault-proxy".to_owned())
                .spawn(move || accept_all(&listener, &shared))
                .map_err(spawn_error)?
        };
        Ok(FaultProxy {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }
}

/// A running proxy on loopback. All connections are reset on drop.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<thread::JoinHandle<()>>,
}

impl FaultProxy {
    /// A proxy to this address.
    #[must_use]
    pub fn to(upstream: SocketAddr) -> FaultProxyBuilder {
        let control = Control {
            behaviour: Behaviour::Forward,
            latency: Duration::ZERO,
            throttle: None,
            faults: Vec::new(),
            links: HashMap::new(),
        };
        FaultProxyBuilder { upstream, control }
    }

    /// A proxy to this port of 127.0.0.1.
    #[must_use]
    pub fn to_port(port: u16) -> FaultProxyBuilder {
        Self::to(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what happens to all connections, at once.
    pub fn set(&self, behaviour: Behaviour) {
        self.shared.lock().behaviour = behaviour;
        self.shared.changed.notify_all();
    }

    /// Changes the latency for bytes that are not yet through.
    pub fn set_latency(&self, one_way: Duration) {
        self.shared.lock().latency = one_way;
    }

    /// Changes the limit of each direction of each connection; `None`: no limit.
    pub fn set_throttle(&self, bytes_per_second: Option<u64>) {
        self.shared.lock().throttle = bytes_per_second;
    }

    /// Adds a fault. On a connection that is past the place it never happens.
    pub fn add_fault(&self, fault: Fault) {
        self.shared.lock().faults.push(fault);
    }

    /// Resets all connections that are open.
    pub fn reset_all(&self) {
        for link in self.links() {
            link.reset();
        }
        self.shared.changed.notify_all();
    }

    /// Ends all connections that are open, in an orderly way.
    pub fn close_all(&self) {
        for link in self.links() {
            link.close();
        }
        self.shared.changed.notify_all();
    }

    /// What went through so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            open: u64::try_from(self.shared.lock().links.len()).unwrap_or(u64::MAX),
            connections: self.shared.connections.load(Ordering::Relaxed),
            to_server: self.shared.to_server.load(Ordering::Relaxed),
            to_client: self.shared.to_client.load(Ordering::Relaxed),
            faults: self.shared.faults.load(Ordering::Relaxed),
        }
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.shared.lock().links.values().map(Arc::clone).collect()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.reset_all();
        // Wakes the acceptor, which then sees that it is to stop.
        TcpStream::connect(self.address).ok();
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
    }
}

#[derive(Debug, Clone)]
struct Control {
    behaviour: Behaviour,
    latency: Duration,
    throttle: Option<u64>,
    faults: Vec<Fault>,
    links: HashMap<u64, Arc<Link>>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    control: Mutex<Control>,
    changed: Condvar,
    stopping: AtomicBool,
    connections: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
    faults: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two sockets of one connection.
#[derive(Debug)]
struct Link {
    number: u64,
    client: TcpStream,
    server: TcpStream,
    dead: AtomicBool,
    black_hole: AtomicBool,
}

impl Link {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    fn reset(&self) {
        self.dead.store(true, Ordering::SeqCst);
        reset(&self.client);
        reset(&self.server);
    }

    fn close(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.client.shutdown(Shutdown::Both).ok();
        self.server.shutdown(Shutdown::Both).ok();
    }
}

/// Sends a RST now, although other threads may be using the socket.
pub(crate) fn reset(stream: &TcpStream) {
    // If the kernel refuses to disconnect, the close of the socket sends the RST: lingering is off.
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).ok();
    if rustix::net::connect_unspec(stream).is_err() {
        stream.shutdown(Shutdown::Read).ok();
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let number = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
        if shared.lock().behaviour == Behaviour::Refuse {
            reset(&client);
            continue;
        }
        let shared = Arc::clone(shared);
        let serve = move || serve(number, client, &shared);
        if thread::Builder::new()
            .name(format!("fault-proxy-{number}"))
            .spawn(serve)
            .is_err()
        {
            return;
        }
    }
}

fn serve(number: u64, client: TcpStream, shared: &Arc<Shared>) {
    let connected = TcpStream::connect_timeout(&shared.upstream, Duration::from_secs(10));
    let Ok(server) = connected else {
        return reset(&client);
    };
    if prepare(&client).and_then(|()| prepare(&server)).is_err() {
        return reset(&client);
    }
    let (dead, black_hole) = (AtomicBool::new(false), AtomicBool::new(false));
    let link = Arc::new(Link {
        number,
        client,
        server,
        dead,
        black_hole,
    });
    shared.lock().links.insert(number, Arc::clone(&link));
    if shared.stopping.load(Ordering::SeqCst) {
        link.reset();
    }
    thread::scope(|scope| {
        scope.spawn(|| pump::run(&link, Direction::ToServer, shared));
        pump::run(&link, Direction::ToClient, shared);
    });
    shared.lock().links.remove(&number);
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(pump::GLANCE))?;
    stream.set_write_timeout(Some(pump::GLANCE))
}
