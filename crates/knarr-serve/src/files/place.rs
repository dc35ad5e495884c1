//! From what a client calls something to a handle of it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_fs::below;
pub(crate) use knarr_fs::below::{LISTING, Links, PLACE, retrying};
use knarr_sftp::server::FileError;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// The names that this server gives to uploads that are not complete. Clients neither see nor reach them.
pub(crate) const STAGED_PREFIX: &[u8] = b".knarr-upload-";

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
                        below::open(root.as_fd(), directory, PLACE, Mode::empty(), *links);
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
                below::open(root.as_fd(), path, flags, mode, *links).map_err(failed)
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

/// What the operating system said, as clients are told.
pub(crate) fn failed(errno: Errno) -> FileError {
    match errno {
        // As OpenSSH has it: whatever is there is not what was named.
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::BADF => FileError::NotFound,
        errno => FileError::from(std::io::Error::from(errno)),
    }
}
