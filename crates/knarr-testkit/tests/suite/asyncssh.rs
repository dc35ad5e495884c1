//! The asyncssh server, driven by OpenSSH's sftp.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use knarr_testkit::asyncssh::{AsyncsshBuilder, AsyncsshServer, ReplyFault};
use knarr_testkit::sshd::{KeyKind, Sshd};

/// A server with a key of its own test that is let in, and what sftp says to a batch.
struct Trial {
    server: AsyncsshServer,
    keys: tempfile::TempDir,
}

impl Trial {
    fn new(build: impl FnOnce(AsyncsshBuilder) -> AsyncsshBuilder) -> Self {
        let keys = tempfile::tempdir().unwrap();
        let sshd = Sshd::start();
        sshd.generate_key(&keys.path().join("key"), KeyKind::Ed25519, "")
            .unwrap();
        let authorized = keys.path().join("key.pub");
        let server = build(AsyncsshServer::builder().authorized_keys(&authorized)).start();
        Self { server, keys }
    }

    fn sftp(&self, script: &str) -> Output {
        let mut child = Command::new("sftp")
            .args(["-b", "-", "-F", "none", "-o", "StrictHostKeyChecking=no"])
            .args([
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "IdentitiesOnly=yes",
                "-i",
            ])
            .arg(self.keys.path().join("key"))
            .args(["-P", &self.server.port().to_string()])
            .arg(format!("{}@127.0.0.1", self.server.user()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    }
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

#[test]
fn an_honest_server_takes_a_file_and_gives_it_back() {
    let trial = Trial::new(|builder| builder);
    let source = trial.keys.path().join("source");
    fs::write(&source, b"cargo").unwrap();
    let output = trial.sftp(&format!("put {} served\nls -l\n", source.display()));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(
        fs::read(trial.server.root().join("served")).unwrap(),
        b"cargo"
    );
}

#[test]
fn passwords_and_questions_are_asked_and_checked() {
    let server = AsyncsshServer::builder()
        .password("open sesame")
        .interactive("Code", "123456")
        .start();
    let directory = tempfile::tempdir().unwrap();
    let answer = directory.path().join("answer");
    let login = |method: &str, secret: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::write(&answer, format!("#!/bin/sh\necho '{secret}'\n")).unwrap();
        fs::set_permissions(&answer, fs::Permissions::from_mode(0o700)).unwrap();
        let status = Command::new("sftp")
            .args([
                "-F",
                "none",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "BatchMode=no",
            ])
            .args([
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "NumberOfPasswordPrompts=1",
            ])
            .args(["-o", &format!("PreferredAuthentications={method}")])
            .args(["-P", &server.port().to_string(), "skipper@127.0.0.1"])
            .env("SSH_ASKPASS", &answer)
            .env("SSH_ASKPASS_REQUIRE", "force")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        status.status.success()
    };
    assert!(login("password", "open sesame"), "{}", server.log());
    assert!(!login("password", "guess"));
    assert!(login("keyboard-interactive", "123456"), "{}", server.log());
    assert!(!login("keyboard-interactive", "000000"));
}

#[test]
fn hostile_names_are_listed_as_bytes() {
    let trial = Trial::new(|builder| builder.listed_name(b"../escaped").listed_name(b"\xffraw"));
    // OpenSSH's own sftp refuses a listing with a slash in it, which proves that it was sent.
    let output = trial.sftp("ls -1\n");
    assert!(
        text(&output).contains("raw") || text(&output).contains("suspect"),
        "{}",
        text(&output)
    );
}

#[test]
fn extensions_can_be_missing_and_writes_refused() {
    let trial = Trial::new(|builder| {
        builder
            .without_extension("posix-rename@openssh.com")
            .full_after(100_000)
    });
    let source = trial.keys.path().join("source");
    fs::write(&source, vec![7; 200_000]).unwrap();
    let output = trial.sftp(&format!("put {} served\n", source.display()));
    assert!(!output.status.success(), "{}", text(&output));
    assert!(
        fs::metadata(trial.server.root().join("served"))
            .unwrap()
            .len()
            <= 100_000
    );
}

#[test]
fn replies_are_tampered_with_after_the_given_number() {
    for fault in [
        ReplyFault::WrongId,
        ReplyFault::HugeLength,
        ReplyFault::UnknownType,
    ] {
        let trial = Trial::new(|builder| builder.reply_fault(fault, 1));
        let output = trial.sftp("ls\nls\nls\n");
        assert!(!output.status.success(), "{fault:?}: {}", text(&output));
    }
}
