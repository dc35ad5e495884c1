//! From shapes to checked, complete values. Goes on after an error, so that all are told at once.

mod conditions;
mod endpoints;
mod extras;
mod http;
mod publish;
mod schedule;
mod sftp_server;
mod steps;
mod telling;
mod written;

pub(super) use schedule::wrong_followers;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use knarr_core::job::{After, Deletes};
use knarr_core::location::{Location, LocationError};
use knarr_core::parameters::Parameters;
use knarr_core::pattern::Pattern;
use knarr_core::template::Template;
use knarr_core::units::{ByteSize, Span};
use knarr_core::{RelPath, path::PathError};
use knarr_engine::Digest;

use crate::config::network::Origin;
use crate::config::node::{Key, Node, Value};
use crate::config::problem::Problem;
use crate::config::read::{At, Many, read};
use crate::config::resolved::{Config, Destination, Job};
use crate::config::shape::{JobShape, NodeShape};
use crate::config::{Bases, loops};
use crate::environment::normal;
use crate::suggest;

const SECTIONS: [&str; 6] = [
    "node",
    "endpoints",
    "targets",
    "alerts",
    "jobs",
    "sftp_server",
];
/// How often a directory is looked at that cannot be watched.
const POLL: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// The least time for which what an interrupted transfer left is kept: another process may be at it.
const LEAST_KEPT: Duration = HOUR;
/// The least pause between two looks at everything.
const LEAST_RESCAN: Duration = Duration::from_secs(1);

/// Checks a document.
///
/// # Errors
/// All problems.
pub(super) fn check(text: &str, bases: Bases<'_>) -> Result<Config, Vec<Problem>> {
    let root = Node::parse(text).map_err(|problem| vec![*problem])?;
    let mut checker = Checker::new(bases, Origin::File);
    let config = checker.config(&root);
    if checker.problems.is_empty() {
        Ok(config)
    } else {
        Err(checker.problems)
    }
}

pub(super) struct Checker<'a> {
    bases: Bases<'a>,
    pub(super) problems: Vec<Problem>,
    /// Also of those that are wrong, so that one error does not cause others.
    pub(super) endpoint_names: Vec<String>,
    job_names: Vec<String>,
    telling: telling::Telling,
    origin: Origin,
}

/// The job's name and the places of its parts, for messages.
#[derive(Clone, Copy)]
pub(super) struct Place<'a>(pub(super) &'a str);

impl Place<'_> {
    pub(super) fn of(self, name: &str) -> String {
        format!("{}.{name}", self.0)
    }
}

impl<'a> Checker<'a> {
    pub(super) const fn new(bases: Bases<'a>, origin: Origin) -> Self {
        Self {
            bases,
            problems: Vec::new(),
            endpoint_names: Vec::new(),
            job_names: Vec::new(),
            telling: telling::Telling::EMPTY,
            origin,
        }
    }
}

