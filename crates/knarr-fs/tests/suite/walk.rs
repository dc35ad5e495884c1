//! Listing trees.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::process::Command;

use knarr_core::entry::{Entry, Kind};
use knarr_core::path::{RelPath, tree_order};
use knarr_core::tree::TreeItem;
use knarr_fs::Root;
use knarr_fs::walk::{FileSystems, OPEN_LIMIT, WalkOptions, Walker};
use proptest::prelude::*;

use crate::support::{empty_root, entries, items, items_with, path, probe, shown, write};

fn trees() -> impl Strategy<Value = Vec<(Vec<String>, bool)>> {
    let name = "[a!/0-]{1,9}".prop_map(|name| name.replace('/', "."));
    let name = name.prop_filter("a name", |name| name != "." && name != "..");
    proptest::collection::vec(
        (proptest::collection::vec(name, 1..5), any::<bool>()),
        0..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_walk_lists_everything_exactly_once_in_tree_order(tree in trees()) {
        let (directory, root) = empty_root();
        let mut expected: BTreeMap<Vec<u8>, Kind> = BTreeMap::new();
        for (names, is_directory) in tree {
            let below = names.join("/");
            let at = directory.path().join(&below);
            // What collides with an earlier file or directory is left out.
            let parent = if is_directory { at.clone() } else { at.parent().unwrap().to_owned() };
            if std::fs::create_dir_all(&parent).is_err() || (!is_directory && at.is_dir()) {
                continue;
            }
            if !is_directory {
                write(&at, below.as_bytes());
                expected.insert(path(&below).order_key(Kind::File).into_owned(), Kind::File);
            }
            let mut parent = Some(path(&below));
            while let Some(at) = parent.filter(|_| is_directory || below.contains('/')) {
                if directory.path().join(at.as_os_str()).is_dir() {
                    expected.insert(at.order_key(Kind::Directory).into_owned(), Kind::Directory);
                }
                parent = at.parent();
            }
        }
        let found = entries(&root);
        let keys: Vec<(Vec<u8>, Kind)> =
            found.iter().map(|e| (e.path.order_key(e.kind).into_owned(), e.kind)).collect();
        prop_assert_eq!(keys, expected.into_iter().collect::<Vec<_>>());
        let in_order = |pair: &[Entry]| {
            tree_order((&pair[0].path, pair[0].kind), (&pair[1].path, pair[1].kind)).is_lt()
        };
        prop_assert!(found.windows(2).all(in_order));
    }
}

#[test]
fn r39_a_hundred_thousand_names_in_one_directory_are_listed_in_order() {
    let (directory, root) = empty_root();
    for number in 0..100_000 {
        let at = directory
            .path()
            .join(format!("{:05}-name", (number * 7919) % 100_000));
        rustix::fs::open(
            at,
            rustix::fs::OFlags::CREATE,
            rustix::fs::Mode::from_raw_mode(0o600),
        )
        .unwrap();
    }
    let mut walker = Walker::new(&root, WalkOptions::default()).unwrap();
    let (mut batch, mut next) = (Vec::new(), 0);
    loop {
        let more = walker.next_batch(&mut batch, 1000);
        for item in batch.drain(..) {
            let TreeItem::Entry(entry) = item else {
                panic!("{item:?}")
            };
            assert_eq!(entry.path, path(format!("{next:05}-name")));
            next += 1;
        }
        if !more {
            break;
        }
    }
    assert_eq!(next, 100_000);
}

#[test]
fn r39_a_tree_deeper_than_the_kernel_takes_paths_is_made_listed_and_removed() {
    let (_directory, root) = empty_root();
    let deepest = path(vec!["directory"; 1000].join("/"));
    assert!(deepest.as_bytes().len() > 2 * 4096);
    root.make_directories(&deepest).unwrap();
    let before = open_handles();
    let mut walker = Walker::new(&root, WalkOptions::default()).unwrap();
    let mut found = Vec::new();
    let mut most = 0;
    while walker.next_batch(&mut found, 50) {
        most = most.max(open_handles() - before);
    }
    assert!(most <= OPEN_LIMIT + 8, "{most} handles open");
    assert_eq!(found.len(), 1000);
    let names = |item: &TreeItem| match item {
        TreeItem::Entry(entry) => entry.path.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(found.last().map(names), Some(deepest.clone()));
    assert_eq!(root.stat(&deepest).unwrap().unwrap().kind, Kind::Directory);
    for item in found.iter().rev() {
        root.remove_directory(&names(item)).unwrap();
    }
    assert_eq!(items(&root), []);
}

fn open_handles() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_directory_that_was_closed_for_depth_and_replaced_meanwhile_counts_as_unknown() {
    let (directory, root) = empty_root();
    root.make_directories(&path(vec!["d"; OPEN_LIMIT + 20].join("/")))
        .unwrap();
    // Listed after everything below `d/d`.
    write(&directory.path().join("d/z"), b"z");
    let mut walker = Walker::new(&root, WalkOptions::default()).unwrap();
    let mut found = Vec::new();
    walker.next_batch(&mut found, OPEN_LIMIT + 10);
    knarr_fs_rename(
        &directory.path().join("d"),
        &directory.path().join("elsewhere"),
    );
    std::fs::create_dir(directory.path().join("d")).unwrap();
    while walker.next_batch(&mut found, 50) {}
    let unknown = found.iter().any(|item| {
        matches!(item, TreeItem::Incomplete(incomplete) if incomplete.below == Some(path("d")))
    });
    assert!(unknown, "{found:?}");
}

fn knarr_fs_rename(from: &std::path::Path, to: &std::path::Path) {
    rustix::fs::renameat(rustix::fs::CWD, from, rustix::fs::CWD, to).unwrap();
}

#[test]
fn r36_links_and_special_files_are_told_and_never_followed_or_opened() {
    let (directory, root) = empty_root();
    let at = |name: &str| directory.path().join(name);
    for (name, target) in [
        ("dangling", "nowhere"),
        ("loop", "loop"),
        ("up", ".."),
        ("slash", "/"),
        ("to-fifo", "fifo"),
    ] {
        symlink(target, at(name)).unwrap();
    }
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), mode).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let found = entries(&root);
    let kinds: Vec<(String, Kind)> = found
        .iter()
        .map(|entry| (entry.path.to_string(), entry.kind))
        .collect();
    let expected = [
        ("dangling", Kind::Symlink),
        ("fifo", Kind::Special),
        ("loop", Kind::Symlink),
        ("slash", Kind::Symlink),
        ("socket", Kind::Special),
        ("to-fifo", Kind::Symlink),
        ("up", Kind::Symlink),
    ];
    assert_eq!(kinds, expected.map(|(name, kind)| (name.to_owned(), kind)));
    assert_eq!(found[3].link_target.as_deref(), Some(&b"/"[..]));
    for (name, _) in expected {
        // A FIFO without a writer would block an ordinary open for ever.
        let error = root.open_file(&path(name)).unwrap_err();
        assert!(
            matches!(error, knarr_fs::FsError::NotAFile { .. }),
            "{name}: {error}"
        );
    }
}

