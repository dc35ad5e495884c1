//! Verbs at a running node, over its socket.

mod changes;
mod http;
mod parameters;
mod socket;

use std::fs;
use std::io::Write as _;

use knarr_testkit::wait_until;
use rustix::process::Signal;

use crate::faults::support::{PATIENCE, Running};
use crate::program::{Done, Place};

/// A node that answers.
fn start(place: &Place) -> Running {
    let node = Running::start(place);
    answers(place);
    node
}

fn answers(place: &Place) {
    wait_until(PATIENCE, "the node answers", || {
        place.path("state/control.sock").exists()
            && place
                .run(&["status"])
                .stdout
                .contains("the node runs since")
    });
}

/// A place whose file has one job, `own`, from `in` to `out`.
fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("in")).unwrap();
    place.write(
        "knarr.yaml",
        "jobs:\n  own: { from: in/, match: { settle: 0s }, to: out/ }\n",
    );
    place
}

/// A document with a job from one directory to another.
fn document(place: &Place, name: &str, more: &str) -> String {
    let (from, to) = (place.path("more"), place.path("there"));
    fs::create_dir_all(&from).unwrap();
    format!(
        "jobs:\n  {name}:\n    from: {}/\n    to: {}/{name}/\n    match: {{ settle: 0s }}\n{more}",
        from.display(),
        to.display()
    )
}

fn json(text: &str) -> Vec<serde_json::Value> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

fn add(place: &Place, document: &str) -> Done {
    place.run_with_input(&["job", "add", "-"], document.as_bytes())
}

#[test]
fn every_verb_works_at_a_running_node() {
    let place = place();
    let node = start(&place);
    place.write("in/a", "content");
    let preview = place.run(&["job", "run", "own", "--dry-run"]).good();
    assert_eq!(preview, "take   a\n");
    let ran = place.run(&["job", "run", "own"]);
    assert!(ran.code == 0 && ran.stderr.contains("1 created"), "{ran:?}");
    assert_eq!(fs::read(place.path("out/a")).unwrap(), b"content");
    let ran = json(&place.run(&["job", "run", "own", "--json"]).good());
    assert_eq!(ran[0]["state"], "done");
    let number = ran[0]["run"].as_u64().unwrap().to_string();

    let jobs = json(&place.run(&["job", "ls", "--json"]).good());
    assert_eq!(
        (jobs[0]["job"].as_str(), jobs[0]["origin"].as_str()),
        (Some("own"), Some("file"))
    );
    assert_eq!(
        jobs[0]["last_run"]["run"].as_u64().unwrap().to_string(),
        number
    );
    assert!(
        place
            .run(&["job", "show", "own"])
            .good()
            .contains("last run")
    );
    assert!(
        place
            .run(&["job", "pause", "own"])
            .good()
            .contains("is paused")
    );
    assert!(place.run(&["job", "ls"]).good().contains("paused since"));
    assert!(
        place
            .run(&["job", "resume", "own"])
            .good()
            .contains("is resumed")
    );
    assert!(
        place
            .run(&["job", "cancel", "own"])
            .good()
            .contains("no run of own")
    );
    assert!(
        place
            .run(&["job", "retry", "own"])
            .good()
            .contains("0 paths of own")
    );
    let unknown = place.run(&["job", "run", "onw"]);
    assert!(
        unknown.code == 2 && unknown.stderr.contains("did you mean `own`"),
        "{unknown:?}"
    );

    assert!(place.run(&["run", "ls"]).good().contains("own"));
    let run = json(&place.run(&["run", "show", &number, "--json"]).good());
    assert_eq!(
        (run[0]["cause"].as_str(), run[0]["state"].as_str()),
        (Some("manual"), Some("done"))
    );
    place.run(&["run", "follow", &number]).good();
    assert!(
        place
            .run(&["run", "cancel", &number])
            .good()
            .contains("not under way")
    );
    assert!(
        place
            .run(&["run", "retry", &number])
            .good()
            .contains("0 paths are tried again, in run")
    );
    assert_eq!(place.run(&["run", "show", "4711"]).code, 2);

    assert!(place.run(&["history"]).good().contains("own"));
    assert!(
        place
            .run(&["history", "--files", "--job", "own"])
            .good()
            .contains("created")
    );
    assert!(place.run(&["trace", "a"]).good().contains("✓ delivered"));
    place
        .run(&["trace", place.path("in/a").to_str().unwrap()])
        .good();
    assert_eq!(place.run(&["trace", "missing"]).code, 1);
    place.run(&["queue"]).good();
    place.run(&["queue", "--parked", "--retry"]).good();
    assert_eq!(place.run(&["approve"]).good(), "nothing is held\n");
    assert!(
        place
            .run(&["endpoint", "ls"])
            .good()
            .starts_with("ENDPOINT")
    );
    assert_eq!(place.run(&["endpoint", "test", "missing"]).code, 2);
    let status = json(&place.run(&["status", "--json"]).good());
    assert!(
        status[0]["node"]["process"].as_u64().unwrap() > 1,
        "{status:?}"
    );
    node.terminate();
    let status = json(&place.run(&["status", "--json"]).good());
    assert_eq!(
        status[0]["node"],
        serde_json::Value::Null,
        "without a node, too"
    );
    assert!(place.run(&["trace", "a"]).good().contains("✓ delivered"));
}

