//! Two commands on the same pair exclude each other.

use std::path::Path;

use knarr_core::ContentHash;
use knarr_fs::lock::{FileLock, LockError, LockMode};

use crate::error::EngineError;
use crate::journal::PairLabel;

/// Held while a command works on a pair, in either direction; ends with the process, however that ends.
#[derive(Debug)]
pub(crate) struct PairLock {
    _lock: FileLock,
}

impl PairLock {
    /// Takes the lock of `pair` below `directory`.
    ///
    /// # Errors
    /// [`EngineError::Busy`] if another process has it.
    pub(crate) fn acquire(directory: &Path, pair: &PairLabel) -> Result<Self, EngineError> {
        let io =
            |path: &Path, source: Box<dyn std::error::Error + Send + Sync>| EngineError::Lock {
                path: path.to_path_buf(),
                source,
            };
        std::fs::create_dir_all(directory).map_err(|error| io(directory, error.into()))?;
        // The same two places in the other direction are the same pair.
        let mut ends = [pair.source.as_str(), pair.destination.as_str()];
        ends.sort_unstable();
        let digest = ContentHash::of(ends.join("\0").as_bytes()).to_string();
        let path = directory.join(format!("pair-{}.lock", digest.get(..32).unwrap_or(&digest)));
        let purpose = format!("knarr {} {} {}", pair.job, pair.source, pair.destination);
        match FileLock::acquire(&path, LockMode::Exclusive, &purpose) {
            Ok(lock) => Ok(Self { _lock: lock }),
            Err(LockError::Held { holder, .. }) => Err(EngineError::Busy { holder }),
            Err(error) => Err(io(&path, error.into())),
        }
    }
}
