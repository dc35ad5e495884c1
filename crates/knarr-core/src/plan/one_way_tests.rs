//! One-way plans, decision by decision.

use proptest::prelude::*;

use crate::entry::{Entry, Kind};
use crate::path::{RelPath, tree_order};
use crate::plan::{
    Compare, Decision, IfExists, Mode, NoRenames, Operation, Phase, Policy, Side, plan,
};
use crate::time::Timestamp;
use crate::tree::{Incomplete, Problem, Synced, TreeItem};

fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).unwrap()
}

/// `a` is a file, `a/` a directory; size and mtime are `version`.
fn entry(text: &str, version: u64) -> Entry {
    match text.strip_suffix('/') {
        Some(directory) => Entry::directory(path(directory)),
        None => {
            let mut entry = Entry::file(path(text), version);
            entry.mtime = Some(Timestamp::from_seconds(i64::try_from(version).unwrap()));
            entry
        }
    }
}

fn tree(names: &[(&str, u64)]) -> Vec<TreeItem> {
    let mut entries: Vec<Entry> = names
        .iter()
        .map(|(name, version)| entry(name, *version))
        .collect();
    entries.sort_by(|a, b| tree_order((&a.path, a.kind), (&b.path, b.kind)));
    entries.into_iter().map(TreeItem::Entry).collect()
}

fn short(decision: &Decision) -> String {
    match decision {
        Decision::Operation(Operation::Put {
            entry,
            replaces,
            compare,
            phase,
            ..
        }) => format!(
            "put {}{}{}{}",
            entry.path,
            if replaces.is_some() { " over" } else { "" },
            if *compare == Compare::First {
                " if different"
            } else {
                ""
            },
            if *phase == Phase::AfterRemovals {
                " last"
            } else {
                ""
            },
        ),
        Decision::Operation(Operation::Remove { seen, blocking, .. }) => {
            format!(
                "remove {}{}",
                seen.path,
                if *blocking { " now" } else { "" }
            )
        }
        Decision::Operation(other) => format!("{other:?}"),
        Decision::Conflict(conflict) => format!("conflict {}", conflict.source.path),
        Decision::Problem(problem) => format!("problem {}", problem.path),
    }
}

fn planned(source: Vec<TreeItem>, destination: Vec<TreeItem>, policy: &Policy) -> Vec<String> {
    plan(
        source,
        destination,
        Vec::<Synced>::new(),
        policy,
        &NoRenames,
    )
    .map(|d| short(&d))
    .collect()
}

#[test]
fn k7_equal_trees_need_nothing() {
    let names = [("a", 1), ("b/", 0), ("b/c", 2)];
    assert!(planned(tree(&names), tree(&names), &Policy::new(Mode::Mirror)).is_empty());
}

#[test]
fn copy_brings_what_is_missing_or_different_and_removes_nothing() {
    let source = tree(&[("a", 1), ("b/", 0), ("b/c", 2), ("d", 5)]);
    let destination = tree(&[("d", 4), ("e", 1)]);
    assert_eq!(
        planned(source, destination, &Policy::new(Mode::Copy)),
        ["put a", "put b", "put b/c", "put d over"]
    );
}

#[test]
fn mirror_removes_what_the_source_does_not_have() {
    let source = tree(&[("a", 1)]);
    let destination = tree(&[("a", 1), ("old/", 0), ("old/x", 1)]);
    assert_eq!(
        planned(source, destination, &Policy::new(Mode::Mirror)),
        ["remove old", "remove old/x"]
    );
}

#[test]
fn equal_size_and_another_time_asks_for_a_comparison() {
    let mut touched = entry("a", 3);
    touched.mtime = Some(Timestamp::from_seconds(99));
    assert_eq!(
        planned(
            tree(&[("a", 3)]),
            vec![TreeItem::Entry(touched)],
            &Policy::new(Mode::Copy)
        ),
        ["put a over if different"]
    );
}

#[test]
fn if_exists_is_obeyed() {
    for (if_exists, expected) in [
        (IfExists::Skip, vec![]),
        (IfExists::Overwrite, vec!["put a over", "put b over"]),
        (IfExists::Newer, vec!["put b over"]),
        (IfExists::Fail, vec!["problem a", "problem b"]),
    ] {
        let policy = Policy {
            if_exists,
            ..Policy::new(Mode::Copy)
        };
        let source = tree(&[("a", 1), ("b", 9)]);
        assert_eq!(
            planned(source, tree(&[("a", 2), ("b", 2)]), &policy),
            expected,
            "{if_exists:?}"
        );
    }
}

