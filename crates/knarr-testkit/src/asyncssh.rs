//! An SFTP server in Python (asyncssh) for what a private sshd cannot do: log-in by password or by
//! questions, and lies.
//!
//! Constraints: one process per server; every misbehaviour is asked for by name and is deterministic.
//! asyncssh answers one request after the other, so it is no server to measure speed with.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::TestkitError;
use crate::error::must;
use crate::port::ReservedPort;
use crate::process::ServerProcess;
use crate::tools;

const SCRIPT: &str = include_str!("asyncssh_server.py");

/// What [`AsyncsshServer`] does to its replies at the packet level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyFault {
    /// Every reply comes twice.
    Duplicate,
    /// Replies carry the id of a request that was never made.
    WrongId,
    /// Replies are of a type that does not exist.
    UnknownType,
    /// The length field says 4 GiB.
    HugeLength,
    /// The length field says one byte less than there is.
    ShortLength,
    /// The length field says seven bytes more than there are.
    LongLength,
    /// The length field says zero.
    ZeroLength,
    /// No reply at all.
    Silent,
}

impl ReplyFault {
    fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::WrongId => "wrong-id",
            Self::UnknownType => "unknown-type",
            Self::HugeLength => "huge-length",
            Self::ShortLength => "short-length",
            Self::LongLength => "long-length",
            Self::ZeroLength => "zero-length",
            Self::Silent => "silent",
        }
    }
}

/// What an [`AsyncsshServer`] is to be like; see [`AsyncsshServer::builder`].
#[derive(Debug, Clone, Default)]
pub struct AsyncsshBuilder {
    arguments: Vec<String>,
}

impl AsyncsshBuilder {
    fn with(mut self, name: &str, value: &str) -> Self {
        // One word, so that a value may start with a dash.
        self.arguments.push(format!("--{name}={value}"));
        self
    }

    fn flag(mut self, name: &str) -> Self {
        self.arguments.push(format!("--{name}"));
        self
    }

    /// Lets the user in with this password.
    #[must_use]
    pub fn password(self, password: &str) -> Self {
        self.with("password", password)
    }

    /// Lets the user in by keyboard-interactive with this prompt (without the colon, which the
    /// server adds) and answer; called again, it asks several questions at once.
    #[must_use]
    pub fn interactive(self, prompt: &str, answer: &str) -> Self {
        self.with("interactive", &format!("{prompt}={answer}"))
    }

    /// Lets the user in with the keys of this file.
    #[must_use]
    pub fn authorized_keys(self, path: &Path) -> Self {
        self.with("authorized-keys", &path.display().to_string())
    }

    /// Adds a name, any bytes, to every listing; it can be opened and holds `hostile`.
    #[must_use]
    pub fn listed_name(self, name: &[u8]) -> Self {
        let mut hex = String::new();
        for byte in name {
            write!(hex, "{byte:02x}").ok();
        }
        self.with("listed-name", &hex)
    }

    /// The names of [`Self::listed_name`] are directories instead of files.
    #[must_use]
    pub fn listed_as_directory(self) -> Self {
        self.flag("listed-as-directory")
    }

    /// Lists every name twice.
    #[must_use]
    pub fn listed_twice(self) -> Self {
        self.flag("listed-twice")
    }

    /// Listings never end.
    #[must_use]
    pub fn endless_listing(self) -> Self {
        self.flag("endless-listing")
    }

    /// Every directory holds a directory `deeper`, which is like its parent.
    #[must_use]
    pub fn endless_depth(self) -> Self {
        self.flag("endless-depth")
    }

    /// Waits before each reply; replies are serialised, so this bounds the requests per second.
    #[must_use]
    pub fn reply_delay(self, delay: Duration) -> Self {
        self.with("reply-delay-ms", &delay.as_millis().to_string())
    }

    /// Does not offer this extension (`fsync@openssh.com`); `all` for none at all.
    #[must_use]
    pub fn without_extension(self, name: &str) -> Self {
        self.with("without-extension", name)
    }

    /// Offers this operation and then refuses it: `fsync`, `posix_rename`, `rename`, `remove`, `mkdir`,
    /// `setstat`, `fsetstat`, `write`, `open-write`.
    #[must_use]
    pub fn refuse(self, operation: &str) -> Self {
        self.with("refuse", operation)
    }

    /// Refuses everything that would change something.
    #[must_use]
    pub fn read_only(self) -> Self {
        self.flag("read-only")
    }

    /// Reports regular files as this many bytes larger (smaller, if negative) than they are.
    #[must_use]
    pub fn size_offset(self, bytes: i64) -> Self {
        self.with("size-offset", &bytes.to_string())
    }

