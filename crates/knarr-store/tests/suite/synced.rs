//! The synced tree against a model.

use std::collections::BTreeMap;

use knarr_core::entry::{Identity, Kind};
use knarr_core::tree::Synced;
use knarr_core::{RelPath, Timestamp};
use knarr_store::synced::{Recognise, Side};
use knarr_store::{PAGE_ROWS, StoreError};
use proptest::prelude::*;

use crate::fixture::{Fixture, pair, path, synced};

#[derive(Debug, Clone)]
enum Step {
    Upsert(Synced),
    Remove(RelPath),
    RemoveTree(RelPath),
    Rename(RelPath, RelPath),
}

fn paths() -> impl Strategy<Value = RelPath> {
    // `!` and `0` sort before and behind `/`.
    proptest::collection::vec(prop_oneof!["[ab]", "a!", "a0", "[ab]{2}"], 1..4)
        .prop_map(|parts| path(&parts.join("/")))
}

fn entries() -> impl Strategy<Value = Synced> {
    let kinds = prop_oneof![Just(Kind::File), Just(Kind::Directory), Just(Kind::Symlink)];
    (
        paths(),
        kinds,
        0_u64..5,
        proptest::option::of(paths()),
        any::<Option<i64>>(),
    )
        .prop_map(|(path, kind, inode, destination_path, mtime)| {
            let mut entry = synced("x", kind, inode);
            entry.path = path;
            entry.destination_path = destination_path;
            entry.source.mtime = mtime.map(Timestamp::from_nanoseconds);
            if inode == 4 {
                entry.source.identity = Some(Identity::Tag("tag".into()));
                entry.destination.identity = None;
            }
            entry
        })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => entries().prop_map(Step::Upsert),
        1 => paths().prop_map(Step::Remove),
        1 => paths().prop_map(Step::RemoveTree),
        2 => (paths(), paths()).prop_map(|(from, to)| Step::Rename(from, to)),
    ]
}

type Model = BTreeMap<Vec<u8>, Synced>;

fn put(model: &mut Model, entry: Synced) {
    model.retain(|_, other| other.path != entry.path);
    model.insert(entry.path.order_key(entry.kind()).into_owned(), entry);
}

