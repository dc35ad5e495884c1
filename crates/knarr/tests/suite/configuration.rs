//! What is told about a configuration file.

use std::os::unix::fs::PermissionsExt as _;

use crate::program::{Done, Place};

const GOOD: &str = r#"
node: { name: edge-1, keep_unfinished: 3d }
endpoints:
  partner:
    type: sftp
    host: sftp.partner.example
    user: acme
    password: { secret: partner-password }
    host_key: "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
    limits: { connections: 4, transfers: 32, bandwidth: 20MiB/s }
  archive: { type: s3, bucket: acme-archive, profile: prod }
  minio:
    type: s3
    bucket: test
    endpoint: http://127.0.0.1:9000
    path_style: true
    access_key: { env: MINIO_KEY }
    secret_key: { secret: minio }
    part_size: 16MiB
    verify: full
  google: { type: gcs, bucket: b, service_account: { secret: google } }
  blob: { type: azure, container: c, account: a, access_key: { env: AZURE_KEY } }
  disk: { type: local, path: /mnt/backup }
jobs:
  sensors:
    watch: /srv/sftp/acme/upload
    match: { include: ["*.csv.gz"], settle: 2s }
    steps: [decompress]
    to: archive:raw/{mtime:%Y/%m/%d}/
  many:
    watch: [in/a, in/b]
    match:
      include: "*.zip"
      exclude: [tmp, "/top/secret"]
      min_age: 30s
      max_age: 7d
      min_size: 1
      max_size: 2GiB
      temporary: take
    steps: [{ decompress: { max_output: 10GiB, unrecognised: fail } }]
    to: disk:{dir}/{stem}-{now:%H}.{extension}
    after: { move: done/ }
    deletes: keep
    if_exists: keep_both
    symlinks: skip
    verify: full
    bandwidth: 5MiB
    retry: { attempts: 3, from: 1s, to: 1m }
    rescan: 10m
    poll: 15s
    verify_destination: 12h
    timezone: Europe/Berlin
  mirror: { watch: ~/photos, to: "sftp://me@host:2222/~/photos", deletes: mirror }
"#;

fn check(text: &str) -> Done {
    let place = Place::new();
    place.write("knarr.yaml", text);
    place.run(&["check"])
}

#[track_caller]
fn told(text: &str, expected: &str) {
    let done = check(text);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (2, ""),
        "{}",
        done.stderr
    );
    assert_eq!(done.stderr.trim(), expected.trim());
}

#[test]
fn a_configuration_with_every_key_is_right() {
    let place = Place::new();
    place.write("knarr.yaml", GOOD);
    let file = place.path("knarr.yaml").canonicalize().unwrap();
    let expected = format!("{} is right: 6 endpoints, 3 jobs\n", file.display());
    assert_eq!(place.run(&["check"]).good(), expected);
    let report: serde_json::Value =
        serde_json::from_str(&place.run(&["check", "--json"]).good()).unwrap();
    assert_eq!(report["ok"], true);
    assert_eq!(report["jobs"], 3);
}

#[test]
fn a_misspelt_key_is_told_with_its_place_and_what_was_meant() {
    told(
        "jobs:\n  sensors:\n    wacth: /srv/in\n    to: /srv/out\n",
        "\
error: jobs.sensors: unknown key `wacth`
   ╭─[knarr.yaml:3:5]
 3 │     wacth: *******
   ·     ─────
   ╰────
hint: did you mean `watch`?",
    );
}

