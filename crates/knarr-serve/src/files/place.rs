//! From what a client calls something to a handle of it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_sftp::server::FileError;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// The names that this server gives to uploads that are not complete. Clients neither see nor reach them.
pub(crate) const STAGED_PREFIX: &[u8] = b".knarr-upload-";

/// A handle that is only a place.
#[cfg(target_os = "linux")]
pub(crate) const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// A handle that is only a place.
#[cfg(not(target_os = "linux"))]
pub(crate) const PLACE: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// A directory that will be read or flushed.
pub(crate) const LISTING: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Whether links are followed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Yes, inside the root, as if it were the root of the machine.
    Inside,
    /// No.
    Refused,
}

/// Where a client is.
#[derive(Debug)]
pub(crate) enum Place {
    /// Where the process is: paths mean what they mean to the operating system.
    Plain,
    /// Below a directory.
    Confined { root: OwnedFd, links: Links },
}

/// A directory and a name in it.
#[derive(Debug)]
pub(crate) struct Spot<'a> {
    at: At<'a>,
    pub(crate) name: Vec<u8>,
}

#[derive(Debug)]
enum At<'a> {
    Borrowed(BorrowedFd<'a>),
    Owned(OwnedFd),
}

impl Spot<'_> {
    pub(crate) fn at(&self) -> BorrowedFd<'_> {
        match &self.at {
            At::Borrowed(at) => at.as_fd(),
            At::Owned(at) => at.as_fd(),
        }
    }
}

impl Place {
    pub(crate) fn confined(root: &Path, links: Links) -> Result<Self, Errno> {
        let root = rustix::fs::openat(CWD, root, PLACE, Mode::empty())?;
        Ok(Self::Confined { root, links })
    }

    /// The path in the form in which permissions are given: from the root, without slashes at the ends.
    pub(crate) fn normal(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        match self {
            Self::Plain => Ok(path.to_vec()),
            Self::Confined { .. } => {
                let normal = normal(path);
                let is_hidden = |name: &[u8]| name.starts_with(STAGED_PREFIX);
                if normal.split(|byte| *byte == b'/').any(is_hidden) {
                    return Err(FileError::NotFound);
                }
                Ok(normal)
            }
        }
    }

    /// The directory in which `normal` lies, and its name there. A link at its end is not followed.
    pub(crate) fn spot(&self, normal: &[u8]) -> Result<Spot<'_>, FileError> {
        match self {
            Self::Plain if normal.is_empty() => Err(FileError::NotFound),
            Self::Plain => Ok(Spot {
                at: At::Borrowed(CWD),
                name: normal.to_vec(),
            }),
            Self::Confined { root, links } => {
                let (directory, name) = match normal.iter().rposition(|byte| *byte == b'/') {
                    Some(slash) => (
                        normal.get(..slash).unwrap_or_default(),
                        normal.get(slash + 1..).unwrap_or_default(),
                    ),
                    None => (&b""[..], normal),
                };
                let at = if directory.is_empty() {
                    At::Borrowed(root.as_fd())
                } else {
                    let directory =
                        open_below(root.as_fd(), directory, PLACE, Mode::empty(), *links);
                    At::Owned(directory.map_err(failed)?)
                };
                let name = if name.is_empty() { b"." } else { name };
                Ok(Spot {
                    at,
                    name: name.to_vec(),
                })
            }
        }
    }

    /// A [`Place::spot`] for something that is made, moved or removed: the root itself is none.
    pub(crate) fn entry(&self, normal: &[u8]) -> Result<Spot<'_>, FileError> {
        if normal.is_empty() && matches!(self, Self::Confined { .. }) {
            return Err(FileError::Denied {
                reason: "that is the root",
            });
        }
        self.spot(normal)
    }

    /// Opens what is at `normal`, links followed as far as they are.
    pub(crate) fn open(
        &self,
        normal: &[u8],
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd, FileError> {
        let flags = flags | OFlags::CLOEXEC;
        match self {
            Self::Plain if normal.is_empty() => Err(FileError::NotFound),
            Self::Plain => {
                retrying(|| rustix::fs::openat(CWD, normal, flags, mode)).map_err(failed)
            }
            Self::Confined { root, links } => {
                let path = if normal.is_empty() { b"." } else { normal };
                open_below(root.as_fd(), path, flags, mode, *links).map_err(failed)
            }
        }
    }
}

/// `path` without empty components, `.` and `..`, which stops at the root.
pub(crate) fn normal(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names.join(&b'/')
}

/// Whether a link in the directory of `normal` with this target stays below the root, by its text alone.
pub(crate) fn stays_inside(normal: &[u8], target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return false;
    }
    // The link's own name does not count.
    let mut depth = normal.iter().filter(|byte| **byte == b'/').count();
    for name in target.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            _ => depth += 1,
        }
    }
    true
}

fn open_below(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    links: Links,
) -> rustix::io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    if let Some(result) = resolve::open(root, path, flags, mode, links) {
        return result;
    }
    let _ = links;
    open_by_components(root, path, flags, mode)
}

/// Where the kernel cannot be asked to stay below a directory, no link is followed.
fn open_by_components(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let mut reached: Option<OwnedFd> = None;
    let mut names = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = names.next() {
        let from = reached.as_ref().map_or(root, |reached| reached.as_fd());
        if names.peek().is_none() {
            return retrying(|| rustix::fs::openat(from, name, flags | OFlags::NOFOLLOW, mode));
        }
        let next = rustix::fs::openat(from, name, PLACE | OFlags::NOFOLLOW, Mode::empty())?;
        reached = Some(next);
    }
    Err(Errno::NOENT)
}

#[cfg(target_os = "linux")]
mod resolve {
    use std::os::fd::{BorrowedFd, OwnedFd};

    use rustix::fs::{Mode, OFlags, ResolveFlags};
    use rustix::io::Errno;

    use super::Links;

    /// The result of `openat2`, or nothing where the call is missing or a sandbox forbids it.
    pub(super) fn open(
        root: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
        mode: Mode,
        links: Links,
    ) -> Option<rustix::io::Result<OwnedFd>> {
        let mut how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        if links == Links::Refused {
            how |= ResolveFlags::NO_SYMLINKS;
        }
        // A mode without O_CREAT is an error of this call.
        let mode = if flags.contains(OFlags::CREATE) {
            mode
        } else {
            Mode::empty()
        };
        for _ in 0..64 {
            match rustix::fs::openat2(root, path, flags, mode, how) {
                // EAGAIN: something was renamed while the path was resolved.
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Older sandboxes say EPERM to calls they do not know. The walk tells which it was.
                Err(Errno::NOSYS | Errno::PERM) => return None,
                result => return Some(result),
            }
        }
        Some(Err(Errno::AGAIN))
    }
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retrying<T>(
    mut call: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// What the operating system said, as clients are told.
pub(crate) fn failed(errno: Errno) -> FileError {
    match errno {
        // As OpenSSH has it: whatever is there is not what was named.
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::BADF => FileError::NotFound,
        errno => FileError::from(std::io::Error::from(errno)),
    }
}
