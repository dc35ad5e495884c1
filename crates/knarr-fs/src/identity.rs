//! Which directory a root is, so that another one in its place is noticed before anything is
//! deleted (K5): an unmounted disk leaves an empty directory behind under the same path.

use std::fmt;
use std::os::fd::BorrowedFd;

use rustix::fs::Stat;

/// What identifies an opened root across runs and reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootIdentity {
    /// The device number. Another one after a reboot is normal.
    pub device: u64,
    /// The inode number of the root directory.
    pub inode: u64,
    /// The type of the file system, as `statfs` tells it; 0 where it does not.
    pub file_system: u64,
    /// The identifier of the file system, as `statfs` tells it; 0 where it does not.
    pub file_system_id: u64,
}

impl RootIdentity {
    pub(crate) fn of(handle: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<Self> {
        let (file_system, file_system_id) = file_system_of(handle)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            file_system,
            file_system_id,
        })
    }

    /// Whether `now` is the same directory as this, seen earlier, perhaps before a reboot.
    ///
    /// The inode and the type of the file system must be the same, and of the file system's
    /// identifier and the device number at least one: some file systems have no stable identifier,
    /// and device numbers change when disks are found in another order.
    #[must_use]
    pub const fn is_same_root(&self, now: &Self) -> bool {
        let same_id = self.file_system_id != 0 && self.file_system_id == now.file_system_id;
        self.inode == now.inode
            && self.file_system == now.file_system
            && (same_id || self.device == now.device)
    }

    /// Reads back what [`RootIdentity`]'s `Display` wrote.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let mut numbers = text
            .split(':')
            .map(|part| u64::from_str_radix(part, 16).ok());
        let identity = Self {
            device: numbers.next()??,
            inode: numbers.next()??,
            file_system: numbers.next()??,
            file_system_id: numbers.next()??,
        };
        numbers.next().is_none().then_some(identity)
    }
}

/// Four hexadecimal numbers with colons between them, for the store.
impl fmt::Display for RootIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            device,
            inode,
            file_system,
            file_system_id,
        } = self;
        write!(f, "{device:x}:{inode:x}:{file_system:x}:{file_system_id:x}")
    }
}

#[cfg(target_os = "linux")]
fn file_system_of(handle: BorrowedFd<'_>) -> rustix::io::Result<(u64, u64)> {
    let id = rustix::fs::fstatvfs(handle)?.f_fsid;
    Ok((magic(&rustix::fs::fstatfs(handle)?), id))
}

/// The magic numbers are 32 bits wide; some come sign-extended.
#[cfg(target_os = "linux")]
const fn magic(found: &rustix::fs::StatFs) -> u64 {
    found.f_type as u64 & 0xffff_ffff
}

/// `TMPFS_MAGIC` of linux/magic.h.
#[cfg(target_os = "linux")]
const TMPFS: u64 = 0x0102_1994;

/// The free bytes, if `handle` lies in a file system that is kept in memory.
#[cfg(target_os = "linux")]
pub(crate) fn free_in_memory(handle: BorrowedFd<'_>) -> Option<u64> {
    let found = rustix::fs::fstatfs(handle).ok()?;
    let block = u64::try_from(found.f_bsize).unwrap_or(0);
    (magic(&found) == TMPFS).then(|| found.f_bavail.saturating_mul(block))
}

#[cfg(not(target_os = "linux"))]
fn file_system_of(handle: BorrowedFd<'_>) -> rustix::io::Result<(u64, u64)> {
    Ok((0, rustix::fs::fstatvfs(handle)?.f_fsid as u64))
}

/// File systems whose changes other machines can make, so that no watcher here sees them.
#[cfg(target_os = "linux")]
const NETWORK: [u64; 15] = [
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2 and later
    0x0102_1997, // 9P
    0x5346_414f, // AFS
    0x6b41_4653, // kAFS
    0x00c3_6400, // Ceph
    0x7375_7245, // Coda
    0x564c,      // NCP
    0x7461_636f, // OCFS2
    0x0116_1970, // GFS2
    0x0bd0_0bd0, // Lustre
    0x786f_4256, // VirtualBox shared folders
    0xbacb_acbc, // VMware shared folders
];

#[cfg(target_os = "linux")]
const FUSE: u64 = 0x6573_5546;

/// Whether other machines can change this file system behind the kernel's back.
#[cfg(target_os = "linux")]
pub(crate) fn is_network(identity: &RootIdentity) -> bool {
    if identity.file_system != FUSE {
        return NETWORK.contains(&identity.file_system);
    }
    // FUSE carries local file systems (NTFS, mergerfs) as well as remote ones. What is not known to
    // be local counts as remote: polling is slower, but misses nothing.
    const LOCAL: [&str; 8] = [
        "fuseblk",
        "fuse.mergerfs",
        "fuse.bindfs",
        "fuse.gocryptfs",
        "fuse.encfs",
        "fuse.ntfs-3g",
        "fuse.exfat",
        "fuse.unionfs",
    ];
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let kind = mount_type(&mounts, identity.device);
    !kind.is_some_and(|kind| LOCAL.contains(&kind))
}

/// Whether other machines can change this file system behind the kernel's back; unknown counts as no,
/// as there is no watcher on this system that could be misled.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_network(_identity: &RootIdentity) -> bool {
    false
}

#[cfg(target_os = "linux")]
fn mount_type(mounts: &str, device: u64) -> Option<&str> {
    let wanted = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        (mount.split(' ').nth(2)? == wanted).then(|| file_system.split(' ').next())?
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const THEN: RootIdentity = RootIdentity {
        device: 0x801,
        inode: 2,
        file_system: 0xef53,
        file_system_id: 77,
    };

    #[test]
    fn r20_a_root_is_the_same_after_a_reboot_and_another_after_an_unmount() {
        assert!(THEN.is_same_root(&RootIdentity {
            device: 0x811,
            ..THEN
        }));
        assert!(!THEN.is_same_root(&RootIdentity { inode: 3, ..THEN }));
        assert!(!THEN.is_same_root(&RootIdentity {
            device: 9,
            file_system_id: 5,
            ..THEN
        }));
        assert!(!THEN.is_same_root(&RootIdentity {
            file_system: TMPFS,
            ..THEN
        }));
        assert_eq!(RootIdentity::decode(&THEN.to_string()), Some(THEN));
        assert_eq!(RootIdentity::decode("1:2:3"), None);
    }

    #[test]
    fn network_file_systems_are_recognised_by_their_magic_and_fuse_by_its_mount() {
        assert!(is_network(&RootIdentity {
            file_system: 0x6969,
            ..THEN
        }));
        assert!(!is_network(&THEN));
        let mounts = "36 35 0:31 / /mnt/x rw,noatime master:1 - fuse.sshfs host:/ rw\n\
                      37 35 8:17 / /mnt/y rw - fuseblk /dev/sdb1 rw\n";
        assert_eq!(
            mount_type(mounts, rustix::fs::makedev(0, 31)),
            Some("fuse.sshfs")
        );
        assert_eq!(
            mount_type(mounts, rustix::fs::makedev(8, 17)),
            Some("fuseblk")
        );
    }
}
