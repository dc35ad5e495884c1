//! Jobs that take files from a partner's server when they run.

use std::fs;

use knarr_testkit::gpg::{ED25519, Gpg, run_in};
use knarr_testkit::proxy::{Action, Direction, Fault, FaultProxy};
use knarr_testkit::sshd::Sshd;
use knarr_testkit::wait_until;

use crate::faults::support::{PATIENCE, Running, large_file, sftp_endpoint};
use crate::program::Place;

/// A job `invoices` that takes what is in `outbox` on the server, and its configuration's further lines.
fn partner(server: &Sshd, port: u16, more: &str) -> Place {
    let place = Place::new();
    fs::create_dir_all(server.data_directory().join("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "endpoints:\n{}jobs:\n  invoices:\n    from: partner:outbox/\n    match: {{ settle: 0s }}\n    \
             to: in/\n{more}",
            sftp_endpoint(server, port)
        ),
    );
    place
}

fn count(records: &str, action: &str, path: &str) -> usize {
    let is_it = |line: &&str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["action"] == action && record["path"] == path
    };
    records.lines().filter(is_it).count()
}

fn records(place: &Place) -> String {
    place
        .run(&["history", "--files", "--json", "--limit", "100000"])
        .good()
}

#[test]
fn a_partners_server_is_polled_by_hand_and_by_the_clock() {
    let server = Sshd::start();
    let place = partner(
        &server,
        server.port(),
        "    after: delete\n    schedule: { cron: \"* * * * * *\", timezone: Europe/Berlin }\n",
    );
    let outbox = server.data_directory().join("outbox");
    fs::write(outbox.join("INV-1.xml"), "to be paid").unwrap();
    let listed = place.run(&["job", "ls"]).good();
    assert!(
        listed.contains("invoices") && listed.contains("never ran"),
        "{listed}"
    );
    let preview = place.run(&["job", "run", "invoices", "--dry-run"]).good();
    assert!(
        preview.starts_with("take ") && preview.contains("INV-1.xml"),
        "{preview}"
    );
    assert!(!place.path("in/INV-1.xml").exists());
    let done = place.run(&["job", "run", "invoices"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("1 created"), "{done:?}");
    assert_eq!(
        fs::read_to_string(place.path("in/INV-1.xml")).unwrap(),
        "to be paid"
    );
    assert!(!outbox.join("INV-1.xml").exists());
    let again = place.run(&["job", "run", "invoices"]);
    assert!(
        again.code == 0 && again.stderr.contains("nothing to do"),
        "{again:?}"
    );
    let shown = place.run(&["job", "show", "invoices"]).good();
    assert_eq!(
        shown.matches(" CE").count(),
        5,
        "the next five times: {shown}"
    );
    assert!(
        shown.contains("runs at") && shown.contains(" CE"),
        "{shown}"
    );
    let node = Running::start(&place);
    fs::write(outbox.join("INV-2.xml"), "another").unwrap();
    wait_until(PATIENCE, "the second invoice", || {
        place.path("in/INV-2.xml").exists() && !outbox.join("INV-2.xml").exists()
    });
    node.terminate();
    let records = records(&place);
    for name in ["INV-1.xml", "INV-2.xml"] {
        assert_eq!(count(&records, "created", name), 1, "{records}");
        assert_eq!(count(&records, "source_removed", name), 1, "{records}");
    }
    let paused = place.run(&["job", "pause", "invoices"]).good();
    assert!(paused.contains("paused"), "{paused}");
    assert!(place.run(&["job", "ls"]).good().contains("paused since"));
    place.run(&["job", "resume", "invoices"]).good();
    place.run(&["audit", "verify"]).good();
}

#[test]
fn k4_k7_r49_a_pickup_that_is_cut_anywhere_delivers_each_version_once() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).start();
    let place = partner(
        &server,
        proxy.port(),
        "    after: delete\n    retry: { attempts: 4, from: 20ms, to: 50ms }\n",
    );
    let outbox = server.data_directory().join("outbox");
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
    let records = records(&place);
    for file in &files {
        assert!(place.path("in").join(file).exists(), "{file}");
        assert_eq!(count(&records, "created", file), 1, "{file}");
        assert_eq!(count(&records, "source_removed", file), 1, "{file}");
    }
    place.run(&["audit", "verify"]).good();
}

#[test]
fn r43_a_partner_that_does_not_answer_fails_the_run_with_exit_code_4_and_a_reason_in_the_history() {
    let mut server = Sshd::start();
    let place = partner(&server, server.port(), "");
    server.kill();
    let done = place.run(&["job", "run", "invoices"]);
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("cannot be reached"), "{done:?}");
    let shown = place.run(&["job", "show", "invoices"]).good();
    assert!(
        shown.contains("failed") && shown.contains("cannot be reached"),
        "{shown}"
    );
}

