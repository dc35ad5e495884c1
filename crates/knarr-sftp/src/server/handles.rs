//! What a client has open.

use std::collections::HashMap;

use bytes::Bytes;

use crate::server::{FileError, OpenDirectory, OpenFile};

/// A file that is open.
pub(crate) struct File {
    pub(crate) file: Box<dyn OpenFile>,
    pub(crate) path: Vec<u8>,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
}

/// Something that is open.
pub(crate) enum Open {
    File(File),
    Directory(Box<dyn OpenDirectory>),
}

/// Everything that is open on a connection, by handles that are never given out twice.
pub(crate) struct Handles {
    open: HashMap<u64, Open>,
    next: u64,
    limit: usize,
}

const UNKNOWN: FileError = FileError::Refused {
    reason: "no such handle is open",
};

impl Handles {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            open: HashMap::new(),
            next: 1,
            limit,
        }
    }

    /// Whether one more may be opened.
    pub(crate) fn check_room(&self) -> Result<(), FileError> {
        if self.open.len() < self.limit {
            Ok(())
        } else {
            Err(FileError::Refused {
                reason: "too many files and directories are open: close some first",
            })
        }
    }

    pub(crate) fn insert(&mut self, open: Open) -> Bytes {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, open);
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    pub(crate) fn get(&mut self, handle: &[u8]) -> Result<&mut Open, FileError> {
        number_of(handle)
            .and_then(|number| self.open.get_mut(&number))
            .ok_or(UNKNOWN)
    }

    pub(crate) fn file(&mut self, handle: &[u8]) -> Result<&mut File, FileError> {
        match self.get(handle)? {
            Open::File(file) => Ok(file),
            Open::Directory(_) => Err(FileError::Refused {
                reason: "the handle is that of a directory",
            }),
        }
    }

    pub(crate) fn directory(
        &mut self,
        handle: &[u8],
    ) -> Result<&mut Box<dyn OpenDirectory>, FileError> {
        match self.get(handle)? {
            Open::Directory(directory) => Ok(directory),
            Open::File(_) => Err(FileError::Refused {
                reason: "the handle is that of a file",
            }),
        }
    }

    pub(crate) fn remove(&mut self, handle: &[u8]) -> Result<Open, FileError> {
        number_of(handle)
            .and_then(|number| self.open.remove(&number))
            .ok_or(UNKNOWN)
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Open> {
        std::mem::take(&mut self.open).into_values()
    }
}

fn number_of(handle: &[u8]) -> Option<u64> {
    handle.try_into().ok().map(u64::from_be_bytes)
}
