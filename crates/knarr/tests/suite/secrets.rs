//! `secret`: what is stored is neither shown nor found in any file.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use knarr_testkit::port::ReservedPort;
use knarr_testkit::wait_until;

use crate::faults::support::PATIENCE;
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

/// What a process holds that may not lie on a disk afterwards: passwords, keys, the secrets of targets and stores.
#[test]
fn h25_no_core_of_a_process_that_holds_secrets_is_written() {
    let place = Place::new();
    let port = ReservedPort::new().unwrap().number();
    let private = crate::sftp_gate::keygen(&place.path("id"));
    place.write(
        "knarr.yaml",
        format!(
            "sftp_server:\n  listen: 127.0.0.1:{port}\n  users:\n    acme: {{ password: {{ env: CORE_PASSWORD }}, root: served }}\n    \
             beta: {{ key: \"{private}\", root: served }}\n\
             endpoints:\n  bucket:\n    type: s3\n    bucket: b\n    endpoint: http://127.0.0.1:1\n    region: eu\n    \
             access_key: {{ env: CORE_ACCESS }}\n    secret_key: {{ env: CORE_SECRET }}\n  \
             partner: {{ type: sftp, host: 127.0.0.1, port: 1, user: me, key: id, \
             host_key: \"SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU\" }}\n\
             targets:\n  chat:\n    webhook: {{ url: \"http://127.0.0.1:1/\", secret: {{ env: CORE_HOOK }} }}\n\
             jobs:\n  up: {{ watch: outbox, to: \"bucket:in\", hooks: {{ after_file: chat }} }}\n"
        ),
    );
    for directory in ["served", "outbox", "cores"] {
        std::fs::create_dir(place.path(directory)).unwrap();
    }
    // Cores of any size are wanted by who starts it; that this system writes them is shown first.
    let wanting = |program: &[std::ffi::OsString]| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -c unlimited; exec \"$@\"", "sh"]);
        command.args(program).current_dir(place.path("cores"));
        command
    };
    let control = ["sh", "-c", "kill -ABRT $$"].map(std::ffi::OsString::from);
    let control = wanting(&control).status().unwrap();
    assert!(
        control.core_dumped(),
        "this system writes no cores: {control}"
    );
    let cores = || {
        let entries = std::fs::read_dir(place.path("cores")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("core")).count()
    };
    let before = cores();

    let plain = place.command(&["-v", "run"]);
    let mut program = vec![plain.get_program().to_owned()];
    program.extend(plain.get_args().map(ToOwned::to_owned));
    let mut command = wanting(&program);
    for (name, value) in plain.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    for name in ["CORE_PASSWORD", "CORE_ACCESS", "CORE_SECRET", "CORE_HOOK"] {
        command.env(name, SENTINEL);
    }
    let log = place.path("log");
    command
        .args(["--config".as_ref(), place.path("knarr.yaml").as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    let shown = || std::fs::read_to_string(&log).unwrap();
    wait_until(PATIENCE, "the server", || {
        assert!(child.try_wait().unwrap().is_none(), "{}", shown());
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let process = std::path::PathBuf::from(format!("/proc/{}", child.id()));
    let limits = std::fs::read_to_string(process.join("limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file"));
    let core: Vec<&str> = core.unwrap().split_whitespace().skip(4).take(2).collect();
    assert_eq!(core, ["0", "0"], "{limits}");
    let line = std::fs::read(process.join("cmdline")).unwrap();
    assert!(!contains(&line, SENTINEL));
    knarr_testkit::process::send(child.id(), rustix::process::Signal::ABORT);
    let ended = child.wait().unwrap();
    assert_eq!(ended.signal(), Some(6), "{}", shown());
    assert!(!ended.core_dumped(), "{ended}");
    assert_eq!(cores(), before);
    assert!(!contains(shown().as_bytes(), SENTINEL), "{}", shown());
    for below in ["state", "home", "outbox", "served", "cores"] {
        assert!(!contains(&place.all_bytes(below), SENTINEL), "{below}");
    }
}
