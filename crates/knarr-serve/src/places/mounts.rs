//! Several places under one root, each under a name of its own.
//!
//! Constraint: the root holds the mount points and nothing else, and cannot be changed. Nothing is renamed or linked from
//! one place to another.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_sftp::codec::{Attributes, FilesystemStatistics, NameEntry, OpenFlags};
use knarr_sftp::server::{
    Closed, DirectoryBatch, FileError, FileSystem, HashRange, OpenDirectory, OpenFile, UserNames,
};

use crate::files::{SystemNames, line_of, normal_path};

/// Permission bits of the root: a directory that nobody writes.
const ROOT_MODE: u32 = 0o040_555;

/// A place and its name.
pub(crate) struct Mounted {
    pub(crate) name: Vec<u8>,
    pub(crate) files: Arc<dyn FileSystem>,
}

/// Several places under one root.
pub(crate) struct Mounts {
    mounted: Vec<Mounted>,
    names: SystemNames,
}

/// What a path leads to.
enum Target<'a> {
    Root,
    /// A place, and the path there, from its root.
    In(&'a Mounted, Vec<u8>),
}

impl Mounts {
    pub(crate) fn new(mut mounted: Vec<Mounted>) -> Self {
        mounted.sort_by(|one, other| one.name.cmp(&other.name));
        Self {
            mounted,
            names: SystemNames::default(),
        }
    }

    fn target(&self, path: &[u8]) -> Result<Target<'_>, FileError> {
        let normal = normal_path(path);
        if normal.is_empty() {
            return Ok(Target::Root);
        }
        let end = normal
            .iter()
            .position(|byte| *byte == b'/')
            .unwrap_or(normal.len());
        let (name, rest) = normal.split_at(end);
        let mut all = self.mounted.iter();
        let mounted = all
            .find(|mounted| mounted.name == name)
            .ok_or(FileError::NotFound)?;
        let below = if rest.is_empty() { b"/" } else { rest };
        Ok(Target::In(mounted, below.to_vec()))
    }

    /// A path inside of a place, which is not the place itself.
    fn inside(&self, path: &[u8]) -> Result<(&Mounted, Vec<u8>), FileError> {
        match self.target(path)? {
            Target::In(mounted, below) if below != b"/" => Ok((mounted, below)),
            _ => Err(FileError::Denied {
                reason: "mount points cannot be changed",
            }),
        }
    }

    fn both(&self, one: &[u8], other: &[u8]) -> Result<(&Mounted, Vec<u8>, Vec<u8>), FileError> {
        let (from, one) = self.inside(one)?;
        let (to, other) = match self.inside(other) {
            Err(FileError::NotFound) => return Err(root_is_fixed()),
            target => target?,
        };
        if from.name != to.name {
            return Err(FileError::Refused {
                reason: "that lies in another place: copy it and remove it here",
            });
        }
        Ok((from, one, other))
    }
}

const fn root_is_fixed() -> FileError {
    FileError::Denied {
        reason: "nothing can be made beside the mount points",
    }
}

fn root_attributes() -> Attributes {
    Attributes::with_permissions(ROOT_MODE)
}

#[async_trait]
impl FileSystem for Mounts {
    async fn canonical(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        let mut absolute = vec![b'/'];
        absolute.extend(normal_path(path));
        Ok(absolute)
    }

    async fn expand(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        let rest = path.strip_prefix(b"~").unwrap_or(path);
        self.canonical(rest).await
    }

    async fn stat(&self, path: &[u8]) -> Result<Attributes, FileError> {
        match self.target(path)? {
            Target::Root => Ok(root_attributes()),
            Target::In(mounted, below) => mounted.files.stat(&below).await,
        }
    }

    async fn lstat(&self, path: &[u8]) -> Result<Attributes, FileError> {
        match self.target(path)? {
            Target::Root => Ok(root_attributes()),
            Target::In(mounted, below) => mounted.files.lstat(&below).await,
        }
    }

    async fn set_attributes(&self, path: &[u8], attributes: &Attributes) -> Result<(), FileError> {
        let (mounted, below) = self.inside(path)?;
        mounted.files.set_attributes(&below, attributes).await
    }

    async fn set_link_attributes(
        &self,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), FileError> {
        let (mounted, below) = self.inside(path)?;
        mounted.files.set_link_attributes(&below, attributes).await
    }

    async fn open(
        &self,
        path: &[u8],
        flags: OpenFlags,
        attributes: &Attributes,
    ) -> Result<Box<dyn OpenFile>, FileError> {
        let opened = match self.target(path) {
            Ok(Target::In(mounted, below)) => {
                let file = mounted.files.open(&below, flags, attributes).await?;
                MountedFile {
                    file,
                    name: mounted.name.clone(),
                }
            }
            Err(FileError::NotFound) if flags.contains(OpenFlags::CREATE) => {
                return Err(root_is_fixed());
            }
            Err(error) => return Err(error),
            Ok(Target::Root) => {
                return Err(FileError::Refused {
                    reason: "that is no regular file",
                });
            }
        };
        Ok(Box::new(opened))
    }

