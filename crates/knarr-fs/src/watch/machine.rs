//! The thread that reads the kernel's queue, and what it makes of each event.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use knarr_core::entry::Kind;
use knarr_core::path::RelPath;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::Timespec;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::root::{OWN_PREFIX, Root};
use crate::sys;
use crate::watch::disk::{Announce, Doubt, add_watch};
use crate::watch::outbox::Outbox;
use crate::watch::tree::{ROOT, Tree};
use crate::watch::{WatchError, WatchEvent, WatchOptions};

/// What is asked for every directory.
pub(crate) const MASK: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::ONLYDIR);

/// What is asked for the root besides.
const ROOT_MASK: WatchFlags = MASK
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// How much of the kernel's queue is read at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// How many buffers are read before anything else is done.
const BUFFERS_AT_ONCE: usize = 8;

/// How many new files and halves of renames are waited for at the same time.
const WAITING_LIMIT: usize = 4096;

/// How long the consumer is given to make room before the channel is tried again.
const CHANNEL_RETRY: Duration = Duration::from_millis(5);

/// The thread and what is shared with it.
#[derive(Debug)]
pub(crate) struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wake: OwnedFd,
    stopped: AtomicBool,
    paused: AtomicBool,
    watches: AtomicUsize,
    settled: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        // Fails only if 2^64 wakes are pending, and then the thread wakes anyway.
        if let Err(errno) = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
            tracing::debug!(%errno, "the watching thread was already woken");
        }
    }
}

impl Running {
    pub(crate) fn watches(&self) -> usize {
        self.shared.watches.load(Ordering::Relaxed)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.shared.settled.load(Ordering::SeqCst)
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the watching thread panicked");
        }
    }
}

pub(crate) fn start(
    root: &Root,
    options: WatchOptions,
) -> Result<(Running, Receiver<WatchEvent>), WatchError> {
    let failed = |errno| WatchError::Root(root.error("watch", None, errno));
    let queue = match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
        Ok(queue) => queue,
        Err(Errno::MFILE | Errno::NFILE) => return Err(WatchError::Instances),
        Err(errno) => return Err(failed(errno)),
    };
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
    let handle = sys::open_listing(root.as_fd()).map_err(failed)?;
    let watch = add_watch(&queue, handle.as_fd(), ROOT_MASK, root, None).map_err(failed)?;
    let (sender, events) = sync_channel(options.channel_capacity.max(1));
    let shared = Arc::new(Shared {
        wake,
        stopped: AtomicBool::new(false),
        paused: AtomicBool::new(false),
        watches: AtomicUsize::new(1),
        settled: AtomicBool::new(false),
    });
    let mut machine = Machine {
        root: root.clone(),
        queue: Arc::new(queue),
        tree: Tree::new(watch),
        outbox: Outbox::new(sender),
        options,
        moved: Vec::new(),
        created: HashMap::new(),
        displaced: None,
        doubt: Doubt::default(),
        names: Vec::with_capacity(32 * 1024),
        gone: false,
    };
    machine.watch_children_of_root(&handle);
    shared.watches.store(machine.tree.len(), Ordering::Relaxed);
    let thread = std::thread::Builder::new().name("knarr-watch".to_owned());
    let for_thread = Arc::clone(&shared);
    let thread = thread
        .spawn(move || machine.run(&for_thread))
        .map_err(WatchError::Thread)?;
    Ok((
        Running {
            shared,
            thread: Some(thread),
        },
        events,
    ))
}

/// The first half of a rename.
pub(crate) struct Moved {
    cookie: u32,
    path: RelPath,
    kind: Kind,
    parent: u32,
    name: Box<[u8]>,
    /// Its node, if it is a directory that is watched.
    node: Option<u32>,
    /// Whether that node had lost its name to another before.
    was_displaced: bool,
    deadline: Instant,
}

/// A new file that is expected to be closed in a moment.
pub(crate) struct Created {
    directory: u32,
    name: Box<[u8]>,
    deadline: Instant,
}