#[test]
fn several_errors_are_told_at_once_in_the_order_of_the_file() {
    told(
        "\
endpoints:
  partner: { type: sftpp, host: x }
jobs:
  one: { watch: in, to: archiv:raw/, if_exists: overwrit }
  two: { watch: in, to: parter:raw/ }
  three: { watch: in, to: \"out/{mtme:%Y}/\" }
",
        "\
error: endpoints.partner.type: `sftpp` is not a type of endpoint
   ╭─[knarr.yaml:2:20]
 2 │   partner: { type: sftpp, host: x }
   ·                    ─────
   ╰────
hint: did you mean `sftp`?

error: jobs.one.if_exists: `overwrit` is not known here
   ╭─[knarr.yaml:4:49]
 4 │   one: { watch: in, to: archiv:raw/, if_exists: overwrit }
   ·                                                 ────────
   ╰────
hint: did you mean `overwrite`?

error: jobs.two.to: there is no endpoint `parter`
   ╭─[knarr.yaml:5:25]
 5 │   two: { watch: in, to: parter:raw/ }
   ·                         ───────────
   ╰────
hint: did you mean `partner`?

error: jobs.three.to: `{mtme:%Y}` is not a placeholder: use {name}, {stem}, {extension}, {dir}, {mtime:%Y/%m/%d}, {now:%Y-%m-%d} or a named group of `match.regex`
   ╭─[knarr.yaml:6:27]
 6 │   three: { watch: in, to: \"out/{mtme:%Y}/\" }
   ·                           ────────────────
   ╰────",
    );
}

/// A wrong configuration, and a part of what is told about it.
const WRONG: &[(&str, &str)] = &[
    ("jobs: { a1: { to: x } }", "jobs.a1: no source is named"),
    (
        "jobs: { a1: 3 }",
        "jobs.a1: a map is expected here, not integer `3`",
    ),
    ("jobs: []", "jobs: a map of names is expected, not a list"),
    (
        "- a\n",
        "a map of node, endpoints, targets, alerts, jobs, sftp_server is expected, not a list",
    ),
    (
        "node: { name: 7 }",
        "node.name: a text is expected here, not a number",
    ),
    (
        "jobs: { a b: { watch: i, to: o } }",
        "`a b` cannot be the name of a job",
    ),
    (
        "jobs: { a1: { watch: i, to: o, rescan: 5 } }",
        "`5` is not a duration",
    ),
    (
        "jobs: { a1: { watch: i, to: o, poll: 500ms } }",
        "jobs.a1.poll: this has to be at least 1s",
    ),
    (
        "node: { keep_unfinished: 10m }",
        "node.keep_unfinished: this has to be at least 1h",
    ),
    (
        "jobs: { a1: { watch: i, to: o, bandwidth: x } }",
        "`x` is not a size",
    ),
    (
        "jobs: { a1: { watch: i, to: o, timezone: Berlin } }",
        "`Berlin` is not a time zone",
    ),
    (
        "jobs: { a1: { watch: i, to: o, after: { move: ../x } } }",
        "has a component `.` or `..`",
    ),
    (
        "jobs: { a1: { watch: i, to: o, match: { include: 'a[b' } } }",
        "`a[b` is not a glob",
    ),
    ("jobs: { a1: { watch: [i, i/j], to: o } }", "overlaps"),
    (
        "jobs: { a1: { watch: 'sftp://h/x', to: o } }",
        "only local directories can be watched",
    ),
    (
        "jobs: { a1: { watch: i, to: o, after: delete, deletes: mirror } }",
        "would delete what was just delivered",
    ),
    (
        "endpoints: { ab: { host: x } }",
        "endpoints.ab: the key `type` is missing",
    ),
    (
        "endpoints: { ab: { type: sftp, host: x, host_key: any } }",
        "`any` is not a fingerprint",
    ),
    (
        "endpoints: { ab: { type: s3, bucket: x, part_size: 1MiB } }",
        "parts have between 5MiB and 5GiB",
    ),
    ("a: b: c", "this is not YAML"),
    ("jobs: {}\njobs: {}\n", "the key `jobs` stands here twice"),
];

#[test]
fn what_is_missing_or_of_another_kind_is_told() {
    for (text, message) in WRONG {
        let done = check(text);
        assert_eq!(done.code, 2, "{text}");
        assert!(done.stderr.contains(message), "{text}:\n{}", done.stderr);
        assert!(
            done.stderr.contains("knarr.yaml:"),
            "{text}:\n{}",
            done.stderr
        );
    }
}

#[test]
fn a_job_that_would_feed_itself_is_refused() {
    let done = check("jobs: { a1: { watch: in, to: in/out } }");
    assert!(
        done.stderr
            .contains("it would deliver into what it watches"),
        "{}",
        done.stderr
    );
    let done = check(
        "jobs:\n  a1: { watch: one, to: two }\n  b1: { watch: two, to: three }\n  c1: { watch: three, to: one }\n",
    );
    assert!(
        done.stderr
            .contains("its files come back to it: a1 → b1 → c1 → a1"),
        "{}",
        done.stderr
    );
    let place = Place::new();
    std::fs::create_dir(place.path("in")).unwrap();
    std::os::unix::fs::symlink("in", place.path("link")).unwrap();
    place.write("knarr.yaml", "jobs: { a1: { watch: in, to: link/out } }");
    let done = place.run(&["check"]);
    assert!(
        done.stderr
            .contains("it would deliver into what it watches"),
        "{}",
        done.stderr
    );
}

#[test]
fn h25_no_secret_of_a_wrong_configuration_is_shown() {
    for text in [
        "endpoints: { ab: { type: sftp, host: x, password: hunter2 } }",
        "endpoints: { ab: { type: sftp, host: x, pasword: hunter2 } }",
        "endpoints: { ab: { type: sftp, hosst: x, password: hunter2 } }",
        "endpoints:\n  ab:\n    type: sftp\n    password: hunter2\n    host: 7\n",
        "endpoints: { ab: { type: s3, bucket: x, secret_key: \"hunter2\", acess_key: hunter2 } }",
        "endpoints: { ab: { type: s3, bucket: x, endpoint: 'http://me:hunter2@host' } }",
        "jobs: { a1: { watch: i, to: 'sftp://me:hunter2@host/x' } }",
        "jobs: { a1: { watch: 'sftp://me:hunter2@host/x', to: o } }",
        "passwort: hunter2\n",
        "jobs: { a1: { watch: i, to: 'sftp://me:hunter2@host/x', if_exists: overwrit } }",
        "endpoints:\n  ab:\n    secret_key: |\n      first\n    hunter2\n  x\n",
        "endpoints: { ab: { type: sftp, hosst: x, passwd: 'a, hunter2' } }",
        "endpoints: { ab: { type: sftp, host: x, password: hunter2\njobs: [\n",
    ] {
        let place = Place::new();
        place.write("knarr.yaml", text);
        for arguments in [&["check"][..], &["check", "--json"], &["-vvv", "doctor"]] {
            let done = place.run(arguments);
            assert_ne!(done.code, 0, "{text}");
            assert!(!done.stderr.contains("hunter2"), "{text}:\n{}", done.stderr);
            assert!(!done.stdout.contains("hunter2"), "{text}:\n{}", done.stdout);
        }
    }
}

#[test]
fn h59_bombs_are_refused_quickly() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        let row = vec![before; 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{row}]\n"));
    }
    let deep = "[".repeat(100_000);
    let deep_blocks: String = (0..5_000)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    let wide = format!("jobs: [{}]", "1,".repeat(300_000));
    let documents = "---\na: 1\n".repeat(1_000);
    for (name, text) in [
        ("aliases", laughs),
        ("depth", deep),
        ("blocks", deep_blocks),
        ("width", wide),
        ("documents", documents),
        ("length", "#".repeat((4 << 20) + 1)),
    ] {
        let done = check(&text);
        assert_eq!(
            done.code,
            2,
            "{name}: {}",
            done.stderr.chars().take(500).collect::<String>()
        );
        assert!(done.stderr.len() < 4_000, "{name}");
    }
}

