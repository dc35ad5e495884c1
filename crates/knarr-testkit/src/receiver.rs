//! Receivers of what Knarr tells: a web server, a mail server, and TLS for both.
//!
//! Constraints: they keep their ports while they are down ([`HttpReceiver::stop`]), so that an outage can
//! be played. Faults of HTTP come from an [`HttpFaultProxy`](crate::http_fault::HttpFaultProxy) in front.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::TestkitError;
use crate::error::must;
use crate::port::ReservedPort;
use crate::process::ServerProcess;
use crate::tools;

/// The largest body that is taken, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The request line.
    pub line: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Received {
    /// The first value of a header, named in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A web server that takes everything and remembers it. It answers with 200, or, to a path such as
/// `/status/500`, with what that says.
#[derive(Debug)]
pub struct HttpReceiver {
    port: ReservedPort,
    received: Arc<Mutex<Vec<Received>>>,
    running: Option<(Arc<AtomicBool>, thread::JoinHandle<()>)>,
}

impl HttpReceiver {
    /// Starts one.
    ///
    /// # Panics
    ///
    /// If no port can be had.
    #[must_use]
    #[track_caller]
    pub fn start() -> Self {
        let mut receiver = Self::down();
        receiver.restart();
        receiver
    }

    /// One that has a port and does not listen yet.
    ///
    /// # Panics
    ///
    /// If no port can be had.
    #[must_use]
    #[track_caller]
    pub fn down() -> Self {
        Self {
            port: must(ReservedPort::new()),
            received: Arc::default(),
            running: None,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Its URL with this path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// What came so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Stops listening.
    pub fn stop(&mut self) {
        if let Some((stopping, thread)) = self.running.take() {
            stopping.store(true, Ordering::SeqCst);
            TcpStream::connect(self.address()).ok();
            thread.join().ok();
        }
    }

    /// Listens, again.
    ///
    /// # Panics
    ///
    /// If the port cannot be listened on.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        let listener = TcpListener::bind(self.address()).expect("the port is reserved");
        let stopping = Arc::new(AtomicBool::new(false));
        let (stop, received) = (Arc::clone(&stopping), Arc::clone(&self.received));
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let received = Arc::clone(&received);
                thread::spawn(move || serve(&stream, &received).ok());
            }
        });
        self.running = Some((stopping, thread));
    }
}

impl Drop for HttpReceiver {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(stream: &TcpStream, received: &Mutex<Vec<Received>>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        // Whoever connected went away.
        return Ok(());
    }
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .and_then(|(_, value)| value.parse::<usize>().ok());
    let mut body = vec![0; length.unwrap_or(0).min(BODY_LIMIT)];
    reader.read_exact(&mut body)?;
    let request = Received {
        line: line.trim_end().to_owned(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let mut writer = stream;
    // A path such as /status/500 says what the answer is.
    let status = request
        .line
        .split_once("/status/")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<u16>().ok())
        .unwrap_or(200);
    received
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(request);
    let answer =
        format!("HTTP/1.1 {status} as asked\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n");
    writer.write_all(answer.as_bytes())
}

/// A certificate for 127.0.0.1 and `localhost` that no system trusts, and its key.
#[derive(Debug)]
pub struct Certificate {
    directory: TempDir,
}

impl Certificate {
    /// Makes one with openssl.
    ///
    /// # Panics
    ///
    /// If openssl is missing.
    #[must_use]
    #[track_caller]
    pub fn make() -> Self {
        must(Self::try_make())
    }

    pub(crate) fn try_make() -> Result<Self, TestkitError> {
        let openssl = tools::find("openssl", "the Debian package openssl")?;
        let directory = tempfile::Builder::new().prefix("knarr-tls-").tempdir();
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let made = Self { directory };
        let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost \
                         -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
        let mut arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        arguments.retain(|argument| !argument.is_empty());
        for (option, path) in [("-keyout", made.key()), ("-out", made.path())] {
            arguments.push(option.to_owned());
            arguments.push(path.display().to_string());
        }
        tools::run(&openssl, &arguments)?;
        Ok(made)
    }

