//! A server for a temporary directory at the other end of a pipe.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{Buf as _, BytesMut};
use knarr_serve::files::{
    Event, Execution, LocalFiles, LocalOptions, Observer, Policy, Reach, ServeError, ServeOptions,
    Summary, Uploads, serve_streams,
};
use knarr_sftp::codec::{ClientPacket, Reply, Request, ServerPacket};
use knarr_sftp::{Client, ClientOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::task::JoinHandle;

/// Room in the pipe between client and server, in each direction.
pub(crate) const PIPE_BYTES: usize = 64 * 1024;

/// What was observed, as lines.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Vec<String>>);

impl Seen {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Seen {
    fn observe(&self, event: &Event<'_>) {
        let line = match event {
            Event::Request {
                operation,
                path,
                outcome,
                ..
            } => {
                let outcome = if outcome.is_ok() { "done" } else { "refused" };
                format!("{} {} {outcome}", operation.name(), path.escape_ascii())
            }
            Event::Uploaded { path, length_bytes } => {
                format!("uploaded {} {length_bytes}", path.escape_ascii())
            }
            Event::Abandoned {
                path,
                written_bytes,
            } => format!("abandoned {} {written_bytes}", path.escape_ascii()),
            _ => return,
        };
        self.0.lock().unwrap().push(line);
    }
}

/// A directory that is served to any number of clients.
pub(crate) struct Served {
    directory: tempfile::TempDir,
    files: Arc<LocalFiles>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) options: ServeOptions,
}

pub(crate) type Ended = JoinHandle<Result<Summary, ServeError>>;

impl Served {
    /// The directory `root` in a temporary one, with room beside it for what must not be reached.
    pub(crate) fn confined(policy: Policy, uploads: Uploads) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let options = LocalOptions {
            reach: Reach::Confined { root },
            policy,
            uploads,
            ..LocalOptions::default()
        };
        Self::new(directory, options)
    }

    pub(crate) fn new(directory: tempfile::TempDir, options: LocalOptions) -> Self {
        Self {
            directory,
            files: Arc::new(LocalFiles::new(options).unwrap()),
            seen: Arc::default(),
            options: ServeOptions {
                execution: Execution::OnBlockingThread,
                ..ServeOptions::default()
            },
        }
    }

    pub(crate) fn outside(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join("root").join(below)
    }

    pub(crate) fn write(&self, below: &str, content: &[u8]) -> PathBuf {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        make(&path, content);
        path
    }

    /// The stream of a client, and how its connection ends.
    pub(crate) fn stream(&self) -> (DuplexStream, Ended) {
        let (near, far) = duplex(PIPE_BYTES);
        let (reader, writer) = split(far);
        let files = Arc::clone(&self.files);
        let observer = Arc::clone(&self.seen);
        let served = serve_streams(reader, writer, files, self.options.clone(), observer);
        (near, tokio::spawn(served))
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_and_end().await.0
    }

    pub(crate) async fn client_and_end(&self) -> (Client, Ended) {
        let (near, ended) = self.stream();
        let (reader, writer) = split(near);
        let client = Client::over_streams(reader, writer, ClientOptions::default()).await;
        (client.unwrap(), ended)
    }

    /// A client that sends what it likes, after INIT.
    pub(crate) async fn raw(&self) -> (Raw, Ended) {
        let (stream, ended) = self.stream();
        let mut raw = Raw {
            stream,
            received: BytesMut::new(),
        };
        raw.packet(&ClientPacket::Init { version: 3 }).await;
        let greeting = raw.next().await;
        assert!(
            matches!(greeting, Some(ServerPacket::Version { version: 3, .. })),
            "{greeting:?}"
        );
        (raw, ended)
    }
}

pub(crate) fn make(path: &Path, content: &[u8]) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(content).unwrap();
}

/// A client made of raw packets.
pub(crate) struct Raw {
    pub(crate) stream: DuplexStream,
    received: BytesMut,
}

impl Raw {
    pub(crate) async fn packet(&mut self, packet: &ClientPacket) {
        let mut out = BytesMut::new();
        packet.encode(usize::MAX, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
    }

    pub(crate) async fn request(&mut self, id: u32, request: Request) {
        self.packet(&ClientPacket::Request { id, request }).await;
    }

    /// The next packet of the server; nothing at its end.
    pub(crate) async fn next(&mut self) -> Option<ServerPacket> {
        loop {
            if self.received.len() >= 4 {
                let length = usize::try_from((&self.received[..4]).get_u32()).unwrap();
                if self.received.len() >= 4 + length {
                    self.received.advance(4);
                    let body = self.received.split_to(length).freeze();
                    return Some(ServerPacket::decode(body).expect("the server encodes well"));
                }
            }
            if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    pub(crate) async fn reply(&mut self) -> (u32, Reply) {
        match self.next().await {
            Some(ServerPacket::Reply { id, reply }) => (id, reply),
            other => panic!("no reply: {other:?}"),
        }
    }

    pub(crate) async fn ask(&mut self, request: Request) -> Reply {
        self.request(77, request).await;
        let (id, reply) = self.reply().await;
        assert_eq!(id, 77);
        reply
    }
}
