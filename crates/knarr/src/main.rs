//! The command line of Knarr.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The one crypto provider of the program, chosen before anything can speak TLS.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("nothing can have chosen a provider before the first line of main");
    knarr::main()
}
