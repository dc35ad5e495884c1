//! A client whose requests travel side by side on one connection.
//!
//! Constraints:
//!
//! * The task that receives never waits for anyone but the server: a reply goes into the slot of the
//!   task that asked, or is thrown away if that task is gone. So the server can always get rid of its
//!   replies, and takes requests again.
//! * Requests in flight are limited in number, and in bytes of what they carry and what they ask for.
//!   Who wants more waits before the request is sent, in order of arrival.
//! * Each request has a slot until its reply arrives, also if nobody waits for it any more. A reply
//!   without a slot, of another type than asked for, or larger than asked for is not tolerated: the
//!   connection fails, for everybody, with the reason.
//! * A handle is given back when its value is dropped, also if it arrives after its caller went away.
//! * Silence is measured on the connection, not for each request: a request may wait long behind
//!   others as long as bytes arrive.

mod answer;
mod connection;
mod core;
mod directory;
mod error;
mod file_reader;
mod file_writer;
mod framer;
mod handle;
mod operations;
mod stream;
mod tasks;

pub use connection::{Client, ClientOptions, TransferLimits};
pub use directory::{Directory, DirectoryOptions};
pub use error::{ConnectionError, Error};
pub use file_reader::{AtEnd, FileReader, ReadOptions};
pub use file_writer::{Durability, FileWriter, WriteOptions};
pub use handle::Handle;
pub use stream::{PacketSink, PacketSource, StreamSink, StreamSource};
