//! What a node shows of itself: logs, metrics, what it forgets, and what it never shows.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use knarr_testkit::port::ReservedPort;
use knarr_testkit::receiver::{HttpReceiver, MailReceiver, MailTls};
use knarr_testkit::wait_until;

use crate::faults::machine::faketime;
use crate::faults::support::{PATIENCE, Running};
use crate::program::{Place, contains};

/// Asks as Prometheus does.
fn get(port: u16, path: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: knarr\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

/// The samples of an exposition, by name and labels; checks its form on the way.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(
                types.insert(name.to_owned(), kind.to_owned()),
                None,
                "{line}"
            );
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let family = name.split('{').next().unwrap();
            let is_typed = types.keys().any(|known| {
                let of_histogram = ["_bucket", "_sum", "_count"];
                family == known
                    || of_histogram
                        .iter()
                        .any(|end| family.strip_suffix(end) == Some(known))
            });
            assert!(is_typed, "{line}");
            assert_eq!(
                samples.insert(name.to_owned(), value.parse().unwrap()),
                None,
                "{line}"
            );
        }
    }
    samples
}

#[test]
fn metrics_are_served_to_this_machine_and_say_what_was_moved_what_waits_and_who_is_down() {
    let port = ReservedPort::new().unwrap();
    let number = port.address().port();
    let closed = HttpReceiver::down();
    let place = Place::new();
    fs::create_dir_all(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "node: {{ metrics: {{ listen: \"127.0.0.1:{number}\" }} }}\ntargets:\n  chat:\n    \
             webhook: {{ url: \"{}\" }}\nalerts:\n  silent: {{ on: {{ nothing_for: 1h }}, to: [chat] }}\njobs:\n  \
             sensors:\n    watch: outbox/\n    match: {{ settle: 0s }}\n    to: in/\n    hooks: {{ after_file: chat }}\n  \
             hourly:\n    from: outbox/\n    match: {{ settle: 0s }}\n    to: other/\n    \
             schedule: {{ cron: \"* * * * * *\" }}\n",
            closed.url("/")
        ),
    );
    for name in ["a", "b", "c"] {
        place.write(&format!("outbox/{name}"), "12345");
    }
    let node = Running::start(&place);
    let read = || {
        get(number, "/metrics")
            .map(|(_, body)| samples(&body))
            .unwrap_or_default()
    };
    let has = |name: &str, value: f64| read().get(name) == Some(&value);
    wait_until(PATIENCE, "all files", || {
        has("knarr_files_total{job=\"sensors\"}", 3.0)
    });
    wait_until(PATIENCE, "a run", || {
        read()
            .get("knarr_runs_total{job=\"hourly\",outcome=\"done\"}")
            .is_some_and(|runs| *runs >= 1.0)
    });
    let all = read();
    for (name, value) in [
        ("knarr_bytes_total{job=\"sensors\"}", 15.0),
        ("knarr_failures_total{job=\"sensors\"}", 0.0),
        ("knarr_queue_files{job=\"sensors\",state=\"parked\"}", 0.0),
        (
            "knarr_outbox_messages{target=\"chat\",state=\"waiting\"}",
            3.0,
        ),
        ("knarr_alerts_open{rule=\"silent\"}", 0.0),
        ("knarr_held_plans{job=\"sensors\"}", 0.0),
    ] {
        assert_eq!(all.get(name), Some(&value), "{name}: {all:?}");
    }
    assert!(all["knarr_run_seconds_count{job=\"hourly\"}"] >= 1.0);
    assert!(all["process_resident_memory_bytes"] > 1e6);
    let (head, _) = get(number, "/metrics").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(get(number, "/").unwrap().0.starts_with("HTTP/1.1 404"));
    // Every name is on the page about it.
    let page = fs::read_to_string(crate::program::repository().join("docs/metrics.md")).unwrap();
    for name in all.keys() {
        let family = name.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| family.strip_suffix(end))
            .unwrap_or(family);
        assert!(page.contains(&format!("`{family}`")), "{family}");
    }
    node.terminate();
}