#[test]
fn what_is_wrong_with_a_schedule_or_an_order_of_jobs_is_told_where_it_stands() {
    for (job, told) in [
        (
            "from: a/\n    to: b/\n    schedule: { cron: \"61 * * * *\" }",
            "no cron pattern",
        ),
        (
            "from: a/\n    to: b/\n    schedule: { cron: \"0 0 30 2 *\" }",
            "never comes to pass",
        ),
        (
            "from: a/\n    to: b/\n    schedule: { cron: \"* * * * *\", timezone: Mars }",
            "not a time zone",
        ),
        (
            "from: a/\n    to: b/\n    after_job: other",
            "there is no job `other`",
        ),
        (
            "from: a/\n    to: b/\n    after_job: first",
            "follow itself",
        ),
        (
            "from: a/\n    watch: c/\n    to: b/",
            "either watches directories or takes files",
        ),
        (
            "watch: a/\n    to: b/\n    schedule: { cron: \"* * * * *\" }",
            "does not run by the clock",
        ),
        ("to: b/", "no source is named"),
        (
            "from: a/\n    to: b/\n    steps: [extract]\n    deletes: mirror",
            "`extract` makes several",
        ),
        (
            "watch: a/\n    to: b/\n    checks: [{ min_files: 2 }]",
            "no runs that a condition could skip",
        ),
        (
            "watch: a/\n    to: b/\n    match: { limit: 2 }",
            "takes what comes",
        ),
        (
            "watch: a/\n    to: b/\n    match: { include: \"{today:%F}.csv\" }",
            "are for jobs that run",
        ),
        (
            "from: a/\n    to: b/\n    match: { modified_from: tomorrow }",
            "is not a moment",
        ),
        (
            "from: a/\n    to: \"b/{customer}/\"\n    match: { regex: \"(?<client>.*)\" }",
            "not a placeholder",
        ),
        (
            "from: a/\n    to: b/\n    match: { regex: \"a(\" }",
            "unclosed group",
        ),
        (
            "from: a/\n    to: b/\n    window: { from: \"25:00\", to: \"06:00\" }",
            "not a time of day",
        ),
        (
            "from: a/\n    to: b/\n    checks: [{ scan: { command: [clamscan] } }]",
            "absolute path of a program",
        ),
        (
            "watch: a/\n    to: b/\n    publish: batch",
            "has no runs whose files could be published together",
        ),
        (
            "from: a/\n    to: b/\n    publish: batch\n    deletes: mirror",
            "takes files away one by one",
        ),
        (
            "from: a/\n    to: b/\n    publish: { last: \"a[\" }",
            "is not a glob",
        ),
        (
            "from: a/\n    to: b/\n    publish: { last: \"*.x\" }\n    match: { manifest: { file: \"*.x\" } }",
            "says what comes last",
        ),
        (
            "watch: a/\n    to: b/\n    match: { manifest: { file: \"*.x\" } }",
            "a manifest is for jobs that run",
        ),
        (
            "from: a/\n    to: b/\n    match: { limit: 3, manifest: { file: \"*.x\" } }",
            "could leave out what a manifest lists",
        ),
        (
            "from: a/\n    to: b/\n    match: { manifest: { file: \"*.x\", format: xml } }",
            "sha256sum",
        ),
        (
            "from: a/\n    to: b/\n    after: { rename: a/b }",
            "added to the name",
        ),
        (
            "from: a/\n    to: b/\n    checks: [{ scan: { icap: \"http://scanner/x\" } }]",
            "is not the URL of an ICAP service",
        ),
        (
            "from: a/\n    to: b/\n    checks: [{ scan: { icap: \"icap://s/x\", command: [/bin/true] } }]",
            "not both",
        ),
        (
            "from: a/\n    to: b/\n    checks: [{ duplicates: skip }]\n    deletes: mirror",
            "another file of the same content stands for",
        ),
        (
            "from: a/\n    to: b/\n    checks: [{ duplicates_within: 1d }]",
            "how long contents are remembered",
        ),
        (
            "from: a/\n    to: b/\n    acknowledge: { file: \"{name}\" }",
            "could have such a name",
        ),
        (
            "from: a/\n    to: b/\n    acknowledge: { file: \"{name}.ok\", content: \"{secret}\" }",
            "`{secret}` is not a placeholder here",
        ),
        (
            "from: a/\n    to: b/\n    acknowledge: { file: \"{name}.ok\", per: run }",
            "`{name}` is not a placeholder here: use {files}",
        ),
        (
            "watch: a/\n    to: b/\n    acknowledge: { file: \"ok-{run}\", per: run }",
            "has no runs; it can acknowledge each file",
        ),
        (
            "from: a/\n    to: b/\n    parameters: { Day: { default: x } }",
            "cannot be the name of a parameter",
        ),
        (
            "from: a/\n    to: b/\n    parameters: { day: { default: x, pattern: \"[0-9]+\" } }",
            "is not a value of the parameter `day`",
        ),
        (
            "from: a/\n    to: b/\n    parameters: { day: {} }\n    schedule: { cron: \"* * * * *\" }",
            "nobody gives it a value when the job runs by itself",
        ),
        (
            "from: a/\n    to: \"b/{param.day}/\"",
            "`{param.day}` is not a placeholder",
        ),
        (
            "from: a/\n    to: b/\n    match: { include: \"{param.day}.csv\" }",
            "has no parameter `day`",
        ),
        (
            "watch: a/\n    to: b/\n    parameters: { day: { default: x } }",
            "no runs that anybody could give values to",
        ),
    ] {
        let place = Place::new();
        place.write("knarr.yaml", format!("jobs:\n  first:\n    {job}\n"));
        let checked = place.run(&["check"]);
        assert_eq!(checked.code, 2, "{job}: {checked:?}");
        assert!(checked.stderr.contains(told), "{job}: {checked:?}");
        assert!(checked.stderr.contains("knarr.yaml:"), "{job}: {checked:?}");
    }
}

