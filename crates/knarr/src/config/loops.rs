//! Finds jobs that would deliver into what they watch, directly or through one another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use knarr_core::location::Location;

use crate::config::resolved::{Config, EndpointKind, Job};

/// The jobs that lead back to themselves, each with what to tell.
pub(super) fn find(config: &Config) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, job) in &config.jobs {
        let Some(to) = local_destination(config, job) else {
            continue;
        };
        if let Some(watched) = job.watch.iter().find(|watched| overlap(&to, watched)) {
            let message = format!(
                "it would deliver into what it watches: {} and {} overlap",
                to.display(),
                watched.display()
            );
            found.push((name.clone(), message));
            continue;
        }
        for (other, watching) in &config.jobs {
            if other != name && watching.watch.iter().any(|watched| overlap(&to, watched)) {
                next.entry(name).or_default().push(other);
            }
        }
    }
    for name in config.jobs.keys() {
        if let Some(way) = way_back(name, &next) {
            // Each circle is told once, at its first job.
            if way.iter().min() == Some(&name.as_str()) {
                let message = format!("its files come back to it: {} → {name}", way.join(" → "));
                found.push((name.clone(), message));
            }
        }
    }
    found
}

/// What to tell of one job, if it leads back to itself.
pub(super) fn find_from(config: &Config, name: &str) -> Option<String> {
    let (mut visited, mut to_visit) = (BTreeSet::new(), vec![name]);
    while let Some(at) = to_visit.pop() {
        let Some(to) = config
            .jobs
            .get(at)
            .and_then(|job| local_destination(config, job))
        else {
            continue;
        };
        for (other, watching) in &config.jobs {
            if !watching.watch.iter().any(|watched| overlap(&to, watched)) {
                continue;
            }
            if other == name {
                return Some(if at == name {
                    format!("it would deliver into what it watches: {}", to.display())
                } else {
                    format!("its files come back to it from `{at}`")
                });
            }
            if visited.insert(other.as_str()) {
                to_visit.push(other);
            }
        }
    }
    None
}

/// The jobs on a way from `start` to itself, `start` first.
fn way_back<'c>(start: &'c str, next: &BTreeMap<&'c str, Vec<&'c str>>) -> Option<Vec<&'c str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut to_visit = vec![start];
    while let Some(job) = to_visit.pop() {
        for after in next.get(job).into_iter().flatten().copied() {
            if after == start {
                let mut way = vec![job];
                while let Some(before) = way.last().and_then(|last| came_from.get(last)) {
                    way.push(before);
                }
                way.reverse();
                return Some(way);
            }
            if !came_from.contains_key(after) {
                came_from.insert(after, job);
                to_visit.push(after);
            }
        }
    }
    None
}

fn local_destination(config: &Config, job: &Job) -> Option<PathBuf> {
    match &job.to.base {
        Location::Local { path } => Some(PathBuf::from(path)),
        Location::Endpoint { name, path } => match &config.endpoints.get(name)?.kind {
            EndpointKind::Local(root) => Some(root.join(path.trim_start_matches('/'))),
            EndpointKind::Sftp(_) | EndpointKind::Object(_) => None,
        },
        Location::Sftp { .. } | Location::Object { .. } => None,
    }
}

/// Whether one lies in the other, also through links, as far as they exist.
fn overlap(left: &Path, right: &Path) -> bool {
    let real = |path: &Path| {
        // The longest part that exists says where the rest will be.
        path.ancestors()
            .find_map(|above| {
                let below = path.strip_prefix(above).ok()?;
                Some(std::fs::canonicalize(above).ok()?.join(below))
            })
            .unwrap_or_else(|| path.to_owned())
    };
    let (left, right) = (real(left), real(right));
    left.starts_with(&right) || right.starts_with(&left)
}
