//! The limits of the system that the program meets at its start.

use std::process::Command;

use crate::program::{Done, Place};

#[test]
fn the_number_of_open_files_is_raised_as_far_as_the_system_allows() {
    let place = Place::new();
    let program = place.command(&["doctor", "--json"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -Sn 300; ulimit -Hn 2000; exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir(place.path(""))
        .env("HOME", place.path("home"))
        .env("KNARR_STATE", place.path("state"));
    let done: Done = shell.output().unwrap().into();
    assert!(
        done.stdout
            .contains("2000 at once, could be raised to 2000"),
        "{done:?}"
    );
}
