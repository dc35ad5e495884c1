//! `ls`, `stat` and `doctor`.

use std::os::unix::ffi::OsStrExt as _;

use crate::program::Place;

#[test]
fn ls_lists_children_or_everything_below() {
    let place = Place::new();
    place.write("in/b.txt", "22");
    place.write("in/a/c.txt", "333");
    assert_eq!(place.run(&["ls", "in"]).good(), "a/\nb.txt\n");
    assert_eq!(
        place.run(&["ls", "-r", "in"]).good(),
        "a/\na/c.txt\nb.txt\n"
    );
    assert_eq!(
        place
            .run(&["ls", "-r", "in", "--min-size", "3", "--include", "*.txt"])
            .good(),
        "a/\na/c.txt\n"
    );
    assert_eq!(place.run(&["ls", "in/b.txt"]).good(), "b.txt\n");
    let json = place.run(&["ls", "--json", "in"]).good();
    let lines: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[1]["path"], "b.txt");
    assert_eq!(lines[1]["size"], 2);
    let done = place.run(&["ls", "missing"]);
    assert_eq!(done.code, 2);
    assert!(
        done.stderr.starts_with("error: cannot look at "),
        "{}",
        done.stderr
    );
}

#[test]
fn h06_names_cannot_drive_the_terminal() {
    let place = Place::new();
    place.write("in/x", "");
    let name = std::ffi::OsStr::from_bytes(b"a\n\x1b[31mb\xff");
    std::fs::File::create(place.path("in").join(name)).unwrap();
    let printed = place.run(&["ls", "in"]).good();
    assert_eq!(printed, "a\\n\\u{1b}[31mb\\xff\nx\n");
}

#[test]
fn stat_tells_what_lies_there() {
    let place = Place::new();
    place.write("in/a", "1234");
    let printed = place.run(&["stat", "in/a"]).good();
    assert!(
        printed.contains("kind      file") && printed.contains("(4 bytes)"),
        "{printed}"
    );
    let printed = place.run(&["stat", "in"]).good();
    assert!(printed.contains("0 directories and 1 files"), "{printed}");
    assert_ne!(place.run(&["stat", "in/b"]).code, 0);
}

#[test]
fn doctor_looks_at_everything_and_names_what_is_wrong() {
    let place = Place::new();
    place.write("knarr.yaml", "jobs: { a1: { watch: missing, to: out } }");
    let done = place.run(&["doctor"]);
    assert_eq!(done.code, 1, "{done:?}");
    for part in [
        "kernel",
        "open files",
        "state directory",
        "clock",
        "SSH agent",
        "known hosts",
    ] {
        assert!(done.stdout.contains(part), "{part}:\n{}", done.stdout);
    }
    assert!(
        done.stdout
            .contains("create it or correct `watch` of the job a1"),
        "{}",
        done.stdout
    );
    std::fs::create_dir(place.path("missing")).unwrap();
    let json = place.run(&["doctor", "--json"]).stdout;
    for line in json.lines() {
        let finding: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_ne!(finding["what"], "watched", "{line}");
    }
    // It leaves nothing behind.
    assert!(!place.path("state").exists());
}
