//! The two-way planner against a simulated pair of replicas: after any two perturbations it converges in
//! a bounded number of rounds, loses no bytes, and does not care for the order within a batch.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::entry::{Entry, Kind};
use crate::hash::ContentHash;
use crate::path::RelPath;
use crate::plan::{
    Conflict, Decision, Mode, NoRenames, Operation, Policy, Side, numbered_path, plan,
};
use crate::time::Timestamp;
use crate::tree::{Synced, TreeItem};

/// The content of a file is a number; a directory has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    File { content: u64, mtime: i64 },
}

/// One side: full path → node. Parents always exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Replica(BTreeMap<Vec<u8>, Node>);

impl Replica {
    fn listing(&self) -> Vec<TreeItem> {
        let mut entries: Vec<Entry> = self
            .0
            .iter()
            .map(|(path, node)| to_entry(path, *node))
            .collect();
        entries.sort_by(|a, b| crate::path::tree_order((&a.path, a.kind), (&b.path, b.kind)));
        entries.into_iter().map(TreeItem::Entry).collect()
    }

    fn contents(&self) -> BTreeSet<u64> {
        let content = |node: &Node| match node {
            Node::File { content, .. } => Some(*content),
            Node::Directory => None,
        };
        self.0.values().filter_map(content).collect()
    }

    fn has_children(&self, path: &RelPath) -> bool {
        self.0
            .keys()
            .any(|other| RelPath::new(other.clone()).unwrap().is_below(path))
    }

    fn get(&self, path: &RelPath) -> Option<Entry> {
        self.0
            .get(path.as_bytes())
            .map(|node| to_entry(path.as_bytes(), *node))
    }

    /// Makes missing parents; fails if a file is in the way.
    fn put(&mut self, entry: &Entry) -> bool {
        let mut above = entry.path.parent();
        let mut parents = Vec::new();
        while let Some(parent) = above {
            match self.0.get(parent.as_bytes()) {
                Some(Node::File { .. }) => return false,
                Some(Node::Directory) => {}
                None => parents.push(parent.clone()),
            }
            above = parent.parent();
        }
        let node = match entry.kind {
            Kind::Directory => Node::Directory,
            _ => Node::File {
                content: entry.size,
                mtime: entry.mtime.unwrap().seconds(),
            },
        };
        match (self.0.get(entry.path.as_bytes()), node) {
            (Some(Node::Directory), Node::File { .. })
            | (Some(Node::File { .. }), Node::Directory) => {
                return false;
            }
            _ => {}
        }
        for parent in parents {
            self.0.insert(parent.as_bytes().to_vec(), Node::Directory);
        }
        self.0.insert(entry.path.as_bytes().to_vec(), node);
        true
    }
}

fn to_entry(path: &[u8], node: Node) -> Entry {
    let path = RelPath::new(path).unwrap();
    match node {
        Node::Directory => Entry::directory(path),
        Node::File { content, mtime } => {
            // The content stands in the size, so that equal sizes are equal contents.
            let mut entry = Entry::file(path, content);
            entry.mtime = Some(Timestamp::from_seconds(mtime));
            entry.hash = Some(ContentHash::of(&content.to_le_bytes()));
            entry
        }
    }
}

#[derive(Debug, Clone, Default)]
struct World {
    source: Replica,
    destination: Replica,
    synced: BTreeMap<Vec<u8>, Synced>,
}

