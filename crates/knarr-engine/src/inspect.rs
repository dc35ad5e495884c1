//! Checks the content of a file on its way, before anything of it has a name at the destination.
//!
//! What is found wrong is permanent: the file is parked with the reason, and its source stays.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use knarr_core::entry::Fingerprint;
use knarr_core::{Entry, RelPath};
use knarr_remote::{ReadOptions, Remote, RemoteError};
use knarr_steps::{ChecksumAlgorithm, Hasher, find_checksum};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::content_type::{BEGINNING_BYTES, ContentType};
use crate::icap::{self, IcapScan};
use crate::transfer::TransferError;

/// The longest side file that is read.
const SIDE_FILE_BYTES: u64 = 64 * 1024;
/// How much of what a scanner says is kept.
const SAID_BYTES: usize = 512;

/// What is asked of each file's content.
#[derive(Debug, Clone, Default)]
pub struct FileChecks {
    /// The checksum that stands in a file beside it: `name.sha256`.
    pub checksum: Option<ChecksumAlgorithm>,
    /// The only kinds of content that are taken; all if there are none.
    pub types: Vec<ContentType>,
    /// A program that gets the content on its standard input.
    pub scan: Option<ScanCommand>,
    /// A scanner that is asked over ICAP.
    pub icap: Option<IcapScan>,
    /// Whether the SHA-256 of each file is worked out, for whoever is told of it.
    pub digest: Digest,
}

/// Whether the SHA-256 of each file's content is worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Digest {
    /// Nobody asks for it.
    #[default]
    Unneeded,
    /// It is.
    Sha256,
}

/// The most files with checksums that are remembered; others stay at the source.
const SIDE_FILES: usize = 10_000;

/// Files with checksums, as they were when they were read: only those are removed with their files.
#[derive(Debug, Clone, Default)]
pub(crate) struct SideFiles(Arc<Mutex<BTreeMap<RelPath, Fingerprint>>>);

impl SideFiles {
    fn note(&self, path: &RelPath, seen: Fingerprint) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < SIDE_FILES || all.contains_key(path) {
            all.insert(path.clone(), seen);
        }
    }

    /// As it was, if it was read; forgets it.
    pub(crate) fn take(&self, path: &RelPath) -> Option<Fingerprint> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(path)
    }
}

/// A program that says whether content is clean: it ends with 0 if so, with 1 if not. Only the local
/// configuration file can name one (K12).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanCommand {
    /// An absolute path.
    pub program: PathBuf,
    /// Its arguments, as they are: no placeholders, no shell.
    pub arguments: Vec<OsString>,
    /// How long it may take after the last byte.
    pub timeout: Duration,
}

impl FileChecks {
    /// Whether there is nothing to check.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.checksum.is_none()
            && self.types.is_empty()
            && self.scan.is_none()
            && self.icap.is_none()
            && self.digest == Digest::Unneeded
    }

    /// The name of the file with the checksum.
    pub(crate) fn side_file(&self, path: &RelPath) -> Option<RelPath> {
        let suffix = self.checksum?.suffix();
        let name = [path.name(), suffix.as_bytes()].concat();
        path.with_name(&name).ok()
    }

    /// Begins to check a file; reads the file beside it.
    ///
    /// # Errors
    /// [`TransferError::Waiting`] if that is not there yet; if it cannot be read, or the scanner started.
    pub(crate) async fn begin(
        &self,
        source: &dyn Remote,
        entry: &Entry,
        cancel: &CancellationToken,
        side_files: &SideFiles,
    ) -> Result<Inspection, TransferError> {
        let mut inspection = Inspection::default();
        if let (Some(algorithm), Some(side)) = (self.checksum, self.side_file(&entry.path)) {
            let (text, seen) = read_side_file(source, &side).await?;
            side_files.note(&side, seen);
            let name = String::from_utf8_lossy(entry.path.name()).into_owned();
            let Some(expected) = find_checksum(&text, &name, algorithm) else {
                return Err(TransferError::Refused(format!(
                    "\"{side}\" has no checksum for it"
                )));
            };
            inspection.expect(algorithm, expected, side);
        }
        if self.digest == Digest::Sha256 {
            inspection.digest = Some(Hasher::new(ChecksumAlgorithm::Sha256));
        }
        if !self.types.is_empty() {
            inspection.types = Some((self.types.clone(), Vec::new()));
        }
        if let Some(scan) = &self.scan {
            inspection.scan = Some(Scanning::start(scan, cancel)?);
        }
        if let Some(scan) = &self.icap {
            let scanning = icap::Scanning::start(scan, entry, cancel).await?;
            inspection.icap = Some(scanning);
        }
        Ok(inspection)
    }
}

