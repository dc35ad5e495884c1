//! Checks the content of a file on its way, before anything of it has a name at the destination.
//!
//! What is found wrong is permanent: the file is parked with the reason, and its source stays.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use knarr_core::{Entry, RelPath};
use knarr_remote::{ReadOptions, Remote, RemoteError};
use knarr_steps::{ChecksumAlgorithm, Hasher, find_checksum};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};

use crate::content_type::{BEGINNING_BYTES, ContentType};
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
        self.checksum.is_none() && self.types.is_empty() && self.scan.is_none()
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
    ) -> Result<Inspection, TransferError> {
        let mut inspection = Inspection::default();
        if let (Some(algorithm), Some(side)) = (self.checksum, self.side_file(&entry.path)) {
            let text = read_side_file(source, &side).await?;
            let name = String::from_utf8_lossy(entry.path.name()).into_owned();
            let Some(expected) = find_checksum(&text, &name, algorithm) else {
                return Err(TransferError::Refused(format!(
                    "\"{side}\" has no checksum for it"
                )));
            };
            inspection.checksum = Some((Hasher::new(algorithm), expected, side));
        }
        if !self.types.is_empty() {
            inspection.types = Some((self.types.clone(), Vec::new()));
        }
        if let Some(scan) = &self.scan {
            inspection.scan = Some(Scanning::start(scan)?);
        }
        Ok(inspection)
    }
}

async fn read_side_file(source: &dyn Remote, side: &RelPath) -> Result<String, TransferError> {
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
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// The checks of one file, under way.
#[derive(Debug, Default)]
pub(crate) struct Inspection {
    checksum: Option<(Hasher, String, RelPath)>,
    types: Option<(Vec<ContentType>, Vec<u8>)>,
    scan: Option<Scanning>,
}

impl Inspection {
    /// Whether it has to see every byte.
    pub(crate) const fn is_needed(&self) -> bool {
        self.checksum.is_some() || self.types.is_some() || self.scan.is_some()
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// If they are not what they have to be.
    pub(crate) async fn update(&mut self, chunk: &Bytes) -> Result<(), TransferError> {
        if let Some((hasher, _, _)) = &mut self.checksum {
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
            scan.update(chunk).await;
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
        if let Some((mut hasher, expected, side)) = self.checksum.take() {
            let found = hasher.finish();
            if found != expected {
                return Err(TransferError::Refused(format!(
                    "its checksum is {found}, and \"{side}\" says {expected}"
                )));
            }
        }
        match self.scan.take() {
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
    timeout: Duration,
    program: PathBuf,
}

impl Scanning {
    fn start(scan: &ScanCommand) -> Result<Self, TransferError> {
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
            child,
            timeout: scan.timeout,
            program: scan.program.clone(),
        })
    }

    async fn update(&mut self, chunk: &[u8]) {
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(chunk).await.is_err()
        {
            // It has seen enough; how it ends says what of.
            self.stdin = None;
        }
    }

    async fn finish(mut self) -> Result<(), TransferError> {
        drop(self.stdin.take());
        let mut said = Vec::new();
        let mut stdout = self.child.stdout.take();
        let ended = async {
            if let Some(stdout) = &mut stdout {
                let mut limited = stdout.take(SAID_BYTES as u64);
                limited.read_to_end(&mut said).await?;
            }
            // Whoever says more than that may do so.
            if let Some(stdout) = &mut stdout {
                tokio::io::copy(stdout, &mut tokio::io::sink()).await?;
            }
            self.child.wait().await
        };
        let status = match tokio::time::timeout(self.timeout, ended).await {
            Ok(Ok(status)) => status,
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

fn failed(scan: &ScanCommand, reason: &str) -> TransferError {
    scanner_failed(&scan.program, reason)
}

fn scanner_failed(program: &std::path::Path, reason: &str) -> TransferError {
    TransferError::Unchecked(format!(
        "the scanner {} did not say whether it is clean: {reason}",
        program.display()
    ))
}
