//! One SFTP channel on one SSH session.

use knarr_sftp::Client;
use knarr_sftp::codec::Extension;

use crate::ssh::SshSession;

/// A connection; it ends when nobody holds it any more.
#[derive(Debug)]
pub(super) struct Connection {
    client: Client,
    session: SshSession,
    endpoint: String,
}

impl Connection {
    pub(super) const fn new(client: Client, session: SshSession, endpoint: String) -> Self {
        Self {
            client,
            session,
            endpoint,
        }
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn has(&self, extension: Extension) -> bool {
        self.client.has(extension)
    }

    pub(super) fn is_up(&self) -> bool {
        self.client.failure().is_none() && !self.session.is_closed()
    }
}