async fn read_side_file(
    source: &dyn Remote,
    side: &RelPath,
) -> Result<(String, Fingerprint), TransferError> {
    let there = source.stat(side).await.map_err(TransferError::Source)?;
    let Some(there) = there else {
        return Err(TransferError::Waiting(format!(
            "\"{side}\" with its checksum is not there yet"
        )));
    };
    if there.size > SIDE_FILE_BYTES {
        return Err(TransferError::Refused(format!(
            "\"{side}\" is too large for a file with a checksum"
        )));
    }
    let read = async {
        let options = ReadOptions {
            offset: 0,
            expected: Some(there.fingerprint()),
        };
        let mut reader = source.read(side, options).await?;
        let mut content = Vec::new();
        while let Some(chunk) = reader.next().await? {
            content.extend_from_slice(&chunk);
        }
        Ok::<_, RemoteError>(content)
    };
    let content = read.await.map_err(TransferError::Source)?;
    let text = String::from_utf8_lossy(&content).into_owned();
    Ok((text, there.fingerprint()))
}

/// The checks of one file, under way.
#[derive(Debug, Default)]
pub(crate) struct Inspection {
    /// What each has to come to, and where that stands.
    checksums: Vec<(Hasher, String, RelPath)>,
    types: Option<(Vec<ContentType>, Vec<u8>)>,
    scan: Option<Scanning>,
    icap: Option<icap::Scanning>,
    digest: Option<Hasher>,
    sha256: Option<String>,
}

impl Inspection {
    /// Has the content compared with a checksum, which stands in the file `said_by`.
    pub(crate) fn expect(
        &mut self,
        algorithm: ChecksumAlgorithm,
        checksum: String,
        said_by: RelPath,
    ) {
        let expected = (Hasher::new(algorithm), checksum, said_by);
        self.checksums.push(expected);
    }

    /// The SHA-256 of the content, if the job asks for it and all of it was seen.
    pub(crate) fn take_sha256(&mut self) -> Option<String> {
        self.sha256.take()
    }

