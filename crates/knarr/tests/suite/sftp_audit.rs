//! What clients of the own SFTP server do is on record; and what is taken from such a server is taken once.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use knarr_testkit::port::ReservedPort;
use knarr_testkit::proxy::{Action, Direction, Fault, FaultProxy};
use knarr_testkit::wait_until;

use crate::faults::support::{PATIENCE, large_file};
use crate::program::Place;
use crate::sftp_gate::{Running, good, keygen};

/// A server whose user `acme` may do everything in `served`, but nothing in `/closed`, and change nothing in `/fixed`.
fn server() -> (Place, ReservedPort) {
    let place = Place::new();
    let reserved = ReservedPort::new().unwrap();
    let port = reserved.number();
    let key = keygen(&place.path("id"));
    fs::create_dir_all(place.path("served/fixed")).unwrap();
    fs::create_dir_all(place.path("served/closed")).unwrap();
    place.write("served/fixed/file", "fixed");
    place.write(
        "knarr.yaml",
        format!(
            "sftp_server:\n  listen: 127.0.0.1:{port}\n  limits: {{ unpunished: [127.0.0.0/8] }}\n  users:\n    acme:\n      \
             key: {key}\n      root: served\n      paths: {{ /closed: none, /fixed: read_only }}\n"
        ),
    );
    (place, reserved)
}

fn records(place: &Place) -> Vec<serde_json::Value> {
    let shown = place.run(&[
        "history",
        "--json",
        "--limit",
        "100000",
        "--job",
        "sftp-server",
        "--files",
    ]);
    let shown = shown.good();
    let parse = |line| serde_json::from_str(line).unwrap();
    let mut records: Vec<serde_json::Value> = shown.lines().map(parse).collect();
    records.reverse();
    records
}

fn removed(place: &Place) -> usize {
    let is_it = |record: &&serde_json::Value| record["action"] == "removed";
    records(place).iter().filter(is_it).count()
}

/// What is on record, in order: action, path, the beginning of the message.
fn told(place: &Place) -> Vec<String> {
    let text =
        |record: &serde_json::Value, key: &str| record[key].as_str().unwrap_or("").to_owned();
    let line = |record: &serde_json::Value| {
        let message = text(record, "message");
        let words = message.split("session ").next().unwrap_or_default();
        let words = words.trim_end_matches(", ");
        format!(
            "{} {} {words}",
            text(record, "action"),
            text(record, "path")
        )
        .trim_end()
        .to_owned()
    };
    records(place).iter().map(line).collect()
}

#[test]
fn k11_what_clients_of_the_sftp_server_do_is_in_the_audit_chain() {
    let (place, reserved) = server();
    let port = reserved.number();
    let mut running = Running::start(&place, &["sftp-server"], port);
    let (file, back) = (place.write("file", "content"), place.path("back"));
    let batch = format!(
        "mkdir /new\nput {} /new/one\nrename /new/one /new/two\nchmod 600 /new/two\nget /new/two {}\nsymlink two /new/link\n\
         rm /new/link\nrm /new/two\nrmdir /new\n",
        file.display(),
        back.display()
    );
    good(&running.sftp(&place, "acme", &[], &batch));
    for refused in [
        format!("put {} /fixed/mine\n", file.display()),
        "get /closed/file\n".to_owned(),
        "rm /fixed/file\n".to_owned(),
    ] {
        assert!(!running.sftp(&place, "acme", &[], &refused).status.success());
    }
    assert!(!running.sftp(&place, "nobody", &[], "ls\n").status.success());
    let fingerprint = Command::new("ssh-keygen")
        .args(["-lf", place.path("id.pub").to_str().unwrap()])
        .output()
        .unwrap();
    let fingerprint = String::from_utf8(fingerprint.stdout).unwrap();
    let fingerprint = fingerprint.split(' ').nth(1).unwrap();
    assert!(running.stop(), "{}", running.log());

    let told = told(&place);
    let by_key = format!("by publickey {fingerprint}");
    let mut expected = vec![
        format!("logged_in * {by_key}"),
        "changed new mkdir".to_owned(),
        "uploaded new/one".to_owned(),
        "moved new/one".to_owned(),
        "changed new/two setstat".to_owned(),
        "downloaded new/two".to_owned(),
        "changed new/link symlink leads to \"two\"".to_owned(),
        "removed new/link remove".to_owned(),
        "removed new/two remove".to_owned(),
        "removed new rmdir".to_owned(),
    ];
    for line in &mut expected {
        assert!(
            told.iter().any(|seen| seen.starts_with(line.as_str())),
            "no `{line}` in {told:#?}"
        );
    }
    for (action, path) in [
        ("refused", "fixed/mine"),
        ("refused", "fixed/file"),
        ("log_in_refused", "*"),
    ] {
        let begin = format!("{action} {path}");
        assert!(
            told.iter().any(|seen| seen.starts_with(&begin)),
            "{begin}: {told:#?}"
        );
    }
    let records = records(&place);
    let upload = records
        .iter()
        .find(|record| record["action"] == "uploaded")
        .unwrap();
    assert_eq!(upload["size"], 7);
    assert_eq!(upload["decided_by"], "acme");
    assert!(
        upload["source"]
            .as_str()
            .unwrap()
            .starts_with("acme@127.0.0.1:")
    );
    assert!(
        upload["destination"]
            .as_str()
            .unwrap()
            .ends_with("served/new/one")
    );
    place.run(&["audit", "verify"]).good();
    let table = place.run(&["audit", "export", "--format", "csv"]).good();
    assert!(
        table.contains("log_in_refused") && table.contains("no such user"),
        "{table}"
    );
    let story = place.run(&["trace", "new/one"]).good();
    assert!(
        story.contains("uploaded") && story.contains("renamed by a client"),
        "{story}"
    );
}

