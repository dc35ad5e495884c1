//! `docs/faults.md` names the tests that prove what it says: every one of them exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::program::repository;

/// Test functions by crate: `knarr-fs` → names, of the files below its `src` and `tests`.
fn functions() -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(repository().join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let mut names = BTreeSet::new();
        collect(&path.join("src"), &mut names);
        collect(&path.join("tests"), &mut names);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        found.insert(name, names);
    }
    found
}

fn collect(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for line in text.lines() {
                let function = line
                    .split_once("fn ")
                    .and_then(|(_before, rest)| rest.split(['(', '<']).next());
                names.extend(function.map(|name| name.trim().to_owned()));
            }
        }
    }
}

/// The `crate::…::name` in backticks on the page.
fn named(page: &str) -> Vec<(&str, &str)> {
    page.split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.starts_with("knarr") && code.contains("::"))
        .filter_map(|code| Some((code.split("::").next()?, code.rsplit("::").next()?)))
        .collect()
}

#[test]
fn every_test_that_the_page_of_faults_names_exists() {
    let page = fs::read_to_string(repository().join("docs/faults.md")).unwrap();
    let functions = functions();
    let named = named(&page);
    assert!(named.len() > 100, "only {} tests are named", named.len());
    let missing: Vec<_> = named
        .iter()
        .filter(|(package, name)| {
            functions
                .get(*package)
                .is_none_or(|functions| !functions.contains(*name))
        })
        .collect();
    assert!(missing.is_empty(), "these tests do not exist: {missing:#?}");
}

#[test]
fn the_page_of_faults_has_every_promise_and_every_test_that_carries_an_id() {
    let page = fs::read_to_string(repository().join("docs/faults.md")).unwrap();
    for promise in 1..=12 {
        assert!(page.contains(&format!("| K{promise} |")), "K{promise}");
    }
    let ids: BTreeSet<String> = functions()
        .into_values()
        .flatten()
        .flat_map(|name| name.split('_').filter_map(id).collect::<Vec<_>>())
        .collect();
    let missing: Vec<_> = ids
        .iter()
        .filter(|id| !page.contains(&format!("| {id} |")))
        .collect();
    assert!(missing.is_empty(), "not on the page: {missing:?}");
}

/// `r07` is `R-07`, `h60` is `H-60`.
fn id(part: &str) -> Option<String> {
    let (letter, number) = part.split_at_checked(1)?;
    let letter = matches!(letter, "r" | "h").then(|| letter.to_uppercase())?;
    let digits = number.len() == 2 && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| format!("{letter}-{number}"))
}
