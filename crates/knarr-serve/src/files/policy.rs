//! What a client may do, path by path, and how much it may store.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use knarr_sftp::server::FileError;

/// Something that a client may be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Permission {
    /// See the names in a directory.
    List,
    /// Read files.
    Download,
    /// Create files.
    Upload,
    /// Change files that are there, or put others in their place.
    Overwrite,
    /// Remove files and directories.
    Delete,
    /// Give files and directories other names.
    Rename,
    /// Create directories.
    MakeDirectory,
    /// Create symbolic and hard links.
    Link,
    /// Set permissions, owners and times.
    SetAttributes,
}

/// A set of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    bits: u16,
}

impl Permissions {
    /// Everything.
    pub const ALL: Self = Self { bits: u16::MAX };
    /// Nothing.
    pub const NONE: Self = Self { bits: 0 };
    /// List and download.
    pub const READ_ONLY: Self = Self::NONE.with(Permission::List).with(Permission::Download);
    /// Upload, and see nothing: a letter box.
    pub const DROP_BOX: Self = Self::NONE.with(Permission::Upload);

    /// The set with `permission` in it.
    #[must_use]
    pub const fn with(self, permission: Permission) -> Self {
        Self {
            bits: self.bits | 1 << permission as u8,
        }
    }

    /// The set without `permission`.
    #[must_use]
    pub const fn without(self, permission: Permission) -> Self {
        Self {
            bits: self.bits & !(1 << permission as u8),
        }
    }

    /// Whether `permission` is in the set.
    #[must_use]
    pub const fn has(self, permission: Permission) -> bool {
        self.bits & 1 << permission as u8 != 0
    }
}

/// Other permissions for a directory and everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The directory, from the client's root, without slashes at the ends.
    pub prefix: Vec<u8>,
    /// What is allowed there.
    pub permissions: Permissions,
}

/// What a client may do. By default everything.
#[derive(Debug, Clone)]
pub struct Policy {
    permissions: Permissions,
    rules: Vec<Rule>,
    account: Option<Arc<Account>>,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Permissions::ALL)
    }
}

impl Policy {
    /// The same permissions everywhere.
    #[must_use]
    pub const fn new(permissions: Permissions) -> Self {
        Self {
            permissions,
            rules: Vec::new(),
            account: None,
        }
    }

    /// With other permissions below some directories; the longest prefix counts. Symbolic links are not followed
    /// then. Only for a confined client.
    #[must_use]
    pub fn with_rule(mut self, mut rule: Rule) -> Self {
        // As it is written in a configuration, it may have slashes at its ends.
        rule.prefix = super::place::normal(&rule.prefix);
        self.rules.push(rule);
        self
    }

    /// With a limit to what is stored.
    #[must_use]
    pub fn with_account(mut self, account: Arc<Account>) -> Self {
        self.account = Some(account);
        self
    }

    pub(crate) fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    pub(crate) const fn account(&self) -> Option<&Arc<Account>> {
        self.account.as_ref()
    }

    pub(crate) fn at(&self, path: &[u8]) -> Permissions {
        let applies = |rule: &&Rule| {
            path.strip_prefix(rule.prefix.as_slice())
                .is_some_and(|rest| {
                    rule.prefix.is_empty() || rest.is_empty() || rest.first() == Some(&b'/')
                })
        };
        self.rules
            .iter()
            .filter(applies)
            .max_by_key(|rule| rule.prefix.len())
            .map_or(self.permissions, |rule| rule.permissions)
    }

    /// Whether `permission` is given at `path`, a path in normal form.
    ///
    /// # Errors
    /// [`FileError::Denied`].
    pub(crate) fn check(&self, path: &[u8], permission: Permission) -> Result<(), FileError> {
        if self.at(path).has(permission) {
            return Ok(());
        }
        let reason = match permission {
            Permission::List => "listing is not allowed here",
            Permission::Download => "reading is not allowed here",
            Permission::Upload => "writing is not allowed here",
            Permission::Overwrite => "changing what is there is not allowed here",
            Permission::Delete => "removing is not allowed here",
            Permission::Rename => "renaming is not allowed here",
            Permission::MakeDirectory => "making directories is not allowed here",
            Permission::Link => "making links is not allowed here",
            Permission::SetAttributes => "changing attributes is not allowed here",
        };
        Err(FileError::Denied { reason })
    }

