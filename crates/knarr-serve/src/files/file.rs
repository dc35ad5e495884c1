//! A file that a client has open.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_sftp::codec::{Attributes, FilesystemStatistics, OpenFlags};
use knarr_sftp::server::{Closed, FileError, HashRange, OpenFile, Upload};
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;

use crate::files::attributes::{attributes_of, mode_of, set_open, size_of, statistics_of};
use crate::files::hash;
use crate::files::local::{Flush, Shared, Uploads};
use crate::files::place::{Place, failed, retrying};
use crate::files::policy::Permission;
use crate::files::staged::{self, Staged};

/// Pieces of a WRITE that are given to the kernel at once.
const PIECES: usize = 64;

/// Whether everything that was written arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// It is open for reading only.
    None,
    /// It did.
    Whole,
    /// Something is missing.
    Failed,
}

pub(crate) struct LocalFile {
    shared: Arc<Shared>,
    /// Its path in normal form.
    path: Vec<u8>,
    file: OwnedFd,
    writes: Writes,
    staged: Option<Staged>,
    /// Whether the operating system writes at its end, wherever the client wants it.
    appends: bool,
    /// How much of an upload an earlier connection left, until this one has gone on with it.
    left_bytes: Option<u64>,
}

impl LocalFile {
    pub(crate) const fn staged(
        shared: Arc<Shared>,
        path: Vec<u8>,
        file: OwnedFd,
        staged: Staged,
        appends: bool,
        left_bytes: Option<u64>,
    ) -> Self {
        Self {
            shared,
            path,
            file,
            writes: Writes::Whole,
            staged: Some(staged),
            appends,
            left_bytes,
        }
    }

    /// Before the first WRITE to what an earlier connection left: it goes on with that, or begins anew. What
    /// is neither must not be published, as it would be made of two (K2).
    fn go_on(&mut self, offset: u64) -> Result<(), FileError> {
        let Some(left) = self.left_bytes else {
            return Ok(());
        };
        if offset > left {
            return Err(FileError::Invalid {
                reason: "an earlier upload left less than that: go on at its end, or begin anew",
            });
        }
        if offset < left {
            // What lies behind is of the earlier upload.
            truncate(&self.shared, self.file.as_fd(), offset)?;
        }
        self.left_bytes = None;
        Ok(())
    }

    /// Writes all; where there is an account, it pays for what the file grows by.
    fn write(&mut self, offset: u64, data: &[Bytes]) -> Result<(), FileError> {
        let length = data.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let Some(account) = self.shared.policy.account().cloned() else {
            return self.write_all(offset, data);
        };
        let growing = account.lengths();
        let before = size_of(&rustix::fs::fstat(&self.file).map_err(failed)?);
        // Whatever the client names as offset, what is appended stands at the end.
        let begin = if self.appends { before } else { offset };
        let more = begin.saturating_add(length).saturating_sub(before);
        if more == 0 {
            drop(growing);
            return self.write_all(offset, data);
        }
        account.take_bytes(more)?;
        let written = self.write_all(offset, data);
        if written.is_err() {
            let after = rustix::fs::fstat(&self.file).map_or(before, |stat| size_of(&stat));
            account.give_bytes(more.saturating_sub(after.saturating_sub(before)));
        }
        drop(growing);
        written
    }