    /// Whether it has to see every byte.
    pub(crate) const fn is_needed(&self) -> bool {
        !self.checksums.is_empty()
            || self.types.is_some()
            || self.scan.is_some()
            || self.icap.is_some()
            || self.digest.is_some()
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// If they are not what they have to be.
    pub(crate) async fn update(&mut self, chunk: &Bytes) -> Result<(), TransferError> {
        for (hasher, _, _) in &mut self.checksums {
            hasher.update(chunk);
        }
        if let Some(hasher) = &mut self.digest {
            hasher.update(chunk);
        }
        if let Some((_, beginning)) = &mut self.types {
            let room = BEGINNING_BYTES.saturating_sub(beginning.len());
            beginning.extend(chunk.iter().take(room));
            if beginning.len() >= BEGINNING_BYTES {
                self.check_type()?;
            }
        }
        if let Some(scan) = &mut self.scan {
            scan.update(chunk).await?;
        }
        if let Some(scan) = &mut self.icap {
            scan.update(chunk).await?;
        }
        Ok(())
    }

    fn check_type(&mut self) -> Result<(), TransferError> {
        let Some((types, beginning)) = self.types.take() else {
            return Ok(());
        };
        if types.iter().any(|kind| kind.fits(&beginning)) {
            return Ok(());
        }
        let names: Vec<&str> = types.iter().map(|kind| kind.name()).collect();
        Err(TransferError::Refused(format!(
            "its content is none of {}, as far as its beginning tells",
            names.join(", ")
        )))
    }

    /// No more bytes come.
    ///
    /// # Errors
    /// If the content is not what it has to be, or nobody could tell.
    pub(crate) async fn finish(&mut self) -> Result<(), TransferError> {
        self.check_type()?;
        self.sha256 = self.digest.take().map(|mut hasher| hasher.finish());
        for (mut hasher, expected, side) in std::mem::take(&mut self.checksums) {
            let found = hasher.finish();
            if found != expected {
                return Err(TransferError::Refused(format!(
                    "its checksum is {found}, and \"{side}\" says {expected}"
                )));
            }
        }
        if let Some(scan) = self.scan.take() {
            scan.finish().await?;
        }
        match self.icap.take() {
            Some(scan) => scan.finish().await,
            None => Ok(()),
        }
    }
}

/// A scanner at work. It is killed if the file is given up.
#[derive(Debug)]
struct Scanning {
    child: Child,
    stdin: Option<ChildStdin>,
    /// What it says, read all the time, so that it can go on.
    said: Option<JoinHandle<Vec<u8>>>,
    timeout: Duration,
    program: PathBuf,
    cancel: CancellationToken,
}

impl Scanning {
    fn start(scan: &ScanCommand, cancel: &CancellationToken) -> Result<Self, TransferError> {
        let mut child = Command::new(&scan.program)
            .args(&scan.arguments)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(scan, &format!("it cannot be started: {error}")))?;
        Ok(Self {
            stdin: child.stdin.take(),
            said: child
                .stdout
                .take()
                .map(|stdout| tokio::spawn(listen(stdout))),
            child,
            cancel: cancel.clone(),
            timeout: scan.timeout,
            program: scan.program.clone(),
        })
    }

    async fn update(&mut self, chunk: &[u8]) -> Result<(), TransferError> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(());
        };
        let written = tokio::select! {
            () = self.cancel.cancelled() => return Err(TransferError::Cancelled),
            written = tokio::time::timeout(self.timeout, stdin.write_all(chunk)) => written,
        };
        match written {
            Ok(Ok(())) => Ok(()),
            // It has seen enough; how it ends says what of.
            Ok(Err(_closed)) => {
                self.stdin = None;
                Ok(())
            }
            Err(_late) => Err(scanner_failed(
                &self.program,
                "it does not read what it is given",
            )),
        }
    }

    async fn finish(mut self) -> Result<(), TransferError> {
        drop(self.stdin.take());
        let ended = async {
            let said = match self.said.take() {
                Some(said) => said.await.unwrap_or_default(),
                None => Vec::new(),
            };
            self.child.wait().await.map(|status| (status, said))
        };
        let ended = tokio::select! {
            () = self.cancel.cancelled() => return Err(TransferError::Cancelled),
            ended = tokio::time::timeout(self.timeout, ended) => ended,
        };
        let (status, said) = match ended {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => return Err(scanner_failed(&self.program, &error.to_string())),
            Err(_late) => return Err(scanner_failed(&self.program, "it took too long")),
        };
        let said: String = String::from_utf8_lossy(&said)
            .trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        match status.code() {
            Some(0) => Ok(()),
            Some(1) => Err(TransferError::Refused(format!(
                "the scanner {} refuses it: {said}",
                self.program.display()
            ))),
            _ => Err(scanner_failed(&self.program, &format!("{status}: {said}"))),
        }
    }
}

/// Reads what a scanner says to its end; keeps the beginning.
async fn listen(mut stdout: ChildStdout) -> Vec<u8> {
    let mut said = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        match stdout.read(&mut buffer).await {
            Ok(0) | Err(_) => return said,
            Ok(read) => {
                let room = SAID_BYTES.saturating_sub(said.len());
                said.extend(buffer.iter().take(read.min(room)));
            }
        }
    }
}

fn failed(scan: &ScanCommand, reason: &str) -> TransferError {
    scanner_failed(&scan.program, reason)
}

fn scanner_failed(program: &std::path::Path, reason: &str) -> TransferError {
    TransferError::Unchecked(format!(
        "the scanner {} did not say whether it is clean: {reason}",
        program.display()
    ))
}
