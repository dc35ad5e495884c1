//! Attributes between the protocol and the operating system.

use std::os::fd::{AsFd as _, BorrowedFd};

use knarr_sftp::codec::{Attributes, FilesystemStatistics, Owner, Times};
use knarr_sftp::server::FileError;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Stat, StatVfs, Timespec, Timestamps, Uid};

use crate::files::place::{Place, failed};

/// What a client is told about something.
pub(crate) fn attributes_of(stat: &Stat) -> Attributes {
    Attributes {
        size: Some(size_of(stat)),
        owner: Some(Owner {
            user: stat.st_uid,
            group: stat.st_gid,
        }),
        permissions: Some(stat.st_mode),
        times: Some(Times {
            accessed_seconds: seconds(stat.st_atime),
            modified_seconds: seconds(stat.st_mtime),
        }),
        extended: Vec::new(),
    }
}

/// Its length in bytes.
pub(crate) fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// The field of the protocol begins in 1970 and ends in 2106.
fn seconds(time: i64) -> u32 {
    u32::try_from(time.max(0)).unwrap_or(u32::MAX)
}

pub(crate) fn statistics_of(stat: &StatVfs) -> FilesystemStatistics {
    FilesystemStatistics {
        block_bytes: stat.f_bsize,
        fragment_bytes: stat.f_frsize,
        blocks: stat.f_blocks,
        blocks_free: stat.f_bfree,
        blocks_available: stat.f_bavail,
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
        inodes_available: stat.f_favail,
        filesystem: stat.f_fsid,
        // Read-only and no setuid have the same bits in the protocol.
        flags: stat.f_flag.bits() & 3,
        name_bytes: stat.f_namemax,
    }
}

/// The permission bits that a client may give.
pub(crate) fn mode_of(place: &Place, permissions: u32) -> Mode {
    let allowed = match place {
        Place::Plain => 0o7777,
        // Nothing that a client brings runs as somebody else.
        Place::Confined { .. } => 0o1777,
    };
    Mode::from_raw_mode(permissions & allowed)
}

fn timestamps(times: Times) -> Timestamps {
    let at = |seconds: u32| Timespec {
        tv_sec: i64::from(seconds),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: at(times.accessed_seconds),
        last_modification: at(times.modified_seconds),
    }
}

fn ids(owner: Owner) -> (Option<Uid>, Option<Gid>) {
    // The largest number means "leave it" to the operating system.
    let user = match owner.user {
        u32::MAX => None,
        user => Some(Uid::from_raw(user)),
    };
    let group = match owner.group {
        u32::MAX => None,
        group => Some(Gid::from_raw(group)),
    };
    (user, group)
}

/// Sets what is given but the size, of something open. All is tried; the last error is told, as by OpenSSH.
pub(crate) fn set_open(
    place: &Place,
    file: BorrowedFd<'_>,
    attributes: &Attributes,
) -> Result<(), FileError> {
    let mut outcome = Ok(());
    if let Some(permissions) = attributes.permissions {
        let done = rustix::fs::fchmod(file, mode_of(place, permissions));
        outcome = done.map_err(failed).and(outcome);
    }
    if let Some(times) = attributes.times {
        let done = rustix::fs::futimens(file, &timestamps(times));
        outcome = done.map_err(failed).and(outcome);
    }
    if let Some(owner) = attributes.owner {
        let (user, group) = ids(owner);
        outcome = rustix::fs::fchown(file, user, group)
            .map_err(failed)
            .and(outcome);
    }
    outcome
}

/// The same of something that is named.
pub(crate) fn set_named(
    place: &Place,
    at: BorrowedFd<'_>,
    name: &[u8],
    follow: AtFlags,
    attributes: &Attributes,
) -> Result<(), FileError> {
    let mut outcome = Ok(());
    if let Some(permissions) = attributes.permissions {
        let done = rustix::fs::chmodat(at, name, mode_of(place, permissions), follow);
        outcome = done.map_err(failed).and(outcome);
    }
    if let Some(times) = attributes.times {
        let done = rustix::fs::utimensat(at, name, &timestamps(times), follow);
        outcome = done.map_err(failed).and(outcome);
    }
    if let Some(owner) = attributes.owner {
        let (user, group) = ids(owner);
        outcome = rustix::fs::chownat(at, name, user, group, follow)
            .map_err(failed)
            .and(outcome);
    }
    outcome
}

/// The same of what is at `normal`, links followed as the place follows them.
pub(crate) fn set_followed(
    place: &Place,
    normal: &[u8],
    attributes: &Attributes,
) -> Result<(), FileError> {
    if matches!(place, Place::Plain) {
        let spot = place.spot(normal)?;
        return set_named(place, spot.at(), &spot.name, AtFlags::empty(), attributes);
    }
    // A handle that is only a place needs no permission to read; the calls below take it by this name.
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd as _;
        let handle = place.open(normal, OFlags::PATH, Mode::empty())?;
        let name = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
        set_named(
            place,
            rustix::fs::CWD,
            name.as_bytes(),
            AtFlags::empty(),
            attributes,
        )
    }
    #[cfg(not(target_os = "linux"))]
    {
        let handle = place.open(normal, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
        set_open(place, handle.as_fd(), attributes)
    }
}
