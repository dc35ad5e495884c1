//! A power cut on a loop-mounted ext4 file system.
//!
//! Constraints: `kill -9` loses nothing that was written, since the page cache survives it. Here the
//! file system itself is told to stop without flushing its journal (`FS_IOC_SHUTDOWN` with
//! `NOLOGFLUSH`), so all that was not flushed is gone after the next mount, as after a power cut.
//! What it does not imitate: reordering below a finished flush, and torn sectors.
//!
//! The ioctl goes through a line of Python, because this workspace forbids unsafe code.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::TestkitError;
use crate::error::must;
use crate::process::Watchdog;
use crate::tools;
use crate::wait::poll;

const SHUT_DOWN: &str = "\
import fcntl, os, struct, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(handle, 0x8004587d, struct.pack('I', 2))
";

/// A mounted ext4 image whose power can be cut. Root only. Unmounted on drop.
#[derive(Debug)]
pub struct LoopDisk {
    mount_point: PathBuf,
    image: PathBuf,
    mounted: bool,
    _watchdog: Watchdog,
    _directory: TempDir,
}

impl LoopDisk {
    /// Makes and mounts a file system of so many MiB (16 at least).
    ///
    /// # Panics
    ///
    /// Without root, or if it cannot be made or mounted.
    #[must_use]
    #[track_caller]
    pub fn new(mebibytes: u64) -> Self {
        must(Self::try_new(mebibytes))
    }

    /// Makes and mounts a file system of so many MiB (16 at least).
    ///
    /// # Errors
    ///
    /// Without root, or if it cannot be made or mounted.
    pub fn try_new(mebibytes: u64) -> Result<Self, TestkitError> {
        require_root("a loop mount")?;
        let directory = TempDir::with_prefix("knarr-disk-");
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let image = directory.path().join("image");
        let file = File::create(&image).and_then(|file| file.set_len(mebibytes.max(16) << 20));
        file.map_err(TestkitError::file("making", &image))?;
        let format = tools::find("mkfs.ext4", "the Debian package e2fsprogs")?;
        // The tables are written now: a background thread of the kernel would disturb the test.
        let options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        tools::run(
            &format,
            options
                .map(AsRef::as_ref)
                .into_iter()
                .chain([image.as_os_str()]),
        )?;
        let mount_point = directory.path().join("disk");
        fs::create_dir(&mount_point).map_err(TestkitError::file("making", &mount_point))?;
        let watchdog = unmount_watchdog(&mount_point)?;
        let mut disk = Self {
            mount_point,
            image,
            mounted: false,
            _watchdog: watchdog,
            _directory: directory,
        };
        disk.mount()?;
        Ok(disk)
    }

    /// The root of the file system.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Cuts the power: from now on every operation on it fails, and what was not flushed is lost.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    #[track_caller]
    pub fn cut_power(&self) {
        let python = must(tools::find("python3", "the Debian package python3"));
        let arguments = ["-c", SHUT_DOWN].map(AsRef::as_ref);
        must(tools::run(
            &python,
            arguments.into_iter().chain([self.mount_point.as_os_str()]),
        ));
    }

    /// Mounts it again, which replays the journal. Whoever has a file open on it must close it first;
    /// up to ten seconds are given for that.
    ///
    /// # Panics
    ///
    /// If it stays busy or cannot be mounted.
    #[track_caller]
    pub fn remount(&mut self) {
        must(self.unmount());
        must(self.mount());
    }

    /// Cuts the power and mounts it again.
    ///
    /// # Panics
    ///
    /// See [`Self::cut_power`] and [`Self::remount`].
    #[track_caller]
    pub fn power_cycle(&mut self) {
        self.cut_power();
        self.remount();
    }

    fn mount(&mut self) -> Result<(), TestkitError> {
        let mount = tools::find("mount", "the Debian package mount")?;
        let options = ["-o", "loop,noatime"].map(AsRef::as_ref);
        let paths = [self.image.as_os_str(), self.mount_point.as_os_str()];
        tools::run(&mount, options.into_iter().chain(paths))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), TestkitError> {
        if self.mounted {
            unmount(&self.mount_point)?;
            self.mounted = false;
        }
        Ok(())
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            unmount_lazily(&self.mount_point);
        }
    }
}

pub(crate) fn require_root(what: &'static str) -> Result<(), TestkitError> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(TestkitError::NeedsRoot { what })
    }
}

pub(crate) fn unmount_watchdog(mount_point: &Path) -> Result<Watchdog, TestkitError> {
    // `rmdir` and not `rm -r`: what is still mounted must not be emptied.
    let script = "umount -l \"$1\"; rmdir \"$1\" && rm -rf -- \"${1%/disk}\"";
    Watchdog::arm(script, &[&mount_point.display().to_string()])
}

pub(crate) fn unmount(mount_point: &Path) -> Result<(), TestkitError> {
    let program = tools::find("umount", "the Debian package mount")?;
    let mut last = None;
    // Busy for a moment is normal: a process that was killed a moment ago still closes its files.
    let done = poll(Duration::from_secs(10), || {
        match tools::run(&program, [mount_point]) {
            Ok(_) => Some(()),
            Err(error) => {
                last = Some(error);
                None
            }
        }
    });
    match (done, last) {
        (None, Some(error)) => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn unmount_lazily(mount_point: &Path) {
    if let Ok(program) = tools::find("umount", "the Debian package mount") {
        tools::run(&program, ["-l".as_ref(), mount_point.as_os_str()]).ok();
    }
}
