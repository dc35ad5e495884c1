//! What the tests run in a process of its own, to kill it, to let its calls fail, or as another user:
//! `probe commit ROOT MARK FILES`, `probe copy FROM ROOT MARK` or `probe list ROOT`.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use knarr_core::path::RelPath;
use knarr_core::tree::TreeItem;
use knarr_fs::Root;
use knarr_fs::commit::{Durability, commit};
use knarr_fs::copy::{CopyOptions, CopyRequest, NoObserver, copy_batch};
use knarr_fs::durable::write_file;
use knarr_fs::root::{Attributes, Replace};
use knarr_fs::stage::{StagedFile, Start};
use knarr_fs::walk::{WalkOptions, Walker};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["commit", root, mark, files] => commit_files(root, mark, files.parse()?),
        ["copy", from, root, mark] => copy_files(from, root, mark),
        ["list", root] => list(root),
        _ => Err("usage: probe commit ROOT MARK FILES | copy FROM ROOT MARK | list ROOT".into()),
    }
}

/// Commits the files `new/0`, `new/1`, … and then says so in the file `mark`, with how they were
/// flushed.
fn commit_files(root: &str, mark: &str, files: u64) -> Result<(), Box<dyn Error>> {
    let root = Root::create(Path::new(root))?;
    let mut batch = Vec::new();
    for number in 0..files {
        let path = RelPath::new(format!("new/{number}").into_bytes())?;
        let content = vec![b'n'; 5000];
        let mut file = StagedFile::create(&root, &path, number, Start::New)?;
        file.write(&content)?;
        batch.push(file.finish(
            content.len() as u64,
            Attributes::default(),
            Replace::Anything,
        )?);
    }
    let mut flushed = String::new();
    let mut failed = None;
    for result in commit(&root, batch, Durability::Durable) {
        match result {
            Ok(committed) => flushed = format!("{:?}", committed.flushed),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(write_file(Path::new(mark), flushed.as_bytes(), 0o644)?),
    }
}

/// Copies every file at the top of `from` to `new` in `root`, and then says so in the file `mark`.
fn copy_files(from: &str, root: &str, mark: &str) -> Result<(), Box<dyn Error>> {
    let (source, destination) = (Root::open(Path::new(from))?, Root::create(Path::new(root))?);
    let mut walker = Walker::new(&source, WalkOptions::default())?;
    let (mut items, mut requests) = (Vec::new(), Vec::new());
    while walker.next_batch(&mut items, 64) {}
    for item in items {
        if let TreeItem::Entry(entry) = item {
            requests.push(CopyRequest {
                destination: RelPath::new(*b"new")?.join(&entry.path)?,
                source: entry.path,
                id: requests.len() as u64,
                replace: Replace::Anything,
            });
        }
    }
    let results = copy_batch(
        &source,
        &destination,
        &requests,
        &CopyOptions::default(),
        &NoObserver,
    );
    for result in results {
        result?;
    }
    Ok(write_file(Path::new(mark), b"Durable", 0o644)?)
}

fn list(root: &str) -> Result<(), Box<dyn Error>> {
    let root = Root::open(Path::new(root))?;
    let mut walker = Walker::new(&root, WalkOptions::default())?;
    let (mut items, mut out) = (Vec::new(), std::io::stdout().lock());
    while walker.next_batch(&mut items, 64) {}
    for item in items {
        match item {
            TreeItem::Entry(entry) => writeln!(out, "{} {}", entry.kind, entry.path)?,
            TreeItem::Excluded { path, .. } => writeln!(out, "excluded {path}")?,
            TreeItem::Problem(problem) => writeln!(out, "problem {}", problem.path)?,
            TreeItem::Incomplete(incomplete) => writeln!(out, "unknown {:?}", incomplete.below)?,
        }
    }
    Ok(())
}