pub(crate) struct Machine {
    pub(crate) root: Root,
    pub(crate) queue: Arc<OwnedFd>,
    pub(crate) tree: Tree,
    pub(crate) outbox: Outbox,
    pub(crate) options: WatchOptions,
    pub(crate) moved: Vec<Moved>,
    pub(crate) created: HashMap<u64, Created>,
    /// The directory whose name the last rename took over: either it was empty and is gone, or the two
    /// were exchanged and its own rename comes next.
    pub(crate) displaced: Option<(u32, Box<[u8]>, u32)>,
    pub(crate) doubt: Doubt,
    /// For listing directories.
    pub(crate) names: Vec<u8>,
    gone: bool,
}

impl Machine {
    fn run(mut self, shared: &Shared) {
        let queue = Arc::clone(&self.queue);
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        loop {
            self.outbox.flush();
            if self.gone && !self.outbox.is_waiting() {
                return;
            }
            let paused = shared.paused.load(Ordering::SeqCst);
            self.wait(&queue, shared, paused);
            if shared.stopped.load(Ordering::SeqCst) || self.outbox.is_closed() {
                return;
            }
            if paused || self.gone {
                continue;
            }
            // Before the first event of this round is handed out.
            shared.settled.store(false, Ordering::SeqCst);
            let is_empty = self.read(&queue, &mut buffer);
            self.expire(Instant::now());
            let is_quiet = is_empty && self.moved.is_empty();
            if self.doubt.is_due(is_quiet, Instant::now()) {
                self.ask_the_disk();
            }
            shared.watches.store(self.tree.len(), Ordering::Relaxed);
            let is_settled = is_empty && self.is_settled();
            shared.settled.store(is_settled, Ordering::SeqCst);
        }
    }

    /// Whether nothing is waited for and nothing is in doubt.
    fn is_settled(&self) -> bool {
        self.moved.is_empty()
            && self.created.is_empty()
            && !self.doubt.is_any()
            && !self.outbox.is_waiting()
    }

    /// Takes what is in the queue, but not for ever: deadlines and the channel must have their turn.
    /// Returns whether the queue is empty.
    fn read(&mut self, queue: &OwnedFd, buffer: &mut [MaybeUninit<u8>]) -> bool {
        let mut reader = inotify::Reader::new(queue, buffer);
        for _ in 0..BUFFERS_AT_ONCE {
            loop {
                match reader.next() {
                    Ok(event) => self.take(&event),
                    Err(Errno::AGAIN) => return true,
                    Err(Errno::INTR) => {}
                    Err(errno) => {
                        tracing::error!(%errno, "the watcher's queue cannot be read");
                        self.root_is_gone();
                        return true;
                    }
                }
                if reader.is_buffer_empty() {
                    break;
                }
            }
        }
        false
    }

    /// Waits for events, a deadline, room in the channel, or a wake.
    fn wait(&self, queue: &OwnedFd, shared: &Shared, paused: bool) {
        let now = Instant::now();
        let moved = self.moved.iter().map(|moved| moved.deadline);
        let created = self.created.values().map(|created| created.deadline);
        let next = moved.chain(created).min();
        let next = next.map(|deadline| deadline.saturating_duration_since(now));
        // While half of a rename is missing, its deadline comes first.
        let doubt = self.doubt.wait(now).filter(|_| self.moved.is_empty());
        let channel = self.outbox.is_waiting().then_some(CHANNEL_RETRY);
        let timeout = [next, doubt, channel].into_iter().flatten().min();
        let timeout = timeout.filter(|_| !paused);
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            // Rounded up, so that a deadline has passed when it wakes.
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut handles = vec![PollFd::new(&shared.wake, PollFlags::IN)];
        if !paused && !self.gone {
            handles.push(PollFd::new(queue, PollFlags::IN));
        }
        if let Err(errno) = poll(&mut handles, timeout.as_ref())
            && errno != Errno::INTR
        {
            tracing::warn!(%errno, "the watching thread cannot wait");
        }
        // Nothing to read is normal: it woke for another reason.
        rustix::io::read(&shared.wake, &mut [0_u8; 8]).ok();
    }

