//! Makes the types and services of `proto/` with a compiler of protocol buffers in Rust.

use std::error::Error;

/// The files of the protocol, one a service.
const FILES: [&str; 11] = [
    "proto/knarr/v1/alerts.proto",
    "proto/knarr/v1/audit.proto",
    "proto/knarr/v1/endpoints.proto",
    "proto/knarr/v1/events.proto",
    "proto/knarr/v1/history.proto",
    "proto/knarr/v1/jobs.proto",
    "proto/knarr/v1/node.proto",
    "proto/knarr/v1/queue.proto",
    "proto/knarr/v1/runs.proto",
    "proto/knarr/v1/secrets.proto",
    "proto/knarr/v1/users.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .skip_debug([".knarr.v1.SetSecretRequest"])
        .compile_fds(descriptors)?;
    Ok(())
}
