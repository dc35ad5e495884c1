//! Parameters of runs, and what else a job may have besides its files.

use std::fs;

use super::start;
use crate::program::Place;

#[test]
fn k12_a_run_has_parameters_with_a_node_and_without_one_and_others_are_refused() {
    let place = Place::new();
    for day in ["20261101", "20261102", "20261103"] {
        place.write(&format!("in/{day}.csv"), day);
    }
    place.write(
        "knarr.yaml",
        "jobs:\n  own:\n    from: in/\n    match: { settle: 0s, include: \"{param.day}.csv\" }\n    \
         parameters: { day: { default: \"20261101\", pattern: '\\d{8}' } }\n    to: \"out/{param.day}/\"\n    \
         acknowledge: { file: \"ack/{name}.ok\", content: \"{param.day} {size}\" }\n    priority: high\n",
    );
    let refused = |set: &str, told: &str| {
        let refused = place.run(&["job", "run", "own", "--set", set]);
        assert!(
            refused.code != 0 && refused.stderr.contains(told),
            "{refused:?}"
        );
    };
    let wrong = || {
        refused("day=../../etc", "is not a value of the parameter `day`");
        refused(
            "command=id",
            "the job has no parameter `command`; it has day",
        );
        refused("day", "gives no value");
    };
    wrong();
    place
        .run(&["job", "run", "own", "--set", "day=20261102"])
        .good();
    assert_eq!(
        fs::read(place.path("out/20261102/20261102.csv")).unwrap(),
        b"20261102"
    );
    let told = fs::read_to_string(place.path("in/ack/20261102.csv.ok")).unwrap();
    assert_eq!(told, "20261102 8");
    let node = start(&place);
    wrong();
    let preview = ["job", "run", "own", "--dry-run", "--set", "day=20261103"];
    let preview = place.run(&preview).good();
    assert!(preview.contains("take   20261103.csv\n"), "{preview}");
    assert!(preview.contains("leave  20261101.csv"), "{preview}");
    place
        .run(&["job", "run", "own", "--set", "day=20261103"])
        .good();
    assert!(place.path("out/20261103/20261103.csv").exists());
    place.run(&["job", "run", "own"]).good();
    assert!(place.path("out/20261101/20261101.csv").exists());
    let history = place.run(&["history", "--json"]).good();
    for cause in [
        "manual (day=20261101)",
        "manual (day=20261102)",
        "manual (day=20261103)",
    ] {
        assert!(history.contains(cause), "{history}");
    }
    let story = place.run(&["trace", "20261103.csv"]).good();
    assert!(story.contains("acknowledged by a file"), "{story}");
    node.terminate();
}
