//! Holds the house rules against the code.
//!
//! Constraints: every rule here is one that the compiler and clippy cannot hold. A complaint names the
//! place and the rule. The dependency table is the one of `ARCHITECTURE.md`; it is stated once more here,
//! because a rule that is derived from what it checks checks nothing.

mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;

use crate::{Outcome, cargo};

/// For each crate, the crates of this workspace that it may use outside tests.
const TABLE: [(&str, &[&str]); 12] = [
    ("knarr-core", &[]),
    ("knarr-fs", &["knarr-core"]),
    ("knarr-store", &["knarr-core", "knarr-fs"]),
    ("knarr-sftp", &["knarr-core"]),
    ("knarr-remote", &["knarr-core", "knarr-fs", "knarr-sftp"]),
    (
        "knarr-serve",
        &["knarr-core", "knarr-fs", "knarr-sftp", "knarr-remote"],
    ),
    ("knarr-steps", &["knarr-core"]),
    (
        "knarr-engine",
        &[
            "knarr-core",
            "knarr-fs",
            "knarr-store",
            "knarr-remote",
            "knarr-steps",
        ],
    ),
    (
        "knarr-node",
        &[
            "knarr-core",
            "knarr-fs",
            "knarr-store",
            "knarr-remote",
            "knarr-engine",
        ],
    ),
    (
        "knarr",
        &[
            "knarr-core",
            "knarr-fs",
            "knarr-store",
            "knarr-sftp",
            "knarr-remote",
            "knarr-steps",
            "knarr-engine",
            "knarr-node",
            "knarr-serve",
        ],
    ),
    ("knarr-testkit", &[]),
    ("xtask", &["knarr-testkit"]),
];

/// Documents that the root must hold.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
];

/// Checks everything and prints the complaints.
///
/// # Errors
///
/// If there is a complaint, or something cannot be read.
pub(crate) fn run(root: &Path) -> Outcome {
    let complaints = complaints(root)?;
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    match complaints.len() {
        0 => Ok(()),
        count => Err(format!("{count} complaints")),
    }
}

fn complaints(root: &Path) -> Result<Vec<String>, String> {
    let mut complaints = check_dependencies(&read_metadata()?);
    complaints.extend(check_documents(root));
    complaints.extend(sources::check(root)?);
    Ok(complaints)
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
    features: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

fn read_metadata() -> Result<Metadata, String> {
    let mut command = cargo();
    command.args([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
        "--offline",
    ]);
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cannot run cargo metadata: {error}"))?;
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("cannot read what cargo metadata says: {error}"))
}

fn check_dependencies(metadata: &Metadata) -> Vec<String> {
    let table: BTreeMap<&str, &[&str]> = TABLE.into_iter().collect();
    let mut complaints = Vec::new();
    let mut seen = BTreeSet::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        seen.insert(name);
        let Some(allowed) = table.get(name) else {
            complaints.push(format!("{name}: not in the table of xtask/src/tidy.rs"));
            continue;
        };
        // In-house features hide what is built and tested: the house has none.
        complaints.extend(
            package
                .features
                .keys()
                .map(|feature| format!("{name}: feature `{feature}`")),
        );
        for dependency in package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_some())
        {
            let other = dependency.name.as_str();
            let test_only = dependency.kind.as_deref() == Some("dev");
            let fine = allowed.contains(&other) || (test_only && other == "knarr-testkit");
            if !fine {
                complaints.push(format!("{name} must not depend on {other}"));
            }
        }
    }
    for name in table.keys().filter(|name| !seen.contains(*name)) {
        complaints.push(format!("{name}: in the table, but not in the workspace"));
    }
    complaints
}

fn check_documents(root: &Path) -> Vec<String> {
    let mut complaints = Vec::new();
    for document in DOCUMENTS {
        if !root.join(document).is_file() {
            complaints.push(format!("{document} is missing"));
        }
    }
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    for (name, _) in TABLE {
        // In back ticks, so that `knarr` is not found within `knarr-core`.
        if !architecture.contains(&format!("`{name}`")) {
            complaints.push(format!("ARCHITECTURE.md does not name `{name}`"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::{Dependency, Metadata, Package, check_dependencies, complaints};
    use crate::workspace_root;

    #[test]
    fn the_house_rules_hold() {
        let complaints = complaints(&workspace_root()).unwrap();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }

    fn package(name: &str, dependency: &str, kind: Option<&str>) -> Package {
        let dependency = Dependency {
            name: dependency.to_owned(),
            kind: kind.map(str::to_owned),
            path: Some("somewhere".to_owned()),
        };
        Package {
            name: name.to_owned(),
            dependencies: vec![dependency],
            features: [].into(),
        }
    }

    #[test]
    fn a_dependency_against_the_direction_is_found_and_the_testkit_is_for_tests_only() {
        let packages = vec![
            package("knarr-core", "knarr-fs", None),
            package("knarr-fs", "knarr-testkit", Some("dev")),
            package("knarr-store", "knarr-testkit", None),
        ];
        let found = check_dependencies(&Metadata { packages });
        let found: Vec<&String> = found
            .iter()
            .filter(|line| line.contains("must not"))
            .collect();
        assert_eq!(
            found,
            [
                "knarr-core must not depend on knarr-fs",
                "knarr-store must not depend on knarr-testkit"
            ]
        );
    }
}
