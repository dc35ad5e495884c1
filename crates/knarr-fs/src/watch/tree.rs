//! The watched directories: a tree of names, so that the rename of a directory is one change however
//! much lies below it.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher as _;

use knarr_core::path::RelPath;

/// The root's node.
pub(crate) const ROOT: u32 = 0;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    name: Box<[u8]>,
    parent: u32,
    first_child: u32,
    next_sibling: u32,
    previous_sibling: u32,
    /// The next node whose parent and name have the same hash.
    same_key: u32,
    watch: i32,
}

/// The watched directories of a root.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Given up lately; numbers that somebody may still remember are not used again.
    released: Vec<u32>,
    by_watch: HashMap<i32, u32>,
    by_key: HashMap<u64, u32>,
    hasher: RandomState,
}

impl Tree {
    pub(crate) fn new(root_watch: i32) -> Self {
        let root = Node {
            name: Box::default(),
            parent: NONE,
            first_child: NONE,
            next_sibling: NONE,
            previous_sibling: NONE,
            same_key: NONE,
            watch: root_watch,
        };
        Self {
            nodes: vec![root],
            free: Vec::new(),
            released: Vec::new(),
            by_watch: HashMap::from([(root_watch, ROOT)]),
            by_key: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// How many directories are watched.
    pub(crate) fn len(&self) -> usize {
        self.by_watch.len()
    }

    pub(crate) fn by_watch(&self, watch: i32) -> Option<u32> {
        self.by_watch.get(&watch).copied()
    }

    pub(crate) fn watch_of(&self, node: u32) -> i32 {
        self.node(node).watch
    }

    pub(crate) fn name_of(&self, node: u32) -> &[u8] {
        &self.node(node).name
    }

    /// All watches.
    pub(crate) fn watches(&self) -> impl Iterator<Item = i32> {
        self.by_watch.keys().copied()
    }

    /// A number that stands for a name in a directory.
    pub(crate) fn key(&self, parent: u32, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent, name))
    }

