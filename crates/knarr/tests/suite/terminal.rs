//! At a terminal: the wizard's questions, the confirmation of `approve`, bars.
//!
//! `script` of util-linux gives the program a terminal of its own and types for the test.

use std::io::Write as _;
use std::process::Stdio;

use knarr_testkit::s3::{S3Server as _, S3sFs};
use knarr_testkit::sshd::Sshd;
use knarr_testkit::wait_until;

use crate::faults::support::{PATIENCE, Running, large_file};
use crate::program::{Done, Place};

/// Runs a command at a terminal and types `keys`. What the terminal shows, stderr too, is in `stdout`.
pub(crate) fn at_terminal(place: &Place, arguments: &[&str], keys: &str) -> Done {
    at_terminal_with(place, arguments, keys, &[])
}

fn at_terminal_with(
    place: &Place,
    arguments: &[&str],
    keys: &str,
    environment: &[(&str, &str)],
) -> Done {
    let script = knarr_testkit::tools::find("script", "bsdutils").unwrap();
    let quoted: Vec<String> = arguments
        .iter()
        .map(|argument| format!("'{argument}'"))
        .collect();
    let line = format!(
        "exec '{}' {}",
        env!("CARGO_BIN_EXE_knarr"),
        quoted.join(" ")
    );
    let usual = place.command::<&str>(&[]);
    // The same surroundings, but another program.
    let mut at_terminal = std::process::Command::new(script);
    at_terminal
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .current_dir(place.path(""))
        .env_clear()
        .envs(
            usual
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .envs(environment.iter().copied())
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh");
    let mut child = at_terminal
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end without reading all of it.
    let _closed = child.stdin.take().unwrap().write_all(keys.as_bytes());
    child.wait_with_output().unwrap().into()
}

/// Checks the configuration, runs it, and waits until a file arrived.
#[track_caller]
fn works(place: &Place, environment: &[(&str, &str)], arrived: impl Fn() -> bool) {
    let mut check = place.command(&["check", "--connect"]);
    let checked: Done = check
        .envs(environment.iter().copied())
        .output()
        .unwrap()
        .into();
    checked.good();
    let node = Running::start_with(place, environment);
    place.write("in/report", "content");
    wait_until(PATIENCE, "the file", arrived);
    node.terminate();
}

#[test]
fn the_wizard_asks_and_writes_a_configuration_for_a_directory_that_works() {
    let place = Place::new();
    std::fs::create_dir(place.path("in")).unwrap();
    let done = at_terminal(&place, &["init"], "in\nout\nn\n");
    assert_eq!(done.code, 0, "{done:?}");
    for shown in [
        "Which directory is watched?",
        "Where do its files go",
        "Decompress",
        "knarr.yaml is written",
    ] {
        assert!(done.stdout.contains(shown), "{shown}: {}", done.stdout);
    }
    works(&place, &[], || place.path("out/report").exists());
}

#[test]
fn the_wizard_asks_and_writes_a_configuration_for_sftp_and_tries_it() {
    let server = Sshd::start();
    let place = Place::new();
    std::fs::create_dir(place.path("in")).unwrap();
    let served = server.data_directory();
    let keys = format!(
        "in\nsftp://{}@127.0.0.1:{}{}\n{}\n{}\ny\n",
        server.user(),
        server.port(),
        served.display(),
        server.client_key_path().display(),
        server.host_key_fingerprint(),
    );
    let done = at_terminal(&place, &["init"], &keys);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("Private key file"), "{}", done.stdout);
    let text = std::fs::read_to_string(place.path("knarr.yaml")).unwrap();
    assert!(
        text.contains("host_key: ") && text.contains("steps: [decompress]"),
        "{text}"
    );
    works(&place, &[], || served.join("report").exists());
}

#[test]
fn a_connection_that_fails_is_told_by_the_wizard_and_the_file_stays_for_correction() {
    let server = Sshd::start();
    let place = Place::new();
    std::fs::create_dir(place.path("in")).unwrap();
    let keys = format!(
        "in\nsftp://{}@127.0.0.1:{}/\n{}\nSHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU\nn\n",
        server.user(),
        server.port(),
        server.client_key_path().display(),
    );
    let done = at_terminal(&place, &["init"], &keys);
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stdout.contains("HAS CHANGED"), "{}", done.stdout);
    assert!(place.path("knarr.yaml").exists());
}

#[test]
fn the_wizard_asks_and_writes_a_configuration_for_s3_and_tries_it() {
    let server = S3sFs::start();
    let place = Place::new();
    std::fs::create_dir(place.path("in")).unwrap();
    let keys = format!(
        "in\ns3://{}/raw\n{}\n{}\n\nn\n",
        server.bucket(),
        server.endpoint_url(),
        server.region()
    );
    let environment = [
        ("AWS_ACCESS_KEY_ID", server.access_key()),
        ("AWS_SECRET_ACCESS_KEY", server.secret_key()),
    ];
    let done = at_terminal_with(&place, &["init"], &keys, &environment);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("URL of the store"), "{}", done.stdout);
    let stored = crate::faults::support::bucket_directory(&server).join("raw/report");
    works(&place, &environment, || stored.exists());
}

#[test]
fn a_question_that_is_not_answered_writes_nothing() {
    let place = Place::new();
    let done = at_terminal(&place, &["init"], "in\n\n");
    assert_eq!(done.code, 2, "{done:?}");
    assert!(
        done.stdout.contains("--destination is missing"),
        "{}",
        done.stdout
    );
    assert!(!place.path("knarr.yaml").exists());
}

#[test]
fn at_a_terminal_there_are_bars_with_bytes_files_rate_and_time_left() {
    let place = Place::new();
    large_file(&place.path("in/large"), 71, 40 << 20);
    place.write("in/small", "1");
    let done = at_terminal(&place, &["copy", "in", "out", "--bandwidth", "16MiB"], "");
    assert_eq!(done.code, 0, "{done:?}");
    for shown in [" of 40.00 MiB", "/s", "left", " of ", "files", "large", "%"] {
        assert!(done.stdout.contains(shown), "{shown}: {:?}", done.stdout);
    }
    // At the end the bars are gone and the summary stays.
    let last = done.stdout.trim_end().lines().next_back().unwrap();
    assert!(last.contains("created"), "{last:?}");
}

#[test]
fn where_there_is_no_terminal_there_are_no_bars_and_with_verbose_a_line_for_each_file() {
    let place = Place::new();
    place.write("in/a", "1");
    place.write("in/b", "2");
    let done = place.run(&["copy", "in", "out"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    let done = place.run(&["-v", "copy", "in", "out2"]);
    for line in ["\"path\":\"a\"", "\"path\":\"b\""] {
        assert!(done.stderr.contains(line), "{line}: {}", done.stderr);
    }
    assert!(!done.stderr.contains('\u{1b}') && !done.stderr.contains('\r'));
    let quiet = at_terminal(&place, &["-q", "copy", "in", "out3"], "");
    assert_eq!((quiet.code, quiet.stdout.trim()), (0, ""));
}
