//! What the tests of this suite share.

use std::path::{Path, PathBuf};

use knarr_core::entry::Entry;
use knarr_core::path::RelPath;
use knarr_core::tree::TreeItem;
use knarr_fs::Root;
use knarr_fs::commit::{CommitError, Committed, Durability, commit};
use knarr_fs::root::{Attributes, Replace};
use knarr_fs::stage::{Staged, StagedFile, Start};
use knarr_fs::walk::{WalkOptions, Walker};
use tempfile::TempDir;

/// An empty root in a temporary directory.
pub(crate) fn empty_root() -> (TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::open(directory.path()).unwrap();
    (directory, root)
}

pub(crate) fn path(bytes: impl AsRef<[u8]>) -> RelPath {
    RelPath::new(bytes.as_ref()).unwrap()
}

/// A staged file with this content, ready to be committed.
pub(crate) fn staged(root: &Root, at: &str, id: u64, content: &[u8], replace: Replace) -> Staged {
    let mut file = StagedFile::create(root, &path(at), id, Start::New).unwrap();
    file.write(content).unwrap();
    file.finish(content.len() as u64, Attributes::default(), replace)
        .unwrap()
}

/// Commits one file durably.
pub(crate) fn put(
    root: &Root,
    at: &str,
    content: &[u8],
    replace: Replace,
) -> Result<Committed, CommitError> {
    let batch = vec![staged(root, at, 7, content, replace)];
    commit(root, batch, Durability::Durable).pop().unwrap()
}

/// Everything below a root.
pub(crate) fn items(root: &Root) -> Vec<TreeItem> {
    items_with(root, WalkOptions::default())
}

pub(crate) fn items_with(root: &Root, options: WalkOptions<'_>) -> Vec<TreeItem> {
    let mut walker = Walker::new(root, options).unwrap();
    let mut items = Vec::new();
    // Small steps, so that every walk stops and goes on in the middle of directories.
    while walker.next_batch(&mut items, 7) {}
    items
}

/// Everything below a root, which must all be entries.
pub(crate) fn entries(root: &Root) -> Vec<Entry> {
    let entry = |item| match item {
        TreeItem::Entry(entry) => entry,
        other => panic!("not an entry: {other:?}"),
    };
    items(root).into_iter().map(entry).collect()
}

/// The paths below a root, as text, in order.
pub(crate) fn shown(root: &Root) -> Vec<String> {
    entries(root)
        .iter()
        .map(|entry| entry.path.to_string())
        .collect()
}

/// The names in a directory that are Knarr's own.
pub(crate) fn own_names(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(".knarr-"))
        .collect()
}

/// The example `probe`, which cargo builds beside the tests.
pub(crate) fn probe() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples/probe");
    assert!(
        program.exists(),
        "{} was not built with the tests",
        program.display()
    );
    program
}

/// Writes a file in a test's own way, not through the code under test.
pub(crate) fn write(at: &Path, content: &[u8]) {
    use std::io::Write as _;
    std::fs::File::create(at)
        .unwrap()
        .write_all(content)
        .unwrap();
}
