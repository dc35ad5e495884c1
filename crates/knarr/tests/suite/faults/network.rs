//! SFTP under faults of the line and of the server.

use std::fs;
use std::time::Duration;

use knarr_testkit::data::{Compare, TreeBuilder, assert_same_tree};
use knarr_testkit::proxy::{Action, Behaviour, Direction, Fault, FaultProxy};
use knarr_testkit::sshd::Sshd;
use knarr_testkit::wait_until;

use super::support::{PATIENCE, TornReader, large_file, litter, report, sftp_endpoint};
use crate::program::{Done, Place};

const MIB: u64 = 1 << 20;
/// The length of the large file, in bytes.
const LARGE: u64 = 48 * MIB;
/// SFTP: what may be sent beyond the last checkpoint, in bytes.
const WINDOW: u64 = 32 * MIB;

fn world(server: &Sshd, port: u16) -> Place {
    let place = Place::new();
    TreeBuilder::new(11).files(40).build(&place.path("in"));
    large_file(&place.path("in/large"), 12, LARGE);
    place.write(
        "knarr.yaml",
        format!("endpoints:\n{}", sftp_endpoint(server, port)),
    );
    place
}

/// Copies while `strike` happens to the server or the line.
#[track_caller]
fn copy_under(place: &Place, server: &mut Sshd, strike: impl FnOnce(&mut Sshd)) -> Done {
    let destination = server.data_directory();
    let reader = TornReader::start(&place.path("in"), &destination);
    let child = place
        .command(&["copy", "in", "partner:", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    strike(server);
    let done = Done::from(child.wait_with_output().unwrap());
    reader.finish();
    done
}

/// It went well in spite of all, and nothing was sent twice beyond K9.
#[track_caller]
fn check(place: &Place, server: &Sshd, done: &Done, interruptions: u64, sent: u64) {
    assert_eq!(done.code, 0, "{done:?}\n{}", server.log());
    assert_eq!(report(done)["failed"], 0, "{done:?}");
    let most = LARGE + LARGE / 50 + 2 * MIB + interruptions * (WINDOW + 2 * MIB);
    assert!(sent <= most, "{sent} bytes were sent, at most {most}");
    place.check_end(
        &["copy", "in", "partner:"],
        &place.path("in"),
        &server.data_directory(),
    );
    assert_eq!(litter(&server.data_directory()), Vec::<String>::new());
}

#[test]
fn k2_k9_r43_a_server_killed_and_restarted_in_the_middle_of_a_file_gets_the_rest() {
    let mut server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port())
        .throttle(40 * MIB)
        .start();
    let place = world(&server, proxy.port());
    let done = copy_under(&place, &mut server, |server| {
        wait_until(PATIENCE, "the middle of the file", || {
            proxy.counters().to_server > LARGE / 2
        });
        server.kill();
        server.restart();
    });
    check(&place, &server, &done, 1, proxy.counters().to_server);
}

#[test]
fn k2_k9_r41_connections_that_are_reset_again_and_again_do_not_stop_a_copy() {
    let mut server = Sshd::start();
    let reset = |connection, at_byte| Fault {
        connection: Some(connection),
        direction: Direction::ToServer,
        at_byte,
        action: Action::Reset,
    };
    let proxy = FaultProxy::to_port(server.port())
        .fault(reset(1, 10 * MIB))
        .fault(reset(2, 12 * MIB))
        .start();
    let place = world(&server, proxy.port());
    let done = copy_under(&place, &mut server, |_server| {});
    check(&place, &server, &done, 2, proxy.counters().to_server);
}

#[test]
fn k2_r42_a_line_that_says_nothing_for_a_while_only_delays() {
    let mut server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port())
        .throttle(40 * MIB)
        .start();
    let place = world(&server, proxy.port());
    let done = copy_under(&place, &mut server, |server| {
        wait_until(PATIENCE, "the middle of the file", || {
            proxy.counters().to_server > LARGE / 2
        });
        server.freeze_sessions();
        let seen = proxy.counters().to_client;
        // A frozen server answers nothing; a second of that.
        knarr_testkit::wait::poll(Duration::from_secs(1), || None::<()>);
        assert!(proxy.counters().to_client - seen < MIB);
        server.thaw_sessions();
    });
    check(&place, &server, &done, 0, proxy.counters().to_server);
}

#[test]
fn r47_a_slow_line_is_waited_for() {
    let mut server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port())
        .latency(Duration::from_millis(100))
        .throttle(256 * 1024)
        .start();
    let place = Place::new();
    TreeBuilder::new(13).files(30).build(&place.path("in"));
    place.write(
        "knarr.yaml",
        format!("endpoints:\n{}", sftp_endpoint(&server, proxy.port())),
    );
    let done = copy_under(&place, &mut server, |_server| {});
    assert_eq!(done.code, 0, "{done:?}");
    assert_same_tree(
        &place.path("in"),
        &server.data_directory(),
        &Compare::content(),
    );
}

#[test]
fn r41_a_server_that_refuses_every_connection_is_told_with_exit_code_4_and_later_the_copy_goes_on()
{
    let mut server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).start();
    let place = world(&server, proxy.port());
    proxy.set(Behaviour::Refuse);
    let done = copy_under(&place, &mut server, |_server| {});
    assert_eq!(done.code, 4, "{done:?}");
    assert_eq!(fs::read_dir(server.data_directory()).unwrap().count(), 0);
    proxy.set(Behaviour::Forward);
    let done = copy_under(&place, &mut server, |_server| {});
    check(&place, &server, &done, 0, proxy.counters().to_server);
}

#[test]
fn h50_r43_a_host_key_that_changed_between_two_runs_stops_at_once_with_its_own_message() {
    let mut server = Sshd::start();
    let place = world(&server, server.port());
    place
        .run(&["copy", "in", "partner:", "--exclude", "large"])
        .good();
    server.restart_with_new_host_keys();
    let done = place.run(&["copy", "in", "partner:"]);
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("fingerprint"), "{}", done.stderr);
    assert!(!server.data_directory().join("large").exists());
}

#[test]
fn h50_r43_a_host_key_that_changes_in_the_middle_of_a_file_is_no_reason_to_try_again() {
    let mut server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port())
        .throttle(40 * MIB)
        .start();
    let place = world(&server, proxy.port());
    let done = copy_under(&place, &mut server, |server| {
        wait_until(PATIENCE, "the middle of the file", || {
            proxy.counters().to_server > LARGE / 2
        });
        server.restart_with_new_host_keys();
    });
    assert_ne!(done.code, 0, "{done:?}");
    assert!(done.stderr.to_lowercase().contains("host key"), "{done:?}");
    assert!(!server.data_directory().join("large").exists());
}
