//! A private OpenSSH server: own port, own host keys, own authorised keys.
//!
//! Constraints: it runs as whoever runs the test, so it lets in only that user, and only with keys;
//! log-in by password is the part of the asyncssh server. A session of sshd leaves the process group, so
//! sessions are found as descendants of the master before the master is touched.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::TestkitError;
use crate::error::must;
use crate::port::ReservedPort;
use crate::process::{ServerProcess, send};
use crate::tools;

/// Kind of an SSH key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Ed25519.
    Ed25519,
    /// RSA, 3072 bits.
    Rsa,
    /// ECDSA over P-256.
    Ecdsa,
}

impl KeyKind {
    fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::Rsa => "rsa",
            Self::Ecdsa => "ecdsa",
        }
    }
}

/// What an [`Sshd`] is to be like; see [`Sshd::builder`].
#[derive(Debug, Clone)]
pub struct SshdBuilder {
    subsystem: String,
    host_keys: Vec<KeyKind>,
    extra: Vec<String>,
}

impl SshdBuilder {
    /// Command of the `sftp` subsystem; `internal-sftp` unless said otherwise. Arguments may follow
    /// (`internal-sftp -R`, `/usr/lib/openssh/sftp-server -l DEBUG3`).
    #[must_use]
    pub fn subsystem(mut self, command: &str) -> Self {
        command.clone_into(&mut self.subsystem);
        self
    }

    /// Host keys to have besides the Ed25519 one.
    #[must_use]
    pub fn host_key(mut self, kind: KeyKind) -> Self {
        self.host_keys.push(kind);
        self
    }

    /// Only this kind of host key, no Ed25519.
    #[must_use]
    pub fn only_host_key(mut self, kind: KeyKind) -> Self {
        self.host_keys = vec![kind];
        self
    }

    /// A further line of `sshd_config`. sshd takes the first value of most keywords, and these
    /// lines come first, so they win.
    #[must_use]
    pub fn config(mut self, line: &str) -> Self {
        self.extra.push(line.to_owned());
        self
    }

    /// Starts the server.
    ///
    /// # Panics
    ///
    /// If it does not start; the message says why, with the log of sshd.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Sshd {
        must(self.try_start())
    }

    /// Starts the server.
    ///
    /// # Errors
    ///
    /// If OpenSSH is not installed, or sshd does not get ready.
    pub fn try_start(self) -> Result<Sshd, TestkitError> {
        let program = tools::find("sshd", "the Debian package openssh-server")?;
        let keygen = tools::find("ssh-keygen", "the Debian package openssh-client")?;
        let directory = tempfile::Builder::new().prefix("knarr-sshd-").tempdir();
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let user = tools::run(&tools::find("id", "the Debian package coreutils")?, ["-un"])?;
        let mut server = Sshd {
            user: String::from_utf8_lossy(&user.stdout).trim().to_owned(),
            port: ReservedPort::new()?,
            builder: self,
            process: None,
            orphans: Vec::new(),
            program,
            keygen,
            directory,
        };
        if rustix::process::geteuid().is_root() {
            // sshd refuses to run as root without it; Debian's service file makes it, we have none.
            let path = Path::new("/run/sshd");
            fs::create_dir_all(path).map_err(TestkitError::file("making", path))?;
        }
        let data = server.data_directory();
        fs::create_dir(&data).map_err(TestkitError::file("making", &data))?;
        server.make_host_keys()?;
        server.add_client_key("client", KeyKind::Ed25519, "")?;
        server.write_known_hosts()?;
        server.launch()?;
        Ok(server)
    }
}

/// A running private sshd; killed with all its sessions on drop.
#[derive(Debug)]
pub struct Sshd {
    builder: SshdBuilder,
    process: Option<ServerProcess>,
    orphans: Vec<u32>,
    port: ReservedPort,
    user: String,
    program: PathBuf,
    keygen: PathBuf,
    directory: TempDir,
}

