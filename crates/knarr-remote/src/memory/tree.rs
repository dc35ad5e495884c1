//! The tree itself: nodes by their order key, under one lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use knarr_core::entry::{Identity, Kind};
use knarr_core::{Clock, ContentHash, Entry, RelPath, Timestamp};

use crate::error::{ErrorKind, RemoteError};
use crate::guard::{changed, check_replace, missing, wrong_kind};
use crate::listing::ListOptions;
use crate::remote::{Capabilities, MtimeSupport, NewNode, Removal, Replace};
use crate::upload::StagedId;

/// One thing that is there.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) path: RelPath,
    pub(super) kind: Kind,
    pub(super) content: Bytes,
    mtime: Timestamp,
    mode: u32,
    target: Option<Box<[u8]>>,
    inode: u64,
}

/// What a node is made with.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub(super) mtime: Option<Timestamp>,
    pub(super) mode: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Tree {
    capabilities: Capabilities,
    clock: Arc<dyn Clock>,
    nodes: BTreeMap<Box<[u8]>, Node>,
    /// What folded names are really called; filled only where case does not count.
    spellings: HashMap<Vec<u8>, RelPath>,
    pub(super) staged: HashMap<StagedId, Vec<u8>>,
    last_inode: u64,
}

impl Tree {
    pub(super) fn new(capabilities: Capabilities, clock: Arc<dyn Clock>) -> Self {
        Self {
            capabilities,
            clock,
            nodes: BTreeMap::new(),
            spellings: HashMap::new(),
            staged: HashMap::new(),
            last_inode: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.nodes.clear();
        self.spellings.clear();
        self.staged.clear();
    }

    /// The node at `path`, whatever the case of its letters where that does not count.
    pub(super) fn find(&self, path: &RelPath) -> Option<&Node> {
        let path = self.spelling(path).unwrap_or(path);
        [Kind::File, Kind::Directory]
            .into_iter()
            .find_map(|kind| self.nodes.get(&*path.order_key(kind)))
    }

    /// What lies at `path`, by the name it was asked for.
    pub(super) fn entry(&self, path: &RelPath) -> Option<Entry> {
        self.find(path).map(|node| {
            let mut entry = self.describe(node);
            entry.path = path.clone();
            entry
        })
    }

    pub(super) fn open(&self, path: &RelPath) -> Result<(Entry, Bytes), RemoteError> {
        match self.find(path) {
            None => Err(missing("open", path)),
            Some(node) if node.kind != Kind::File => {
                Err(wrong_kind("open", path, node.kind, Kind::File))
            }
            Some(node) => {
                let mut entry = self.describe(node);
                entry.path = path.clone();
                Ok((entry, node.content.clone()))
            }
        }
    }

    pub(super) fn expect_directory(&self, path: &RelPath) -> Result<(), RemoteError> {
        match self.find(path) {
            _ if !self.capabilities.directories => Ok(()),
            None => Err(missing("list", path)),
            Some(node) if node.kind != Kind::Directory => {
                Err(wrong_kind("list", path, node.kind, Kind::Directory))
            }
            Some(_) => Ok(()),
        }
    }

    /// What a listing with `options` holds, in tree order.
    pub(super) fn hidden_count(&self) -> usize {
        let nodes = self.nodes.values();
        nodes
            .filter(|node| node.path.name().starts_with(b".knarr-"))
            .count()
    }

    pub(super) fn entries(&self, options: &ListOptions) -> Vec<Entry> {
        let below = options
            .below
            .as_ref()
            .map(|below| self.spelling(below).unwrap_or(below));
        let mut entries: Vec<Entry> = Vec::new();
        // The directory whose content is left out just now: all of it follows in one piece.
        let mut left_out: Option<RelPath> = None;
        for node in self.nodes.values() {
            let inside = match below {
                Some(below) => node.path.strip_directory(below),
                None => Some(node.path.clone()),
            };
            let Some(inside) = inside else { continue };
            if left_out
                .as_ref()
                .is_some_and(|out| node.path.strip_directory(out).is_some())
            {
                continue;
            }
            let depth = inside.components().count();
            if options.shallow && depth > 1 {
                self.push_prefix(&mut entries, node, depth, options);
                continue;
            }
            if !self.taken(options, node, &mut left_out) {
                continue;
            }
            entries.push(self.describe(node));
        }
        entries
    }

    /// In a place of keys alone, shows the directory that a key below it implies, once.
    fn push_prefix(
        &self,
        entries: &mut Vec<Entry>,
        node: &Node,
        depth: usize,
        options: &ListOptions,
    ) {
        if self.capabilities.directories {
            return;
        }
        let mut prefix = node.path.clone();
        for _ in 1..depth {
            match prefix.parent() {
                Some(parent) => prefix = parent,
                None => return,
            }
        }
        let known = entries.last().is_some_and(|last| last.path == prefix);
        if !known && options.takes(&prefix, Kind::Directory) {
            entries.push(Entry::directory(prefix));
        }
    }

    fn taken(&self, options: &ListOptions, node: &Node, left_out: &mut Option<RelPath>) -> bool {
        if !self.capabilities.directories {
            // Directories are asked for, too, although only their content is there.
            let mut parent = node.path.parent();
            while let Some(directory) = parent {
                if !options.takes(&directory, Kind::Directory) {
                    *left_out = Some(directory);
                    return false;
                }
                parent = directory.parent();
            }
        }
        let taken = options.takes(&node.path, node.kind);
        if !taken && node.kind == Kind::Directory {
            *left_out = Some(node.path.clone());
        }
        taken
    }

    fn describe(&self, node: &Node) -> Entry {
        let tagged = self.capabilities.mtime == MtimeSupport::OwnTime;
        Entry {
            path: node.path.clone(),
            kind: node.kind,
            size: node.content.len() as u64,
            mtime: Some(node.mtime),
            identity: Some(if tagged {
                Identity::Tag(ContentHash::of(&node.content).to_string().into())
            } else {
                Identity::Inode(node.inode)
            }),
            hash: None,
            mode: self.capabilities.modes.then_some(node.mode),
            link_target: node.target.clone(),
        }
    }

    /// Puts a file at `path` that replaces anything.
    pub(super) fn put(&mut self, path: &RelPath, content: Bytes) -> Result<Entry, RemoteError> {
        let node = NewNode::File { size: None };
        let attributes = Attributes {
            mtime: None,
            mode: None,
        };
        self.place(path, &node, content, &attributes, &Replace::Anything)
    }

    /// Makes `node` visible at `path`: the commit.
    pub(super) fn place(
        &mut self,
        path: &RelPath,
        node: &NewNode,
        content: Bytes,
        attributes: &Attributes,
        replace: &Replace,
    ) -> Result<Entry, RemoteError> {
        let (kind, target) = match node {
            NewNode::File { .. } => (Kind::File, None),
            NewNode::Directory => (Kind::Directory, None),
            NewNode::Symlink { target } => (Kind::Symlink, Some(target.clone())),
        };
        let existing = self.entry(path);
        if kind == Kind::Directory
            && existing
                .as_ref()
                .is_some_and(|entry| entry.kind == Kind::Directory)
        {
            self.adjust_directory(path, attributes);
            return self.entry(path).ok_or_else(|| missing("commit", path));
        }
        check_replace("commit", path, kind, existing.as_ref(), replace)?;
        let real = self.make_parents("commit", path)?;
        self.take(path);
        self.last_inode += 1;
        let mtime = match self.capabilities.mtime {
            MtimeSupport::OwnTime => self.clock.now(),
            MtimeSupport::Kept {
                precision_nanoseconds,
            } => rounded(
                attributes.mtime.unwrap_or_else(|| self.clock.now()),
                precision_nanoseconds,
            ),
        };
        let usual = if kind == Kind::Directory {
            0o755
        } else {
            0o644
        };
        let mode = attributes.mode.unwrap_or(usual);
        let inode = self.last_inode;
        self.insert(Node {
            path: real,
            kind,
            content,
            mtime,
            mode,
            target,
            inode,
        });
        self.entry(path).ok_or_else(|| missing("commit", path))
    }

    fn adjust_directory(&mut self, path: &RelPath, attributes: &Attributes) {
        let path = self.spelling(path).unwrap_or(path).clone();
        if let Some(node) = self.nodes.get_mut(&*path.order_key(Kind::Directory)) {
            node.mode = attributes.mode.unwrap_or(node.mode);
            node.mtime = attributes.mtime.unwrap_or(node.mtime);
        }
    }

    /// Makes what is missing above `path`; gives `path` with its parents as they are really called.
    fn make_parents(&mut self, operation: &str, path: &RelPath) -> Result<RelPath, RemoteError> {
        let Some(parent) = path.parent() else {
            return Ok(path.clone());
        };
        if !self.capabilities.directories {
            return Ok(path.clone());
        }
        let real = match self.find(&parent) {
            Some(node) if node.kind == Kind::Directory => node.path.clone(),
            Some(node) => return Err(wrong_kind(operation, &parent, node.kind, Kind::Directory)),
            None => {
                let real = self.make_parents(operation, &parent)?;
                self.last_inode += 1;
                self.insert(Node {
                    path: real.clone(),
                    kind: Kind::Directory,
                    content: Bytes::new(),
                    mtime: self.clock.now(),
                    mode: 0o755,
                    target: None,
                    inode: self.last_inode,
                });
                real
            }
        };
        real.join_name(path.name()).map_err(|error| {
            RemoteError::new(ErrorKind::InvalidName, operation, error.to_string()).at(path)
        })
    }

    pub(super) fn rename(
        &mut self,
        from: &RelPath,
        to: &RelPath,
        replace: &Replace,
    ) -> Result<Entry, RemoteError> {
        let Some(node) = self.find(from).cloned() else {
            return Err(missing("rename", from));
        };
        if to.strip_directory(from).is_some() {
            let message = format!("\"{to}\" lies below it");
            return Err(RemoteError::new(ErrorKind::WrongKind, "rename", message).at(from));
        }
        // Only the case of the letters changes: it is in nobody's way but its own.
        let itself = self.spelling(to).is_some_and(|real| *real == node.path);
        if !itself {
            check_replace("rename", to, node.kind, self.entry(to).as_ref(), replace)?;
        }
        let real = self.make_parents("rename", to)?;
        self.take(to);
        let below: Vec<RelPath> = self
            .nodes
            .values()
            .filter(|other| other.path.strip_directory(&node.path).is_some())
            .map(|other| other.path.clone())
            .collect();
        self.take(&node.path);
        for old in below {
            let moved = old.strip_directory(&node.path).map(|rest| real.join(&rest));
            if let (Some(Ok(path)), Some(inner)) = (moved, self.take(&old)) {
                self.insert(Node { path, ..inner });
            }
        }
        self.insert(Node { path: real, ..node });
        self.entry(to).ok_or_else(|| missing("rename", to))
    }

    pub(super) fn remove(&mut self, removal: &Removal) -> Result<(), RemoteError> {
        let path = &removal.path;
        let Some(entry) = self.entry(path) else {
            return Ok(());
        };
        if entry.kind != removal.kind {
            return Err(wrong_kind("remove", path, entry.kind, removal.kind));
        }
        if removal
            .seen
            .as_ref()
            .is_some_and(|seen| !seen.still_describes(&entry))
        {
            return Err(changed("remove", path));
        }
        let real = self.spelling(path).unwrap_or(path);
        if entry.kind == Kind::Directory
            && self
                .nodes
                .values()
                .any(|node| node.path.strip_directory(real).is_some())
        {
            return Err(
                RemoteError::new(ErrorKind::NotEmpty, "remove", "it is not empty").at(path),
            );
        }
        self.take(path);
        Ok(())
    }

    fn insert(&mut self, node: Node) {
        if self.capabilities.case_insensitive {
            self.spellings.insert(folded(&node.path), node.path.clone());
        }
        self.nodes
            .insert(node.path.order_key(node.kind).into(), node);
    }

    fn take(&mut self, path: &RelPath) -> Option<Node> {
        let node = self.find(path)?.clone();
        self.spellings.remove(&folded(&node.path));
        self.nodes.remove(&*node.path.order_key(node.kind))
    }

    fn spelling(&self, path: &RelPath) -> Option<&RelPath> {
        if self.capabilities.case_insensitive {
            self.spellings.get(&folded(path))
        } else {
            None
        }
    }
}

fn rounded(time: Timestamp, precision_nanoseconds: u64) -> Timestamp {
    let precision = i64::try_from(precision_nanoseconds)
        .unwrap_or(i64::MAX)
        .max(1);
    let nanoseconds = time.nanoseconds();
    Timestamp::from_nanoseconds(nanoseconds - nanoseconds.rem_euclid(precision))
}

fn folded(path: &RelPath) -> Vec<u8> {
    match path.as_utf8() {
        Some(text) => text.to_lowercase().into_bytes(),
        None => path.as_bytes().to_ascii_lowercase(),
    }
}
