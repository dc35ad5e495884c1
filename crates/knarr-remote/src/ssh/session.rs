//! Makes a connection, through jump hosts where wanted, and opens SFTP channels on it.

use std::sync::Arc;
use std::time::Duration;

use knarr_sftp::Client;
use knarr_sftp::client::ClientOptions;
use russh::Disconnect;
use russh::client::{self, Handle};
use russh::keys::Algorithm;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ssh::algorithms::{self, HOST_KEYS, host_keys_known_first, same_type};
use crate::ssh::channel::Answer;
use crate::ssh::handler::{Ending, Handler, HandlerError, Judge, Presented};
use crate::ssh::known_hosts::host_with_port;
use crate::ssh::{
    HostKeyPolicy, KnownHosts, SftpError, SftpSink, SftpSource, SshError, SshOptions, auth,
};

/// What the server may send before we say that we took it, in bytes. It bounds what a connection can
/// hold in memory, and divided by the round trip the speed of a download.
const WINDOW_BYTES: u32 = 32 * 1024 * 1024;

/// The longest packet: what a TCP segment can hold.
const PACKET_BYTES: u32 = 65_535;

/// What is read from the socket at once, in bytes; larger packets are read past this buffer.
const READ_BYTES: usize = 16 * 1024;

/// Messages of a channel that may wait for the task that takes them. That task always takes; the
/// room only saves changes between tasks.
const CHANNEL_MESSAGES: usize = 256;

/// How we introduce ourselves. The comment is for servers that ask by it in which order the arguments
/// of an SFTP SYMLINK come: the draft has one and OpenSSH the other, which is ours (see
/// [`knarr_sftp::codec::Request::Symlink`]).
const IDENTIFICATION: &str = concat!(
    "SSH-2.0-Knarr_",
    env!("CARGO_PKG_VERSION"),
    " OpenSSH-symlink-order"
);

/// How long a goodbye may take.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// A stream to a server: a socket, or a channel through another server.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection to a server that was verified and let us in. It ends when it is dropped.
pub struct SshSession {
    handle: Option<Handle<Handler>>,
    target: String,
    connect_timeout: Duration,
    ending: Ending,
    /// The session that this one goes through; ends after it.
    through: Option<Box<Self>>,
}

impl std::fmt::Debug for SshSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshSession")
            .field("target", &self.target)
            .field("through", &self.through)
            .finish_non_exhaustive()
    }
}

impl SshSession {
    /// Connects, checks the server, and logs in; through `options.jumps` first.
    ///
    /// # Errors
    /// An [`SshError`] that names the server that it is about.
    pub async fn connect(options: &SshOptions) -> Result<Self, SshError> {
        let mut through: Option<Self> = None;
        for hop in options.jumps.iter().chain([options]) {
            through = Some(Self::connect_hop(hop, through).await?);
        }
        through.ok_or_else(|| SshError::NotOffered {
            target: options.target(),
            what: "any way to it".to_owned(),
            source: None,
        })
    }

    /// Opens an SFTP channel and starts a client on it. The first packet travels with the request for
    /// the subsystem, as waiting for that would cost a round trip.
    ///
    /// # Errors
    /// [`SftpError::Ssh`] with [`SshError::NotOffered`] if the server has no SFTP for us, and as
    /// [`SshError::Unreachable`], [`SshError::Silent`]; [`SftpError::Start`] if it does not speak it.
    pub async fn start_sftp(&self, options: ClientOptions) -> Result<Client, SftpError> {
        let answer = Arc::new(Answer::default());
        let opened = timeout(self.connect_timeout, self.open_subsystem("sftp", &answer)).await;
        let (source, sink) = match opened {
            Ok(opened) => opened?,
            Err(_elapsed) => return Err(self.silent("opening an SFTP channel").into()),
        };
        match Client::start(source, sink, options).await {
            Err(_) if answer.is_refusal() => Err(SftpError::Ssh(SshError::NotOffered {
                target: self.target.clone(),
                what: "the subsystem `sftp`".to_owned(),
                source: None,
            })),
            started => started.map_err(SftpError::Start),
        }
    }

    fn silent(&self, doing: &'static str) -> SshError {
        SshError::Silent {
            target: self.target.clone(),
            doing,
            limit: self.connect_timeout,
        }
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.handle.as_ref().is_none_or(Handle::is_closed)
    }

    /// Why the connection ended, as far as known.
    #[must_use]
    pub fn ending(&self) -> Option<String> {
        self.ending.lock().ok().and_then(|ending| ending.clone())
    }

