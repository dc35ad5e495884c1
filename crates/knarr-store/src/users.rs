//! Who else has the state directory open, and whether its file was caught being damaged.
//!
//! `knarr.users` is locked (`flock`) by every process for as long as it has the store open: shared, or
//! for a moment exclusively by one that finds itself alone. Only who is alone may examine the file
//! before use, create it or set it aside: nobody can have it open then. The lock ends with the process,
//! however that ends.
//!
//! `knarr.suspect` is written when a read meets damage, and makes the next opening that finds itself
//! alone look at everything.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::StoreError;

/// Whether others have the store open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    Alone,
    Others,
}

/// The lock; given back on drop.
#[derive(Debug)]
pub(crate) struct Users(File);

impl Users {
    /// Takes the lock, exclusively if nobody has it. Waits while somebody has it exclusively.
    pub(crate) fn enter(path: &Path) -> std::io::Result<(Self, Company)> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::openat(
            CWD,
            path,
            flags,
            Mode::from_raw_mode(0o600),
        )?);
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok((Self(file), Company::Alone)),
            Err(Errno::AGAIN) => {
                flock(&file, FlockOperation::LockShared)?;
                Ok((Self(file), Company::Others))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Lets others in.
    pub(crate) fn share(&self) -> std::io::Result<()> {
        Ok(flock(&self.0, FlockOperation::LockShared)?)
    }
}

fn flock(file: &File, operation: FlockOperation) -> Result<(), Errno> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Remembers that the file was caught being damaged.
#[derive(Debug, Clone)]
pub(crate) struct Suspicion(Arc<(PathBuf, AtomicBool)>);

impl Suspicion {
    pub(crate) fn new(marker: PathBuf) -> Self {
        Self(Arc::new((marker, AtomicBool::new(false))))
    }

    /// Leaves the marker if `error` blames the file.
    pub(crate) fn note(&self, error: &StoreError) {
        let (marker, noted) = &*self.0;
        if !error.blames_the_file() || noted.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::error!(%error, "the state database is damaged; the next start examines it");
        if let Err(error) = knarr_fs::durable::write_file(marker, b"damage was met\n", 0o600) {
            tracing::error!(%error, "and that could not even be noted");
        }
    }
}
