//! What a server serves: the interface between the protocol and a place with files.

use async_trait::async_trait;
use bytes::Bytes;

use crate::codec::{Attributes, FilesystemStatistics, NameEntry, OpenFlags};
use crate::server::FileError;

/// A place with files, as one client sees it.
///
/// Paths are bytes as the client wrote them, without NUL, possibly empty or relative: the file system decides
/// what they mean, and it alone keeps the client in. Calls come one at a time. They may block if the connection
/// is served with that in mind, see [`crate::server::Execution`].
#[async_trait]
pub trait FileSystem: Send + Sync {
    /// The canonical form of `path`. The last component need not exist.
    async fn canonical(&self, path: &[u8]) -> Result<Vec<u8>, FileError>;

    /// `path` with `~` resolved, in canonical form.
    async fn expand(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        self.canonical(path).await
    }

    /// Attributes of what is at `path`, links followed.
    async fn stat(&self, path: &[u8]) -> Result<Attributes, FileError>;

    /// Attributes of what is at `path`, of a link itself.
    async fn lstat(&self, path: &[u8]) -> Result<Attributes, FileError>;

    /// Sets the attributes that are given; the size truncates. Links are followed.
    async fn set_attributes(&self, path: &[u8], attributes: &Attributes) -> Result<(), FileError>;

    /// Sets the attributes that are given, of a link itself.
    async fn set_link_attributes(
        &self,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), FileError>;

    /// Opens a file. `attributes` are those of a file that is created by it.
    async fn open(
        &self,
        path: &[u8],
        flags: OpenFlags,
        attributes: &Attributes,
    ) -> Result<Box<dyn OpenFile>, FileError>;

    /// Opens a directory, to list it.
    async fn open_directory(&self, path: &[u8]) -> Result<Box<dyn OpenDirectory>, FileError>;

    /// Creates a directory.
    async fn make_directory(&self, path: &[u8], attributes: &Attributes) -> Result<(), FileError>;

    /// Removes a file or a link.
    async fn remove_file(&self, path: &[u8]) -> Result<(), FileError>;

    /// Removes an empty directory.
    async fn remove_directory(&self, path: &[u8]) -> Result<(), FileError>;

    /// Renames; fails if something is at `to`.
    async fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), FileError>;

    /// Renames over what is at `to`.
    async fn rename_over(&self, from: &[u8], to: &[u8]) -> Result<(), FileError>;

    /// Where a link points.
    async fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, FileError>;

    /// Creates a link.
    async fn make_link(&self, target: &[u8], link: &[u8]) -> Result<(), FileError>;

    /// Creates a second name for a file.
    async fn make_hard_link(&self, from: &[u8], to: &[u8]) -> Result<(), FileError>;

    /// Statistics of the file system behind `path`.
    async fn statistics(&self, path: &[u8]) -> Result<FilesystemStatistics, FileError>;

    /// Names of users and groups.
    fn user_names(&self) -> &dyn UserNames;

    /// The hash algorithms of [`OpenFile::hash`], as `check-file` names them, best first.
    fn hash_algorithms(&self) -> &'static [&'static str] {
        &[]
    }
}

/// Turns numbers of users and groups into names.
pub trait UserNames: Send + Sync {
    /// Name of a user; empty if it is not known.
    fn user(&self, id: u32) -> String;

    /// Name of a group; empty if it is not known.
    fn group(&self, id: u32) -> String;
}

/// What closing a file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Closed {
    /// If it was an upload: what is complete now.
    pub upload: Option<Upload>,
}

/// An upload that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Its canonical path.
    pub path: Vec<u8>,
    /// Its length in bytes.
    pub length_bytes: u64,
}

/// A range of a file that is to be hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashRange {
    /// Where it begins.
    pub offset: u64,
    /// Its length in bytes; zero means to the end.
    pub length: u64,
    /// Length of each block that has a hash of its own, in bytes; zero means one hash for all.
    pub block_bytes: u32,
    /// Longest answer, in bytes: more hashes than that are refused.
    pub answer_bytes: usize,
}

/// An open file. Dropping it gives it back without completing an upload.
#[async_trait]
pub trait OpenFile: Send {
    /// Appends what is at `offset` to `into`, as far as its capacity allows without growing. Returns how many
    /// bytes that were; zero is the end of the file.
    async fn read_at(&mut self, offset: u64, into: &mut Vec<u8>) -> Result<usize, FileError>;

    /// Writes all of `data` at `offset`; files opened to append ignore it.
    async fn write_at(&mut self, offset: u64, data: &[Bytes]) -> Result<(), FileError>;

    /// Its attributes.
    async fn stat(&mut self) -> Result<Attributes, FileError>;

    /// Sets the attributes that are given; the size truncates.
    async fn set_attributes(&mut self, attributes: &Attributes) -> Result<(), FileError>;

    /// Flushes it to the disk.
    async fn sync(&mut self) -> Result<(), FileError>;

    /// Statistics of the file system that it is on.
    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError>;

    /// Hashes a range of it: the hashes of the blocks, one behind the other.
    async fn hash(
        &mut self,
        _algorithm: &'static str,
        _range: HashRange,
    ) -> Result<Vec<u8>, FileError> {
        Err(FileError::Unsupported)
    }

    /// Gives it back. An upload is complete only if this succeeds.
    async fn close(self: Box<Self>) -> Result<Closed, FileError>;
}

/// Names of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryBatch {
    /// Some names; at least one.
    Names(Vec<NameEntry>),
    /// There are no more.
    End,
}

/// An open directory.
#[async_trait]
pub trait OpenDirectory: Send {
    /// The next names, at most `limit` of them.
    async fn next(&mut self, limit: usize) -> Result<DirectoryBatch, FileError>;

    /// Attributes of the directory itself.
    async fn stat(&mut self) -> Result<Attributes, FileError>;

    /// Sets attributes of the directory itself.
    async fn set_attributes(&mut self, attributes: &Attributes) -> Result<(), FileError>;

    /// Statistics of the file system that it is on.
    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError>;
}
