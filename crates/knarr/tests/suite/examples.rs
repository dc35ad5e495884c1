//! The configurations in `examples/`, each at work with real servers.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use knarr_testkit::gpg::{ED25519, Gpg, run_in};
use knarr_testkit::port::ReservedPort;
use knarr_testkit::receiver::HttpReceiver;
use knarr_testkit::s3::{S3Server as _, S3sFs};
use knarr_testkit::sshd::Sshd;
use knarr_testkit::wait_until;

use crate::faults::support::{PATIENCE, Running, bucket_directory, s3_endpoint, sftp_endpoint};
use crate::program::Place;

fn example(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    fs::read_to_string(root.join(name).join("knarr.yaml")).unwrap()
}

/// The example, with an endpoint that is there in the place of the one that is not.
fn with_endpoint(text: &str, name: &str, lines: &str) -> String {
    let begin = format!("  {name}: {{");
    assert_eq!(text.matches(&begin).count(), 1, "{text}");
    let line = |line: &str| {
        if line.starts_with(&begin) {
            lines.to_owned()
        } else {
            format!("{line}\n")
        }
    };
    text.lines().map(line).collect()
}

/// Writes a file that is at rest since an hour.
fn old_file(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3_600))
        .unwrap();
}

fn files_below(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    found.sort();
    found
}

#[test]
fn a_partner_is_polled() {
    let server = Sshd::start();
    let place = Place::new();
    let endpoint = sftp_endpoint(&server, server.port());
    let text = with_endpoint(&example("poll-a-partner"), "partner", &endpoint);
    place.write("knarr.yaml", text);
    place.run(&["check"]).good();
    let outbox = server.data_directory().join("outbox");
    old_file(&outbox.join("INV-1.xml"), b"<invoice/>");
    let sums = run_in(&outbox, "sha256sum", &["INV-1.xml"], b"").unwrap();
    old_file(&outbox.join("INV-1.xml.sha256"), &sums);
    old_file(
        &outbox.join("INV-2.xml"),
        b"<its checksum is still to come/>",
    );
    old_file(&outbox.join("partner.lock"), b"");
    let skipped = place.run(&["job", "run", "invoices"]);
    assert!(
        skipped.code == 0
            && skipped.stderr.contains("skipped: ")
            && skipped.stderr.contains("partner.lock"),
        "{skipped:?}"
    );
    fs::remove_file(outbox.join("partner.lock")).unwrap();
    place.run(&["job", "run", "invoices"]).good();
    assert_eq!(files_below(&place.path("in")), ["INV-1.xml"]);
    assert_eq!(files_below(&outbox), ["INV-2.xml"]);
    place.run(&["job", "run", "archive-invoices"]);
    assert_eq!(files_below(&place.path("archive")), ["INV-1.xml.zst"]);
}

#[test]
fn uploads_are_received_and_delivered_at_once() {
    let place = Place::new();
    let port = ReservedPort::new().unwrap();
    let address = format!("127.0.0.1:{}", port.number());
    place.write(
        "knarr.yaml",
        example("receive-uploads").replace("127.0.0.1:2022", &address),
    );
    let key = ["-q", "-t", "ed25519", "-N", "", "-f", "acme"];
    run_in(&place.path(""), "ssh-keygen", &key, b"").unwrap();
    for directory in ["in", "out"] {
        fs::create_dir(place.path(directory)).unwrap();
    }
    place.write("order.csv", "1;2");
    let node = Running::start(&place);
    wait_until(PATIENCE, "the server", || {
        std::net::TcpStream::connect(&address).is_ok()
    });
    let mut sftp = Command::new("sftp")
        .args(["-F", "/dev/null", "-o", "StrictHostKeyChecking=no"])
        .args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
        ])
        .args(["-i", "acme", "-b", "-", "-P", &port.number().to_string()])
        .arg("acme@127.0.0.1")
        .current_dir(place.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    sftp.stdin
        .take()
        .unwrap()
        .write_all(b"put order.csv /in/\n")
        .unwrap();
    let ended = sftp.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    wait_until(PATIENCE, "the order", || {
        files_below(&place.path("orders")) == ["order.csv"]
            && files_below(&place.path("in")).is_empty()
    });
    node.terminate();
    let runs = place.run(&["history", "--json"]).good();
    assert!(runs.contains("\"upload\""), "{runs}");
}