#[test]
fn the_log_file_has_a_line_for_each_file_with_its_run_and_its_id_also_over_rotations() {
    let place = Place::new();
    fs::create_dir_all(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        "node: { log: { file: logs/knarr.log, max_size: 64KiB, keep: 100 } }\njobs:\n  sensors:\n    \
         watch: outbox/\n    match: { settle: 0s }\n    to: in/\n",
    );
    for number in 0..600 {
        place.write(&format!("outbox/{number}"), "x");
    }
    let node = Running::start(&place);
    wait_until(PATIENCE, "all files", || {
        fs::read_dir(place.path("in")).is_ok_and(|files| files.count() == 600)
    });
    node.terminate();
    let mut files = BTreeMap::new();
    let mut count = 0;
    for entry in fs::read_dir(place.path("logs")).unwrap() {
        let path = entry.unwrap().path();
        count += 1;
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
        for line in fs::read_to_string(&path).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            if line["message"] == "done" {
                assert_eq!(
                    (&line["job"], &line["run"]),
                    (&"sensors".into(), &1.into()),
                    "{line}"
                );
                let id = line["file"].as_str().unwrap().to_owned();
                let path = line["path"].as_str().unwrap().to_owned();
                assert_eq!(files.insert(path, id), None, "{line}");
            }
        }
    }
    assert!(count > 1, "it was rotated");
    assert_eq!(files.len(), 600);
    let ids: std::collections::BTreeSet<_> = files.values().collect();
    assert_eq!(ids.len(), 600);
    // The same on stderr, which is no terminal here.
    let log = fs::read_to_string(place.path("log")).unwrap();
    let done = log.lines().filter(|line| line.contains("\"done\"")).count();
    assert_eq!(done, 600);
}

#[test]
fn a_log_file_for_people_is_text() {
    let place = Place::new();
    fs::create_dir_all(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        "node: { log: { file: knarr.log, format: text } }\njobs:\n  sensors:\n    watch: outbox/\n    \
         match: { settle: 0s }\n    to: in/\n",
    );
    place.write("outbox/a", "x");
    let node = Running::start(&place);
    wait_until(PATIENCE, "the file", || place.path("in/a").exists());
    node.terminate();
    let log = fs::read_to_string(place.path("knarr.log")).unwrap();
    let line = log.lines().find(|line| line.contains("done")).unwrap();
    assert!(
        line.contains("INFO") && line.contains("job=\"sensors\"") && line.contains("path=a"),
        "{line}"
    );
    assert!(!log.contains('\u{1b}'), "no colours in a file");
}

