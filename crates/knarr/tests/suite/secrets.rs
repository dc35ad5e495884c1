//! `secret`: what is stored is neither shown nor found in any file.

use std::os::unix::fs::PermissionsExt as _;

use crate::program::{Place, contains};

const SENTINEL: &str = "S3nt1nel-5b0c9d4e";

#[test]
fn h25_a_secret_is_nowhere_to_be_found() {
    let place = Place::new();
    let mut shown = String::new();
    let done = place.run_with_input(&["-vvv", "secret", "set", "partner"], SENTINEL.as_bytes());
    assert_eq!(done.code, 0, "{done:?}");
    shown.push_str(&done.stdout);
    shown.push_str(&done.stderr);
    place.write(
        "knarr.yaml",
        "endpoints:\n  partner:\n    type: sftp\n    host: 127.0.0.1\n    port: 1\n    user: me\n    \
         password: { secret: partner }\n    \
         host_key: SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU\n",
    );
    for arguments in [
        &["-vvv", "secret", "ls"][..],
        &["-vvv", "secret", "ls", "--json"],
        &["-vvv", "check", "--connect"],
        &["-vvv", "copy", "partner:x", "out"],
        &["-vvv", "doctor"],
        &["-vvv", "ls", "partner:"],
    ] {
        let done = place.run(arguments);
        shown.push_str(&done.stdout);
        shown.push_str(&done.stderr);
    }
    assert!(shown.contains("partner"));
    assert!(!shown.contains(SENTINEL), "{shown}");
    for root in ["state", "home"] {
        assert!(
            !contains(&place.all_bytes(root), SENTINEL),
            "found below {root}"
        );
    }
    let key = place.path("home/.config/knarr/secret.key");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn secrets_are_set_listed_and_removed() {
    let place = Place::new();
    let set = |name: &str, input: &[u8]| place.run_with_input(&["secret", "set", name], input);
    assert_eq!(set("one", b"x\n").code, 0);
    assert_eq!(set("two", b"y").code, 0);
    let listed = place.run(&["secret", "ls"]).good();
    assert!(
        listed.starts_with("NAME") && listed.contains("one") && listed.contains("two"),
        "{listed}"
    );
    place.run(&["secret", "rm", "one"]).good();
    assert!(!place.run(&["secret", "ls"]).good().contains("one"));
    let done = place.run(&["secret", "rm", "one"]);
    assert_eq!(done.code, 2);
    assert_eq!(
        done.stderr,
        "error: there is no secret \"one\"\nhint: `knarr secret ls` lists them\n"
    );
    let done = set("empty", b"\n");
    assert_eq!(
        (done.code, done.stderr.as_str()),
        (2, "error: stdin was empty, and nothing was stored\n")
    );
    assert_eq!(set("../x", b"y").code, 2);
}

#[test]
fn h25_a_key_that_others_can_read_is_refused() {
    let place = Place::new();
    place.run_with_input(&["secret", "set", "one"], b"x");
    let key = place.path("home/.config/knarr/secret.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let done = place.run_with_input(&["secret", "set", "two"], b"y");
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("take it as known"), "{}", done.stderr);
}

#[test]
fn a_secret_that_is_missing_is_named() {
    let place = Place::new();
    place.write(
        "knarr.yaml",
        "endpoints:\n  one: { type: sftp, host: h, password: { secret: absent } }\n  \
         two: { type: sftp, host: h, password: { env: KNARR_TEST_ABSENT } }\n",
    );
    let done = place.run(&["ls", "one:"]);
    assert_eq!(done.code, 2);
    assert!(
        done.stderr.contains("there is no secret \"absent\""),
        "{}",
        done.stderr
    );
    let done = place.run(&["ls", "two:"]);
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("KNARR_TEST_ABSENT"), "{}", done.stderr);
}
