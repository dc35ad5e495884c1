//! Tells what clients do, for logs, audits and jobs that wait for an upload.

use crate::server::{FileError, Operation};

/// Something that happened. Names are as the client wrote them: nobody has checked them, and they are to be
/// escaped before they are shown.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A request about a name was carried out or refused. Reading and writing of what is open is not told one
    /// by one, see [`Event::Closed`].
    Request {
        /// What was asked for.
        operation: Operation,
        /// About what; empty where it was about an open file.
        path: &'a [u8],
        /// The other name, where there are two: the new name, or the link.
        other: Option<&'a [u8]>,
        /// What became of it.
        outcome: Result<(), &'a FileError>,
    },
    /// An open file was closed.
    Closed {
        /// Its name at the time it was opened.
        path: &'a [u8],
        /// Bytes that were read.
        read_bytes: u64,
        /// Bytes that were written.
        written_bytes: u64,
        /// The length of the upload that this made complete, in bytes: [`Event::Uploaded`] follows.
        uploaded_bytes: Option<u64>,
        /// How that went. What was written for an upload that could not be completed has no name.
        outcome: Result<(), &'a FileError>,
    },
    /// An upload is complete: it was closed, and stands under its name. This is when a job may take it.
    Uploaded {
        /// Its name, in the form that the file system uses: absolute from the client's root.
        path: &'a [u8],
        /// Its length in bytes.
        length_bytes: u64,
    },
    /// The connection ended while a file was open; what was written may be incomplete.
    Abandoned {
        /// Its name at the time it was opened.
        path: &'a [u8],
        /// Bytes that were written.
        written_bytes: u64,
    },
}

/// Is told what happens. Called in the middle of the work: it must not block for long.
pub trait Observer: Send + Sync {
    /// Takes note of `event`.
    fn observe(&self, event: &Event<'_>);
}

/// Takes note of nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&self, _event: &Event<'_>) {}
}
