//! Copies many files from one root to another, with few calls per file and few flushes per batch.
//!
//! * For files that are neither very large nor sparse; those go through [`crate::stage`] one by one.
//! * One buffer of [`BUFFER_BYTES`] and at most two open files per call, whatever the batch.
//! * Each file is looked at, read, hashed and looked at again. If it moved meanwhile, the attempt is
//!   void: what was read may be a mixture that never existed.
//! * Everything that could be staged is committed together by [`crate::commit`], with its order of
//!   steps. Contents are flushed through a handle that is opened before the first of them is written.
//!
//! Two calls may run at the same time on different threads. That is how to use two cores: one waits
//! for the disk while the other reads.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use knarr_core::entry::{Entry, Kind};
use knarr_core::hash::ContentHash;
use knarr_core::path::RelPath;
use rustix::fs::{Mode, Stat};
use rustix::io::Errno;

use crate::commit::{CommitError, Committed, Durability, commit_guarded};
use crate::error::{ErrorClass, FsError, ShownPath};
use crate::root::{Directory, Handles, Replace, Root};
use crate::stage::{
    Seal, Staged, StagedName, create_staged, read_some, remove_staged, unsupported_is_fine,
};
use crate::sys::{self, split_name};

/// How much of a file is read at once.
pub const BUFFER_BYTES: usize = 256 * 1024;

/// One file to copy.
#[derive(Debug, Clone)]
pub struct CopyRequest {
    /// Where it is, below the source's root.
    pub source: RelPath,
    /// Where it goes, below the destination's root.
    pub destination: RelPath,
    /// The identifier of the staged file; the same at every attempt, another for every path.
    pub id: u64,
    /// What may be replaced.
    pub replace: Replace,
}

/// Whether the destination is read back before it gets its final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// The length is checked.
    #[default]
    Length,
    /// The staged file is read and hashed after it was flushed, and must be equal. What is read comes
    /// from the page cache if it is still there.
    ReadBack,
}

/// Which permissions the copies get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Permissions {
    /// Those of the source.
    #[default]
    Source,
    /// Those of any new file of this process.
    New,
}

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Whether to wait for the disk.
    pub durability: Durability,
    /// How the copies are verified.
    pub verify: Verify,
    /// Which permissions they get.
    pub permissions: Permissions,
}

/// A file that was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// What was read, with its hash.
    pub source: Entry,
    /// What is at the destination, with its hash if it was read back, and whether it is durable.
    pub destination: Committed,
}

/// Why a file was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source cannot be read.
    #[error("the source cannot be read")]
    Source(#[source] FsError),
    /// The source changed while it was read. Try again when it is quiet.
    #[error("\"{path}\" changed while it was read")]
    SourceChanged {
        /// Where.
        path: ShownPath,
    },
    /// The destination cannot be written.
    #[error("the destination cannot be written")]
    Destination(#[source] FsError),
    /// What was read back is not what was written. The staged file was removed.
    #[error("\"{path}\" was read back and is not what was written; check the disk and the memory")]
    Damaged {
        /// Where.
        path: ShownPath,
    },
    /// The commit failed.
    #[error("the copy could not be committed")]
    Commit(#[source] CommitError),
    /// Two requests of the batch have the same identifier; only the first is carried out.
    #[error("the identifier of \"{path}\" was given to another file of the batch")]
    IdentifierTaken {
        /// Where.
        path: ShownPath,
    },
    /// The caller asked to stop before it was this one's turn.
    #[error("it was cancelled")]
    Cancelled,
}

impl CopyError {
    /// What it means for a retry.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Source(error) | Self::Destination(error) => error.class(),
            Self::SourceChanged { .. } | Self::IdentifierTaken { .. } | Self::Cancelled => {
                ErrorClass::Transient
            }
            Self::Damaged { .. } => ErrorClass::Device,
            Self::Commit(error) => error.class(),
        }
    }
}

