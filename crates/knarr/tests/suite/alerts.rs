//! People are told: what failed, what did not come, what is held, who is down, what expires.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use knarr_testkit::receiver::{HttpReceiver, MailReceiver, MailTls};
use knarr_testkit::sshd::Sshd;
use knarr_testkit::wait_until;

use crate::faults::support::{PATIENCE, Running, sftp_endpoint};
use crate::program::Place;

fn alerts(receiver: &HttpReceiver) -> Vec<serde_json::Value> {
    let received = receiver.received();
    received
        .iter()
        .map(|request| serde_json::from_str(&request.body).unwrap())
        .collect()
}

/// Rule, subject and event of each alert.
fn told(receiver: &HttpReceiver) -> Vec<String> {
    let of = |alert: &serde_json::Value| {
        let data = &alert["data"];
        let word = |name: &str| data[name].as_str().unwrap().to_owned();
        format!("{} {} {}", word("rule"), word("name"), word("event"))
    };
    alerts(receiver).iter().map(of).collect()
}

fn target(receiver: &HttpReceiver) -> String {
    format!(
        "targets:\n  chat:\n    webhook: {{ url: \"{}\" }}\n    retry: {{ from: 20ms, to: 100ms }}\n",
        receiver.url("/")
    )
}

/// The text of a mail, whatever it is encoded in.
fn text_of(mail: &str) -> String {
    let mut python = Command::new("python3")
        .args([
            "-c",
            "import sys, email\nmail = sys.stdin.read().replace('\\r', '').split('\\n\\n', 1)[1]\n\
             print(email.message_from_string(mail).get_payload(decode=True).decode())",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    python
        .stdin
        .take()
        .unwrap()
        .write_all(mail.as_bytes())
        .unwrap();
    let done = python.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn a_run_that_fails_is_told_by_mail_once_and_so_is_its_recovery() {
    let mail = MailReceiver::start(MailTls::Starttls, Some(("knarr", "hunter2")));
    let place = Place::new();
    let (address, ca) = (mail.address(), mail.certificate().path());
    place
        .run_with_input(&["secret", "set", "mail"], b"hunter2")
        .good();
    place.write(
        "knarr.yaml",
        format!(
            "node: {{ name: edge-1 }}\ntargets:\n  oncall:\n    email:\n      host: localhost\n      port: {}\n      \
             user: knarr\n      password: {{ secret: mail }}\n      from: knarr@example.org\n      \
             to: [ops@example.org]\n      ca: {}\njobs:\n  invoices:\n    from: outbox/\n    \
             match: {{ settle: 0s }}\n    to: in/\n    alert: [{{ on: {{ failure: 1 }}, to: [oncall] }}]\n",
            address.port(),
            ca.display()
        ),
    );
    // There is no outbox.
    for _ in 0..3 {
        let failed = place.run(&["job", "run", "invoices"]);
        assert_ne!(failed.code, 0, "{failed:?}");
    }
    let mails = mail.mails();
    assert_eq!(mails.len(), 1, "once for all three: {mails:?}");
    assert!(mails[0].contains("ops@example.org"), "{mails:?}");
    assert!(
        text_of(&mails[0]).contains("job invoices failed"),
        "{mails:?}"
    );
    let lasting = place.run(&["alert", "ls"]).good();
    assert!(
        lasting.contains("invoices.failure") && lasting.contains("invoices since"),
        "{lasting}"
    );
    fs::create_dir(place.path("outbox")).unwrap();
    place.run(&["job", "run", "invoices"]).good();
    let mails = mail.mails();
    assert_eq!(mails.len(), 2, "{mails:?}");
    assert!(text_of(&mails[1]).contains("succeeded again"), "{mails:?}");
    assert!(!place.run(&["alert", "ls"]).good().contains("since"));
}

#[test]
fn a_dead_mans_switch_is_told_once_and_ends_when_something_comes() {
    let receiver = HttpReceiver::start();
    let place = Place::new();
    fs::create_dir(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "{}alerts:\n  silent: {{ on: {{ nothing_for: 1s }}, to: [chat], severity: critical }}\njobs:\n  prices:\n    \
             watch: outbox/\n    match: {{ settle: 0s }}\n    to: in/\n",
            target(&receiver)
        ),
    );
    let node = Running::start(&place);
    wait_until(PATIENCE, "the alert", || !receiver.received().is_empty());
    let alert = alerts(&receiver).remove(0);
    assert_eq!(alert["data"]["event"], "problem", "{alert}");
    assert_eq!(alert["data"]["severity"], "critical", "{alert}");
    let text = alert["data"]["text"].as_str().unwrap();
    assert!(text.contains("job prices: nothing came for 1s"), "{text}");
    place.write("outbox/today.csv", "1");
    wait_until(PATIENCE, "the recovery", || receiver.received().len() == 2);
    node.terminate();
    assert_eq!(
        told(&receiver),
        ["silent prices problem", "silent prices recovered"]
    );
}

#[test]
fn an_endpoint_that_is_down_and_its_return_are_told_by_the_name_of_the_configuration() {
    let receiver = HttpReceiver::start();
    let mut server = Sshd::start();
    let place = Place::new();
    fs::create_dir(place.path("outbox")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "{}alerts:\n  down: {{ on: {{ endpoint_down: 0s }}, about: [partner], to: [chat] }}\nendpoints:\n{}jobs:\n  \
             send:\n    watch: outbox/\n    match: {{ settle: 0s }}\n    to: partner:in/\n    \
             retry: {{ from: 100ms, to: 500ms }}\n",
            target(&receiver),
            sftp_endpoint(&server, server.port())
        ),
    );
    server.kill();
    place.write("outbox/a", "x");
    let node = Running::start(&place);
    wait_until(PATIENCE, "the alert", || !receiver.received().is_empty());
    server.restart();
    wait_until(PATIENCE, "the recovery", || receiver.received().len() == 2);
    node.terminate();
    assert_eq!(
        told(&receiver),
        ["down partner problem", "down partner recovered"]
    );
}

#[test]
fn a_held_plan_is_told_and_so_is_its_release() {
    let receiver = HttpReceiver::start();
    let place = Place::new();
    for number in 0..200 {
        place.write(&format!("site/{number}"), "x");
    }
    place.write(
        "knarr.yaml",
        format!(
            "{}alerts:\n  held: {{ on: {{ held: {{}} }}, to: [chat] }}\njobs:\n  site:\n    from: site/\n    \
             match: {{ settle: 0s }}\n    to: out/\n    deletes: mirror\n    schedule: {{ cron: \"0 0 1 1 *\" }}\n",
            target(&receiver)
        ),
    );
    place.run(&["job", "run", "site"]).good();
    for number in 0..199 {
        fs::remove_file(place.path(&format!("site/{number}"))).unwrap();
    }
    let held = place.run(&["job", "run", "site"]);
    assert_eq!(held.code, 3, "{held:?}");
    let node = Running::start(&place);
    wait_until(PATIENCE, "the alert", || !receiver.received().is_empty());
    node.terminate();
    let alert = alerts(&receiver).remove(0);
    let text = alert["data"]["text"].as_str().unwrap();
    assert!(text.contains("199 of 200 would be deleted"), "{text}");
    place.run(&["approve", "site", "--yes"]).good();
    place.run(&["job", "run", "site"]).good();
    let node = Running::start(&place);
    wait_until(PATIENCE, "the release", || receiver.received().len() == 2);
    node.terminate();
    assert_eq!(
        told(&receiver),
        ["held site problem", "held site recovered"]
    );
}

#[test]
fn a_certificate_that_is_about_to_expire_is_told() {
    let receiver = HttpReceiver::start();
    let place = Place::new();
    fs::create_dir(place.path("keys")).unwrap();
    fs::create_dir(place.path("outbox")).unwrap();
    let keygen = |arguments: &[&str]| {
        let done = Command::new("ssh-keygen")
            .args(arguments)
            .current_dir(place.path("keys"))
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f", "ca"]);
    for (name, validity) in [
        ("soon", "+5d"),
        ("late", "+400d"),
        ("ever", "always:forever"),
    ] {
        keygen(&["-q", "-t", "ed25519", "-N", "", "-f", name]);
        let public = format!("{name}.pub");
        keygen(&[
            "-q", "-s", "ca", "-I", name, "-n", "u", "-V", validity, &public,
        ]);
    }
    place.write(
        "knarr.yaml",
        format!(
            "{}alerts:\n  renew: {{ on: {{ expiring: 14d }}, to: [chat] }}\nendpoints:\n  partner:\n    type: sftp\n    \
             host: 127.0.0.1\n    key: [keys/soon, keys/late, keys/ever]\njobs:\n  send:\n    watch: outbox/\n    \
             to: in/\n",
            target(&receiver)
        ),
    );
    let node = Running::start(&place);
    wait_until(PATIENCE, "the alert", || !receiver.received().is_empty());
    node.terminate();
    let certificate = place.path("keys/soon-cert.pub");
    assert_eq!(
        told(&receiver),
        [format!("renew {} problem", certificate.display())]
    );
}

#[test]
fn a_test_message_is_sent_at_once_and_its_answer_is_shown() {
    let receiver = HttpReceiver::start();
    let closed = HttpReceiver::down();
    let place = Place::new();
    place.write(
        "knarr.yaml",
        format!(
            "targets:\n  chat: {{ webhook: {{ url: \"{}\" }} }}\n  gone: {{ webhook: {{ url: \"{}\" }} }}\nalerts:\n  \
             failing: {{ on: {{ failure: 1 }}, to: [chat], escalate: [{{ after: 1h, to: [gone] }}] }}\n",
            receiver.url("/"),
            closed.url("/")
        ),
    );
    let good = place.run(&["alert", "test", "chat"]).good();
    assert!(good.contains("delivered  chat   ok"), "{good}");
    assert!(
        alerts(&receiver)[0]["data"]["text"]
            .as_str()
            .unwrap()
            .contains("test message"),
        "{:?}",
        receiver.received()
    );
    let mixed = place.run(&["alert", "test", "failing"]);
    assert_eq!(mixed.code, 4, "{mixed:?}");
    assert!(mixed.stdout.contains("delivered  chat"), "{mixed:?}");
    assert!(
        mixed.stdout.contains("not delivered  gone") && mixed.stdout.contains("cannot be reached"),
        "{mixed:?}"
    );
    let unknown = place.run(&["alert", "test", "caht"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert!(
        unknown.stderr.contains("did you mean `chat`?"),
        "{unknown:?}"
    );
    let rules = place.run(&["alert", "ls"]).good();
    assert!(
        rules.contains("failing") && rules.contains("a run failed") && rules.contains("chat, gone"),
        "{rules}"
    );
}

/// The blocks of YAML of a page.
fn blocks(page: &str) -> Vec<String> {
    let text = fs::read_to_string(crate::program::repository().join(page)).unwrap();
    let mut blocks = Vec::new();
    for part in text.split("```yaml\n").skip(1) {
        blocks.push(part.split("```").next().unwrap().to_owned());
    }
    blocks
}

#[test]
fn what_the_pages_show_is_a_configuration() {
    let endpoints = "endpoints:\n  partner: { type: local, path: partner }\n  archive: { type: local, path: archive }\n";
    let page = blocks("docs/alerts.md");
    let block = |begin: &str, also: &str| {
        let found = page
            .iter()
            .find(|block| block.starts_with(begin) && block.contains(also));
        found
            .unwrap_or_else(|| panic!("a block that begins with {begin} and has {also}"))
            .clone()
    };
    let jobs = block("jobs:", "before:");
    let further = "  prices: { watch: prices, to: archive:prices/ }\n  sensors: { watch: sensors, to: archive:sensors/ }\n";
    let all = [
        endpoints,
        &block("targets:", "postgres:"),
        &block("alerts:", "escalate:"),
        &jobs,
        further,
    ]
    .concat();
    let short = [endpoints, &block("targets:", "nothing_by")].concat();
    let readme = blocks("README.md");
    let told = readme
        .iter()
        .find(|block| block.contains("nothing_by"))
        .unwrap();
    let readme = [endpoints, told].concat();
    let notifier = blocks("docs/notifier.md").remove(0);
    let metrics = blocks("docs/metrics.md").remove(0);
    for text in [all, short, readme, notifier, metrics] {
        let place = Place::new();
        place.write("knarr.yaml", &text);
        let checked = place.run(&["check"]);
        assert_eq!(checked.code, 0, "{text}\n{checked:?}");
    }
}
