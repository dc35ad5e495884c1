//! The `sftp-server` program of OpenSSH on a pair of pipes, without SSH.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use knarr_sftp::{Client, ClientOptions};
use tokio::process::{Child, Command};

const PLACES: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
];

/// A directory and as many servers as were asked for; killed with the value.
pub(crate) struct Server {
    pub(crate) directory: tempfile::TempDir,
    children: Vec<Child>,
}

impl Server {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self {
            directory,
            children: Vec::new(),
        }
    }

    pub(crate) async fn connect(&mut self) -> Client {
        self.connect_with(ClientOptions::default(), &[]).await
    }

    pub(crate) async fn connect_with(
        &mut self,
        options: ClientOptions,
        arguments: &[&str],
    ) -> Client {
        let mut child = Command::new(program())
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("sftp-server starts");
        let (reader, writer) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
        self.children.push(child);
        Client::over_streams(reader, writer, options)
            .await
            .expect("sftp-server speaks version 3")
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) async fn kill(&mut self) {
        for child in &mut self.children {
            child.kill().await.expect("the server can be killed");
        }
    }
}

fn program() -> PathBuf {
    let found = PLACES.iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("sftp-server is missing: install the Debian package openssh-sftp-server")
}
