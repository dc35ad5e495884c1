//! Full and read-only disks, at the destination and under the state.

use std::fs;

use knarr_testkit::data::TreeBuilder;
use knarr_testkit::needs_root;
use knarr_testkit::small_disk::SmallDisk;

use super::support::{TornReader, large_file, litter};
use crate::program::{Done, Place};

const MIB: u64 = 1 << 20;

fn copy(place: &Place, disk: &SmallDisk) -> Done {
    let destination = disk.path().join("out");
    place.run(&[
        "copy",
        "in",
        destination.to_str().unwrap(),
        "--attempts",
        "1",
    ])
}

#[track_caller]
fn converges(place: &Place, disk: &SmallDisk) {
    let destination = disk.path().join("out");
    let done = copy(place, disk);
    assert_eq!(done.code, 0, "{done:?}");
    let command = ["copy", "in", destination.to_str().unwrap()];
    place.check_end(&command, &place.path("in"), &destination);
    assert_eq!(litter(&destination), Vec::<String>::new());
}

#[test]
fn k2_k3_k7_r10_a_full_destination_fails_what_does_not_fit_and_space_heals_it() {
    needs_root!("a small disk");
    let place = Place::new();
    TreeBuilder::new(31)
        .files(40)
        .sizes(0..=2000)
        .build(&place.path("in"));
    large_file(&place.path("in/large"), 32, 20 * MIB);
    let disk = SmallDisk::new(8 * MIB, 10_000);
    let done = copy(&place, &disk);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.contains("large") && done.stderr.contains("space"),
        "{}",
        done.stderr
    );
    let destination = disk.path().join("out");
    TornReader::check_once(&place.path("in"), &destination);
    assert!(!destination.join("large").exists());
    place.check_record(&destination, "on a full disk");
    disk.resize(64 * MIB, 10_000);
    converges(&place, &disk);
}

#[test]
fn k2_k3_r10_a_full_destination_leaves_the_old_version_of_a_file_that_does_not_fit() {
    needs_root!("a small disk");
    let place = Place::new();
    place.write("in/report", "the old one");
    let disk = SmallDisk::new(4 * MIB, 10_000);
    converges(&place, &disk);
    large_file(&place.path("in/report"), 33, 10 * MIB);
    let done = copy(&place, &disk);
    assert_eq!(done.code, 1, "{done:?}");
    let there = fs::read_to_string(disk.path().join("out/report")).unwrap();
    assert_eq!(there, "the old one");
}

#[test]
fn k2_k3_k7_r12_a_destination_without_inodes_takes_what_fits_and_says_what_does_not() {
    needs_root!("a small disk");
    let place = Place::new();
    TreeBuilder::new(34)
        .files(60)
        .directories(2)
        .sizes(1..=2000)
        .build(&place.path("in"));
    let disk = SmallDisk::new(32 * MIB, 30);
    let done = copy(&place, &disk);
    assert_eq!(done.code, 1, "{done:?}");
    let destination = disk.path().join("out");
    TornReader::check_once(&place.path("in"), &destination);
    place.check_record(&destination, "without inodes");
    disk.resize(32 * MIB, 10_000);
    converges(&place, &disk);
}

#[test]
fn k3_k7_r11_a_full_disk_under_the_state_ends_the_run_and_space_heals_it() {
    needs_root!("a small disk");
    let place = Place::new();
    TreeBuilder::new(35)
        .files(3_000)
        .directories(30)
        .sizes(0..=100)
        .build(&place.path("in"));
    let disk = SmallDisk::new(MIB / 2, 10_000);
    let state = disk.path().join("state");
    let run = |arguments: &[&str]| -> Done {
        place
            .command(arguments)
            .env("KNARR_STATE", &state)
            .output()
            .unwrap()
            .into()
    };
    let done = run(&["copy", "in", "out"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("state directory"), "{}", done.stderr);
    disk.resize(64 * MIB, 10_000);
    let done = run(&["copy", "in", "out"]);
    assert_eq!(done.code, 0, "{done:?}");
    run(&["audit", "verify"]).good();
    let again = run(&["copy", "in", "out", "--json"]);
    let report = super::support::report(&again);
    assert_eq!(
        (&report["created"], &report["sent_bytes"]),
        (&0.into(), &0.into())
    );
    assert_eq!(litter(&place.path("out")), Vec::<String>::new());
}

#[test]
fn k3_k7_r09_a_read_only_destination_is_told_and_a_writable_one_heals_it() {
    needs_root!("a small disk");
    let place = Place::new();
    TreeBuilder::new(36).files(20).build(&place.path("in"));
    let disk = SmallDisk::new(32 * MIB, 10_000);
    disk.make_read_only();
    let done = copy(&place, &disk);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.to_lowercase().contains("read-only"),
        "{}",
        done.stderr
    );
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    disk.make_writable();
    converges(&place, &disk);
}

#[test]
fn k4_r09_a_move_to_a_read_only_destination_leaves_the_source() {
    needs_root!("a small disk");
    let place = Place::new();
    let files = TreeBuilder::new(37).files(20).build(&place.path("in"));
    let disk = SmallDisk::new(32 * MIB, 10_000);
    disk.make_read_only();
    let done = place.run(&[
        "move",
        "in",
        disk.path().to_str().unwrap(),
        "--attempts",
        "1",
    ]);
    assert_eq!(done.code, 1, "{done:?}");
    let left = knarr_testkit::data::read_tree(&place.path("in"), true).unwrap();
    let left = left
        .values()
        .filter(|node| matches!(node, knarr_testkit::data::Node::File { .. }))
        .count();
    assert_eq!(u64::try_from(left).unwrap(), files.files);
}