#[test]
fn what_is_signed_and_packed_is_unpacked() {
    let gpg = Gpg::new();
    for name in ["ours", "partner"] {
        gpg.generate(ED25519, name, &[], "%no-protection");
    }
    let place = Place::new();
    place.write("knarr.yaml", example("decrypt-and-unpack"));
    place
        .run_with_input(&["secret", "set", "our-key"], &gpg.secret("ours"))
        .good();
    place.write("keys/partner.asc", gpg.public("partner"));
    let making = tempfile::tempdir().unwrap();
    for name in ["a.csv", "b.csv"] {
        fs::write(making.path().join(name), name).unwrap();
    }
    run_in(
        making.path(),
        "zip",
        &["-q", "all.zip", "a.csv", "b.csv"],
        b"",
    )
    .unwrap();
    let zip = fs::read(making.path().join("all.zip")).unwrap();
    let message = gpg.run(&["-e", "-r", "ours", "-s", "-u", "partner"], &zip);
    old_file(&place.path("inbox/all.zip.gpg"), &message);
    place.run(&["job", "run", "statements"]).good();
    assert_eq!(files_below(&place.path("statements")), ["a.csv", "b.csv"]);
    assert_eq!(files_below(&place.path("inbox/done")), ["all.zip.gpg"]);
}

#[test]
fn somebody_is_told_of_a_run_that_fails_and_of_one_that_is_well_again() {
    let receiver = HttpReceiver::start();
    let place = Place::new();
    let url = receiver.url("/knarr");
    let text = example("told-of-trouble").replace("https://hooks.example.org/knarr", &url);
    place.write("knarr.yaml", text);
    place
        .run_with_input(&["secret", "set", "hook-secret"], b"sentinel-hook")
        .good();
    place.run(&["alert", "test", "oncall"]).good();
    assert_eq!(receiver.received().len(), 1);
    let failed = place.run(&["job", "run", "prices"]);
    assert_ne!(failed.code, 0, "there is no such directory: {failed:?}");
    old_file(&place.path("incoming/prices.csv"), b"1");
    place.run(&["job", "run", "prices"]).good();
    let bodies = || -> Vec<String> {
        let all = receiver.received();
        all.iter().map(|one| one.body.clone()).collect()
    };
    wait_until(PATIENCE, "the messages", || bodies().len() >= 5);
    let all = bodies().join("\n");
    for word in ["\"problem\"", "\"recovered\"", "after_run"] {
        assert!(all.contains(word), "{word}: {all}");
    }
    let rules = place.run(&["alert", "ls"]).good();
    assert!(rules.contains("prices"), "{rules}");
}

#[test]
fn watched_folders_go_to_a_bucket() {
    let server = S3sFs::start();
    let place = Place::new();
    let lines = s3_endpoint(&server, &server.endpoint_url()).replace("  bucket:\n", "  archive:\n");
    let text = with_endpoint(&example("watched-folders-to-s3"), "archive", &lines);
    place.write("knarr.yaml", text);
    for directory in ["upload/acme", "upload/beta"] {
        fs::create_dir_all(place.path(directory)).unwrap();
    }
    let secrets = [
        ("FAULTS_ACCESS_KEY", server.access_key()),
        ("FAULTS_SECRET_KEY", server.secret_key()),
    ];
    let node = Running::start_with(&place, &secrets);
    fs::write(place.path("sensor.csv"), "t;v\n1;2\n").unwrap();
    run_in(&place.path(""), "gzip", &["-k", "sensor.csv"], b"").unwrap();
    fs::rename(
        place.path("sensor.csv.gz"),
        place.path("upload/beta/sensor.csv.gz"),
    )
    .unwrap();
    wait_until(PATIENCE, "the object", || {
        files_below(&bucket_directory(&server).join("raw")) == ["sensor.csv"]
    });
    node.terminate();
}