#[test]
fn secrets_are_set_and_listed_at_a_running_node_and_never_shown() {
    let place = place();
    let node = start(&place);
    let sentinel = "sentinel-of-the-socket";
    let set = place.run_with_input(&["-vvv", "secret", "set", "token"], sentinel.as_bytes());
    assert_eq!(set.code, 0, "{set:?}");
    assert!(!set.stderr.contains(sentinel), "{set:?}");
    assert!(place.run(&["secret", "ls"]).good().contains("token"));
    place.run(&["secret", "rm", "token"]).good();
    assert_eq!(place.run(&["secret", "rm", "token"]).code, 2);
    node.terminate();
    for below in ["state", "log"] {
        assert!(
            !crate::program::contains(&place.all_bytes(below), sentinel),
            "{below}"
        );
    }
}

#[test]
fn a_job_that_was_added_runs_by_the_clock_and_survives_a_restart() {
    let place = place();
    let node = start(&place);
    let text = document(&place, "added", "    schedule: { cron: \"* * * * * *\" }\n");
    let planned = place
        .run_with_input(&["job", "plan", "-"], text.as_bytes())
        .good();
    assert_eq!(planned, "added       job added\n");
    let added = add(&place, &text);
    assert_eq!(
        (added.code, added.stdout.as_str()),
        (0, "added       job added\n"),
        "{added:?}"
    );
    fs::write(place.path("more/one"), "1").unwrap();
    wait_until(PATIENCE, "the first file", || {
        place.path("there/added/one").exists()
    });
    let again = add(&place, &text);
    assert!(
        again.code == 2 && again.stderr.contains("`knarr job update` replaces"),
        "{again:?}"
    );
    node.kill_now();
    let node = start(&place);
    fs::write(place.path("more/two"), "2").unwrap();
    wait_until(PATIENCE, "the second file", || {
        place.path("there/added/two").exists()
    });
    let shown = json(&place.run(&["job", "show", "added", "--json"]).good());
    assert_eq!(shown[0]["origin"], "added");
    assert_eq!(shown[0]["definition"]["schedule"]["cron"], "* * * * * *");
    let other = document(&place, "added", "    after: delete\n");
    let planned = place
        .run_with_input(&["job", "plan", "-", "--json"], other.as_bytes())
        .good();
    assert_eq!(
        json(&planned)[0]["keys"],
        serde_json::json!(["after", "schedule"])
    );
    let updated = place.run_with_input(&["job", "update", "-"], other.as_bytes());
    assert_eq!(updated.code, 0, "{updated:?}");
    place.run(&["job", "run", "added"]).good();
    assert!(
        !place.path("more/two").exists(),
        "it is the new one that ran"
    );
    place.run(&["job", "rm", "added"]).good();
    assert_eq!(place.run(&["job", "show", "added"]).code, 2);
    assert_eq!(place.run(&["job", "rm", "added"]).code, 2);
    assert_eq!(
        place.run(&["job", "rm", "own"]).code,
        2,
        "it is of the file"
    );
    node.terminate();
    place.run(&["audit", "verify"]).good();
}

#[test]
fn a_watch_is_added_paused_and_removed_while_the_node_runs() {
    let place = place();
    let node = start(&place);
    fs::create_dir_all(place.path("watched")).unwrap();
    let text = format!(
        "jobs:\n  watch: {{ watch: {}, to: {}, match: {{ settle: 50ms }} }}\n",
        place.path("watched").display(),
        place.path("seen").display()
    );
    assert_eq!(add(&place, &text).code, 0);
    fs::write(place.path("watched/a"), "a").unwrap();
    wait_until(PATIENCE, "the first", || place.path("seen/a").exists());
    place.run(&["job", "pause", "watch"]).good();
    let running = || {
        place
            .run(&["status", "--json"])
            .good()
            .contains("\"cause\":\"watch\"")
    };
    wait_until(PATIENCE, "the watch ends", || !running());
    fs::write(place.path("watched/b"), "b").unwrap();
    place.run(&["job", "resume", "watch"]).good();
    wait_until(PATIENCE, "the second", || place.path("seen/b").exists());
    place.run(&["job", "rm", "watch"]).good();
    assert!(!running());
    node.terminate();
}

