//! A log file that begins anew when it is long.
//!
//! Constraints: a line is written whole, into one file; none is lost by a rotation: the old file gets its
//! new name first, and as long as no new one can be made, lines go on into the old one. Names are kept
//! short: `FILE.1` is the newest of the older ones. A log is not durable, on purpose: it must not hold up
//! what it tells of.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, renameat};

/// Whoever may read the group's files may read the log; nobody else.
const MODE: u32 = 0o640;

/// A log file.
#[derive(Debug)]
pub(crate) struct Rotating {
    path: PathBuf,
    max_bytes: u64,
    keep: u32,
    file: File,
    written_bytes: u64,
}

impl Rotating {
    /// Goes on with the file at `path`, or makes it. It begins anew before it would have more than
    /// `max_bytes`, and `keep` older ones are kept.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn open(path: &Path, max_bytes: u64, keep: u32) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = append(path)?;
        let written_bytes = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            max_bytes,
            keep,
            file,
            written_bytes,
        })
    }

    /// Writes one line, in one piece.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub(crate) fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.written_bytes > 0 && self.written_bytes.saturating_add(length) > self.max_bytes {
            // A longer log is better than a line less.
            self.rotate().ok();
        }
        self.file.write_all(line)?;
        self.written_bytes = self.written_bytes.saturating_add(length);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        // From the oldest on, so that each name is free when it is needed.
        for number in (1..self.keep).rev() {
            let (from, to) = (self.older(number), self.older(number + 1));
            match renameat(CWD, &from, CWD, &to) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if self.keep > 0 {
            renameat(CWD, &self.path, CWD, self.older(1))?;
        } else {
            std::fs::remove_file(&self.path)?;
        }
        self.file = append(&self.path)?;
        self.written_bytes = self.file.metadata()?.len();
        Ok(())
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(MODE)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn no_line_is_lost_or_torn_by_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/knarr.log");
        let mut log = Rotating::open(&path, 1_000, 100).unwrap();
        let line = |number: usize| format!("{number} {}\n", "x".repeat(number % 90));
        for number in 0..500 {
            log.write_line(line(number).as_bytes()).unwrap();
            if number == 250 {
                log = Rotating::open(&path, 1_000, 100).unwrap();
            }
        }
        let mut all = Vec::new();
        for number in (1..=100).rev() {
            let older = log.older(number);
            assert!(std::fs::metadata(&older).map_or(0, |file| file.len()) <= 1_000);
            all.extend(lines(&older));
        }
        all.extend(lines(&path));
        let expected: Vec<String> = (0..500)
            .map(|number| line(number).trim_end_matches('\n').to_owned())
            .collect();
        assert_eq!(all, expected);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "nobody else reads it: {mode:o}");
    }

    #[test]
    fn only_so_many_older_files_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        for (keep, files) in [(0, 1), (2, 3)] {
            let path = directory.path().join(format!("{keep}/log"));
            let mut log = Rotating::open(&path, 10, keep).unwrap();
            for number in 0..50 {
                log.write_line(format!("line {number}\n").as_bytes())
                    .unwrap();
            }
            let left = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
            assert_eq!(left, files);
            assert_eq!(lines(&path), ["line 49"]);
        }
    }

    #[test]
    fn where_no_new_file_can_be_made_the_old_one_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Rotating::open(&path, 10, 1).unwrap();
        log.write_line(b"first one\n").unwrap();
        // The name that the old file would get is taken by a directory.
        std::fs::create_dir(directory.path().join("log.1")).unwrap();
        log.write_line(b"second one\n").unwrap();
        assert_eq!(lines(&path), ["first one", "second one"]);
    }
}
