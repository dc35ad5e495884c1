//! A connection: how it is made, what the server offers, and how it ends.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::client::answer::{Answer, Expect, Pending};
use crate::client::core::Core;
use crate::client::framer::{Frame, Framer};
use crate::client::{
    ConnectionError, Error, PacketSink, PacketSource, StreamSink, StreamSource, tasks,
};
use crate::codec::{
    ClientPacket, DEFAULT_BODY_LIMIT, ExtendedRequest, Extension, Extensions, Request,
    ServerLimits, ServerPacket, Status, StatusCode, VERSION,
};

/// Bytes of a READ or WRITE where the server does not say what it takes: what every server takes.
const CAUTIOUS_BYTES: u32 = 32 * 1024;

/// Largest READ or WRITE that is ever sent: what OpenSSH takes.
const LARGEST_BYTES: u32 = 255 * 1024;

/// Longest packet that is sent where the server does not say what it takes: what OpenSSH takes. It
/// ends the connection over a longer one.
const SENT_PACKET_BYTES: usize = 256 * 1024;

/// Packets of this length every server takes, whatever it says.
const SMALL_PACKET_BYTES: usize = 34_000;

/// Room for what a packet holds besides its data.
const HEADER_BYTES: u64 = 1024;

/// Limits and time-outs of a connection.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Requests in flight at most. Measured: 256 are safe against every server that was tried, 2,000
    /// deadlock some.
    pub request_limit: u16,
    /// Bytes at most that requests in flight carry or ask for.
    pub byte_limit: u32,
    /// Longest packet that is accepted, in bytes.
    pub packet_limit_bytes: usize,
    /// How long the server may send nothing while a request waits.
    pub idle_limit: Duration,
    /// Extensions that are not used even where the server offers them.
    pub without: Vec<Extension>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            request_limit: 256,
            byte_limit: 32 * 1024 * 1024,
            packet_limit_bytes: DEFAULT_BODY_LIMIT,
            idle_limit: Duration::from_secs(60),
            without: Vec::new(),
        }
    }
}

/// What may be asked of the server at once: what it said, within what is known to be safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLimits {
    /// Longest READ in bytes, at least 1.
    pub read_bytes: u32,
    /// Longest WRITE in bytes, at least 1.
    pub write_bytes: u32,
    /// Handles that may be open at a time, if the server said.
    pub open_handles: Option<u64>,
}

/// A connection to an SFTP server. Clones are the same connection; it ends with the last of them and
/// the last handle.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Arc<Core>,
    receiver: AbortHandle,
    sender: AbortHandle,
    extensions: Extensions,
    limits: TransferLimits,
    round_trip: Option<Duration>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.core.fail(ConnectionError::Closed);
        self.receiver.abort();
        self.sender.abort();
    }
}

impl Client {
    /// Speaks SFTP over `source` and `sink`: exchanges versions and asks for the server's limits.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionLost`], with the reason, if the server does not speak version 3.
    pub async fn start(
        mut source: impl PacketSource + 'static,
        mut sink: impl PacketSink + 'static,
        options: ClientOptions,
    ) -> Result<Self, Error> {
        let mut framer = Framer::new(options.packet_limit_bytes);
        let shaken = shake_hands(&mut source, &mut sink, &mut framer);
        let silent = ConnectionError::Silent {
            seconds: options.idle_limit.as_secs_f64(),
            waiting: 1,
        };
        let offered = timeout(options.idle_limit, shaken)
            .await
            .unwrap_or(Err(silent));
        let mut extensions = offered.map_err(|reason| Error::lost(&Arc::new(reason)))?;
        for extension in options.without {
            extensions.remove(extension);
        }
        let packet_limit = options.packet_limit_bytes;
        let core = Arc::new(Core::new(
            options.request_limit,
            options.byte_limit,
            packet_limit,
        ));
        let receiving = tasks::receive(Arc::clone(&core), source, framer, options.idle_limit);
        let receiver = tokio::spawn(receiving).abort_handle();
        let sending = tasks::send(Arc::clone(&core), sink, receiver.clone());
        let sender = tokio::spawn(sending).abort_handle();
        let limits = TransferLimits::within(ServerLimits::default(), packet_limit);
        let mut shared = Shared {
            core,
            receiver,
            sender,
            extensions,
            limits,
            round_trip: None,
        };
        if extensions.has(Extension::Limits) {
            let asked = Instant::now();
            let said = ask_limits(&shared.core).await?;
            shared.round_trip = Some(asked.elapsed());
            shared.limits = TransferLimits::within(said, packet_limit);
            if let Ok(bytes) = usize::try_from(said.packet_bytes)
                && bytes > 0
            {
                let bytes = bytes.clamp(SMALL_PACKET_BYTES, SENT_PACKET_BYTES);
                shared.core.set_packet_limit(bytes);
            }
        }
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Speaks SFTP over a pair of streams, such as the pipes of a child process.
    ///
    /// # Errors
    ///
    /// Those of [`Self::start`].
    pub async fn over_streams(
        reader: impl AsyncRead + Unpin + Send + 'static,
        writer: impl AsyncWrite + Unpin + Send + 'static,
        options: ClientOptions,
    ) -> Result<Self, Error> {
        Self::start(StreamSource::new(reader), StreamSink::new(writer), options).await
    }

    /// Whether the server offers `extension`, and it was not excluded.
    #[must_use]
    pub fn has(&self, extension: Extension) -> bool {
        self.shared.extensions.has(extension)
    }

    /// What may be asked of the server at once.
    #[must_use]
    pub fn limits(&self) -> TransferLimits {
        self.shared.limits
    }

    /// How long the server took to answer the first question, if one was asked. An idle line and a server
    /// with nothing to do: little more than the time of the line itself.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.shared.round_trip
    }

