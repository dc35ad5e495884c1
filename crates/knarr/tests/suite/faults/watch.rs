//! `knarr run` where watching is hard: lost events, storms of renames, edits of what is on its way.

use std::fs;
use std::path::Path;
use std::process::Command;

use knarr_testkit::data::{Compare, assert_same_tree, differences};
use knarr_testkit::proxy::FaultProxy;
use knarr_testkit::sshd::Sshd;
use knarr_testkit::{needs_root, wait_until};
use rustix::process::Signal;

use super::support::{PATIENCE, Running, large_file, sftp_endpoint};
use crate::program::Place;

const MIB: u64 = 1 << 20;

fn mirror_job(place: &Place) {
    fs::create_dir_all(place.path("in")).unwrap();
    place.write(
        "knarr.yaml",
        "jobs:\n  site:\n    watch: in\n    match: { settle: 100ms }\n    deletes: mirror\n    to: out/\n",
    );
}

fn is_equal(place: &Place) -> bool {
    // What changes while it is compared is not equal yet.
    differences(&place.path("in"), &place.path("out"), &Compare::content())
        .is_ok_and(|differences| differences.is_empty())
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

#[test]
fn k7_k9_r30_a_node_whose_events_were_lost_delivers_ten_thousand_changes_all_the_same() {
    let place = Place::new();
    mirror_job(&place);
    place.write("in/old", "deleted meanwhile");
    place.write("in/edited", "first");
    let node = Running::start(&place);
    wait_until(PATIENCE, "the first files", || is_equal(&place));
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    // It sleeps, so the kernel's queue of events runs over.
    node.signal(Signal::STOP);
    for directory in 0..20 {
        fs::create_dir(place.path(&format!("in/{directory}"))).unwrap();
    }
    let all = 10_000.max(limit / 4);
    for number in 0..all {
        place.write(&format!("in/{number}.csv"), number.to_string());
        if number % 7 == 0 {
            place.write(&format!("in/{}/{number}", number % 20), "below");
        }
    }
    for number in 0..all {
        // Each is closed after write once more.
        place.write(&format!("in/{number}.csv"), format!("{number} again"));
    }
    fs::remove_file(place.path("in/old")).unwrap();
    place.write("in/edited", "second");
    node.signal(Signal::CONT);
    wait_until(PATIENCE * 2, "everything", || {
        count(&place.path("out")) == count(&place.path("in")) && is_equal(&place)
    });
    node.terminate();
    place.run(&["audit", "verify"]).good();
}

/// The length of the kernel's queues of events, set back at the latest when the test ends.
struct QueueLength(String);

const QUEUE_LENGTH: &str = "/proc/sys/fs/inotify/max_queued_events";

impl QueueLength {
    /// A queue keeps the length it was made with. The setting is the whole machine's, so no other test
    /// may run meanwhile: `.config/nextest.toml` sees to that by this test's name.
    fn set(length: u32) -> Self {
        let before = fs::read_to_string(QUEUE_LENGTH).unwrap();
        fs::write(QUEUE_LENGTH, length.to_string()).unwrap();
        Self(before)
    }
}

impl Drop for QueueLength {
    fn drop(&mut self) {
        fs::write(QUEUE_LENGTH, self.0.trim()).ok();
    }
}

#[test]
fn k7_r30_with_a_queue_of_16_events_ten_thousand_changes_are_delivered() {
    needs_root!("the length of inotify's queue");
    let place = Place::new();
    mirror_job(&place);
    for directory in 0..20 {
        place.write(&format!("in/{directory}/first"), "first");
    }
    let length = QueueLength::set(16);
    let node = Running::start(&place);
    wait_until(PATIENCE, "the first files", || is_equal(&place));
    drop(length);
    for number in 0..10_000 {
        let directory = number % 20;
        place.write(
            &format!("in/{directory}/{}", number / 40),
            number.to_string(),
        );
        if number % 97 == 0 {
            let made = place.path(&format!("in/{directory}/d{number}/deep"));
            fs::create_dir_all(&made).unwrap();
            fs::write(made.join("file"), "below").unwrap();
        }
    }
    for directory in 0..20 {
        fs::remove_file(place.path(&format!("in/{directory}/first"))).unwrap();
    }
    wait_until(PATIENCE, "everything", || is_equal(&place));
    let log = fs::read_to_string(place.path("log")).unwrap();
    assert!(
        log.contains("events were lost"),
        "the queue ran over: {log}"
    );
    // What changes after the storm is seen at once, also where a directory was made in it.
    place.write("in/0/d0/deep/late", "late");
    wait_until(PATIENCE, "the last file", || is_equal(&place));
    node.terminate();
    assert_same_tree(&place.path("in"), &place.path("out"), &Compare::content());
    place.run(&["audit", "verify"]).good();
}

#[test]
fn k7_r33_ten_thousand_renames_of_directories_end_in_the_same_tree() {
    let place = Place::new();
    mirror_job(&place);
    for directory in 0..20 {
        for file in 0..3 {
            place.write(
                &format!("in/{directory}/below/{file}"),
                format!("{directory}/{file}"),
            );
        }
    }
    let node = Running::start(&place);
    wait_until(PATIENCE, "the first files", || is_equal(&place));
    let mut random = knarr_testkit::data::Random::new(81);
    let mut names: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    for number in 0..10_000 {
        let at = random.index(names.len());
        // Now a new name, now one that another directory had before.
        let new = format!("{}", 100 + random.below(40));
        if names.contains(&new) {
            continue;
        }
        let name = names.get_mut(at).unwrap();
        fs::rename(place.path("in").join(&*name), place.path("in").join(&new)).unwrap();
        if number % 500 == 0 {
            place.write(&format!("in/{new}/below/0"), format!("changed in {number}"));
        }
        *name = new;
    }
    wait_until(PATIENCE, "the same tree", || is_equal(&place));
    let exact = Compare::exact();
    wait_until(PATIENCE, "the same directories", || {
        differences(&place.path("in"), &place.path("out"), &exact)
            .is_ok_and(|differences| differences.is_empty())
    });
    node.terminate();
    assert_same_tree(&place.path("in"), &place.path("out"), &exact);
    place.run(&["audit", "verify"]).good();
}

#[test]
fn k2_k7_r08_directories_that_become_files_and_files_that_become_directories_are_mirrored() {
    let place = Place::new();
    mirror_job(&place);
    place.write("in/turns/one", "below");
    place.write("in/turns/deep/two", "below");
    place.write("in/file", "a file");
    let node = Running::start(&place);
    wait_until(PATIENCE, "the first files", || is_equal(&place));
    fs::remove_dir_all(place.path("in/turns")).unwrap();
    place.write("in/turns", "a file now");
    fs::remove_file(place.path("in/file")).unwrap();
    place.write("in/file/below", "a directory now");
    wait_until(PATIENCE, "the changes", || is_equal(&place));
    node.terminate();
    assert_same_tree(&place.path("in"), &place.path("out"), &Compare::exact());
}

#[test]
fn k2_k7_r49_what_is_deleted_and_made_again_within_milliseconds_arrives_in_its_last_version() {
    let place = Place::new();
    mirror_job(&place);
    for number in 0..10 {
        place.write(&format!("in/{number}"), "first");
    }
    let node = Running::start(&place);
    wait_until(PATIENCE, "the first files", || is_equal(&place));
    for round in 0..400 {
        let path = format!("in/{}", round % 10);
        fs::remove_file(place.path(&path)).unwrap();
        place.write(&path, format!("round {round}"));
        if round % 50 == 0 {
            // A file that becomes a directory and a file again.
            fs::remove_file(place.path(&path)).unwrap();
            place.write(&format!("{path}/below"), "short");
            fs::remove_dir_all(place.path(&path)).unwrap();
            place.write(&path, format!("round {round}"));
        }
    }
    wait_until(PATIENCE, "the last versions", || is_equal(&place));
    node.terminate();
}

#[test]
fn k2_k7_r35_a_file_that_is_edited_on_its_way_arrives_in_its_last_version() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).throttle(8 * MIB).start();
    let place = Place::new();
    fs::create_dir(place.path("in")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "endpoints:\n{}jobs:\n  feed:\n    watch: in\n    match: {{ settle: 100ms }}\n    to: \"partner:\"\n",
            sftp_endpoint(&server, proxy.port())
        ),
    );
    let node = Running::start(&place);
    large_file(&place.path("in/large"), 82, 48 * MIB);
    wait_until(PATIENCE, "a part of the file", || {
        proxy.counters().to_server > 10 * MIB
    });
    // In its place, as an editor does, and then again by writing into it.
    large_file(&place.path("elsewhere"), 83, 20 * MIB);
    fs::rename(place.path("elsewhere"), place.path("in/large")).unwrap();
    let sent = proxy.counters().to_server;
    wait_until(PATIENCE, "a part of the next version", || {
        proxy.counters().to_server > sent + 4 * MIB
    });
    large_file(&place.path("in/large"), 84, 3 * MIB);
    proxy.set_throttle(None);
    let served = server.data_directory();
    wait_until(PATIENCE, "the last version", || {
        differences(&place.path("in"), &served, &Compare::content())
            .is_ok_and(|differences| differences.is_empty())
    });
    node.terminate();
    assert_same_tree(&place.path("in"), &served, &Compare::content());
}

