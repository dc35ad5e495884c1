//! Another place (an object store, another SFTP server) as an SFTP client sees it.
//!
//! Constraints:
//!
//! * Files are read from anywhere and written from their beginning to their end. What comes a little out of order is
//!   put in order ([`super::remote_file`]); a file that is there is replaced, and never changed in place.
//! * An upload is staged as the place stages everything, and committed at CLOSE. One that was not closed is given up:
//!   here nothing is resumed.
//! * Links are not followed, and not made.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use knarr_core::entry::Kind;
use knarr_core::tree::TreeItem;
use knarr_core::{Entry, RelPath};
use knarr_remote::{
    ErrorKind, ListOptions, Listing, NewNode, Remote, RemoteError, Removal, RenameOptions, Replace,
    StagedId, WriteOptions,
};
use knarr_sftp::codec::{Attributes, FilesystemStatistics, OpenFlags};
use knarr_sftp::server::{FileError, FileSystem, OpenDirectory, OpenFile, UserNames};

use super::PlaceError;
use super::remote_directory::{Directory, attributes_of};
use super::remote_file::{ReadFile, WriteFile};
use crate::files::{Account, Permission, Policy, SystemNames, normal_path};

/// Directories that are remembered where a place has none by itself.
const REMEMBERED: usize = 10_000;

/// Another place as an SFTP client sees it.
pub(crate) struct RemoteFiles {
    shared: Arc<Shared>,
}

/// What open files share with it.
pub(crate) struct Shared {
    pub(crate) remote: Arc<dyn Remote>,
    pub(crate) policy: Policy,
    pub(super) names: SystemNames,
    /// Directories that clients made where there are none by themselves, until something is in them.
    made: Mutex<BTreeSet<RelPath>>,
}

/// What an error of a place is to a client. The details are for the log of the server.
pub(crate) fn told(error: &RemoteError) -> FileError {
    tracing::debug!(%error, "a place refused what a client asked for");
    match error.kind {
        ErrorKind::NotFound => FileError::NotFound,
        ErrorKind::AlreadyExists | ErrorKind::Changed => FileError::Refused {
            reason: "something of that name is there already, or it was changed meanwhile",
        },
        ErrorKind::WrongKind => FileError::Refused {
            reason: "that is a directory, or none where one is needed",
        },
        ErrorKind::NotEmpty => FileError::Refused {
            reason: "the directory is not empty",
        },
        ErrorKind::PermissionDenied | ErrorKind::ReadOnly | ErrorKind::Authentication => {
            FileError::Denied {
                reason: "the place behind this server does not allow it",
            }
        }
        ErrorKind::NoSpace => FileError::Refused {
            reason: "no space is left",
        },
        ErrorKind::InvalidName => FileError::Invalid {
            reason: "the place behind this server cannot hold such a name",
        },
        ErrorKind::Unsupported => FileError::Unsupported,
        _ => FileError::Refused {
            reason: "the place behind this server does not answer as it should: try again later",
        },
    }
}

/// Adds what a place holds to an account.
///
/// # Errors
/// If it cannot be listed whole.
pub(crate) async fn measure(remote: &Arc<dyn Remote>, account: &Account) -> Result<(), PlaceError> {
    let failed = |source| PlaceError::Measure {
        location: remote.describe().location.clone(),
        source,
    };
    let mut listing = match remote.list(ListOptions::default()).await {
        Ok(listing) => listing,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    while let Some(batch) = listing.next_batch().await {
        for item in batch {
            match item {
                TreeItem::Entry(entry) => account.add(entry.size),
                TreeItem::Incomplete(incomplete) => {
                    let error = RemoteError::new(ErrorKind::Other, "list", incomplete.reason);
                    return Err(failed(error));
                }
                TreeItem::Problem(_) | TreeItem::Excluded { .. } => {}
            }
        }
    }
    Ok(())
}

impl Shared {
    fn made(&self) -> MutexGuard<'_, BTreeSet<RelPath>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_directories(&self) -> bool {
        self.remote.describe().capabilities.directories
    }

    /// What is at a path; a prefix with something below it is a directory.
    async fn look(&self, path: &RelPath) -> Result<Option<Entry>, FileError> {
        let found = self.remote.stat(path).await;
        if self.has_directories() {
            return found.map_err(|error| told(&error));
        }
        let error = match found {
            Ok(Some(entry)) => return Ok(Some(entry)),
            Ok(None) => None,
            // Some stores fail on a key that is only the beginning of others.
            Err(error) if matches!(error.kind, ErrorKind::Other | ErrorKind::Throttled) => {
                Some(error)
            }
            Err(error) => return Err(told(&error)),
        };
        if self.made().contains(path) || self.holds_something(path).await? {
            return Ok(Some(Entry::directory(path.clone())));
        }
        match error {
            Some(error) => Err(told(&error)),
            None => Ok(None),
        }
    }

    async fn holds_something(&self, path: &RelPath) -> Result<bool, FileError> {
        let mut listing = match self.list(Some(path)).await {
            Ok(listing) => listing,
            Err(FileError::NotFound) => return Ok(false),
            Err(error) => return Err(error),
        };
        while let Some(batch) = listing.next_batch().await {
            match batch.first() {
                Some(TreeItem::Incomplete(_)) => return Err(broken_off()),
                Some(_) => return Ok(true),
                None => {}
            }
        }
        Ok(false)
    }

    async fn list(&self, below: Option<&RelPath>) -> Result<Listing, FileError> {
        let options = ListOptions {
            below: below.cloned(),
            shallow: true,
            filter: None,
        };
        self.remote
            .list(options)
            .await
            .map_err(|error| told(&error))
    }
}