    /// The certificate, in PEM.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    /// Its private key, in PEM.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }
}

/// How a [`MailReceiver`] encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailTls {
    /// Not at all.
    None,
    /// After STARTTLS, without which it takes no mail.
    Starttls,
    /// From the first byte.
    Implicit,
}

/// A mail server that keeps what it takes. It wants a log-in if it was given a password.
#[derive(Debug)]
pub struct MailReceiver {
    process: Option<ServerProcess>,
    port: ReservedPort,
    directory: TempDir,
    certificate: Certificate,
    tls: MailTls,
    login: Option<(String, String)>,
}

impl MailReceiver {
    /// Starts one.
    ///
    /// # Panics
    ///
    /// If Python is missing or it does not start.
    #[must_use]
    #[track_caller]
    pub fn start(tls: MailTls, login: Option<(&str, &str)>) -> Self {
        must(Self::try_start(tls, login))
    }

    fn try_start(tls: MailTls, login: Option<(&str, &str)>) -> Result<Self, TestkitError> {
        let directory = tempfile::Builder::new().prefix("knarr-mail-").tempdir();
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let mut server = Self {
            process: None,
            port: ReservedPort::new()?,
            directory,
            certificate: Certificate::try_make()?,
            tls,
            login: login.map(|(user, password)| (user.to_owned(), password.to_owned())),
        };
        server.launch()?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The mails that it took, oldest first: `MAIL FROM`, each `RCPT TO`, an empty line, the mail.
    #[must_use]
    pub fn mails(&self) -> Vec<String> {
        let mut names: Vec<PathBuf> = fs::read_dir(self.directory.path())
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|kind| kind == "mail"))
            .collect();
        names.sort();
        names
            .iter()
            .map(|path| fs::read_to_string(path).unwrap_or_default())
            .collect()
    }

    fn launch(&mut self) -> Result<(), TestkitError> {
        let script = self.directory.path().join("mail.py");
        fs::write(&script, include_str!("receiver/mail.py"))
            .map_err(TestkitError::file("writing", &script))?;
        let mode = match self.tls {
            MailTls::None => "none",
            MailTls::Starttls => "starttls",
            MailTls::Implicit => "implicit",
        };
        let mut command = Command::new(tools::find("python3", "the Debian package python3")?);
        command
            .arg(&script)
            .arg(self.port.number().to_string())
            .arg(mode)
            .arg(self.directory.path())
            .args([self.certificate.path(), self.certificate.key()]);
        if let Some((user, password)) = &self.login {
            command.args([user, password]);
        }
        let log = self.directory.path().join("log");
        let mut process = ServerProcess::spawn("the mail receiver", command, &log)?;
        process.wait_ready(|process| process.log().contains("listening"))?;
        self.process = Some(process);
        Ok(())
    }
}

/// TLS in front of a plain server.
#[derive(Debug)]
pub struct TlsFront {
    // Before the directory: it is dropped first, and prints its log if the test has failed.
    _process: ServerProcess,
    port: ReservedPort,
    certificate: Certificate,
    _directory: TempDir,
}

impl TlsFront {
    /// Starts one.
    ///
    /// # Panics
    ///
    /// If Python is missing or it does not start.
    #[must_use]
    #[track_caller]
    pub fn start(upstream: SocketAddr) -> Self {
        must(Self::try_start(upstream))
    }

    fn try_start(upstream: SocketAddr) -> Result<Self, TestkitError> {
        let directory = tempfile::Builder::new().prefix("knarr-tls-").tempdir();
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let certificate = Certificate::try_make()?;
        let port = ReservedPort::new()?;
        let script = directory.path().join("front.py");
        fs::write(&script, include_str!("receiver/front.py"))
            .map_err(TestkitError::file("writing", &script))?;
        let mut command = Command::new(tools::find("python3", "the Debian package python3")?);
        command
            .arg(&script)
            .args([port.number(), upstream.port()].map(|number| number.to_string()))
            .args([certificate.path(), certificate.key()]);
        let log = directory.path().join("log");
        let mut process = ServerProcess::spawn("the TLS front", command, &log)?;
        process.wait_ready(|process| process.log().contains("listening"))?;
        Ok(Self {
            _process: process,
            port,
            certificate,
            _directory: directory,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }
}
