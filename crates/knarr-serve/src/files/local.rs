//! A local directory as SFTP clients see it.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::tz::TimeZone;
use knarr_sftp::codec::{Attributes, FilesystemStatistics, OpenFlags};
use knarr_sftp::server::{FileError, FileSystem, OpenDirectory, OpenFile, UserNames};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::files::attributes::{attributes_of, mode_of, set_followed, set_named, statistics_of};
use crate::files::directory::LocalDirectory;
use crate::files::names::{SystemNames, home_of};
use crate::files::place::{
    LISTING, Links, PLACE, Place, STAGED_PREFIX, Spot, failed, retrying, stays_inside,
};
use crate::files::policy::{Permission, Policy};
use crate::files::{file, hash, staged};

/// What a client can reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reach {
    /// All that the user of this process can, from its working directory: like OpenSSH's `sftp-server`.
    #[default]
    Everything,
    /// What lies below this directory, which is the client's root.
    Confined {
        /// The directory.
        root: PathBuf,
    },
}

/// Where an upload is until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Uploads {
    /// Under its name.
    #[default]
    Direct,
    /// Under a hidden name beside it. Only for a confined client.
    Staged,
}

/// When an upload is flushed to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Flush {
    /// When the operating system likes, or the client asks.
    #[default]
    Whenever,
    /// Before its CLOSE is answered: a power cut then loses nothing that was closed. Only for staged uploads.
    AtClose,
}

/// How a directory is served.
#[derive(Debug, Clone, Default)]
pub struct LocalOptions {
    /// What a client can reach.
    pub reach: Reach,
    /// What it may do there.
    pub policy: Policy,
    /// Where an upload is until it is closed.
    pub uploads: Uploads,
    /// When an upload is flushed.
    pub flush: Flush,
}

/// A local directory as SFTP clients see it. One value serves any number of connections.
#[derive(Debug)]
pub struct LocalFiles {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) place: Place,
    pub(crate) policy: Policy,
    pub(crate) uploads: Uploads,
    pub(crate) flush: Flush,
    pub(crate) names: SystemNames,
    pub(crate) zone: TimeZone,
}

impl LocalFiles {
    /// Opens the directory.
    ///
    /// # Errors
    /// If it is not there, no directory, or may not be entered; or if the options do not go together.
    pub fn new(options: LocalOptions) -> io::Result<Self> {
        let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        let place = match &options.reach {
            Reach::Everything if options.policy.has_rules() => {
                return invalid("permissions by path need a root to confine the client to");
            }
            Reach::Everything if options.uploads == Uploads::Staged => {
                return invalid("staged uploads need a root to confine the client to");
            }
            Reach::Everything => Place::Plain,
            Reach::Confined { root } => {
                // A link could lead from where more is allowed to where less is.
                let links = if options.policy.has_rules() {
                    Links::Refused
                } else {
                    Links::Inside
                };
                Place::confined(root, links)?
            }
        };
        Ok(Self {
            shared: Arc::new(Shared {
                place,
                policy: options.policy,
                uploads: options.uploads,
                flush: options.flush,
                names: SystemNames::default(),
                zone: TimeZone::system(),
            }),
        })
    }

    fn entry(&self, path: &[u8], permission: Permission) -> Result<(Vec<u8>, Spot<'_>), FileError> {
        let normal = self.shared.place.normal(path)?;
        self.shared.policy.check(&normal, permission)?;
        let spot = self.shared.place.entry(&normal)?;
        Ok((normal, spot))
    }

    /// Renames. What stood at `to` is gone afterwards, if that was allowed.
    fn move_entry(&self, from: &[u8], to: &[u8], over: Over) -> Result<(), FileError> {
        let (normal_from, from) = self.entry(from, Permission::Rename)?;
        let normal = self.shared.place.normal(to)?;
        let policy = &self.shared.policy;
        policy.check(&normal, Permission::Rename)?;
        policy.check_move(&normal_from, &normal)?;
        let to = self.shared.place.entry(&normal)?;
        if over == Over::Nothing || !policy.at(&normal).has(Permission::Overwrite) {
            return rename_over_nothing(&from, &to);
        }
        // A name that is given to itself, or to a second name of the same file, frees nothing.
        let replaced = if is_same(&from, &to) {
            None
        } else {
            self.lost_by(&to)
        };
        rustix::fs::renameat(from.at(), &*from.name, to.at(), &*to.name).map_err(failed)?;
        self.give_back(replaced);
        Ok(())
    }

