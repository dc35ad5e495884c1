//! Loopback ports that stay ours while a server is down.
//!
//! Constraints: tests run as many processes at once, and a server is killed and started again on
//! the *same* port. Asking the system for port 0 would give a port out of the ephemeral range, which
//! any outgoing connection may take while the server is down. So ports come from below that range,
//! and each is reserved with a file lock, which the system gives back when its holder dies.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::TestkitError;

const FIRST: u16 = 21_000;
const END: u16 = 32_000;

/// A loopback port that no other user of the testkit gets while this value lives.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    _lock: File,
}

impl ReservedPort {
    /// Reserves a free port.
    ///
    /// # Errors
    ///
    /// If the lock directory cannot be made, or no port of the range is free.
    pub fn new() -> Result<Self, TestkitError> {
        let user = rustix::process::getuid().as_raw();
        let directory = std::env::temp_dir().join(format!("knarr-testkit-ports-{user}"));
        fs::create_dir_all(&directory).map_err(TestkitError::file("making", &directory))?;
        let count = END - FIRST;
        // Neighbouring processes start far apart, so that they seldom meet.
        let start = std::process::id().wrapping_mul(97);
        for step in 0..u32::from(count) {
            let offset = start.wrapping_add(step) % u32::from(count);
            let number = FIRST + u16::try_from(offset).unwrap_or(0);
            let path = directory.join(number.to_string());
            let lock = File::create(&path).map_err(TestkitError::file("opening", &path))?;
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        Err(TestkitError::NoPort {
            first: FIRST,
            end: END,
        })
    }

    /// The port number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The address with 127.0.0.1.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}
