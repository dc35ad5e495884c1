//! From what the protocol tells to what the server tells.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use knarr_sftp::server::{Event, Observer, Operation};

use crate::event::{FileEnd, ServeEvent, Verdict};
use crate::places::UserFiles;
use crate::ssh::connection::Connection;

/// Uploads of a channel that are remembered, to know them when they are renamed.
const REMEMBERED: usize = 1000;

/// Tells what a channel does, with whose it is.
pub(crate) struct Observed {
    pub(crate) connection: Arc<Connection>,
    pub(crate) user: String,
    pub(crate) files: Arc<UserFiles>,
    uploads: Mutex<VecDeque<(Vec<u8>, u64)>>,
}

/// A file that was open.
struct File<'a> {
    path: &'a [u8],
    read_bytes: u64,
    written_bytes: u64,
    uploaded_bytes: Option<u64>,
}

impl Observed {
    pub(crate) fn new(connection: Arc<Connection>, user: String, files: Arc<UserFiles>) -> Self {
        Self {
            connection,
            user,
            files,
            uploads: Mutex::default(),
        }
    }

    fn tell(&self, event: &ServeEvent<'_>) {
        self.connection.shared.observer.observe(event);
    }

    fn uploaded(&self, path: &[u8], length_bytes: Option<u64>, verdict: Verdict) {
        let at = self.files.locate(path);
        self.tell(&ServeEvent::Uploaded {
            session: &self.connection.name,
            user: &self.user,
            path,
            at: &at,
            length_bytes,
            verdict,
        });
    }

    /// What was uploaded as `from` is called `to` now.
    fn renamed(&self, from: &[u8], to: &[u8]) {
        let (from, to) = (self.files.absolute(from), self.files.absolute(to));
        let known = {
            let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
            let index = uploads.iter().position(|(path, _)| *path == from);
            index.and_then(|index| uploads.remove(index))
        };
        if let Some((_, length_bytes)) = known {
            self.uploaded(&to, Some(length_bytes), Verdict::Renamed);
            self.remember(to, length_bytes);
        }
    }

    fn remember(&self, path: Vec<u8>, length_bytes: u64) {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        if uploads.len() >= REMEMBERED {
            uploads.pop_front();
        }
        uploads.push_back((path, length_bytes));
    }

    fn closed(&self, file: &File<'_>, end: FileEnd) {
        let less = |now: usize| Some(now.saturating_sub(1));
        let open = &self.connection.open_files;
        open.fetch_update(Ordering::AcqRel, Ordering::Acquire, less)
            .ok();
        self.tell(&ServeEvent::Closed {
            session: &self.connection.name,
            user: &self.user,
            path: file.path,
            read_bytes: file.read_bytes,
            written_bytes: file.written_bytes,
            uploaded_bytes: file.uploaded_bytes,
            end,
        });
    }
}

impl Observer for Observed {
    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Request {
                operation,
                path,
                other,
                outcome,
            } => {
                if *operation == Operation::Open && outcome.is_ok() {
                    self.connection.open_files.fetch_add(1, Ordering::AcqRel);
                }
                self.tell(&ServeEvent::Operation {
                    session: &self.connection.name,
                    user: &self.user,
                    operation: *operation,
                    path,
                    other: *other,
                    outcome: *outcome,
                });
                let renames = matches!(operation, Operation::Rename | Operation::PosixRename);
                if let (true, true, Some(to)) = (renames, outcome.is_ok(), other) {
                    self.renamed(path, to);
                }
            }
            Event::Closed {
                path,
                read_bytes,
                written_bytes,
                uploaded_bytes,
                outcome,
            } => {
                let file = File {
                    path,
                    read_bytes: *read_bytes,
                    written_bytes: *written_bytes,
                    uploaded_bytes: *uploaded_bytes,
                };
                let end = match outcome {
                    Ok(()) => FileEnd::Closed,
                    Err(_) => FileEnd::Failed,
                };
                self.closed(&file, end);
            }
            Event::Abandoned {
                path,
                written_bytes,
            } => {
                let file = File {
                    path,
                    read_bytes: 0,
                    written_bytes: *written_bytes,
                    uploaded_bytes: None,
                };
                self.closed(&file, FileEnd::Abandoned);
            }
            Event::Uploaded { path, length_bytes } => {
                self.uploaded(path, Some(*length_bytes), Verdict::Closed);
                self.remember(path.to_vec(), *length_bytes);
            }
            _ => {}
        }
    }
}
