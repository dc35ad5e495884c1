//! Files made by the programs that partners use.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use knarr_steps::Format;
use tempfile::NamedTempFile;

use crate::support::{decompress_chunks, text};

/// What the program makes of the content of a file: given by path, so that its name and time go
/// into the header, or on standard input.
fn output_of(program: &str, arguments: &[&str], path: Option<&Path>, content: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments).arg("-c").stderr(Stdio::inherit());
    match path {
        Some(path) => drop(command.arg("--").arg(path).stdin(Stdio::null())),
        None => drop(command.stdin(Stdio::from(unnamed_file(content)))),
    }
    let output = command.output().unwrap_or_else(|error| {
        panic!("{program} cannot be started ({error}): the setup of the tests installs it")
    });
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        output.status
    );
    output.stdout
}

fn unnamed_file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

/// Compresses with each of the sets of arguments, and expects the content back.
fn comes_back(format: Format, program: &str, argument_sets: &[&[&str]]) {
    for content in [text(600_000), b"x".to_vec(), Vec::new(), vec![0; 3_000_000]] {
        let mut named = NamedTempFile::new().unwrap();
        named.write_all(&content).unwrap();
        for arguments in argument_sets {
            for path in [None, Some(named.path())] {
                let whole = output_of(program, arguments, path, &content);
                let (output, summary) = decompress_chunks(whole.chunks(65_536), Some(format))
                    .unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}"));
                assert!(output == content, "{program} {arguments:?}");
                assert_eq!(summary.format, Some(format));
                assert_eq!(summary.members, 1);
            }
        }
    }
}

#[test]
fn files_made_by_gzip_come_back() {
    comes_back(
        Format::Gzip,
        "gzip",
        &[&[], &["-1"], &["-9"], &["-n"], &["-N"]],
    );
}

#[test]
fn files_made_by_xz_come_back() {
    comes_back(
        Format::Xz,
        "xz",
        &[
            &[],
            &["-0"],
            &["-6e"],
            &["--check=none"],
            &["--check=crc32"],
            &["--check=sha256"],
            &["-T2", "--block-size=100000"],
            &["--x86", "--lzma2=preset=1"],
            &["--delta=dist=4", "--lzma2=preset=1"],
        ],
    );
}

#[test]
fn files_made_by_bzip2_come_back() {
    comes_back(Format::Bzip2, "bzip2", &[&[], &["-1"], &["-9"]]);
}

#[test]
fn files_made_by_zstd_come_back() {
    comes_back(
        Format::Zstd,
        "zstd",
        &[
            &["-q"],
            &["-q", "-1"],
            &["-q", "-12"],
            &["-q", "--fast"],
            &["-q", "--no-check"],
            &["-q", "-3", "--long=24"],
            &["-q", "-T2"],
        ],
    );
}

#[test]
fn h12_a_file_of_xz_with_its_largest_preset_fits_into_the_memory_limit() {
    let content = text(10_000);
    let whole = output_of("xz", &["--lzma2=preset=1,dict=64MiB"], None, &content);
    assert!(decompress_chunks([&whole[..]], None).unwrap().0 == content);
}