    /// Makes something that the account counts.
    fn counted(&self, make: impl FnOnce() -> Result<(), FileError>) -> Result<(), FileError> {
        let account = self.shared.policy.account();
        if let Some(account) = account {
            account.take_file()?;
        }
        let made = make();
        if let (Err(_), Some(account)) = (&made, account) {
            account.give_file();
        }
        made
    }

    /// What the account would get back if what is at `spot` went away.
    fn lost_by(&self, spot: &Spot<'_>) -> Option<u64> {
        self.shared.policy.account()?;
        let stat = rustix::fs::statat(spot.at(), &*spot.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        staged::freed_by(&stat)
    }

    fn give_back(&self, bytes: Option<u64>) {
        if let (Some(account), Some(bytes)) = (self.shared.policy.account(), bytes) {
            account.give_bytes(bytes);
            account.give_file();
        }
    }
}

/// Whether both names are of one file.
fn is_same(one: &Spot<'_>, other: &Spot<'_>) -> bool {
    let look = |spot: &Spot<'_>| {
        rustix::fs::statat(spot.at(), &*spot.name, AtFlags::SYMLINK_NOFOLLOW)
            .ok()
            .map(|stat| (stat.st_dev, stat.st_ino))
    };
    look(one).is_some_and(|identity| look(other) == Some(identity))
}

/// What a rename may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Nothing,
    Anything,
}

fn rename_over_nothing(from: &Spot<'_>, to: &Spot<'_>) -> Result<(), FileError> {
    match staged::rename_exclusively(from.at(), &from.name, to.at(), &to.name) {
        Err(Errno::EXIST) => Err(FileError::Refused {
            reason: "something of the new name is there already",
        }),
        outcome => outcome.map_err(failed),
    }
}

impl Shared {
    fn stat_followed(&self, normal: &[u8]) -> Result<Stat, FileError> {
        if matches!(self.place, Place::Plain) {
            let spot = self.place.spot(normal)?;
            return rustix::fs::statat(spot.at(), &*spot.name, AtFlags::empty()).map_err(failed);
        }
        #[cfg(target_os = "linux")]
        let flags = OFlags::PATH;
        #[cfg(not(target_os = "linux"))]
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let handle = self.place.open(normal, flags, Mode::empty())?;
        rustix::fs::fstat(&handle).map_err(failed)
    }

    /// What is at `normal`; where nothing is, an upload that can be continued under this name counts, because
    /// clients look for its length before they do.
    fn stat(&self, normal: &[u8], links: AtFlags) -> Result<Stat, FileError> {
        let found = if links.contains(AtFlags::SYMLINK_NOFOLLOW) {
            let spot = self.place.spot(normal)?;
            rustix::fs::statat(spot.at(), &*spot.name, links).map_err(failed)
        } else {
            self.stat_followed(normal)
        };
        match found {
            Err(FileError::NotFound) if self.uploads == Uploads::Staged => {
                let spot = self.place.spot(normal)?;
                let name = staged::staged_name(&spot.name);
                rustix::fs::statat(spot.at(), &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
            }
            found => found,
        }
    }
}

#[async_trait]
impl FileSystem for LocalFiles {
    async fn canonical(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        match self.shared.place {
            Place::Plain => canonical_plain(path),
            Place::Confined { .. } => {
                let mut absolute = vec![b'/'];
                absolute.extend(self.shared.place.normal(path)?);
                Ok(absolute)
            }
        }
    }

