//! Builds seeded trees of files.

use std::fs::{self, File, FileTimes};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, Mode, mkfifoat};

use super::{Random, nasty_names};
use crate::TestkitError;

/// Where the times of fixtures start: 2020-09-13, long past, so that nothing looks freshly written.
const EPOCH_SECONDS: u64 = 1_600_000_000;

/// What was built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeSummary {
    /// Number of regular files.
    pub files: u64,
    /// Number of directories, without the root.
    pub directories: u64,
    /// Sum of the lengths of the files, in bytes.
    pub bytes: u64,
}

/// What a tree is to be like. By default: 100 files of up to 8 KiB in 10 directories.
#[derive(Debug, Clone)]
pub struct TreeBuilder {
    seed: u64,
    files: u64,
    directories: u64,
    sizes: RangeInclusive<u64>,
    nasty: bool,
    links: bool,
    specials: bool,
    depth: u32,
    empty: bool,
    sparse: Option<u64>,
}

impl TreeBuilder {
    /// A tree that follows from this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            files: 100,
            directories: 10,
            sizes: 0..=8192,
            nasty: false,
            links: false,
            specials: false,
            depth: 0,
            empty: false,
            sparse: None,
        }
    }

    /// Number of regular files with plain names.
    #[must_use]
    pub fn files(mut self, count: u64) -> Self {
        self.files = count;
        self
    }

    /// Number of directories that these files are spread over.
    #[must_use]
    pub fn directories(mut self, count: u64) -> Self {
        self.directories = count;
        self
    }

    /// Lengths of these files, in bytes; small ones are likelier, as in life, and each power of
    /// two is as likely as the next.
    #[must_use]
    pub fn sizes(mut self, range: RangeInclusive<u64>) -> Self {
        self.sizes = range;
        self
    }

    /// Adds a directory `nasty` with a file of each [`nasty_names`] name.
    #[must_use]
    pub fn nasty_names(mut self) -> Self {
        self.nasty = true;
        self
    }

    /// Adds a directory `links` with symlinks: to a file, dangling, in a loop, out of the tree.
    #[must_use]
    pub fn links(mut self) -> Self {
        self.links = true;
        self
    }

    /// Adds a FIFO.
    #[must_use]
    pub fn specials(mut self) -> Self {
        self.specials = true;
        self
    }

    /// Adds a file so many directories deep.
    #[must_use]
    pub fn depth(mut self, levels: u32) -> Self {
        self.depth = levels;
        self
    }

    /// Adds an empty file and an empty directory.
    #[must_use]
    pub fn empty(mut self) -> Self {
        self.empty = true;
        self
    }

    /// Adds a sparse file of this length, with a few bytes at its end.
    #[must_use]
    pub fn sparse(mut self, length: u64) -> Self {
        self.sparse = Some(length);
        self
    }

    /// Builds it below `root`, which is made if it does not exist.
    ///
    /// # Panics
    ///
    /// If something cannot be written; the message names the path.
    #[track_caller]
    pub fn build(&self, root: &Path) -> TreeSummary {
        crate::error::must(self.try_build(root))
    }

    /// Builds it below `root`, which is made if it does not exist.
    ///
    /// # Errors
    ///
    /// If something cannot be written; the error names the path.
    pub fn try_build(&self, root: &Path) -> Result<TreeSummary, TestkitError> {
        let mut site = Site {
            random: Random::new(self.seed),
            summary: TreeSummary::default(),
        };
        fs::create_dir_all(root).map_err(TestkitError::file("making", root))?;
        let directories = self.build_directories(root, &mut site)?;
        for number in 0..self.files {
            let directory = &directories[site.random.index(directories.len())];
            let size = self.draw_size(&mut site.random);
            site.file(&directory.join(format!("file-{number:06}")), size)?;
        }
        if self.nasty {
            let directory = root.join("nasty");
            site.directory(&directory)?;
            for name in nasty_names() {
                let size = 1 + site.random.below(100);
                site.file(&directory.join(name.to_os_string()), size)?;
            }
        }
        self.build_extras(root, &mut site)?;
        Ok(site.summary)
    }

    fn build_directories(
        &self,
        root: &Path,
        site: &mut Site,
    ) -> Result<Vec<PathBuf>, TestkitError> {
        let mut directories = vec![root.to_owned()];
        for number in 0..self.directories {
            let parent = site.random.index(directories.len());
            let directory = directories[parent].join(format!("dir-{number:04}"));
            site.directory(&directory)?;
            directories.push(directory);
        }
        Ok(directories)
    }

    fn build_extras(&self, root: &Path, site: &mut Site) -> Result<(), TestkitError> {
        if self.depth > 0 {
            let mut directory = root.to_owned();
            for _ in 0..self.depth {
                directory.push("deep");
                site.directory(&directory)?;
            }
            site.file(&directory.join("bottom"), 10)?;
        }
        if self.empty {
            site.file(&root.join("empty-file"), 0)?;
            site.directory(&root.join("empty-directory"))?;
        }
        if let Some(length) = self.sparse {
            let path = root.join("sparse");
            make_sparse(&path, length).map_err(TestkitError::file("writing", &path))?;
            site.summary.files += 1;
            site.summary.bytes += length;
        }
        if self.links {
            build_links(root, site)?;
        }
        if self.specials {
            let path = root.join("fifo");
            mkfifoat(CWD, &path, Mode::from_raw_mode(0o644))
                .map_err(|errno| TestkitError::file("making", &path)(errno.into()))?;
        }
        Ok(())
    }

    fn draw_size(&self, random: &mut Random) -> u64 {
        let (low, high) = (*self.sizes.start(), *self.sizes.end());
        let span = high.saturating_sub(low);
        // A random number of bits, then a random number of that many bits.
        let bits = u64::BITS - span.leading_zeros();
        let bits = random.below(u64::from(bits) + 1);
        let limit = 1_u64
            .checked_shl(u32::try_from(bits).unwrap_or(63))
            .unwrap_or(u64::MAX);
        low + random.below(limit).min(span)
    }
}

