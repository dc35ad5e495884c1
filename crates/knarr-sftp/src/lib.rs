//! Speaks SFTP version 3 over any byte stream: codec, pipelined client, server.
//!
//! Constraints:
//!
//! * Names, paths and handles are bytes, never text: what a server calls a file is passed on as it
//!   is, and is no path until the caller has checked it.
//! * Nothing the peer sends is trusted: lengths are checked against what is really there, counts
//!   never size an allocation by themselves, and a reply that nobody asked for ends the connection.
//! * Every queue has a limit, in requests and in bytes, and the side that receives never waits for
//!   the side that consumes. A client that stops reading while its requests are being answered is how
//!   SSH channels deadlock.
//!
//! What is spoken: draft-ietf-secsh-filexfer-02 and the extensions of OpenSSH's `PROTOCOL` file. How
//! the bytes travel is the caller's: see [`client::PacketSource`] and [`client::PacketSink`].

pub mod client;
pub mod codec;
mod cutter;
mod names;
pub mod server;

pub use client::{Client, ClientOptions, Error, Handle};
pub use codec::{Attributes, FileType, NameEntry, OpenFlags, StatusCode};
