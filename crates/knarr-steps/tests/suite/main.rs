//! Tests of the steps through their public face.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests lay out files for other programs, and poll what they wait for"
)]

mod age;
mod bombs;
mod chunking;
mod damage;
mod files;
mod interop;
mod layers;
mod members;
mod memory;
mod openpgp;
mod openpgp_hostile;
mod programs;
mod round_trips;
mod spec;
mod support;
mod tar_archives;
mod tar_builder;
mod zip_archives;
mod zip_builder;
