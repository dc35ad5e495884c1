//! Lists a tree in tree order (see [`knarr_core::path`]), as a stream.
//!
//! * Memory holds the names of the directories from the root to where the walk is, about 20 bytes
//!   more than each name, and nothing else; a million names in one directory are 30 MB.
//! * At most [`OPEN_LIMIT`] directory handles are open, however deep the tree. A directory that had
//!   to be closed is opened again by its path and must be the same inode, else the rest of it counts
//!   as unknown.
//! * Symbolic links are never followed, and a directory that is mounted again below itself is not
//!   entered.
//! * What could not be seen is said ([`TreeItem::Incomplete`]), never left out: to the planner a
//!   missing item is a deleted one (K5). What vanished between the listing and the look is left out.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};

use knarr_core::entry::Kind;
use knarr_core::path::{PathError, RelPath};
use knarr_core::tree::{Incomplete, Problem, TreeItem};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::FsError;
use crate::root::{OWN_PREFIX, Root};
use crate::sys;

/// How many directories a walk keeps open.
pub const OPEN_LIMIT: usize = 64;

/// How many left-over staged files a walk remembers.
pub const LEFTOVERS_LIMIT: usize = 1024;

/// How many bytes of directory are asked for at once.
const BUFFER_BYTES: usize = 128 * 1024;

/// Says whether a path is wanted; a directory that is not is not entered.
pub type Filter<'a> = dyn Fn(&RelPath, Kind) -> bool + Send + Sync + 'a;

/// Which file systems below the root a walk enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FileSystems {
    /// All that are mounted there.
    #[default]
    All,
    /// Only that of the root; what is mounted below it counts as unknown.
    OnlyTheRoots,
}

/// How to walk.
#[derive(Clone, Copy, Default)]
pub struct WalkOptions<'a> {
    /// List only what lies below this directory (not it itself); paths stay relative to the root.
    pub below: Option<&'a RelPath>,
    /// What is wanted; everything if not given.
    pub filter: Option<&'a Filter<'a>>,
    /// Which mounted file systems to enter.
    pub file_systems: FileSystems,
}

impl fmt::Debug for WalkOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalkOptions")
            .field("below", &self.below)
            .field("filter", &self.filter.map(|_| ".."))
            .field("file_systems", &self.file_systems)
            .finish()
    }
}

/// A walk in progress.
pub struct Walker<'a> {
    root: Root,
    options: WalkOptions<'a>,
    /// From the root to the directory that is being listed.
    stack: Vec<Level>,
    /// The names of all levels, each ended by a NUL.
    names: Vec<u8>,
    /// The children of all levels, each level's sorted.
    children: Vec<Child>,
    buffer: Vec<u8>,
    device: u64,
    leftovers: Vec<RelPath>,
}

struct Level {
    path: Option<RelPath>,
    handle: Option<OwnedFd>,
    device: u64,
    inode: u64,
    names_start: usize,
    children_start: usize,
    next: usize,
}

#[derive(Clone, Copy)]
struct Child {
    /// The first eight bytes of the order key, so that most comparisons need no look at the name.
    prefix: u64,
    /// Where the name starts.
    start: u32,
    length: u16,
    /// `None` if the directory did not tell.
    kind: Option<Kind>,
}

impl fmt::Debug for Walker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walker")
            .field("root", &self.root)
            .field("options", &self.options)
            .field("depth", &self.stack.len())
            .finish_non_exhaustive()
    }
}

/// What became of a directory that was to be entered.
enum Entered {
    Yes(Level),
    Vanished,
    Unknown(String),
}