    async fn open_subsystem(
        &self,
        name: &str,
        answer: &Arc<Answer>,
    ) -> Result<(SftpSource, SftpSink), SshError> {
        let handle = self
            .handle
            .as_ref()
            .ok_or_else(|| self.lost(russh::Error::Disconnect))?;
        let channel = handle.channel_open_session().await;
        let channel = channel.map_err(|source| self.not_opened("a session channel", source))?;
        let (receiving, sending) = channel.split();
        let asked = sending.request_subsystem(true, name).await;
        asked.map_err(|source| self.lost(source))?;
        Ok((
            SftpSource {
                channel: receiving,
                ending: Arc::clone(&self.ending),
                answer: Arc::clone(answer),
            },
            SftpSink { channel: sending },
        ))
    }

    async fn connect_hop(options: &SshOptions, through: Option<Self>) -> Result<Self, SshError> {
        let target = options.target();
        let mut excluded: Vec<Algorithm> = Vec::new();
        let mut first_mismatch = None;
        loop {
            let presented = Presented::default();
            let attempt = Self::shake_hands(options, through.as_ref(), &excluded, &presented).await;
            match attempt {
                Ok((mut handle, ending)) => {
                    auth::log_in(&mut handle, options).await?;
                    let through = through.map(Box::new);
                    let connect_timeout = options.connect_timeout;
                    let handle = Some(handle);
                    return Ok(Self {
                        handle,
                        target,
                        connect_timeout,
                        ending,
                        through,
                    });
                }
                // A pin does not say of which type its key is, and a server has one key of each.
                Err(mismatch @ SshError::HostKeyChanged { .. })
                    if matches!(options.host_key, HostKeyPolicy::Pinned(_)) =>
                {
                    let algorithm = presented.lock().ok().and_then(|mut slot| slot.take());
                    let first = first_mismatch.get_or_insert(mismatch);
                    match algorithm {
                        Some(algorithm) if !excluded.contains(&algorithm) => {
                            excluded.push(algorithm);
                        }
                        _ => return Err(std::mem::replace(first, unreachable_after(&target))),
                    }
                }
                Err(error) => {
                    return Err(match (first_mismatch, &error) {
                        (Some(mismatch), SshError::Negotiation { .. }) => mismatch,
                        _ => error,
                    });
                }
            }
        }
    }

    async fn shake_hands(
        options: &SshOptions,
        through: Option<&Self>,
        excluded: &[Algorithm],
        presented: &Presented,
    ) -> Result<(Handle<Handler>, Ending), SshError> {
        let target = options.target();
        let judge = judge(options).await?;
        let config = Arc::new(configuration(options, &judge, excluded));
        if config.preferred.key.is_empty() {
            return Err(SshError::Negotiation {
                target,
                source: Box::new(russh::Error::UnknownKey),
            });
        }
        let stream = open_stream(options, through).await?;
        let ending = Ending::default();
        let handler = Handler {
            host: options.host.clone(),
            port: options.port,
            target: target.clone(),
            judge,
            clock: Arc::clone(&options.clock),
            ending: Arc::clone(&ending),
            presented: Arc::clone(presented),
        };
        let shaken = client::connect_stream(config, stream, handler);
        match timeout(options.connect_timeout, shaken).await {
            Ok(Ok(handle)) => Ok((handle, ending)),
            Ok(Err(HandlerError::Ours(error))) => Err(*error),
            Ok(Err(HandlerError::Russh(source))) => Err(handshake_error(target, source)),
            Err(_elapsed) => Err(SshError::Silent {
                target,
                doing: "exchanging keys",
                limit: options.connect_timeout,
            }),
        }
    }

    fn lost(&self, source: russh::Error) -> SshError {
        SshError::Unreachable {
            target: self.target.clone(),
            source: Box::new(source),
        }
    }

    fn not_opened(&self, what: &str, source: russh::Error) -> SshError {
        match source {
            russh::Error::ChannelOpenFailure(_) => SshError::NotOffered {
                target: self.target.clone(),
                what: what.to_owned(),
                source: Some(Box::new(source)),
            },
            source => self.lost(source),
        }
    }
}

impl Drop for SshSession {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else {
            return;
        };
        if handle.is_closed() {
            return;
        }
        // Outside of a runtime the socket just closes, which the server understands, too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let through = self.through.take();
            runtime.spawn(async move {
                let goodbye = handle.disconnect(Disconnect::ByApplication, "", "");
                if timeout(GOODBYE_LIMIT, goodbye).await.is_err() {
                    tracing::debug!("a session ended without a goodbye");
                }
                drop(through);
            });
        }
    }
}

fn unreachable_after(target: &str) -> SshError {
    SshError::Negotiation {
        target: target.to_owned(),
        source: Box::new(russh::Error::UnknownKey),
    }
}