pub(super) const fn broken_off() -> FileError {
    FileError::Refused {
        reason: "the listing broke off: try again later",
    }
}

/// A path there; nothing for its root.
fn place_of(path: &[u8]) -> Result<Option<RelPath>, FileError> {
    let normal = normal_path(path);
    if normal.is_empty() {
        return Ok(None);
    }
    // Staged files are nobody's business.
    if normal
        .split(|byte| *byte == b'/')
        .any(|name| name.starts_with(knarr_fs::root::OWN_PREFIX))
    {
        return Err(FileError::NotFound);
    }
    RelPath::new(normal)
        .map(Some)
        .map_err(|_| FileError::Invalid {
            reason: "such a name is not possible",
        })
}

fn entry_path(path: &[u8]) -> Result<RelPath, FileError> {
    place_of(path)?.ok_or(FileError::Denied {
        reason: "that is the root",
    })
}

pub(super) fn root_attributes() -> Attributes {
    Attributes::with_permissions(0o040_755)
}

/// What a rename may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Nothing,
    Anything,
}

impl RemoteFiles {
    pub(crate) fn new(remote: Arc<dyn Remote>, policy: Policy) -> Self {
        Self {
            shared: Arc::new(Shared {
                remote,
                policy,
                names: SystemNames::default(),
                made: Mutex::default(),
            }),
        }
    }

    fn check(&self, path: &[u8], permission: Permission) -> Result<(), FileError> {
        self.shared.policy.check(&normal_path(path), permission)
    }

    async fn begin(
        &self,
        path: RelPath,
        flags: OpenFlags,
        attributes: &Attributes,
    ) -> Result<WriteFile, FileError> {
        let there = self.shared.look(&path).await?;
        let policy = &self.shared.policy;
        let permission = match &there {
            Some(entry) if entry.kind == Kind::Directory => {
                return Err(FileError::Refused {
                    reason: "that is a directory",
                });
            }
            Some(_) => Permission::Overwrite,
            None => Permission::Upload,
        };
        policy.check(path.as_bytes(), permission)?;
        let exclusive = flags.contains(OpenFlags::EXCLUSIVE);
        if there.is_some() && exclusive {
            return Err(FileError::Refused {
                reason: "the file is there already",
            });
        }
        if there.is_none() && !flags.contains(OpenFlags::CREATE) {
            return Err(FileError::NotFound);
        }
        if there.is_some() && !flags.contains(OpenFlags::TRUNCATE)
            || flags.contains(OpenFlags::READ)
        {
            return Err(FileError::Refused {
                reason: "files of this place are not changed or continued: send the whole file again",
            });
        }
        let may_replace = !exclusive && policy.at(path.as_bytes()).has(Permission::Overwrite);
        let declared = attributes.size.filter(|size| *size > 0);
        // By its own number: two who upload one name at a time do not meet, and the later one stays.
        let mut own = [0; 16];
        aws_lc_rs::rand::fill(&mut own).map_err(|_| FileError::Refused {
            reason: "the system gives no random numbers",
        })?;
        let options = WriteOptions {
            mode: attributes.permissions.map(|mode| mode & 0o777),
            replace: match (may_replace, &there) {
                (true, _) => Replace::Anything,
                (false, Some(seen)) => Replace::Seen(seen.fingerprint()),
                (false, None) => Replace::Nothing,
            },
            ..WriteOptions::new(
                NewNode::File { size: declared },
                StagedId::derive(&own, &path),
            )
        };
        if let (Some(account), None) = (policy.account(), &there) {
            account.take_file()?;
        }
        let begun = self.shared.remote.write(&path, options).await;
        if let (Err(_), Some(account), None) = (&begun, policy.account(), &there) {
            account.give_file();
        }
        let upload = begun.map_err(|error| told(&error))?;
        Ok(WriteFile::new(
            Arc::clone(&self.shared),
            path,
            upload,
            declared,
            there,
        ))
    }

