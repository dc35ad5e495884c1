//! Hooks of jobs: what is told, or done, before a run, after each file and after a run.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use knarr_testkit::receiver::HttpReceiver;
use knarr_testkit::wait_until;

use crate::faults::support::{PATIENCE, Running};
use crate::program::Place;

/// A job `invoices` that takes what lies in `outbox`, with these targets and further lines.
fn place(targets: &str, job: &str) -> Place {
    let place = Place::new();
    fs::create_dir_all(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "node: {{ name: edge-1 }}\ntargets:\n{targets}jobs:\n  invoices:\n    from: outbox/\n    \
             match: {{ settle: 0s }}\n    to: in/\n{job}"
        ),
    );
    place
}

fn webhook(name: &str, url: &str, more: &str) -> String {
    format!(
        "  {name}:\n    webhook: {{ url: \"{url}\", timeout: 5s }}\n    \
         retry: {{ attempts: 3, from: 20ms, to: 100ms }}\n{more}"
    )
}

/// An executable script in the place.
fn script(place: &Place, name: &str, text: &str) -> String {
    let path = place.write(name, format!("#!/bin/sh\n{text}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn bodies(receiver: &HttpReceiver) -> Vec<serde_json::Value> {
    let received = receiver.received();
    received
        .iter()
        .map(|request| serde_json::from_str(&request.body).unwrap())
        .collect()
}

#[test]
fn k8_each_file_is_told_once_it_is_on_record_and_the_run_when_it_has_ended() {
    let receiver = HttpReceiver::start();
    let place = place(
        &webhook("chat", &receiver.url("/hook"), ""),
        "    hooks: { after_file: [chat], after_run: chat }\n",
    );
    for name in ["a.xml", "b.xml"] {
        place.write(&format!("outbox/{name}"), "to be paid");
    }
    let done = place.run(&["job", "run", "invoices"]);
    assert_eq!(done.code, 0, "{done:?}");
    let told = bodies(&receiver);
    assert_eq!(told.len(), 3, "{told:?}");
    let mut paths = BTreeSet::new();
    for file in &told[..2] {
        assert_eq!(file["kind"], "after_file", "{file}");
        assert_eq!(
            (&file["node"], &file["job"]),
            (&"edge-1".into(), &"invoices".into())
        );
        let data = &file["data"];
        let path = data["path"].as_str().unwrap();
        assert_eq!(data["action"], "created");
        assert_eq!(data["destination_root"], place.path("in").to_str().unwrap());
        assert!(
            data["destination"]
                .as_str()
                .unwrap()
                .ends_with(&format!("/in/{path}"))
        );
        // K3: what a receiver is told of is there.
        assert!(place.path("in").join(path).exists());
        paths.insert(path.to_owned());
    }
    assert_eq!(paths.len(), 2);
    let run = &told[2];
    assert_eq!(run["kind"], "after_run", "{run}");
    assert_eq!(
        (
            &run["data"]["outcome"],
            &run["data"]["files"],
            &run["data"]["bytes"]
        ),
        (&"done".into(), &2.into(), &20.into())
    );
    // The same files once more are nothing new; the run is.
    place.run(&["job", "run", "invoices"]).good();
    let again = bodies(&receiver);
    assert_eq!(again.len(), 4, "{again:?}");
    assert_eq!(again[3]["data"]["files"], 0);
    assert_ne!(again[3]["id"], run["id"]);
}

#[test]
fn k8_a_target_that_is_down_delays_no_run_and_gets_everything_with_the_same_keys_later() {
    let mut receiver = HttpReceiver::down();
    let place = place(
        &webhook("chat", &receiver.url("/"), ""),
        "    hooks: { after_file: chat }\n",
    );
    for number in 0..20 {
        place.write(&format!("outbox/{number}"), "x");
    }
    let done = place.run(&["job", "run", "invoices"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stderr
            .contains("20 messages wait for the target `chat`"),
        "{done:?}"
    );
    let status = place.run(&["status"]).good();
    assert!(
        status.contains("chat   20 messages wait") && status.contains("chat   down:"),
        "{status}"
    );
    receiver.restart();
    let node = Running::start(&place);
    wait_until(PATIENCE, "all messages", || receiver.received().len() >= 20);
    wait_until(PATIENCE, "an empty outbox", || {
        !place.run(&["status"]).good().contains("chat")
    });
    node.terminate();
    let keys: BTreeSet<_> = bodies(&receiver)
        .iter()
        .map(|told| told["id"].to_string())
        .collect();
    assert_eq!(keys.len(), 20);
}

#[test]
fn k8_a_node_that_is_killed_between_record_and_delivery_tells_each_file_at_least_once() {
    let receiver = HttpReceiver::start();
    let place = Place::new();
    let slow = script(
        &place,
        "slow",
        "echo \"$KNARR_KEY\" >> \"$(dirname \"$0\")/keys\"; sleep 0.05",
    );
    fs::create_dir_all(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "targets:\n{}  erp:\n    command: {{ run: [{slow}] }}\njobs:\n  invoices:\n    watch: outbox/\n    \
             match: {{ settle: 0s }}\n    to: in/\n    hooks: {{ after_file: [chat, erp] }}\n",
            webhook("chat", &receiver.url("/"), "")
        ),
    );
    for number in 0..60 {
        place.write(&format!("outbox/{number}"), number.to_string());
    }
    for round in 0..4 {
        let node = Running::start(&place);
        wait_until(PATIENCE, "some calls of the command", || {
            fs::read_to_string(place.path("keys"))
                .is_ok_and(|keys| keys.lines().count() > 8 * round)
        });
        node.kill();
    }
    let node = Running::start(&place);
    wait_until(PATIENCE, "an empty outbox", || {
        let status = place.run(&["status", "--json"]).good();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let waits = status["pairs"][0]["ready"].as_u64().unwrap_or(1)
            + status["pairs"][0]["waiting"].as_u64().unwrap_or(1);
        waits == 0
            && status["targets"].as_array().unwrap().is_empty()
            && fs::read_dir(place.path("in")).unwrap().count() == 60
    });
    node.terminate();
    let keys = fs::read_to_string(place.path("keys")).unwrap();
    let keys: BTreeSet<&str> = keys.lines().collect();
    assert_eq!(
        keys.len(),
        60,
        "one key for each file, however often it was told"
    );
    let told = bodies(&receiver);
    let paths: BTreeSet<_> = told
        .iter()
        .map(|told| told["data"]["path"].to_string())
        .collect();
    let ids: BTreeSet<_> = told.iter().map(|told| told["id"].to_string()).collect();
    assert_eq!((paths.len(), ids.len()), (60, 60));
}

#[test]
fn k8_a_command_that_fails_half_way_through_1000_files_gets_the_rest_later_and_delays_nothing() {
    let place = Place::new();
    let import = script(
        &place,
        "import",
        "d=$(dirname \"$0\")\n[ -e \"$d/mended\" ] || [ \"$(wc -l < \"$d/keys\")\" -lt 500 ] || exit 7\n\
         echo \"$KNARR_KEY $KNARR_PATH\" >> \"$d/keys\"",
    );
    place.write("keys", "");
    fs::create_dir_all(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "targets:\n  erp:\n    command: {{ run: [{import}] }}\n    \
             retry: {{ attempts: 100000, from: 50ms, to: 100ms }}\njobs:\n  invoices:\n    watch: outbox/\n    \
             match: {{ settle: 0s }}\n    to: in/\n    hooks: {{ after_file: erp }}\n"
        ),
    );
    for number in 0..1_000 {
        place.write(&format!("outbox/{number}"), "x");
    }
    let node = Running::start(&place);
    // The files are all there, whatever the hook does.
    wait_until(PATIENCE, "all files", || {
        fs::read_dir(place.path("in")).is_ok_and(|files| files.count() == 1_000)
    });
    let lines = || {
        fs::read_to_string(place.path("keys"))
            .unwrap()
            .lines()
            .count()
    };
    wait_until(PATIENCE, "half of the calls", || lines() == 500);
    wait_until(PATIENCE, "a failure that is shown", || {
        place.run(&["status"]).good().contains("ended with 7")
    });
    place.write("mended", "");
    wait_until(PATIENCE, "all calls", || lines() >= 1_000);
    wait_until(PATIENCE, "an empty outbox", || {
        !place.run(&["status"]).good().contains("messages wait")
    });
    node.terminate();
    let text = fs::read_to_string(place.path("keys")).unwrap();
    let paths: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    assert_eq!((paths.len(), text.lines().count()), (1_000, 1_000));
}

#[test]
fn k8_a_hook_that_hangs_delays_no_file() {
    let place = Place::new();
    let hang = script(
        &place,
        "hang",
        "echo $$ > \"$(dirname \"$0\")/pid\"\nsleep 600",
    );
    fs::create_dir_all(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "targets:\n  erp:\n    command: {{ run: [{hang}], timeout: 1h }}\njobs:\n  invoices:\n    \
             watch: outbox/\n    match: {{ settle: 0s }}\n    to: in/\n    hooks: {{ after_file: erp }}\n"
        ),
    );
    place.write("outbox/first", "x");
    let node = Running::start(&place);
    wait_until(PATIENCE, "a hook that hangs", || place.path("pid").exists());
    for number in 0..50 {
        place.write(&format!("outbox/{number}"), "x");
    }
    wait_until(PATIENCE, "all other files", || {
        fs::read_dir(place.path("in")).unwrap().count() == 51
    });
    node.terminate();
    let pid = fs::read_to_string(place.path("pid")).unwrap();
    let pid = pid.trim();
    wait_until(PATIENCE, "the end of what hung", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
}

#[test]
fn a_message_that_is_refused_is_parked_and_tried_again_when_somebody_says_so() {
    let receiver = HttpReceiver::start();
    let refusing = webhook("chat", &receiver.url("/status/400"), "");
    let place = place(&refusing, "    hooks: { after_file: chat }\n");
    place.write("outbox/a", "x");
    place.run(&["job", "run", "invoices"]).good();
    let parked = place.run(&["queue", "--parked"]).good();
    assert!(
        parked.contains("chat") && parked.contains("after_file") && parked.contains("answered 400"),
        "{parked}"
    );
    let json = place.run(&["queue", "--parked", "--json"]).good();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["state"], &json["target"]),
        (&"parked".into(), &"chat".into())
    );
    // The receiver is mended, and somebody says so.
    let text = fs::read_to_string(place.path("knarr.yaml")).unwrap();
    place.write("knarr.yaml", text.replace("/status/400", "/"));
    place.run(&["queue", "--retry"]).good();
    place.run(&["job", "run", "invoices"]).good();
    let last = receiver.received().pop().unwrap();
    assert_eq!(last.header("knarr-id"), json["key"].as_str());
    assert_eq!(place.run(&["queue", "--parked"]).good(), "");
}

