//! Asks a scanner over ICAP (RFC 3507) whether content is clean: RESPMOD, with a preview, 204 allowed.
//!
//! Constraints: flat memory (a preview of [`PREVIEW_BYTES`], and the chunk in hand; what comes back is hashed
//! and not kept); heads of at most [`HEAD_BYTES`]; what is sent and what comes back move at the same time,
//! so that neither waits for the other; each step has a time limit. It fails closed: only a 204, or a 200
//! that gives back the very content without telling of an infection, is a verdict of clean. A refusal is
//! permanent; anything that is no verdict is an error that is tried again.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use knarr_core::{ContentHash, Entry};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::transfer::TransferError;

/// How much a scanner sees before it says whether it wants the rest.
const PREVIEW_BYTES: usize = 1_024;
/// The longest head of an answer.
const HEAD_BYTES: u64 = 64 << 10;
/// The most lines of a head.
const HEAD_LINES: usize = 200;
/// How much of what a scanner says is shown.
const SAID_CHARACTERS: usize = 200;
/// The port, if the URL has none.
const PORT: u16 = 1_344;
/// Headers that tell of something bad, in lower case.
const INFECTION_HEADERS: [&str; 6] = [
    "x-infection-found",
    "x-virus-id",
    "x-virus-name",
    "x-violations-found",
    "x-blocked",
    "x-block-reason",
];
/// Headers that say why something is refused.
const REASON_HEADERS: [&str; 2] = ["x-response-desc", "x-response-info"];

/// A scanner that is asked over ICAP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcapScan {
    host: String,
    port: u16,
    /// With its slash, and what may follow a `?`.
    path: String,
    timeout: Duration,
}

/// A URL that names no scanner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the URL of an ICAP service, such as icap://scanner.example:1344/avscan")]
pub struct IcapUrlError(String);

impl IcapScan {
    /// The scanner of a URL, `icap://host:port/service`. Each of its steps may take so long.
    ///
    /// # Errors
    /// If it is not such a URL.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, IcapUrlError> {
        let wrong = || IcapUrlError(url.chars().take(100).collect());
        let rest = url.strip_prefix("icap://").ok_or_else(wrong)?;
        let slash = rest.find('/').ok_or_else(wrong)?;
        let (authority, path) = rest.split_at_checked(slash).ok_or_else(wrong)?;
        let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '#' | '"' | '<' | '>' | '\\');
        if path.len() < 2 || !path.chars().all(is_plain) {
            return Err(wrong());
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
                let port = port.strip_prefix(':');
                (host, port)
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
        if host.is_empty() || !host.chars().all(is_host) {
            return Err(wrong());
        }
        let port = port.map_or(Ok(PORT), str::parse).map_err(|_| wrong())?;
        Ok(Self {
            host: host.to_owned(),
            port,
            path: path.to_owned(),
            timeout,
        })
    }
}

impl fmt::Display for IcapScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host, port, path, ..
        } = self;
        if host.contains(':') {
            write!(f, "icap://[{host}]:{port}{path}")
        } else {
            write!(f, "icap://{host}:{port}{path}")
        }
    }
}

/// What a scanner answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// What it says against the content.
    infection: Option<String>,
    /// Why it refuses, if it says.
    reason: Option<String>,
    /// The status of the response that it puts in the place of the content.
    inner: Option<u16>,
    /// The hash of what it gives back, and its length.
    body: Option<(ContentHash, u64)>,
}

/// A scan under way. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Scanning {
    scan: IcapScan,
    cancel: CancellationToken,
    writer: OwnedWriteHalf,
    reading: JoinHandle<Result<Answer, String>>,
    go_on: mpsc::Receiver<()>,
    stage: Stage,
    hasher: blake3::Hasher,
    length: u64,
}

#[derive(Debug)]
enum Stage {
    /// What comes is kept until there is enough of it.
    Preview(Vec<u8>),
    /// The scanner wants the rest.
    Streaming,
    /// It has said what it has to say.
    Answered(Answer),
}