#[test]
fn k11_what_a_partner_uploads_is_taken_as_uploaded_and_its_story_begins_there() {
    let (place, reserved) = server();
    let port = reserved.number();
    let config = fs::read_to_string(place.path("knarr.yaml")).unwrap();
    let job = "jobs:\n  take: { from: served/, to: taken/, after_upload: acme, match: { include: \"*.csv\" } }\n";
    place.write("knarr.yaml", format!("{config}{job}"));
    let mut running = Running::start(&place, &["run"], port);
    let file = place.write("file", "content");
    let batch = format!("put {} /one.csv\n", file.display());
    good(&running.sftp(&place, "acme", &[], &batch));
    wait_until(PATIENCE, "the delivery", || {
        place.path("taken/one.csv").exists()
    });
    assert!(running.stop(), "{}", running.log());
    let shown = place.run(&["trace", "one.csv", "--json"]).good();
    let parse = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let steps: Vec<serde_json::Value> = shown.lines().map(parse).collect();
    assert_eq!(steps.len(), 2, "{shown}");
    assert_eq!(steps[0]["action"], "uploaded");
    assert_eq!(steps[1]["action"], "created");
    assert_eq!(steps[1]["complete_because"], "uploaded");
}

#[test]
fn k11_what_is_on_record_survives_a_kill_of_the_server() {
    let (place, reserved) = server();
    let port = reserved.number();
    let file = place.write("file", "content");
    for round in 0..3 {
        let running = Running::start(&place, &["sftp-server"], port);
        let batch = format!("put {} /up{round}\n", file.display());
        good(&running.sftp(&place, "acme", &[], &batch));
        let name = format!("uploaded up{round}");
        wait_until(PATIENCE, "the record of the upload", || {
            told(&place).contains(&name)
        });
        // Without a farewell.
        drop(running);
        assert!(told(&place).contains(&name));
        place.run(&["audit", "verify"]).good();
    }
}

#[test]
fn k4_k7_r49_a_pickup_from_the_own_server_that_is_cut_anywhere_delivers_each_version_once() {
    let (partner, reserved) = server();
    let port = reserved.number();
    let mut running = Running::start(&partner, &["sftp-server"], port);
    let public = partner.path("state/host-keys/ssh_host_ed25519_key.pub");
    let shown = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(public)
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let host_key = shown.split(' ').nth(1).unwrap();
    let proxy = FaultProxy::to_port(port).start();
    let place = Place::new();
    place.write(
        "knarr.yaml",
        format!(
            "endpoints:\n  partner:\n    type: sftp\n    host: 127.0.0.1\n    port: {}\n    user: acme\n    key: {}\n    \
             path: /\n    host_key: {host_key}\njobs:\n  invoices:\n    from: partner:outbox/\n    match: {{ settle: 0s }}\n    \
             to: in/\n    after: delete\n    retry: {{ attempts: 4, from: 20ms, to: 50ms }}\n",
            proxy.port(),
            partner.path("id").display(),
        ),
    );
    let outbox = partner.path("served/outbox");
    fs::create_dir_all(&outbox).unwrap();
    let mut files = Vec::new();
    for round in 0..16_u64 {
        for name in ["small", "other", "large"] {
            let file = format!("{name}-{round}");
            let length = if name == "large" { 600_000 } else { 2_000 };
            large_file(&outbox.join(&file), round, length);
            files.push(file);
        }
        // After the log-in (some 3 KB), in the listing, between reading and deleting, in the deletions.
        let at_byte = 3_000 + round * 41_000 * u64::from(round % 3 != 0) + round * 97;
        proxy.add_fault(Fault {
            connection: Some(proxy.counters().connections + 1),
            direction: Direction::ToClient,
            at_byte,
            action: if round % 2 == 0 {
                Action::Reset
            } else {
                Action::Close
            },
        });
        let cut = place.run(&["job", "run", "invoices"]);
        assert!(matches!(cut.code, 0 | 1 | 4), "{cut:?}");
        if round % 4 == 3 {
            // Killed and started again. What was removed is on record by then.
            let left = fs::read_dir(&outbox).unwrap().count();
            wait_until(PATIENCE, "the records of what was removed", || {
                removed(&partner) == files.len() - left
            });
            drop(running);
            running = Running::start(&partner, &["sftp-server"], port);
        }
    }
    for _ in 0..3 {
        place.run(&["job", "run", "invoices"]);
    }
    let last = place.run(&["job", "run", "invoices"]);
    let queue = place.run(&["queue"]).good();
    assert_eq!(last.code, 0, "{last:?} {queue}");
    assert_eq!(queue.lines().count(), 0, "{queue}");
    assert_eq!(fs::read_dir(&outbox).unwrap().count(), 0, "all are taken");
    assert!(proxy.counters().faults > 8, "{:?}", proxy.counters());
    let shown = place.run(&["history", "--files", "--json", "--limit", "100000"]);
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in shown.good().lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| record[key].as_str().unwrap().to_owned();
        *counts.entry((text("action"), text("path"))).or_default() += 1;
    }
    for file in &files {
        assert!(place.path("in").join(file).exists(), "{file}");
        for action in ["created", "source_removed"] {
            let count = counts.get(&(action.to_owned(), file.clone()));
            assert_eq!(count, Some(&1), "{action} {file}");
        }
    }
    place.run(&["audit", "verify"]).good();
    // The partner has it on record, too: each file was removed once.
    assert!(running.stop(), "{}", running.log());
    assert_eq!(removed(&partner), files.len());
    partner.run(&["audit", "verify"]).good();
}
