//! What the tests under faults share: servers as endpoints, the reader that looks for torn files, the checker.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use knarr_testkit::data::{Compare, Node, assert_same_tree, read_tree, write_content};
use knarr_testkit::s3::{S3Server as _, S3sFs};
use knarr_testkit::sshd::Sshd;

use crate::program::{Done, Place};

/// Generous: test machines are small and busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A number of rounds: what the environment variable says, or the usual one.
pub(super) fn rounds(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).map_or(usual, |value| value.parse().expect("a number of rounds"))
}

/// What a command reported with `--json`.
#[track_caller]
pub(super) fn report(done: &Done) -> serde_json::Value {
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

/// Writes a file of incompressible bytes.
pub(crate) fn large_file(path: &Path, seed: u64, length: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_content(&mut fs::File::create(path).unwrap(), seed, length).unwrap();
}

/// Lines of `knarr.yaml` for an endpoint `partner` on this sshd, reached through `port`.
pub(crate) fn sftp_endpoint(server: &Sshd, port: u16) -> String {
    format!(
        "  partner:\n    type: sftp\n    host: 127.0.0.1\n    port: {port}\n    user: {}\n    key: {}\n    path: {}\n    \
         host_key: {}\n",
        server.user(),
        server.client_key_path().display(),
        server.data_directory().display(),
        server.host_key_fingerprint(),
    )
}

/// Lines of `knarr.yaml` for an endpoint `bucket` on this server, reached through `url`, with parts of 5 MiB.
pub(crate) fn s3_endpoint(server: &S3sFs, url: &str) -> String {
    format!(
        "  bucket:\n    type: s3\n    bucket: {}\n    endpoint: {url}\n    region: {}\n    path_style: true\n    \
         part_size: 5MiB\n    access_key: {{ env: FAULTS_ACCESS_KEY }}\n    secret_key: {{ env: FAULTS_SECRET_KEY }}\n",
        server.bucket(),
        server.region(),
    )
}

/// Where s3s-fs keeps what is in the bucket.
pub(crate) fn bucket_directory(server: &S3sFs) -> PathBuf {
    server.root().join(server.bucket())
}

impl Place {
    /// A command that may also log in to the test's S3 server, and says nothing.
    pub(super) fn quiet<A: AsRef<std::ffi::OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = self.command(arguments);
        let errors = fs::File::create(self.path("stderr")).unwrap();
        command.stdout(Stdio::null()).stderr(errors);
        with_keys(&mut command);
        command
    }

    /// Runs a command that may also log in to the test's S3 server.
    pub(super) fn run_with_keys<A: AsRef<std::ffi::OsStr>>(&self, arguments: &[A]) -> Done {
        let mut command = self.command(arguments);
        with_keys(&mut command);
        command.output().unwrap().into()
    }

    /// What the last [`Place::quiet`] command said.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// K3: whatever the record calls created or updated is whole at the destination. Gives how many.
    #[track_caller]
    pub(super) fn check_record(&self, destination: &Path, context: &str) -> usize {
        if !self.path("state/knarr.db").exists() {
            return 0;
        }
        self.run(&["audit", "verify"]).good();
        let records = self
            .run(&["history", "--files", "--json", "--limit", "1000000"])
            .good();
        let mut checked = 0;
        let mut newest = std::collections::HashSet::new();
        for line in records.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let action = record["action"].as_str().unwrap();
            let Some(hash) = record["source_hash"].as_str() else {
                continue;
            };
            if !matches!(action, "created" | "updated") {
                continue;
            }
            let path = record["path"].as_str().unwrap();
            let shown = record["destination"].as_str().unwrap();
            // Of another command of the same state; or of an older version: the newest comes first.
            let elsewhere = shown.starts_with('/') && !Path::new(shown).starts_with(destination);
            if elsewhere || !newest.insert(path.to_owned()) {
                continue;
            }
            let there = fs::read(destination.join(path))
                .unwrap_or_else(|error| panic!("{context}: recorded, but {path}: {error}"));
            assert_eq!(
                blake3::hash(&there).to_hex().as_str(),
                hash,
                "{context}: {path} is recorded as delivered and is not what was sent"
            );
            checked += 1;
        }
        checked
    }

    /// K7 and the rest of what holds at the end: the trees are equal, nothing staged is left, the chain is
    /// intact, the next run moves nothing.
    #[track_caller]
    pub(super) fn check_end(&self, command: &[&str], source: &Path, destination: &Path) {
        assert_same_tree(source, destination, &Compare::content());
        self.check_record(destination, "at the end");
        let again = self.run_with_keys(&[command, &["--json"][..]].concat());
        assert_eq!(again.code, 0, "{again:?}");
        let counts = report(&again);
        for count in ["created", "updated", "deleted", "failed", "sent_bytes"] {
            assert_eq!(counts[count], 0, "the next run moves nothing: {again:?}");
        }
    }
}

fn with_keys(command: &mut Command) {
    // Those of every S3 server of the testkit.
    command
        .env("FAULTS_ACCESS_KEY", "KNARRTESTACCESSKEY01")
        .env(
            "FAULTS_SECRET_KEY",
            "knarr-test-secret-key-0123456789abcdef01",
        );
}