impl<'a> Walker<'a> {
    /// Opens the root, or the directory to start below, and reads its names.
    ///
    /// # Errors
    /// If that directory is missing or cannot be read: then nothing at all is known.
    pub fn new(root: &Root, options: WalkOptions<'a>) -> Result<Self, FsError> {
        let failed = |errno| root.error("list", options.below, errno);
        let start = options.below.map_or(&[][..], RelPath::as_bytes);
        let handle =
            sys::open_below(root.as_fd(), start, sys::LISTING, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&handle).map_err(failed)?;
        let mut walker = Self {
            root: root.clone(),
            options,
            stack: Vec::new(),
            names: Vec::new(),
            children: Vec::new(),
            buffer: Vec::with_capacity(BUFFER_BYTES),
            device: stat.st_dev,
            leftovers: Vec::new(),
        };
        let level = walker
            .read(options.below.cloned(), handle, &stat)
            .map_err(failed)?;
        walker.stack.push(level);
        Ok(walker)
    }

    /// Adds the next items, in tree order, about `count` of them. Returns whether there may be more.
    pub fn next_batch(&mut self, into: &mut Vec<TreeItem>, count: usize) -> bool {
        let enough = into.len().saturating_add(count);
        while into.len() < enough {
            let Some(level) = self.stack.last_mut() else {
                return false;
            };
            match self.children.get(level.next).copied() {
                Some(child) => {
                    let again = level.next > level.children_start
                        && self.children.get(level.next - 1).is_some_and(|last| {
                            last.prefix == child.prefix
                                && name_of(&self.names, *last) == name_of(&self.names, child)
                        });
                    level.next += 1;
                    // A name that was removed and made again while the directory was read may have
                    // been told twice.
                    if !again {
                        self.visit(child, into);
                    }
                }
                None => {
                    self.names.truncate(level.names_start);
                    self.children.truncate(level.children_start);
                    self.stack.pop();
                }
            }
        }
        !self.stack.is_empty()
    }

    /// Staged files (`.knarr-*.part`) that were passed so far, at most [`LEFTOVERS_LIMIT`]. Which of
    /// them nobody will continue is for the caller to know.
    #[must_use]
    pub fn leftovers(&self) -> &[RelPath] {
        &self.leftovers
    }

    fn visit(&mut self, child: Child, into: &mut Vec<TreeItem>) {
        if let Err(reason) = self.ensure_open() {
            self.give_up(reason, into);
            return;
        }
        let Some(level) = self.stack.last() else {
            return;
        };
        let (Some(handle), Some(name)) = (&level.handle, name_of(&self.names, child)) else {
            return;
        };
        let path = match below(level.path.as_ref(), name.to_bytes()) {
            Ok(path) => path,
            Err(error) => {
                // Only a path beyond every limit gets here. Its neighbours are listed all the same.
                let below = level.path.clone();
                into.push(TreeItem::Incomplete(Incomplete {
                    below,
                    reason: error.to_string(),
                }));
                return;
            }
        };
        let wanted = |kind| self.options.filter.is_none_or(|filter| filter(&path, kind));
        if child.kind.is_some_and(|kind| !wanted(kind)) {
            return;
        }
        let stat = match sys::stat_name(handle.as_fd(), name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return,
            Err(errno) => {
                unseen(
                    path,
                    child.kind,
                    &format!("cannot look at it: {errno}"),
                    into,
                );
                return;
            }
        };
        let kind = sys::kind_of(&stat);
        if child.kind != Some(kind) {
            if !wanted(kind) {
                return;
            }
            if child.kind == Some(Kind::Directory) || kind == Kind::Directory {
                // A directory stands elsewhere in the order than a file of its name, so this one
                // cannot be listed now.
                unseen(
                    path,
                    Some(Kind::Directory),
                    "it was replaced while it was listed",
                    into,
                );
                return;
            }
        }
        if kind == Kind::Directory {
            self.enter(path, child, &stat, into);
            return;
        }
        let mut entry = sys::entry_of(path, &stat);
        if kind == Kind::Symlink {
            match sys::link_target(handle.as_fd(), name) {
                Ok(target) => entry.link_target = Some(target),
                Err(Errno::NOENT | Errno::INVAL) => return,
                Err(errno) => {
                    unseen(
                        entry.path,
                        Some(kind),
                        &format!("cannot read the link: {errno}"),
                        into,
                    );
                    return;
                }
            }
        }
        into.push(TreeItem::Entry(entry));
    }