    pub(crate) fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let mut node = *self.by_key.get(&self.key(parent, name))?;
        while node != NONE {
            let at = self.node(node);
            if at.parent == parent && *at.name == *name {
                return Some(node);
            }
            node = at.same_key;
        }
        None
    }

    /// The path of `name` in a directory; nothing if it is longer than any path may be, or the
    /// directory is not in the tree (any more).
    pub(crate) fn path_in(&self, directory: u32, name: &[u8]) -> Option<RelPath> {
        let mut names = vec![name];
        let mut node = directory;
        while node != ROOT {
            if node == NONE {
                return None;
            }
            let at = self.node(node);
            names.push(&at.name);
            node = at.parent;
        }
        names.reverse();
        RelPath::new(names.join(&b'/')).ok()
    }

    /// The path of a directory; nothing for the root.
    pub(crate) fn path_of(&self, node: u32) -> Option<RelPath> {
        if node == ROOT {
            return None;
        }
        let at = self.node(node);
        self.path_in(at.parent, &at.name)
    }

    /// Whether `node` is `below` or lies above it.
    pub(crate) fn is_same_or_above(&self, node: u32, below: u32) -> bool {
        let mut at = below;
        while at != NONE {
            if at == node {
                return true;
            }
            at = self.node(at).parent;
        }
        false
    }

    pub(crate) fn is_at(&self, node: u32, parent: u32, name: &[u8]) -> bool {
        let at = self.node(node);
        at.parent == parent && *at.name == *name
    }

    /// The directory that holds this one; nothing for the root and for one without a name.
    pub(crate) fn parent_of(&self, node: u32) -> Option<u32> {
        Some(self.node(node).parent).filter(|parent| *parent != NONE)
    }

    /// Whether it was not removed.
    pub(crate) fn is_watched(&self, node: u32) -> bool {
        self.by_watch.get(&self.node(node).watch) == Some(&node)
    }

    /// What is watched directly below a directory.
    pub(crate) fn children(&self, directory: u32) -> Vec<u32> {
        let mut children = Vec::new();
        let mut child = self.node(directory).first_child;
        while child != NONE {
            children.push(child);
            child = self.node(child).next_sibling;
        }
        children
    }

    /// Adds a directory that is not there yet.
    pub(crate) fn insert(&mut self, parent: u32, name: Box<[u8]>, watch: i32) -> u32 {
        let node = Node {
            name,
            parent: NONE,
            first_child: NONE,
            next_sibling: NONE,
            previous_sibling: NONE,
            same_key: NONE,
            watch,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.nodes[number as usize] = node;
                number
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("fewer watches than numbers")
            }
        };
        self.by_watch.insert(watch, number);
        self.attach(number, parent);
        number
    }

    /// Moves a directory, with everything below it. `parent` must not lie below it.
    pub(crate) fn reparent(&mut self, node: u32, parent: u32, name: &[u8]) {
        self.detach(node);
        self.nodes[node as usize].name = name.into();
        self.attach(node, parent);
    }

    /// Takes a directory out of the names, but keeps it watched; for one whose name was taken over.
    pub(crate) fn detach(&mut self, node: u32) {
        let at = self.node(node);
        let (parent, next, previous) = (at.parent, at.next_sibling, at.previous_sibling);
        if parent == NONE {
            return;
        }
        self.forget_key(node);
        if previous == NONE {
            self.nodes[parent as usize].first_child = next;
        } else {
            self.nodes[previous as usize].next_sibling = next;
        }
        if next != NONE {
            self.nodes[next as usize].previous_sibling = previous;
        }
        let at = &mut self.nodes[node as usize];
        (at.parent, at.next_sibling, at.previous_sibling) = (NONE, NONE, NONE);
    }

    fn attach(&mut self, node: u32, parent: u32) {
        let first = self.node(parent).first_child;
        if first != NONE {
            self.nodes[first as usize].previous_sibling = node;
        }
        self.nodes[parent as usize].first_child = node;
        let key = self.key(parent, &self.node(node).name);
        let same_key = self.by_key.insert(key, node).unwrap_or(NONE);
        let at = &mut self.nodes[node as usize];
        at.parent = parent;
        at.next_sibling = first;
        at.previous_sibling = NONE;
        at.same_key = same_key;
    }

    fn forget_key(&mut self, node: u32) {
        let (parent, next) = (self.node(node).parent, self.node(node).same_key);
        let key = self.key(parent, &self.node(node).name);
        let Entry::Occupied(mut first) = self.by_key.entry(key) else {
            return;
        };
        if *first.get() == node {
            if next == NONE {
                first.remove();
            } else {
                *first.get_mut() = next;
            }
            return;
        }
        let mut at = *first.get();
        while at != NONE {
            let after = self.nodes[at as usize].same_key;
            if after == node {
                self.nodes[at as usize].same_key = next;
                return;
            }
            at = after;
        }
    }

    /// Removes a directory with everything below it, and hands each watch to `unwatch`.
    pub(crate) fn remove(&mut self, node: u32, mut unwatch: impl FnMut(i32)) {
        if !self.is_watched(node) {
            // It was removed before, with what was above it.
            return;
        }
        self.detach(node);
        let mut pending = vec![node];
        while let Some(number) = pending.pop() {
            let mut child = self.node(number).first_child;
            while child != NONE {
                pending.push(child);
                child = self.node(child).next_sibling;
            }
            if number != node {
                self.forget_key(number);
            }
            let watch = self.node(number).watch;
            if self.by_watch.get(&watch) == Some(&number) {
                self.by_watch.remove(&watch);
                unwatch(watch);
            }
            let at = &mut self.nodes[number as usize];
            at.name = Box::default();
            at.first_child = NONE;
            self.released.push(number);
        }
    }

    /// Nobody remembers a number any more.
    pub(crate) fn reuse_released(&mut self) {
        self.free.append(&mut self.released);
    }

    fn node(&self, number: u32) -> &Node {
        &self.nodes[number as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(tree: &Tree, node: u32) -> String {
        tree.path_of(node)
            .map(|path| path.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn r33_the_rename_of_a_directory_renames_what_is_below_it() {
        let mut tree = Tree::new(1);
        let a = tree.insert(ROOT, (*b"a").into(), 2);
        let b = tree.insert(a, (*b"b").into(), 3);
        let c = tree.insert(b, (*b"c").into(), 4);
        let d = tree.insert(ROOT, (*b"d").into(), 5);
        tree.reparent(b, d, b"x");
        assert_eq!(shown(&tree, c), "d/x/c");
        assert_eq!(tree.find(a, b"b"), None);
        assert_eq!(tree.find(d, b"x"), Some(b));
        let mut watches = Vec::new();
        tree.remove(d, |watch| watches.push(watch));
        watches.sort_unstable();
        assert_eq!(watches, [3, 4, 5]);
        assert_eq!(tree.len(), 2);
        assert_eq!(tree.find(b, b"c"), None);
    }

    #[derive(Debug, Clone)]
    enum Change {
        Insert(usize, u8),
        Move(usize, usize, u8),
        Remove(usize),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let change = prop_oneof![
            (any::<usize>(), 0..6_u8).prop_map(|(at, name)| Change::Insert(at, name)),
            (any::<usize>(), any::<usize>(), 0..6_u8).prop_map(|(a, b, n)| Change::Move(a, b, n)),
            any::<usize>().prop_map(Change::Remove),
        ];
        proptest::collection::vec(change, 0..60)
    }

    proptest! {
        /// Against the obvious model: a list of parent, name and watch.
        #[test]
        fn r33_the_tree_is_what_a_plain_list_of_parents_says(changes in changes()) {
            let mut tree = Tree::new(0);
            let mut model: Vec<(u32, u32, u8)> = Vec::new(); // node, parent, name
            let mut watch = 0;
            for change in changes {
                let pick = |at: usize, model: &[(u32, u32, u8)]| {
                    if model.is_empty() { ROOT } else { model[at % model.len()].0 }
                };
                let taken = |parent, name, model: &[(u32, u32, u8)]| {
                    model.iter().any(|(_, p, n)| (*p, *n) == (parent, name))
                };
                match change {
                    Change::Insert(at, name) => {
                        let parent = pick(at, &model);
                        if !taken(parent, name, &model) {
                            watch += 1;
                            model.push((tree.insert(parent, [name].into(), watch), parent, name));
                        }
                    }
                    Change::Move(at, to, name) => {
                        let (node, parent) = (pick(at, &model), pick(to, &model));
                        if node != ROOT && !tree.is_same_or_above(node, parent)
                            && !taken(parent, name, &model)
                        {
                            tree.reparent(node, parent, &[name]);
                            for row in &mut model {
                                if row.0 == node { *row = (node, parent, name); }
                            }
                        }
                    }
                    Change::Remove(at) => {
                        let node = pick(at, &model);
                        if node != ROOT {
                            let gone: Vec<u32> = model.iter().map(|row| row.0)
                                .filter(|row| tree.is_same_or_above(node, *row)).collect();
                            let mut count = 0;
                            tree.remove(node, |_| count += 1);
                            prop_assert_eq!(count, gone.len());
                            model.retain(|row| !gone.contains(&row.0));
                            tree.reuse_released();
                        }
                    }
                }
                prop_assert_eq!(tree.len(), model.len() + 1);
                for (node, parent, name) in &model {
                    prop_assert_eq!(tree.find(*parent, &[*name]), Some(*node));
                }
            }
        }
    }
}