fn build_links(root: &Path, site: &mut Site) -> Result<(), TestkitError> {
    let directory = root.join("links");
    site.directory(&directory)?;
    site.file(&directory.join("target"), 100)?;
    for (name, target) in [
        ("to-file", "target"),
        ("to-directory", ".."),
        ("dangling", "no-such-file"),
        ("loop-a", "loop-b"),
        ("loop-b", "loop-a"),
        ("to-itself", "to-itself"),
        ("out-of-the-tree", "../../../../../../etc/hostname"),
        ("absolute", "/etc/hostname"),
    ] {
        let path = directory.join(name);
        symlink(target, &path).map_err(TestkitError::file("making", &path))?;
    }
    Ok(())
}

fn make_sparse(path: &Path, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = File::create(path)?;
    file.set_len(length)?;
    let tail = b"end of the hole";
    let start = length.saturating_sub(u64::try_from(tail.len()).unwrap_or(0));
    file.write_all_at(tail, start)?;
    file.set_len(length)?;
    file.set_times(FileTimes::new().set_modified(time(0)))
}

fn time(offset: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS + offset)
}

/// What is being built.
struct Site {
    random: Random,
    summary: TreeSummary,
}

impl Site {
    fn directory(&mut self, path: &Path) -> Result<(), TestkitError> {
        fs::create_dir(path).map_err(TestkitError::file("making", path))?;
        self.summary.directories += 1;
        Ok(())
    }

    fn file(&mut self, path: &Path, size: u64) -> Result<(), TestkitError> {
        let (seed, offset) = (self.random.bits(), self.random.below(10_000_000));
        let written = File::create(path).and_then(|mut file| {
            write_content(&mut file, seed, size)?;
            file.set_times(FileTimes::new().set_modified(time(offset)))
        });
        written.map_err(TestkitError::file("writing", path))?;
        self.summary.files += 1;
        self.summary.bytes += size;
        Ok(())
    }
}

/// Writes `length` bytes that follow from the seed and cannot be compressed.
///
/// # Errors
///
/// What the writer says.
pub fn write_content(to: &mut impl io::Write, seed: u64, length: u64) -> io::Result<()> {
    let mut source = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    let mut buffer = vec![0; usize::try_from(length.min(256 * 1024)).unwrap_or(0)];
    let mut left = length;
    while left > 0 {
        let step = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let chunk = buffer.get_mut(..step).unwrap_or_default();
        source.fill(chunk);
        to.write_all(chunk)?;
        left -= u64::try_from(step).unwrap_or(0);
    }
    Ok(())
}

/// `length` bytes that follow from the seed: what [`write_content`] writes.
#[must_use]
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}