    fn enter(&mut self, path: RelPath, child: Child, stat: &Stat, into: &mut Vec<TreeItem>) {
        let looped = self
            .stack
            .iter()
            .any(|level| level.inode == stat.st_ino && level.device == stat.st_dev);
        let entered = if looped {
            Entered::Unknown("it is mounted below itself".to_owned())
        } else if stat.st_dev != self.device
            && self.options.file_systems == FileSystems::OnlyTheRoots
        {
            Entered::Unknown("it is on another file system".to_owned())
        } else {
            self.open(&path, child, stat)
        };
        let entry = sys::entry_of(path, stat);
        match entered {
            Entered::Vanished => {}
            Entered::Yes(level) => {
                into.push(TreeItem::Entry(entry));
                self.stack.push(level);
                let deep = self.stack.len().checked_sub(OPEN_LIMIT + 1);
                if let Some(level) = deep.and_then(|at| self.stack.get_mut(at)) {
                    level.handle = None;
                }
            }
            Entered::Unknown(reason) => {
                let below = Some(entry.path.clone());
                into.push(TreeItem::Entry(entry));
                into.push(TreeItem::Incomplete(Incomplete { below, reason }));
            }
        }
    }

    fn open(&mut self, path: &RelPath, child: Child, stat: &Stat) -> Entered {
        let name = name_of(&self.names, child);
        let parent = self.stack.last().and_then(|level| level.handle.as_ref());
        let (Some(name), Some(parent)) = (name, parent) else {
            return Entered::Vanished;
        };
        let flags = sys::LISTING | OFlags::NOFOLLOW;
        let handle = match sys::retrying(|| rustix::fs::openat(parent, name, flags, Mode::empty()))
        {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Entered::Vanished,
            Err(errno) => return Entered::Unknown(format!("cannot open it: {errno}")),
        };
        match self.read(Some(path.clone()), handle, stat) {
            Ok(level) => Entered::Yes(level),
            Err(errno) => Entered::Unknown(format!("cannot list it: {errno}")),
        }
    }

    /// Reads all names of a directory behind those of its parents, and sorts them.
    fn read(
        &mut self,
        path: Option<RelPath>,
        handle: OwnedFd,
        stat: &Stat,
    ) -> rustix::io::Result<Level> {
        let (names_start, children_start) = (self.names.len(), self.children.len());
        let Self {
            names,
            children,
            leftovers,
            buffer,
            ..
        } = self;
        let mut full = false;
        let result = sys::read_names(handle.as_fd(), buffer, |name, file_type| {
            let bytes = name.to_bytes();
            if bytes.starts_with(OWN_PREFIX) {
                if bytes.ends_with(b".part") && leftovers.len() < LEFTOVERS_LIMIT {
                    leftovers.extend(below(path.as_ref(), bytes).ok());
                }
                return true;
            }
            let (Ok(start), Ok(length)) = (u32::try_from(names.len()), u16::try_from(bytes.len()))
            else {
                full = true;
                return false;
            };
            let kind = (file_type != FileType::Unknown).then(|| sys::kind_of_type(file_type));
            names.extend_from_slice(name.to_bytes_with_nul());
            children.push(Child {
                prefix: prefix_of(bytes, kind),
                start,
                length,
                kind,
            });
            true
        });
        let result = if full { Err(Errno::OVERFLOW) } else { result };
        // Where the directory does not tell kinds, sorting needs them.
        if let Err(errno) = result.and_then(|()| self.find_kinds(&handle, children_start)) {
            self.names.truncate(names_start);
            self.children.truncate(children_start);
            return Err(errno);
        }
        let Self {
            names, children, ..
        } = self;
        if let Some(own) = children.get_mut(children_start..) {
            own.sort_unstable_by(|a, b| {
                a.prefix
                    .cmp(&b.prefix)
                    .then_with(|| key_of(names, a).cmp(key_of(names, b)))
            });
        }
        Ok(Level {
            path,
            handle: Some(handle),
            device: stat.st_dev,
            inode: stat.st_ino,
            names_start,
            children_start,
            next: children_start,
        })
    }