#[test]
fn without_a_node_jobs_are_added_and_run_on_the_state_itself() {
    let place = place();
    let text = document(&place, "added", "");
    let added = add(&place, &text);
    assert_eq!(added.code, 0, "{added:?}");
    fs::write(place.path("more/one"), "1").unwrap();
    place.run(&["job", "run", "added"]).good();
    assert!(place.path("there/added/one").exists());
    assert!(place.run(&["job", "ls"]).good().contains("added"));
    let node = start(&place);
    assert!(place.run(&["job", "ls"]).good().contains("added"));
    node.terminate();
    place.run(&["job", "rm", "added"]).good();
    let none = place.run(&["reload"]);
    assert!(
        none.code == 4 && none.stderr.contains("no node runs"),
        "{none:?}"
    );
}

#[test]
fn k12_what_names_a_command_or_the_nodes_own_keys_is_refused_by_the_node() {
    let place = place();
    let node = start(&place);
    for more in [
        "    before: { command: [id] }\n",
        "    hooks: { after_run: [x] }\n",
        "    command: [id]\n",
        "    http_token: { env: HOME }\n",
        "    steps: [{ verify: { signed_by: [/etc/passwd] } }]\n",
    ] {
        let refused = add(&place, &document(&place, "evil", more));
        assert_eq!(refused.code, 2, "{more}: {refused:?}");
        let validated = place.run_with_input(
            &["job", "validate", "-"],
            document(&place, "evil", more).as_bytes(),
        );
        assert!(
            validated.code == 2 && validated.stdout.contains("stdin:"),
            "{more}: {validated:?}"
        );
    }
    for text in [
        "targets: { t1: { command: [id] } }",
        "node: { state: /tmp }",
        "endpoints: { e1: { type: sftp, host: h1, key: /home/someone/.ssh/id_ed25519 } }",
        "endpoints: { e1: { type: s3, bucket: b1 } }",
    ] {
        let refused = add(&place, text);
        assert_eq!(refused.code, 2, "{text}: {refused:?}");
    }
    assert_eq!(json(&place.run(&["job", "ls", "--json"]).good()).len(), 1);
    node.terminate();
}

