//! Who may speak to a node.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use crate::control::{place, start};
use crate::program::Done;

#[test]
fn the_socket_is_the_nodes_alone_and_goes_with_it() {
    let place = place();
    let node = start(&place);
    let socket = place.path("state/control.sock");
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let second = place.run(&["run"]);
    assert!(
        second.code == 2 && second.stderr.contains("another node has this state"),
        "{second:?}"
    );
    assert_eq!(place.run(&["status"]).code, 0, "the first one goes on");
    node.terminate();
    assert!(!socket.exists());
}

#[test]
fn a_socket_that_a_dead_process_left_is_replaced_and_means_no_node() {
    let place = place();
    let node = start(&place);
    node.kill_now();
    assert!(place.path("state/control.sock").exists());
    assert_eq!(
        place.run(&["history"]).code,
        0,
        "no node: the state is read itself"
    );
    start(&place).terminate();
}

#[test]
fn another_user_is_refused_whatever_the_modes_are() {
    let place = place();
    let node = start(&place);
    // As if somebody had opened all doors.
    for (path, mode) in [("", 0o755), ("state", 0o755), ("state/control.sock", 0o666)] {
        fs::set_permissions(place.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let program = place.path("knarr");
    fs::copy(env!("CARGO_BIN_EXE_knarr"), &program).unwrap();
    let nobody = || -> Done {
        std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(&program)
            .args(["status", "--state"])
            .arg(place.path("state"))
            .env_clear()
            .output()
            .unwrap()
            .into()
    };
    let refused = nobody();
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("does not serve the user of this command"),
        "{refused:?}"
    );
    let log = fs::read_to_string(place.path("log")).unwrap();
    assert!(
        log.contains("a connection to the control socket is refused"),
        "{log}"
    );
    fs::set_permissions(
        place.path("state/control.sock"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let refused = nobody();
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
    node.terminate();
}

#[test]
fn a_state_directory_that_others_may_write_to_has_no_socket() {
    let place = place();
    fs::create_dir(place.path("state")).unwrap();
    fs::set_permissions(place.path("state"), fs::Permissions::from_mode(0o777)).unwrap();
    let refused = place.run(&["run"]);
    assert!(
        refused.code == 2 && refused.stderr.contains("chmod go-w"),
        "{refused:?}"
    );
}

#[test]
fn a_socket_that_answers_nonsense_is_told_with_exit_code_4() {
    let place = place();
    start(&place).terminate();
    let socket = UnixListener::bind(place.path("state/control.sock")).unwrap();
    let hanging_up = std::thread::spawn(move || {
        for stream in socket.incoming().take(4) {
            drop(stream);
        }
    });
    let refused = place.run(&["status"]);
    assert!(
        refused.code == 4 && refused.stderr.contains("a node runs with this state"),
        "{refused:?}"
    );
    drop(hanging_up);
}
