//! `trace`, `history`, `status`, `queue`, `audit`, `approve`: what is known afterwards.

use crate::program::Place;

fn moved() -> Place {
    let place = Place::new();
    place.write("in/sub/a.csv", "1234");
    place.write("in/=cmd", "x");
    place.run(&["copy", "in", "out"]).good();
    place
}

#[test]
fn k11_trace_tells_the_story_of_a_file() {
    let place = moved();
    let expected_hash = blake3_of("1234");
    let whole = place.path("in/sub/a.csv");
    for path in [
        "sub/a.csv",
        "a.csv",
        whole.to_str().unwrap(),
        "./in/sub/a.csv",
    ] {
        let story = place.run(&["trace", path]).good();
        assert!(
            story.starts_with("sub/a.csv   (copy)\n"),
            "{path}:\n{story}"
        );
        assert!(story.contains("✓ delivered"), "{story}");
        assert!(story.contains(&expected_hash), "{story}");
        assert!(story.contains("verified  by "), "{story}");
    }
    let json = place.run(&["trace", "--json", "sub/a.csv"]).good();
    let record: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(record["source_hash"], expected_hash);
    assert_eq!(record["action"], "created");
    let done = place.run(&["trace", "unknown"]);
    assert_eq!(done.code, 1);
    assert!(
        done.stderr
            .starts_with("error: nothing is recorded about \"unknown\"\n"),
        "{}",
        done.stderr
    );
}

fn blake3_of(content: &str) -> String {
    knarr_core::ContentHash::of(content.as_bytes()).to_string()
}

#[test]
fn history_lists_runs_and_files_with_filters() {
    let place = moved();
    let runs = place.run(&["history"]).good();
    assert!(runs.contains("copy") && runs.contains("done"), "{runs}");
    let json = place.run(&["history", "--json"]).good();
    let run: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!((&run["run"], &run["state"]), (&1.into(), &"done".into()));
    let files = place.run(&["history", "--path", "*.csv"]).good();
    assert!(
        files.contains("sub/a.csv") && !files.contains("=cmd"),
        "{files}"
    );
    assert!(
        !place
            .run(&["history", "--files", "--until", "2020-01-01"])
            .good()
            .contains("a.csv")
    );
    assert!(
        place
            .run(&["history", "--files", "--since", "1h"])
            .good()
            .contains("a.csv")
    );
    assert_eq!(place.run(&["history", "--since", "soon"]).code, 2);
    assert_eq!(place.run(&["history", "--action", "eaten"]).code, 2);
}

#[test]
fn h06_the_export_for_spreadsheets_holds_no_formula() {
    let place = moved();
    let csv = place.run(&["audit", "export", "--format", "csv"]).good();
    assert!(csv.starts_with("seq,at,run,job,path,"), "{csv}");
    assert!(csv.contains(",\"'=cmd\","), "{csv}");
    let lines = place.run(&["audit", "export"]).good();
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    assert!(lines.contains("\"=cmd\""), "{lines}");
}

#[test]
fn k11_audit_finds_a_changed_record() {
    let place = moved();
    let printed = place.run(&["audit", "verify"]).good();
    assert!(printed.starts_with("intact: "), "{printed}");
    let head = printed.trim().rsplit(' ').next().unwrap().to_owned();
    place.write("in/new", "n");
    place.run(&["copy", "in", "out"]).good();
    place.run(&["audit", "verify", "--noted", &head]).good();
    let forged = head.replace(|c: char| c.is_ascii_hexdigit() && c != '0', "1");
    let forged = format!(
        "{}:{}",
        head.split_once(':').unwrap().0,
        forged.split_once(':').unwrap().1
    );
    let broken = place.run(&["audit", "verify", "--noted", &forged]);
    assert_eq!(broken.code, 1, "{broken:?}");
    assert!(
        broken
            .stdout
            .contains("the chain is not the one whose end was noted"),
        "{broken:?}"
    );
    assert_eq!(place.run(&["audit", "verify", "--noted", "x"]).code, 2);
}

#[test]
fn status_and_queue_say_that_all_is_in_step() {
    let place = moved();
    let status = place.run(&["status"]).good();
    assert!(status.contains("in step"), "{status}");
    let json: serde_json::Value =
        serde_json::from_str(&place.run(&["status", "--json"]).good()).unwrap();
    assert_eq!(json["pairs"][0]["parked"], 0);
    assert_eq!(place.run(&["queue"]).good(), "");
    assert_eq!(place.run(&["queue", "--job", "none"]).code, 2);
}

#[test]
fn approve_without_a_job_lists_what_is_held() {
    let place = moved();
    assert_eq!(place.run(&["approve"]).good(), "nothing is held\n");
    assert_eq!(place.run(&["approve", "none"]).code, 2);
}

#[test]
fn where_nothing_was_moved_that_is_said_and_nothing_is_made() {
    let place = Place::new();
    for arguments in [
        &["status"][..],
        &["queue"],
        &["trace", "x"],
        &["history"],
        &["audit", "verify"],
    ] {
        let done = place.run(arguments);
        assert_eq!(done.code, 2, "{done:?}");
        assert!(
            done.stderr.starts_with("error: there is no state in "),
            "{}",
            done.stderr
        );
    }
    assert!(!place.path("state").exists());
}
