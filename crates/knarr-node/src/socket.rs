//! The socket: who may be at its other end, and who may not.
//!
//! Constraints: `control.sock` in the state directory, mode 0600. The directory may be writable by nobody
//! else, or somebody could put another socket there. Whoever connects is asked of the kernel: only root and
//! the user of the node are served, whatever the modes are. A socket that nobody listens at is what a dead
//! process left, and is replaced; a lock says for certain that no other node has the state.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use knarr_fs::lock::{FileLock, LockError, LockMode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::server::Connected;

/// The name of the socket in the state directory.
pub const SOCKET: &str = "control.sock";

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another node has the state.
    #[error(
        "another node has this state ({holder}): stop it, or give this one another state directory"
    )]
    Taken {
        /// What is known of it.
        holder: String,
    },
    /// Others may write to the directory.
    #[error(
        "others may write to {} (mode {mode:04o}), so they could answer in the node's place: \
         `chmod go-w` it", path.display()
    )]
    Exposed {
        /// The state directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The directory belongs to somebody else.
    #[error("{} belongs to the user with the number {owner}", path.display())]
    Foreign {
        /// The state directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The socket cannot be made.
    #[error("cannot make the socket {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The lock cannot be used.
    #[error("cannot lock the state for this node")]
    Lock(#[source] LockError),
}

/// The socket of a node. Its name goes with it.
#[derive(Debug)]
pub struct Socket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    /// Held as long as the node runs.
    _lock: FileLock,
}

impl Socket {
    /// Makes the socket in a state directory, and takes the place of one that a dead process left.
    /// Needs a runtime.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(state: &Path) -> Result<Self, SocketError> {
        check(state)?;
        let path = state.join(SOCKET);
        let locks = state.join("locks");
        let io = |source| SocketError::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&locks).map_err(io)?;
        let lock = FileLock::acquire(&locks.join("node.lock"), LockMode::Exclusive, "knarr run");
        let lock = lock.map_err(|error| match error {
            LockError::Held { holder, .. } => SocketError::Taken {
                holder: holder.to_string(),
            },
            error => SocketError::Lock(error),
        })?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(io)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
        Ok(Self {
            listener,
            path,
            _lock: lock,
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The next node removes it if this does not work.
        let _left: io::Result<()> = std::fs::remove_file(&self.path);
    }
}

/// Whether nobody else can put a socket into the directory.
fn check(state: &Path) -> Result<(), SocketError> {
    let metadata = std::fs::metadata(state).map_err(|source| SocketError::Io {
        path: state.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(SocketError::Exposed {
            path: state.to_owned(),
            mode,
        });
    }
    let owner = metadata.uid();
    if owner != rustix::process::geteuid().as_raw() && owner != 0 {
        return Err(SocketError::Foreign {
            path: state.to_owned(),
            owner,
        });
    }
    Ok(())
}

/// Who is at the other end, as the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The number of the user.
    pub uid: u32,
    /// The name of the user, or the number if there is none.
    pub name: Arc<str>,
}

impl Peer {
    /// The user with this number.
    #[must_use]
    pub fn of(uid: u32) -> Self {
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let digits = uid.to_string();
        let name = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == digits).then(|| name.to_owned())
        });
        Self {
            uid,
            name: name.unwrap_or(digits).into(),
        }
    }

    /// Whether it is root or the user of this process.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// A connection whose other end is known.
#[derive(Debug)]
pub(crate) struct Known {
    stream: UnixStream,
    peer: Peer,
    _room: OwnedSemaphorePermit,
}

impl Known {
    /// The connection, unless its other end is nobody who is served.
    pub(crate) fn new(stream: UnixStream, room: OwnedSemaphorePermit) -> Option<Self> {
        let peer = match stream.peer_cred() {
            Ok(credentials) => Peer::of(credentials.uid()),
            Err(error) => {
                tracing::warn!(%error, "a connection to the control socket is refused: nobody knows whose it is");
                return None;
            }
        };
        if !peer.is_trusted() {
            tracing::warn!(user = %peer.name, "a connection to the control socket is refused");
            return None;
        }
        Some(Self {
            stream,
            peer,
            _room: room,
        })
    }
}

impl Connected for Known {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Known {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Known {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
