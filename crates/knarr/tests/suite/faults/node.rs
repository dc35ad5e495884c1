//! `knarr run` under faults: bursts, an endpoint that is down, SIGTERM, `kill -9`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use knarr_testkit::data::{Compare, assert_same_tree};
use knarr_testkit::proxy::FaultProxy;
use knarr_testkit::sshd::Sshd;
use knarr_testkit::wait_until;

use super::support::{PATIENCE, Running, TornReader, large_file, litter, sftp_endpoint};
use crate::program::Place;

const MIB: u64 = 1 << 20;

/// How often each path was delivered, by the record.
fn deliveries(place: &Place) -> BTreeMap<String, u32> {
    let done = place.run(&["history", "--files", "--json", "--limit", "1000000"]);
    let mut times = BTreeMap::new();
    for line in done.stdout.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let action = record["action"].as_str().unwrap();
        if matches!(action, "created" | "updated") && !record["source_hash"].is_null() {
            *times
                .entry(record["path"].as_str().unwrap().to_owned())
                .or_insert(0) += 1;
        }
    }
    times
}

fn status(place: &Place) -> serde_json::Value {
    serde_json::from_str(&place.run(&["status", "--json"]).good()).unwrap()
}

/// How many paths are waiting in one way or another.
fn left(place: &Place) -> u64 {
    let status = status(place);
    let pairs = status["pairs"].as_array().unwrap();
    assert!(!pairs.is_empty(), "{status}");
    let sum = |pair: &serde_json::Value| {
        ["ready", "waiting", "parked"]
            .iter()
            .map(|name| pair[name].as_u64().unwrap())
            .sum::<u64>()
    };
    pairs.iter().map(sum).sum()
}

fn local_job(place: &Place) {
    fs::create_dir_all(place.path("in")).unwrap();
    place.write(
        "knarr.yaml",
        "jobs:\n  burst:\n    watch: in\n    match: { settle: 100ms }\n    to: out/\n",
    );
}

fn sftp_job(place: &Place, server: &Sshd, port: u16) {
    fs::create_dir_all(place.path("in")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "endpoints:\n{}jobs:\n  feed:\n    watch: in\n    match: {{ settle: 100ms }}\n    to: \"partner:\"\n    \
             retry: {{ attempts: 8, from: 200ms, to: 1s }}\n",
            sftp_endpoint(server, port)
        ),
    );
}

/// Files in `in`, spread over directories.
fn burst(place: &Place, files: std::ops::Range<u32>) {
    for number in files {
        let directory = place.path(&format!("in/directory-{}", number % 20));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("file-{number}")), number.to_string()).unwrap();
    }
}

fn count_files(root: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            count += count_files(&entry.path());
        } else if !entry.file_name().to_string_lossy().starts_with(".knarr-") {
            count += 1;
        }
    }
    count
}

#[test]
fn k7_r30_a_burst_of_ten_thousand_files_is_delivered_and_each_only_once() {
    let place = Place::new();
    local_job(&place);
    let node = Running::start(&place);
    burst(&place, 0..10_000);
    let out = place.path("out");
    wait_until(PATIENCE, "all files", || count_files(&out) == 10_000);
    wait_until(PATIENCE, "an empty queue", || left(&place) == 0);
    node.terminate();
    assert_same_tree(&place.path("in"), &out, &Compare::content());
    let times = deliveries(&place);
    assert_eq!(times.len(), 10_000);
    let twice: Vec<_> = times
        .iter()
        .filter(|(_, times)| **times != 1)
        .take(5)
        .collect();
    assert!(twice.is_empty(), "delivered more than once: {twice:?}");
    place.run(&["audit", "verify"]).good();
}

#[test]
fn k1_k2_k3_k7_r01_a_node_killed_again_and_again_in_a_burst_delivers_everything() {
    let place = Place::new();
    local_job(&place);
    burst(&place, 0..2_000);
    let out = place.path("out");
    fs::create_dir(&out).unwrap();
    let reader = TornReader::start(&place.path("in"), &out);
    let mut random = knarr_testkit::data::Random::new(51);
    for _ in 0..6 {
        let node = Running::start(&place);
        let pause = Duration::from_millis(20 + random.below(300));
        knarr_testkit::wait::poll(pause, || None::<()>);
        node.kill();
        place.check_record(&out, "seed 51 after a kill");
    }
    let node = Running::start(&place);
    wait_until(PATIENCE, "all files", || {
        count_files(&out) == 2_000 && left(&place) == 0
    });
    node.terminate();
    reader.finish();
    assert_same_tree(&place.path("in"), &out, &Compare::content());
    assert_eq!(litter(&out), Vec::<String>::new());
}