    fn write_all(&mut self, mut offset: u64, data: &[Bytes]) -> Result<(), FileError> {
        // The whole WRITE in one call, as it nearly always goes; what is left of it, piece by piece.
        let mut skip = match data {
            [] => return Ok(()),
            pieces if pieces.len() <= PIECES => {
                let mut slices = [IoSlice::new(&[]); PIECES];
                for (slice, piece) in slices.iter_mut().zip(pieces) {
                    *slice = IoSlice::new(piece);
                }
                let slices = slices.get(..pieces.len()).unwrap_or_default();
                retrying(|| rustix::io::pwritev(&self.file, slices, offset)).map_err(failed)?
            }
            _ => 0,
        };
        offset += skip as u64;
        for piece in data {
            let mut left = piece.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(piece.len());
            while !left.is_empty() {
                let written =
                    retrying(|| rustix::io::pwrite(&self.file, left, offset)).map_err(failed)?;
                if written == 0 {
                    return Err(failed(Errno::IO));
                }
                left = left.get(written..).unwrap_or_default();
                offset += written as u64;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl OpenFile for LocalFile {
    async fn read_at(&mut self, offset: u64, into: &mut Vec<u8>) -> Result<usize, FileError> {
        if i64::try_from(offset).is_err() {
            // No file is that long, so this is behind its end.
            return Ok(0);
        }
        retrying(|| rustix::io::pread(&self.file, rustix::buffer::spare_capacity(into), offset))
            .map_err(failed)
    }

    async fn write_at(&mut self, offset: u64, data: &[Bytes]) -> Result<(), FileError> {
        if self.writes == Writes::None {
            return Err(FileError::Denied {
                reason: "the file was opened for reading",
            });
        }
        let outcome = match self.go_on(offset) {
            Ok(()) => self.write(offset, data),
            refused => refused,
        };
        if outcome.is_err() {
            self.writes = Writes::Failed;
        }
        outcome
    }

    async fn stat(&mut self) -> Result<Attributes, FileError> {
        let stat = rustix::fs::fstat(&self.file).map_err(failed)?;
        Ok(attributes_of(&stat))
    }

    async fn set_attributes(&mut self, attributes: &Attributes) -> Result<(), FileError> {
        let policy = &self.shared.policy;
        // Who uploads a file may say what it is like.
        if self.writes == Writes::None {
            policy.check(&self.path, Permission::SetAttributes)?;
        }
        if let Some(size) = attributes.size {
            if self.writes == Writes::None {
                return Err(FileError::Denied {
                    reason: "the file was opened for reading",
                });
            }
            truncate(&self.shared, self.file.as_fd(), size)?;
            self.left_bytes = None;
        }
        if let (Some(staged), true) = (&mut self.staged, attributes.permissions.is_some()) {
            staged.keep_permissions();
        }
        set_open(&self.shared.place, self.file.as_fd(), attributes)
    }

    async fn sync(&mut self) -> Result<(), FileError> {
        let outcome = retrying(|| rustix::fs::fsync(&self.file)).map_err(failed);
        if outcome.is_err() && self.writes == Writes::Whole {
            self.writes = Writes::Failed;
        }
        outcome
    }

    async fn statistics(&mut self) -> Result<FilesystemStatistics, FileError> {
        let statistics = rustix::fs::fstatvfs(&self.file).map_err(failed)?;
        Ok(statistics_of(&statistics))
    }

    async fn hash(
        &mut self,
        algorithm: &'static str,
        range: HashRange,
    ) -> Result<Vec<u8>, FileError> {
        // Its content is as good as told by the hashes of small blocks.
        self.shared.policy.check(&self.path, Permission::Download)?;
        hash::hash(self.file.as_fd(), algorithm, range)
    }

    async fn close(self: Box<Self>) -> Result<Closed, FileError> {
        let mut upload = None;
        match (self.staged, self.writes) {
            (_, Writes::None) | (None, Writes::Failed) => {}
            (Some(_), Writes::Failed) => {
                return Err(FileError::Refused {
                    reason: "not all was written: the upload is incomplete, and kept to be continued",
                });
            }
            (None, Writes::Whole) => {
                if self.shared.flush == Flush::AtClose {
                    retrying(|| rustix::fs::fsync(&self.file)).map_err(failed)?;
                }
                let stat = rustix::fs::fstat(&self.file).map_err(failed)?;
                upload = Some(size_of(&stat));
            }
            (Some(_), Writes::Whole) if self.left_bytes.is_some() => {
                return Err(FileError::Refused {
                    reason: "nothing was added to what an earlier upload left: it is kept to be continued",
                });
            }
            (Some(staged), Writes::Whole) => {
                upload = Some(staged.publish(&self.shared, &self.file)?);
            }
        }
        let upload = upload.map(|length_bytes| {
            let mut path = match self.shared.place {
                Place::Plain => Vec::new(),
                Place::Confined { .. } => vec![b'/'],
            };
            path.extend_from_slice(&self.path);
            Upload { path, length_bytes }
        });
        Ok(Closed { upload })
    }
}

/// Gives a file another length, if the account allows it.
pub(crate) fn truncate(shared: &Shared, file: BorrowedFd<'_>, size: u64) -> Result<(), FileError> {
    if i64::try_from(size).is_err() {
        return Err(FileError::Invalid {
            reason: "no file is that long",
        });
    }
    let Some(account) = shared.policy.account() else {
        return retrying(|| rustix::fs::ftruncate(file, size)).map_err(failed);
    };
    let growing = account.lengths();
    let before = size_of(&rustix::fs::fstat(file).map_err(failed)?);
    account.take_bytes(size.saturating_sub(before))?;
    let cut = retrying(|| rustix::fs::ftruncate(file, size)).map_err(failed);
    match cut {
        Ok(()) => account.give_bytes(before.saturating_sub(size)),
        Err(_) => account.give_bytes(size.saturating_sub(before)),
    }
    drop(growing);
    cut
}

/// Opens a file as a client wants it, if it may.
pub(crate) fn open(
    shared: &Arc<Shared>,
    path: Vec<u8>,
    flags: OpenFlags,
    attributes: &Attributes,
) -> Result<LocalFile, FileError> {
    let writes = flags.contains(OpenFlags::WRITE) || flags.contains(OpenFlags::APPEND);
    let reads = flags.contains(OpenFlags::READ) || !writes;
    if reads {
        shared.policy.check(&path, Permission::Download)?;
    }
    if !writes {
        return direct(shared, path, flags, OFlags::RDONLY, attributes);
    }
    let there = is_there(shared, &path)?;
    let permission = match there {
        There::Yes => Permission::Overwrite,
        There::No => Permission::Upload,
    };
    shared.policy.check(&path, permission)?;
    let wants_new = flags.contains(OpenFlags::TRUNCATE) || flags.contains(OpenFlags::EXCLUSIVE);
    let is_foreign_stage = path
        .rsplit(|byte| *byte == b'/')
        .next()
        .is_some_and(|name| name.starts_with(knarr_fs::root::OWN_PREFIX));
    // A Knarr at the other end stages by itself, and renames when it is done.
    if shared.uploads == Uploads::Staged && (there == There::No || wants_new) && !is_foreign_stage {
        let wanted = staged::Wanted {
            flags,
            attributes,
            is_there: there == There::Yes,
        };
        return staged::open(shared, path, &wanted);
    }
    let access = if reads { OFlags::RDWR } else { OFlags::WRONLY };
    // Who may not change what is there must not do so because it came a moment ago.
    let exclusive = if there == There::No && !shared.policy.at(&path).has(Permission::Overwrite) {
        OFlags::EXCL
    } else {
        OFlags::empty()
    };
    let account = shared
        .policy
        .account()
        .filter(|_| there == There::No && flags.contains(OpenFlags::CREATE));
    if let Some(account) = account {
        account.take_file()?;
    }
    let opened = direct(shared, path, flags, access | exclusive, attributes);
    if let (Err(_), Some(account)) = (&opened, account) {
        account.give_file();
    }
    opened
}

/// Whether something is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Yes,
    No,
}

fn is_there(shared: &Shared, path: &[u8]) -> Result<There, FileError> {
    let spot = shared.place.spot(path)?;
    match rustix::fs::statat(spot.at(), &*spot.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(There::Yes),
        Err(Errno::NOENT) => Ok(There::No),
        Err(errno) => Err(failed(errno)),
    }
}

fn direct(
    shared: &Arc<Shared>,
    path: Vec<u8>,
    flags: OpenFlags,
    access: OFlags,
    attributes: &Attributes,
) -> Result<LocalFile, FileError> {
    let writes = access.intersects(OFlags::WRONLY | OFlags::RDWR);
    // A FIFO must not hold the connection until somebody opens its other end.
    let mut how = access | OFlags::NONBLOCK | OFlags::NOCTTY;
    for (flag, is) in [
        (OpenFlags::APPEND, OFlags::APPEND),
        (OpenFlags::CREATE, OFlags::CREATE),
        (OpenFlags::EXCLUSIVE, OFlags::EXCL),
    ] {
        if writes && flags.contains(flag) {
            how |= is;
        }
    }
    let mode = mode_of(&shared.place, attributes.permissions.unwrap_or(0o666));
    let file = shared.place.open(&path, how, mode)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    if kind != FileType::RegularFile && !(is_device && matches!(shared.place, Place::Plain)) {
        return Err(FileError::Refused {
            reason: "that is no regular file",
        });
    }
    // Not by O_TRUNC: only here it is known what it is, and what the account gets back.
    if writes && flags.contains(OpenFlags::TRUNCATE) && stat.st_size > 0 {
        truncate(shared, file.as_fd(), 0)?;
    }
    Ok(LocalFile {
        shared: Arc::clone(shared),
        path,
        file,
        writes: if writes { Writes::Whole } else { Writes::None },
        staged: None,
        appends: flags.contains(OpenFlags::APPEND),
        left_bytes: None,
    })
}
