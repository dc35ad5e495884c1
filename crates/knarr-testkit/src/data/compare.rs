//! Compares trees, with differences that a person can read.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

/// One node of a tree, as far as it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// BLAKE3 of its content.
        hash: blake3::Hash,
        /// Time of modification, in nanoseconds since 1970.
        modified: i128,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link with its target.
    Link(Vec<u8>),
    /// A FIFO, a socket or a device.
    Special(&'static str),
}

/// What counts as the same.
#[derive(Debug, Clone, Default)]
pub struct Compare {
    /// Modification times may differ by so much; `None`: they are not compared.
    pub modified_within: Option<Duration>,
    /// Whether permission bits are compared.
    pub modes: bool,
    /// Whether directories are compared (object stores have none).
    pub directories: bool,
}

impl Compare {
    /// Content, kinds, directories, times to the nanosecond.
    #[must_use]
    pub fn exact() -> Self {
        Self {
            modified_within: Some(Duration::ZERO),
            modes: false,
            directories: true,
        }
    }

    /// Content, kinds, directories, times to the second: what SFTP version 3 can carry.
    #[must_use]
    pub fn to_the_second() -> Self {
        Self {
            modified_within: Some(Duration::from_secs(1)),
            ..Self::exact()
        }
    }

    /// Names and content of files only.
    #[must_use]
    pub fn content() -> Self {
        Self::default()
    }
}

/// Reads a tree: every node below `root`, by the bytes of its relative path. Names that start with
/// `.knarr-` are left out only if `keep_staged` is false.
///
/// # Errors
///
/// If something cannot be read; the message names the path.
pub fn read_tree(root: &Path, keep_staged: bool) -> io::Result<BTreeMap<Vec<u8>, Node>> {
    let mut nodes = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        let entries = fs::read_dir(&directory).map_err(|error| named(&directory, &error))?;
        for entry in entries {
            let path = entry?.path();
            let staged = path
                .file_name()
                .is_some_and(|name| name.as_bytes().starts_with(b".knarr-"));
            if staged && !keep_staged {
                continue;
            }
            let node = read_node(&path).map_err(|error| named(&path, &error))?;
            if node == Node::Directory {
                open.push(path.clone());
            }
            let relative = path.strip_prefix(root).unwrap_or(&path);
            nodes.insert(relative.as_os_str().as_bytes().to_vec(), node);
        }
    }
    Ok(nodes)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn read_node(path: &Path) -> io::Result<Node> {
    let metadata = path.symlink_metadata()?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Ok(Node::Directory);
    }
    if kind.is_symlink() {
        return Ok(Node::Link(
            fs::read_link(path)?.as_os_str().as_bytes().to_vec(),
        ));
    }
    if kind.is_fifo() {
        return Ok(Node::Special("fifo"));
    }
    if !kind.is_file() {
        return Ok(Node::Special("socket or device"));
    }
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    let hash = hasher.finalize();
    let mode = metadata.mode() & 0o7777;
    Ok(Node::File {
        size: metadata.len(),
        hash,
        modified: modified(&metadata),
        mode,
    })
}

fn modified(metadata: &Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// The differences between two trees, one line each; empty if they are the same.
///
/// # Errors
///
/// If one cannot be read.
pub fn differences(left: &Path, right: &Path, compare: &Compare) -> io::Result<Vec<String>> {
    let mut right_nodes = read_tree(right, true)?;
    let mut lines = Vec::new();
    for (path, node) in read_tree(left, true)? {
        let name = path.escape_ascii().to_string();
        let other = right_nodes.remove(&path);
        let ignored = |node: &Node| *node == Node::Directory && !compare.directories;
        match other {
            None if ignored(&node) => {}
            None => lines.push(format!("only left:  {name} ({})", describe(&node))),
            Some(other) => {
                if let Some(line) = difference(&node, &other, compare) {
                    lines.push(format!("differs:    {name}: {line}"));
                }
            }
        }
    }
    for (path, node) in right_nodes {
        if node != Node::Directory || compare.directories {
            lines.push(format!(
                "only right: {} ({})",
                path.escape_ascii(),
                describe(&node)
            ));
        }
    }
    Ok(lines)
}

fn describe(node: &Node) -> String {
    match node {
        Node::Directory => "directory".to_owned(),
        Node::File { size, .. } => format!("file of {size} bytes"),
        Node::Link(target) => format!("link to {}", target.escape_ascii()),
        Node::Special(kind) => (*kind).to_owned(),
    }
}

fn difference(left: &Node, right: &Node, compare: &Compare) -> Option<String> {
    let (
        Node::File {
            size,
            hash,
            modified,
            mode,
        },
        Node::File {
            size: size_2,
            hash: hash_2,
            modified: modified_2,
            mode: mode_2,
        },
    ) = (left, right)
    else {
        return (left != right).then(|| format!("{} / {}", describe(left), describe(right)));
    };
    if size != size_2 {
        return Some(format!("{size} / {size_2} bytes"));
    }
    if hash != hash_2 {
        return Some(format!("same length ({size}), other content"));
    }
    if compare.modes && mode != mode_2 {
        return Some(format!("mode {mode:o} / {mode_2:o}"));
    }
    let tolerance = i128::try_from(compare.modified_within?.as_nanos()).unwrap_or(i128::MAX);
    let apart = modified - modified_2;
    (apart.abs() > tolerance).then(|| format!("modified {apart} ns later on the left"))
}

/// Asserts that two trees are the same.
///
/// # Panics
///
/// If they differ, with the first twenty differences, or if one cannot be read.
#[track_caller]
pub fn assert_same_tree(left: &Path, right: &Path, compare: &Compare) {
    let lines = match differences(left, right, compare) {
        Ok(lines) => lines,
        Err(error) => panic!(
            "cannot compare {} and {}: {error}",
            left.display(),
            right.display()
        ),
    };
    assert!(
        lines.is_empty(),
        "{} and {} differ in {} places:\n{}",
        left.display(),
        right.display(),
        lines.len(),
        lines
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}
