//! A whole server on a free port, in the process of the test, and what its clients need.

use std::ffi::OsStr;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use knarr_remote::ssh::{Authentication, HostKeyPolicy, KeyFile, Secret, SshOptions, SshSession};
use knarr_serve::event::{FileEnd, ServeEvent, ServeObserver, UploadedAt, Verdict};
use knarr_serve::places::UserPlaces;
use knarr_serve::ssh::{HostKeys, Penalties, ServerOptions, SshServer};
use knarr_serve::users::{AuthorizedKey, PasswordHash, User, Users};
use knarr_sftp::{Client, ClientOptions};
use knarr_testkit::tools;
use knarr_testkit::wait::poll;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// The password of every user that has one; it must be seen nowhere.
pub(crate) const PASSWORD: &str = "sentinel-Trz7-password";
/// How long a test waits for what has to come.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// What was observed, as lines.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Vec<String>>);

impl Seen {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn has(&self, line: &str) -> bool {
        self.lines().iter().any(|seen| seen == line)
    }

    /// Waits for a line that begins so.
    #[track_caller]
    pub(crate) fn wait(&self, begin: &str) -> String {
        let found = || {
            self.lines()
                .into_iter()
                .find(|line| line.starts_with(begin))
        };
        poll(LIMIT, found).unwrap_or_else(|| panic!("no `{begin}` in {:#?}", self.lines()))
    }
}

impl ServeObserver for Seen {
    fn observe(&self, event: &ServeEvent<'_>) {
        let line = match event {
            ServeEvent::Refused { reason, .. } => format!("refused {reason:?}"),
            ServeEvent::LogIn {
                user,
                method,
                outcome,
                ..
            } => format!(
                "log-in {} {} {outcome:?}",
                user.escape_debug(),
                method.name()
            ),
            ServeEvent::Operation {
                operation,
                path,
                outcome,
                ..
            } => {
                let outcome = if outcome.is_ok() { "done" } else { "refused" };
                format!("{} {} {outcome}", operation.name(), path.escape_ascii())
            }
            ServeEvent::Closed {
                path,
                written_bytes,
                end,
                ..
            } => {
                let end = match end {
                    FileEnd::Closed => "closed",
                    FileEnd::Failed => "failed",
                    FileEnd::Abandoned => "abandoned",
                };
                format!("{end} {} {written_bytes}", path.escape_ascii())
            }
            ServeEvent::Uploaded {
                user,
                path,
                at,
                length_bytes,
                verdict,
                ..
            } => {
                let at = match at {
                    UploadedAt::Local(path) => path.display().to_string(),
                    UploadedAt::Remote { location, path } => {
                        format!("{location} {}", path.escape_ascii())
                    }
                };
                let verdict = match verdict {
                    Verdict::Closed => "uploaded",
                    Verdict::Renamed => "renamed",
                };
                let length = length_bytes.unwrap_or(0);
                format!("{verdict} {user} {} {length} {at}", path.escape_ascii())
            }
            ServeEvent::Ended { user, reason, .. } => {
                format!("ended {} {reason}", user.unwrap_or("-"))
            }
            _ => return,
        };
        self.0.lock().unwrap().push(line);
    }
}

/// A server, what it keeps, and the key of a client.
pub(crate) struct Gate {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) users: Arc<Users>,
    pub(crate) server: Arc<SshServer>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) runtime: Runtime,
    stop: CancellationToken,
}

/// Options for tests: nobody is locked out, refusals are quick.
pub(crate) fn options() -> ServerOptions {
    ServerOptions {
        refusal: Duration::from_millis(10),
        penalties: Penalties {
            exempt: vec![knarr_serve::users::Network::parse("127.0.0.0/8").unwrap()],
            ..Penalties::default()
        },
        ..ServerOptions::default()
    }
}

impl Gate {
    /// A server with the user `acme`, who has a key, a password and a directory.
    pub(crate) fn new() -> Self {
        Self::with(options(), |user| user)
    }