#[test]
fn h59_a_configuration_that_everybody_may_write_is_refused() {
    let place = Place::new();
    let file = place.write("knarr.yaml", GOOD);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let done = place.run(&["check"]);
    assert_eq!(done.code, 2);
    assert_eq!(
        done.stderr,
        "error: the configuration file knarr.yaml is writable by everybody (mode 0666)\n\
         hint: whoever can write to it decides what is copied where: `chmod go-w knarr.yaml`\n"
    );
}

#[test]
fn the_file_is_looked_for_where_the_flag_says_and_then_at_the_usual_places() {
    let place = Place::new();
    let done = place.run(&["check", "--config", "missing.yaml"]);
    assert_eq!(done.code, 2);
    assert_eq!(
        done.stderr,
        "error: the configuration file missing.yaml does not exist\n"
    );
    place.write("home/.config/knarr/knarr.yaml", "node: { name: home }");
    assert!(
        place
            .run(&["check"])
            .good()
            .contains("home/.config/knarr/knarr.yaml is right")
    );
    place.write("knarr.yaml", "");
    assert!(!place.run(&["check"]).good().contains(".config"));
}

#[test]
fn colour_is_for_terminals_only() {
    let done = check("jobz: 1");
    assert!(!done.stderr.contains('\u{1b}'), "{}", done.stderr);
}
