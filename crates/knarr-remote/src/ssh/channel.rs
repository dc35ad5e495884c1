//! An SFTP channel as the stream of packets that [`knarr_sftp::Client`] speaks over.
//!
//! The receiving half hands out what russh received as it is; the sending half hands whole buffers to
//! the channel, which waits for the server's window. Neither holds anything back: what waits is counted
//! by the client above.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use knarr_sftp::client::{PacketSink, PacketSource};
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};

use crate::ssh::handler::Ending;

/// Longest piece of the server's standard error that is logged, in bytes.
const LOGGED_BYTES: usize = 1024;

/// What the server sends.
pub struct SftpSource {
    pub(super) channel: ChannelReadHalf,
    pub(super) ending: Ending,
    pub(super) answer: Arc<Answer>,
}

/// What the server said to the request for the subsystem.
#[derive(Debug, Default)]
pub(super) struct Answer {
    accepted: AtomicBool,
    refused: AtomicBool,
}

impl Answer {
    /// Whether it refused, or ended the channel instead of an answer.
    pub(super) fn is_refusal(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    fn accept(&self) {
        self.accepted.store(true, Ordering::Release);
    }

    fn end(&self) {
        let unanswered = !self.accepted.load(Ordering::Acquire);
        self.refused.fetch_or(unanswered, Ordering::AcqRel);
    }
}

/// What is sent to the server.
pub struct SftpSink {
    pub(super) channel: ChannelWriteHalf<Msg>,
}

impl std::fmt::Debug for SftpSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SftpSource").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SftpSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SftpSink").finish_non_exhaustive()
    }
}

impl PacketSource for SftpSource {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => return Ok(Some(data)),
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    let shown = data.get(..LOGGED_BYTES).unwrap_or(&data).escape_ascii();
                    tracing::debug!(%shown, "the SFTP server says on its standard error");
                }
                Some(ChannelMsg::Success) => self.answer.accept(),
                Some(ChannelMsg::Failure | ChannelMsg::Eof | ChannelMsg::Close) => {
                    self.answer.end();
                    return Ok(None);
                }
                Some(_) => {}
                None => {
                    let reason = self.ending.lock().ok().and_then(|ending| ending.clone());
                    return match reason {
                        Some(reason) => {
                            Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason))
                        }
                        None => Ok(None),
                    };
                }
            }
        }
    }
}

impl PacketSink for SftpSink {
    async fn send(&mut self, packets: Bytes) -> io::Result<()> {
        let sent = self.channel.data_bytes(packets).await;
        sent.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))
    }
}
