//! Integration tests: the real sftp-server of OpenSSH, and a scripted one that breaks every rule.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod codec;
mod corpus;
mod disorder;
mod files;
mod hostile;
mod openssh;
mod script;
mod server;
mod streams;
