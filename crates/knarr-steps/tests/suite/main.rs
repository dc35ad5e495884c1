//! Tests of the steps through their public face.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod bombs;
mod chain;
mod chunking;
mod damage;
mod interop;
mod members;
mod spec;
mod support;
