//! The integration tests of knarr-remote, in one binary.

mod decorators;
mod local;
mod memory;
mod sabotage;
mod object;
mod object_faults;
mod object_support;
mod sftp;
mod sftp_faults;
mod sftp_hostile;
mod sftp_support;
mod ssh;