#[test]
fn k5_an_incomplete_part_of_the_source_removes_nothing_there() {
    let mut source = tree(&[("a/", 0), ("b/", 0), ("c", 1)]);
    let incomplete = Incomplete {
        below: Some(path("b")),
        reason: "permission denied".into(),
    };
    source.insert(2, TreeItem::Incomplete(incomplete));
    let destination = tree(&[
        ("a/", 0),
        ("a/x", 1),
        ("b/", 0),
        ("b/x", 1),
        ("b/y/", 0),
        ("b/y/z", 1),
        ("c", 1),
    ]);
    assert_eq!(
        planned(source, destination, &Policy::new(Mode::Mirror)),
        ["remove a/x"]
    );
}

#[test]
fn k5_a_listing_that_broke_off_removes_nothing_behind_the_break() {
    let mut source = tree(&[("b", 1)]);
    source.push(TreeItem::Incomplete(Incomplete {
        below: None,
        reason: "time-out".into(),
    }));
    let destination = tree(&[("a", 1), ("b", 1), ("c", 1), ("d/", 0), ("d/e", 1)]);
    assert_eq!(
        planned(source, destination, &Policy::new(Mode::Mirror)),
        ["remove a"]
    );
}

#[test]
fn k5_a_problem_is_not_an_absence() {
    let problem = |name: &str, kind| {
        TreeItem::Problem(Problem {
            path: path(name),
            kind,
            message: "no".into(),
        })
    };
    let source = vec![problem("a", Kind::File), problem("d", Kind::Directory)];
    let destination = tree(&[("a", 1), ("d/", 0), ("d/x", 1), ("e", 1)]);
    assert_eq!(
        planned(source, destination, &Policy::new(Mode::Mirror)),
        ["problem a", "problem d", "remove e"]
    );
}

#[test]
fn k5_what_a_size_limit_leaves_out_is_neither_moved_nor_removed() {
    let excluded = |name: &str| TreeItem::Excluded {
        path: path(name),
        kind: Kind::File,
    };
    let destination = tree(&[("big", 1), ("gone", 1)]);
    assert_eq!(
        planned(
            vec![excluded("big")],
            destination,
            &Policy::new(Mode::Mirror)
        ),
        ["remove gone"]
    );
}

#[test]
fn an_incomplete_destination_gets_nothing_where_it_could_not_be_seen() {
    let mut destination = tree(&[("a/", 0)]);
    let incomplete = Incomplete {
        below: Some(path("a")),
        reason: "permission denied".into(),
    };
    destination.push(TreeItem::Incomplete(incomplete));
    let source = tree(&[("a/", 0), ("a/x", 1), ("b", 1)]);
    assert_eq!(
        planned(source, destination, &Policy::new(Mode::Copy)),
        ["put b"]
    );
}

#[test]
fn a_file_and_a_directory_of_one_name_meet_although_names_lie_between_them() {
    let directory = || tree(&[("a/", 0), ("a/x", 1), ("a-b", 1)]);
    let file = || tree(&[("a", 1), ("a-b", 1)]);
    assert_eq!(
        planned(file(), directory(), &Policy::new(Mode::Copy)),
        ["problem a"]
    );
    assert_eq!(
        planned(directory(), file(), &Policy::new(Mode::Copy)),
        ["problem a"]
    );
    assert_eq!(
        planned(directory(), file(), &Policy::new(Mode::Mirror)),
        ["remove a now", "put a", "put a/x"]
    );
    assert_eq!(
        planned(file(), directory(), &Policy::new(Mode::Mirror)),
        ["remove a", "put a last", "remove a/x"]
    );
}

#[test]
fn special_files_are_problems_and_are_never_taken_for_absent() {
    let mut fifo = entry("pipe", 0);
    fifo.kind = Kind::Special;
    let policy = Policy::new(Mode::Mirror);
    assert_eq!(
        planned(vec![TreeItem::Entry(fifo)], Vec::new(), &policy),
        ["problem pipe"]
    );
}

#[test]
fn what_was_delivered_and_is_untouched_needs_no_comparable_times() {
    let source = entry("a", 3);
    let mut destination = entry("a", 3);
    destination.mtime = Some(Timestamp::from_seconds(1));
    let synced = Synced {
        path: path("a"),
        source: source.fingerprint(),
        destination: destination.fingerprint(),
        destination_path: None,
        hash: None,
    };
    let policy = Policy {
        mtimes_comparable: false,
        ..Policy::new(Mode::Copy)
    };
    let decisions = plan(
        vec![TreeItem::Entry(source)],
        vec![TreeItem::Entry(destination)],
        vec![synced],
        &policy,
        &NoRenames,
    );
    assert_eq!(decisions.count(), 0);
}

