//! The engine between real directories and servers.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail by panic, and plays the world outside"
)]

mod announce;
mod care;
mod choosing;
mod control;
mod extras;
mod holding;
mod icap;
mod local;
mod node;
mod node_after;
mod outbox;
mod pickup;
mod recovery;
mod steps;
mod support;
mod together;
mod two_way;
