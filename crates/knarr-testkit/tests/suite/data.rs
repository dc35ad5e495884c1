//! Fixture trees.

use std::fs;

use knarr_testkit::data::{Compare, TreeBuilder, assert_same_tree, content, differences};

fn everything(seed: u64) -> TreeBuilder {
    let tree = TreeBuilder::new(seed)
        .files(50)
        .nasty_names()
        .links()
        .specials()
        .depth(40);
    tree.empty().sparse(10 << 20)
}

#[test]
fn the_same_seed_builds_the_same_tree() {
    let directory = tempfile::tempdir().unwrap();
    let (left, right) = (
        directory.path().join("left"),
        directory.path().join("right"),
    );
    assert_eq!(everything(7).build(&left), everything(7).build(&right));
    assert_same_tree(&left, &right, &Compare::exact());
    let other = directory.path().join("other");
    everything(8).build(&other);
    assert!(
        !differences(&left, &other, &Compare::content())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn differences_say_what_differs() {
    let directory = tempfile::tempdir().unwrap();
    let (left, right) = (
        directory.path().join("left"),
        directory.path().join("right"),
    );
    TreeBuilder::new(1)
        .files(5)
        .directories(0)
        .sizes(10..=20)
        .build(&left);
    TreeBuilder::new(1)
        .files(5)
        .directories(0)
        .sizes(10..=20)
        .build(&right);
    let mut bytes = fs::read(right.join("file-000001")).unwrap();
    bytes[3] ^= 1;
    fs::write(right.join("file-000001"), bytes).unwrap();
    fs::remove_file(right.join("file-000002")).unwrap();
    fs::write(right.join("more"), b"").unwrap();
    let lines = differences(&left, &right, &Compare::content()).unwrap();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].contains("file-000001") && lines[0].contains("other content"));
    assert!(lines[1].starts_with("only left") && lines[2].starts_with("only right"));
}

#[test]
fn content_follows_from_its_seed() {
    assert_eq!(content(3, 1000), content(3, 1000));
    assert_eq!(content(3, 2000)[..1000], content(3, 1000)[..]);
    assert_ne!(content(3, 1000), content(4, 1000));
}