    async fn open_directory(&self, path: &[u8]) -> Result<Box<dyn OpenDirectory>, FileError> {
        match self.target(path)? {
            Target::In(mounted, below) => mounted.files.open_directory(&below).await,
            Target::Root => {
                let mut names = Vec::with_capacity(self.mounted.len());
                for mounted in &self.mounted {
                    // A place that cannot be looked at now is a directory nevertheless.
                    let attributes = mounted
                        .files
                        .stat(b"/")
                        .await
                        .unwrap_or_else(|_| root_attributes());
                    names.push(NameEntry {
                        name: Bytes::from(mounted.name.clone()),
                        long_name: Bytes::from(line_of(&mounted.name, &attributes, &self.names)),
                        attributes,
                    });
                }
                Ok(Box::new(RootDirectory { names }))
            }
        }
    }

    async fn make_directory(&self, path: &[u8], attributes: &Attributes) -> Result<(), FileError> {
        match self.inside(path) {
            Ok((mounted, below)) => mounted.files.make_directory(&below, attributes).await,
            Err(FileError::NotFound) => Err(root_is_fixed()),
            Err(_) => Err(FileError::Refused {
                reason: "it is there already",
            }),
        }
    }

    async fn remove_file(&self, path: &[u8]) -> Result<(), FileError> {
        let (mounted, below) = self.inside(path)?;
        mounted.files.remove_file(&below).await
    }

    async fn remove_directory(&self, path: &[u8]) -> Result<(), FileError> {
        let (mounted, below) = self.inside(path)?;
        mounted.files.remove_directory(&below).await
    }

    async fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        let (mounted, from, to) = self.both(from, to)?;
        mounted.files.rename(&from, &to).await
    }

    async fn rename_over(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        let (mounted, from, to) = self.both(from, to)?;
        mounted.files.rename_over(&from, &to).await
    }

    async fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        let (mounted, below) = self.inside(path)?;
        mounted.files.read_link(&below).await
    }

    async fn make_link(&self, target: &[u8], link: &[u8]) -> Result<(), FileError> {
        let (mounted, below) = self.inside(link)?;
        mounted.files.make_link(target, &below).await
    }

    async fn make_hard_link(&self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        let (mounted, from, to) = self.both(from, to)?;
        mounted.files.make_hard_link(&from, &to).await
    }

    async fn statistics(&self, path: &[u8]) -> Result<FilesystemStatistics, FileError> {
        match self.target(path)? {
            Target::Root => Err(FileError::Unsupported),
            Target::In(mounted, below) => mounted.files.statistics(&below).await,
        }
    }

    fn user_names(&self) -> &dyn UserNames {
        &self.names
    }

    fn hash_algorithms(&self) -> &'static [&'static str] {
        let mut all = self
            .mounted
            .iter()
            .map(|mounted| mounted.files.hash_algorithms());
        all.find(|algorithms| !algorithms.is_empty())
            .unwrap_or_default()
    }
}

/// The listing of the root.
struct RootDirectory {
    names: Vec<NameEntry>,
}

#[async_trait]
impl OpenDirectory for RootDirectory {
    async fn next(&mut self, limit: usize) -> Result<DirectoryBatch, FileError> {
        if self.names.is_empty() {
            return Ok(DirectoryBatch::End);
        }
        let some = self.names.drain(..limit.min(self.names.len())).collect();
        Ok(DirectoryBatch::Names(some))
    }

    async fn stat(&mut self) -> Result<Attributes, FileError> {
        Ok(root_attributes())
    }

    async fn set_attributes(&mut self, _attributes: &Attributes) -> Result<(), FileError> {
        Err(root_is_fixed())
    }

    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError> {
        Err(FileError::Unsupported)
    }
}

/// A file of a place, whose path begins with the name of the place.
struct MountedFile {
    file: Box<dyn OpenFile>,
    name: Vec<u8>,
}

#[async_trait]
impl OpenFile for MountedFile {
    async fn read_at(&mut self, offset: u64, into: &mut Vec<u8>) -> Result<usize, FileError> {
        self.file.read_at(offset, into).await
    }

    async fn write_at(&mut self, offset: u64, data: &[Bytes]) -> Result<(), FileError> {
        self.file.write_at(offset, data).await
    }

    async fn stat(&mut self) -> Result<Attributes, FileError> {
        self.file.stat().await
    }

    async fn set_attributes(&mut self, attributes: &Attributes) -> Result<(), FileError> {
        self.file.set_attributes(attributes).await
    }

    async fn sync(&mut self) -> Result<(), FileError> {
        self.file.sync().await
    }

    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError> {
        self.file.statistics().await
    }

    async fn hash(
        &mut self,
        algorithm: &'static str,
        range: HashRange,
    ) -> Result<Vec<u8>, FileError> {
        self.file.hash(algorithm, range).await
    }

    async fn close(self: Box<Self>) -> Result<Closed, FileError> {
        let mut closed = self.file.close().await?;
        if let Some(upload) = &mut closed.upload {
            let mut path = vec![b'/'];
            path.extend_from_slice(&self.name);
            path.append(&mut upload.path);
            upload.path = path;
        }
        Ok(closed)
    }
}
