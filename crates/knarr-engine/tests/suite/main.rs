//! The engine between real directories and servers.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail by panic, and plays the world outside"
)]

mod local;
mod node;
mod support;
mod two_way;
