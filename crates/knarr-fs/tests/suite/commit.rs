//! Staging and committing.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use knarr_core::entry::Kind;
use knarr_core::time::Timestamp;
use knarr_fs::commit::{CommitError, Durability, EACH_UP_TO, commit};
use knarr_fs::root::{Attributes, Flushed, Replace};
use knarr_fs::stage::{HOLE_BYTES, Holes, StagedFile, Start, stage_link, staged_path};
use knarr_fs::{ErrorClass, FsError};

use crate::support::{empty_root, own_names, path, put, shown, staged, write};

#[test]
fn a_committed_file_is_what_was_written_with_its_time_and_permissions() {
    let (directory, root) = empty_root();
    let mtime = Timestamp::from_parts(1_600_000_000, 123_456_789);
    let mut file = StagedFile::create(&root, &path("a/b/c"), 1, Start::New).unwrap();
    file.write(b"one ").unwrap();
    file.write(b"two").unwrap();
    assert_eq!(
        shown(&root),
        ["a", "a/b"],
        "nothing is visible before the commit"
    );
    let attributes = Attributes {
        mtime: Some(mtime),
        mode: Some(0o6751),
    };
    let finished = file.finish(7, attributes, Replace::Nothing).unwrap();
    let committed = commit(&root, vec![finished], Durability::Durable)
        .pop()
        .unwrap()
        .unwrap();
    assert_eq!(committed.flushed, Flushed::Durable);
    assert_eq!(committed.entry.path, path("a/b/c"));
    assert_eq!(
        (committed.entry.kind, committed.entry.size),
        (Kind::File, 7)
    );
    assert_eq!(committed.entry.mtime, Some(mtime));
    assert_eq!(
        committed.entry.mode,
        Some(0o751),
        "set-user-id is never copied"
    );
    assert_eq!(
        Some(&committed.entry),
        root.stat(&path("a/b/c")).unwrap().as_ref()
    );
    assert_eq!(
        std::fs::read(directory.path().join("a/b/c")).unwrap(),
        b"one two"
    );
    assert!(own_names(&directory.path().join("a/b")).is_empty());
}

#[test]
fn every_file_of_a_large_batch_has_its_own_result() {
    let (directory, root) = empty_root();
    let count = EACH_UP_TO as u64 * 4;
    write(&directory.path().join("3"), b"in the way");
    let batch = (0..count)
        .map(|number| {
            let at = if number == 3 {
                "3".to_owned()
            } else {
                format!("d{}/{number}", number % 20)
            };
            staged(&root, &at, number, b"content", Replace::Nothing)
        })
        .collect();
    let results = commit(&root, batch, Durability::Durable);
    for (number, result) in results.iter().enumerate() {
        match result {
            Ok(committed) => assert_eq!(committed.flushed, Flushed::Durable),
            Err(error) => {
                assert_eq!(number, 3);
                assert!(
                    matches!(error, CommitError::DestinationChanged { .. }),
                    "{error:?}"
                );
            }
        }
    }
    assert_eq!(
        results.iter().filter(|result| result.is_ok()).count(),
        count as usize - 1
    );
    assert_eq!(
        std::fs::read(directory.path().join("3")).unwrap(),
        b"in the way"
    );
    assert!(own_names(directory.path()).is_empty());
}

#[test]
fn k6_only_what_was_seen_is_replaced() {
    let (directory, root) = empty_root();
    write(&directory.path().join("f"), b"old");
    let seen = root.stat(&path("f")).unwrap().unwrap().fingerprint();
    write(&directory.path().join("f"), b"somebody else's");
    let error = put(&root, "f", b"new", Replace::Seen(seen.clone())).unwrap_err();
    assert!(
        matches!(
            &error,
            CommitError::DestinationChanged { found: Some(_), .. }
        ),
        "{error:?}"
    );
    assert_eq!(error.class(), ErrorClass::Occupied);
    assert_eq!(
        std::fs::read(directory.path().join("f")).unwrap(),
        b"somebody else's"
    );
    assert!(own_names(directory.path()).is_empty());

    std::fs::remove_file(directory.path().join("f")).unwrap();
    let error = put(&root, "f", b"new", Replace::Seen(seen)).unwrap_err();
    assert!(matches!(
        error,
        CommitError::DestinationChanged { found: None, .. }
    ));

    put(&root, "f", b"first", Replace::Nothing).unwrap();
    let seen = root.stat(&path("f")).unwrap().unwrap().fingerprint();
    put(&root, "f", b"second", Replace::Seen(seen)).unwrap();
    assert_eq!(
        std::fs::read(directory.path().join("f")).unwrap(),
        b"second"
    );
}