    async fn move_entry(&self, from: &[u8], to: &[u8], over: Over) -> Result<(), FileError> {
        let (from, to) = (entry_path(from)?, entry_path(to)?);
        let policy = &self.shared.policy;
        policy.check(from.as_bytes(), Permission::Rename)?;
        policy.check(to.as_bytes(), Permission::Rename)?;
        policy.check_move(from.as_bytes(), to.as_bytes())?;
        let replaces =
            over == Over::Anything && policy.at(to.as_bytes()).has(Permission::Overwrite);
        let replaced = if replaces {
            self.shared.look(&to).await?
        } else {
            None
        };
        let options = RenameOptions {
            replace: if replaces {
                Replace::Anything
            } else {
                Replace::Nothing
            },
        };
        let renamed = self.shared.remote.rename(&from, &to, options).await;
        renamed.map_err(|error| told(&error))?;
        if let (Some(account), Some(entry)) = (policy.account(), replaced) {
            account.give_bytes(entry.size);
            account.give_file();
        }
        Ok(())
    }

    async fn remove(&self, path: &RelPath, kind: Kind) -> Result<(), FileError> {
        let removal = Removal {
            path: path.clone(),
            kind,
            seen: None,
        };
        let mut results = self.shared.remote.remove(&[removal]).await;
        results
            .pop()
            .unwrap_or(Ok(()))
            .map_err(|error| told(&error))
    }
}

#[async_trait]
impl FileSystem for RemoteFiles {
    async fn canonical(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        let mut absolute = vec![b'/'];
        absolute.extend(normal_path(path));
        Ok(absolute)
    }

    async fn expand(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        self.canonical(path.strip_prefix(b"~").unwrap_or(path))
            .await
    }

    async fn stat(&self, path: &[u8]) -> Result<Attributes, FileError> {
        self.shared.policy.check_look(&normal_path(path))?;
        match place_of(path)? {
            None => Ok(root_attributes()),
            Some(path) => {
                let entry = self.shared.look(&path).await?;
                entry.as_ref().map(attributes_of).ok_or(FileError::NotFound)
            }
        }
    }

    async fn lstat(&self, path: &[u8]) -> Result<Attributes, FileError> {
        self.stat(path).await
    }

    async fn set_attributes(&self, path: &[u8], attributes: &Attributes) -> Result<(), FileError> {
        self.check(path, Permission::SetAttributes)?;
        if attributes.size.is_some() {
            return Err(FileError::Unsupported);
        }
        // Clients set times and permissions after each upload, and most take a refusal for a failed one.
        self.stat(path).await.map(|_| ())
    }

    async fn set_link_attributes(
        &self,
        _path: &[u8],
        _attributes: &Attributes,
    ) -> Result<(), FileError> {
        Err(FileError::Unsupported)
    }

    async fn open(
        &self,
        path: &[u8],
        flags: OpenFlags,
        attributes: &Attributes,
    ) -> Result<Box<dyn OpenFile>, FileError> {
        let path = place_of(path)?.ok_or(FileError::Refused {
            reason: "that is no regular file",
        })?;
        let writes = flags.contains(OpenFlags::WRITE) || flags.contains(OpenFlags::APPEND);
        if writes {
            return Ok(Box::new(self.begin(path, flags, attributes).await?));
        }
        self.shared
            .policy
            .check(path.as_bytes(), Permission::Download)?;
        let file = ReadFile::open(Arc::clone(&self.shared), path).await?;
        Ok(Box::new(file))
    }