impl World {
    fn side(&mut self, side: Side) -> &mut Replica {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    fn decisions(&self) -> Vec<Decision> {
        let policy = Policy::new(Mode::TwoWay);
        let (source, destination) = (self.source.listing(), self.destination.listing());
        let synced: Vec<Synced> = self.synced.values().cloned().collect();
        plan(source, destination, synced, &policy, &NoRenames).collect()
    }

    fn record(&mut self, path: &RelPath) {
        if let (Some(source), Some(destination)) =
            (self.source.get(path), self.destination.get(path))
        {
            let key = path.order_key(source.kind).into_owned();
            self.synced.insert(
                key,
                Synced {
                    path: path.clone(),
                    source: source.fingerprint(),
                    destination: destination.fingerprint(),
                    destination_path: None,
                    hash: None,
                },
            );
        }
    }

    fn forget(&mut self, path: &RelPath, kind: Kind) {
        self.synced.remove(&*path.order_key(kind));
    }

    /// One round: carries out all decisions in their phases, batches shuffled by `order`.
    fn round(&mut self, order: u64) -> usize {
        let decisions = self.decisions();
        let count = decisions.len();
        let (mut now, mut removals) = (Vec::new(), Vec::new());
        for decision in decisions {
            match decision {
                Decision::Operation(Operation::Remove {
                    blocking: false, ..
                }) => removals.push(decision),
                other => now.push(other),
            }
        }
        for decision in shuffled_within_directories(now, order) {
            self.carry_out(decision);
        }
        for decision in removals.into_iter().rev() {
            self.carry_out(decision);
        }
        count
    }

    fn carry_out(&mut self, decision: Decision) {
        match decision {
            Decision::Operation(Operation::Put { to, entry, .. }) => {
                if self.side(to).put(&entry) {
                    self.record(&entry.path);
                }
            }
            Decision::Operation(Operation::Remove { to, seen, .. }) => {
                self.forget(&seen.path, seen.kind);
                let replica = self.side(to);
                if replica.get(&seen.path).as_ref() == Some(&seen)
                    && !replica.has_children(&seen.path)
                {
                    replica.0.remove(seen.path.as_bytes());
                }
            }
            Decision::Operation(Operation::Adopt { source, .. }) => self.record(&source.path),
            Decision::Operation(Operation::Forget { path, kind }) => self.forget(&path, kind),
            Decision::Operation(Operation::Rename { .. }) => panic!("no index, no renames"),
            Decision::Conflict(conflict) => self.keep_both(&conflict),
            Decision::Problem(problem) => panic!("unexpected problem {problem:?}"),
        }
    }

    fn keep_both(&mut self, conflict: &Conflict) {
        let loser_side = conflict.winner.other();
        let path = conflict.source.path.clone();
        let node = self.side(loser_side).0.remove(path.as_bytes()).unwrap();
        let mut aside = conflict.conflict_path.clone();
        let mut number = 2;
        while self.source.get(&aside).is_some() || self.destination.get(&aside).is_some() {
            aside = numbered_path(&conflict.conflict_path, number);
            number += 1;
        }
        self.side(loser_side)
            .0
            .insert(aside.as_bytes().to_vec(), node);
        let winner = conflict.winner().clone();
        if self.side(loser_side).put(&winner) {
            self.record(&path);
        }
        if winner.kind == Kind::Directory {
            self.forget(&path, Kind::File);
        }
        let kept = self.side(loser_side).get(&aside).unwrap();
        if self.side(conflict.winner).put(&kept) {
            self.record(&aside);
        }
    }
}

/// Parents stay before children, everything else may change places.
fn shuffled_within_directories(mut decisions: Vec<Decision>, order: u64) -> Vec<Decision> {
    let depth = |decision: &Decision| decision.path().components().count();
    let blocking = |decision: &Decision| {
        !matches!(
            decision,
            Decision::Operation(Operation::Remove { .. }) | Decision::Conflict(_)
        )
    };
    decisions.sort_by_key(|decision| {
        let mix = ContentHash::of(&[decision.path().as_bytes(), &order.to_le_bytes()].concat());
        (blocking(decision), depth(decision), mix)
    });
    decisions
}

#[derive(Debug, Clone)]
enum Edit {
    Write(u8, u64),
    Remove(u8),
    MakeDirectory(u8),
}

const NAMES: [&str; 8] = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "d-"];

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        (0_u8..8, 1_u64..1_000_000).prop_map(|(name, content)| Edit::Write(name, content)),
        (0_u8..8).prop_map(Edit::Remove),
        (0_u8..8).prop_map(Edit::MakeDirectory),
    ];
    proptest::collection::vec(edit, 0..8)
}

/// Carries out what makes sense; writing over a directory first removes it.
fn perturb(replica: &mut Replica, edits: &[Edit], clock: &mut i64, written: &mut BTreeSet<u64>) {
    let subtree = |replica: &mut Replica, path: &RelPath| {
        replica.0.retain(|other, _| {
            let other = RelPath::new(other.clone()).unwrap();
            other != *path && !other.is_below(path)
        });
    };
    for edit in edits {
        *clock += 1;
        let (name, node) = match edit {
            Edit::Write(name, content) => (
                *name,
                Some(Node::File {
                    content: *content,
                    mtime: *clock,
                }),
            ),
            Edit::Remove(name) => (*name, None),
            Edit::MakeDirectory(name) => (*name, Some(Node::Directory)),
        };
        let path = RelPath::new(NAMES[usize::from(name)].as_bytes()).unwrap();
        let Some(node) = node else {
            subtree(replica, &path);
            continue;
        };
        if node == Node::Directory && replica.0.get(path.as_bytes()) == Some(&Node::Directory) {
            continue;
        }
        subtree(replica, &path);
        if replica.put(&to_entry(path.as_bytes(), node))
            && let Node::File { content, .. } = node
        {
            written.insert(content);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn k6_k7_two_way_converges_and_loses_no_bytes(
        start in edits(), left in edits(), right in edits(), order: u64,
    ) {
        let mut world = World::default();
        let (mut clock, mut written) = (0, BTreeSet::new());
        perturb(&mut world.source, &start, &mut clock, &mut written);
        for _ in 0..3 { world.round(order); }
        prop_assert_eq!(&world.source, &world.destination, "the first contact did not converge");
        // What each side has before and after its own edits: bytes a side still has may not vanish,
        // unless the other side, which had seen them, removed or overwrote them.
        let base = world.source.contents();
        perturb(&mut world.source, &left, &mut clock, &mut written);
        perturb(&mut world.destination, &right, &mut clock, &mut written);
        let fresh: BTreeSet<u64> = world
            .source.contents().union(&world.destination.contents())
            .copied().filter(|content| !base.contains(content)).collect();
        let mut rounds = 0;
        while world.round(order.rotate_left(rounds)) > 0 {
            rounds += 1;
            prop_assert!(rounds < 8, "no convergence: {:?}", world);
        }
        prop_assert_eq!(&world.source, &world.destination);
        let end = world.source.contents();
        for content in fresh {
            prop_assert!(end.contains(&content), "the bytes {} were lost: {:?}", content, world);
        }
    }

    #[test]
    fn k6_first_contact_is_a_union(left in edits(), right in edits(), order: u64) {
        let mut world = World::default();
        let (mut clock, mut written) = (0, BTreeSet::new());
        perturb(&mut world.source, &left, &mut clock, &mut written);
        perturb(&mut world.destination, &right, &mut clock, &mut written);
        let all: BTreeSet<u64> =
            world.source.contents().union(&world.destination.contents()).copied().collect();
        let mut rounds = 0;
        while world.round(order) > 0 {
            rounds += 1;
            prop_assert!(rounds < 8, "no convergence: {:?}", world);
        }
        prop_assert_eq!(&world.source, &world.destination);
        prop_assert!(world.source.contents().is_superset(&all), "{:?}", world);
    }
}