impl Checker<'_> {
    pub(super) fn problem(
        &mut self,
        place: impl Into<String>,
        span: &Range<usize>,
        message: impl Into<String>,
    ) {
        self.problems
            .push(Problem::new(message).in_place(place).at(Some(span.clone())));
    }

    pub(super) fn helped(
        &mut self,
        place: String,
        span: &Range<usize>,
        message: String,
        help: &str,
    ) {
        self.problems.push(
            Problem::new(message)
                .in_place(place)
                .help(help)
                .at(Some(span.clone())),
        );
    }

    /// Keeps what worked, and the problem of what did not.
    pub(super) fn keep<T>(&mut self, result: Result<T, Box<Problem>>) -> Option<T> {
        result.map_err(|problem| self.problems.push(*problem)).ok()
    }

    fn config(&mut self, root: &Node) -> Config {
        let mut config = Config::default();
        match &root.value {
            Value::Map(entries) => {
                for (key, _value) in entries {
                    if !SECTIONS.contains(&key.name.as_str()) {
                        let message = format!("unknown key `{}`", key.name);
                        let help = suggest::help(&key.name, &SECTIONS, "known keys");
                        self.helped(String::new(), &key.span, message, &help);
                    }
                }
            }
            Value::Null => {}
            other => {
                let message = format!(
                    "a map of {} is expected, not {}",
                    SECTIONS.join(", "),
                    other.noun()
                );
                self.problem("", &root.span, message);
            }
        }
        if let Some((key, node)) = root.get("node")
            && let Some(node) = self.keep(read::<Option<NodeShape>>(node, "node", &key.span))
        {
            let node = node.unwrap_or_default();
            config.node_name = node.name;
            self.http(node.http.as_ref(), &mut config);
            config.state = node.state.map(|state| self.path(&state));
            if let Some(kept) = node.keep_unfinished {
                if kept.value.0 < LEAST_KEPT {
                    let message = "this has to be at least 1h";
                    self.problem("node.keep_unfinished", &kept.span, message);
                }
                config.keep_unfinished = Some(kept.value.0);
            }
            config.log = node.log.map(|log| self.log(&log)).unwrap_or_default();
            config.metrics = node.metrics.and_then(|metrics| self.metrics(&metrics));
            config.retention = node
                .retention
                .map(|retention| self.retention(&retention))
                .unwrap_or_default();
        }
        config.written = written::sections(root);
        let endpoints = self.section(root, "endpoints");
        self.endpoint_names = endpoints
            .iter()
            .map(|(key, _node)| key.name.clone())
            .collect();
        for (key, node) in endpoints {
            self.name_of("endpoint", "endpoints", key);
            let place = format!("endpoints.{}", key.name);
            config.written.insert(place, node.json());
            if let Some(endpoint) = self.endpoint(key, node) {
                config.endpoints.insert(key.name.clone(), endpoint);
            }
        }
        self.targets(root, &mut config);
        let jobs = self.section(root, "jobs");
        self.job_names = jobs.iter().map(|(key, _node)| key.name.clone()).collect();
        self.alerts(root, &mut config);
        let (mut positions, mut followers) = (BTreeMap::new(), BTreeMap::new());
        let mut uploaders = Vec::new();
        for (key, node) in jobs {
            self.name_of("job", "jobs", key);
            let place = format!("jobs.{}", key.name);
            if let Some(shape) = self.keep(read::<JobShape>(node, &place, &key.span)) {
                positions.insert(key.name.clone(), shape.to.span.clone());
                for user in &shape.after_upload.0 {
                    uploaders.push((key.name.clone(), user.span.clone()));
                }
                if let Some(before) = &shape.after_job {
                    followers.insert(key.name.clone(), before.span.clone());
                }
                config
                    .rules
                    .extend(self.job_rules(key, node, Place(&place)));
                config.written.insert(place.clone(), node.json());
                if let Some(job) = self.job(key, shape, Place(&place)) {
                    config.jobs.insert(key.name.clone(), job);
                }
            }
        }
        config.sftp_server = self.sftp_server(root);
        self.uploaders(&config, &uploaders);
        for (job, problem) in wrong_followers(&config.jobs) {
            self.problems.push(problem.at(followers.get(&job).cloned()));
        }
        for (job, message) in loops::find(&config) {
            let span = positions.get(&job).cloned().unwrap_or(0..0);
            self.helped(
                format!("jobs.{job}.to"),
                &span,
                message,
                "deliver to a directory outside of what is watched",
            );
        }
        config
    }

    pub(super) fn section<'n>(&mut self, root: &'n Node, name: &str) -> &'n [(Key, Node)] {
        match root.get(name) {
            Some((
                _key,
                Node {
                    value: Value::Map(entries),
                    ..
                },
            )) => entries,
            None
            | Some((
                _,
                Node {
                    value: Value::Null, ..
                },
            )) => &[],
            Some((_key, other)) => {
                let message = format!("a map of names is expected, not {}", other.value.noun());
                self.problem(name, &other.span, message);
                &[]
            }
        }
    }

    pub(super) fn name_of(&mut self, noun: &str, section: &str, key: &Key) {
        let valid = key.name.len() >= 2
            && key.name.len() <= 64
            && key.name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && key
                .name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !valid {
            self.helped(
                section.to_owned(),
                &key.span,
                format!("`{}` cannot be the name of an {noun}", key.name)
                    .replace("an job", "a job")
                    .replace("an target", "a target"),
                "use 2 to 64 letters, digits, `-`, `_` and `.`, and begin with a letter or digit",
            );
        }
    }

    fn bandwidth(&mut self, value: Option<&At<ByteSize>>, place: &str) -> Option<u64> {
        let value = value?;
        if value.value.0 < 1024 {
            self.problem(place, &value.span, "this has to be at least 1KiB a second");
        }
        Some(value.value.0)
    }

    pub(super) fn job(&mut self, key: &Key, shape: JobShape, place: Place<'_>) -> Option<Job> {
        let watch = self.watch(&shape.watch, place);
        let from = self.from(&shape, key, place);
        let time_zone = match &shape.timezone {
            None => jiff::tz::TimeZone::system(),
            Some(zone) => self.time_zone(zone, place.of("timezone")),
        };
        let parameters = self.parameters(&shape, place);
        let acknowledge = self.acknowledge(&shape, &parameters, place);
        let own = acknowledge.as_ref();
        let own = own.and_then(|acknowledge| acknowledge.is_own.clone());
        let meant = self.meant(&shape, &parameters, own, &time_zone, place);
        let pattern = meant
            .as_ref()
            .and_then(|meant| meant.filter.pattern.as_ref());
        let to = self.destination(&shape.to, pattern, &parameters, place);
        let retry = self.retry(&shape.retry, place);
        let bandwidth = self.bandwidth(shape.bandwidth.as_ref(), &place.of("bandwidth"));
        let after = self.after(shape.after.as_ref(), place);
        let key_files = self.steps(&shape, place);
        let (publish, manifest) = (self.publish(&shape, place), self.manifest(&shape, place));
        let duplicates = self.duplicates(&shape, place);
        if let Some(deletes) = &shape.deletes
            && deletes.value == Deletes::Mirror
            && after != After::Keep
        {
            self.helped(
                place.of("deletes"),
                &deletes.span,
                "`mirror` would delete what was just delivered, as `after` takes it away at the source"
                    .to_owned(),
                "use `deletes: keep`, or `after: keep`",
            );
        }
        let pause = |pause: Option<&At<Span>>, usual| pause.map_or(usual, |span| span.value.0);
        let rescan = pause(shape.rescan.as_ref(), HOUR);
        let poll = pause(shape.poll.as_ref(), POLL.min(rescan));
        for (name, given, is) in [
            ("rescan", &shape.rescan, rescan),
            ("poll", &shape.poll, poll),
        ] {
            if is < LEAST_RESCAN && (name == "rescan" || given.is_some()) {
                let span = given.as_ref().map_or(0..0, |span| span.span.clone());
                self.problem(place.of(name), &span, "this has to be at least 1s");
            }
        }
        let deletes = shape.deletes.as_ref();
        let deletes = deletes.map(|deletes| deletes.value).unwrap_or_default();
        // Where nothing is deleted, what was delivered may be taken away on purpose: it must not come twice.
        let usual_drift = match deletes {
            Deletes::Mirror => DAY,
            Deletes::Keep => Duration::ZERO,
        };
        let drift = pause(shape.verify_destination.as_ref(), usual_drift);
        let schedules = self.schedules(&shape, &time_zone, place);
        let hooks = self.hooks(&shape, place);
        let mut meant = meant?;
        if acknowledge.as_ref().is_some_and(|own| own.needs_sha256()) {
            meant.checks.digest = Digest::Sha256;
        }
        let mut settle = shape.matching.settle.map(|span| span.0);
        let after_upload: Vec<String> = shape
            .after_upload
            .0
            .iter()
            .map(|user| user.value.clone())
            .collect();
        if !after_upload.is_empty() {
            // The server gives a name to what is complete only.
            settle = settle.or(Some(Duration::ZERO));
        }
        Some(Job {
            name: key.name.clone(),
            watch,
            from,
            schedules,
            after_job: shape.after_job.map(|job| job.value),
            after_upload,
            hooks,
            http_token: shape.http_token,
            origin: self.origin,
            filter: meant.filter,
            matching: meant.matching,
            choice: meant.choice,
            conditions: meant.conditions,
            parameters,
            acknowledge,
            duplicates,
            priority: shape.priority.unwrap_or_default(),
            checks: meant.checks,
            temporary: shape.matching.temporary.unwrap_or_default(),
            settle,
            steps: shape.steps.value,
            key_files,
            to: to?,
            publish,
            manifest,
            after,
            deletes,
            if_exists: shape.if_exists.unwrap_or_default(),
            symlinks: shape.symlinks.unwrap_or_default(),
            verify: shape.verify,
            bandwidth_bytes_per_second: bandwidth,
            retry,
            rescan,
            poll,
            verify_destination: (drift > Duration::ZERO).then_some(drift),
            time_zone,
        })
    }

    fn watch(&mut self, watch: &Many<At<String>>, place: Place<'_>) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for directory in &watch.0 {
            let written = &directory.value;
            if written.contains("://")
                || matches!(Location::parse(written), Ok(Location::Endpoint { .. }))
            {
                let mut problem = Problem::new("only local directories can be watched")
                    .in_place(place.of("watch"))
                    .at(Some(directory.span.clone()));
                problem.hides_span = written.contains('@');
                self.problems.push(problem);
                continue;
            }
            let path = self.path(written);
            if let Some(other) = paths
                .iter()
                .find(|other| path.starts_with(other) || other.starts_with(&path))
            {
                let message = format!("{} overlaps {}", path.display(), other.display());
                self.problem(place.of("watch"), &directory.span, message);
            }
            paths.push(path);
        }
        paths
    }

    fn destination(
        &mut self,
        to: &At<String>,
        pattern: Option<&Pattern>,
        parameters: &Parameters,
        place: Place<'_>,
    ) -> Option<Destination> {
        let (base, template) = split_destination(&to.value);
        let template = Template::parse_for(template, pattern, &parameters.names())
            .map_err(|error| self.problem(place.of("to"), &to.span, error.to_string()));
        let base = self.location(base, &to.span, place.of("to"));
        Some(Destination {
            written: to.value.clone(),
            base: base?,
            template: template.ok()?,
        })
    }

    /// A location that exists as far as the configuration says, absolute if it is local.
    fn location(&mut self, text: &str, span: &Range<usize>, place: String) -> Option<Location> {
        match Location::parse(text) {
            Ok(location) => self.known_place(location, span, place),
            Err(error) => {
                let mut problem = Problem::new(error.to_string())
                    .in_place(place)
                    .at(Some(span.clone()));
                if error == LocationError::Password {
                    problem = problem.hiding_span();
                }
                self.problems.push(problem);
                None
            }
        }
    }

    /// The location with its path made absolute, if its endpoint exists.
    fn known_place(
        &mut self,
        location: Location,
        span: &Range<usize>,
        place: String,
    ) -> Option<Location> {
        match location {
            Location::Local { path } => Some(Location::Local {
                path: self.path(&path).to_string_lossy().into_owned(),
            }),
            Location::Endpoint { name, path } => {
                if self.endpoint_names.contains(&name) {
                    return Some(Location::Endpoint { name, path });
                }
                let known: Vec<&str> = self.endpoint_names.iter().map(String::as_str).collect();
                let help = if known.is_empty() {
                    "name it under `endpoints`".to_owned()
                } else {
                    suggest::help(&name, &known, "known endpoints")
                };
                let message = format!("there is no endpoint `{name}`");
                self.helped(place, span, message, &help);
                None
            }
            other @ (Location::Sftp { .. } | Location::Object { .. }) => Some(other),
        }
    }

    fn after(&mut self, after: Option<&At<After>>, place: Place<'_>) -> After {
        let Some(after) = after else {
            return After::Keep;
        };
        if let After::Move(directory) = &after.value {
            let trimmed = directory.strip_suffix('/').unwrap_or(directory);
            if let Err(error) = RelPath::new(trimmed.as_bytes()) {
                let message = match error {
                    PathError::Absolute => {
                        "this has to be relative to the watched directory".to_owned()
                    }
                    other => other.to_string(),
                };
                self.problem(place.of("after.move"), &after.span, message);
            }
        }
        if let After::Rename(suffix) = &after.value
            && (suffix.is_empty() || suffix.contains('/') || suffix.contains('\0'))
        {
            let message = "this is added to the name: one character at least, and no `/`";
            self.problem(place.of("after.rename"), &after.span, message);
        }
        after.value.clone()
    }

    /// A local path, from the root: `~/` is the home, the rest is relative to the configuration.
    fn path(&self, written: &str) -> PathBuf {
        let written = written.strip_prefix("file://").unwrap_or(written);
        let path = match (written.strip_prefix("~/"), self.bases.home) {
            (Some(below), Some(home)) => home.join(below),
            _ if written == "~" => self
                .bases
                .home
                .map_or_else(|| PathBuf::from("~"), Path::to_owned),
            _ => self.bases.directory.join(written),
        };
        normal(&path)
    }
}