#[test]
fn k7_r43_what_arrives_while_the_endpoint_is_down_is_delivered_once_when_it_is_back() {
    let mut server = Sshd::start();
    let place = Place::new();
    sftp_job(&place, &server, server.port());
    let node = Running::start(&place);
    burst(&place, 0..20);
    let served = server.data_directory();
    wait_until(PATIENCE, "the first files", || count_files(&served) == 20);
    server.kill();
    burst(&place, 20..220);
    wait_until(PATIENCE, "the endpoint to be shown as down", || {
        status(&place)["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .any(|health| health["up"] == false)
    });
    let shown = place.run(&["status"]).good();
    assert!(shown.contains("down since"), "{shown}");
    wait_until(PATIENCE, "the queue", || left(&place) >= 200);
    assert!(place.run(&["queue"]).good().contains("file-"));
    // A new version of what is waiting: only this one is delivered.
    fs::write(place.path("in/directory-0/file-200"), "a later version").unwrap();
    server.restart();
    wait_until(PATIENCE, "all files", || {
        count_files(&served) == 220 && left(&place) == 0
    });
    wait_until(PATIENCE, "the endpoint to be shown as up", || {
        status(&place)["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .all(|health| health["up"] == true)
    });
    node.terminate();
    assert_same_tree(&place.path("in"), &served, &Compare::content());
    let times = deliveries(&place);
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "delivered more than once: {twice:?}");
    assert_eq!(times.len(), 220);
}

#[test]
fn k9_r55_sigterm_in_a_large_transfer_ends_in_time_and_the_next_start_goes_on() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).throttle(8 * MIB).start();
    let place = Place::new();
    sftp_job(&place, &server, proxy.port());
    let node = Running::start(&place);
    let length = 48 * MIB;
    large_file(&place.path("in/large"), 52, length);
    wait_until(PATIENCE, "a part of the file", || {
        proxy.counters().to_server > 12 * MIB
    });
    let took = node.terminate();
    assert!(took < Duration::from_secs(12), "it took {took:?}");
    let served = server.data_directory();
    assert!(!served.join("large").exists());
    proxy.set_throttle(None);
    let node = Running::start(&place);
    wait_until(PATIENCE, "the file", || served.join("large").exists());
    wait_until(PATIENCE, "an empty queue", || left(&place) == 0);
    node.terminate();
    assert_same_tree(&place.path("in"), &served, &Compare::content());
    let sent = proxy.counters().to_server;
    assert!(
        sent < length + length / 50 + 34 * MIB,
        "{sent} bytes were sent for {length}"
    );
    assert_eq!(litter(&served), Vec::<String>::new());
}

#[test]
fn r55_an_idle_node_stops_at_once() {
    let server = Sshd::start();
    for to_sftp in [true, false] {
        let place = Place::new();
        if to_sftp {
            sftp_job(&place, &server, server.port());
        } else {
            local_job(&place);
        }
        place.write("in/one", "delivered");
        let node = Running::start(&place);
        wait_until(PATIENCE, "the file", || {
            place.path("state/knarr.db").exists()
                && !deliveries(&place).is_empty()
                && left(&place) == 0
        });
        node.terminate();
        let log = fs::read_to_string(place.path("log")).unwrap();
        assert!(log.contains("stopped"), "{log}");
        assert!(!log.contains("did not stop in time"), "{log}");
    }
}

/// A node that dies at a system call.
fn run_killed_at(place: &Place, system_call: &str, nth: u32) {
    use std::os::unix::process::ExitStatusExt as _;
    let program = place.command(&["run"]);
    let mut traced = std::process::Command::new("strace");
    traced
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={system_call}"))
        .arg("-e")
        .arg(format!("inject={system_call}:signal=KILL:when={nth}"))
        .arg("--")
        .arg(program.get_program())
        .args(program.get_args())
        .env_clear()
        .envs(
            program
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        // Of one file, all calls of a kind are made by one thread.
        .env("TOKIO_WORKER_THREADS", "1")
        .current_dir(place.path(""))
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut child = traced
        .spawn()
        .expect("strace, of the Debian package strace");
    let ended = knarr_testkit::wait::poll(PATIENCE, || child.try_wait().unwrap());
    if ended.is_none() {
        knarr_testkit::kill::kill_tree(&mut child);
    }
    let status = ended.expect("it is killed");
    assert_eq!(status.signal(), Some(9), "{status}");
}

#[test]
fn k4_k7_r01_a_node_killed_between_the_record_and_what_follows_carries_that_out_at_the_next_start()
{
    // The first `unlinkat` is that of the source; the thread that moves it aside makes its first `mkdirat`.
    for (after, call) in [("delete", "unlinkat"), ("{ move: done/ }", "mkdirat")] {
        let place = Place::new();
        place.write("in/invoice", "to be paid");
        fs::create_dir(place.path("out")).unwrap();
        place.write(
            "knarr.yaml",
            format!(
                "jobs:\n  invoices:\n    watch: in\n    match: {{ settle: 100ms }}\n    to: out/\n    after: {after}\n"
            ),
        );
        place.run(&["copy", "home", "elsewhere"]).good();
        run_killed_at(&place, call, 1);
        assert!(place.path("in/invoice").exists(), "{after}: it died before");
        assert_eq!(deliveries(&place).get("invoice"), Some(&1), "{after}");
        // Whoever it was for takes it away.
        fs::remove_file(place.path("out/invoice")).unwrap();
        let node = Running::start(&place);
        wait_until(PATIENCE, "what follows the delivery", || {
            !place.path("in/invoice").exists() && left(&place) == 0
        });
        node.terminate();
        assert_eq!(place.path("in/done/invoice").exists(), after != "delete");
        assert!(
            !place.path("out/invoice").exists(),
            "it does not come twice"
        );
        assert_eq!(deliveries(&place).get("invoice"), Some(&1), "{after}");
        place.run(&["audit", "verify"]).good();
    }
}
