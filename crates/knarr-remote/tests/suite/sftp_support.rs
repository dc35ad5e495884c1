//! What the tests of SSH and SFTP share.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use knarr_core::{ContentHash, RelPath};
use knarr_remote::conformance::{RecordingSink, relative};
use knarr_remote::sftp::{SftpEndpoint, SftpOptions, SftpRemote};
use knarr_remote::ssh::{Authentication, HostKeyPolicy, KeyFile, Secret, SshOptions};
use knarr_remote::{
    CheckpointSink, Committed, NewNode, Remote as _, RemoteError, Replace, ResumeState, StagedId,
    Upload, WriteOptions,
};
use knarr_testkit::asyncssh::AsyncsshServer;
use knarr_testkit::sshd::Sshd;

pub(crate) fn by_key(path: impl AsRef<Path>) -> Authentication {
    Authentication {
        keys: vec![KeyFile::required(path.as_ref())],
        ..Authentication::default()
    }
}

pub(crate) fn by_password(password: &str) -> Authentication {
    Authentication {
        password: Some(Secret::new(password)),
        ..Authentication::default()
    }
}

/// How to connect to `server`, whose keys are in its own `known_hosts`.
pub(crate) fn ssh_options(server: &Sshd) -> SshOptions {
    let files = vec![server.known_hosts_path()];
    let mut options = SshOptions::new(
        server.host(),
        server.port(),
        server.user(),
        by_key(server.client_key_path()),
        HostKeyPolicy::KnownHosts { files },
    );
    options.connect_timeout = Duration::from_secs(20);
    options
}

/// The same through something that listens on another port, which `known_hosts` does not name.
pub(crate) fn ssh_options_through(server: &Sshd, port: u16) -> SshOptions {
    let pin = server.host_key_fingerprint().parse().unwrap();
    let host_key = HostKeyPolicy::Pinned(vec![pin]);
    SshOptions {
        port,
        host_key,
        ..ssh_options(server)
    }
}

pub(crate) fn remote(server: &Sshd) -> SftpRemote {
    remote_with(
        SftpOptions::new(ssh_options(server)),
        &server.data_directory(),
    )
}

pub(crate) fn remote_with(options: SftpOptions, root: &Path) -> SftpRemote {
    SftpRemote::new(&SftpEndpoint::new(options), bytes_of(root))
}

pub(crate) fn bytes_of(path: &Path) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec()
}

pub(crate) fn asyncssh_options(server: &AsyncsshServer, password: &str) -> SftpOptions {
    let pin = server.host_key_fingerprint().parse().unwrap();
    SftpOptions::new(SshOptions::new(
        server.host(),
        server.port(),
        server.user(),
        by_password(password),
        HostKeyPolicy::Pinned(vec![pin]),
    ))
}

/// A remote on the root of an asyncssh server that knows the password `hush`.
pub(crate) fn asyncssh_remote(server: &AsyncsshServer) -> SftpRemote {
    remote_with(asyncssh_options(server, "hush"), &server.root())
}

pub(crate) fn write_options(path: &RelPath, size: usize, replace: Replace) -> WriteOptions {
    let node = NewNode::File {
        size: Some(size as u64),
    };
    let mut options = WriteOptions::new(node, StagedId::derive(b"tests", path));
    options.replace = replace;
    options
}

/// Options for a file that can be gone on with.
pub(crate) fn resumable(
    path: &RelPath,
    size: usize,
    sink: &Arc<RecordingSink>,
    resume: Option<ResumeState>,
) -> WriteOptions {
    let mut options = write_options(path, size, Replace::Nothing);
    let sink = Arc::clone(sink);
    let sink: Arc<dyn CheckpointSink> = sink;
    options.checkpoints = Some(sink);
    options.resume = resume;
    options
}

/// Hands `content` in, in chunks as a reader of files gives them.
pub(crate) async fn feed(upload: &mut dyn Upload, content: &Bytes) -> Result<(), RemoteError> {
    let mut rest = content.clone();
    while !rest.is_empty() {
        upload
            .write(rest.split_to(rest.len().min(256 * 1024)))
            .await?;
    }
    Ok(())
}

pub(crate) async fn finish(
    upload: Box<dyn Upload>,
    content: &Bytes,
) -> Result<Committed, RemoteError> {
    let staged = upload
        .stage(content.len() as u64, ContentHash::of(content))
        .await?;
    let committer = Arc::clone(&staged.committer);
    committer
        .commit(vec![staged])
        .await
        .pop()
        .expect("one result an item")
}

/// Writes and commits a file of known size.
pub(crate) async fn deliver(
    remote: &SftpRemote,
    path: &str,
    content: &Bytes,
    replace: Replace,
) -> Result<Committed, RemoteError> {
    let path = relative(path);
    let mut upload = remote
        .write(&path, write_options(&path, content.len(), replace))
        .await?;
    feed(&mut *upload, content).await?;
    finish(upload, content).await
}

/// An error with everything below it.
pub(crate) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Names in a directory of this machine, sorted.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Writes a file of this machine, as the world outside does.
pub(crate) fn put_local(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, content).unwrap();
}
