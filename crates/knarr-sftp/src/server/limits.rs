//! What a connection may cost.

use std::time::Duration;

use crate::codec::ServerLimits;
use crate::server::Operations;

/// Longest READ and WRITE, in bytes: what OpenSSH has, so that clients tuned for it fit.
const TRANSFER_BYTES: usize = 255 * 1024;

/// Limits of one connection.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Longest body of a packet from the client, in bytes. One that announces more loses its connection.
    pub packet_bytes: usize,
    /// Longest payload of a READ that is answered in full, in bytes; longer ones are answered short.
    pub read_bytes: usize,
    /// Longest payload of a WRITE that is announced, in bytes.
    pub write_bytes: usize,
    /// Requests that wait to be carried out, in bytes, each counted with some overhead. Receiving stops there.
    pub request_bytes: usize,
    /// Replies that wait to be sent, in bytes. Nothing more is carried out beyond that.
    pub reply_bytes: usize,
    /// Files and directories that are open at a time.
    pub open_handles: usize,
    /// Names in one reply to READDIR.
    pub directory_names: usize,
    /// How long a client may be silent that has nothing in flight; `None` for ever.
    pub idle: Option<Duration>,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            packet_bytes: crate::codec::DEFAULT_BODY_LIMIT,
            read_bytes: TRANSFER_BYTES,
            write_bytes: TRANSFER_BYTES,
            request_bytes: 2 * 1024 * 1024,
            reply_bytes: 1024 * 1024,
            open_handles: 1000,
            directory_names: 128,
            idle: None,
        }
    }
}

impl ServeLimits {
    /// What `limits@openssh.com` says of them.
    #[must_use]
    pub fn announced(&self) -> ServerLimits {
        ServerLimits {
            // OpenSSH counts the length field too.
            packet_bytes: self.packet_bytes as u64,
            read_bytes: self.read_bytes as u64,
            write_bytes: self.write_bytes as u64,
            open_handles: self.open_handles as u64,
        }
    }
}

/// Where requests are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Execution {
    /// On the task that serves the connection: for file systems that never block, and for a process with one
    /// connection, where it saves every hand-over between threads.
    #[default]
    OnThisTask,
    /// Where they may block: on a thread for blocking work, as long as several requests are waiting; where there are
    /// only a few, in place, while the other tasks of the thread go on elsewhere. A connection without requests, and
    /// one whose client does not take its replies, holds no thread.
    OnBlockingThread,
}

/// How a connection is served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// What it may cost.
    pub limits: ServeLimits,
    /// Where requests are carried out.
    pub execution: Execution,
    /// What may be asked for at all; the rest is refused, and extensions of it are not announced.
    pub allowed: Operations,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            limits: ServeLimits::default(),
            execution: Execution::default(),
            allowed: Operations::all(),
        }
    }
}
