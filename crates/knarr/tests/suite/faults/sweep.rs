//! `kill -9` at every system call with which a copy changes the disk, data and state.
//!
//! Constraints: one worker thread, so that the count of a call says where the program was. Blocking work
//! and the writer of the state have threads of their own, which count for themselves; each is visited.

use std::fs;

use knarr_testkit::kill::{Injection, SyscallSweep};

use super::support::litter;
use crate::program::Place;

const CALLS: [&str; 13] = [
    "mkdirat",
    "write",
    "pwrite64",
    "copy_file_range",
    "ftruncate",
    "utimensat",
    "fchmod",
    "fsync",
    "fdatasync",
    "syncfs",
    "renameat2",
    "linkat",
    "unlinkat",
];

#[test]
fn k1_k2_k3_k7_r07_killed_at_any_system_call_a_copy_of_three_files_is_finished_by_the_next() {
    let place = Place::new();
    for (name, content) in [("a", "first"), ("sub/b", "second"), ("sub/deep/c", "third")] {
        place.write(&format!("in/{name}"), content.repeat(1000));
    }
    let command = ["copy", "in", "out"];
    // A state that exists already: making one is swept by the store's own tests.
    fs::create_dir(place.path("empty")).unwrap();
    place.run(&["copy", "empty", "elsewhere"]).good();
    copy_directory(&place, "state", "state-before");
    let source = place.path("in");
    let destination = place.path("out");
    let killed = SyscallSweep::new(Injection::Kill, &CALLS).run(
        || {
            for made in ["out", "state"] {
                if place.path(made).exists() {
                    fs::remove_dir_all(place.path(made)).unwrap();
                }
            }
            copy_directory(&place, "state-before", "state");
            let mut traced = place.command(&command);
            traced.env("TOKIO_WORKER_THREADS", "1");
            traced
        },
        |point| {
            let context = format!("{} #{}", point.system_call, point.nth);
            assert!(
                point.injected || point.status.success(),
                "{context}: {}",
                point.stderr
            );
            for name in ["a", "sub/b", "sub/deep/c"] {
                if let Ok(there) = fs::read(destination.join(name)) {
                    assert_eq!(
                        there,
                        fs::read(source.join(name)).unwrap(),
                        "{context}: {name} is torn"
                    );
                }
            }
            place.run(&["audit", "verify"]).good();
            let rerun = place.run(&command);
            assert_eq!(rerun.code, 0, "{context}: {rerun:?}");
            place.check_end(&command, &source, &destination);
            assert_eq!(litter(&destination), Vec::<String>::new(), "{context}");
        },
    );
    assert!(
        killed > 30,
        "only {killed} calls were visited: the sweep misses the commit path"
    );
}

fn copy_directory(place: &Place, from: &str, to: &str) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([place.path(from), place.path(to)])
        .status()
        .unwrap();
    assert!(status.success());
}
