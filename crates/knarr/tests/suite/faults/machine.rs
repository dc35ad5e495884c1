//! The machine itself fails: no more descriptors, a disk that cannot be read, a clock that jumps.

use std::fs;
use std::process::{Command, Stdio};

use knarr_testkit::data::{Compare, assert_same_tree, differences};
use knarr_testkit::wait_until;

use super::support::{PATIENCE, Running, large_file, report};
use crate::program::{Done, Place};

const MIB: u64 = 1 << 20;

/// `program` with at most `descriptors` open at once, which it cannot raise.
fn with_few_descriptors(place: &Place, program: &Command, descriptors: u32) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            &format!("ulimit -Sn {descriptors}; ulimit -Hn {descriptors}; exec \"$0\" \"$@\""),
        ])
        .arg(program.get_program())
        .args(program.get_args())
        .env_clear()
        .envs(
            program
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .current_dir(place.path(""))
        .stdin(Stdio::null());
    shell
}

#[test]
fn k3_k7_r13_a_copy_that_runs_out_of_descriptors_says_so_and_is_finished_by_the_next() {
    let place = Place::new();
    for number in 0..300 {
        place.write(&format!("in/{number}"), number.to_string());
    }
    for number in 0..8 {
        large_file(&place.path(&format!("in/large-{number}")), number, 3 * MIB);
    }
    let copy = place.command(&["copy", "in", "out", "--attempts", "2"]);
    let done: Done = with_few_descriptors(&place, &copy, 19)
        .output()
        .unwrap()
        .into();
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("Too many open files"), "{done:?}");
    place.check_record(&place.path("out"), "without descriptors");
    place.run(&["copy", "in", "out"]).good();
    place.check_end(
        &["copy", "in", "out"],
        &place.path("in"),
        &place.path("out"),
    );
}

#[test]
fn k7_r13_a_node_with_few_descriptors_delivers_a_burst_in_the_end() {
    let place = Place::new();
    fs::create_dir(place.path("in")).unwrap();
    place.write(
        "knarr.yaml",
        "jobs:\n  burst:\n    watch: in\n    match: { settle: 100ms }\n    to: out/\n    \
         retry: { attempts: 100, from: 50ms, to: 200ms }\n",
    );
    let log = fs::File::create(place.path("log")).unwrap();
    let run = place.command(&["run"]);
    let mut limited = with_few_descriptors(&place, &run, 40);
    limited.stdout(Stdio::null()).stderr(log);
    let node = Running::of(limited.spawn().unwrap());
    for number in 0..40 {
        for below in 0..10 {
            place.write(&format!("in/{number}/{below}"), "x");
        }
        large_file(&place.path(&format!("in/{number}/large")), number, 2 * MIB);
    }
    wait_until(PATIENCE, "everything", || {
        differences(&place.path("in"), &place.path("out"), &Compare::content())
            .is_ok_and(|differences| differences.is_empty())
    });
    node.terminate();
    place.run(&["audit", "verify"]).good();
}

#[test]
fn k2_k7_r17_a_source_that_cannot_be_read_to_its_end_fails_alone_and_is_copied_when_it_can() {
    let place = Place::new();
    for number in 0..4 {
        large_file(&place.path(&format!("in/{number}")), number, 3 * MIB);
    }
    place.write("out/2", "an older version");
    let copy = place.command(&["copy", "in", "out", "--attempts", "2", "--json"]);
    let reads = "read,pread64,readv,preadv,copy_file_range,sendfile,splice";
    let mut traced = Command::new("strace");
    let done: Done = traced
        .args(["-f", "-qq", "-o", "/dev/null", "-P"])
        .arg(place.path("in/2"))
        .args(["-e", &format!("trace={reads}"), "-e"])
        // The beginning can be read, what follows cannot.
        .arg(format!("inject={reads}:error=EIO:when=2+"))
        .arg("--")
        .arg(copy.get_program())
        .args(copy.get_args())
        .env_clear()
        .envs(
            copy.get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .current_dir(place.path(""))
        .output()
        .expect("strace, of the Debian package strace")
        .into();
    assert_eq!(done.code, 1, "{done:?}");
    assert_eq!(report(&done)["failed"], 1, "{done:?}");
    assert!(done.stderr.contains("Input/output error"), "{done:?}");
    assert_eq!(
        fs::read_to_string(place.path("out/2")).unwrap(),
        "an older version"
    );
    assert_eq!(place.check_record(&place.path("out"), "unreadable"), 3);
    place.run(&["copy", "in", "out"]).good();
    place.check_end(
        &["copy", "in", "out"],
        &place.path("in"),
        &place.path("out"),
    );
}

/// Where Debian's package libfaketime has its library.
pub(crate) fn faketime() -> std::path::PathBuf {
    let below = fs::read_dir("/usr/lib").unwrap().flatten();
    below
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
        .expect("libfaketimeMT.so.1, of the Debian package libfaketime")
}

#[test]
fn k7_r50_a_node_whose_clock_jumps_by_days_goes_on_delivering() {
    let place = Place::new();
    fs::create_dir(place.path("in")).unwrap();
    place.write(
        "knarr.yaml",
        "jobs:\n  feed:\n    watch: in\n    match: { settle: 3s }\n    deletes: mirror\n    to: out/\n",
    );
    let clock = place.write("clock", "+0d");
    let node = Running::start_with(
        &place,
        &[
            ("LD_PRELOAD", faketime().to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    );
    let is_equal = || {
        differences(&place.path("in"), &place.path("out"), &Compare::content())
            .is_ok_and(|differences| differences.is_empty())
    };
    for (round, offset) in ["+0d", "+1d", "-1d", "+400d", "+0d"].iter().enumerate() {
        // Only rest says that this one is complete: it is never closed. The clock jumps while it rests.
        let mut open = fs::File::create(place.path(&format!("in/open-{round}"))).unwrap();
        std::io::Write::write_all(&mut open, b"rests").unwrap();
        wait_until(PATIENCE, "the file in the queue", || {
            let queue = place.run(&["queue"]);
            queue.stdout.contains(&format!("open-{round}"))
        });
        // At once: the library may read it at any time.
        fs::rename(place.write("next", offset), &clock).unwrap();
        for number in 0..20 {
            place.write(
                &format!("in/{number}"),
                format!("round {round} with {offset}"),
            );
        }
        wait_until(PATIENCE, offset, is_equal);
        drop(open);
        fs::remove_file(place.path(&format!("in/open-{round}"))).unwrap();
        wait_until(PATIENCE, offset, is_equal);
    }
    node.terminate();
    assert_same_tree(&place.path("in"), &place.path("out"), &Compare::content());
    place.run(&["audit", "verify"]).good();
    let history = place
        .run(&["history", "--files", "--json", "--limit", "1000"])
        .good();
    assert!(
        history.lines().any(|line| line.contains("\"updated\"")),
        "{history}"
    );
}
