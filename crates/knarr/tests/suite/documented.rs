//! The examples of the pages about jobs are configurations that work, and no key of a job is missing.

use std::path::Path;

use crate::program::Place;

fn page(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    std::fs::read_to_string(root.join(name)).unwrap()
}

/// The blocks of YAML that are whole configurations.
fn configurations(page: &str) -> Vec<String> {
    page.split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(block, _)| block.to_owned())
        .filter(|block| block.lines().any(|line| line == "jobs:"))
        .collect()
}

#[test]
fn every_example_of_a_job_is_a_configuration_that_is_accepted() {
    let page = page("jobs.md");
    let found = configurations(&page);
    assert!(found.len() >= 3, "{}", found.len());
    for configuration in found {
        let place = Place::new();
        place.write("knarr.yaml", &configuration);
        let checked = place.run(&["check"]);
        assert_eq!(checked.code, 0, "{configuration}\n{checked:?}");
    }
}

/// The properties of one shape of the JSON Schema.
fn properties(schema: &serde_json::Value, shape: &str) -> Vec<String> {
    let properties = &schema["$defs"][shape]["properties"];
    let properties = properties.as_object().unwrap_or_else(|| panic!("{shape}"));
    properties.keys().cloned().collect()
}

#[test]
fn every_key_of_a_job_is_described() {
    let place = Place::new();
    let schema = place.run(&["schema"]).good();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let pages = page("jobs.md") + &page("configuration.md");
    for shape in [
        "JobShape",
        "MatchShape",
        "CheckShape",
        "HoursShape",
        "ScheduleShape",
    ] {
        for key in properties(&schema, shape) {
            assert!(
                pages.contains(&format!("{key}:")) || pages.contains(&format!("`{key}`")),
                "`{key}` of {shape} is not described"
            );
        }
    }
}
