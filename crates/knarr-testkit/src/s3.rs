//! Local S3 servers: s3s-fs (fast, checks signatures), moto (broad, checks little) and rclone's.
//!
//! Constraints: each has its own data and its own port, and its bucket exists when `start` returns.
//! They differ on purpose: what works on all of them is probably S3, not a habit of one server.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::TestkitError;
use crate::error::must;
use crate::port::ReservedPort;
use crate::process::ServerProcess;
use crate::tools;

const BUCKET: &str = "knarr-test";
const ACCESS_KEY: &str = "KNARRTESTACCESSKEY01";
const SECRET_KEY: &str = "knarr-test-secret-key-0123456789abcdef01";
const REGION: &str = "us-east-1";

/// What a client needs to know of a local S3 server.
pub trait S3Server {
    /// `http://127.0.0.1:PORT`; addressing is by path.
    fn endpoint_url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Address of the server.
    fn address(&self) -> SocketAddr;

    /// A bucket that exists and is empty at first.
    fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// Access key id.
    fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// Secret access key.
    fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// Region.
    fn region(&self) -> &'static str {
        REGION
    }

    /// `kill -9`. The data stays, if the server keeps it on disk (moto does not).
    fn kill(&mut self);

    /// Starts again on the same port; kills it first if it runs.
    ///
    /// # Panics
    ///
    /// If it does not start.
    fn restart(&mut self);

    /// Everything the server has logged.
    fn log(&self) -> String;
}

/// What the three servers share.
#[derive(Debug)]
struct Running {
    name: &'static str,
    // Before the directory: it is dropped first, and prints its log if the test has failed.
    process: Option<ServerProcess>,
    port: ReservedPort,
    directory: TempDir,
}

impl Running {
    fn new(name: &'static str) -> Result<Self, TestkitError> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("knarr-{name}-"))
            .tempdir();
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let root = directory.path().join("root");
        let bucket = root.join(BUCKET);
        fs::create_dir_all(&bucket).map_err(TestkitError::file("making", &bucket))?;
        Ok(Self {
            name,
            directory,
            port: ReservedPort::new()?,
            process: None,
        })
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn launch(&mut self, mut command: Command) -> Result<(), TestkitError> {
        self.kill();
        // Nothing of the caller's cloud set-up may reach the server.
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if ["AWS_", "RCLONE_", "MOTO_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
            {
                command.env_remove(&key);
            }
        }
        for name in [
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        let log_path = self.directory.path().join("log");
        let mut process = ServerProcess::spawn(self.name, command, &log_path)?;
        let address = self.port.address();
        process.wait_ready(|_| http_status(address, "GET", "/").is_some())?;
        self.process = Some(process);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    fn log(&self) -> String {
        let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

/// Sends a request without a body and gives the status of the answer.
fn http_status(address: SocketAddr, method: &str, target: &str) -> Option<u16> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut head = [0_u8; 12];
    stream.read_exact(&mut head).ok()?;
    let text = std::str::from_utf8(&head).ok()?;
    text.strip_prefix("HTTP/1.")?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// s3s-fs: a directory served as S3, with signatures checked. Objects are files below
/// [`S3sFs::root`].
#[derive(Debug)]
pub struct S3sFs {
    running: Running,
    program: PathBuf,
}

impl S3sFs {
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

    /// Starts one.
    ///
    /// # Errors
    ///
    /// If it is not installed or does not start.
    pub fn try_start() -> Result<Self, TestkitError> {
        let program = tools::find("s3s-fs", "the crate s3s-fs")?;
        let mut server = Self {
            running: Running::new("s3s-fs")?,
            program,
        };
        server.launch()?;
        Ok(server)
    }

    /// The directory whose sub-directories are the buckets.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.running.root()
    }

    fn launch(&mut self) -> Result<(), TestkitError> {
        let mut command = Command::new(&self.program);
        command.args([
            "--host",
            "127.0.0.1",
            "--port",
            &self.running.port.number().to_string(),
        ]);
        command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]);
        command.arg(self.running.root()).env("RUST_LOG", "warn");
        self.running.launch(command)
    }
}

/// moto: Amazon's S3 imitated in memory; knows nearly every call, checks no signatures.
#[derive(Debug)]
pub struct Moto {
    running: Running,
    python: PathBuf,
}

impl Moto {
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

    /// Starts one.
    ///
    /// # Errors
    ///
    /// If it is not installed or does not start.
    pub fn try_start() -> Result<Self, TestkitError> {
        let python = tools::python_with("moto")?;
        let mut server = Self {
            running: Running::new("moto")?,
            python,
        };
        server.launch()?;
        Ok(server)
    }

    fn launch(&mut self) -> Result<(), TestkitError> {
        let mut command = Command::new(&self.python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p"]);
        command.arg(self.running.port.number().to_string());
        self.running.launch(command)?;
        match http_status(self.running.port.address(), "PUT", &format!("/{BUCKET}")) {
            Some(200) => Ok(()),
            _ => Err(TestkitError::NotReady {
                server: "moto (no bucket)".to_owned(),
                seconds: 0,
                log: self.running.log(),
            }),
        }
    }
}

/// `rclone serve s3`: a directory served as S3 by rclone.
#[derive(Debug)]
pub struct RcloneServe {
    running: Running,
    program: PathBuf,
}

impl RcloneServe {
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

    /// Starts one.
    ///
    /// # Errors
    ///
    /// If it is not installed or does not start.
    pub fn try_start() -> Result<Self, TestkitError> {
        let mut server = Self {
            running: Running::new("rclone")?,
            program: tools::rclone()?,
        };
        server.launch()?;
        Ok(server)
    }

    /// The directory whose sub-directories are the buckets.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.running.root()
    }

    fn launch(&mut self) -> Result<(), TestkitError> {
        let mut command = Command::new(&self.program);
        command.args([
            "--config",
            "/dev/null",
            "serve",
            "s3",
            "--vfs-cache-mode",
            "off",
            "--addr",
        ]);
        command.arg(self.running.port.address().to_string());
        command.args(["--auth-key", &format!("{ACCESS_KEY},{SECRET_KEY}")]);
        command.arg(self.running.root());
        self.running.launch(command)
    }
}

macro_rules! serve {
    ($server:ty) => {
        impl S3Server for $server {
            fn address(&self) -> SocketAddr {
                self.running.port.address()
            }

            fn kill(&mut self) {
                self.running.kill();
            }

            #[track_caller]
            fn restart(&mut self) {
                must(self.launch());
            }

            fn log(&self) -> String {
                self.running.log()
            }
        }
    };
}

serve!(S3sFs);
serve!(Moto);
serve!(RcloneServe);
