//! One at a time: a lock that ends with its process, however that ends.
//!
//! The lock is `flock`'s, on a file that stays when the lock is given back: removing it would let two
//! processes hold locks on two files of the same name. The file says who holds it and for what, at
//! most [`HOLDER_BYTES`]; that text is for people and decides nothing.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use knarr_core::path::printable;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{FsError, ShownPath};
use crate::sys;

/// How much of the text about the holder is read.
pub const HOLDER_BYTES: usize = 512;

/// Whether others may hold the lock, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Nobody else may.
    Exclusive,
    /// Others may that want it shared.
    Shared,
}

/// A held lock; given back when dropped.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
    path: PathBuf,
}

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("\"{path}\" is locked by another process ({holder}); wait for it or stop it")]
    Held {
        /// The lock's file.
        path: ShownPath,
        /// Who, and what it does, as it said itself.
        holder: String,
    },
    /// The file could not be opened, or the file system has no locks.
    #[error("the lock cannot be taken")]
    Io(#[source] FsError),
}

impl FileLock {
    /// Takes the lock in the file at `path`, which is made if it is missing, or fails at once.
    /// `purpose` says what it is for ("knarr run"); a shared lock does not write it.
    ///
    /// # Errors
    /// [`LockError::Held`] with who holds it.
    pub fn acquire(path: &Path, mode: LockMode, purpose: &str) -> Result<Self, LockError> {
        let io = |operation| move |errno: Errno| LockError::Io(FsError::io(operation, path, errno));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file =
            sys::retrying(|| rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o644)));
        let mut file = File::from(file.map_err(io("open"))?);
        let operation = match mode {
            LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
            LockMode::Shared => FlockOperation::NonBlockingLockShared,
        };
        match sys::retrying(|| rustix::fs::flock(&file, operation)) {
            Ok(()) => {}
            Err(Errno::AGAIN) => {
                let path = path.to_path_buf().into();
                return Err(LockError::Held {
                    path,
                    holder: holder_in(&file),
                });
            }
            Err(errno) => return Err(io("lock")(errno)),
        }
        if mode == LockMode::Exclusive {
            let text = format!("process {}, {purpose}\n", std::process::id());
            let written = file
                .set_len(0)
                .and_then(|()| file.seek(SeekFrom::Start(0)))
                .and_then(|_| file.write_all(text.as_bytes()));
            if let Err(error) = written {
                // The lock holds all the same; only the message of others will say less.
                tracing::debug!(%error, "cannot write who holds the lock");
            }
        }
        Ok(Self {
            _file: file,
            path: path.to_path_buf(),
        })
    }

    /// The lock's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn holder_in(file: &File) -> String {
    let mut bytes = [0; HOLDER_BYTES];
    let count = file.read_at(&mut bytes, 0).unwrap_or(0);
    let text = bytes.get(..count).unwrap_or_default().trim_ascii();
    if text.is_empty() {
        "it did not say which".to_owned()
    } else {
        printable(text).to_string()
    }
}
