//! `copy`, `move`, `mirror`, `sync`, `plan`, `apply` between directories.

use crate::program::{Done, Place};

fn tree(place: &Place, root: &str, files: &[(&str, &str)]) {
    for (path, content) in files {
        place.write(&format!("{root}/{path}"), content);
    }
}

fn content(place: &Place, path: &str) -> Option<String> {
    std::fs::read_to_string(place.path(path)).ok()
}

fn report(done: Done) -> serde_json::Value {
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

#[test]
fn copy_brings_what_is_missing_and_the_next_copy_does_nothing() {
    let place = Place::new();
    tree(
        &place,
        "in",
        &[("a", "1"), ("sub/b", "22"), ("sub/c.tmp", "3")],
    );
    let done = place.run(&["copy", "in", "out", "--exclude", "*.tmp", "--json"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    let first = report(done);
    assert_eq!(first["state"], "done");
    assert_eq!(content(&place, "out/sub/b").as_deref(), Some("22"));
    assert_eq!(content(&place, "out/sub/c.tmp"), None);
    let again = report(place.run(&["copy", "in", "out", "--exclude", "*.tmp", "--json"]));
    assert_eq!(
        (&again["created"], &again["sent_bytes"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn the_summary_for_people_goes_to_stderr() {
    let place = Place::new();
    tree(&place, "in", &[("a", "1")]);
    let done = place.run(&["copy", "in", "out"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""));
    assert!(
        done.stderr.contains("created") && done.stderr.contains("(run 1)"),
        "{}",
        done.stderr
    );
    let quiet = place.run(&["-q", "copy", "in", "out2"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
}

#[test]
fn a_dry_run_prints_what_would_be_done_and_does_nothing() {
    let place = Place::new();
    tree(&place, "in", &[("a", "1")]);
    let printed = place.run(&["copy", "in", "out", "--dry-run"]).good();
    assert_eq!(printed, "create → a (1 bytes)\n");
    assert!(!place.path("out").exists());
}

#[test]
fn a_single_file_is_copied_without_its_neighbours() {
    let place = Place::new();
    tree(&place, "in", &[("a", "1"), ("b", "2")]);
    place.run(&["copy", "in/a", "out"]).good();
    assert_eq!(content(&place, "out/a").as_deref(), Some("1"));
    assert_eq!(content(&place, "out/b"), None);
    let refused = place.run(&["mirror", "in/a", "out"]);
    assert_eq!(refused.code, 2);
    assert!(
        refused
            .stderr
            .contains("is a file, and `mirror` is about directories"),
        "{refused:?}"
    );
    assert_eq!(content(&place, "out/a").as_deref(), Some("1"));
}

#[test]
fn k4_move_removes_the_source_after_the_delivery() {
    let place = Place::new();
    tree(&place, "in", &[("a", "1")]);
    place.run(&["move", "in", "out"]).good();
    assert_eq!(content(&place, "out/a").as_deref(), Some("1"));
    assert_eq!(content(&place, "in/a"), None);
}

#[test]
fn k5_a_mirror_that_deletes_too_much_is_held_until_it_is_approved() {
    let place = Place::new();
    tree(&place, "in", &[("kept", "1")]);
    for number in 0..150 {
        place.write(&format!("out/{number}"), "old");
    }
    let held = place.run(&["mirror", "in", "out"]);
    assert_eq!(held.code, 3, "{held:?}");
    assert!(
        held.stderr.contains("held: 150 would be deleted"),
        "{}",
        held.stderr
    );
    assert_eq!(content(&place, "out/7").as_deref(), Some("old"));
    let listed = place.run(&["approve"]);
    assert_eq!(listed.code, 3, "{listed:?}");
    assert!(listed.stdout.contains("--approve-deletes"), "{listed:?}");
    place
        .run(&["mirror", "in", "out", "--approve-deletes"])
        .good();
    assert_eq!(place.run(&["approve"]).good(), "nothing is held\n");
    assert_eq!(content(&place, "out/7"), None);
    assert_eq!(content(&place, "out/kept").as_deref(), Some("1"));
}

#[test]
fn k6_sync_goes_both_ways_and_keeps_both_versions_of_a_conflict() {
    let place = Place::new();
    tree(&place, "one", &[("a", "1"), ("c", "first")]);
    tree(&place, "two", &[("b", "2"), ("c", "second!")]);
    place.run(&["sync", "one", "two"]).good();
    assert_eq!(content(&place, "one/b").as_deref(), Some("2"));
    assert_eq!(content(&place, "two/a").as_deref(), Some("1"));
    let all = place.all_bytes("two");
    for version in ["first", "second!"] {
        assert!(crate::program::contains(&all, version), "{version}");
    }
    std::fs::remove_file(place.path("one/a")).unwrap();
    place.run(&["sync", "one", "two"]).good();
    assert_eq!(content(&place, "two/a"), None);
}

#[test]
fn a_reviewed_plan_is_carried_out_exactly_or_not_at_all() {
    let place = Place::new();
    tree(&place, "in", &[("a", "1"), ("b", "2")]);
    let planned = place.run(&["plan", "in", "out", "-o", "plan.json"]).good();
    assert!(
        planned.ends_with("decisions are in plan.json\n"),
        "{planned}"
    );
    assert_eq!(place.run(&["plan", "in", "out", "-o", "plan.json"]).code, 1);
    let shown = place.run(&["apply", "plan.json", "--dry-run"]).good();
    assert!(shown.contains("create → b (1 bytes)"), "{shown}");
    place.write("in/b", "changed since");
    let refused = place.run(&["apply", "plan.json"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused
            .stderr
            .contains("the plan does not fit any more: \"b\""),
        "{}",
        refused.stderr
    );
    assert!(!place.path("out/a").exists());
    std::fs::remove_file(place.path("plan.json")).unwrap();
    place.run(&["plan", "in", "out", "-o", "plan.json"]).good();
    // From another directory it means the same.
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    let applied = place
        .command(&["apply", "../plan.json"])
        .current_dir(place.path("elsewhere"))
        .output()
        .unwrap();
    assert!(applied.status.success(), "{applied:?}");
    assert_eq!(content(&place, "out/b").as_deref(), Some("changed since"));
}

#[test]
fn a_plan_that_was_cut_or_is_none_is_refused() {
    let place = Place::new();
    tree(&place, "in", &[("a", "1")]);
    place.run(&["plan", "in", "out", "-o", "plan.json"]).good();
    let whole = std::fs::read_to_string(place.path("plan.json")).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    for text in [
        lines[..lines.len() - 1].join("\n"),
        "{}".to_owned(),
        String::new(),
    ] {
        place.write("plan.json", text);
        let done = place.run(&["apply", "plan.json"]);
        assert_eq!(done.code, 2, "{done:?}");
        assert!(
            done.stderr.contains("of the plan is not valid"),
            "{}",
            done.stderr
        );
        assert!(!place.path("out/a").exists());
    }
    assert_eq!(place.run(&["apply", "missing.json"]).code, 2);
}

#[test]
fn what_does_not_exist_is_told_with_exit_code_2() {
    let place = Place::new();
    let done = place.run(&["copy", "missing", "out"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(
        done.stderr.starts_with("error: cannot look at "),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("missing"), "{}", done.stderr);
    let done = place.run(&["copy", "nowhere:x", "out"]);
    assert_eq!(done.code, 2);
    assert_eq!(
        done.stderr,
        "error: there is no endpoint `nowhere`\n\
         hint: no configuration was found: `knarr init` writes one\n\
         hint: for a local file with a colon in its name write ./nowhere:…\n"
    );
    assert_eq!(
        place.run(&["copy", "in", "out", "--include", "a[b"]).code,
        2
    );
    assert_eq!(
        place.run(&["copy", "in", "out", "--transfers", "0"]).code,
        2
    );
}

#[test]
fn a_file_that_cannot_be_copied_makes_exit_code_1() {
    let place = Place::new();
    tree(&place, "in", &[("good", "1")]);
    let fifo = std::process::Command::new("mkfifo")
        .arg(place.path("in/pipe"))
        .status()
        .unwrap();
    assert!(fifo.success());
    let done = place.run(&["copy", "in", "out"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("pipe"), "{}", done.stderr);
    assert_eq!(content(&place, "out/good").as_deref(), Some("1"));
}

#[test]
fn h25_a_password_in_a_location_is_never_repeated() {
    let place = Place::new();
    for arguments in [
        ["copy", "sftp://me:hunter2@host/x", "out"],
        ["copy", "in", "sftp://me:hunter2@host/x"],
        ["sync", "s3://key:hunter2@bucket/x", "out"],
    ] {
        let done = place.run(&arguments);
        assert_eq!(done.code, 2);
        assert!(done.stderr.contains("password"), "{}", done.stderr);
        assert!(!done.stderr.contains("hunter2") && !done.stdout.contains("hunter2"));
    }
}

#[test]
fn k5_r20_nothing_follows_from_another_directory_in_the_place_of_the_source() {
    for command in ["mirror", "sync"] {
        let place = Place::new();
        tree(&place, "in", &[("a", "1"), ("b", "2"), ("c", "3")]);
        place.run(&[command, "in", "out"]).good();
        place.run(&[command, "in", "out"]).good();

        // As if a disk was unmounted, and a file lay below its mount point.
        let disk = place.path("disk");
        std::fs::rename(place.path("in"), &disk).unwrap();
        tree(&place, "in", &[("below", "4")]);
        let held = place.run(&[command, "in", "out"]);
        assert_eq!(held.code, 3, "{command}: {held:?}");
        assert!(held.stderr.contains("approve"), "{command}: {held:?}");
        for file in ["out/a", "out/b", "out/c"] {
            assert!(place.path(file).exists(), "{command}: {file}");
        }

        // Mounted again, it is as it was.
        std::fs::remove_dir_all(place.path("in")).unwrap();
        std::fs::rename(&disk, place.path("in")).unwrap();
        std::fs::remove_file(place.path("in/c")).unwrap();
        place.run(&[command, "in", "out"]).good();
        assert!(!place.path("out/c").exists(), "{command}");
        assert!(place.path("out/a").exists(), "{command}");
    }
}