fn rename(model: &mut Model, from: &RelPath, to: &RelPath) -> Result<(), ()> {
    if from == to {
        return Ok(());
    }
    if from.is_below(to) || to.is_below(from) {
        return Err(());
    }
    let moved: Vec<Synced> = model
        .values()
        .filter(|entry| entry.path == *from || entry.path.is_below(from))
        .cloned()
        .collect();
    model.retain(|_, entry| entry.path != *from && !entry.path.is_below(from));
    if !moved.is_empty() {
        model.retain(|_, entry| entry.path != *to);
    }
    for mut entry in moved {
        entry.path = match entry.path.strip_directory(from) {
            Some(rest) => to.join(&rest).unwrap(),
            None => to.clone(),
        };
        // Only the very key is replaced below a directory.
        let key = entry.path.order_key(entry.kind()).into_owned();
        model.insert(key, entry);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_synced_tree_does_what_a_sorted_map_does(steps in proptest::collection::vec(steps(), 1..40)) {
        let fixture = Fixture::new();
        let other = pair(&fixture.store, "other");
        let pair = pair(&fixture.store, "one");
        let bystander = synced("a/b", Kind::File, 1);
        let kept = bystander.clone();
        let given = steps.clone();
        // All in one transaction: it is about the content, not about commits.
        let refused = fixture.store.transact(move |tx| {
            tx.upsert_synced(other, Recognise::Source, [&kept])?;
            let mut refused = Vec::new();
            for step in &given {
                match step {
                    Step::Upsert(entry) => tx.upsert_synced(pair, Recognise::Both, [entry])?,
                    Step::Remove(path) => drop(tx.remove_synced(pair, [path])?),
                    Step::RemoveTree(path) => drop(tx.remove_synced_tree(pair, path)?),
                    Step::Rename(from, to) => match tx.rename_synced(pair, from, to) {
                        Ok(_) => {}
                        Err(StoreError::RenameIntoItself { .. }) => refused.push((from.clone(), to.clone())),
                        Err(error) => return Err(error),
                    },
                }
            }
            Ok(refused)
        }).wait().unwrap();
        let mut model = Model::new();
        let mut model_refused = Vec::new();
        for step in steps {
            match step {
                Step::Upsert(entry) => put(&mut model, entry),
                Step::Remove(path) => model.retain(|_, entry| entry.path != path),
                Step::RemoveTree(path) => model.retain(|key, entry| {
                    !entry.path.is_below(&path) && *key != path.order_key(Kind::Directory).into_owned()
                }),
                Step::Rename(from, to) => if rename(&mut model, &from, &to).is_err() {
                    model_refused.push((from, to));
                },
            }
        }
        prop_assert_eq!(refused, model_refused);
        let tree: Vec<Synced> = fixture.store.synced_cursor(pair, b"").map(Result::unwrap).collect();
        prop_assert_eq!(&tree, &model.values().cloned().collect::<Vec<_>>());
        let count = fixture.store.read(|reader| reader.count_synced(pair)).unwrap();
        prop_assert_eq!(count, tree.len() as u64);
        let others: Vec<Synced> = fixture.store.synced_cursor(other, b"").map(Result::unwrap).collect();
        prop_assert_eq!(others, [bystander]);
        for entry in &tree {
            let found = fixture.store.read(|reader| reader.synced(pair, &entry.path)).unwrap();
            prop_assert!(found.is_some());
            for (side, identity) in [(Side::Source, &entry.source.identity), (Side::Destination, &entry.destination.identity)] {
                let Some(identity) = identity else { continue };
                let found = fixture.store
                    .read(|reader| reader.synced_with_identity(pair, side, identity, 100)).unwrap();
                prop_assert!(found.contains(entry));
            }
        }
    }
}

#[test]
fn a_cursor_goes_over_many_pages_and_can_start_anywhere() {
    let fixture = Fixture::new();
    let pair = pair(&fixture.store, "one");
    let count = PAGE_ROWS * 2 + 17;
    fixture
        .store
        .transact(move |tx| {
            let entries: Vec<Synced> = (0..count)
                .map(|number| synced(&format!("{number:06}"), Kind::File, 1))
                .collect();
            tx.upsert_synced(pair, Recognise::Source, &entries)
        })
        .wait()
        .unwrap();
    let names = |after: &[u8]| {
        fixture
            .store
            .synced_cursor(pair, after)
            .map(|entry| entry.unwrap().path)
            .collect::<Vec<_>>()
    };
    let all = names(b"");
    assert_eq!(all.len(), count);
    assert!(all.is_sorted());
    assert_eq!(names(b"008000")[0], path("008001"));
    assert_eq!(names(b"zzz"), []);
}

#[test]
fn a_directory_rename_moves_exactly_what_lies_below() {
    let fixture = Fixture::new();
    let pair = pair(&fixture.store, "one");
    let moved = fixture
        .store
        .transact(move |tx| {
            let entries = [
                synced("a", Kind::Directory, 1),
                synced("a/x", Kind::File, 2),
                synced("a/x/y", Kind::File, 3),
                synced("a!", Kind::File, 4),
                synced("a0", Kind::File, 5),
                synced("ab/x", Kind::File, 6),
            ];
            tx.upsert_synced(pair, Recognise::Source, &entries)?;
            tx.rename_synced(pair, &path("a"), &path("b/c"))
        })
        .wait()
        .unwrap();
    assert_eq!(moved, 3);
    let names: Vec<String> = fixture
        .store
        .synced_cursor(pair, b"")
        .map(|entry| entry.unwrap().path.to_string())
        .collect();
    assert_eq!(names, ["a!", "a0", "ab/x", "b/c", "b/c/x", "b/c/x/y"]);
}