/// Whoever wants to know how far a batch is, and may stop it.
pub trait CopyObserver: Send + Sync {
    /// So many bytes more were read and staged.
    fn copied_bytes(&self, count: u64);

    /// Asked before each file and each buffer.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Nobody wants to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl CopyObserver for NoObserver {
    fn copied_bytes(&self, _count: u64) {}
}

/// Copies all of `requests`, and returns a result for each, in their order. Missing directories are
/// made. A file that fails does not hold up the others.
#[must_use = "a file is only copied if its result says so"]
pub fn copy_batch(
    source: &Root,
    destination: &Root,
    requests: &[CopyRequest],
    options: &CopyOptions,
    observer: &dyn CopyObserver,
) -> Vec<Result<Copied, CopyError>> {
    // Opened before anything is written, and used by nobody else: see `crate::commit`.
    let guard = match sys::open_listing(destination.as_fd()) {
        Ok(guard) => File::from(guard),
        Err(errno) => {
            let failed =
                || CopyError::Destination(destination.error("open directory", None, errno));
            return requests.iter().map(|_| Err(failed())).collect();
        }
    };
    let mut lane = Lane {
        sources: Handles::new(source),
        destinations: Handles::new(destination),
        options,
        observer,
        identifiers: HashSet::with_capacity(requests.len()),
        buffer: vec![0; BUFFER_BYTES],
    };
    let mut staged = Vec::with_capacity(requests.len());
    let mut results: Vec<Result<Entry, CopyError>> = Vec::with_capacity(requests.len());
    for request in requests {
        results.push(lane.stage(request).map(|(entry, file)| {
            staged.push(file);
            entry
        }));
    }
    if options.verify == Verify::ReadBack {
        lane.verify(&guard, &mut staged, &mut results);
    }
    drop(lane);
    let mut committed = commit_guarded(destination, staged, options.durability, &guard).into_iter();
    results
        .into_iter()
        .map(|result| {
            let source = result?;
            let committed = committed.next().ok_or(CopyError::Cancelled)?;
            let mut destination = committed.map_err(CopyError::Commit)?;
            if options.verify == Verify::ReadBack {
                destination.entry.hash = source.hash;
            }
            Ok(Copied {
                source,
                destination,
            })
        })
        .collect()
}

struct Lane<'a> {
    sources: Handles,
    destinations: Handles,
    options: &'a CopyOptions,
    observer: &'a dyn CopyObserver,
    identifiers: HashSet<u64>,
    buffer: Vec<u8>,
}