fn names() -> impl Strategy<Value = Vec<(String, u64)>> {
    let name = prop_oneof!["[ab]", "[ab]-", "[ab]/[ab]", "[ab]/[ab]/[ab]"];
    proptest::collection::btree_map(name, 1_u64..3, 0..8).prop_map(|map| map.into_iter().collect())
}

/// A tree in which no file lies below a file, with the directories that the files need.
fn well_formed(names: &[(String, u64)]) -> Vec<TreeItem> {
    let mut all: std::collections::BTreeMap<Vec<u8>, Entry> = std::collections::BTreeMap::new();
    for (name, version) in names {
        let file = entry(name, *version);
        let blocked = file.path.parent().is_some_and(|parent| {
            let mut above = Some(parent);
            while let Some(directory) = above {
                if all.contains_key(directory.as_bytes()) {
                    return true;
                }
                above = directory.parent();
            }
            false
        });
        let key = [file.path.as_bytes(), b"/"].concat();
        if blocked || all.contains_key(&key) {
            continue;
        }
        let mut above = file.path.parent();
        while let Some(directory) = above {
            above = directory.parent();
            let directory = Entry::directory(directory);
            all.insert(
                directory.path.order_key(Kind::Directory).into_owned(),
                directory,
            );
        }
        all.insert(file.path.as_bytes().to_vec(), file);
    }
    all.into_values().map(TreeItem::Entry).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Carrying out a mirror plan in the documented phases makes the destination equal to the source.
    #[test]
    fn k7_a_mirror_plan_converges_in_one_round(source in names(), destination in names()) {
        let (source, mut now) = (well_formed(&source), well_formed(&destination));
        let policy = Policy::new(Mode::Mirror);
        let mut removals = Vec::new();
        let mut last = Vec::new();
        let all: Vec<Decision> =
            plan(source.clone(), now.clone(), Vec::<Synced>::new(), &policy, &NoRenames).collect();
        let entry_of = |item: &TreeItem| match item {
            TreeItem::Entry(entry) => entry.clone(),
            other => panic!("{other:?}"),
        };
        for decision in all {
            match decision {
                Decision::Operation(Operation::Remove { seen, blocking, to }) => {
                    prop_assert_eq!(to, Side::Destination);
                    if blocking { now.retain(|item| entry_of(item) != seen) } else { removals.push(seen) }
                }
                Decision::Operation(Operation::Put { entry, phase, .. }) => {
                    if phase == Phase::AfterRemovals { last.push(entry) } else {
                        now.retain(|item| entry_of(item).path != entry.path);
                        now.push(TreeItem::Entry(entry));
                    }
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        for seen in removals.into_iter().rev() {
            prop_assert!(!now.iter().any(|item| entry_of(item).path.is_below(&seen.path)));
            now.retain(|item| entry_of(item) != seen);
        }
        for entry in last {
            prop_assert!(!now.iter().any(|item| entry_of(item).path == entry.path));
            now.push(TreeItem::Entry(entry));
        }
        now.sort_by(|a, b| {
            let (a, b) = (entry_of(a), entry_of(b));
            tree_order((&a.path, a.kind), (&b.path, b.kind))
        });
        prop_assert_eq!(now, source);
    }

    /// What both sides have alike is passed without a look at what is remembered, and nothing comes of that.
    #[test]
    fn passing_quickly_what_is_the_same_changes_no_decision(
        source in names(),
        destination in names(),
        remembered in names(),
        mirrors: bool,
        checksum: bool,
        unknown in proptest::option::of(0_usize..6),
        twice in proptest::option::of(0_usize..6),
    ) {
        let (mut source, destination) = (well_formed(&source), well_formed(&destination));
        if let Some(at) = unknown.filter(|at| *at <= source.len()) {
            let reason = "a page failed".to_owned();
            source.insert(at, TreeItem::Incomplete(Incomplete { below: None, reason }));
        }
        if let Some(item) = twice.and_then(|at| source.get(at).cloned().map(|item| (at, item))) {
            source.insert(item.0, item.1);
        }
        let synced: Vec<Synced> = well_formed(&remembered)
            .into_iter()
            .filter_map(|item| match item {
                TreeItem::Entry(entry) => Some(Synced {
                    path: entry.path.clone(),
                    source: entry.fingerprint(),
                    destination: entry.fingerprint(),
                    destination_path: None,
                    hash: None,
                }),
                _ => None,
            })
            .collect();
        let mut policy = Policy::new(if mirrors { Mode::Mirror } else { Mode::Copy });
        policy.checksum = checksum;
        let quickly: Vec<Decision> =
            plan(source.clone(), destination.clone(), synced.clone(), &policy, &NoRenames).collect();
        let slowly = plan(source, destination, synced, &policy, &NoRenames).step_by_step();
        prop_assert_eq!(quickly, slowly);
    }
}