    fn take(&mut self, event: &inotify::Event<'_>) {
        let flags = event.events();
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.doubt.add_everything();
            return;
        }
        let Some(directory) = self.tree.by_watch(event.wd()) else {
            return;
        };
        self.doubt.reset_patience();
        if flags.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT) {
            self.watch_is_gone(directory, flags);
            return;
        }
        if directory == ROOT && flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
            self.root_is_gone();
            return;
        }
        let Some(name) = event.file_name() else {
            return;
        };
        let name = name.to_bytes();
        let kind = if flags.contains(ReadFlags::ISDIR) {
            Kind::Directory
        } else {
            Kind::File
        };
        if name.starts_with(OWN_PREFIX) {
            // A file that was renamed to one of our names is out of sight.
            if flags.contains(ReadFlags::MOVED_TO) {
                let first = self.take_moved(event.cookie());
                first.into_iter().for_each(|moved| self.moved_out(moved));
            }
            return;
        }
        let Some(path) = self.tree.path_in(directory, name) else {
            let below = self.tree.path_of(directory);
            self.outbox.push(WatchEvent::Overflow { below });
            return;
        };
        if flags.contains(ReadFlags::CLOSE_WRITE) {
            self.forget_created(directory, name);
            self.outbox.push(WatchEvent::Closed(path));
        } else if flags.contains(ReadFlags::CREATE) {
            self.created(directory, name, kind, path);
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            self.moved_from(event.cookie(), directory, name, kind, path);
        } else if flags.contains(ReadFlags::MOVED_TO) {
            self.moved_to(event.cookie(), directory, name, kind, path);
        } else if flags.contains(ReadFlags::DELETE) {
            self.forget_created(directory, name);
            if kind == Kind::Directory
                && let Some(node) = self.tree.find(directory, name)
            {
                self.unwatch(node);
            }
            self.outbox.push(WatchEvent::Deleted(path, kind));
        } else if flags.contains(ReadFlags::ATTRIB)
            && kind == Kind::File
            && !self.is_created(directory, name)
        {
            self.outbox.push(WatchEvent::AttributesChanged(path));
        }
    }

    fn created(&mut self, directory: u32, name: &[u8], kind: Kind, path: RelPath) {
        if kind == Kind::Directory {
            self.watch(directory, name, Announce::Contents);
        } else if self.created.len() >= WAITING_LIMIT {
            self.outbox.push(WatchEvent::Appeared(path));
        } else {
            // Most are closed at once, and then that is all there is to tell.
            let deadline = Instant::now() + self.options.pairing;
            let key = self.tree.key(directory, name);
            self.created.insert(
                key,
                Created {
                    directory,
                    name: name.into(),
                    deadline,
                },
            );
        }
    }

    fn is_created(&self, directory: u32, name: &[u8]) -> bool {
        !self.created.is_empty() && self.created.contains_key(&self.tree.key(directory, name))
    }

    fn forget_created(&mut self, directory: u32, name: &[u8]) {
        if !self.created.is_empty() {
            let key = self.tree.key(directory, name);
            self.created.remove(&key);
        }
    }

    fn moved_from(&mut self, cookie: u32, parent: u32, name: &[u8], kind: Kind, path: RelPath) {
        self.forget_created(parent, name);
        let (mut node, mut was_displaced) = (None, false);
        if kind == Kind::Directory {
            match self
                .displaced
                .take_if(|(at, called, _)| *at == parent && **called == *name)
            {
                Some((_, _, displaced)) => (node, was_displaced) = (Some(displaced), true),
                None => node = self.tree.find(parent, name),
            }
        }
        if self.moved.len() >= WAITING_LIMIT {
            let first = self.moved.remove(0);
            self.moved_out(first);
        }
        let deadline = Instant::now() + self.options.pairing;
        let name = name.into();
        self.moved.push(Moved {
            cookie,
            path,
            kind,
            parent,
            name,
            node,
            was_displaced,
            deadline,
        });
    }

    fn take_moved(&mut self, cookie: u32) -> Option<Moved> {
        let at = self
            .moved
            .iter()
            .rposition(|moved| moved.cookie == cookie)?;
        Some(self.moved.remove(at))
    }

    fn moved_to(&mut self, cookie: u32, parent: u32, name: &[u8], kind: Kind, path: RelPath) {
        self.forget_created(parent, name);
        let Some(moved) = self.take_moved(cookie) else {
            if kind == Kind::Directory {
                // Watched before it is told, so that a scan that follows misses nothing.
                self.watch(parent, name, Announce::Nothing);
            }
            self.outbox.push(WatchEvent::MovedIn(path, kind));
            return;
        };
        let from = moved.path.clone();
        let known = kind != Kind::Directory || self.directory_moved(moved, parent, name);
        self.outbox.push(WatchEvent::Renamed {
            from,
            to: path.clone(),
            kind,
        });
        if !known {
            self.outbox.push(WatchEvent::Overflow { below: Some(path) });
        }
    }

    /// Moves the node of a renamed directory. Returns whether it was watched all the time.
    fn directory_moved(&mut self, moved: Moved, parent: u32, name: &[u8]) -> bool {
        let in_the_way = self.tree.find(parent, name);
        if let Some((_, _, old)) = self.displaced.take() {
            // No exchange after all: it was overwritten.
            self.unwatch(old);
        }
        let usable =
            |node: &u32| self.tree.is_watched(*node) && !self.tree.is_same_or_above(*node, parent);
        let Some(node) = moved.node.filter(usable) else {
            self.watch(parent, name, Announce::Nothing);
            return false;
        };
        if in_the_way == Some(node) {
            return true;
        }
        if let Some(old) = in_the_way {
            // Exchanged, or overwritten as it was empty.
            self.tree.detach(old);
            self.displaced = Some((parent, name.into(), old));
            self.doubt.add(parent);
        }
        self.tree.reparent(node, parent, name);
        if moved.was_displaced {
            self.doubt.add(parent);
        }
        true
    }

    fn moved_out(&mut self, moved: Moved) {
        if let Some(node) = moved.node {
            let still_there = self.tree.is_at(node, moved.parent, &moved.name);
            let has_no_name = moved.was_displaced && self.tree.parent_of(node).is_none();
            if has_no_name || still_there {
                self.unwatch(node);
            }
        }
        self.outbox
            .push(WatchEvent::MovedOut(moved.path, moved.kind));
    }

    fn expire(&mut self, now: Instant) {
        while self
            .moved
            .first()
            .is_some_and(|moved| moved.deadline <= now)
        {
            let moved = self.moved.remove(0);
            self.moved_out(moved);
        }
        if self.created.values().any(|created| created.deadline <= now) {
            let (tree, outbox) = (&self.tree, &mut self.outbox);
            self.created.retain(|_, created| {
                let waits = created.deadline > now;
                if !waits {
                    match tree.path_in(created.directory, &created.name) {
                        Some(path) => outbox.push(WatchEvent::Appeared(path)),
                        None if tree.is_same_or_above(ROOT, created.directory) => {
                            outbox.push(WatchEvent::Overflow { below: None });
                        }
                        // The directory is gone, and that was told.
                        None => {}
                    }
                }
                waits
            });
        }
        if self.moved.is_empty() && self.created.is_empty() && self.displaced.is_none() {
            self.tree.reuse_released();
        }
    }

    pub(crate) fn unwatch(&mut self, node: u32) {
        if self
            .displaced
            .as_ref()
            .is_some_and(|(_, _, displaced)| *displaced == node)
        {
            self.displaced = None;
        }
        let queue = &self.queue;
        self.tree.remove(node, |watch| {
            // It may be gone by itself, with its directory.
            inotify::remove_watch(queue, watch).ok();
        });
    }

    fn watch_is_gone(&mut self, directory: u32, flags: ReadFlags) {
        if directory == ROOT {
            self.root_is_gone();
            return;
        }
        if flags.contains(ReadFlags::UNMOUNT) {
            let below = self.tree.path_of(directory).and_then(|path| path.parent());
            self.outbox.push(WatchEvent::Overflow { below });
        }
        // When a directory is removed, that is told first and its node is gone by now. Another one
        // must have the name that this one has in the tree.
        self.tree
            .parent_of(directory)
            .into_iter()
            .for_each(|parent| self.doubt.add(parent));
        self.unwatch(directory);
    }

    fn root_is_gone(&mut self) {
        if !self.gone {
            self.gone = true;
            self.outbox.push(WatchEvent::RootGone);
        }
    }
}