async fn judge(options: &SshOptions) -> Result<Judge, SshError> {
    let files = match &options.host_key {
        HostKeyPolicy::Pinned(pins) => return Ok(Judge::Pinned(pins.clone())),
        HostKeyPolicy::KnownHosts { files } => files.clone(),
    };
    let host = host_with_port(&options.host, options.port);
    let shown: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    let shown = if shown.is_empty() {
        "a known_hosts file".to_owned()
    } else {
        shown.join(" or ")
    };
    let loaded = tokio::task::spawn_blocking(move || KnownHosts::load(&files)).await;
    match loaded {
        Ok(Ok(hosts)) => Ok(Judge::Known {
            hosts,
            files: shown,
        }),
        Ok(Err(source)) => Err(SshError::KnownHosts { host, source }),
        Err(source) => Err(SshError::Unreachable {
            target: options.target(),
            source: Box::new(source),
        }),
    }
}

fn configuration(options: &SshOptions, judge: &Judge, excluded: &[Algorithm]) -> client::Config {
    let (known, certificates) = match judge {
        Judge::Known { hosts, .. } => {
            let known = hosts.key_types(&options.host, options.port);
            let certificates = if hosts.has_authority(&options.host, options.port) {
                HOST_KEYS.to_vec()
            } else {
                Vec::new()
            };
            (known, certificates)
        }
        Judge::Pinned(_) => (Vec::new(), Vec::new()),
    };
    let mut host_keys = host_keys_known_first(&known);
    host_keys.retain(|key| !excluded.iter().any(|excluded| same_type(key, excluded)));
    client::Config {
        client_id: russh::SshId::Standard(IDENTIFICATION.into()),
        window_size: WINDOW_BYTES,
        maximum_packet_size: PACKET_BYTES,
        channel_buffer_size: CHANNEL_MESSAGES,
        preferred: algorithms::preferred(&options.ciphers, host_keys, certificates),
        keepalive_interval: Some(options.keepalive_interval),
        keepalive_max: usize::from(options.keepalive_limit).max(1),
        // Keepalives are not sent while the socket is full; this ends such a session. It never ends
        // one that is merely idle, as the answers to keepalives count as activity.
        inactivity_timeout: Some(options.silence_limit()),
        nodelay: true,
        ..client::Config::default()
    }
}

async fn open_stream(
    options: &SshOptions,
    through: Option<&SshSession>,
) -> Result<Box<dyn Stream>, SshError> {
    let target = options.target();
    let silent = |doing| SshError::Silent {
        target: options.target(),
        doing,
        limit: options.connect_timeout,
    };
    let Some(jump) = through else {
        let connecting = TcpStream::connect((options.host.as_str(), options.port));
        let connected = timeout(options.connect_timeout, connecting).await;
        let connected = connected.map_err(|_elapsed| silent("connecting"))?;
        let unreachable = |source| SshError::Unreachable {
            target: target.clone(),
            source: Box::new(source),
        };
        let socket = connected.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        // russh reads the length of a packet and the packet apart: two system calls for each reply.
        return Ok(Box::new(BufReader::with_capacity(READ_BYTES, socket)));
    };
    let handle = jump
        .handle
        .as_ref()
        .ok_or_else(|| jump.lost(russh::Error::Disconnect))?;
    let opening = handle.channel_open_direct_tcpip(
        options.host.as_str(),
        u32::from(options.port),
        "127.0.0.1",
        0,
    );
    let opened = timeout(options.connect_timeout, opening).await;
    let opened = opened.map_err(|_elapsed| silent("connecting through the jump host"))?;
    match opened {
        Ok(channel) => Ok(Box::new(channel.into_stream())),
        // The jump host says that it could not connect, or that we may not ask it to.
        Err(
            source @ russh::Error::ChannelOpenFailure(russh::ChannelOpenFailure::ConnectFailed),
        ) => Err(SshError::Unreachable {
            target,
            source: Box::new(source),
        }),
        Err(source) => Err(jump.not_opened(&format!("a way to {target}"), source)),
    }
}

fn handshake_error(target: String, source: russh::Error) -> SshError {
    match source {
        russh::Error::IO(_)
        | russh::Error::HUP
        | russh::Error::Disconnect
        | russh::Error::ConnectionTimeout
        | russh::Error::KeepaliveTimeout
        | russh::Error::InactivityTimeout
        | russh::Error::Elapsed(_)
        | russh::Error::Join(_)
        | russh::Error::SendError
        | russh::Error::RecvError => SshError::Unreachable {
            target,
            source: Box::new(source),
        },
        source => SshError::Negotiation {
            target,
            source: Box::new(source),
        },
    }
}
