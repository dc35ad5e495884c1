//! Further connections for a large file: they are made while it flows over the first, and join it.

use std::sync::Arc;
use std::time::Duration;

use knarr_sftp::{Attributes, Handle, OpenFlags};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::sftp::connection::Connection;
use crate::sftp::endpoint::SftpEndpoint;

/// Bytes that make another connection worth its round trip.
const BYTES_PER_CONNECTION: u64 = 8 * 1024 * 1024;

/// After so long no connection joins any more: the later it opens the file, the likelier it is another one
/// that looks the same.
const JOINING: Duration = Duration::from_secs(10);

/// How many connections a file of `size` bytes is worth, the `first` among them.
fn worthwhile(endpoint: &SftpEndpoint, first: &Connection, size: u64) -> usize {
    let wanted = usize::try_from(size / BYTES_PER_CONNECTION).unwrap_or(usize::MAX);
    wanted
        .saturating_add(1)
        .min(endpoint.connections_with(first))
}

/// A file that is opened on further connections.
pub(super) struct Opening {
    pub(super) path: Vec<u8>,
    pub(super) flags: OpenFlags,
    /// The length and the time it has to have, in seconds since 1970; if that matters.
    pub(super) looks: Option<(Option<u64>, Option<u32>)>,
}

impl Opening {
    /// Handles on further connections, as soon as they can be had; as many as `size` bytes are worth beside
    /// the `first`. The connections are made side by side, and to the end also if the file does not wait
    /// for them any more: the next one may.
    pub(super) fn beside(
        self,
        first: &Connection,
        endpoint: &SftpEndpoint,
        size: u64,
    ) -> mpsc::Receiver<Handle> {
        let wanted = worthwhile(endpoint, first, size);
        let (opening, began) = (Arc::new(self), Instant::now());
        let (sender, joining) = mpsc::channel(wanted);
        for index in 1..wanted {
            let (endpoint, opening) = (endpoint.clone(), Arc::clone(&opening));
            let sender = sender.clone();
            tokio::spawn(async move {
                let Some(connection) = endpoint.further_connection(index).await else {
                    return;
                };
                if began.elapsed() > JOINING {
                    return;
                }
                // Who closes the channel hears of every handle that is being opened.
                let Ok(place) = sender.reserve().await else {
                    return;
                };
                if let Some(handle) = opening.open(&connection).await {
                    place.send(handle);
                }
            });
        }
        joining
    }

    async fn open(&self, connection: &Connection) -> Option<Handle> {
        let client = connection.client();
        let opened = client.open(&self.path, self.flags, Attributes::default());
        let handle = opened.await.ok()?;
        let Some(looks) = self.looks else {
            return Some(handle);
        };
        let found = handle.stat().await.ok()?;
        ((found.size, found.modified_seconds()) == looks).then_some(handle)
    }
}