impl Lane<'_> {
    fn stage(&mut self, request: &CopyRequest) -> Result<(Entry, Staged), CopyError> {
        if self.observer.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        if !self.identifiers.insert(request.id) {
            let path = self
                .destinations
                .root()
                .display_of(&request.destination)
                .into();
            return Err(CopyError::IdentifierTaken { path });
        }
        let (mut from, before) = self.open_source(&request.source)?;
        let (directory, _) = split_name(&request.destination);
        let directory = self
            .destinations
            .directory_or_make(directory)
            .map_err(CopyError::Destination)?;
        let name = StagedName::new(request.id);
        let (create_mode, set_mode) = self.modes(&before);
        let mut to = create_staged(&directory, name, create_mode)
            .map_err(|errno| self.destination_failed("stage", request, errno))?;
        let copied = self
            .copy_content(request, &mut from, &before, &mut to)
            .and_then(|hash| Ok((hash, self.finish(request, &before, &to, set_mode)?)));
        match copied {
            Ok((hash, seal)) => {
                let mut entry = sys::entry_of(request.source.clone(), &before);
                entry.hash = Some(hash);
                Ok((entry, staged(request, directory, name, seal)))
            }
            Err(error) => {
                remove_staged(&directory, name);
                Err(error)
            }
        }
    }

    fn open_source(&mut self, path: &RelPath) -> Result<(File, Stat), CopyError> {
        let root = self.sources.root().clone();
        let failed = |operation, errno| CopyError::Source(root.error(operation, Some(path), errno));
        let not_a_file = || {
            CopyError::Source(FsError::NotAFile {
                path: root.display_of(path).into(),
            })
        };
        let (directory, name) = split_name(path);
        let directory = self
            .sources
            .directory(directory)
            .map_err(|errno| failed("open", errno))?;
        let opened =
            sys::retrying(|| rustix::fs::openat(&directory, name, sys::READING, Mode::empty()));
        let file = match opened {
            Ok(file) => File::from(file),
            Err(Errno::LOOP | Errno::NXIO) => return Err(not_a_file()),
            Err(errno) => return Err(failed("open", errno)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed("look at", errno))?;
        if sys::kind_of(&stat) == Kind::File {
            Ok((file, stat))
        } else {
            Err(not_a_file())
        }
    }

    /// The mode to create with, and the one to set afterwards where the process's mask would take
    /// bits away.
    fn modes(&self, source: &Stat) -> (u32, Option<u32>) {
        match self.options.permissions {
            Permissions::New => (0o666, None),
            Permissions::Source => {
                let wanted = source.st_mode & 0o1777;
                let lost = sys::umask().is_none_or(|mask| wanted & mask != 0) || wanted > 0o777;
                // Until then it must not be readable by more than it will be in the end.
                (wanted & 0o777, lost.then_some(wanted))
            }
        }
    }

    fn copy_content(
        &mut self,
        request: &CopyRequest,
        from: &mut File,
        before: &Stat,
        to: &mut File,
    ) -> Result<ContentHash, CopyError> {
        let shown = || self.sources.root().display_of(&request.source);
        let read_failed = |error| CopyError::Source(FsError::io("read", shown(), error));
        let size = sys::size_of(before);
        let mut hasher = None;
        let mut copied = 0;
        loop {
            let count = read_some(from, &mut self.buffer).map_err(read_failed)?;
            let bytes = self.buffer.get(..count).unwrap_or_default();
            let last = count < self.buffer.len() && copied + count as u64 >= size;
            if count > 0 {
                if let Err(error) = to.write_all(bytes) {
                    let path = self.destinations.root().display_of(&request.destination);
                    return Err(CopyError::Destination(FsError::io("write", path, error)));
                }
                copied += count as u64;
                self.observer.copied_bytes(count as u64);
            }
            if last || count == 0 {
                let after = rustix::fs::fstat(&*from).map_err(|errno| read_failed(errno.into()))?;
                if !is_unchanged(before, &after) || copied != size {
                    return Err(CopyError::SourceChanged {
                        path: shown().into(),
                    });
                }
                return Ok(match hasher {
                    // Most files fit into the buffer.
                    None => blake3::hash(bytes).into(),
                    Some(mut hasher) => {
                        let hasher: &mut blake3::Hasher = &mut hasher;
                        hasher.update(bytes);
                        hasher.finalize().into()
                    }
                });
            }
            hasher.get_or_insert_with(blake3::Hasher::new).update(bytes);
            if self.observer.is_cancelled() {
                return Err(CopyError::Cancelled);
            }
        }
    }

    /// Sets time and permissions, checks the length, and returns what it is now.
    fn finish(
        &self,
        request: &CopyRequest,
        before: &Stat,
        to: &File,
        mode: Option<u32>,
    ) -> Result<Seal, CopyError> {
        let failed = |operation, errno| self.destination_failed(operation, request, errno);
        if let Some(mode) = mode {
            rustix::fs::fchmod(to, Mode::from_raw_mode(mode))
                .or_else(unsupported_is_fine)
                .map_err(|errno| failed("set the permissions of", errno))?;
        }
        rustix::fs::futimens(to, &sys::modified_at(sys::mtime_of(before)))
            .map_err(|errno| failed("set the time of", errno))?;
        let stat = rustix::fs::fstat(to).map_err(|errno| failed("look at", errno))?;
        let (expected, found) = (sys::size_of(before), sys::size_of(&stat));
        if found != expected {
            let path = self
                .destinations
                .root()
                .display_of(&request.destination)
                .into();
            return Err(CopyError::Destination(FsError::Length {
                path,
                expected,
                found,
            }));
        }
        Ok(Seal::of(&stat))
    }

    fn destination_failed(
        &self,
        operation: &'static str,
        request: &CopyRequest,
        errno: Errno,
    ) -> CopyError {
        let root = self.destinations.root();
        CopyError::Destination(root.error(operation, Some(&request.destination), errno))
    }

    /// Reads every staged file back and drops those that are not what was written.
    fn verify(
        &mut self,
        guard: &File,
        staged: &mut Vec<Staged>,
        results: &mut [Result<Entry, CopyError>],
    ) {
        if self.options.durability == Durability::Durable
            && let Err(errno) = sys::sync_file_system(guard.as_fd())
            && !matches!(errno, Errno::NOSYS | Errno::INVAL | Errno::NOTSUP)
        {
            // The commit's own flush would no longer report this.
            let root = self.destinations.root().clone();
            for (result, staged) in results
                .iter_mut()
                .filter(|r| r.is_ok())
                .zip(staged.drain(..))
            {
                let error = root.error("flush", Some(&staged.path), errno);
                *result = Err(CopyError::Commit(CommitError::Flush(error)));
                staged.abort();
            }
            return;
        }
        let mut kept = Vec::with_capacity(staged.len());
        for (result, file) in results
            .iter_mut()
            .filter(|r| r.is_ok())
            .zip(staged.drain(..))
        {
            let wanted = result.as_ref().ok().and_then(|entry| entry.hash);
            match self.read_back(&file) {
                Ok(hash) if Some(hash) == wanted => kept.push(file),
                Ok(_) => {
                    let path = self.destinations.root().display_of(&file.path).into();
                    *result = Err(CopyError::Damaged { path });
                    file.abort();
                }
                Err(error) => {
                    *result = Err(CopyError::Destination(error));
                    file.abort();
                }
            }
        }
        *staged = kept;
    }

    fn read_back(&mut self, staged: &Staged) -> Result<ContentHash, FsError> {
        let root = self.destinations.root();
        let name = staged.name.as_bytes();
        let (mut file, _) = root.open_file_in(&staged.directory, &staged.path, name)?;
        let mut hasher = blake3::Hasher::new();
        loop {
            let count = read_some(&mut file, &mut self.buffer)
                .map_err(|error| FsError::io("read back", root.display_of(&staged.path), error))?;
            if count == 0 {
                return Ok(hasher.finalize().into());
            }
            hasher.update(self.buffer.get(..count).unwrap_or_default());
        }
    }
}

fn staged(request: &CopyRequest, directory: Directory, name: StagedName, seal: Seal) -> Staged {
    Staged {
        path: request.destination.clone(),
        directory,
        name,
        file: None,
        opened: 0,
        seal,
        replace: request.replace.clone(),
    }
}

/// Whether a file is as it was when reading began. The time of the last status change moves with every
/// write, even with one that sets the modification time back.
fn is_unchanged(before: &Stat, after: &Stat) -> bool {
    before.st_size == after.st_size
        && before.st_mtime == after.st_mtime
        && before.st_mtime_nsec == after.st_mtime_nsec
        && before.st_ctime == after.st_ctime
        && before.st_ctime_nsec == after.st_ctime_nsec
}

/// Reads a file to its end into nothing but its hash, for looking again at what was delivered.
///
/// # Errors
/// If it cannot be read.
pub fn hash_file(root: &Root, path: &RelPath) -> Result<(Entry, ContentHash), FsError> {
    let (mut file, entry) = root.open_file(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(|error| FsError::io("read", root.display_of(path), error))?;
        if count == 0 {
            let hash = ContentHash::from(hasher.finalize());
            return Ok((
                Entry {
                    hash: Some(hash),
                    ..entry
                },
                hash,
            ));
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
    }
}
