//! The root itself, and single changes below it.

use knarr_core::entry::Kind;
use knarr_core::time::Timestamp;
use knarr_fs::change::ChangeError;
use knarr_fs::root::{Attributes, Flushed, Replace};
use knarr_fs::{ErrorClass, FsError, Root};

use crate::support::{empty_root, path, put, shown, write};

#[test]
fn r20_a_root_that_was_replaced_is_another_and_is_noticed() {
    let above = tempfile::tempdir().unwrap();
    let at = above.path().join("root");
    std::fs::create_dir(&at).unwrap();
    let root = Root::open(&at).unwrap();
    let then = root.identity().unwrap();
    root.check_in_place().unwrap();
    assert!(then.is_same_root(&Root::open(&at).unwrap().identity().unwrap()));

    let moved = above.path().join("moved");
    rustix::fs::renameat(rustix::fs::CWD, &at, rustix::fs::CWD, &moved).unwrap();
    assert!(
        matches!(root.check_in_place(), Err(FsError::Replaced { .. })),
        "it is gone"
    );
    std::fs::create_dir(&at).unwrap();
    assert!(
        matches!(root.check_in_place(), Err(FsError::Replaced { .. })),
        "it is another"
    );
    assert!(!then.is_same_root(&Root::open(&at).unwrap().identity().unwrap()));
    std::fs::remove_dir(&at).unwrap();
    std::os::unix::fs::symlink(above.path(), &at).unwrap();
    assert!(
        matches!(root.check_in_place(), Err(FsError::Replaced { .. })),
        "it leads elsewhere"
    );
}

#[test]
fn r20_an_unmounted_disk_leaves_another_root_behind() {
    knarr_testkit::needs_root!("mounting a small disk");
    let disk = knarr_testkit::small_disk::SmallDisk::new(1 << 20, 100);
    let at = disk.path().to_owned();
    let then = Root::open(&at).unwrap().identity().unwrap();
    let lazily = std::process::Command::new("umount")
        .arg("-l")
        .arg(&at)
        .status()
        .unwrap();
    assert!(lazily.success());
    let now = Root::open(&at).unwrap().identity().unwrap();
    assert!(!then.is_same_root(&now), "{then} {now}");
}

#[test]
fn a_local_disk_is_no_network_and_tells_its_space() {
    let (_directory, root) = empty_root();
    assert!(!root.is_network().unwrap());
    let space = root.space().unwrap();
    assert!(space.free_bytes > 0 && space.free_bytes <= space.total_bytes);
}

#[test]
fn missing_directories_of_a_root_are_made() {
    let (directory, _) = empty_root();
    let root = Root::create(&directory.path().join("a/b/c")).unwrap();
    assert_eq!(shown(&root), Vec::<String>::new());
    Root::create(&directory.path().join("a/b/c")).unwrap();
    write(&directory.path().join("file"), b"");
    let error = Root::create(&directory.path().join("file/below")).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Occupied);
}

#[test]
fn a_rename_replaces_only_what_was_seen() {
    let (_directory, root) = empty_root();
    for at in ["a", "b", "d/inside"] {
        put(&root, at, at.as_bytes(), Replace::Nothing).unwrap();
    }
    let seen_of = |at| root.stat(&path(at)).unwrap().unwrap().fingerprint();
    let error = root
        .rename(&path("a"), &path("b"), &Replace::Nothing)
        .unwrap_err();
    assert!(
        matches!(&error, ChangeError::NotAsSeen { found: Some(_), .. }),
        "{error:?}"
    );
    assert_eq!(error.class(), ErrorClass::Occupied);
    root.rename(&path("a"), &path("b"), &Replace::Seen(seen_of("b")))
        .unwrap();
    root.rename(&path("d"), &path("e"), &Replace::Nothing)
        .unwrap();
    assert_eq!(shown(&root), ["b", "e", "e/inside"]);
    let error = root
        .rename(&path("missing"), &path("x"), &Replace::Nothing)
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Vanished);
    assert_eq!(root.flush_directories([None]).unwrap(), Flushed::Durable);
    assert_eq!(root.flush_all().unwrap(), Flushed::Durable);
}

#[test]
fn k5_only_what_was_seen_is_removed_and_a_directory_only_when_it_is_empty() {
    let (directory, root) = empty_root();
    put(&root, "d/f", b"seen", Replace::Nothing).unwrap();
    let seen = root.stat(&path("d/f")).unwrap().unwrap().fingerprint();
    write(&directory.path().join("d/f"), b"edited since");
    let error = root.remove(&path("d/f"), &seen).unwrap_err();
    assert!(
        matches!(error, ChangeError::NotAsSeen { found: Some(_), .. }),
        "{error:?}"
    );
    let error = root.remove_directory(&path("d")).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Occupied);
    let seen = root.stat(&path("d/f")).unwrap().unwrap().fingerprint();
    root.remove(&path("d/f"), &seen).unwrap();
    root.remove(&path("d/f"), &seen).unwrap();
    root.remove_directory(&path("d")).unwrap();
    root.remove_directory(&path("d")).unwrap();
    root.remove(&path("d/f"), &seen).unwrap();
    assert!(shown(&root).is_empty());
}

#[test]
fn times_and_permissions_are_set_without_opening_what_they_belong_to() {
    let (_directory, root) = empty_root();
    put(&root, "d/f", b"x", Replace::Nothing).unwrap();
    let mtime = Some(Timestamp::from_parts(-5, 250));
    root.set_attributes(
        &path("d/f"),
        Attributes {
            mtime,
            mode: Some(0o4711),
        },
    )
    .unwrap();
    let entry = root.stat(&path("d/f")).unwrap().unwrap();
    assert_eq!((entry.mtime, entry.mode), (mtime, Some(0o711)));
    root.set_attributes(
        &path("d"),
        Attributes {
            mtime,
            mode: Some(0o2750),
        },
    )
    .unwrap();
    let entry = root.stat(&path("d")).unwrap().unwrap();
    assert_eq!(
        (entry.kind, entry.mtime, entry.mode),
        (Kind::Directory, mtime, Some(0o2750))
    );
}
