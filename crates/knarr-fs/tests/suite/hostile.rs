//! Somebody works against us: links that lead out, names that look like something else, directories
//! that turn into links while we write.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use knarr_core::path::RelPath;
use knarr_fs::commit::{Durability, commit};
use knarr_fs::root::{Attributes, Replace};
use knarr_fs::stage::{StagedFile, Start};
use knarr_fs::{ErrorClass, Root};

use crate::support::{empty_root, entries, path, put, write};

#[test]
fn h03_a_directory_that_flips_into_a_link_never_leads_a_write_out_of_the_root() {
    let (directory, root) = empty_root();
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("d")).unwrap();
    symlink(outside.path(), at("link")).unwrap();
    let (done, flips) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let flipper = scope.spawn(|| {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            while !done.load(Ordering::SeqCst) {
                let at = rustix::fs::CWD;
                let (d, link) = (directory.path().join("d"), directory.path().join("link"));
                rustix::fs::renameat_with(at, d, at, link, exchange).unwrap();
                flips.fetch_add(1, Ordering::SeqCst);
            }
        });
        let (mut written, mut number) = (0, 0_u64);
        let deadline = Instant::now() + Duration::from_secs(60);
        // Both must have had their share of the race.
        while number < 2000 || written < 20 || flips.load(Ordering::SeqCst) < 2000 {
            assert!(
                Instant::now() < deadline,
                "{written} written, {flips:?} flips"
            );
            number += 1;
            let name = path(format!("d/f{number}"));
            let Ok(mut file) = StagedFile::create(&root, &name, number, Start::New) else {
                continue;
            };
            file.write(b"inside").unwrap();
            let Ok(file) = file.finish(6, Attributes::default(), Replace::Nothing) else {
                continue;
            };
            written += commit(&root, vec![file], Durability::Relaxed)
                .iter()
                .flatten()
                .count();
            root.stat(&name).ok();
            root.set_attributes(
                &name,
                Attributes {
                    mtime: None,
                    mode: Some(0o600),
                },
            )
            .ok();
        }
        done.store(true, Ordering::SeqCst);
        flipper.join().unwrap();
    });
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn h04_nothing_below_a_link_is_reached() {
    let (directory, root) = empty_root();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    write(&secret, b"untouched");
    symlink(outside.path(), directory.path().join("link")).unwrap();
    std::fs::create_dir(directory.path().join("d")).unwrap();
    symlink(outside.path(), directory.path().join("d/link")).unwrap();
    for at in ["link/secret", "d/link/secret"] {
        let at = path(at);
        let fingerprint = knarr_core::Entry::file(at.clone(), 9).fingerprint();
        assert_eq!(root.stat(&at).unwrap(), None);
        assert!(root.open_file(&at).is_err());
        assert!(root.make_directories(&at).is_err());
        assert!(
            root.set_attributes(
                &at,
                Attributes {
                    mtime: None,
                    mode: Some(0)
                }
            )
            .is_err()
        );
        assert!(root.remove(&at, &fingerprint).is_err());
        assert!(root.rename(&at, &path("taken"), &Replace::Nothing).is_err());
        assert!(StagedFile::create(&root, &at, 1, Start::New).is_err());
    }
    let link = path("d/link");
    let error = root
        .set_attributes(
            &link,
            Attributes {
                mtime: None,
                mode: Some(0),
            },
        )
        .unwrap_err();
    assert_eq!(
        error.class(),
        ErrorClass::Escapes,
        "a link's target is not touched either"
    );
    assert_eq!(std::fs::read(&secret).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

/// Names that programs are known to get wrong.
fn difficult_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        &b"not \xff\xfe UTF-8"[..],
        b"new\nline",
        b"\"quotes\" 'and' `more`",
        b"-rf",
        b"--",
        b"~",
        b"~root",
        b" leading and trailing ",
        b"trailing dot.",
        b"...",
        b"..data",
        b"CON",
        b"a:b",
        b"a\\b",
        b"*?[x]",
        b"$(touch pwned)",
        b"%s%n",
        "\u{202e}gnp.exe".as_bytes(),
        "e\u{301}".as_bytes(),
        "\u{e9}".as_bytes(),
        b"Readme",
        b"README",
        b"\x01\x1b[31m",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    names.push(vec![b'x'; 255]);
    names
}

#[test]
fn r37_every_name_that_the_disk_can_hold_makes_the_round_trip() {
    let (_directory, root) = empty_root();
    let mut expected = Vec::new();
    for name in difficult_names() {
        let inside = RelPath::from_name(&name).unwrap();
        let below = inside.join_name(&name).unwrap();
        root.make_directories(&inside).unwrap();
        let mut file = StagedFile::create(&root, &below, 1, Start::New).unwrap();
        file.write(&name).unwrap();
        let file = file
            .finish(name.len() as u64, Attributes::default(), Replace::Nothing)
            .unwrap();
        commit(&root, vec![file], Durability::Relaxed)
            .pop()
            .unwrap()
            .unwrap();
        expected.extend([inside, below]);
    }
    let mut found: Vec<RelPath> = entries(&root).into_iter().map(|entry| entry.path).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    for name in difficult_names() {
        let at = RelPath::from_name(&name).unwrap().join_name(&name).unwrap();
        let (mut file, entry) = root.open_file(&at).unwrap();
        assert_eq!(entry.path, at);
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut content).unwrap();
        assert_eq!(content, name);
    }
}

#[test]
fn r37_a_name_that_the_disk_cannot_hold_is_an_error_of_its_own_class() {
    let (_directory, root) = empty_root();
    let long = "x".repeat(256);
    let error = StagedFile::create(&root, &path(format!("{long}/f")), 1, Start::New).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Name);
    let mut file = StagedFile::create(&root, &path(&long), 1, Start::New).unwrap();
    file.write(b"x").unwrap();
    let file = file
        .finish(1, Attributes::default(), Replace::Nothing)
        .unwrap();
    let error = commit(&root, vec![file], Durability::Relaxed)
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Name);
}

#[test]
fn a_root_may_itself_be_reached_through_a_link() {
    let (directory, root) = empty_root();
    put(&root, "f", b"x", Replace::Nothing).unwrap();
    let link = tempfile::tempdir().unwrap();
    let link: &Path = &link.path().join("link");
    symlink(directory.path(), link).unwrap();
    assert_eq!(entries(&Root::open(link).unwrap()).len(), 1);
}