    /// Whether a name may lead to what has another now: by a rename, or as a second name. Where other rules
    /// hold, that is to take it here and to bring it there; and no directory is moved with a rule inside.
    ///
    /// # Errors
    /// [`FileError::Denied`].
    pub(crate) fn check_move(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        let lies_below = |rule: &Rule, path: &[u8]| {
            let rest = rule.prefix.strip_prefix(path);
            rest.is_some_and(|rest| rest.first() == Some(&b'/') || path.is_empty())
        };
        let cuts = |rule: &&Rule| lies_below(rule, from) || lies_below(rule, to);
        if self.rules.iter().any(|rule| cuts(&rule)) {
            return Err(FileError::Denied {
                reason: "other rules hold for a directory below",
            });
        }
        if self.at(from) == self.at(to) {
            return Ok(());
        }
        self.check(from, Permission::Download)?;
        self.check(from, Permission::Delete)?;
        self.check(to, Permission::Upload)
    }

    /// Whether attributes may be seen: by everyone who may do anything at all there, because clients ask before
    /// they upload.
    pub(crate) fn check_look(&self, path: &[u8]) -> Result<(), FileError> {
        if self.at(path) != Permissions::NONE {
            return Ok(());
        }
        Err(FileError::Denied {
            reason: "nothing is allowed here",
        })
    }
}

/// How much is stored below a root, and how much may be. Shared by all connections of a user.
///
/// Constraint: it counts what clients do through it. What others do in the directory is seen by the next
/// measurement.
#[derive(Debug)]
pub struct Account {
    limit_bytes: Option<u64>,
    limit_files: Option<u64>,
    used_bytes: AtomicU64,
    used_files: AtomicU64,
    lengths: Mutex<()>,
}

impl Account {
    /// With nothing stored.
    #[must_use]
    pub const fn new(limit_bytes: Option<u64>, limit_files: Option<u64>) -> Self {
        Self {
            limit_bytes,
            limit_files,
            used_bytes: AtomicU64::new(0),
            used_files: AtomicU64::new(0),
            lengths: Mutex::new(()),
        }
    }

    /// Measures what lies below `root`. Blocks, and takes as long as it takes to list the tree.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn measure(
        root: &Path,
        limit_bytes: Option<u64>,
        limit_files: Option<u64>,
    ) -> std::io::Result<Self> {
        let account = Self::new(limit_bytes, limit_files);
        account.add_tree(root)?;
        Ok(account)
    }

    /// Adds what lies below `root`, whether there is room for it or not. Blocks.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn add_tree(&self, root: &Path) -> std::io::Result<()> {
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory)? {
                let entry = entry?;
                // Of the link itself: what it points to is not stored here.
                let metadata = entry.metadata()?;
                if metadata.is_dir() {
                    directories.push(entry.path());
                }
                self.add(if metadata.is_file() {
                    metadata.len()
                } else {
                    0
                });
            }
        }
        Ok(())
    }

    /// Adds something that is there, whether there is room for it or not.
    pub(crate) fn add(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.used_files.fetch_add(1, Ordering::Relaxed);
    }

    /// Whoever changes the length of a file holds this from the look at the old one to the new one.
    pub(crate) fn lengths(&self) -> MutexGuard<'_, ()> {
        self.lengths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are stored.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Files, directories and links that are stored.
    #[must_use]
    pub fn used_files(&self) -> u64 {
        self.used_files.load(Ordering::Relaxed)
    }

    pub(crate) fn take_bytes(&self, bytes: u64) -> Result<(), FileError> {
        take(&self.used_bytes, self.limit_bytes, bytes).ok_or(FileError::Refused {
            reason: "the quota of bytes is used up: remove something first",
        })
    }

    pub(crate) fn take_file(&self) -> Result<(), FileError> {
        take(&self.used_files, self.limit_files, 1).ok_or(FileError::Refused {
            reason: "the quota of files is used up: remove something first",
        })
    }

    pub(crate) fn give_bytes(&self, bytes: u64) {
        give(&self.used_bytes, bytes);
    }

    pub(crate) fn give_file(&self) {
        give(&self.used_files, 1);
    }
}

fn take(used: &AtomicU64, limit: Option<u64>, amount: u64) -> Option<()> {
    let taken = |now: u64| {
        now.checked_add(amount)
            .filter(|after| limit.is_none_or(|limit| *after <= limit))
    };
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken)
        .ok()
        .map(|_| ())
}

fn give(used: &AtomicU64, amount: u64) {
    let given = |now: u64| Some(now.saturating_sub(amount));
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, given)
        .ok();
}