#[test]
fn r36_a_directory_mounted_below_itself_is_not_entered() {
    knarr_testkit::needs_root!("a bind mount");
    let (directory, root) = empty_root();
    let inner = directory.path().join("a/again");
    std::fs::create_dir_all(&inner).unwrap();
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        assert!(
            Command::new(program)
                .args(arguments)
                .status()
                .unwrap()
                .success()
        );
    };
    run(
        "mount",
        &[
            "--bind".as_ref(),
            directory.path().as_os_str(),
            inner.as_os_str(),
        ],
    );
    let found = items(&root);
    run("umount", &[inner.as_os_str()]);
    let unknown: Vec<_> = found
        .iter()
        .filter_map(|item| match item {
            TreeItem::Incomplete(incomplete) => incomplete.below.clone(),
            _ => None,
        })
        .collect();
    assert_eq!(unknown, [path("a/again")], "{found:?}");
}

#[test]
fn k5_a_directory_that_may_not_be_read_is_unknown_and_not_empty() {
    knarr_testkit::needs_root!("becoming another user");
    let (directory, root) = empty_root();
    root.make_directories(&path("closed/inside")).unwrap();
    root.make_directories(&path("open")).unwrap();
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(directory.path(), mode(0o755)).unwrap();
    std::fs::set_permissions(directory.path().join("closed"), mode(0o700)).unwrap();
    let listed = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(probe())
        .arg("list")
        .arg(directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&listed.stdout);
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    assert_eq!(
        text,
        "directory closed\nunknown Some(\"closed\")\ndirectory open\n"
    );
}

#[test]
fn k5_a_missing_or_unreadable_start_is_an_error_and_not_an_empty_listing() {
    let (directory, root) = empty_root();
    let missing = path("missing");
    let options = WalkOptions {
        below: Some(&missing),
        ..WalkOptions::default()
    };
    let error = Walker::new(&root, options).unwrap_err();
    assert_eq!(error.class(), knarr_fs::ErrorClass::Vanished);
    assert!(Root::open(&directory.path().join("missing")).is_err());
}

#[test]
fn what_is_not_wanted_is_left_out_with_all_that_is_below_it() {
    let (_directory, root) = empty_root();
    for at in ["keep/deep", "skip/deep"] {
        root.make_directories(&path(at)).unwrap();
    }
    let filter = |at: &RelPath, kind: Kind| kind != Kind::Directory || at.as_bytes() != b"skip";
    let options = WalkOptions {
        filter: Some(&filter),
        ..WalkOptions::default()
    };
    let found = items_with(&root, options);
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn a_walk_can_start_below_a_directory_and_passes_over_staged_files() {
    let (directory, root) = empty_root();
    root.make_directories(&path("a/b")).unwrap();
    write(
        &directory.path().join("a/.knarr-00000000000000ff.part"),
        b"",
    );
    write(&directory.path().join("a/.knarr-root"), b"");
    write(&directory.path().join("z"), b"");
    let below = path("a");
    let options = WalkOptions {
        below: Some(&below),
        ..WalkOptions::default()
    };
    let mut walker = Walker::new(&root, options).unwrap();
    let mut found = Vec::new();
    while walker.next_batch(&mut found, 1) {}
    assert!(matches!(&found[..], [TreeItem::Entry(entry)] if entry.path == path("a/b")));
    assert_eq!(walker.leftovers(), [path("a/.knarr-00000000000000ff.part")]);
    assert_eq!(shown(&root), ["a", "a/b", "z"]);
}

#[test]
fn k5_another_file_system_that_is_not_entered_is_unknown() {
    knarr_testkit::needs_root!("mounting a small disk");
    let disk = knarr_testkit::small_disk::SmallDisk::new(1 << 20, 100);
    write(&disk.path().join("inside"), b"x");
    let root = Root::open(disk.path().parent().unwrap()).unwrap();
    let all = items(&root);
    assert_eq!(all.len(), 2, "{all:?}");
    let options = WalkOptions {
        file_systems: FileSystems::OnlyTheRoots,
        ..WalkOptions::default()
    };
    let some = items_with(&root, options);
    assert!(
        matches!(&some[..], [TreeItem::Entry(_), TreeItem::Incomplete(_)]),
        "{some:?}"
    );
}
