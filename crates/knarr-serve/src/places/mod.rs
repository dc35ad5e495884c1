//! What one user sees: directories of this machine and other places, at mount points or as a whole, with a quota.

mod mounts;
mod remote;
mod remote_directory;
mod remote_file;

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use knarr_remote::Remote;
use knarr_sftp::server::FileSystem;

use crate::event::UploadedAt;
use crate::files::{
    Account, Flush, LocalFiles, LocalOptions, Permissions, Policy, Reach, Rule, Uploads,
    normal_path,
};
use mounts::{Mounted, Mounts};
use remote::RemoteFiles;

/// Whether a directory is made if it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Missing {
    /// It is an error.
    #[default]
    Fail,
    /// It is made, for its owner only; the directory above it has to be there.
    Make,
}

/// Where files are.
#[derive(Debug, Clone)]
pub enum Store {
    /// In a directory of this machine.
    Local {
        /// The directory.
        directory: PathBuf,
        /// What if it is not there.
        missing: Missing,
    },
    /// In another place: an object store, another SFTP server.
    Remote(Arc<dyn Remote>),
}

impl PartialEq for Store {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Local { directory, missing },
                Self::Local {
                    directory: other,
                    missing: other_missing,
                },
            ) => directory == other && missing == other_missing,
            (Self::Remote(remote), Self::Remote(other)) => Arc::ptr_eq(remote, other),
            _ => false,
        }
    }
}

/// A place, and what may be done there.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount {
    /// The name that it has in the client's root; empty if it is the root itself.
    pub name: Vec<u8>,
    /// Where the files are.
    pub store: Store,
    /// What may be done there.
    pub permissions: Permissions,
    /// Where else is allowed; prefixes are paths below this mount point.
    pub rules: Vec<Rule>,
}

/// How much a user may store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// In bytes.
    pub bytes: Option<u64>,
    /// Files, directories and links.
    pub files: Option<u64>,
}

/// What a user sees.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UserPlaces {
    /// One without a name, or any number with names.
    pub mounts: Vec<Mount>,
    /// How much may be stored in all of them.
    pub quota: Quota,
}

/// Why the places of a user cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A directory.
    #[error("cannot open {}", directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another place cannot be measured for the quota.
    #[error("cannot measure {location}")]
    Measure {
        /// Which.
        location: String,
        /// Why not.
        #[source]
        source: knarr_remote::RemoteError,
    },
    /// Names that do not go together.
    #[error(
        "mount points need names of one component each, all different; only a single one may be the root"
    )]
    Names,
    /// The process is ending.
    #[error("the server is stopping")]
    Stopped,
}

impl UserPlaces {
    /// One directory of this machine, where everything is allowed.
    #[must_use]
    pub fn directory(directory: impl Into<PathBuf>) -> Self {
        Self {
            mounts: vec![Mount {
                name: Vec::new(),
                store: Store::Local {
                    directory: directory.into(),
                    missing: Missing::Fail,
                },
                permissions: Permissions::ALL,
                rules: Vec::new(),
            }],
            quota: Quota::default(),
        }
    }

    /// Opens the directories and, where there is a quota, measures what is in them.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub(crate) async fn open(&self) -> Result<UserFiles, PlaceError> {
        self.check_names()?;
        let account = self.account().await?;
        let mut mounted = Vec::with_capacity(self.mounts.len());
        for mount in &self.mounts {
            mounted.push(Mounted {
                name: mount.name.clone(),
                files: mount.open(account.clone()).await?,
            });
        }
        let file_system: Arc<dyn FileSystem> = match mounted.pop() {
            Some(only) if only.name.is_empty() => only.files,
            Some(last) => {
                mounted.push(last);
                Arc::new(Mounts::new(mounted))
            }
            None => return Err(PlaceError::Names),
        };
        let roots = self
            .mounts
            .iter()
            .map(|mount| (mount.name.clone(), mount.store.clone()));
        Ok(UserFiles {
            file_system,
            roots: roots.collect(),
        })
    }

    fn check_names(&self) -> Result<(), PlaceError> {
        let mut names: Vec<&[u8]> = self
            .mounts
            .iter()
            .map(|mount| mount.name.as_slice())
            .collect();
        names.sort_unstable();
        let is_plain = |name: &&[u8]| normal_path(name) == *name && !name.contains(&b'/');
        let are_different = names.windows(2).all(|pair| pair.first() != pair.last());
        let has_root = names.first().is_some_and(|name| name.is_empty());
        if names.is_empty()
            || !names.iter().all(is_plain)
            || !are_different
            || has_root && names.len() > 1
        {
            return Err(PlaceError::Names);
        }
        Ok(())
    }

    async fn account(&self) -> Result<Option<Arc<Account>>, PlaceError> {
        let Quota { bytes, files } = self.quota;
        if bytes.is_none() && files.is_none() {
            return Ok(None);
        }
        let account = Arc::new(Account::new(bytes, files));
        for mount in &self.mounts {
            match &mount.store {
                Store::Local { directory, missing } => {
                    make_if_wanted(directory.clone(), *missing).await?;
                    let (account, root) = (Arc::clone(&account), directory.clone());
                    blocking(directory.clone(), move || account.add_tree(&root)).await?;
                }
                Store::Remote(remote) => remote::measure(remote, &account).await?,
            }
        }
        Ok(Some(account))
    }
}

