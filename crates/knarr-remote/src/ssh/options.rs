//! How to connect.

use std::sync::Arc;
use std::time::Duration;

use knarr_core::Clock;

use crate::ssh::{Authentication, HostKeyPolicy};

/// A cipher. There are no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// `aes128-gcm@openssh.com`: the fastest with hardware support.
    Aes128Gcm,
    /// `aes256-gcm@openssh.com`.
    Aes256Gcm,
    /// `chacha20-poly1305@openssh.com`: the fastest without hardware support.
    ChaCha20Poly1305,
    /// `aes256-ctr`, with a MAC over SHA-2: for servers without any of the others.
    Aes256Ctr,
    /// `aes128-ctr`, with a MAC over SHA-2.
    Aes128Ctr,
}

impl Cipher {
    /// All of them, as they are asked for unless said otherwise.
    pub const PREFERENCE: [Self; 5] = [
        Self::Aes128Gcm,
        Self::Aes256Gcm,
        Self::ChaCha20Poly1305,
        Self::Aes256Ctr,
        Self::Aes128Ctr,
    ];
}

/// How to connect to one server.
#[derive(Debug, Clone)]
pub struct SshOptions {
    /// A host name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    /// How to log in.
    pub authentication: Authentication,
    /// By what the server is recognised.
    pub host_key: HostKeyPolicy,
    /// The ciphers to ask for, best first.
    pub ciphers: Vec<Cipher>,
    /// How long the server may be silent before it is asked whether it is still there.
    pub keepalive_interval: Duration,
    /// How many such questions may stay without an answer before the connection counts as lost.
    pub keepalive_limit: u16,
    /// How long connecting, the key exchange, and each step of the log-in may take.
    pub connect_timeout: Duration,
    /// The servers to go through, nearest first; their own lists are not looked at.
    pub jumps: Vec<Self>,
    /// The clock that certificates are checked by.
    pub clock: Arc<dyn Clock>,
}

impl SshOptions {
    /// Options with the usual limits.
    #[must_use]
    pub fn new(
        host: impl Into<String>,
        port: u16,
        user: impl Into<String>,
        authentication: Authentication,
        host_key: HostKeyPolicy,
    ) -> Self {
        Self {
            host: host.into(),
            port,
            user: user.into(),
            authentication,
            host_key,
            ciphers: Cipher::PREFERENCE.to_vec(),
            keepalive_interval: Duration::from_secs(15),
            keepalive_limit: 3,
            connect_timeout: Duration::from_secs(30),
            jumps: Vec::new(),
            clock: Arc::new(knarr_core::time::SystemClock),
        }
    }

    /// `user@host:port`, for messages.
    #[must_use]
    pub fn target(&self) -> String {
        let host = &self.host;
        if host.contains(':') {
            format!("{}@[{host}]:{}", self.user, self.port)
        } else {
            format!("{}@{host}:{}", self.user, self.port)
        }
    }

    /// How long a connection may be dead before that is noticed.
    #[must_use]
    pub fn silence_limit(&self) -> Duration {
        self.keepalive_interval * (u32::from(self.keepalive_limit) + 1)
    }
}
