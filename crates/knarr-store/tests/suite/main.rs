//! The store, tested through its public interface.
#![expect(
    clippy::unwrap_used,
    reason = "in tests, in their helpers too, a panic is the failure"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the world outside: they damage, copy and move files as they like"
)]

mod batches;
mod crash;
mod custody;
mod damage;
mod definitions;
mod dirty;
mod dirty_model;
mod fixture;
mod history;
mod intents;
mod odds;
mod opening;
mod outbox;
mod retention;
mod runs;
mod secrets;
mod synced;
mod transactions;