#[test]
fn what_fails_before_a_run_leaves_the_run_out_and_says_why() {
    let receiver = HttpReceiver::start();
    let closed = HttpReceiver::down();
    let place = Place::new();
    let good = script(
        &place,
        "good",
        "echo \"$KNARR_KIND $KNARR_JOB $1\" >> \"$(dirname \"$0\")/ran\"",
    );
    let bad = script(&place, "bad", "echo the tape is not in >&2; exit 3");
    fs::create_dir_all(place.path("outbox")).unwrap();
    place.write("outbox/a", "x");
    let (here, nowhere) = (receiver.address().port(), closed.address().port());
    for (before, told) in [
        (
            format!(
                "http: {{ url: \"{}\" }}, attempts: 2, pause: 10ms",
                receiver.url("/status/503")
            ),
            Some("answered 503 (2 attempts)".to_owned()),
        ),
        (
            format!("tcp: {{ host: 127.0.0.1, port: {nowhere}, timeout: 2s }}"),
            Some(format!("127.0.0.1:{nowhere} takes no connection")),
        ),
        (
            format!("command: {{ run: [{bad}] }}"),
            Some("the tape is not in".to_owned()),
        ),
        (
            format!(
                "http: {{ url: \"{}\", expect: [204, 418], method: head }} }}, {{ tcp: {{ host: localhost, \
                 port: {here} }} }}, {{ command: {{ run: [{good}, \"{{job}}\"] }}",
                receiver.url("/status/418")
            ),
            None,
        ),
    ] {
        place.write(
            "knarr.yaml",
            format!(
                "jobs:\n  invoices:\n    from: outbox/\n    match: {{ settle: 0s }}\n    to: in/\n    \
                 hooks: {{ before: [{{ {before} }}] }}\n"
            ),
        );
        let done = place.run(&["job", "run", "invoices"]);
        let history = place.run(&["job", "show", "invoices"]).good();
        match told {
            Some(told) => {
                assert_eq!(done.code, 1, "{before}: {done:?}");
                assert!(done.stderr.contains(&told), "{before}: {done:?}");
                assert!(
                    history.contains("failed")
                        && history.contains("not begun")
                        && history.contains(&told),
                    "{before}: {history}"
                );
                assert!(!place.path("in/a").exists(), "{before}");
            }
            None => {
                assert_eq!(done.code, 0, "{before}: {done:?}");
                assert!(place.path("in/a").exists());
            }
        }
    }
    assert_eq!(
        fs::read_to_string(place.path("ran")).unwrap(),
        "before invoices invoices\n"
    );
}

