//! Everything that needs a real disk.
#![expect(
    clippy::unwrap_used,
    reason = "what helps tests may panic as tests may"
)]

mod commit;
mod copy;
mod hostile;
mod kill;
mod own_files;
mod power_cut;
mod root;
mod small_disk;
mod support;
mod walk;
mod watch;