    async fn expand(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        let Some(rest) = path.strip_prefix(b"~") else {
            return self.canonical(path).await;
        };
        let slash = rest.iter().position(|byte| *byte == b'/');
        let (user, rest) = rest.split_at(slash.unwrap_or(rest.len()));
        let home = match self.shared.place {
            Place::Confined { .. } => Some("/".to_owned()),
            Place::Plain if user.is_empty() => {
                let uid = rustix::process::getuid().as_raw();
                home_of(&self.shared.names.user(uid))
            }
            Place::Plain => std::str::from_utf8(user).ok().and_then(home_of),
        };
        let mut path = home.ok_or(FileError::NotFound)?.into_bytes();
        path.extend_from_slice(rest);
        self.canonical(&path).await
    }

    async fn stat(&self, path: &[u8]) -> Result<Attributes, FileError> {
        let normal = self.shared.place.normal(path)?;
        self.shared.policy.check_look(&normal)?;
        let stat = self.shared.stat(&normal, AtFlags::empty())?;
        Ok(attributes_of(&stat))
    }

    async fn lstat(&self, path: &[u8]) -> Result<Attributes, FileError> {
        let normal = self.shared.place.normal(path)?;
        self.shared.policy.check_look(&normal)?;
        let stat = self.shared.stat(&normal, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(attributes_of(&stat))
    }

    async fn set_attributes(&self, path: &[u8], attributes: &Attributes) -> Result<(), FileError> {
        let shared = &self.shared;
        let normal = shared.place.normal(path)?;
        shared.policy.check(&normal, Permission::SetAttributes)?;
        if let Some(size) = attributes.size {
            shared.policy.check(&normal, Permission::Overwrite)?;
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = shared.place.open(&normal, flags, Mode::empty())?;
            file::truncate(shared, file.as_fd(), size)?;
        }
        set_followed(&shared.place, &normal, attributes)
    }

    async fn set_link_attributes(
        &self,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), FileError> {
        if attributes.size.is_some() {
            return Err(FileError::Invalid {
                reason: "a link cannot be truncated",
            });
        }
        let (_, spot) = self.entry(path, Permission::SetAttributes)?;
        let links = AtFlags::SYMLINK_NOFOLLOW;
        set_named(&self.shared.place, spot.at(), &spot.name, links, attributes)
    }

    async fn open(
        &self,
        path: &[u8],
        flags: OpenFlags,
        attributes: &Attributes,
    ) -> Result<Box<dyn OpenFile>, FileError> {
        let normal = self.shared.place.normal(path)?;
        let file = file::open(&self.shared, normal, flags, attributes)?;
        Ok(Box::new(file))
    }

    async fn open_directory(&self, path: &[u8]) -> Result<Box<dyn OpenDirectory>, FileError> {
        let normal = self.shared.place.normal(path)?;
        self.shared.policy.check(&normal, Permission::List)?;
        let handle = self.shared.place.open(&normal, LISTING, Mode::empty())?;
        Ok(Box::new(LocalDirectory {
            shared: Arc::clone(&self.shared),
            directory: Dir::new(handle).map_err(failed)?,
            path: normal,
        }))
    }

    async fn make_directory(&self, path: &[u8], attributes: &Attributes) -> Result<(), FileError> {
        let (_, spot) = self.entry(path, Permission::MakeDirectory)?;
        let mode = mode_of(&self.shared.place, attributes.permissions.unwrap_or(0o777));
        self.counted(|| rustix::fs::mkdirat(spot.at(), &*spot.name, mode).map_err(failed))
    }

    async fn remove_file(&self, path: &[u8]) -> Result<(), FileError> {
        let (_, spot) = self.entry(path, Permission::Delete)?;
        let lost = self.lost_by(&spot);
        match rustix::fs::unlinkat(spot.at(), &*spot.name, AtFlags::empty()) {
            Err(Errno::NOENT) if self.shared.uploads == Uploads::Staged => {
                staged::discard(&self.shared, &spot)
            }
            outcome => {
                outcome.map_err(failed)?;
                self.give_back(lost);
                Ok(())
            }
        }
    }

    async fn remove_directory(&self, path: &[u8]) -> Result<(), FileError> {
        let (normal, spot) = self.entry(path, Permission::Delete)?;
        let remove = || rustix::fs::unlinkat(spot.at(), &*spot.name, AtFlags::REMOVEDIR);
        let removed = match remove() {
            // To the client it is empty: what is left are uploads that nobody finished.
            Err(Errno::NOTEMPTY) if self.shared.uploads == Uploads::Staged => {
                let handle = self.shared.place.open(&normal, LISTING, Mode::empty())?;
                staged::discard_all(&self.shared, handle)?;
                remove().map_err(failed)
            }
            outcome => outcome.map_err(failed),
        };
        if let (Ok(()), Some(account)) = (&removed, self.shared.policy.account()) {
            account.give_file();
        }
        removed
    }

    async fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        self.move_entry(from, to, Over::Nothing)
    }