#[test]
fn k2_a_reader_sees_the_old_or_the_new_content_and_nothing_else() {
    let (directory, root) = empty_root();
    let contents: Vec<Vec<u8>> = (0..4_u8)
        .map(|n| vec![n; 300_000 + usize::from(n)])
        .collect();
    put(&root, "f", &contents[0], Replace::Nothing).unwrap();
    let hashes: Vec<_> = contents
        .iter()
        .map(|content| blake3::hash(content))
        .collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::SeqCst) || reads == 0 {
                let bytes = std::fs::read(directory.path().join("f")).unwrap();
                assert!(
                    hashes.contains(&blake3::hash(&bytes)),
                    "torn: {} bytes",
                    bytes.len()
                );
                reads += 1;
            }
        });
        for round in 0..60 {
            let batch = vec![staged(
                &root,
                "f",
                1,
                &contents[round % 4],
                Replace::Anything,
            )];
            for result in commit(&root, batch, Durability::Relaxed) {
                assert_eq!(result.unwrap().flushed, Flushed::NotAsked);
            }
        }
        done.store(true, Ordering::SeqCst);
        reader.join().unwrap();
    });
}

#[test]
fn k9_a_staged_file_is_continued_behind_its_last_checkpoint() {
    let (directory, root) = empty_root();
    let at = path("d/large");
    let mut file = StagedFile::create(&root, &at, 9, Start::New).unwrap();
    file.write(b"0123456789").unwrap();
    assert_eq!(file.checkpoint().unwrap(), 10);
    file.write(b"lost at the crash").unwrap();
    drop(file);
    let error = StagedFile::create(&root, &at, 9, Start::Resume { offset: 99 }).unwrap_err();
    assert!(
        matches!(
            error,
            FsError::Length {
                expected: 99,
                found: 27,
                ..
            }
        ),
        "{error}"
    );
    let error = StagedFile::create(&root, &at, 8, Start::Resume { offset: 1 }).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Vanished);

    let mut file = StagedFile::create(&root, &at, 9, Start::Resume { offset: 10 }).unwrap();
    let mut before = Vec::new();
    file.read_back(|bytes| before.extend_from_slice(bytes))
        .unwrap();
    assert_eq!(before, b"0123456789");
    file.write(b"abc").unwrap();
    let finished = file
        .finish(13, Attributes::default(), Replace::Nothing)
        .unwrap();
    commit(&root, vec![finished], Durability::Durable)
        .pop()
        .unwrap()
        .unwrap();
    assert_eq!(
        std::fs::read(directory.path().join("d/large")).unwrap(),
        b"0123456789abc"
    );
}

#[test]
fn a_file_of_another_length_than_promised_is_not_committed() {
    let (directory, root) = empty_root();
    let mut file = StagedFile::create(&root, &path("f"), 1, Start::New).unwrap();
    file.write(b"short").unwrap();
    let error = file
        .finish(6, Attributes::default(), Replace::Nothing)
        .unwrap_err();
    assert!(matches!(
        error,
        FsError::Length {
            expected: 6,
            found: 5,
            ..
        }
    ));
    assert!(own_names(directory.path()).is_empty());
}

#[test]
fn what_arrives_out_of_order_is_written_where_it_belongs() {
    let (directory, root) = empty_root();
    let mut file = StagedFile::create(&root, &path("f"), 1, Start::New).unwrap();
    file.reserve(2 << 20).unwrap();
    file.write_at(b"world", 6).unwrap();
    file.write_at(b"hello ", 0).unwrap();
    file.advance_to(11).unwrap();
    file.write(b"!").unwrap();
    let finished = file
        .finish(12, Attributes::default(), Replace::Nothing)
        .unwrap();
    commit(&root, vec![finished], Durability::Durable)
        .pop()
        .unwrap()
        .unwrap();
    assert_eq!(
        std::fs::read(directory.path().join("f")).unwrap(),
        b"hello world!"
    );
}

#[test]
fn r36_a_sparse_file_stays_sparse_and_keeps_its_length() {
    let (directory, root) = empty_root();
    let mut file = StagedFile::create(&root, &path("f"), 1, Start::New).unwrap();
    file.set_holes(Holes::Skip);
    let mut content = vec![0; 64 * HOLE_BYTES];
    content[5] = 1;
    content[40 * HOLE_BYTES - 1] = 2;
    for piece in content.chunks(HOLE_BYTES * 3 / 2) {
        file.write(piece).unwrap();
    }
    file.checkpoint().unwrap();
    let finished = file
        .finish(
            content.len() as u64,
            Attributes::default(),
            Replace::Nothing,
        )
        .unwrap();
    commit(&root, vec![finished], Durability::Durable)
        .pop()
        .unwrap()
        .unwrap();
    let at = directory.path().join("f");
    assert!(std::fs::read(&at).unwrap() == content);
    let on_disk = at.metadata().unwrap().blocks() * 512;
    assert!(
        on_disk < content.len() as u64 * 3 / 4,
        "{on_disk} bytes on the disk"
    );
}

