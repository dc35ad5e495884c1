//! Tells systemd how the node is: ready, reloading, stopping, alive.
//!
//! The protocol is one datagram to the socket that `$NOTIFY_SOCKET` names. Without it nothing is told.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

/// Where to tell it.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Jobs are at work, the control socket answers.
    Ready,
    /// The configuration is read again; [`Told::Ready`] follows.
    Reloading,
    /// It is about to end.
    Stopping,
    /// It is alive.
    Alive,
}

impl Notifier {
    /// What systemd gave to the process: the socket, and within how many microseconds it wants to hear that
    /// the process is alive.
    #[must_use]
    pub fn new(socket: Option<&OsStr>, watchdog_microseconds: Option<&str>) -> Self {
        let socket = socket.filter(|path| !path.is_empty()).and_then(|path| {
            let address = match path.as_bytes().strip_prefix(b"@") {
                #[cfg(target_os = "linux")]
                Some(name) => {
                    use std::os::linux::net::SocketAddrExt as _;
                    SocketAddr::from_abstract_name(name)
                }
                #[cfg(not(target_os = "linux"))]
                Some(_name) => return None,
                None => SocketAddr::from_pathname(Path::new(path)),
            };
            Some((UnixDatagram::unbound().ok()?, address.ok()?))
        });
        let watchdog = watchdog_microseconds
            .and_then(|text| text.parse().ok())
            .filter(|period| *period > 0)
            .map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// How often to say that the process is alive: half of what is allowed.
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        self.socket.as_ref()?;
        self.watchdog.map(|period| period / 2)
    }

    /// Tells it. What cannot be told is logged: nothing may stop for it.
    pub fn tell(&self, what: Told) {
        let Some((socket, address)) = &self.socket else {
            return;
        };
        let sent = socket.send_to_addr(text(what).as_bytes(), address);
        if let Err(error) = sent.and_then(|sent| match sent {
            0 => Err(io::ErrorKind::WriteZero.into()),
            _ => Ok(()),
        }) {
            tracing::warn!(%error, "systemd cannot be told");
        }
    }
}

fn text(what: Told) -> String {
    match what {
        Told::Ready => "READY=1\n".to_owned(),
        Told::Reloading => {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
            format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n")
        }
        Told::Stopping => "STOPPING=1\n".to_owned(),
        Told::Alive => "WATCHDOG=1\n".to_owned(),
    }
}
