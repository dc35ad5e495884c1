//! A disk that is soon full: tmpfs with a limit of bytes and of inodes. Root only.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::TestkitError;
use crate::error::must;
use crate::powercut::{require_root, unmount, unmount_lazily, unmount_watchdog};
use crate::process::Watchdog;
use crate::tools;

/// A mounted tmpfs with limits. Unmounted on drop.
#[derive(Debug)]
pub struct SmallDisk {
    mount_point: PathBuf,
    _watchdog: Watchdog,
    _directory: TempDir,
}

impl SmallDisk {
    /// Mounts one that holds so many bytes (rounded up to pages) and inodes (the root is one).
    ///
    /// # Panics
    ///
    /// Without root, or if it cannot be mounted.
    #[must_use]
    #[track_caller]
    pub fn new(bytes: u64, inodes: u64) -> Self {
        must(Self::try_new(bytes, inodes))
    }

    /// Mounts one that holds so many bytes (rounded up to pages) and inodes (the root is one).
    ///
    /// # Errors
    ///
    /// Without root, or if it cannot be mounted.
    pub fn try_new(bytes: u64, inodes: u64) -> Result<Self, TestkitError> {
        require_root("mounting a small disk")?;
        let directory = TempDir::with_prefix("knarr-small-");
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let mount_point = directory.path().join("disk");
        fs::create_dir(&mount_point).map_err(TestkitError::file("making", &mount_point))?;
        let watchdog = unmount_watchdog(&mount_point)?;
        let disk = Self {
            mount_point,
            _watchdog: watchdog,
            _directory: directory,
        };
        disk.mount(&format!("size={bytes},nr_inodes={inodes},mode=0755"))?;
        Ok(disk)
    }

    /// The root of the file system.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Changes the limits, as an administrator who makes room would.
    ///
    /// # Panics
    ///
    /// If the kernel refuses, because more is in use already.
    #[track_caller]
    pub fn resize(&self, bytes: u64, inodes: u64) {
        must(self.mount(&format!("remount,size={bytes},nr_inodes={inodes}")));
    }

    /// Makes it read-only.
    ///
    /// # Panics
    ///
    /// If the kernel refuses, because a file is open for writing.
    #[track_caller]
    pub fn make_read_only(&self) {
        must(self.mount("remount,ro"));
    }

    /// Makes it writable again.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    #[track_caller]
    pub fn make_writable(&self) {
        must(self.mount("remount,rw"));
    }

    fn mount(&self, options: &str) -> Result<(), TestkitError> {
        let mount = tools::find("mount", "the Debian package mount")?;
        let arguments = ["-t", "tmpfs", "-o", options, "knarr-small"].map(AsRef::as_ref);
        tools::run(
            &mount,
            arguments.into_iter().chain([self.mount_point.as_os_str()]),
        )?;
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if unmount(&self.mount_point).is_err() {
            unmount_lazily(&self.mount_point);
        }
    }
}
