//! A server made of raw packets, for everything that an honest server does not do.

use std::future::Future;

use bytes::{Buf as _, Bytes, BytesMut};
use knarr_sftp::codec::{
    Attributes, ClientPacket, Reply, Request, ServerPacket, Status, StatusCode,
};
use knarr_sftp::{Client, ClientOptions, Error};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};

/// Room in the pipe between client and script.
const PIPE_BYTES: usize = 64 * 1024;

pub(crate) struct Script {
    stream: DuplexStream,
    received: BytesMut,
    /// Bytes that may still be sent before the line is cut.
    budget: usize,
}

impl Script {
    /// Starts a client against `script`, which gets its requests once INIT is answered with
    /// version 3 and no extension.
    pub(crate) async fn serve<F>(
        options: ClientOptions,
        script: impl FnOnce(Self) -> F + Send + 'static,
    ) -> Client
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::serve_raw(options, usize::MAX, |mut this| async move {
            this.accept(&[]).await;
            script(this).await;
        })
        .await
        .expect("the script answers INIT")
    }

    /// Starts a client against `script`, which has to answer INIT itself; the line is cut after
    /// `budget` bytes.
    pub(crate) async fn serve_raw<F>(
        options: ClientOptions,
        budget: usize,
        script: impl FnOnce(Self) -> F + Send + 'static,
    ) -> Result<Client, Error>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(script(Self {
            stream: far,
            received: BytesMut::new(),
            budget,
        }));
        let (reader, writer) = split(near);
        Client::over_streams(reader, writer, options).await
    }

    pub(crate) async fn accept(&mut self, extensions: &[(&'static str, &'static str)]) {
        let Some(ClientPacket::Init { version: 3 }) = self.packet().await else {
            return;
        };
        let pair = |(name, version): &(&'static str, &'static str)| {
            (
                Bytes::from_static(name.as_bytes()),
                Bytes::from_static(version.as_bytes()),
            )
        };
        let extensions = extensions.iter().map(pair).collect();
        self.send(&ServerPacket::Version {
            version: 3,
            extensions,
        })
        .await;
    }

    /// The next packet; `None` when the client is gone.
    pub(crate) async fn packet(&mut self) -> Option<ClientPacket> {
        loop {
            if self.received.len() >= 4 {
                let length = usize::try_from((&self.received[..4]).get_u32()).unwrap();
                if self.received.len() >= 4 + length {
                    self.received.advance(4);
                    let body = self.received.split_to(length).freeze();
                    return Some(ClientPacket::decode(body).expect("the client encodes well"));
                }
            }
            if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    pub(crate) async fn request(&mut self) -> Option<(u32, Request)> {
        match self.packet().await? {
            ClientPacket::Request { id, request } => Some((id, request)),
            ClientPacket::Init { .. } => panic!("INIT comes once"),
        }
    }

    pub(crate) async fn reply(&mut self, id: u32, reply: Reply) {
        self.send(&ServerPacket::Reply { id, reply }).await;
    }

    pub(crate) async fn send(&mut self, packet: &ServerPacket) {
        self.raw(&encoded(packet)).await;
    }

    /// Sends bytes as they are, as far as the line is not cut. A client that is gone is no error.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.budget)];
        self.budget -= bytes.len();
        self.stream.write_all(bytes).await.ok();
        if self.budget == 0 {
            self.stream.shutdown().await.ok();
        }
    }

    /// Waits until the client is gone, so that the line is not cut by this side.
    pub(crate) async fn wait(&mut self) {
        while self.packet().await.is_some() {}
    }
}

pub(crate) fn encoded(packet: &ServerPacket) -> Bytes {
    let mut out = BytesMut::new();
    packet.encode(usize::MAX, &mut out).unwrap();
    out.freeze()
}

pub(crate) fn status(code: StatusCode) -> Reply {
    Reply::Status(Status {
        code,
        message: Bytes::new(),
        language: Bytes::new(),
    })
}

pub(crate) fn attributes(size: u64) -> Reply {
    Reply::Attributes(Attributes {
        size: Some(size),
        ..Attributes::default()
    })
}

pub(crate) fn handle() -> Reply {
    Reply::Handle(Bytes::from_static(b"handle"))
}