/// What stands before the first component with a placeholder, and the rest.
fn split_destination(text: &str) -> (&str, &str) {
    let Some(brace) = text.find(['{', '}']) else {
        return (text, "");
    };
    let (before, _after) = text.split_at_checked(brace).unwrap_or((text, ""));
    // `endpoint:{name}` has no slash before the brace: the colon ends the base.
    let base_bytes = before
        .rfind('/')
        .or_else(|| before.rfind(':'))
        .map_or(0, |position| position + 1);
    match text.split_at_checked(base_bytes) {
        Some(("", template)) => (".", template),
        Some(parts) => parts,
        None => (text, ""),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Bases, DAY, check, split_destination};

    #[test]
    fn what_may_be_taken_away_at_the_destination_is_not_asked_for_unless_that_is_wanted() {
        for (more, period) in [
            ("", None),
            (", deletes: keep", None),
            (", deletes: keep, verify_destination: 1d", Some(DAY)),
            (", deletes: mirror", Some(DAY)),
            (", deletes: mirror, verify_destination: 0s", None),
        ] {
            let text = format!("jobs: {{ a1: {{ watch: /in, to: /out{more} }} }}");
            let bases = Bases {
                directory: Path::new("/etc"),
                home: None,
            };
            let config = check(&text, bases).unwrap_or_else(|_| panic!("{text} is good"));
            let job = config.jobs.values().next().unwrap();
            assert_eq!(job.verify_destination, period, "{text}");
        }
    }

    #[test]
    fn the_base_ends_before_the_first_placeholder() {
        for (text, base, template) in [
            ("/srv/out", "/srv/out", ""),
            ("/srv/out/", "/srv/out/", ""),
            (
                "archive:raw/{mtime:%Y/%m/%d}/",
                "archive:raw/",
                "{mtime:%Y/%m/%d}/",
            ),
            ("archive:{name}", "archive:", "{name}"),
            ("/srv/x-{name}/y", "/srv/", "x-{name}/y"),
            ("s3://bucket/{dir}/{name}", "s3://bucket/", "{dir}/{name}"),
            ("{name}", ".", "{name}"),
        ] {
            assert_eq!(split_destination(text), (base, template), "{text}");
        }
    }
}