#[test]
fn k2_what_a_partner_encrypts_and_packs_is_verified_unpacked_and_removed() {
    let server = Sshd::start();
    let gpg = Gpg::new();
    for name in ["ours", "partner"] {
        gpg.generate(ED25519, name, &[], "%no-protection");
    }
    let place = partner(
        &server,
        server.port(),
        "    after: delete\n    steps: [{ decrypt: { pgp: our-key, signed_by: [keys/partner.asc] } }, extract]\n",
    );
    let early = place.run(&["job", "run", "invoices"]);
    assert!(
        early.code == 2 && early.stderr.contains("our-key"),
        "the secret is not there yet: {early:?}"
    );
    place
        .run_with_input(&["secret", "set", "our-key"], &gpg.secret("ours"))
        .good();
    let missing = place.run(&["job", "run", "invoices"]);
    assert!(
        missing.code == 2 && missing.stderr.contains("keys/partner.asc"),
        "{missing:?}"
    );
    fs::create_dir(place.path("keys")).unwrap();
    fs::write(place.path("keys/partner.asc"), gpg.public("partner")).unwrap();
    let making = tempfile::tempdir().unwrap();
    for name in ["INV-1.xml", "INV-2.xml"] {
        fs::write(making.path().join(name), name).unwrap();
    }
    run_in(
        making.path(),
        "zip",
        &["-q", "all.zip", "INV-1.xml", "INV-2.xml"],
        b"",
    )
    .unwrap();
    let zip = fs::read(making.path().join("all.zip")).unwrap();
    let signed = ["-e", "-r", "ours", "-s", "-u", "partner"];
    let outbox = server.data_directory().join("outbox");
    fs::write(outbox.join("all.zip.gpg"), gpg.run(&signed, &zip)).unwrap();
    fs::write(
        outbox.join("unsigned.zip.gpg"),
        gpg.run(&["-e", "-r", "ours"], &zip),
    )
    .unwrap();
    let done = place.run(&["job", "run", "invoices"]);
    assert_eq!(done.code, 1, "one of them is not signed: {done:?}");
    assert!(done.stderr.contains("unsigned.zip.gpg"), "{done:?}");
    for name in ["INV-1.xml", "INV-2.xml"] {
        assert_eq!(
            fs::read_to_string(place.path("in").join(name)).unwrap(),
            name
        );
    }
    assert_eq!(fs::read_dir(place.path("in")).unwrap().count(), 2);
    assert!(!outbox.join("all.zip.gpg").exists());
    assert!(outbox.join("unsigned.zip.gpg").exists());
    let parked = place.run(&["queue", "--parked"]).good();
    assert!(
        parked.contains("unsigned.zip.gpg") && parked.contains("sign"),
        "{parked}"
    );
    let story = place.run(&["trace", "all.zip.gpg"]).good();
    assert!(
        story.contains("INV-1.xml") && story.contains("INV-2.xml") && story.contains("decrypt"),
        "{story}"
    );
    place.run(&["audit", "verify"]).good();
}