/// A node that is stopped when the test ends, however it ends.
pub(crate) struct Running(Option<Child>);

impl Running {
    /// Starts `knarr run`, which logs to a file.
    pub(crate) fn start(place: &Place) -> Self {
        Self::start_with(place, &[])
    }

    /// As [`Running::start`], with these variables.
    pub(crate) fn start_with(place: &Place, environment: &[(&str, &str)]) -> Self {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(place.path("log"))
            .unwrap();
        let mut command = place.quiet(&["run"]);
        command.envs(environment.iter().copied());
        Self(Some(command.stderr(log).spawn().unwrap()))
    }

    /// A node that was started already.
    pub(crate) const fn of(child: Child) -> Self {
        Self(Some(child))
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(self.0.as_ref().unwrap());
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// SIGTERM; gives how long it took to end, which it has to do well.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> Duration {
        let mut child = self.0.take().unwrap();
        let id = rustix::process::Pid::from_child(&child);
        let began = std::time::Instant::now();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        let status = knarr_testkit::wait::poll(PATIENCE, || child.try_wait().unwrap());
        let Some(status) = status else {
            child.kill().unwrap();
            panic!("it does not stop");
        };
        assert!(status.success(), "{status}");
        began.elapsed()
    }

    /// Sends a signal, for tests elsewhere.
    pub(crate) fn signal_now(&self, signal: rustix::process::Signal) {
        self.signal(signal);
    }

    /// `kill -9`, for tests elsewhere.
    pub(crate) fn kill_now(self) {
        self.kill();
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        if let Some(mut child) = self.0.take() {
            knarr_testkit::kill::kill_tree(&mut child);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            knarr_testkit::kill::kill_tree(&mut child);
        }
    }
}

/// K2: reads what is under final names again and again, and compares it with what it has to be.
pub(super) struct TornReader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl TornReader {
    /// Every file below `destination` has to be the one of the same name below `source`, from the moment
    /// it is there.
    pub(super) fn start(source: &Path, destination: &Path) -> Self {
        let expected = read_tree(source, true).unwrap();
        let destination = destination.to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = HashMap::new();
            let mut torn = Vec::new();
            while !stopped.load(Ordering::Relaxed) && torn.is_empty() {
                look(&destination, &destination, &expected, &mut seen, &mut torn);
                std::thread::park_timeout(Duration::from_millis(3));
            }
            torn
        });
        Self { stop, thread }
    }

    /// Checks that nothing torn is there now.
    #[track_caller]
    pub(super) fn check_once(source: &Path, destination: &Path) {
        let expected = read_tree(source, true).unwrap();
        let (mut seen, mut torn) = (HashMap::new(), Vec::new());
        look(destination, destination, &expected, &mut seen, &mut torn);
        assert_eq!(
            torn,
            Vec::<String>::new(),
            "torn files are under final names"
        );
    }

    /// Stops, and checks that nothing torn was seen.
    #[track_caller]
    pub(super) fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let torn = self.thread.join().unwrap();
        assert_eq!(
            torn,
            Vec::<String>::new(),
            "torn files were visible under final names"
        );
    }
}

/// What tells whether a file has to be read again.
type Version = (u64, u64, i64, i64);

fn look(
    root: &Path,
    directory: &Path,
    expected: &BTreeMap<Vec<u8>, Node>,
    seen: &mut HashMap<PathBuf, Version>,
    torn: &mut Vec<String>,
) {
    // What is not there yet, or not any more, is not torn.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().as_bytes().starts_with(b".knarr-") {
            continue;
        }
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            look(root, &path, expected, seen, torn);
        } else if let Err(error) = look_at(root, &path, expected, seen, torn) {
            assert_eq!(
                error.kind(),
                io::ErrorKind::NotFound,
                "{}: {error}",
                path.display()
            );
        }
    }
}

fn look_at(
    root: &Path,
    path: &Path,
    expected: &BTreeMap<Vec<u8>, Node>,
    seen: &mut HashMap<PathBuf, Version>,
    torn: &mut Vec<String>,
) -> io::Result<()> {
    let mut file = fs::File::open(path)?;
    let about = file.metadata()?;
    let version = (about.ino(), about.len(), about.mtime(), about.ctime_nsec());
    if seen.get(path) == Some(&version) {
        return Ok(());
    }
    let mut hasher = blake3::Hasher::new();
    let length = io::copy(&mut file, &mut hasher)?;
    let name = path
        .strip_prefix(root)
        .unwrap()
        .as_os_str()
        .to_owned()
        .into_vec();
    match expected.get(&name) {
        Some(Node::File { size, hash, .. }) if *size == length && *hash == hasher.finalize() => {
            seen.insert(path.to_owned(), version);
        }
        other => torn.push(format!("{}: {length} bytes, not {other:?}", path.display())),
    }
    Ok(())
}

/// Names of staged files anywhere below.
pub(crate) fn litter(root: &Path) -> Vec<String> {
    let names = read_tree(root, true).unwrap();
    let staged = |name: &&Vec<u8>| name.windows(7).any(|part| part == b".knarr-");
    names
        .keys()
        .filter(staged)
        .map(|name| name.escape_ascii().to_string())
        .collect()
}
