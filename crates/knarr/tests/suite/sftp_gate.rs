//! The SFTP server of the configuration: by itself, beside the jobs of a node, and what is wrong in its section.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use knarr_testkit::port::ReservedPort;
use knarr_testkit::wait::poll;

use crate::program::{Place, contains};

/// Must be seen nowhere.
const PASSWORD: &str = "sentinel-Qm4v-password";

/// A running `knarr`, with its log in a file.
pub(crate) struct Running {
    child: Child,
    port: u16,
    log: std::path::PathBuf,
}

impl Running {
    pub(crate) fn start(place: &Place, arguments: &[&str], port: u16) -> Self {
        let log = place.path("log");
        let file = std::fs::File::create(&log).unwrap();
        let child = place
            .command(arguments)
            .env("GATE_PASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let running = Self { child, port, log };
        let connected = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        poll(Duration::from_secs(30), connected).unwrap_or_else(|| panic!("{}", running.log()));
        running
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn sftp(&self, place: &Place, user: &str, more: &[String], batch: &str) -> Output {
        let mut command = Command::new("sftp");
        for option in [
            "UserKnownHostsFile=/dev/null".to_owned(),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            "StrictHostKeyChecking=no".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            format!("IdentityFile={}", place.path("id").display()),
        ] {
            command.args(["-o", &option]);
        }
        command.args(["-F", "/dev/null"]).args(more);
        command.args(["-b", "-", "-P", &self.port.to_string()]);
        command.arg(format!("{user}@127.0.0.1"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(batch.as_bytes()).ok();
        child.wait_with_output().unwrap()
    }

    /// Ends it by SIGTERM, and says whether that was in good order.
    pub(crate) fn stop(&mut self) -> bool {
        knarr_testkit::process::send(self.child.id(), rustix::process::Signal::TERM);
        self.child.wait().unwrap().success()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn keygen(file: &Path) -> String {
    let output = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "acme", "-f"])
        .arg(file)
        .output()
        .unwrap();
    assert!(output.status.success());
    std::fs::read_to_string(file.with_extension("pub"))
        .unwrap()
        .trim()
        .to_owned()
}

/// A place with a configuration whose users are `acme`, who has a key and mount points, and `beta`, who has a password.
fn configured(more: &str) -> (Place, u16) {
    let place = Place::new();
    let port = ReservedPort::new().unwrap().number();
    let key = keygen(&place.path("id"));
    std::fs::create_dir_all(place.path("home")).unwrap();
    for name in ["in", "out"] {
        std::fs::create_dir(place.path(name)).unwrap();
    }
    place.write("out/report", "for you");
    place.write(
        "knarr.yaml",
        format!(
            "sftp_server:
  listen: 127.0.0.1:{port}
  home: home/{{user}}
  users:
    acme:
      key: {key}
      mounts:
        /in: {{ root: in, permissions: drop_box }}
        /out: {{ root: \"disk:out\", permissions: read_only }}
    beta:
      key: {key}
      password: {{ env: GATE_PASSWORD }}
      require: [key, password]
      paths: {{ /private: none }}
      quota: {{ size: 1MiB, files: 100 }}
endpoints:
  disk: {{ type: local, path: . }}
{more}"
        ),
    );
    (place, port)
}

pub(crate) fn good(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{told}");
    told
}

#[test]
fn h25_the_server_of_the_configuration_serves_its_users_and_logs_no_password() {
    let (place, port) = configured("");
    let mut running = Running::start(&place, &["-v", "sftp-server"], port);
    let file = place.write("file", "content");
    let (file, back) = (file.display(), place.path("back"));
    good(&running.sftp(
        &place,
        "acme",
        &[],
        &format!("put {file} /in/one\nget /out/report {}\n", back.display()),
    ));
    assert_eq!(
        std::fs::read_to_string(place.path("in/one")).unwrap(),
        "content"
    );
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "for you");
    assert!(
        !running
            .sftp(&place, "acme", &[], "ls /in\n")
            .status
            .success()
    );

    let ask = place.write("ask", format!("#!/bin/sh\necho {PASSWORD}\n"));
    std::fs::set_permissions(&ask, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let only_key = ["-oBatchMode=yes".to_owned()];
    assert!(
        !running
            .sftp(&place, "beta", &only_key, "ls\n")
            .status
            .success()
    );
    // A batch file would switch questions off.
    let mut command = Command::new("sftp");
    command
        .env("SSH_ASKPASS", &ask)
        .env("SSH_ASKPASS_REQUIRE", "force");
    for option in [
        "UserKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=no",
        "IdentitiesOnly=yes",
    ] {
        command.args(["-o", option]);
    }
    command
        .args(["-F", "/dev/null", "-i"])
        .arg(place.path("id"));
    command.args(["-P", &port.to_string(), "beta@127.0.0.1"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(format!("put {file} mine\n").as_bytes())
        .unwrap();
    drop(stdin);
    good(&child.wait_with_output().unwrap());
    assert!(place.path("home/beta/mine").exists(), "{}", running.log());
    assert!(running.stop(), "{}", running.log());
    let log = running.log();
    for line in [
        "the SFTP server listens",
        "log-in: accepted",
        "uploaded",
        "/in/one",
        "host key",
    ] {
        assert!(log.contains(line), "no `{line}` in {log}");
    }
    assert!(!log.contains("sentinel"), "{log}");
    assert!(!contains(&place.all_bytes("state"), PASSWORD));
}

#[test]
fn the_node_serves_its_partners_beside_its_jobs_and_delivers_what_they_bring() {
    let (place, port) = configured("jobs:\n  take: { watch: in, to: taken }\n");
    let mut running = Running::start(&place, &["run"], port);
    let file = place.write("file", "content");
    good(&running.sftp(
        &place,
        "acme",
        &[],
        &format!("put {} /in/one\n", file.display()),
    ));
    let taken = || std::fs::read_to_string(place.path("taken/one")).ok();
    assert_eq!(
        poll(Duration::from_secs(30), taken).as_deref(),
        Some("content")
    );
    assert!(running.stop(), "{}", running.log());
}

#[test]
fn a_hash_that_is_printed_is_taken_and_its_password_is_not_shown() {
    let place = Place::new();
    let hash = place
        .run_with_input(&["sftp-server", "hash-password"], b"hunter2\n")
        .good();
    assert!(hash.starts_with("$argon2id$v=19$"), "{hash}");
    let again = place
        .run_with_input(&["sftp-server", "hash-password"], b"hunter2\n")
        .good();
    assert_ne!(hash, again);
    let empty = place.run_with_input(&["sftp-server", "hash-password"], b"\n");
    assert_eq!(empty.code, 2, "{}", empty.stderr);
    let text = format!(
        "sftp_server: {{ users: {{ acme: {{ root: /srv, password_hash: \"{}\" }} }} }}\n",
        hash.trim()
    );
    place.write("knarr.yaml", text);
    place.run(&["check"]).good();
}

#[test]
fn what_is_wrong_in_the_section_is_told_all_at_once() {
    let place = Place::new();
    place.write(
        "knarr.yaml",
        "sftp_server:
  listen: everywhere
  limits: { unpunished: [10.0.0.0/99], idle: 1ms, log_in_tries: 0 }
  users:
    acme:
      key: ssh-ed25519 nonsense
      networks: [somewhere]
      expires: tomorrow
      root: nowhere:in
    beta:
      password_hash: hunter2-in-the-clear
      require: [key, password]
      mounts: { /a/b: { root: /srv }, /c: { root: \"/srv/{name}\" } }
      paths: { /d: all }
    gamma: { root: /srv }
    delta: { password: { env: X } }
",
    );
    let done = place.run(&["check"]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    for told in [
        "`everywhere` is no address with a port",
        "`10.0.0.0/99` is no network",
        "this has to be at least 1s, or 0s for ever",
        "this has to be at least 1",
        "this is no public key",
        "`somewhere` is no network",
        "`tomorrow` is no date and no time",
        "there is no endpoint `nowhere`",
        "this is no argon2id hash",
        "a key is required, and this user has none",
        "`/a/b` cannot be the name of a mount point",
        "only {user} is possible",
        "this user has nothing to log in by",
        "this user sees nothing",
    ] {
        assert!(done.stderr.contains(told), "no `{told}` in {}", done.stderr);
    }
    assert!(!done.stderr.contains("hunter2"), "{}", done.stderr);
    place.write("knarr.yaml", "sftp_server: { users: { epsilon: { password: { env: X }, root: /srv, permissions: [uplaod] } } }\n");
    let done = place.run(&["check"]);
    assert!(done.stderr.contains("upload"), "{}", done.stderr);
    place.write("knarr.yaml", "jobs: {}\n");
    let done = place.run(&["sftp-server"]);
    assert_eq!(done.code, 2);
    assert!(
        done.stderr.contains("no section `sftp_server`"),
        "{}",
        done.stderr
    );
}

#[test]
fn users_are_added_changed_and_removed_while_the_server_runs() {
    let (place, port) = configured("");
    let running = Running::start(&place, &["run"], port);
    let added = |text: String| place.run_with_input(&["user", "add", "-"], text.as_bytes());
    let key = std::fs::read_to_string(place.path("id.pub")).unwrap();
    let key = key.trim();
    std::fs::create_dir(place.path("gamma")).unwrap();
    let root = place.path("gamma").display().to_string();
    let user = |more: &str| {
        format!("sftp_server: {{ users: {{ gamma: {{ key: {key}, root: {root}{more} }} }} }}")
    };
    let batch = |name: &str, script: &str| running.sftp(&place, name, &[], script);
    assert!(!batch("gamma", "ls\n").status.success(), "not known yet");
    let refused = added(format!(
        "sftp_server: {{ users: {{ gamma: {{ key_file: /k, root: {root} }} }} }}"
    ));
    assert_eq!(refused.code, 2, "{refused:?}");
    let acme = added(format!(
        "sftp_server: {{ users: {{ acme: {{ key: {key}, root: {root} }} }} }}"
    ));
    assert!(
        acme.code == 2 && acme.stderr.contains("stands in the node's file"),
        "{acme:?}"
    );
    assert_eq!(added(user("")).good(), "added       user gamma\n");
    place.write("local", "content");
    let put = format!("put {} there\n", place.path("local").display());
    good(&batch("gamma", &put));
    assert!(place.path("gamma/there").exists());
    let listed = place.run(&["user", "ls"]).good();
    assert!(
        listed.contains("gamma") && listed.contains("added"),
        "{listed}"
    );
    assert!(!listed.contains("$argon2"), "{listed}");
    let update = user(", permissions: read_only");
    let updated = place.run_with_input(&["user", "update", "-"], update.as_bytes());
    assert!(updated.good().starts_with("changed"));
    assert!(
        !batch("gamma", &put).status.success(),
        "only to be read now"
    );
    good(&batch("gamma", "ls\n"));
    // A reload takes over the users of the file, and leaves those that were added.
    let file = std::fs::read_to_string(place.path("knarr.yaml")).unwrap();
    let without = file.replace("permissions: read_only", "permissions: none");
    place.write("knarr.yaml", without);
    let reloaded = place.run(&["reload"]).good();
    assert!(reloaded.contains("sftp_server.users"), "{reloaded}");
    assert!(!batch("acme", "get out/report /dev/null\n").status.success());
    good(&batch("gamma", "ls\n"));
    drop(running);
    let running = Running::start(&place, &["run"], port);
    good(&running.sftp(&place, "gamma", &[], "ls\n"));
    place.run(&["user", "rm", "gamma"]).good();
    assert!(!running.sftp(&place, "gamma", &[], "ls\n").status.success());
    assert_eq!(place.run(&["user", "rm", "acme"]).code, 2, "of the file");
}
