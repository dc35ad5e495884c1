//! One client on the standard streams, as sshd starts a subsystem.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use knarr_sftp::server::{
    Execution, FileSystem, Observer, ServeError, ServeOptions, Summary, serve_streams,
};
use rustix::fs::FileType;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// Serves the client on standard input and output until it closes them. To be called on a runtime of one thread:
/// requests are carried out on it.
///
/// # Errors
/// If the streams cannot be used, or as [`serve_streams`].
pub async fn serve_stdio(
    file_system: Arc<dyn FileSystem>,
    mut options: ServeOptions,
    observer: Arc<dyn Observer>,
) -> Result<Summary, ServeError> {
    options.execution = Execution::OnThisTask;
    let reader = reader().map_err(|source| ServeError::Read { source })?;
    let writer = writer().map_err(|source| ServeError::Write { source })?;
    serve_streams(reader, writer, file_system, options, observer).await
}

type Reader = Box<dyn AsyncRead + Unpin + Send>;
type Writer = Box<dyn AsyncWrite + Unpin + Send>;

fn reader() -> std::io::Result<Reader> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    Ok(match kind_of(&stdin)? {
        FileType::Socket => Box::new(socket(stdin)?),
        FileType::Fifo => Box::new(pipe::Receiver::from_owned_fd(stdin)?),
        _ => return Err(no_client()),
    })
}

fn writer() -> std::io::Result<Writer> {
    let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
    Ok(match kind_of(&stdout)? {
        FileType::Socket => Box::new(socket(stdout)?),
        FileType::Fifo => Box::new(pipe::Sender::from_owned_fd(stdout)?),
        _ => return Err(no_client()),
    })
}

fn kind_of(stream: &OwnedFd) -> std::io::Result<FileType> {
    let stat = rustix::fs::fstat(stream)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

fn socket(stream: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = StdUnixStream::from(stream);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn no_client() -> std::io::Error {
    std::io::Error::new(
        std::io::ErrorKind::InvalidInput,
        "the standard streams lead to no client: they have to be pipes or sockets, as sshd and `sftp -D` make them",
    )
}
