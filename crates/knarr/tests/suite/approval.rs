//! A watch job that would delete too much is held, shown, approved and carried out.

use std::fs;

use knarr_testkit::wait_until;

use crate::faults::support::{PATIENCE, Running};
use crate::program::Place;
use crate::terminal::at_terminal;

const FILES: usize = 150;

fn files_in(place: &Place, directory: &str) -> usize {
    fs::read_dir(place.path(directory)).map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with(".knarr-"))
            .count()
    })
}

fn status(place: &Place) -> serde_json::Value {
    serde_json::from_str(&place.run(&["status", "--json"]).good()).unwrap()
}

fn is_empty(place: &Place) -> bool {
    let pair = status(place)["pairs"][0].clone();
    ["ready", "waiting", "parked"]
        .iter()
        .all(|count| pair[count] == 0)
        && pair["scanning"] == false
}

/// A job that delivered all its files, and lost all but one of them while it was not running.
fn held() -> (Place, Running) {
    let place = Place::new();
    for number in 0..FILES {
        place.write(&format!("in/{number}"), "x");
    }
    place.write("in/kept", "x");
    place.write(
        "knarr.yaml",
        "jobs:\n  site:\n    watch: in\n    match: { settle: 100ms }\n    deletes: mirror\n    to: out/\n",
    );
    let node = Running::start(&place);
    wait_until(PATIENCE, "all files", || {
        files_in(&place, "out") == FILES + 1 && is_empty(&place)
    });
    node.terminate();
    for number in 0..FILES {
        fs::remove_file(place.path(&format!("in/{number}"))).unwrap();
    }
    let node = Running::start(&place);
    wait_until(PATIENCE, "the hold", || {
        !status(&place)["pairs"][0]["held"].is_null()
    });
    (place, node)
}

#[test]
fn k5_r23_a_job_that_would_delete_too_much_is_held_and_goes_on_when_it_is_approved() {
    let (place, node) = held();
    let held = status(&place)["pairs"][0]["held"].clone();
    assert_eq!(held["deletes"], FILES, "{held}");
    assert_eq!(held["approved_by"], serde_json::Value::Null);
    let shown = place.run(&["status"]).good();
    assert!(
        shown.contains("held since") && shown.contains("`knarr approve site` lets it go on"),
        "{shown}"
    );
    let listed = place.run(&["approve"]);
    assert_eq!(listed.code, 3, "{listed:?}");
    assert!(
        listed.stdout.starts_with("site: ") && listed.stdout.contains("150 of 151"),
        "{listed:?}"
    );
    // New files are delivered all the same, and nothing is deleted.
    place.write("in/fresh", "y");
    wait_until(PATIENCE, "the fresh file", || {
        place.path("out/fresh").exists()
    });
    assert_eq!(files_in(&place, "out"), FILES + 2);
    let other = place.run(&["approve", "sight"]);
    assert_eq!(other.code, 2, "{other:?}");
    place.run(&["approve", "site", "--yes"]).good();
    wait_until(PATIENCE, "the deletions", || {
        files_in(&place, "out") == 2 && is_empty(&place)
    });
    assert!(place.path("out/kept").exists() && place.path("out/fresh").exists());
    assert_eq!(
        status(&place)["pairs"][0]["held"],
        serde_json::Value::Null,
        "the approval is used up"
    );
    let after = place.run(&["approve"]);
    assert_eq!(after.code, 0, "nothing waits for approval: {after:?}");
    node.terminate();
    place.run(&["audit", "verify"]).good();
    let approved = place
        .run(&["history", "--files", "--json", "--limit", "1000"])
        .good();
    assert!(
        approved.contains("\"deleted\"") && approved.contains("150"),
        "the record tells of the hold and of the deletions"
    );
}

#[test]
fn k5_r23_an_approval_is_used_up_by_the_deletions_it_was_given_for() {
    for stopped_between in [false, true] {
        let (place, mut node) = held();
        place.run(&["approve", "site", "--yes"]).good();
        wait_until(PATIENCE, "the deletions", || {
            files_in(&place, "out") == 1 && is_empty(&place)
        });
        for number in 0..FILES {
            place.write(&format!("in/{number}"), "x");
        }
        wait_until(PATIENCE, "all files again", || {
            files_in(&place, "out") == FILES + 1 && is_empty(&place)
        });
        if stopped_between {
            node.terminate();
        } else {
            drop(node);
        }
        for number in 0..FILES {
            fs::remove_file(place.path(&format!("in/{number}"))).unwrap();
        }
        node = Running::start(&place);
        wait_until(PATIENCE, "the second hold", || {
            !status(&place)["pairs"][0]["held"].is_null()
        });
        assert_eq!(
            status(&place)["pairs"][0]["held"]["approved_by"],
            serde_json::Value::Null
        );
        node.terminate();
        assert_eq!(files_in(&place, "out"), FILES + 1, "nothing was deleted");
    }
}

#[test]
fn k5_r23_a_second_mass_deletion_at_a_running_node_is_held_again() {
    let (place, node) = held();
    place.run(&["approve", "site", "--yes"]).good();
    wait_until(PATIENCE, "the deletions", || {
        files_in(&place, "out") == 1 && is_empty(&place)
    });
    for number in 0..FILES {
        place.write(&format!("in/more/{number}"), "x");
    }
    wait_until(PATIENCE, "the other files", || {
        files_in(&place, "out/more") == FILES && is_empty(&place)
    });
    // All at once.
    fs::rename(place.path("in/more"), place.path("elsewhere")).unwrap();
    wait_until(PATIENCE, "the second hold", || {
        !status(&place)["pairs"][0]["held"].is_null()
    });
    node.terminate();
    assert_eq!(files_in(&place, "out/more"), FILES, "nothing was deleted");
}

#[test]
fn k5_r23_at_a_terminal_an_approval_is_asked_for_and_no_is_the_usual_answer() {
    let (place, node) = held();
    for answer in ["\n", "n\n"] {
        let refused = at_terminal(&place, &["approve", "site"], answer);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(
            refused.stdout.contains("Carry it out? [y/N]"),
            "{refused:?}"
        );
    }
    assert_eq!(files_in(&place, "out"), FILES + 1);
    let approved = at_terminal(&place, &["approve", "site"], "y\n");
    assert_eq!(approved.code, 0, "{approved:?}");
    wait_until(PATIENCE, "the deletions", || files_in(&place, "out") == 1);
    node.terminate();
}
