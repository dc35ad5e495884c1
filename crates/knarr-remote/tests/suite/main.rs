//! The integration tests of knarr-remote, in one binary.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of tests panic, as the tests do"
)]

mod decorators;
mod local;
mod memory;
mod object;
mod object_faults;
mod object_resume;
mod object_support;
mod sabotage;
mod sftp;
mod sftp_faults;
mod sftp_hostile;
mod sftp_support;
mod ssh;
mod ssh_login;
