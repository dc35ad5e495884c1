//! The private sshd.

use std::fs;
use std::io::Read as _;
use std::net::TcpStream;
use std::time::Duration;

use knarr_testkit::sshd::{KeyKind, Sshd};
use knarr_testkit::wait_until;

#[test]
fn sftp_puts_a_file_through_the_private_sshd_and_gets_it_back() {
    let sshd = Sshd::start();
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("source");
    fs::write(&source, b"cargo").unwrap();
    let served = sshd.data_directory().join("served");
    let back = local.path().join("back");
    let script = format!(
        "put {} {}\nget {} {}\n",
        source.display(),
        served.display(),
        served.display(),
        back.display()
    );
    let output = sshd.sftp_batch(&script);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(fs::read(&served).unwrap(), b"cargo");
    assert_eq!(fs::read(&back).unwrap(), b"cargo");
    assert!(sshd.host_key_fingerprint().starts_with("SHA256:"));
}

#[test]
fn a_restart_keeps_the_port_and_a_new_host_key_is_refused_by_the_old_known_hosts() {
    let mut sshd = Sshd::builder().host_key(KeyKind::Ecdsa).start();
    let (port, before) = (sshd.port(), sshd.host_key_fingerprint());
    sshd.kill();
    assert!(!sshd.sftp_batch("pwd\n").status.success());
    sshd.restart();
    assert_eq!(sshd.port(), port);
    assert!(sshd.sftp_batch("pwd\n").status.success());
    sshd.restart_with_new_host_keys();
    assert_ne!(sshd.host_key_fingerprint(), before);
    let output = sshd.sftp_batch("pwd\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("verification failed"));
    sshd.write_known_hosts().unwrap();
    assert!(sshd.sftp_batch("pwd\n").status.success());
}

#[test]
fn sessions_can_be_killed_while_the_master_goes_on() {
    let sshd = Sshd::start();
    let mut client = TcpStream::connect(("127.0.0.1", sshd.port())).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    wait_until(Duration::from_secs(20), "a session", || {
        sshd.session_processes() > 0
    });
    sshd.kill_sessions();
    let mut banner = Vec::new();
    client.read_to_end(&mut banner).ok();
    wait_until(Duration::from_secs(20), "no session", || {
        sshd.session_processes() == 0
    });
    assert!(sshd.sftp_batch("pwd\n").status.success());
}

#[test]
fn nothing_is_left_of_the_server_after_drop() {
    let sshd = Sshd::start();
    let address = ("127.0.0.1", sshd.port());
    assert!(TcpStream::connect(address).is_ok());
    drop(sshd);
    assert!(TcpStream::connect(address).is_err());
}