    async fn rename_over(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        self.move_entry(from, to, Over::Anything)
    }

    async fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        let normal = self.shared.place.normal(path)?;
        self.shared.policy.check_look(&normal)?;
        let spot = self.shared.place.spot(&normal)?;
        let target = rustix::fs::readlinkat(spot.at(), &*spot.name, Vec::new()).map_err(failed)?;
        Ok(target.into_bytes())
    }

    async fn make_link(&self, target: &[u8], link: &[u8]) -> Result<(), FileError> {
        let (normal, spot) = self.entry(link, Permission::Link)?;
        let names_staged = target
            .split(|byte| *byte == b'/')
            .any(|name| name.starts_with(STAGED_PREFIX));
        if matches!(self.shared.place, Place::Confined { .. }) && names_staged {
            return Err(FileError::NotFound);
        }
        // The server would not follow it, but others on this machine might.
        if matches!(self.shared.place, Place::Confined { .. }) && !stays_inside(&normal, target) {
            return Err(FileError::Denied {
                reason: "the link would lead out of the root: give its target relative to it",
            });
        }
        self.counted(|| rustix::fs::symlinkat(target, spot.at(), &*spot.name).map_err(failed))
    }

    async fn make_hard_link(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        let (normal_from, from) = self.entry(from, Permission::Link)?;
        let (normal_to, to) = self.entry(to, Permission::Link)?;
        self.shared.policy.check_move(&normal_from, &normal_to)?;
        let flags = AtFlags::empty();
        self.counted(|| {
            let linked = rustix::fs::linkat(from.at(), &*from.name, to.at(), &*to.name, flags);
            linked.map_err(failed)
        })
    }

    async fn statistics(&self, path: &[u8]) -> Result<FilesystemStatistics, FileError> {
        let normal = self.shared.place.normal(path)?;
        self.shared.policy.check_look(&normal)?;
        if matches!(self.shared.place, Place::Plain) {
            let statistics = rustix::fs::statvfs(normal.as_slice()).map_err(failed)?;
            return Ok(statistics_of(&statistics));
        }
        // Of the directory, if it is the name of a file to come.
        let handle = match self.shared.place.open(&normal, PLACE, Mode::empty()) {
            Ok(handle) => rustix::fs::fstatvfs(&handle),
            Err(_) => rustix::fs::fstatvfs(self.shared.place.spot(&normal)?.at()),
        };
        Ok(statistics_of(&handle.map_err(failed)?))
    }

    fn user_names(&self) -> &dyn UserNames {
        &self.shared.names
    }

    fn hash_algorithms(&self) -> &'static [&'static str] {
        hash::ALGORITHMS
    }
}

/// As `realpath`, but the last component may be missing.
fn canonical_plain(path: &[u8]) -> Result<Vec<u8>, FileError> {
    let path = if path.is_empty() { b"." } else { path };
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let canonical = match retry_canonical(path) {
        Ok(canonical) => canonical,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or(FileError::NotFound)?;
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let parent = retry_canonical(parent.unwrap_or(Path::new("."))).map_err(told)?;
            parent.join(name)
        }
        Err(error) => return Err(told(error)),
    };
    Ok(canonical.into_os_string().into_encoded_bytes())
}

fn retry_canonical(path: &Path) -> io::Result<PathBuf> {
    retrying(|| {
        path.canonicalize()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    })
    .map_err(io::Error::from)
}

fn told(error: io::Error) -> FileError {
    match Errno::from_io_error(&error) {
        Some(errno) => failed(errno),
        None => FileError::from(error),
    }
}