impl Mount {
    async fn open(&self, account: Option<Arc<Account>>) -> Result<Arc<dyn FileSystem>, PlaceError> {
        let mut policy = Policy::new(self.permissions);
        for rule in &self.rules {
            policy = policy.with_rule(rule.clone());
        }
        if let Some(account) = account {
            policy = policy.with_account(account);
        }
        Ok(match &self.store {
            Store::Local { directory, missing } => {
                make_if_wanted(directory.clone(), *missing).await?;
                let options = LocalOptions {
                    reach: Reach::Confined {
                        root: directory.clone(),
                    },
                    policy,
                    uploads: Uploads::Staged,
                    flush: Flush::AtClose,
                };
                let opened = blocking(directory.clone(), move || LocalFiles::new(options)).await?;
                Arc::new(opened)
            }
            Store::Remote(remote) => Arc::new(RemoteFiles::new(Arc::clone(remote), policy)),
        })
    }
}

async fn make_if_wanted(directory: PathBuf, missing: Missing) -> Result<(), PlaceError> {
    if missing == Missing::Fail {
        return Ok(());
    }
    let path = directory.clone();
    blocking(path, move || {
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    })
    .await
}

async fn blocking<T: Send + 'static>(
    directory: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, PlaceError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|_| PlaceError::Stopped)?;
    done.map_err(|source| PlaceError::Directory { directory, source })
}

/// What a user sees, opened.
pub(crate) struct UserFiles {
    file_system: Arc<dyn FileSystem>,
    roots: Vec<(Vec<u8>, Store)>,
}

impl std::fmt::Debug for UserFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserFiles")
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

impl UserFiles {
    pub(crate) fn file_system(&self) -> Arc<dyn FileSystem> {
        Arc::clone(&self.file_system)
    }

    /// A path as the client writes it, from the root.
    #[expect(clippy::unused_self, reason = "where paths begin is up to the places")]
    pub(crate) fn absolute(&self, path: &[u8]) -> Vec<u8> {
        let mut absolute = vec![b'/'];
        absolute.extend(normal_path(path));
        absolute
    }

    /// Where the file with this path is.
    pub(crate) fn locate(&self, path: &[u8]) -> UploadedAt {
        let normal = normal_path(path);
        let (store, below) = self
            .roots
            .iter()
            .find_map(|(name, store)| {
                let below = match name.is_empty() {
                    true => Some(normal.as_slice()),
                    false => normal.strip_prefix(name.as_slice()),
                };
                let below = below.filter(|below| name.is_empty() || below.starts_with(b"/"))?;
                Some((store, below.strip_prefix(b"/").unwrap_or(below)))
            })
            .map_or((None, normal.as_slice()), |(store, below)| {
                (Some(store), below)
            });
        match store {
            Some(Store::Local { directory, .. }) => {
                UploadedAt::Local(directory.join(std::ffi::OsStr::from_bytes(below)))
            }
            Some(Store::Remote(remote)) => UploadedAt::Remote {
                location: remote.describe().location.clone(),
                path: below.to_vec(),
            },
            None => UploadedAt::Local(PathBuf::new()),
        }
    }
}