impl Sshd {
    /// What the server is to be like.
    #[must_use]
    pub fn builder() -> SshdBuilder {
        SshdBuilder {
            subsystem: "internal-sftp".to_owned(),
            host_keys: vec![KeyKind::Ed25519],
            extra: Vec::new(),
        }
    }

    /// Starts one with the defaults.
    ///
    /// # Panics
    ///
    /// See [`SshdBuilder::start`].
    #[must_use]
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().start()
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

    /// The user to log in as: the one that runs the test.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The private key (OpenSSH format, no passphrase) that may log in.
    #[must_use]
    pub fn client_key_path(&self) -> PathBuf {
        self.path("client")
    }

    /// An empty directory for what is served; on the server it has the same absolute path.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        self.path("data")
    }

    /// A location URL for `path`, which is absolute.
    #[must_use]
    pub fn url(&self, path: &Path) -> String {
        format!(
            "sftp://{}@127.0.0.1:{}{}",
            self.user,
            self.port(),
            path.display()
        )
    }

    /// A `known_hosts` file with the host keys that the server had when it was written: at the
    /// first start, or at [`Sshd::write_known_hosts`].
    #[must_use]
    pub fn known_hosts_path(&self) -> PathBuf {
        self.path("known_hosts")
    }

    /// Fingerprint (`SHA256:…`) of the first host key, as it is now.
    ///
    /// # Panics
    ///
    /// If ssh-keygen fails.
    #[must_use]
    #[track_caller]
    pub fn host_key_fingerprint(&self) -> String {
        let key = self
            .builder
            .host_keys
            .first()
            .copied()
            .unwrap_or(KeyKind::Ed25519);
        self.fingerprint_of(key)
    }

    /// Fingerprint (`SHA256:…`) of the host key of this kind.
    ///
    /// # Panics
    ///
    /// If ssh-keygen fails, because there is no such key.
    #[must_use]
    #[track_caller]
    pub fn fingerprint_of(&self, kind: KeyKind) -> String {
        let public = self.host_key_path(kind).with_extension("pub");
        let output = must(tools::run(
            &self.keygen,
            [
                "-l".as_ref(),
                "-E".as_ref(),
                "sha256".as_ref(),
                "-f".as_ref(),
                public.as_os_str(),
            ],
        ));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace()
            .nth(1)
            .unwrap_or_default()
            .to_owned()
    }

    /// Public host keys, one per line, `type base64`.
    ///
    /// # Errors
    ///
    /// If a key file cannot be read.
    pub fn host_public_keys(&self) -> Result<Vec<String>, TestkitError> {
        let mut keys = Vec::new();
        for kind in &self.builder.host_keys {
            let public = self.host_key_path(*kind).with_extension("pub");
            let text =
                fs::read_to_string(&public).map_err(TestkitError::file("reading", &public))?;
            keys.push(
                text.split_whitespace()
                    .take(2)
                    .collect::<Vec<_>>()
                    .join(" "),
            );
        }
        Ok(keys)
    }

    /// Writes the present host keys to [`Sshd::known_hosts_path`].
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written.
    pub fn write_known_hosts(&self) -> Result<(), TestkitError> {
        let mut text = String::new();
        for key in self.host_public_keys()? {
            text.push_str(&format!("[127.0.0.1]:{} {key}\n", self.port()));
        }
        let path = self.known_hosts_path();
        fs::write(&path, text).map_err(TestkitError::file("writing", &path))
    }

    /// Makes a client key that may log in, in a file `name` (no two of the same name), encrypted with
    /// `passphrase` unless that is empty.
    ///
    /// # Errors
    ///
    /// If ssh-keygen fails.
    pub fn add_client_key(
        &self,
        name: &str,
        kind: KeyKind,
        passphrase: &str,
    ) -> Result<PathBuf, TestkitError> {
        let path = self.path(name);
        self.generate_key(&path, kind, passphrase)?;
        let public = path.with_extension("pub");
        let line = fs::read_to_string(&public).map_err(TestkitError::file("reading", &public))?;
        self.authorize(line.trim_end())?;
        Ok(path)
    }

    /// Lets one more public key in: a line as in `authorized_keys`.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn authorize(&self, line: &str) -> Result<(), TestkitError> {
        let path = self.path("authorized_keys");
        let file = fs::File::options().create(true).append(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{line}"))
            .map_err(TestkitError::file("writing", &path))
    }

    /// Makes a key pair without letting it in.
    ///
    /// # Errors
    ///
    /// If ssh-keygen fails.
    pub fn generate_key(
        &self,
        path: &Path,
        kind: KeyKind,
        passphrase: &str,
    ) -> Result<(), TestkitError> {
        // Few rounds: the key derivation is meant to be slow, and tests make many keys.
        let mut arguments = vec!["-q", "-a", "4", "-t", kind.name(), "-C", "knarr-test", "-N"];
        arguments.push(passphrase);
        if kind == KeyKind::Rsa {
            arguments.extend(["-b", "3072"]);
        }
        let arguments = arguments.into_iter().map(AsRef::as_ref);
        tools::run(
            &self.keygen,
            arguments.chain(["-f".as_ref(), path.as_os_str()]),
        )?;
        Ok(())
    }

    /// Whether the master runs.
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| process.exit_status().is_none())
    }

    /// The process id of the master, if it was started.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(ServerProcess::id)
    }

    /// Number of processes that serve connections.
    #[must_use]
    pub fn session_processes(&self) -> usize {
        self.process
            .as_ref()
            .map_or(0, |process| process.descendants().len())
    }

    /// `kill -9` of the master and of all sessions.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
        for orphan in self.orphans.drain(..) {
            send(orphan, Signal::KILL);
        }
    }

    /// `kill -9` of all sessions; the master goes on and accepts new ones.
    pub fn kill_sessions(&self) {
        self.signal_sessions(Signal::KILL);
    }

    /// Stops all sessions where they are, connections open: what a hung server looks like.
    pub fn freeze_sessions(&self) {
        self.signal_sessions(Signal::STOP);
    }

    /// Lets frozen sessions go on.
    pub fn thaw_sessions(&self) {
        self.signal_sessions(Signal::CONT);
    }

    fn signal_sessions(&self, signal: Signal) {
        let descendants = self.process.as_ref().map(ServerProcess::descendants);
        for id in descendants
            .into_iter()
            .flatten()
            .chain(self.orphans.iter().copied())
        {
            send(id, signal);
        }
    }

    /// Ends the master only: connections that exist go on, new ones are refused.
    pub fn stop_accepting(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::STOP);
            self.orphans.extend(process.descendants());
            process.signal(Signal::KILL);
            crate::wait::poll(std::time::Duration::from_secs(10), || process.exit_status());
        }
    }

    /// Starts again on the same port, after [`Sshd::kill`] or [`Sshd::stop_accepting`]; if it
    /// still runs, it is killed first.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.is_running() {
            self.kill();
        }
        must(self.launch());
    }

    /// Like [`Sshd::restart`], with new host keys. [`Sshd::known_hosts_path`] keeps the old ones.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[track_caller]
    pub fn restart_with_new_host_keys(&mut self) {
        self.kill();
        must(self.make_host_keys());
        must(self.launch());
    }

    /// Everything sshd has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    /// Runs OpenSSH's own `sftp` against the server, with `script` as batch file.
    ///
    /// # Panics
    ///
    /// If `sftp` is not installed or cannot be started. Its failure is the caller's to judge.
    #[must_use]
    #[track_caller]
    pub fn sftp_batch(&self, script: &str) -> Output {
        let mut command = Command::new(must(tools::find(
            "sftp",
            "the Debian package openssh-client",
        )));
        command.args(["-b", "-", "-F", "none", "-o", "IdentitiesOnly=yes"]);
        command
            .arg("-o")
            .arg(format!("IdentityFile={}", self.client_key_path().display()));
        command.arg("-o").arg(format!(
            "UserKnownHostsFile={}",
            self.known_hosts_path().display()
        ));
        command.args([
            "-o",
            "StrictHostKeyChecking=yes",
            "-P",
            &self.port().to_string(),
        ]);
        command.arg(format!("{}@127.0.0.1", self.user));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("sftp was found a moment ago");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin
            .write_all(script.as_bytes())
            .expect("sftp reads its batch");
        drop(stdin);
        child.wait_with_output().expect("sftp can be waited for")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn host_key_path(&self, kind: KeyKind) -> PathBuf {
        self.path(&format!("host_{}", kind.name()))
    }

    fn make_host_keys(&self) -> Result<(), TestkitError> {
        for kind in &self.builder.host_keys {
            let path = self.host_key_path(*kind);
            // ssh-keygen would ask before it overwrites.
            fs::remove_file(&path).ok();
            self.generate_key(&path, *kind, "")?;
        }
        Ok(())
    }

    fn write_config(&self) -> Result<PathBuf, TestkitError> {
        let mut lines = self.builder.extra.clone();
        lines.push(format!("Port {}", self.port()));
        lines.extend(
            [
                "ListenAddress 127.0.0.1",
                "PidFile none",
                "LogLevel VERBOSE",
                "StrictModes no",
                "UseDNS no",
                "PermitRootLogin yes",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "MaxStartups 100",
                "MaxSessions 100",
            ]
            .map(str::to_owned),
        );
        // Without PAM sshd refuses an account that has no password at all, as root's on many machines;
        // with PAM it lets a key in, but log-in takes longer.
        let pam = if account_is_locked(&self.user) {
            "yes"
        } else {
            "no"
        };
        lines.push(format!("UsePAM {pam}"));
        for kind in &self.builder.host_keys {
            lines.push(format!("HostKey {}", self.host_key_path(*kind).display()));
        }
        lines.push(format!(
            "AuthorizedKeysFile {}",
            self.path("authorized_keys").display()
        ));
        lines.push(format!("Subsystem sftp {}", self.builder.subsystem));
        lines.push(String::new());
        // A Match block of `extra` must not swallow the lines after it.
        let is_match = |line: &String| line.trim_start().starts_with("Match");
        if let Some(start) = self.builder.extra.iter().position(is_match) {
            let block: Vec<String> = lines.drain(start..self.builder.extra.len()).collect();
            lines.extend(block);
            lines.push(String::new());
        }
        let path = self.path("sshd_config");
        fs::write(&path, lines.join("\n")).map_err(TestkitError::file("writing", &path))?;
        Ok(path)
    }

    fn launch(&mut self) -> Result<(), TestkitError> {
        let config = self.write_config()?;
        let mut command = Command::new(&self.program);
        command.args(["-D", "-e", "-f"]).arg(&config);
        let log_path = self.path("log");
        let old = fs::metadata(&log_path).map_or(0, |metadata| metadata.len());
        let mut process = ServerProcess::spawn("sshd", command, &log_path)?;
        let needle = format!("Server listening on 127.0.0.1 port {}", self.port());
        // Only what this run wrote counts: an earlier run said the same.
        let seen = usize::try_from(old).unwrap_or(usize::MAX);
        process.wait_ready(|process| {
            process.log().as_bytes().get(seen..).is_some_and(|new| {
                new.windows(needle.len())
                    .any(|window| window == needle.as_bytes())
            })
        })?;
        self.process = Some(process);
        Ok(())
    }
}

/// Whether the password field of the account is locked. Only root can look, and only root's sshd can.
fn account_is_locked(user: &str) -> bool {
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    shadow.lines().any(|line| {
        let mut fields = line.split(':');
        fields.next() == Some(user) && fields.next().is_some_and(|field| field.starts_with('!'))
    })
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}
