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
fn k1_k2_k3_k7_k11_r07_killed_at_any_system_call_a_copy_of_three_files_is_finished_by_the_next() {
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
            let records = place.run(&["history", "--files", "--json"]).good();
            for name in ["a", "sub/b", "sub/deep/c"] {
                assert!(
                    records.contains(&format!("\"path\":\"{name}\"")),
                    "{context}: no record of {name}: {records}"
                );
            }
            place.check_end(&command, &source, &destination);
            assert_eq!(litter(&destination), Vec::<String>::new(), "{context}");
        },
    );
    assert!(
        killed > 30,
        "only {killed} calls were visited: the sweep misses the commit path"
    );
}

/// With which bytes get their names, lose them, and become durable.
const COMMITS: [&str; 6] = [
    "fsync",
    "fdatasync",
    "syncfs",
    "renameat2",
    "linkat",
    "unlinkat",
];

/// Kills `command` at every call of the commit path and has it repeated; `check` looks at what is there
/// after the kill and, the second time, after the repetition.
pub(super) fn sweep(place: &Place, command: &[&str], check: impl Fn(&str, When)) {
    fs::create_dir(place.path("empty")).unwrap();
    place.run(&["copy", "empty", "elsewhere"]).good();
    for directory in ["state", "in", "out"] {
        copy_directory(place, directory, &format!("{directory}-before"));
    }
    let killed = SyscallSweep::new(Injection::Kill, &COMMITS).run(
        || {
            for directory in ["state", "in", "out"] {
                fs::remove_dir_all(place.path(directory)).unwrap();
                copy_directory(place, &format!("{directory}-before"), directory);
            }
            let mut traced = place.command(command);
            traced.env("TOKIO_WORKER_THREADS", "1");
            traced
        },
        |point| {
            let context = format!("{} #{}", point.system_call, point.nth);
            check(&context, When::Killed);
            let rerun = place.run(command);
            assert_eq!(rerun.code, 0, "{context}: {rerun:?}");
            place.run(&["audit", "verify"]).good();
            check(&context, When::Repeated);
            assert_eq!(
                litter(&place.path("out")),
                Vec::<String>::new(),
                "{context}"
            );
        },
    );
    assert!(
        killed > 6,
        "only {killed} calls were visited: the sweep misses the commit path"
    );
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Killed,
    Repeated,
}

/// K11: there is a record of `name` with one of these actions.
#[track_caller]
pub(super) fn has_record(place: &Place, context: &str, name: &str, actions: &[&str]) {
    let records = place
        .run(&["history", "--files", "--json", "--path", name])
        .good();
    let of = |line: &str| -> String {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["action"].as_str().unwrap().to_owned()
    };
    let found: Vec<String> = records.lines().map(of).collect();
    assert!(
        found
            .iter()
            .any(|action| actions.contains(&action.as_str())),
        "{context}: {name} has only the records {found:?}"
    );
}

#[test]
fn k4_k11_r07_killed_anywhere_in_its_commits_a_move_loses_nothing_and_records_everything() {
    let place = Place::new();
    let names = ["a", "sub/b", "sub/deep/c"];
    for name in names {
        place.write(&format!("in/{name}"), name.repeat(1000));
    }
    place.write("out/other", "x");
    sweep(&place, &["move", "in", "out"], |context, when| {
        for name in names {
            let whole = |side: &str| {
                fs::read(place.path(side).join(name))
                    .is_ok_and(|found| found == name.repeat(1000).into_bytes())
            };
            assert!(whole("out") || whole("in"), "{context}: {name} is lost");
            if when == When::Repeated {
                assert!(
                    whole("out") && !place.path("in").join(name).exists(),
                    "{context}: {name}"
                );
                has_record(&place, context, name, &["created"]);
            }
        }
    });
}

#[test]
fn k11_r07_killed_anywhere_in_its_commits_a_mirror_records_what_it_brought_and_removed() {
    let place = Place::new();
    for (name, content) in [("a", "first"), ("sub/b", "second")] {
        place.write(&format!("in/{name}"), content.repeat(1000));
    }
    place.write("out/a", "an older version");
    place.write("out/extra", "not at the source");
    sweep(&place, &["mirror", "in", "out"], |context, when| {
        if when == When::Killed {
            return;
        }
        knarr_testkit::data::assert_same_tree(
            &place.path("in"),
            &place.path("out"),
            &knarr_testkit::data::Compare::content(),
        );
        has_record(&place, context, "a", &["updated"]);
        has_record(&place, context, "sub/b", &["created"]);
        has_record(&place, context, "extra", &["deleted"]);
    });
}

#[test]
fn k6_k11_r07_killed_anywhere_in_its_commits_a_sync_records_what_went_either_way() {
    let place = Place::new();
    place.write("in/left", "from the left".repeat(1000));
    place.write("out/sub/right", "from the right".repeat(1000));
    sweep(&place, &["sync", "in", "out"], |context, when| {
        for (side, name) in [("in", "left"), ("out", "sub/right")] {
            assert!(
                place.path(side).join(name).exists(),
                "{context}: {name} is lost"
            );
        }
        if when == When::Killed {
            return;
        }
        knarr_testkit::data::assert_same_tree(
            &place.path("in"),
            &place.path("out"),
            &knarr_testkit::data::Compare::content(),
        );
        has_record(&place, context, "left", &["created"]);
        has_record(&place, context, "sub/right", &["created"]);
    });
}

fn copy_directory(place: &Place, from: &str, to: &str) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([place.path(from), place.path(to)])
        .status()
        .unwrap();
    assert!(status.success());
}
