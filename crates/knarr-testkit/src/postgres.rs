//! A PostgreSQL server in a temporary directory, on a free port, over TCP only, with TLS for who wants it.
//!
//! Constraints: PostgreSQL refuses to run as root, so a test that runs as root runs it as the user
//! `postgres`, which Debian's package makes. Nothing is flushed: the machine does not lose power in a test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::TestkitError;
use crate::error::must;
use crate::port::ReservedPort;
use crate::process::{ServerProcess, send};
use crate::receiver::Certificate;
use crate::tools;

const PACKAGE: &str = "the Debian package postgresql";
/// The user of the database.
pub const USER: &str = "knarr";
/// That user's password.
pub const PASSWORD: &str = "sentinel-postgres-password";

/// The certificate and its key, as the server reads them.
const TLS_FILES: [&str; 2] = ["server.pem", "server.key"];

/// A running server with an empty database, `knarr`.
#[derive(Debug)]
pub struct Postgres {
    // Before the directory: it is dropped first, and prints its log if the test has failed.
    process: Option<ServerProcess>,
    port: ReservedPort,
    certificate: Certificate,
    directory: TempDir,
}

impl Postgres {
    /// Starts one.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start.
    #[must_use]
    #[track_caller]
    pub fn start() -> Self {
        must(Self::try_start())
    }

    fn try_start() -> Result<Self, TestkitError> {
        let directory = tempfile::Builder::new()
            .prefix("knarr-postgres-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir();
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let password = directory.path().join("password");
        fs::write(&password, PASSWORD).map_err(TestkitError::file("writing", &password))?;
        let data = directory.path().join("data");
        fs::create_dir(&data).map_err(TestkitError::file("making", &data))?;
        let certificate = Certificate::try_make()?;
        let [public, key] = TLS_FILES.map(|name| directory.path().join(name));
        for (from, to) in [(certificate.path(), &public), (certificate.key(), &key)] {
            fs::copy(from, to).map_err(TestkitError::file("writing", to))?;
        }
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))
            .map_err(TestkitError::file("protecting", &key))?;
        if rustix::process::geteuid().is_root() {
            let chown = tools::find("chown", "the Debian package coreutils")?;
            let arguments = [Path::new("postgres"), &data, &password, &public, &key];
            tools::run(&chown, arguments)?;
        }
        let mut server = Self {
            process: None,
            port: ReservedPort::new()?,
            certificate,
            directory,
        };
        let mut initdb = server.command("initdb")?;
        initdb
            .args([
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
            ])
            .arg(format!("--username={USER}"))
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(&data);
        server.run(&mut initdb)?;
        server.launch()?;
        server.query("CREATE DATABASE knarr", "postgres")?;
        Ok(server)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.port.address()
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Runs a statement in the database `knarr` and gives its rows, one a line, columns parted by `|`.
    ///
    /// # Panics
    ///
    /// If the statement fails.
    #[must_use]
    #[track_caller]
    pub fn sql(&self, statement: &str) -> String {
        must(self.query(statement, "knarr"))
    }

    /// The same, or nothing while the server is down or refuses.
    #[must_use]
    pub fn try_sql(&self, statement: &str) -> Option<String> {
        self.query(statement, "knarr").ok()
    }

    /// Everything that the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// `kill -9` of the server and all it started. The data stays.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // The children share memory with the server, and would keep the next one from starting.
            for child in process.descendants() {
                send(child, Signal::KILL);
            }
            process.kill();
        }
    }

    /// Starts again on the same port, with the same data.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        must(self.launch());
    }

    fn launch(&mut self) -> Result<(), TestkitError> {
        let data = self.directory.path().join("data");
        let mut command = self.command("postgres")?;
        command.arg("-D").arg(&data);
        command.args(["-p", &self.port.number().to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "max_connections=20",
            "shared_buffers=16MB",
        ] {
            command.args(["-c", setting]);
        }
        for (setting, name) in ["ssl_cert_file", "ssl_key_file"].into_iter().zip(TLS_FILES) {
            let path = self.directory.path().join(name);
            command.args(["-c", &format!("{setting}={}", path.display())]);
        }
        command.args(["-c", "ssl=on"]);
        let log = self.directory.path().join("log");
        let mut process = ServerProcess::spawn("postgres", command, &log)?;
        process.wait_ready(|_| self.query("SELECT 1", "postgres").is_ok())?;
        self.process = Some(process);
        Ok(())
    }

    fn query(&self, statement: &str, database: &str) -> Result<String, TestkitError> {
        let mut command = Command::new(find("psql")?);
        command
            .env("PGPASSWORD", PASSWORD)
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                USER,
                "-d",
                database,
                "-X",
                "-q",
                "-A",
                "-t",
            ])
            .args([
                "-v",
                "ON_ERROR_STOP=1",
                "-p",
                &self.port.number().to_string(),
            ])
            .args(["-c", statement]);
        self.run(&mut command)
    }

    fn run(&self, command: &mut Command) -> Result<String, TestkitError> {
        let shown = format!("{command:?}");
        let output = command
            .current_dir(self.directory.path())
            .output()
            .map_err(|source| TestkitError::Spawn {
                program: shown.clone(),
                source,
            })?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            return Ok(text.trim_end().to_owned());
        }
        Err(TestkitError::Command {
            command: shown,
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// A program of the package, as a user that PostgreSQL accepts.
    fn command(&self, program: &str) -> Result<Command, TestkitError> {
        let program = find(program)?;
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command =
                Command::new(tools::find("setpriv", "the Debian package util-linux")?);
            command
                .args([
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--init-groups",
                    "--",
                ])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.directory.path());
        Ok(command)
    }
}

/// Debian keeps the programs of the server in a directory of the version, which no `PATH` has.
fn find(program: &str) -> Result<PathBuf, TestkitError> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<PathBuf> = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin").join(program)))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    match found.pop() {
        Some(path) => Ok(path),
        None => tools::find(program, PACKAGE),
    }
}