    async fn open_directory(&self, path: &[u8]) -> Result<Box<dyn OpenDirectory>, FileError> {
        self.check(path, Permission::List)?;
        let below = place_of(path)?;
        if let Some(path) = &below {
            match self.shared.look(path).await? {
                Some(entry) if entry.kind == Kind::Directory => {}
                Some(_) => {
                    return Err(FileError::Refused {
                        reason: "that is no directory",
                    });
                }
                None => return Err(FileError::NotFound),
            }
        }
        let listing = match self.shared.list(below.as_ref()).await {
            Ok(listing) => listing,
            // Nothing is below a prefix that somebody just made.
            Err(FileError::NotFound) if !self.shared.has_directories() => Listing::empty(),
            Err(error) => return Err(error),
        };
        let is_child = |path: &&RelPath| path.parent() == below;
        let made = self
            .shared
            .made()
            .iter()
            .filter(is_child)
            .cloned()
            .collect();
        Ok(Box::new(Directory::new(
            Arc::clone(&self.shared),
            listing,
            made,
        )))
    }

    async fn make_directory(&self, path: &[u8], _attributes: &Attributes) -> Result<(), FileError> {
        let path = entry_path(path)?;
        self.shared
            .policy
            .check(path.as_bytes(), Permission::MakeDirectory)?;
        if self.shared.look(&path).await?.is_some() {
            return Err(FileError::Refused {
                reason: "it is there already",
            });
        }
        if !self.shared.has_directories() {
            let mut made = self.shared.made();
            if made.len() >= REMEMBERED {
                return Err(FileError::Refused {
                    reason: "too many empty directories: this place keeps only those with files",
                });
            }
            made.insert(path);
            return Ok(());
        }
        let account = self.shared.policy.account();
        if let Some(account) = account {
            account.take_file()?;
        }
        let done = make_directory(&self.shared, &path).await;
        if let (Err(_), Some(account)) = (&done, account) {
            account.give_file();
        }
        done.map_err(|error| told(&error))
    }

    async fn remove_file(&self, path: &[u8]) -> Result<(), FileError> {
        let path = entry_path(path)?;
        self.shared
            .policy
            .check(path.as_bytes(), Permission::Delete)?;
        let entry = self.shared.look(&path).await?.ok_or(FileError::NotFound)?;
        if entry.kind == Kind::Directory {
            return Err(FileError::Refused {
                reason: "that is a directory",
            });
        }
        self.remove(&path, entry.kind).await?;
        if let Some(account) = self.shared.policy.account() {
            account.give_bytes(entry.size);
            account.give_file();
        }
        Ok(())
    }

    async fn remove_directory(&self, path: &[u8]) -> Result<(), FileError> {
        let path = entry_path(path)?;
        self.shared
            .policy
            .check(path.as_bytes(), Permission::Delete)?;
        if !self.shared.has_directories() {
            if self.shared.holds_something(&path).await? {
                return Err(FileError::Refused {
                    reason: "the directory is not empty",
                });
            }
            let was_there = self.shared.made().remove(&path);
            return was_there.then_some(()).ok_or(FileError::NotFound);
        }
        if self.shared.look(&path).await?.is_none() {
            return Err(FileError::NotFound);
        }
        self.remove(&path, Kind::Directory).await?;
        if let Some(account) = self.shared.policy.account() {
            account.give_file();
        }
        Ok(())
    }

    async fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        self.move_entry(from, to, Over::Nothing).await
    }

    async fn rename_over(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        self.move_entry(from, to, Over::Anything).await
    }

    async fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        self.shared.policy.check_look(&normal_path(path))?;
        let entry = self
            .shared
            .look(&entry_path(path)?)
            .await?
            .ok_or(FileError::NotFound)?;
        entry.link_target.map(Vec::from).ok_or(FileError::Refused {
            reason: "that is no link",
        })
    }

    async fn make_link(&self, _target: &[u8], _link: &[u8]) -> Result<(), FileError> {
        Err(FileError::Unsupported)
    }

    async fn make_hard_link(&self, _from: &[u8], _to: &[u8]) -> Result<(), FileError> {
        Err(FileError::Unsupported)
    }

    async fn statistics(&self, _path: &[u8]) -> Result<FilesystemStatistics, FileError> {
        Err(FileError::Unsupported)
    }

    fn user_names(&self) -> &dyn UserNames {
        &self.shared.names
    }
}

async fn make_directory(shared: &Shared, path: &RelPath) -> Result<(), RemoteError> {
    let options = WriteOptions::new(NewNode::Directory, StagedId::derive(b"serve", path));
    let upload = shared.remote.write(path, options).await?;
    let nothing = knarr_core::ContentHash::of(b"");
    let staged = upload.stage(0, nothing).await?;
    let committer = Arc::clone(&staged.committer);
    let mut results = committer.commit(vec![staged]).await;
    results.pop().map_or(Ok(()), |result| result.map(|_| ()))
}