    /// Answers a read with at most so many bytes.
    #[must_use]
    pub fn read_limit(self, bytes: u32) -> Self {
        self.with("read-limit", &bytes.to_string())
    }

    /// Inverts the byte at this offset of every file that is read.
    #[must_use]
    pub fn flip_byte(self, offset: u64) -> Self {
        self.with("flip-byte", &offset.to_string())
    }

    /// Has a full disk after so many bytes written, over all files.
    #[must_use]
    pub fn full_after(self, bytes: u64) -> Self {
        self.with("full-after", &bytes.to_string())
    }

    /// Acknowledges writes without doing them after so many bytes, over all files.
    #[must_use]
    pub fn forget_writes_after(self, bytes: u64) -> Self {
        self.with("forget-writes-after", &bytes.to_string())
    }

    /// Tampers with replies at the packet level, after so many good ones.
    #[must_use]
    pub fn reply_fault(self, fault: ReplyFault, after_replies: u32) -> Self {
        self.with("reply-fault", fault.name())
            .with("reply-fault-after", &after_replies.to_string())
    }

    /// Starts the server.
    ///
    /// # Panics
    ///
    /// If it does not start; the message says why.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> AsyncsshServer {
        must(self.try_start())
    }

    /// Starts the server.
    ///
    /// # Errors
    ///
    /// If Python or asyncssh is missing, or the server does not get ready.
    pub fn try_start(self) -> Result<AsyncsshServer, TestkitError> {
        let python = tools::python_with("asyncssh")?;
        let keygen = tools::find("ssh-keygen", "the Debian package openssh-client")?;
        let directory = tempfile::Builder::new().prefix("knarr-asyncssh-").tempdir();
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let server = AsyncsshServer {
            builder: self,
            process: None,
            port: ReservedPort::new()?,
            python,
            directory,
        };
        let root = server.root();
        fs::create_dir(&root).map_err(TestkitError::file("making", &root))?;
        let script = server.path("server.py");
        fs::write(&script, SCRIPT).map_err(TestkitError::file("writing", &script))?;
        let key = server.path("host_key");
        let arguments = ["-q", "-t", "ed25519", "-N", "", "-f"].map(AsRef::as_ref);
        tools::run(&keygen, arguments.into_iter().chain([key.as_os_str()]))?;
        let mut server = server;
        server.launch()?;
        Ok(server)
    }
}

/// A running asyncssh server; killed on drop.
#[derive(Debug)]
pub struct AsyncsshServer {
    builder: AsyncsshBuilder,
    process: Option<ServerProcess>,
    port: ReservedPort,
    python: PathBuf,
    directory: TempDir,
}

impl AsyncsshServer {
    /// An honest server that lets nobody in yet: choose at least one way to log in.
    #[must_use]
    pub fn builder() -> AsyncsshBuilder {
        AsyncsshBuilder::default()
    }

    /// Always `127.0.0.1`.
    #[must_use]
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The port; it stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The only user who can log in.
    #[must_use]
    pub fn user(&self) -> &'static str {
        "skipper"
    }

    /// Where relative paths start. Absolute paths are those of this machine.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Fingerprint (`SHA256:…`) of the host key.
    ///
    /// # Panics
    ///
    /// If ssh-keygen fails.
    #[must_use]
    #[track_caller]
    pub fn host_key_fingerprint(&self) -> String {
        let keygen = must(tools::find(
            "ssh-keygen",
            "the Debian package openssh-client",
        ));
        let public = self.path("host_key.pub");
        let arguments = ["-l", "-E", "sha256", "-f"].map(AsRef::as_ref);
        let output = must(tools::run(
            &keygen,
            arguments.into_iter().chain([public.as_os_str()]),
        ));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace()
            .nth(1)
            .unwrap_or_default()
            .to_owned()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts again on the same port; kills it first if it runs.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        must(self.launch());
    }

    /// Everything the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn launch(&mut self) -> Result<(), TestkitError> {
        let log = self.path("log");
        // What counts as ready must come from this run.
        fs::remove_file(&log).ok();
        let mut command = Command::new(&self.python);
        command
            .arg(self.path("server.py"))
            .args(&self.builder.arguments);
        command
            .arg(format!("--port={}", self.port()))
            .arg(format!("--user={}", self.user()));
        command
            .arg("--root")
            .arg(self.root())
            .arg("--host-key")
            .arg(self.path("host_key"));
        let mut process = ServerProcess::spawn("the asyncssh server", command, &log)?;
        process.wait_ready(|process| process.log().lines().any(|line| line == "ready"))?;
        self.process = Some(process);
        Ok(())
    }
}