#[test]
fn what_is_wrong_with_targets_alerts_and_hooks_is_told_where_it_stands() {
    let job = "jobs:\n  prices:\n    from: a/\n    to: b/\n";
    let chat = "targets:\n  chat:\n    webhook: { url: https://chat.example.org/ }\n";
    for (text, at, told) in [
        ("targets:\n  chat: {}\n".to_owned(), "2:3", "exactly one of `webhook`"),
        (
            "targets:\n  chat:\n    webhook: { url: http://example.org/ }\n".to_owned(),
            "3:21",
            "not encrypted",
        ),
        (
            "targets:\n  chat:\n    webhook: { url: https://example.org/, secret: hunter2 }\n".to_owned(),
            "3:51",
            "a secret may not stand in the configuration",
        ),
        (
            "targets:\n  chat:\n    webhok: {}\n".to_owned(),
            "3:5",
            "did you mean `webhook`?",
        ),
        (
            "targets:\n  erp:\n    command: { run: [import] }\n".to_owned(),
            "3:21",
            "absolute path",
        ),
        (
            "targets:\n  ops:\n    email: { host: h, from: a@b.c, to: [nobody] }\n".to_owned(),
            "3:40",
            "not an e-mail address",
        ),
        (
            format!("{chat}alerts:\n  late: {{ on: {{ held: {{}} }}, to: [chta] }}\n"),
            "5:34",
            "did you mean `chat`?",
        ),
        (
            format!("{chat}alerts:\n  late: {{ on: {{ nothing_by: {{ time: six }} }}, to: [chat] }}\n"),
            "5:37",
            "not a time of day",
        ),
        (
            format!("{chat}alerts:\n  late: {{ on: {{ held: {{}} }}, about: [price], to: [chat] }}\n{job}"),
            "5:37",
            "did you mean `prices`?",
        ),
        (
            format!("{chat}alerts:\n  late: {{ on: {{ failure: 0 }}, to: [chat] }}\n"),
            "5:26",
            "at least 1",
        ),
        (format!("{chat}{job}    hooks: {{ after_file: [caht] }}\n"), "8:27", "no target `caht`"),
        (
            format!("{chat}{job}    alert: [{{ on: {{ endpoint_down: 1h }}, to: [chat] }}]\n"),
            "8:13",
            "not about a job",
        ),
        (
            "jobs:\n  prices:\n    watch: a/\n    to: b/\n    hooks: { before: [{ tcp: { host: h, port: 1 } }] }\n"
                .to_owned(),
            "5:23",
            "a job that watches has no runs before",
        ),
        (
            "targets:\n  db:\n    postgres: { host: h, database: d, user: u }\njobs:\n  prices:\n    from: a/\n    \
             to: b/\n    hooks: { after_file: db }\n"
                .to_owned(),
            "8:26",
            "gets everything that happens to files by itself",
        ),
    ] {
        let place = Place::new();
        place.write("knarr.yaml", &text);
        let checked = place.run(&["check"]);
        assert_eq!(checked.code, 2, "{text}: {checked:?}");
        assert!(checked.stderr.contains(told), "{text}: {}", checked.stderr);
        assert!(
            checked.stderr.contains(&format!("knarr.yaml:{at}")),
            "{text}: {}",
            checked.stderr
        );
        assert!(!checked.stderr.contains("hunter2"), "{}", checked.stderr);
    }
}
