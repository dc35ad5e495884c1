//! An SFTP channel as the stream of packets that the protocol's server speaks over.
//!
//! Constraints, because of a trap: russh hands on what arrives in the same loop that takes the client's leave to send
//! more (its window). If that loop waited for room in a queue while the requests waited for replies to be sent, and
//! the leave to send them stood behind more requests, nothing would ever move. So
//!
//! * what arrives is taken out of russh by a task of its own, into an inbox;
//! * while nothing is being sent the inbox takes [`SOFT_BYTES`], and the loop, and so the client, waits beyond;
//! * while something is being sent it takes [`HARD_BYTES`]. A client that has sent that much ahead and takes no reply
//!   for [`STALL`] loses its connection.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use knarr_sftp::client::{PacketSink, PacketSource};
use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::Notify;

/// What an inbox holds while nothing is being sent, in bytes.
const SOFT_BYTES: usize = 256 * 1024;
/// What it holds while something is being sent, in bytes.
const HARD_BYTES: usize = 8 * 1024 * 1024;
/// How long a client may take no reply.
const STALL: Duration = Duration::from_secs(300);

/// What arrived and was not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    is_sending: bool,
    ended: bool,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more is taken from the client; what is there still is carried out.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.filled.notify_one();
        self.emptied.notify_one();
    }

    fn sending(&self, is_sending: bool) {
        self.state().is_sending = is_sending;
        // Its limit changed.
        self.emptied.notify_one();
    }

    /// Whether there is room for more, or nothing more is taken.
    async fn room(&self) {
        loop {
            {
                let state = self.state();
                let limit = if state.is_sending {
                    HARD_BYTES
                } else {
                    SOFT_BYTES
                };
                if state.bytes < limit || state.ended {
                    return;
                }
            }
            self.emptied.notified().await;
        }
    }

    fn put(&self, chunk: Bytes) {
        let mut state = self.state();
        if state.ended {
            return;
        }
        state.bytes += chunk.len();
        state.chunks.push_back(chunk);
        drop(state);
        self.filled.notify_one();
    }

    async fn take(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.state();
                if let Some(chunk) = state.chunks.pop_front() {
                    state.bytes -= chunk.len();
                    drop(state);
                    self.emptied.notify_one();
                    return Some(chunk);
                }
                if state.ended {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }
}

/// Takes what arrives out of russh, until the client ends it or nobody wants it any more.
pub(crate) async fn receive(mut channel: ChannelReadHalf, inbox: &Inbox) {
    loop {
        inbox.room().await;
        match channel.wait().await {
            Some(ChannelMsg::Data { data }) => inbox.put(data),
            Some(ChannelMsg::Eof | ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    inbox.end();
}

/// The packets of the client.
pub(crate) struct Source(pub(crate) Arc<Inbox>);

impl PacketSource for Source {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.0.take().await)
    }
}

/// The packets to the client.
pub(crate) struct Sink {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) channel: Arc<ChannelWriteHalf<Msg>>,
    /// Ends what is being sent.
    pub(crate) cut: tokio_util::sync::CancellationToken,
}

impl PacketSink for Sink {
    async fn send(&mut self, packets: Bytes) -> io::Result<()> {
        self.inbox.sending(true);
        let sent = tokio::select! {
            sent = tokio::time::timeout(STALL, self.channel.data_bytes(packets)) => sent,
            () = self.cut.cancelled() => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        self.inbox.sending(false);
        match sent {
            Ok(sent) => sent.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes no replies",
            )),
        }
    }
}
