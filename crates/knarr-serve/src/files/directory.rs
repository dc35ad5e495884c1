//! A directory that a client lists.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::time::{Clock as _, SystemClock};
use knarr_sftp::codec::{Attributes, FilesystemStatistics, NameEntry};
use knarr_sftp::server::{DirectoryBatch, FileError, OpenDirectory};
use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use crate::files::attributes::{attributes_of, set_open, statistics_of};
use crate::files::local::Shared;
use crate::files::long_name::long_name;
use crate::files::place::{Place, STAGED_PREFIX, failed};
use crate::files::policy::Permission;

pub(crate) struct LocalDirectory {
    pub(crate) shared: Arc<Shared>,
    pub(crate) directory: Dir,
    /// Its path in normal form.
    pub(crate) path: Vec<u8>,
}

impl LocalDirectory {
    fn is_shown(&self, name: &[u8]) -> bool {
        match self.shared.place {
            Place::Plain => true,
            // The directory above the root is not the client's to see.
            Place::Confined { .. } => {
                !matches!(name, b"." | b"..") && !name.starts_with(STAGED_PREFIX)
            }
        }
    }

    fn entry(&self, name: &[u8], now_seconds: i64) -> Result<Option<NameEntry>, FileError> {
        let at = self.directory.fd().map_err(failed)?;
        let stat = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed since it was read.
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        let shared = &self.shared;
        let line = long_name(name, &stat, &shared.names, &shared.zone, now_seconds);
        Ok(Some(NameEntry {
            name: Bytes::copy_from_slice(name),
            long_name: Bytes::from(line),
            attributes: attributes_of(&stat),
        }))
    }
}

#[async_trait]
impl OpenDirectory for LocalDirectory {
    async fn next(&mut self, limit: usize) -> Result<DirectoryBatch, FileError> {
        let now_seconds = SystemClock.now().seconds();
        let mut names = Vec::new();
        while names.len() < limit {
            let Some(entry) = self.directory.read() else {
                break;
            };
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if self.is_shown(name) {
                names.extend(self.entry(name, now_seconds)?);
            }
        }
        Ok(if names.is_empty() {
            DirectoryBatch::End
        } else {
            DirectoryBatch::Names(names)
        })
    }

    async fn stat(&mut self) -> Result<Attributes, FileError> {
        let stat = self.directory.stat().map_err(failed)?;
        Ok(attributes_of(&stat))
    }

    async fn set_attributes(&mut self, attributes: &Attributes) -> Result<(), FileError> {
        let shared = &self.shared;
        shared.policy.check(&self.path, Permission::SetAttributes)?;
        if attributes.size.is_some() {
            return Err(FileError::Invalid {
                reason: "a directory cannot be truncated",
            });
        }
        let handle = self.directory.fd().map_err(failed)?;
        set_open(&self.shared.place, handle.as_fd(), attributes)
    }

    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError> {
        let statistics = self.directory.statvfs().map_err(failed)?;
        Ok(statistics_of(&statistics))
    }
}
