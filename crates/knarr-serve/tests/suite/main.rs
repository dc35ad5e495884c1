//! The integration tests of knarr-serve, in one binary.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of tests panic, as the tests do"
)]

mod clients;
mod confined;
mod exchange;
mod gate;
mod hostile;
mod login;
mod places;
mod protocol;
mod questions;
mod sessions;
mod states;
mod support;
