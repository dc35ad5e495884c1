//! Memory does not grow with the number of files.

use std::fs;
use std::path::Path;

use crate::program::Place;

const MIB: u64 = 1 << 20;

/// The most memory that a copy of so many files took, in bytes.
fn peak(files: u32) -> u64 {
    let place = Place::new();
    for directory in 0..50 {
        let directory = place.path(&format!("in/directory-{directory}"));
        fs::create_dir_all(&directory).unwrap();
        make_empty_files(&directory, files / 50);
    }
    let measured = place.path("peak");
    let mut command = std::process::Command::new("python3");
    let script = "\
import resource, subprocess, sys
status = subprocess.run(sys.argv[2:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=open(sys.argv[1], 'w'))
sys.exit(status)
";
    let knarr = place.command(&["copy", "in", "out"]);
    command
        .arg("-c")
        .arg(script)
        .arg(&measured)
        .arg(knarr.get_program())
        .args(knarr.get_args());
    command
        .current_dir(place.path("."))
        .env("KNARR_STATE", place.path("state"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let kibibytes: u64 = fs::read_to_string(measured)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    kibibytes * 1024
}

fn make_empty_files(directory: &Path, count: u32) {
    for number in 0..count {
        fs::File::create(directory.join(format!("file-{number:06}"))).unwrap();
    }
}

/// With the fewer files the queues are full already; what more files cost would be growth.
#[test]
fn k10_the_memory_of_a_copy_does_not_grow_with_the_number_of_files() {
    let (few, many) = (peak(12_000), peak(36_000));
    let grown = many.saturating_sub(few);
    assert!(
        grown < 20 * MIB,
        "{few} bytes for 12,000 files, {many} for 36,000: {grown} more"
    );
}