#[test]
fn links_are_committed_like_files() {
    let (directory, root) = empty_root();
    write(&directory.path().join("there"), b"x");
    for (at, replace) in [("d/link", Replace::Nothing), ("there", Replace::Anything)] {
        let link = stage_link(&root, &path(at), 4, b"../\xff target", replace).unwrap();
        let committed = commit(&root, vec![link], Durability::Durable)
            .pop()
            .unwrap()
            .unwrap();
        assert_eq!(committed.entry.kind, Kind::Symlink);
        assert_eq!(
            committed.entry.link_target.as_deref(),
            Some(&b"../\xff target"[..])
        );
    }
    let again = stage_link(&root, &path("d/link"), 4, b"other", Replace::Nothing).unwrap();
    let error = commit(&root, vec![again], Durability::Durable)
        .pop()
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(
            error,
            CommitError::DestinationChanged { found: Some(_), .. }
        ),
        "{error:?}"
    );
}

#[test]
fn h04_a_link_or_a_second_name_planted_under_the_staged_name_leads_nowhere() {
    let (directory, root) = empty_root();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    write(&secret, b"untouched");
    let planted = directory
        .path()
        .join(staged_path(&path("f"), 7).unwrap().as_os_str());

    symlink(&secret, &planted).unwrap();
    let error = StagedFile::create(&root, &path("f"), 7, Start::Resume { offset: 0 }).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Escapes);
    put(&root, "f", b"ours", Replace::Nothing).unwrap();

    std::fs::hard_link(&secret, &planted).unwrap();
    let error = StagedFile::create(&root, &path("f"), 7, Start::Resume { offset: 0 }).unwrap_err();
    assert!(matches!(error, FsError::NotOurs { .. }), "{error}");
    put(&root, "f", b"ours again", Replace::Anything).unwrap();

    assert_eq!(std::fs::read(&secret).unwrap(), b"untouched");
    assert_eq!(
        std::fs::read(directory.path().join("f")).unwrap(),
        b"ours again"
    );
}

#[test]
fn k3_a_directory_that_moved_while_a_file_was_staged_in_it_fails_the_commit() {
    let (directory, root) = empty_root();
    let at = |name: &str| directory.path().join(name);
    let file = staged(&root, "a/f", 1, b"content", Replace::Nothing);
    root.rename(&path("a"), &path("b"), &Replace::Nothing)
        .unwrap();
    std::fs::create_dir(at("a")).unwrap();
    let error = commit(&root, vec![file], Durability::Durable)
        .pop()
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error, CommitError::DirectoryMoved { .. }),
        "{error:?}"
    );
    assert_eq!(shown(&root), ["a", "b"]);
    assert!(own_names(&at("b")).is_empty());
}

#[test]
fn r08_a_directory_in_the_way_of_a_file_is_a_clear_error() {
    let (directory, root) = empty_root();
    std::fs::create_dir(directory.path().join("f")).unwrap();
    let error = put(&root, "f", b"content", Replace::Anything).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Occupied, "{error:?}");
    write(&directory.path().join("file"), b"");
    let error = StagedFile::create(&root, &path("file/below"), 1, Start::New).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Occupied, "{error:?}");
    assert!(error.to_string().contains("file"), "{error}");
}

#[test]
fn two_batches_at_the_same_time_do_not_disturb_each_other() {
    let (_directory, root) = empty_root();
    let run = |lane: u64| {
        for round in 0..10 {
            let batch = (0..12)
                .map(|number| {
                    let at = format!("shared/{round}/{lane}-{number}");
                    staged(
                        &root,
                        &at,
                        lane * 100 + number,
                        at.as_bytes(),
                        Replace::Nothing,
                    )
                })
                .collect();
            for result in commit(&root, batch, Durability::Durable) {
                result.unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| run(1));
        scope.spawn(|| run(2));
    });
    assert_eq!(shown(&root).len(), 1 + 10 + 240);
}

#[test]
fn two_staged_files_with_one_identifier_are_never_both_reported_as_committed() {
    let (_directory, root) = empty_root();
    let first = staged(&root, "a", 1, b"first", Replace::Nothing);
    let second = staged(&root, "b", 1, b"second!", Replace::Nothing);
    let results = commit(&root, vec![first, second], Durability::Durable);
    assert!(
        matches!(results[0], Err(CommitError::NotWhatWasStaged { .. })),
        "{results:?}"
    );
    assert!(results[1].is_err());
}
