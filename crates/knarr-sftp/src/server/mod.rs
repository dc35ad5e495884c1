//! A server whose requests are read, carried out and answered side by side.
//!
//! Constraints:
//!
//! * Requests are carried out one after the other, in the order in which they came, and answered in that
//!   order. So what the draft asks about requests on one file holds for all of them.
//! * What waits is bounded in bytes at both ends: requests that are not carried out yet
//!   ([`ServeLimits::request_bytes`]) and replies that are not sent yet ([`ServeLimits::reply_bytes`]). A READ
//!   is a small request with a large reply, so it waits as what it is: small. A client that sends thousands
//!   of them before it takes the first reply costs their few bytes each.
//! * Three activities never wait for each other but through those two queues. Receiving goes on while sending
//!   is stuck, until the first queue is full; nothing is carried out while there is no room for its reply.
//!   A client that takes its replies always gets on.
//! * Handles are numbers that are never given out twice on a connection, and belong to it alone.
//! * No byte of a client makes this panic or allocate more than the limits say. A packet that cannot be
//!   read but has an id is refused; one whose length is impossible ends the connection.
//!
//! What a file system does is up to [`FileSystem`]; how the bytes travel is up to the caller.

mod error;
mod exercise;
mod file_system;
mod framer;
mod handles;
mod limits;
mod observer;
mod open_files;
mod operation;
mod outbox;
mod queue;
mod serve;
mod session;

pub use error::{FileError, ServeError};
pub use exercise::exercise;
pub use file_system::{
    Closed, DirectoryBatch, FileSystem, HashRange, OpenDirectory, OpenFile, Upload, UserNames,
};
pub use limits::{Execution, ServeLimits, ServeOptions};
pub use observer::{Event, Observer, Silent};
pub use operation::{Operation, Operations};
pub use serve::{Summary, serve, serve_streams};
