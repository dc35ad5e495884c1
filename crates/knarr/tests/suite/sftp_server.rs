//! `sftp-server --stdio` in the place of OpenSSH's own: its client, its tests, its sshd.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use knarr_testkit::sshd::Sshd;
use knarr_testkit::tools;

use crate::program::Place;

const KNARR: &str = env!("CARGO_BIN_EXE_knarr");
const REGRESS: &str = "/usr/lib/openssh/regress";

/// Runs OpenSSH's `sftp` on the server that `arguments` start, without SSH in between.
fn sftp(arguments: &str, script: &str) -> Output {
    let program = tools::find("sftp", "the Debian package openssh-client").unwrap();
    let mut child = Command::new(program)
        .arg("-D")
        .arg(format!("{KNARR} sftp-server --stdio {arguments}"))
        .args(["-b", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn good(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout
}

/// One script of OpenSSH's own tests, in a copy of their directory, which they write to.
fn regress(script: &str) {
    assert!(
        Path::new(REGRESS).join("test-exec.sh").exists(),
        "{REGRESS} is missing: install the Debian package openssh-tests"
    );
    let directory = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .args(["-a", REGRESS])
        .arg(directory.path())
        .status();
    assert!(copied.unwrap().success());
    let objects = directory.path().join("regress");
    let server = directory.path().join("server");
    std::fs::write(
        &server,
        format!("#!/bin/sh\nexec {KNARR} sftp-server --stdio \"$@\"\n"),
    )
    .unwrap();
    std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("sh")
        .arg(objects.join("test-exec.sh"))
        .arg(&objects)
        .arg(objects.join(script))
        .env("TEST_SHELL", "sh")
        .env("TEST_SSH_UNSAFE_PERMISSIONS", "1")
        .env("TEST_SSH_SSH", found("ssh"))
        .env("TEST_SSH_SSHD", found("sshd"))
        .env("TEST_SSH_SFTP", found("sftp"))
        .env("TEST_SSH_SFTPSERVER", &server)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stdout = good(&output);
    assert!(stdout.contains("ok "), "{stdout}");
}

fn found(program: &str) -> PathBuf {
    tools::find(
        program,
        "the Debian packages openssh-server and openssh-client",
    )
    .unwrap()
}

#[test]
fn openssh_regress_sftp() {
    regress("sftp.sh");
}

#[test]
fn openssh_regress_sftp_cmds() {
    regress("sftp-cmds.sh");
}

#[test]
fn openssh_regress_sftp_badcmds() {
    regress("sftp-badcmds.sh");
}

#[test]
fn openssh_regress_sftp_batch() {
    regress("sftp-batch.sh");
}

#[test]
fn openssh_regress_sftp_glob() {
    regress("sftp-glob.sh");
}

#[test]
fn openssh_regress_sftp_perm() {
    regress("sftp-perm.sh");
}

#[test]
fn k2_a_confined_client_of_openssh_uploads_resumes_lists_and_asks_for_space() {
    let place = Place::new();
    let root = place.path("root");
    std::fs::create_dir(&root).unwrap();
    let local = place.write("local", vec![b'x'; 300_000]);
    let local = local.display();
    let arguments = format!("--root {} --staged --sync", root.display());
    let script = format!(
        "mkdir in\nput {local} in/first\nput -p {local} in/first\nln -s first in/link\nln in/first in/hard\n\
         chmod 600 in/hard\nrename in/hard in/moved\nls -la in\ndf -h /\ncd in\npwd\nrm link\n"
    );
    let listed = good(&sftp(&arguments, &script));
    assert!(listed.contains("Remote working directory: /in"), "{listed}");
    assert!(
        listed.contains("first") && listed.contains("moved"),
        "{listed}"
    );
    assert!(!root.join("in/link").exists());

    // What a client that died had sent: the rest of it is enough.
    let staged = root.join("in");
    good(&sftp(&arguments, "rm in/first\n"));
    let half = place.write("half", vec![b'x'; 100_000]);
    let upload = format!(
        "put {} in/second\nrename in/second in/.gone\nrm in/.gone\n",
        half.display()
    );
    good(&sftp(&arguments, &upload));
    assert!(!staged.join("second").exists());
    let resumed = format!(
        "put {} in/second\nreput {local} in/second\n",
        half.display()
    );
    good(&sftp(&arguments, &resumed));
    assert_eq!(
        std::fs::read(staged.join("second")).unwrap(),
        vec![b'x'; 300_000]
    );
    let back = place.path("back");
    let fetch = format!(
        "get in/second {}\nreget in/second {}\n",
        back.display(),
        back.display()
    );
    good(&sftp(&arguments, &fetch));
    assert_eq!(back.metadata().unwrap().len(), 300_000);

    let refused = sftp(&format!("{arguments} --read-only"), "rm in/second\n");
    assert!(!refused.status.success());
    assert!(staged.join("second").exists());
}

#[test]
fn it_is_a_subsystem_of_sshd() {
    let place = Place::new();
    let root = place.path("root");
    std::fs::create_dir(&root).unwrap();
    let local = place.write("local", vec![7; 1_000_000]);
    let subsystem = format!(
        "{KNARR} sftp-server --stdio --root {} --staged",
        root.display()
    );
    let server = Sshd::builder().subsystem(&subsystem).start();
    let back = place.path("back");
    let script = format!(
        "put {} file\nget file {}\nls -l\n",
        local.display(),
        back.display()
    );
    good(&server.sftp_batch(&script));
    assert_eq!(std::fs::read(&back).unwrap(), vec![7; 1_000_000]);
    assert!(root.join("file").exists());
}

#[test]
fn what_is_given_wrong_is_told() {
    let place = Place::new();
    let done = place.run(&["sftp-server", "--stdio", "-p", "open,format"]);
    assert_eq!(done.code, 2);
    assert!(
        done.stderr.contains("the requests are open"),
        "{}",
        done.stderr
    );
    let done = place.run(&["sftp-server", "--stdio"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("lead to no client"), "{}", done.stderr);
    let done = place.run(&["sftp-server", "--stdio", "--root", "missing"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("missing"), "{}", done.stderr);
    assert_eq!(place.run(&["sftp-server"]).code, 2);
}
