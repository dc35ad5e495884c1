//! Opens what lies below a directory, and nothing else.
//!
//! Constraint: no path that is given here leads out of the directory handle that it is resolved from, whatever links
//! somebody plants meanwhile. Linux checks that in one call (`openat2`); elsewhere, and on kernels and in sandboxes without
//! that call, the path is walked component by component and no link is followed at all.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A handle that is only a place: enough to resolve names from, with nothing but search permission.
#[cfg(target_os = "linux")]
pub const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// A handle that is only a place.
#[cfg(not(target_os = "linux"))]
pub const PLACE: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// A directory that will be read or flushed.
pub const LISTING: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Whether links are followed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Yes, inside the directory, as if it were the root of the machine. Where that cannot be had, no.
    Inside,
    /// No.
    Refused,
}

/// Opens `path`, which has no `.`, no `..` and no empty component, below `at`.
///
/// # Errors
/// What the operating system says; also where a component is a link that is not followed.
pub fn open(
    at: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    links: Links,
) -> rustix::io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    if let Some(result) = resolve::open(at, path, flags, mode, links) {
        return result;
    }
    let _ = links;
    open_by_components(at, path, flags, mode)
}

/// The same where the kernel cannot be asked: no link is followed.
fn open_by_components(
    at: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let mut reached: Option<OwnedFd> = None;
    let mut names = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = names.next() {
        let from = reached.as_ref().map_or(at, |reached| reached.as_fd());
        if names.peek().is_none() {
            return retrying(|| rustix::fs::openat(from, name, flags | OFlags::NOFOLLOW, mode));
        }
        let next = rustix::fs::openat(from, name, PLACE | OFlags::NOFOLLOW, Mode::empty());
        reached = Some(next.map_err(|errno| match errno {
            // With O_DIRECTORY a link gives ENOTDIR; both mean: this is no directory to enter.
            Errno::LOOP => Errno::NOTDIR,
            other => other,
        })?);
    }
    Err(Errno::NOENT)
}

#[cfg(target_os = "linux")]
mod resolve {
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{Mode, OFlags, ResolveFlags};
    use rustix::io::Errno;

    use super::Links;

    static MISSING: AtomicBool = AtomicBool::new(false);
    /// How often a path is resolved anew that others change meanwhile.
    const ATTEMPTS: usize = 64;

    /// The result of `openat2`, or nothing where the call is missing or a sandbox forbids it.
    pub(super) fn open(
        at: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
        mode: Mode,
        links: Links,
    ) -> Option<rustix::io::Result<OwnedFd>> {
        if MISSING.load(Ordering::Relaxed) {
            return None;
        }
        let how = match links {
            Links::Refused => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            Links::Inside => ResolveFlags::IN_ROOT,
        };
        let how = how | ResolveFlags::NO_MAGICLINKS;
        // A mode without O_CREAT is an error of this call.
        let mode = if flags.contains(OFlags::CREATE) {
            mode
        } else {
            Mode::empty()
        };
        for _ in 0..ATTEMPTS {
            match rustix::fs::openat2(at, path, flags, mode, how) {
                // EAGAIN: something was renamed while the path was resolved.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOSYS) => {
                    MISSING.store(true, Ordering::Relaxed);
                    return None;
                }
                // Older sandboxes say EPERM to calls they do not know. The walk tells which it was.
                Err(Errno::PERM) => return None,
                result => return Some(result),
            }
        }
        match links {
            // The walk does the same, and nobody can disturb it.
            Links::Refused => None,
            Links::Inside => Some(Err(Errno::AGAIN)),
        }
    }
}

/// Repeats a call that a signal interrupted.
///
/// # Errors
/// What the call says otherwise.
pub fn retrying<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