    fn find_kinds(&mut self, handle: &OwnedFd, children_start: usize) -> rustix::io::Result<()> {
        for child in self.children.iter_mut().skip(children_start) {
            let Some(name) = name_of(&self.names, *child).filter(|_| child.kind.is_none()) else {
                continue;
            };
            match sys::stat_name(handle.as_fd(), name) {
                Ok(stat) => child.kind = Some(sys::kind_of(&stat)),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
            child.prefix = prefix_of(name.to_bytes(), child.kind);
        }
        Ok(())
    }

    /// Opens the directory that is being listed again if it was closed meanwhile.
    fn ensure_open(&mut self) -> Result<(), String> {
        let Some(level) = self.stack.last_mut().filter(|level| level.handle.is_none()) else {
            return Ok(());
        };
        let path = level.path.as_ref().map_or(&[][..], RelPath::as_bytes);
        let handle = sys::open_below(self.root.as_fd(), path, sys::LISTING, Mode::empty())
            .map_err(|errno| format!("cannot open it again: {errno}"))?;
        let stat = rustix::fs::fstat(&handle)
            .map_err(|errno| format!("cannot look at it again: {errno}"))?;
        if (stat.st_dev, stat.st_ino) != (level.device, level.inode) {
            return Err("it was moved or replaced while it was listed".to_owned());
        }
        level.handle = Some(handle);
        Ok(())
    }

    /// Skips what is left of the directory that is being listed, and says so.
    fn give_up(&mut self, reason: String, into: &mut Vec<TreeItem>) {
        if let Some(level) = self.stack.last_mut() {
            level.next = self.children.len();
            let below = level.path.clone();
            into.push(TreeItem::Incomplete(Incomplete { below, reason }));
        }
    }
}

/// Says that something is there that could not be looked at.
fn unseen(path: RelPath, kind: Option<Kind>, reason: &str, into: &mut Vec<TreeItem>) {
    let kind = kind.unwrap_or(Kind::File);
    let message = reason.to_owned();
    into.push(TreeItem::Problem(Problem {
        path: path.clone(),
        kind,
        message,
    }));
    if kind == Kind::Directory {
        let reason = reason.to_owned();
        into.push(TreeItem::Incomplete(Incomplete {
            below: Some(path),
            reason,
        }));
    }
}

fn below(directory: Option<&RelPath>, name: &[u8]) -> Result<RelPath, PathError> {
    match directory {
        Some(directory) => directory.join_name(name),
        None => RelPath::from_name(name),
    }
}

fn name_of(names: &[u8], child: Child) -> Option<&CStr> {
    let start = child.start as usize;
    let with_nul = names.get(start..=start + usize::from(child.length))?;
    CStr::from_bytes_with_nul(with_nul).ok()
}

/// The first eight bytes of a name's order key. Names hold no NUL, so what is shorter sorts first.
fn prefix_of(name: &[u8], kind: Option<Kind>) -> u64 {
    let mut bytes = [0; 8];
    let slash = if kind == Some(Kind::Directory) {
        &b"/"[..]
    } else {
        &[]
    };
    for (to, from) in bytes.iter_mut().zip(name.iter().chain(slash)) {
        *to = *from;
    }
    u64::from_be_bytes(bytes)
}

/// The order key of a name: its bytes, with a slash behind them for a directory.
fn key_of<'n>(names: &'n [u8], child: &Child) -> impl Iterator<Item = &'n u8> + use<'n> {
    let start = child.start as usize;
    let name = names
        .get(start..start + usize::from(child.length))
        .unwrap_or_default();
    let slash = if child.kind == Some(Kind::Directory) {
        &b"/"[..]
    } else {
        &[]
    };
    name.iter().chain(slash)
}