    pub(crate) fn with(options: ServerOptions, change: impl FnOnce(User) -> User) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("acme");
        std::fs::create_dir(&root).unwrap();
        keygen(
            &["-t", "ed25519", "-N", "", "-C", "acme"],
            &directory.path().join("id"),
        );
        let mut user = User::new("acme", UserPlaces::directory(&root));
        let line = std::fs::read_to_string(directory.path().join("id.pub")).unwrap();
        user.keys = AuthorizedKey::parse_lines(&line).unwrap();
        user.password = Some(PasswordHash::of(PASSWORD).unwrap());
        Self::start(directory, options, vec![change(user)])
    }

    pub(crate) fn start(
        directory: tempfile::TempDir,
        options: ServerOptions,
        users: Vec<User>,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let host_keys = HostKeys::open(&directory.path().join("host-keys")).unwrap();
        let (users, seen) = (Arc::new(Users::new(users)), Arc::new(Seen::default()));
        let observer = Arc::<Seen>::clone(&seen);
        let server = SshServer::new(options, Arc::clone(&users), &host_keys, observer);
        let (server, stop) = (Arc::new(server), CancellationToken::new());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (running, stopped) = (Arc::clone(&server), stop.clone());
        runtime.spawn(async move { running.run(vec![listener], stopped).await });
        let gate = Self {
            directory,
            address,
            users,
            server,
            seen,
            runtime,
            stop,
        };
        let public = gate
            .directory
            .path()
            .join("host-keys/ssh_host_ed25519_key.pub");
        if let Ok(key) = std::fs::read_to_string(public) {
            let port = gate.port();
            write(
                &gate.known_hosts(),
                format!("[127.0.0.1]:{port} {key}").as_bytes(),
            );
        }
        gate
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.directory.path().join("known_hosts")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.directory.path().join("id")
    }

    /// A path in the directory of `acme`.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join("acme").join(below)
    }

    pub(crate) fn outside(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// The options of OpenSSH's programs, with which they look at nothing outside.
    pub(crate) fn ssh_arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for option in [
            format!("UserKnownHostsFile={}", self.known_hosts().display()),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            format!("IdentityFile={}", self.key().display()),
            "PreferredAuthentications=publickey".to_owned(),
            "BatchMode=yes".to_owned(),
        ] {
            arguments.push("-o".to_owned());
            arguments.push(option);
        }
        arguments.insert(0, "-F".to_owned());
        arguments.insert(1, "/dev/null".to_owned());
        arguments
    }

    /// Runs a batch of OpenSSH's sftp as `user`, with more options for ssh.
    pub(crate) fn sftp_as(&self, user: &str, more: &[&str], batch: &str) -> Output {
        let mut command = Command::new("sftp");
        command.args(self.ssh_arguments()).args(more);
        command.args(["-b", "-", "-P", &self.port().to_string()]);
        command.arg(format!("{user}@127.0.0.1"));
        run_with(&mut command, batch)
    }

    /// The same as `acme`, which has to work.
    #[track_caller]
    pub(crate) fn sftp(&self, batch: &str) -> String {
        let output = self.sftp_as("acme", &[], batch);
        assert!(
            output.status.success(),
            "{}\n{:#?}",
            shown(&output),
            self.seen.lines()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// How the own client connects as `acme`.
    pub(crate) fn ssh_options(&self, authentication: Authentication) -> SshOptions {
        let files = vec![self.known_hosts()];
        let host_key = HostKeyPolicy::KnownHosts { files };
        SshOptions::new("127.0.0.1", self.port(), "acme", authentication, host_key)
    }

    pub(crate) fn by_key(&self) -> Authentication {
        Authentication {
            keys: vec![KeyFile::required(self.key())],
            ..Authentication::default()
        }
    }

    /// A session and a client of the own kind.
    pub(crate) async fn connect(&self) -> (SshSession, Client) {
        let session = SshSession::connect(&self.ssh_options(self.by_key()))
            .await
            .unwrap();
        let client = session.start_sftp(ClientOptions::default()).await.unwrap();
        (session, client)
    }

    /// Whether `acme` gets in by a password.
    pub(crate) fn enters_by_password(&self, user: &str, password: &str) -> bool {
        let authentication = Authentication {
            password: Some(Secret::new(password)),
            ..Authentication::default()
        };
        let mut options = self.ssh_options(authentication);
        options.user = user.to_owned();
        self.runtime
            .block_on(async { SshSession::connect(&options).await.is_ok() })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn keygen(arguments: &[&str], file: &Path) {
    let mut command = Command::new("ssh-keygen");
    command.arg("-q").args(arguments).arg("-f").arg(file);
    let output = command
        .output()
        .expect("ssh-keygen is there: `cargo xtask setup`");
    assert!(output.status.success(), "{}", shown(&output));
}

pub(crate) fn write(path: &Path, content: &[u8]) {
    std::fs::File::create(path)
        .unwrap()
        .write_all(content)
        .unwrap();
}

/// Bytes that look like nothing.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = knarr_testkit::data::Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.bits().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn run_with(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C")
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "{:?} does not start: {error}; `cargo xtask setup` installs it",
                command.get_program()
            )
        });
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

/// Runs a program that has to succeed, and returns all that it said.
#[track_caller]
pub(crate) fn succeed<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = run_with(&mut command, "");
    assert!(
        output.status.success(),
        "{}: {}",
        program.display(),
        shown(&output)
    );
    shown(&output)
}

pub(crate) fn program(name: &str, package: &'static str) -> PathBuf {
    tools::find(name, package).unwrap()
}

pub(crate) fn shown(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
