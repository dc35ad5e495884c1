//! Where the data of the benchmarks lies, and how it is made and compared.
//!
//! Constraints: everything lies below one directory per kind of storage, which is removed at the end,
//! also if this process is killed. The same seed gives the same bytes, and no two files are equal.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use knarr_testkit::data::{Random, write_content};
use knarr_testkit::process::Watchdog;
use tempfile::TempDir;

use crate::Outcome;

/// One directory on one kind of storage.
#[derive(Debug)]
pub(crate) struct Space {
    // Before the directory, so that it is disarmed before that is removed.
    _watchdog: Watchdog,
    directory: TempDir,
    next: AtomicU64,
}

/// Many files of a kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tree {
    /// How many directories.
    pub(crate) directories: u64,
    /// How many files there are in each.
    pub(crate) files_each: u64,
    /// The least and the most bytes of a file.
    pub(crate) bytes: (u64, u64),
}

impl Space {
    /// A directory of its own below `parent`.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub(crate) fn below(parent: &Path) -> Result<Self, String> {
        fs::create_dir_all(parent)
            .map_err(|error| format!("cannot make {}: {error}", parent.display()))?;
        let directory = tempfile::Builder::new()
            .prefix("knarr-bench-")
            .tempdir_in(parent);
        let directory = directory
            .map_err(|error| format!("cannot make a directory in {}: {error}", parent.display()))?;
        let path = directory.path().display().to_string();
        let watchdog =
            Watchdog::arm("rm -rf -- \"$1\"", &[&path]).map_err(|error| error.chain())?;
        Ok(Self {
            directory,
            next: AtomicU64::new(0),
            _watchdog: watchdog,
        })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A new empty directory in it.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub(crate) fn fresh(&self, purpose: &str) -> Result<PathBuf, String> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path().join(format!("{purpose}-{number}"));
        fs::create_dir(&path)
            .map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        Ok(path)
    }

    /// Makes a directory with one file of this length, `big`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub(crate) fn big_file(&self, bytes: u64) -> Result<PathBuf, String> {
        let directory = self.fresh("big")?;
        let path = directory.join("big");
        File::create(&path)
            .and_then(|mut file| write_content(&mut file, 1, bytes))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(directory)
    }

    /// Makes a directory with many files.
    ///
    /// # Errors
    ///
    /// If something cannot be written.
    pub(crate) fn tree(&self, tree: Tree) -> Result<PathBuf, String> {
        let directory = self.fresh("tree")?;
        tree.write(&directory)
            .map_err(|error| format!("cannot write below {}: {error}", directory.display()))?;
        Ok(directory)
    }
}

impl Tree {
    /// How many files there are in all.
    pub(crate) fn files(self) -> u64 {
        self.directories * self.files_each
    }

    /// The path of each directory, relative.
    pub(crate) fn directory(number: u64) -> String {
        format!("d{number:04}")
    }

    /// The path of each file, relative, in the order in which they are written.
    pub(crate) fn paths(self) -> impl Iterator<Item = String> {
        (0..self.directories).flat_map(move |directory| {
            let directory = Self::directory(directory);
            (0..self.files_each).map(move |file| format!("{directory}/f{file:05}"))
        })
    }

    /// Writes the files below `root`, which exists.
    ///
    /// # Errors
    ///
    /// If something cannot be written.
    pub(crate) fn write(self, root: &Path) -> io::Result<()> {
        let mut random = Random::new(7);
        for directory in 0..self.directories {
            fs::create_dir(root.join(Self::directory(directory)))?;
        }
        let (least, most) = self.bytes;
        for path in self.paths() {
            let length = least + random.below(most - least + 1);
            let mut file = File::create(root.join(path))?;
            write_content(&mut file, random.bits(), length)?;
        }
        Ok(())
    }
}

/// What two trees are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    /// Every path and every length.
    Lengths,
    /// And every byte.
    Contents,
}

/// Holds what was delivered against what was to be delivered: every file is there, and no other.
///
/// # Errors
///
/// If they differ; the text names the first difference.
pub(crate) fn compare(source: &Path, destination: &Path, by: Compare) -> Outcome {
    let files = compare_directory(source, destination, by)?;
    let found = count_files(destination)
        .map_err(|error| format!("cannot list {}: {error}", destination.display()))?;
    if found == files {
        return Ok(());
    }
    Err(format!("{found} files where {files} should be"))
}

fn compare_directory(source: &Path, destination: &Path, by: Compare) -> Result<u64, String> {
    let cannot = |error| format!("cannot read {}: {error}", source.display());
    let mut files = 0;
    for entry in fs::read_dir(source).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let (from, to) = (entry.path(), destination.join(entry.file_name()));
        let metadata = entry.metadata().map_err(cannot)?;
        if metadata.is_dir() {
            files += compare_directory(&from, &to, by)?;
            continue;
        }
        files += 1;
        let missing = |error| format!("{} is not there: {error}", to.display());
        let length = fs::metadata(&to).map_err(missing)?.len();
        if length != metadata.len() {
            return Err(format!(
                "{} has {length} bytes, not {}",
                to.display(),
                metadata.len()
            ));
        }
        if by == Compare::Contents && !same_content(&from, &to).map_err(cannot)? {
            return Err(format!("{} has other bytes", to.display()));
        }
    }
    Ok(files)
}

fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        (&mut one).take(1 << 20).read_to_end(&mut left)?;
        (&mut other).take(1 << 20).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

/// How many files there are below a directory.
pub(crate) fn count_files(directory: &Path) -> io::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count += count_files(&entry.path())?;
        } else {
            count += 1;
        }
    }
    Ok(count)
}