impl Drop for Scanning {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Scanning {
    pub(crate) async fn start(
        scan: &IcapScan,
        entry: &Entry,
        cancel: &CancellationToken,
    ) -> Result<Self, TransferError> {
        let connecting = TcpStream::connect((scan.host.as_str(), scan.port));
        let connected = tokio::select! {
            () = cancel.cancelled() => return Err(TransferError::Cancelled),
            connected = tokio::time::timeout(scan.timeout, connecting) => connected,
        };
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                return Err(unchecked(scan, &format!("it cannot be reached: {error}")));
            }
            Err(_late) => return Err(unchecked(scan, "it cannot be reached in time")),
        };
        stream.set_nodelay(true).ok();
        let (reader, writer) = stream.into_split();
        let (told, go_on) = mpsc::channel(1);
        let mut scanning = Self {
            scan: scan.clone(),
            cancel: cancel.clone(),
            writer,
            reading: tokio::spawn(read_answer(reader, told)),
            go_on,
            stage: Stage::Preview(Vec::new()),
            hasher: blake3::Hasher::new(),
            length: 0,
        };
        scanning.send(&head(scan, entry)).await?;
        Ok(scanning)
    }

    /// Hands on the next bytes.
    pub(crate) async fn update(&mut self, chunk: &Bytes) -> Result<(), TransferError> {
        self.hasher.update(chunk);
        self.length += chunk.len() as u64;
        match &mut self.stage {
            Stage::Answered(_) => Ok(()),
            Stage::Streaming => self.send_chunk(chunk).await,
            Stage::Preview(kept) => {
                kept.extend_from_slice(chunk);
                if kept.len() <= PREVIEW_BYTES {
                    return Ok(());
                }
                let kept = std::mem::take(kept);
                let (preview, rest) = kept.split_at_checked(PREVIEW_BYTES).unwrap_or((&kept, &[]));
                self.stage = Stage::Streaming;
                self.send_chunk(preview).await?;
                self.send(b"0\r\n\r\n").await?;
                self.wait_for_verdict_of_preview().await?;
                if matches!(self.stage, Stage::Streaming) && !rest.is_empty() {
                    self.send_chunk(rest).await?;
                }
                Ok(())
            }
        }
    }

    /// The scanner says what it thinks of the preview, or that it wants the rest.
    async fn wait_for_verdict_of_preview(&mut self) -> Result<(), TransferError> {
        tokio::select! {
            biased;
            Some(()) = self.go_on.recv() => Ok(()),
            () = self.cancel.cancelled() => Err(TransferError::Cancelled),
            answered = &mut self.reading => self.answered(answered),
            () = tokio::time::sleep(self.scan.timeout) => Err(self.late()),
        }
    }

    /// No more bytes come: what is the verdict?
    pub(crate) async fn finish(mut self) -> Result<(), TransferError> {
        match &mut self.stage {
            Stage::Preview(kept) => {
                let kept = std::mem::take(kept);
                self.stage = Stage::Streaming;
                if kept.is_empty() {
                    // There is no body, as the head says.
                } else {
                    self.send_chunk(&kept).await?;
                    self.send(b"0; ieof\r\n\r\n").await?;
                }
            }
            Stage::Streaming => self.send(b"0\r\n\r\n").await?,
            Stage::Answered(_) => {}
        }
        if matches!(self.stage, Stage::Streaming) {
            let answered = tokio::select! {
                () = self.cancel.cancelled() => return Err(TransferError::Cancelled),
                answered = tokio::time::timeout(self.scan.timeout, &mut self.reading) => answered,
            };
            match answered {
                Ok(answered) => self.answered(answered)?,
                Err(_late) => return Err(self.late()),
            }
        }
        match &self.stage {
            Stage::Answered(answer) => self.judge(answer),
            Stage::Preview(_) | Stage::Streaming => Err(self.late()),
        }
    }

    fn judge(&self, answer: &Answer) -> Result<(), TransferError> {
        let refused = |why: &str| {
            let scan = &self.scan;
            Err(TransferError::Refused(format!(
                "the scanner {scan} refuses it: {why}"
            )))
        };
        if let Some(infection) = &answer.infection {
            return refused(infection);
        }
        let reason = answer.reason.as_deref();
        match answer.status {
            204 => Ok(()),
            200 | 201 => {
                let all = (ContentHash::from(self.hasher.finalize()), self.length);
                let given_back = answer.body.unwrap_or((ContentHash::of(b""), 0));
                match answer.inner {
                    Some(inner) if !(200..300).contains(&inner) => {
                        let usual = format!("it answers with HTTP {inner} instead");
                        refused(reason.unwrap_or(&usual))
                    }
                    _ if given_back == all => Ok(()),
                    _ => refused(reason.unwrap_or("it would deliver something else instead")),
                }
            }
            403 => refused(reason.unwrap_or("it is forbidden")),
            other => Err(unchecked(
                &self.scan,
                &format!("it answers with status {other}"),
            )),
        }
    }

    fn answered(
        &mut self,
        answered: Result<Result<Answer, String>, tokio::task::JoinError>,
    ) -> Result<(), TransferError> {
        match answered {
            Ok(Ok(answer)) => {
                self.stage = Stage::Answered(answer);
                Ok(())
            }
            Ok(Err(reason)) => Err(unchecked(&self.scan, &reason)),
            Err(_gone) => Err(unchecked(&self.scan, "the scan was given up")),
        }
    }

    async fn send_chunk(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.send(format!("{:x}\r\n", bytes.len()).as_bytes())
            .await?;
        self.send(bytes).await?;
        self.send(b"\r\n").await
    }

    /// Sends, unless the scanner has answered already.
    async fn send(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        if matches!(self.stage, Stage::Answered(_)) {
            return Ok(());
        }
        let sent = tokio::select! {
            () = self.cancel.cancelled() => return Err(TransferError::Cancelled),
            sent = tokio::time::timeout(self.scan.timeout, self.writer.write_all(bytes)) => sent,
            // It has seen enough, or has gone.
            answered = &mut self.reading => return self.answered(answered),
        };
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => {
                // What it said before it closed counts.
                let limit = self.scan.timeout;
                match tokio::time::timeout(limit, &mut self.reading).await {
                    Ok(answered) => self.answered(answered),
                    Err(_late) => Err(self.late()),
                }
            }
            Err(_late) => Err(self.late()),
        }
    }

    fn late(&self) -> TransferError {
        unchecked(&self.scan, "it took too long")
    }
}