#[test]
fn what_is_older_than_the_retention_is_forgotten_and_the_chain_says_so() {
    let place = Place::new();
    fs::create_dir_all(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        "node: { retention: { history: 30d, events: 1d } }\njobs:\n  sensors:\n    from: outbox/\n    \
         match: { settle: 0s }\n    to: in/\n    schedule: { cron: \"0 0 1 1 *\" }\n",
    );
    for name in ["kept", "gone"] {
        place.write(&format!("outbox/{name}"), "x");
    }
    // Sixty days ago, as the program's clock sees it.
    let early = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command
            .env("LD_PRELOAD", faketime())
            .env("FAKETIME", "-60d");
        let done = command.output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    early(&["job", "run", "sensors"]);
    fs::remove_file(place.path("outbox/gone")).unwrap();
    early(&["job", "run", "sensors"]);
    let before = place.run(&["audit", "verify"]).good();
    assert!(
        before.contains("2 records are as they were written"),
        "{before}"
    );
    let node = Running::start(&place);
    wait_until(PATIENCE, "the old records to go", || {
        place
            .run(&["audit", "verify"])
            .good()
            .contains("2 older ones")
    });
    node.terminate();
    let after = place.run(&["audit", "verify", "--json"]).good();
    let after: serde_json::Value = serde_json::from_str(&after).unwrap();
    assert_eq!(
        (&after["intact"], &after["pruned"]),
        (&true.into(), &2.into()),
        "{after}"
    );
    let story = place.run(&["trace", "kept"]).good();
    assert!(story.contains("carried over"), "{story}");
    // What was delivered is still known: it is not delivered again.
    let again = place.run(&["job", "run", "sensors"]);
    assert!(again.stderr.contains("nothing to do"), "{again:?}");
    // A state whose checkpoint was changed is found.
    let script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript('UPDATE custody_base SET checkpoint = 1')";
    let done = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(place.path("state/knarr.db"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let broken = place.run(&["audit", "verify"]);
    assert_eq!(broken.code, 1, "{broken:?}");
    assert!(
        broken.stdout.contains("no checkpoint of the chain says so"),
        "{broken:?}"
    );
}

#[test]
fn no_secret_of_a_target_is_in_any_log_error_argument_or_file() {
    const SENTINELS: [&str; 5] = [
        "sentinel-url-path-1b2f",
        "sentinel-hmac-7c3d",
        "sentinel-token-55aa",
        "sentinel-mail-90e1",
        "sentinel-before-4d4d",
    ];
    let [url, hmac, token, mail, before] = SENTINELS;
    let receiver = HttpReceiver::start();
    let mails = MailReceiver::start(MailTls::Starttls, Some(("knarr", mail)));
    let place = Place::new();
    fs::create_dir_all(place.path("outbox")).unwrap();
    let chat = receiver.url(&format!("/{url}/status/500"));
    for (name, value) in [
        ("url", chat.as_str()),
        ("hmac", hmac),
        ("mail", mail),
        ("before", before),
    ] {
        place
            .run_with_input(&["secret", "set", name], value.as_bytes())
            .good();
    }
    place.write(
        "knarr.yaml",
        format!(
            "node: {{ log: {{ file: knarr.log }} }}\ntargets:\n  chat:\n    webhook: {{ url: {{ secret: url }}, \
             secret: {{ secret: hmac }}, token: {{ env: HOOK_TOKEN }} }}\n    \
             retry: {{ attempts: 3, from: 10ms, to: 20ms }}\n  ops:\n    email: {{ host: localhost, port: {}, \
             user: knarr, password: {{ secret: mail }}, from: a@b.org, to: [c@d.org], ca: {} }}\n  \
             erp:\n    command: {{ run: [/bin/sh, -c, \"env; false\"] }}\n    \
             retry: {{ attempts: 2, from: 10ms, to: 20ms }}\njobs:\n  sensors:\n    from: outbox/\n    \
             match: {{ settle: 0s }}\n    to: in/\n    schedule: {{ cron: \"* * * * * *\" }}\n    \
             hooks: {{ after_file: [chat, ops, erp], before: [{{ http: {{ url: \"{}\", \
             token: {{ secret: before }} }} }}] }}\n",
            mails.address().port(),
            mails.certificate().path().display(),
            receiver.url("/before"),
        ),
    );
    place.write("outbox/a", "x");
    let log = fs::File::create(place.path("trace-log")).unwrap();
    let child = place
        .command(&["run", "-vvv"])
        .env("HOOK_TOKEN", token)
        .stderr(log)
        .spawn()
        .unwrap();
    let pid = child.id();
    let node = Running::of(child);
    wait_until(PATIENCE, "the messages to be given up", || {
        place.run(&["queue", "--parked"]).good().lines().count() > 2
    });
    wait_until(PATIENCE, "the mail", || mails.mails().len() == 1);
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    node.terminate();
    let mut shown = arguments;
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["queue", "--parked", "--json"],
        &["alert", "test", "chat"],
        &["alert", "test", "ops"],
        &["check", "--json"],
        &["history", "--json", "--files"],
        &["doctor", "--json"],
        &["job", "show", "sensors", "--json"],
    ] {
        let done = place
            .command(arguments)
            .env("HOOK_TOKEN", token)
            .output()
            .unwrap();
        shown.extend(done.stdout);
        shown.extend(done.stderr);
    }
    shown.extend(place.all_bytes("state"));
    for log in ["trace-log", "knarr.log"] {
        shown.extend(fs::read(place.path(log)).unwrap());
    }
    assert!(
        contains(&shown, "answered 500"),
        "the log says what happened"
    );
    for sentinel in SENTINELS {
        assert!(!contains(&shown, sentinel), "{sentinel}");
    }
    // And yet all of them were used.
    let told = receiver.received();
    assert!(told.iter().any(|request| request.line.contains(url)
        && request.header("authorization") == Some(&format!("Bearer {token}"))
        && request.header("knarr-signature").is_some()));
    assert!(
        told.iter()
            .any(|request| request.header("authorization") == Some(&format!("Bearer {before}")))
    );
}
