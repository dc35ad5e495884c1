//! What the server and its connections may cost.

use std::time::Duration;

use knarr_sftp::server::ServeLimits;

use crate::ssh::penalties::Penalties;
use crate::ssh::startups::Startups;

/// How the SSH server behaves. Where OpenSSH has such an option, the default is OpenSSH's.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// How many may be connected that have not logged in.
    pub startups: Startups,
    /// How long a client may take to log in, from its first byte on.
    pub log_in_grace: Duration,
    /// Failed attempts to log in before a connection ends.
    pub log_in_tries: usize,
    /// How long a failed attempt takes at least, so that its length says nothing.
    pub refusal: Duration,
    /// How sources that misbehave are punished.
    pub penalties: Penalties,
    /// The most connections at once.
    pub connections: usize,
    /// The most SFTP channels on a connection.
    pub channels: usize,
    /// How long a client may be silent that has nothing in flight; nothing for ever.
    pub idle: Option<Duration>,
    /// How often a silent client is asked whether it is there; three times without an answer it is gone.
    pub keepalive: Duration,
    /// How long files that are open may take to be closed when the server stops.
    pub stopping: Duration,
    /// After how many bytes the keys of a connection are changed, in each direction; at most 1 GiB.
    pub rekey_bytes: usize,
    /// What an SFTP channel may cost.
    pub limits: ServeLimits,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            startups: Startups::default(),
            log_in_grace: Duration::from_secs(120),
            log_in_tries: 6,
            refusal: Duration::from_millis(300),
            penalties: Penalties::default(),
            connections: 2000,
            channels: 10,
            idle: Some(Duration::from_secs(900)),
            keepalive: Duration::from_secs(60),
            stopping: Duration::from_secs(5),
            rekey_bytes: 1 << 30,
            limits: ServeLimits {
                request_bytes: 1024 * 1024,
                ..ServeLimits::default()
            },
        }
    }
}