    /// Requests that wait for their reply. For choosing among connections.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.shared.core.outstanding()
    }

    /// Why the connection ended, or `None` while it is up.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<ConnectionError>> {
        self.shared.core.failure_reason()
    }

    /// Ends the connection at once: everybody who waits gets [`Error::ConnectionLost`].
    pub fn close(&self) {
        self.shared.core.fail(ConnectionError::Closed);
        self.shared.receiver.abort();
        self.shared.sender.abort();
    }

    /// Whether two clients are the same connection.
    #[must_use]
    pub fn is_same_connection(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.shared.core
    }
}

impl TransferLimits {
    fn within(said: ServerLimits, packet_limit: usize) -> Self {
        let packet = match said.packet_bytes {
            0 => u64::MAX,
            bytes => bytes,
        };
        let room = packet
            .min(packet_limit as u64)
            .saturating_sub(HEADER_BYTES)
            .max(1);
        let clamp = |bytes: u64| {
            let wanted = if bytes == 0 {
                u64::from(CAUTIOUS_BYTES)
            } else {
                bytes
            };
            let bytes = wanted.min(room).min(u64::from(LARGEST_BYTES));
            u32::try_from(bytes).unwrap_or(LARGEST_BYTES)
        };
        Self {
            read_bytes: clamp(said.read_bytes),
            write_bytes: clamp(said.write_bytes),
            open_handles: (said.open_handles > 0).then_some(said.open_handles),
        }
    }
}

async fn shake_hands(
    source: &mut impl PacketSource,
    sink: &mut impl PacketSink,
    framer: &mut Framer,
) -> Result<Extensions, ConnectionError> {
    let mut packet = BytesMut::new();
    ClientPacket::Init { version: VERSION }
        .encode(DEFAULT_BODY_LIMIT, &mut packet)
        .map_err(|source| ConnectionError::Codec { source })?;
    let sent = sink.send(packet.freeze()).await;
    sent.map_err(|source: io::Error| ConnectionError::Stream {
        doing: "sending",
        source,
    })?;
    let frame = loop {
        if let Some(frame) = framer.next()? {
            break frame;
        }
        match source.next().await {
            Ok(Some(chunk)) => framer.push(chunk),
            Ok(None) => {
                return Err(ConnectionError::EndOfStream {
                    partial_bytes: framer.partial_bytes(),
                });
            }
            Err(source) => {
                return Err(ConnectionError::Stream {
                    doing: "receiving",
                    source,
                });
            }
        }
    };
    let Frame::Whole(body) = frame else {
        return Err(ConnectionError::NoVersion);
    };
    match ServerPacket::decode(body) {
        Ok(ServerPacket::Version {
            version: VERSION,
            extensions,
        }) => Ok(Extensions::from_pairs(&extensions)),
        Ok(ServerPacket::Version { version, .. }) => Err(ConnectionError::Version { version }),
        Ok(ServerPacket::Reply { .. }) => Err(ConnectionError::NoVersion),
        Err(source) => Err(ConnectionError::Codec { source }),
    }
}

async fn ask_limits(core: &Arc<Core>) -> Result<ServerLimits, Error> {
    let request = Request::Extended(ExtendedRequest::Limits);
    let admission = core.admit(0).await?;
    let pending: Pending = core
        .submit(admission, &request, Expect::Extended)?
        .map_err(|source| Error::Unsendable {
            operation: "say its limits",
            path: None,
            source,
        })?;
    match pending.await? {
        Answer::Extended(payload) => {
            ServerLimits::decode(payload).map_err(|source| fail_decoding(core, source))
        }
        // A server that offers the extension and then refuses it has no limits to tell.
        _ => Ok(ServerLimits::default()),
    }
}

/// A reply that cannot be decoded ends the connection, wherever that is noticed.
pub(crate) fn fail_decoding(core: &Arc<Core>, source: crate::codec::CodecError) -> Error {
    core.fail(ConnectionError::Codec { source });
    core.failure()
}

/// `Ok` if the status says so, else the error.
pub(crate) fn check_status(
    status: &Status,
    operation: &'static str,
    path: Option<&[u8]>,
) -> Result<(), Error> {
    match status.code {
        StatusCode::Ok => Ok(()),
        _ => Err(Error::status(status, operation, path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r48_limits_of_a_server_are_clamped_to_what_is_safe_and_possible() {
        let limits = |packet_bytes, read_bytes| {
            let said = ServerLimits {
                packet_bytes,
                read_bytes,
                ..ServerLimits::default()
            };
            TransferLimits::within(said, DEFAULT_BODY_LIMIT).read_bytes
        };
        assert_eq!(limits(0, 0), CAUTIOUS_BYTES);
        assert_eq!(limits(262_144, 261_120), 255 * 1024);
        assert_eq!(limits(u64::MAX, u64::MAX), 255 * 1024);
        assert_eq!(limits(34_000, 0), CAUTIOUS_BYTES);
        assert_eq!(limits(34_000, 261_120), 34_000 - 1024);
        assert_eq!(limits(1, 1), 1);
    }
}