#[test]
fn a_job_is_removed_while_its_run_is_under_way_and_the_run_ends_in_good_order() {
    let place = place();
    let node = start(&place);
    assert_eq!(
        add(&place, &document(&place, "slow", "    bandwidth: 10KiB\n")).code,
        0
    );
    fs::write(place.path("more/large"), vec![7; 4 << 20]).unwrap();
    let run = place
        .command(&["job", "run", "slow"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let under_way = || {
        place
            .run(&["status", "--json"])
            .good()
            .contains("\"cause\":\"manual\"")
    };
    wait_until(PATIENCE, "the run begins", under_way);
    let second = place.run(&["job", "run", "slow"]);
    assert!(
        second.code == 2 && second.stderr.contains("under way already"),
        "{second:?}"
    );
    place.run(&["job", "rm", "slow"]).good();
    let run: Done = run.wait_with_output().unwrap().into();
    assert!(
        run.code == 1 && run.stderr.contains("interrupted"),
        "{run:?}"
    );
    assert!(
        !place.path("there/slow/large").exists(),
        "half a file is never visible"
    );
    let ended = json(&place.run(&["run", "ls", "--job", "slow", "--json"]).good());
    assert_eq!(ended[0]["state"], "interrupted");
    node.terminate();
    place.run(&["audit", "verify"]).good();
}

#[test]
fn a_thousand_jobs_are_added_listed_and_there_after_a_restart() {
    let place = place();
    let node = start(&place);
    let mut text = "jobs:\n".to_owned();
    for number in 0..1_000 {
        text.push_str(&format!(
            "  job-{number}: {{ from: {}/, to: {}/{number}/, schedule: {{ cron: \"0 3 * * *\" }} }}\n",
            place.path("in").display(),
            place.path("out").display()
        ));
    }
    let added = add(&place, &text);
    assert_eq!(added.code, 0, "{}", added.stderr);
    assert_eq!(
        json(&place.run(&["job", "ls", "--json"]).good()).len(),
        1_001
    );
    node.kill_now();
    let node = start(&place);
    let jobs = json(&place.run(&["job", "ls", "--json"]).good());
    assert_eq!(jobs.len(), 1_001);
    assert!(jobs.iter().all(|job| job["problem"].is_null()));
    node.terminate();
}

#[test]
fn a_file_that_is_wrong_keeps_the_old_one_in_force_and_says_so() {
    let place = place();
    let node = start(&place);
    let good = fs::read_to_string(place.path("knarr.yaml")).unwrap();
    place.write(
        "knarr.yaml",
        format!("{good}  other: {{ from: in/, too: out/ }}\n"),
    );
    let reloaded = place.run(&["reload"]);
    assert_eq!(reloaded.code, 2, "{reloaded:?}");
    assert!(
        reloaded.stdout.contains("the file:3:"),
        "line and column: {reloaded:?}"
    );
    assert!(
        reloaded.stdout.contains("did you mean `to`"),
        "{reloaded:?}"
    );
    assert!(place.run(&["status"]).good().contains("its file is wrong"));
    place.run(&["job", "run", "own"]).good();
    place.write(
        "knarr.yaml",
        "jobs:\n  own: { from: in/, match: { settle: 0s }, to: elsewhere/ }\n  other: { from: in/, to: out2/ }\n",
    );
    let reloaded = place.run(&["reload"]).good();
    assert_eq!(reloaded, "changed   own\nadded     other\n");
    place.write("in/late", "late");
    place.run(&["job", "run", "own"]).good();
    assert!(place.path("elsewhere/late").exists() && !place.path("out/late").exists());
    assert!(!place.run(&["status"]).good().contains("its file is wrong"));
    place.write("knarr.yaml", "jobs:\n  other: { from: in/, to: out2/ }\n");
    node.signal_now(Signal::HUP);
    wait_until(PATIENCE, "the file is read at SIGHUP", || {
        json(&place.run(&["job", "ls", "--json"]).good()).len() == 1
    });
    assert_eq!(place.run(&["reload"]).good(), "no job changed\n");
    node.terminate();
}

#[test]
fn k11_events_are_told_once_and_in_order_over_any_number_of_connections() {
    let place = place();
    let node = start(&place);
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    for round in 0..12 {
        for number in 0..4 {
            place.write(&format!("in/{round}-{number}"), "x");
        }
        place.run(&["job", "run", "own"]).good();
        // A reader that goes after an event, anywhere.
        let told = json(&place.run(&["events", "--from", &cursor, "--json"]).good());
        let take = if round == 11 {
            told.len()
        } else {
            told.len().min(1 + round % 5)
        };
        for event in told.into_iter().take(take) {
            cursor = event["cursor"].as_str().unwrap().to_owned();
            if event["event"] != "caught_up" {
                seen.push(event);
            }
        }
    }
    let all = json(&place.run(&["events", "--json"]).good());
    let bare = |events: &[serde_json::Value]| -> Vec<(String, String)> {
        let known = events.iter().filter(|event| event["event"] != "caught_up");
        known
            .map(|event| (event["event"].to_string(), event["data"].to_string()))
            .collect()
    };
    let key = |events: Vec<(String, String)>| {
        let mut keys: Vec<_> = events
            .into_iter()
            .map(|(name, data)| {
                let data: serde_json::Value = serde_json::from_str(&data).unwrap();
                format!("{name} {} {}", data["run"], data["seq"])
            })
            .collect();
        keys.sort();
        keys
    };
    assert_eq!(
        key(bare(&seen)),
        key(bare(&all)),
        "all of it, and nothing twice"
    );
    let files =
        |events: &[serde_json::Value]| events.iter().filter(|e| e["event"] == "file").count();
    assert_eq!(files(&seen), 48);
    let follower = place
        .command(&["events", "--from", &cursor, "--follow", "--json"])
        .stdout(fs::File::create(place.path("followed")).unwrap())
        .spawn()
        .unwrap();
    let follower = Running::of(follower);
    place.write("in/last", "x");
    place.run(&["job", "run", "own"]).good();
    wait_until(PATIENCE, "the end of the last run", || {
        fs::read_to_string(place.path("followed"))
            .unwrap()
            .contains("\"event\":\"ended\"")
    });
    drop(follower);
    node.terminate();
    let without_a_node = json(&place.run(&["events", "--from", &cursor, "--json"]).good());
    assert_eq!(files(&without_a_node), 1);
    assert_eq!(place.run(&["events", "--from", "nonsense"]).code, 2);
}

#[test]
fn systemd_is_told_when_the_node_is_ready_alive_reloading_and_stopping() {
    let place = place();
    let path = place.path("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let node = Running::start_with(
        &place,
        &[
            ("NOTIFY_SOCKET", path.to_str().unwrap()),
            ("WATCHDOG_USEC", "400000"),
        ],
    );
    let heard = |what: &str| loop {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect(what);
        if String::from_utf8_lossy(&buffer[..length]).contains(what) {
            return;
        }
    };
    heard("READY=1");
    heard("WATCHDOG=1");
    answers(&place);
    node.signal_now(Signal::HUP);
    heard("RELOADING=1\nMONOTONIC_USEC=");
    heard("READY=1");
    node.terminate();
    heard("STOPPING=1");
}

/// A request over HTTP, with everything that was answered.
fn call(port: u16, request: &str) -> String {
    use std::io::Read as _;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