/// A file system that is mounted, and unmounted at the latest when the test ends.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn at(path: std::path::PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "none"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success(), "mount: {status}");
        Self(path)
    }

    fn unmount(&self) -> bool {
        Command::new("umount")
            .args(["--lazy"])
            .arg(&self.0)
            .status()
            .is_ok_and(|status| status.success())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Most tests did it themselves.
        let _unmounted: bool = self.unmount();
    }
}

#[test]
fn k5_r20_a_mirror_whose_source_was_unmounted_or_is_missing_deletes_nothing() {
    needs_root!("a mount");
    let place = Place::new();
    let disk = Mounted::at(place.path("in"));
    for number in 0..20 {
        place.write(&format!("in/{number}"), "x");
    }
    place.run(&["mirror", "in", "out"]).good();
    assert!(disk.unmount());
    let unmounted = place.run(&["mirror", "in", "out"]);
    assert_ne!(unmounted.code, 0, "{unmounted:?}");
    assert_eq!(count(&place.path("out")), 20);
    fs::remove_dir(place.path("in")).unwrap();
    let missing = place.run(&["mirror", "in", "out"]);
    assert_ne!(missing.code, 0, "{missing:?}");
    assert_eq!(count(&place.path("out")), 20);
}

#[test]
fn k5_r20_a_node_whose_source_was_unmounted_while_it_was_stopped_deletes_nothing() {
    needs_root!("a mount");
    let place = Place::new();
    let disk = Mounted::at(place.path("in"));
    mirror_job(&place);
    for number in 0..20 {
        place.write(&format!("in/{number}"), "x");
    }
    let node = Running::start(&place);
    wait_until(PATIENCE, "the first files", || {
        count(&place.path("out")) == 20
    });
    node.terminate();
    assert!(disk.unmount());
    place.write("in/other", "of another disk");
    let node = Running::start(&place);
    wait_until(PATIENCE, "that it is told", || {
        let log = fs::read_to_string(place.path("log")).unwrap_or_default();
        log.contains("another directory than before") || place.path("out/other").exists()
    });
    node.terminate();
    let there = (0..20).filter(|number| place.path(&format!("out/{number}")).exists());
    assert_eq!(there.count(), 20);
}
