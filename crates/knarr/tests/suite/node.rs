//! `run`: the node, from the first file to SIGTERM.

use std::io::Write as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::program::Place;

fn start(place: &Place) -> Child {
    place
        .command(&["run"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn stop(mut child: Child) {
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let deadline = Instant::now() + Duration::from_secs(15);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not stop");
        std::thread::park_timeout(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new("gzip")
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(content).unwrap();
    child.wait_with_output().unwrap().stdout
}

#[test]
fn a_watched_file_is_decompressed_delivered_and_recorded() {
    let place = Place::new();
    place.write("in/early.csv.gz", gzip(b"early"));
    place.write(
        "knarr.yaml",
        "jobs:\n  sensors:\n    watch: in\n    match: { include: [\"*.csv.gz\"], settle: 100ms }\n    \
         steps: [decompress]\n    to: out/{mtime:%Y}/\n",
    );
    let node = start(&place);
    let delivered = |name: &str| {
        let years = std::fs::read_dir(place.path("out"));
        years.into_iter().flatten().flatten().any(|year| {
            std::fs::read(year.path().join(name))
                .is_ok_and(|bytes| bytes == name.split('.').next().unwrap().as_bytes())
        })
    };
    until("the first delivery", || delivered("early.csv"));
    place.write("in/sub/late.csv.gz", gzip(b"late"));
    place.write("in/other.txt", "no");
    until("the delivery of a new file", || {
        let story = place.run(&["trace", "sub/late.csv.gz"]);
        story.stdout.contains("✓ delivered")
    });
    let story = place.run(&["trace", "sub/late.csv.gz"]).good();
    assert!(story.contains("through   decompress: gzip"), "{story}");
    assert!(story.contains("complete  "), "{story}");
    let status = place.run(&["status"]).good();
    assert!(status.contains("sensors"), "{status}");
    stop(node);
    assert!(!String::from_utf8_lossy(&place.all_bytes("out")).contains("no"));
}

#[test]
fn a_job_that_does_not_exist_is_refused() {
    let place = Place::new();
    place.write("knarr.yaml", "jobs: { sensors: { watch: in, to: out } }");
    let done = place.run(&["run", "--job", "sensor"]);
    assert_eq!(done.code, 2);
    assert_eq!(
        done.stderr,
        "error: there is no job `sensor`\nhint: did you mean `sensors`?\n"
    );
    let place = Place::new();
    let done = place.run(&["run"]);
    assert_eq!(done.code, 2);
    assert!(
        done.stderr
            .contains("there is no configuration: none of knarr.yaml"),
        "{}",
        done.stderr
    );
}
