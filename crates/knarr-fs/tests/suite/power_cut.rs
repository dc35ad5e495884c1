//! The power goes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use knarr_fs::Root;
use knarr_fs::commit::{Durability, commit};
use knarr_fs::copy::{CopyOptions, CopyRequest, NoObserver, copy_batch};
use knarr_fs::durable::write_file;
use knarr_fs::root::{Flushed, Replace};
use knarr_testkit::powercut::LoopDisk;

use crate::support::{empty_root, entries, path, put, shown, staged, write};

/// What a file of this name holds, of a length that no other shares.
fn content(at: &str) -> Vec<u8> {
    at.bytes().cycle().take(3000 + at.len() * 100).collect()
}

#[test]
fn k1_what_was_committed_is_there_after_a_power_cut() {
    knarr_testkit::needs_root!("a power cut");
    let mut disk = LoopDisk::new(64);
    let mut names = Vec::new();
    {
        let root = Root::create(&disk.path().join("a/new/root")).unwrap();
        // One by one, a batch flushed at once, many directories, directories below each other.
        for (round, (files, directories)) in [(1, 1), (5, 2), (40, 1), (40, 30)].iter().enumerate()
        {
            let at = |number| format!("r{round}/d{}/e/f{number}", number % directories);
            let batch = (0..*files)
                .map(|number| {
                    staged(
                        &root,
                        &at(number),
                        number,
                        &content(&at(number)),
                        Replace::Nothing,
                    )
                })
                .collect();
            for result in commit(&root, batch, Durability::Durable) {
                assert_eq!(result.unwrap().flushed, Flushed::Durable);
            }
            names.extend((0..*files).map(at));
        }
        write_file(&disk.path().join("own"), b"kept", 0o600).unwrap();
        disk.cut_power();
    }
    disk.remount();
    assert_eq!(std::fs::read(disk.path().join("own")).unwrap(), b"kept");
    for name in names {
        let found = std::fs::read(disk.path().join("a/new/root").join(&name)).unwrap();
        assert!(found == content(&name), "{name}: {} bytes", found.len());
    }
}

#[test]
fn k1_a_copied_batch_is_there_after_a_power_cut() {
    knarr_testkit::needs_root!("a power cut");
    let (from, source) = empty_root();
    let mut disk = LoopDisk::new(64);
    let requests: Vec<CopyRequest> = (0..60)
        .map(|number| {
            let at = format!("f{number}");
            write(&from.path().join(&at), &content(&at));
            let (source, destination) = (path(&at), path(format!("d{}/{at}", number % 12)));
            CopyRequest {
                source,
                destination,
                id: number,
                replace: Replace::Nothing,
            }
        })
        .collect();
    {
        let destination = Root::open(disk.path()).unwrap();
        let options = CopyOptions::default();
        for result in copy_batch(&source, &destination, &requests, &options, &NoObserver) {
            assert_eq!(result.unwrap().destination.flushed, Flushed::Durable);
        }
        disk.cut_power();
    }
    disk.remount();
    let destination = Root::open(disk.path()).unwrap();
    for request in &requests {
        let found = std::fs::read(destination.display_of(&request.destination)).unwrap();
        assert!(found == content(&request.source.to_string()), "{request:?}");
        let (then, now) = (
            source.stat(&request.source),
            destination.stat(&request.destination),
        );
        let mtime = |entry: Result<Option<knarr_core::Entry>, _>| entry.unwrap().unwrap().mtime;
        assert_eq!(
            mtime(then),
            mtime(now),
            "the time is as durable as the content"
        );
    }
}

#[test]
fn k1_a_flushed_rename_and_removal_stay() {
    knarr_testkit::needs_root!("a power cut");
    let mut disk = LoopDisk::new(64);
    {
        let root = Root::open(disk.path()).unwrap();
        for at in ["a/f", "a/gone", "b/x/deep"] {
            put(&root, at, b"content", Replace::Nothing).unwrap();
        }
        root.rename(&path("a/f"), &path("b/f"), &Replace::Nothing)
            .unwrap();
        root.rename(&path("b/x"), &path("a/y"), &Replace::Nothing)
            .unwrap();
        let seen = root.stat(&path("a/gone")).unwrap().unwrap().fingerprint();
        root.remove(&path("a/gone"), &seen).unwrap();
        let changed = [path("a"), path("b")];
        root.flush_directories(changed.iter().map(Some)).unwrap();
        disk.cut_power();
    }
    disk.remount();
    let mut found = shown(&Root::open(disk.path()).unwrap());
    found.retain(|name| !name.starts_with("lost+found"));
    assert_eq!(found, ["a", "a/y", "a/y/deep", "b", "b/f"]);
}

#[test]
fn k2_cut_at_any_moment_every_final_name_is_whole_and_every_acknowledged_one_is_there() {
    knarr_testkit::needs_root!("a power cut");
    let mut disk = LoopDisk::new(64);
    let mut acknowledged_in_all = 0;
    for round in 0..12_u64 {
        let directory = disk.path().join(format!("round{round}"));
        let root = Root::create(&directory).unwrap();
        let (acknowledged, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0_u64.. {
                    let count = 1 + number % 14;
                    let at = |file| format!("d{}/{number}-{file}", number % 5);
                    let staged = (0..count).map_while(|file| {
                        // After the cut nothing can be staged any more.
                        try_stage(&root, &at(file), number * 100 + file)
                    });
                    let batch: Vec<_> = staged.collect();
                    let full = batch.len() as u64 == count;
                    for (file, result) in
                        commit(&root, batch, Durability::Durable).iter().enumerate()
                    {
                        if result.is_ok() {
                            acknowledged.lock().unwrap().push(at(file as u64));
                        }
                    }
                    if !full || stop.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
            let enough = 1 + round as usize * 3;
            let deadline = Instant::now() + Duration::from_secs(30);
            while acknowledged.lock().unwrap().len() < enough {
                assert!(Instant::now() < deadline, "too slow");
                std::thread::yield_now();
            }
            disk.cut_power();
            stop.store(true, Ordering::SeqCst);
        });
        drop(root);
        disk.remount();
        let root = Root::open(&directory).unwrap();
        for entry in entries(&root) {
            if entry.kind == knarr_core::Kind::File {
                let found = std::fs::read(root.display_of(&entry.path)).unwrap();
                let name = entry.path.to_string();
                assert!(
                    found == content(&name),
                    "torn: {name}, {} bytes",
                    found.len()
                );
            }
        }
        let acknowledged = acknowledged.into_inner().unwrap();
        for name in &acknowledged {
            assert!(root.stat(&path(name)).unwrap().is_some(), "lost: {name}");
        }
        acknowledged_in_all += acknowledged.len();
    }
    assert!(acknowledged_in_all > 100);
}

fn try_stage(root: &Root, at: &str, id: u64) -> Option<knarr_fs::stage::Staged> {
    use knarr_fs::root::Attributes;
    use knarr_fs::stage::{StagedFile, Start};
    let content = content(at);
    let mut file = StagedFile::create(root, &path(at), id, Start::New).ok()?;
    file.write(&content).ok()?;
    file.finish(
        content.len() as u64,
        Attributes::default(),
        Replace::Nothing,
    )
    .ok()
}
