//! What changes at a running node: its file, definitions that are wrong, what is slow, pauses of endpoints.

use std::fs;
use std::process::Stdio;

use knarr_testkit::receiver::HttpReceiver;
use knarr_testkit::wait_until;

use super::{add, document, json, place, start};
use crate::faults::support::PATIENCE;
use crate::program::Place;

fn one(place: &Place, arguments: &[&str]) -> serde_json::Value {
    json(&place.run(arguments).good()).remove(0)
}

#[test]
fn a_reload_takes_over_targets_and_says_what_needs_a_new_start() {
    let place = place();
    let (first, second) = (HttpReceiver::start(), HttpReceiver::start());
    let file = |receiver: &HttpReceiver, node: &str| {
        format!(
            "node: {{ {node} }}\ntargets:\n  chat:\n    webhook: {{ url: \"{}\" }}\n    \
             retry: {{ from: 20ms, to: 100ms }}\njobs:\n  own: {{ from: in/, match: {{ settle: 0s }}, \
             to: out/, hooks: {{ after_file: chat }} }}\n",
            receiver.url("/")
        )
    };
    place.write("knarr.yaml", file(&first, "name: edge"));
    let node = start(&place);
    place.write("in/one", "1");
    place.run(&["job", "run", "own"]).good();
    wait_until(PATIENCE, "the first is told", || {
        first.received().len() == 1
    });
    place.write(
        "knarr.yaml",
        file(&second, "name: edge, retention: { history: 30d }"),
    );
    let reloaded = place.run(&["reload"]).good();
    assert!(reloaded.contains("changed   targets"), "{reloaded}");
    let restart = "node.retention counts from the next start of the node";
    assert!(reloaded.contains(restart), "{reloaded}");
    let status = place.run(&["status"]).good();
    assert!(status.contains("node.retention"), "{status}");
    place.write("in/two", "2");
    place.run(&["job", "run", "own"]).good();
    wait_until(PATIENCE, "the second target is told", || {
        second.received().len() == 1
    });
    assert_eq!(first.received().len(), 1, "and the first no more");
    // As it was at the start: nothing is left to be said.
    place.write("knarr.yaml", file(&second, "name: edge"));
    let reloaded = place.run(&["reload"]).good();
    assert_eq!(reloaded, "no job changed\n");
    // What cannot be used leaves everything as it is.
    let broken =
        file(&second, "name: edge").replace("retry:", "sign: { secret: missing }\n    retry:");
    place.write("knarr.yaml", broken);
    let refused = place.run(&["reload"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    place.write("in/three", "3");
    place.run(&["job", "run", "own"]).good();
    wait_until(PATIENCE, "the second target goes on", || {
        second.received().len() == 2
    });
    node.terminate();
}

#[test]
fn a_job_that_is_wrong_when_the_node_starts_says_why_and_can_be_removed() {
    let place = place();
    place.write(
        "knarr.yaml",
        "endpoints:\n  disk: { type: local, path: . }\njobs:\n  own: { from: in/, to: out/ }\n",
    );
    let node = start(&place);
    let text = "jobs:\n  added: { from: \"disk:more/\", to: \"disk:there/\" }\n  \
                second: { from: /tmp, to: \"disk:there/\", after_job: added }\n";
    assert_eq!(add(&place, text).code, 0);
    node.terminate();
    // The endpoint goes while no node runs.
    let without = "jobs:\n  own: { from: in/, to: out/ }\n";
    place.write("knarr.yaml", without);
    let node = start(&place);
    let shown = one(&place, &["job", "show", "added", "--json"]);
    let problem = shown["problem"].as_str().unwrap();
    assert!(problem.contains("disk"), "{problem}");
    assert_eq!(shown["origin"], "added");
    // Another reload does not make it forget, and an endpoint of that name mends it.
    place.run(&["reload"]).good();
    assert!(one(&place, &["job", "show", "added", "--json"])["problem"].is_string());
    fs::create_dir_all(place.path("more")).unwrap();
    let endpoint = format!(
        "endpoints: {{ disk: {{ type: local, path: {} }} }}",
        place.path("").display()
    );
    assert_eq!(add(&place, &endpoint).code, 0);
    place.write("knarr.yaml", without);
    place.run(&["reload"]).good();
    assert!(one(&place, &["job", "show", "added", "--json"])["problem"].is_null());
    place.run(&["job", "rm", "second"]).good();
    place.run(&["job", "rm", "added"]).good();
    place.run(&["endpoint", "rm", "disk"]).good();
    node.terminate();

    // And the same, removed while it is wrong.
    place.write(
        "knarr.yaml",
        "endpoints:\n  disk: { type: local, path: . }\njobs:\n  own: { from: in/, to: out/ }\n",
    );
    let text = "jobs:\n  added: { from: \"disk:more/\", to: \"disk:there/\" }\n";
    assert_eq!(add(&place, text).code, 0, "without a node");
    place.write("knarr.yaml", without);
    let node = start(&place);
    place.run(&["job", "rm", "added"]).good();
    assert_eq!(place.run(&["job", "show", "added"]).code, 2);
    node.terminate();
    let node = start(&place);
    assert_eq!(place.run(&["job", "show", "added"]).code, 2);
    node.terminate();
}

#[test]
fn a_change_that_takes_long_delays_no_other_answer() {
    let place = place();
    let node = start(&place);
    // It takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    place
        .run_with_input(&["secret", "set", "partner"], b"sentinel")
        .good();
    let text = format!(
        "endpoints:\n  slow: {{ type: sftp, host: 127.0.0.1, port: {port}, user: x, password: {{ secret: partner }} }}\n\
         jobs:\n  stuck: {{ from: \"slow:one-file\", to: {} }}\n",
        place.path("there").display()
    );
    place.write("slow.yaml", text);
    let document_file = place.path("slow.yaml");
    let mut adding = place
        .command(&["job", "add", document_file.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until(PATIENCE, "it is on record", || {
        place.run(&["job", "ls"]).good().contains("stuck")
    });
    let other = add(&place, &document(&place, "other", ""));
    assert_eq!(other.code, 0, "{other:?}");
    fs::write(place.path("more/file"), "x").unwrap();
    place.run(&["job", "run", "other"]).good();
    place.run(&["reload"]).good();
    place.run(&["job", "rm", "other"]).good();
    let is_adding = adding.try_wait().unwrap().is_none();
    assert!(
        is_adding,
        "all that was answered while the change was under way"
    );
    adding.kill().unwrap();
    adding.wait().unwrap();
    node.kill_now();
}

#[test]
fn a_paused_endpoint_holds_its_jobs_and_is_shown_over_a_restart() {
    let place = place();
    place.write(
        "knarr.yaml",
        "endpoints:\n  disk: { type: local, path: . }\njobs:\n  \
         own: { from: \"disk:in/\", match: { settle: 0s }, to: out/ }\n",
    );
    place.write("in/a", "content");
    let node = start(&place);
    let unknown = place.run(&["endpoint", "pause", "disc"]);
    assert!(
        unknown.code == 2 && unknown.stderr.contains("did you mean `disk`"),
        "{unknown:?}"
    );
    place.run(&["endpoint", "pause", "disk"]).good();
    let held = |place: &Place| {
        let refused = place.run(&["job", "run", "own"]);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(
            refused.stderr.contains("`disk` was paused by"),
            "{refused:?}"
        );
    };
    held(&place);
    let shown = one(&place, &["job", "show", "own", "--json"]);
    assert!(shown["waits"].as_str().unwrap().contains("disk"), "{shown}");
    let status = place.run(&["status"]).good();
    assert!(status.contains("disk   paused by"), "{status}");
    let listed = one(&place, &["endpoint", "ls", "--json"]);
    assert!(!listed["paused_since"].is_null(), "{listed}");
    node.terminate();
    held(&place);
    let node = start(&place);
    held(&place);
    place.run(&["endpoint", "resume", "disk"]).good();
    place.run(&["job", "run", "own"]).good();
    assert!(place.path("out/a").exists());
    node.terminate();
}

#[test]
fn alerts_and_the_record_are_asked_of_the_node_and_not_of_its_state() {
    let place = place();
    let receiver = HttpReceiver::start();
    place.write(
        "knarr.yaml",
        format!(
            "targets:\n  chat: {{ webhook: {{ url: \"{}\" }} }}\nalerts:\n  broken: {{ on: {{ failure: 1 }}, to: [chat] }}\n\
             jobs:\n  own: {{ from: in/, match: {{ settle: 0s }}, to: out/ }}\n",
            receiver.url("/")
        ),
    );
    let node = start(&place);
    place.write("in/a", "content");
    place.run(&["job", "run", "own"]).good();
    // The file of now has no alerts; the node was not told.
    place.write("knarr.yaml", "jobs:\n  own: { from: in/, to: out/ }\n");
    let rules = one(&place, &["alert", "ls", "--json"]);
    assert_eq!(
        (&rules["rule"], &rules["to"][0]),
        (&"broken".into(), &"chat".into())
    );
    let tested = one(&place, &["alert", "test", "broken", "--json"]);
    assert_eq!(tested["delivered"], true, "{tested}");
    assert_eq!(receiver.received().len(), 1);
    let unknown = place.run(&["alert", "test", "brokn"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    let verified = place.run(&["audit", "verify"]).good();
    assert!(verified.starts_with("intact: "), "{verified}");
    let end = verified.split("ends at ").nth(1).unwrap().trim();
    place.run(&["audit", "verify", "--noted", end]).good();
    let wrong = end.replace(|c: char| c.is_ascii_hexdigit() && c != '1', "0");
    assert_ne!(place.run(&["audit", "verify", "--noted", &wrong]).code, 0);
    let exported = place.run(&["audit", "export"]).good();
    node.terminate();
    assert_eq!(place.run(&["audit", "export"]).good(), exported);
    assert_eq!(place.run(&["audit", "verify"]).good(), verified);
    assert_eq!(place.run(&["alert", "ls"]).code, 2, "the file has none");
}

#[test]
fn k10_the_status_of_a_million_pending_files_is_told_and_counted_in_the_background() {
    let place = place();
    place.write("in/a", "content");
    place.run(&["job", "run", "own"]).good();
    // A pair that no job works on any more.
    place.write("knarr.yaml", "jobs:\n  other: { from: in/, to: out2/ }\n");
    let script = "import sqlite3, sys\n\
        c = sqlite3.connect(sys.argv[1])\n\
        c.execute(\"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) \
        INSERT INTO dirty (pair, key, kind, generation, first_seen, last_seen, ready_at) \
        SELECT (SELECT min(id) FROM pairs), CAST(printf('f%08d', i) AS BLOB), 0, i, 1, 1, 1 FROM n\")\n\
        c.commit()\n";
    let done = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(place.path("state/knarr.db"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let status = |place: &Place| one(place, &["status", "--json"])["pairs"][0].clone();
    let without_a_node = status(&place);
    assert_eq!(without_a_node["ready"], 10_000, "{without_a_node}");
    assert_eq!(without_a_node["counted_up_to"], 10_000);
    let told = place.run(&["status"]).good();
    assert!(
        told.contains("10000 or more ready, 0 waiting, 0 parked"),
        "{told}"
    );
    let node = start(&place);
    wait_until(PATIENCE, "all are counted", || {
        let pair = status(&place);
        pair["ready"] == 1_000_000 && !pair["counted_at"].is_null()
    });
    assert!(status(&place)["counted_up_to"].is_null());
    node.terminate();
}