fn unchecked(scan: &IcapScan, reason: &str) -> TransferError {
    TransferError::Unchecked(format!(
        "the scanner {scan} did not say whether it is clean: {reason}"
    ))
}

/// What comes before the content: the request to the scanner, and a response of HTTP that has the content.
fn head(scan: &IcapScan, entry: &Entry) -> Vec<u8> {
    let mut name = String::new();
    for byte in entry.path.name() {
        match char::from(*byte) {
            c if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') => name.push(c),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    let request =
        format!("GET http://knarr.invalid/{name} HTTP/1.1\r\nHost: knarr.invalid\r\n\r\n");
    let response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        entry.size
    );
    let (host, port) = (&scan.host, scan.port);
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let behind = request.len() + response.len();
    let (preview, body) = if entry.size == 0 {
        (String::new(), "null-body")
    } else {
        (format!("Preview: {PREVIEW_BYTES}\r\n"), "res-body")
    };
    format!(
        "RESPMOD {scan} ICAP/1.0\r\nHost: {host}:{port}\r\nUser-Agent: knarr\r\nAllow: 204\r\n\
         Connection: close\r\n{preview}Encapsulated: req-hdr=0, res-hdr={}, {body}={behind}\r\n\r\n\
         {request}{response}",
        request.len()
    )
    .into_bytes()
}

/// Reads what a scanner says; tells whether it wants more than the preview.
async fn read_answer(reader: OwnedReadHalf, go_on: mpsc::Sender<()>) -> Result<Answer, String> {
    let mut reader = BufReader::new(reader);
    let failed = |error: io::Error| format!("the connection broke: {error}");
    loop {
        let head = Head::read(&mut reader, "ICAP/1.0 ").await?;
        if head.status == 100 {
            go_on.try_send(()).ok();
            continue;
        }
        let mut answer = Answer {
            status: head.status,
            infection: head.first(&INFECTION_HEADERS),
            reason: head.first(&REASON_HEADERS),
            inner: None,
            body: None,
        };
        let encapsulated = head.get("encapsulated").unwrap_or_default();
        if !matches!(head.status, 200 | 201) {
            return Ok(answer);
        }
        if encapsulated.contains("res-hdr") {
            let inner = Head::read(&mut reader, "HTTP/1.").await?;
            answer.inner = Some(inner.status);
            answer.infection = answer.infection.or_else(|| inner.first(&INFECTION_HEADERS));
        } else if encapsulated.contains("req-hdr") {
            return Err("it answers with a request instead of a response".to_owned());
        }
        if encapsulated.contains("res-body") {
            answer.body = Some(read_body(&mut reader).await.map_err(failed)?);
        }
        return Ok(answer);
    }
}

/// Hashes a body in chunks.
async fn read_body(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<(ContentHash, u64)> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a chunk without its length");
    let (mut hasher, mut length) = (blake3::Hasher::new(), 0_u64);
    loop {
        let mut line = String::new();
        (&mut *reader).take(256).read_line(&mut line).await?;
        let digits = line.split([';', '\r', '\n']).next().unwrap_or_default();
        let size = u64::from_str_radix(digits.trim(), 16).map_err(|_| malformed())?;
        if size == 0 {
            return Ok((hasher.finalize().into(), length));
        }
        length = length.saturating_add(size);
        let mut left = size;
        while left > 0 {
            let buffer = reader.fill_buf().await?;
            let take = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            if take == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.update(buffer.get(..take).unwrap_or_default());
            reader.consume(take);
            left -= take as u64;
        }
        let mut end = [0; 2];
        reader.read_exact(&mut end).await?;
        if end != *b"\r\n" {
            return Err(malformed());
        }
    }
}

/// The first line of a message, and its headers.
struct Head {
    status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
}

impl Head {
    async fn read(reader: &mut BufReader<OwnedReadHalf>, protocol: &str) -> Result<Self, String> {
        let mut limited = reader.take(HEAD_BYTES);
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            let read = limited.read_until(b'\n', &mut line).await;
            let read = read.map_err(|error| format!("the connection broke: {error}"))?;
            if read == 0 || lines.len() > HEAD_LINES {
                return Err("its answer breaks off, or is too long".to_owned());
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let first = lines.first().and_then(|line| line.strip_prefix(protocol));
        let status = first.and_then(|rest| {
            let digits = rest.split(' ').find(|word| word.len() == 3)?;
            digits.parse().ok()
        });
        let headers = lines.iter().skip(1).filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        });
        Ok(Self {
            status: status.ok_or("it does not speak ICAP")?,
            headers: headers.collect(),
        })
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The first of these headers, fit to be shown.
    fn first(&self, names: &[&str]) -> Option<String> {
        let value = names.iter().find_map(|name| self.get(name))?;
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        Some(value.chars().take(SAID_CHARACTERS).map(clean).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_service() {
        let shown = |url| IcapScan::new(url, Duration::ZERO).map(|scan| scan.to_string());
        for (url, expected) in [
            ("icap://scanner/avscan", "icap://scanner:1344/avscan"),
            ("icap://10.0.0.1:99/a/b?x=1", "icap://10.0.0.1:99/a/b?x=1"),
            ("icap://[::1]:99/a", "icap://[::1]:99/a"),
        ] {
            assert_eq!(shown(url).unwrap(), expected);
        }
        for url in [
            "http://scanner/x",
            "icap://scanner",
            "icap://scanner/",
            "icap:///x",
            "icap://user@scanner/x",
            "icap://scanner:x/y",
            "icap://scanner/a b",
            "icap://scanner/a\r\nX: y",
        ] {
            assert!(shown(url).is_err(), "{url}");
        }
    }

    #[test]
    fn k12_a_name_cannot_add_to_the_request() {
        let path = knarr_core::RelPath::new(*b"d/a b\r\nX: y\xff").unwrap();
        let scan = IcapScan::new("icap://scanner/x", Duration::ZERO).unwrap();
        let head = String::from_utf8(head(&scan, &Entry::file(path, 3))).unwrap();
        assert!(
            head.contains("/a%20b%0D%0AX%3A%20y%FF HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(!head.contains("\nX:"), "{head}");
    }
}
