//! Endpoints of the configuration, on real servers.

use knarr_testkit::s3::{S3Server as _, S3sFs};
use knarr_testkit::sshd::Sshd;

use crate::program::Place;

fn with_sshd(server: &Sshd, host_key: &str) -> Place {
    let place = Place::new();
    place.write(
        "knarr.yaml",
        format!(
            "endpoints:\n  partner:\n    type: sftp\n    host: 127.0.0.1\n    port: {}\n    user: {}\n    \
             key: {}\n    path: {}\n    host_key: {host_key}\n    limits: {{ transfers: 4, bandwidth: 100MiB }}\n",
            server.port(),
            server.user(),
            server.client_key_path().display(),
            server.data_directory().display(),
        ),
    );
    place
}

#[test]
fn an_sftp_endpoint_is_checked_listed_written_and_read() {
    let server = Sshd::start();
    let place = with_sshd(&server, &server.host_key_fingerprint());
    let checked = place.run(&["check", "--connect"]).good();
    assert!(
        checked.contains("reached") && checked.contains(" free"),
        "{checked}"
    );
    place.write("in/a", "1");
    place.write("in/sub/b", "2");
    place.run(&["copy", "in", "partner:deep/er/"]).good();
    let served = server.data_directory().join("deep/er/sub/b");
    assert_eq!(std::fs::read_to_string(served).unwrap(), "2");
    assert_eq!(
        place.run(&["ls", "-r", "partner:deep"]).good(),
        "er/\ner/a\ner/sub/\ner/sub/b\n"
    );
    place.run(&["copy", "partner:deep/er/a", "back"]).good();
    assert_eq!(std::fs::read_to_string(place.path("back/a")).unwrap(), "1");
    assert!(!place.path("back/sub").exists());
}

#[test]
fn a_url_and_the_known_hosts_of_the_user_are_enough() {
    let server = Sshd::start();
    let place = Place::new();
    let hosts = std::fs::read(server.known_hosts_path()).unwrap();
    place.write("home/.ssh/known_hosts", hosts);
    place.write(
        "home/.ssh/config",
        format!(
            "Host short\n  HostName 127.0.0.1\n  Port {}\n  User {}\n  IdentityFile {}\n",
            server.port(),
            server.user(),
            server.client_key_path().display()
        ),
    );
    place.write("in/a", "1");
    let destination = format!("sftp://short{}/x", server.data_directory().display());
    place.run(&["copy", "in", &destination]).good();
    assert_eq!(
        std::fs::read_to_string(server.data_directory().join("x/a")).unwrap(),
        "1"
    );
}

#[test]
fn h50_a_wrong_host_key_stops_at_once_with_exit_code_4() {
    let server = Sshd::start();
    let place = with_sshd(
        &server,
        "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
    );
    place.write("in/a", "1");
    let done = place.run(&["copy", "in", "partner:"]);
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("HAS CHANGED"), "{}", done.stderr);
    assert!(
        done.stderr.contains("hint: ask the server's owner"),
        "{}",
        done.stderr
    );
    let checked = place.run(&["check", "--connect"]);
    assert_eq!(checked.code, 4);
    assert!(
        checked.stdout.contains("not reached  partner"),
        "{}",
        checked.stdout
    );
}

#[test]
fn a_server_that_is_not_there_makes_exit_code_4() {
    let mut server = Sshd::start();
    let place = with_sshd(&server, &server.host_key_fingerprint());
    server.kill();
    let done = place.run(&["ls", "partner:"]);
    assert_eq!(done.code, 4, "{done:?}");
    assert!(
        done.stderr.contains("hint: `knarr check --connect`"),
        "{}",
        done.stderr
    );
}

#[test]
fn an_s3_endpoint_with_secrets_is_written_and_read() {
    let server = S3sFs::start();
    let place = Place::new();
    for (name, value) in [
        ("access", server.access_key()),
        ("secret", server.secret_key()),
    ] {
        assert_eq!(
            place
                .run_with_input(&["secret", "set", name], value.as_bytes())
                .code,
            0
        );
    }
    let printed = place
        .run(&[
            "init",
            "--source",
            "in",
            "--destination",
            &format!("s3://{}/raw", server.bucket()),
            "--endpoint",
            &server.endpoint_url(),
            "--region",
            "us-east-1",
            "--keys",
            "access",
            "secret",
        ])
        .good();
    assert!(printed.contains("knarr.yaml is written"), "{printed}");
    place.write("in/a/b", "content");
    place.run(&["copy", "in", "destination:x"]).good();
    assert_eq!(place.run(&["ls", "-r", "destination:x"]).good(), "a/b\n");
    place.run(&["copy", "destination:x/a/b", "back"]).good();
    assert_eq!(
        std::fs::read_to_string(place.path("back/b")).unwrap(),
        "content"
    );
    let checked = place.run(&["check", "--connect"]).good();
    assert!(checked.contains("reached"), "{checked}");
}
