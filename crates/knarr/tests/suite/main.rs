//! The command line as a whole, run as a program.

mod configuration;
mod help;
mod program;
