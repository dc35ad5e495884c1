//! Nothing outlives its test, even if that is killed.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use knarr_testkit::port::ReservedPort;
use knarr_testkit::sshd::Sshd;
use knarr_testkit::wait_until;

#[test]
fn a_reserved_port_is_given_out_once() {
    let first = ReservedPort::new().unwrap();
    let second = ReservedPort::new().unwrap();
    assert_ne!(first.number(), second.number());
}

/// Not a test of its own: the child of the next test. It starts a server and waits to be killed.
#[test]
fn helper_that_starts_a_server_and_waits_if_asked_to() {
    if std::env::var_os("KNARR_TESTKIT_WAIT").is_none() {
        return;
    }
    let sshd = Sshd::start();
    let directory = sshd.data_directory();
    println!(
        "port={} {}",
        sshd.port(),
        directory.parent().unwrap().display()
    );
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn the_watchdog_kills_the_server_of_a_test_that_was_killed() {
    let name = "process::helper_that_starts_a_server_and_waits_if_asked_to";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("KNARR_TESTKIT_WAIT", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = lines.map(Result::unwrap).find_map(|line| {
        let (port, directory) = line.split_once("port=")?.1.split_once(' ')?;
        Some((port.parse::<u16>().ok()?, PathBuf::from(directory)))
    });
    let (port, directory) = found.unwrap();
    let address = ("127.0.0.1", port);
    assert!(TcpStream::connect(address).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until(Duration::from_secs(20), "the server to be gone", || {
        TcpStream::connect(address).is_err()
    });
    wait_until(Duration::from_secs(20), "its directory to be gone", || {
        !directory.exists()
    });
}
