//! `queue` and `status` while the node runs: what moves, what is parked and why, what is only polled.

use std::fs;
use std::process::{Command, Stdio};

use knarr_testkit::proxy::FaultProxy;
use knarr_testkit::sshd::Sshd;
use knarr_testkit::wait_until;

use crate::faults::support::{PATIENCE, Running, large_file, sftp_endpoint};
use crate::program::Place;

const MIB: u64 = 1 << 20;

fn gzip(content: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut child = Command::new("gzip")
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(content).unwrap();
    child.wait_with_output().unwrap().stdout
}

fn queued(place: &Place, flags: &[&str]) -> Vec<serde_json::Value> {
    let printed = place.run(&[&["queue", "--json"], flags].concat()).good();
    printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn k4_h13_h12_what_cannot_be_decompressed_is_parked_with_the_reason_and_its_source_stays() {
    let place = Place::new();
    let whole = gzip(b"some content of a file\n");
    fs::create_dir(place.path("in")).unwrap();
    for cut in 1..whole.len() {
        let name = format!("in/cut-{cut:03}.csv.gz");
        place.write(&name, whole.get(..cut).unwrap());
    }
    let mut wrong = whole.clone();
    let checksum = wrong.len() - 6;
    *wrong.get_mut(checksum).unwrap() ^= 1;
    place.write("in/checksum.csv.gz", wrong);
    place.write("in/garbage.csv.gz", [&whole[..], b"garbage"].concat());
    place.write("in/bomb.csv.gz", gzip(&vec![0; 64 << 20]));
    place.write("in/good.csv.gz", &whole);
    let bad = whole.len() - 1 + 3;
    place.write(
        "knarr.yaml",
        "jobs:\n  sensors:\n    watch: in\n    match: { settle: 100ms }\n    \
         steps: [{ decompress: { max_output: 32MiB } }]\n    to: out/\n    after: delete\n    \
         retry: { attempts: 2, from: 100ms, to: 200ms }\n",
    );
    let node = Running::start(&place);
    wait_until(PATIENCE, "the bad ones to be parked", || {
        place.path("state/knarr.db").exists() && queued(&place, &["--parked"]).len() == bad
    });
    wait_until(PATIENCE, "the good one", || {
        place.path("out/good.csv").exists() && !place.path("in/good.csv.gz").exists()
    });
    let delivered: Vec<_> = fs::read_dir(place.path("out")).unwrap().flatten().collect();
    assert_eq!(delivered.len(), 1, "only the good one: {delivered:?}");
    for path in queued(&place, &["--parked"]) {
        assert_eq!(path["state"], "parked", "{path}");
        assert!(
            path["reason"].as_str().is_some_and(|why| why.len() > 10),
            "{path}"
        );
        let source = place.path("in").join(path["path"].as_str().unwrap());
        assert!(source.exists(), "the source is kept: {path}");
    }
    let shown = place.run(&["queue", "--parked"]).good();
    assert!(
        shown.contains("parked") && shown.contains("garbage.csv.gz"),
        "{shown}"
    );
    let status = place.run(&["status"]).good();
    assert!(status.contains(&format!("{bad} parked")), "{status}");
    let story = place.run(&["trace", "garbage.csv.gz"]).good();
    assert!(story.contains("parked"), "{story}");
    // Corrected, it goes its way.
    place.write("in/garbage.csv.gz", &whole);
    wait_until(PATIENCE, "the corrected file", || {
        place.path("out/garbage.csv").exists()
    });
    node.terminate();
}

#[test]
fn a_file_on_its_way_is_shown_with_its_percentage() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).throttle(6 * MIB).start();
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
    large_file(&place.path("in/large"), 72, 96 * MIB);
    let mut shown = serde_json::Value::Null;
    wait_until(PATIENCE, "the transfer to be shown", || {
        if !place.path("state/knarr.db").exists() {
            return false;
        }
        shown = queued(&place, &[]).pop().unwrap_or_default();
        shown["state"] == "in_flight" && shown["done_bytes"].as_u64() > Some(0)
    });
    assert_eq!(shown["path"], "large");
    assert!(
        shown["done_bytes"].as_u64() < shown["size"].as_u64(),
        "{shown}"
    );
    let text = place.run(&["queue"]).good();
    let percent = text
        .split("moving ")
        .nth(1)
        .and_then(|rest| rest.split('%').next());
    assert!(
        percent
            .and_then(|number| number.parse::<u32>().ok())
            .is_some(),
        "{text}"
    );
    let status = place.run(&["status"]).good();
    assert!(
        status.contains("large") && status.contains("96 MiB"),
        "{status}"
    );
    proxy.set_throttle(None);
    wait_until(PATIENCE, "the file", || {
        server.data_directory().join("large").exists()
    });
    node.terminate();
}

#[test]
fn r34_k9_without_watches_the_job_is_shown_as_degraded_and_delivers_by_polling() {
    let place = Place::new();
    for number in 0..30 {
        place.write(&format!("in/directory-{number}/first"), "1");
    }
    place.write(
        "knarr.yaml",
        "jobs:\n  feed:\n    watch: in\n    match: { settle: 100ms }\n    poll: 1s\n    to: out/\n",
    );
    // In a user namespace of its own the limit is nobody else's.
    let line = format!(
        "echo 5 > /proc/sys/user/max_inotify_watches && exec '{}' run",
        env!("CARGO_BIN_EXE_knarr")
    );
    let mut limited = Command::new("unshare");
    let usual = place.command::<&str>(&[]);
    limited
        .args(["--user", "--map-root-user", "sh", "-c", &line])
        .current_dir(place.path(""))
        .env_clear()
        .envs(
            usual
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(place.path("log")).unwrap());
    let node = Running::of(limited.spawn().unwrap());
    wait_until(PATIENCE, "the degradation to be shown", || {
        place.path("state/knarr.db").exists()
            && place
                .run(&["status"])
                .stdout
                .contains("degraded: polled, not watched: ")
    });
    let data: serde_json::Value =
        serde_json::from_str(&place.run(&["status", "--json"]).good()).unwrap();
    let reason = data["pairs"][0]["degraded"].as_str().unwrap();
    assert!(reason.contains("watches"), "{reason}");
    for number in 0..30 {
        place.write(&format!("in/directory-{number}/second"), "2");
    }
    wait_until(PATIENCE, "all files", || {
        (0..30).all(|number| {
            ["first", "second"].iter().all(|name| {
                place
                    .path(&format!("out/directory-{number}/{name}"))
                    .exists()
            })
        })
    });
    node.terminate();
}
