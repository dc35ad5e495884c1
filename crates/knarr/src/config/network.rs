//! Definitions that come over the network: jobs and endpoints in the form of the file, but for all that
//! could hand the node's own rights to whoever sends them (K12).
//!
//! What a job may say is a type of its own, [`NetworkJob`]: a key that is not in it is not known here, so
//! a key that is new in the file stays out until somebody lets it in. Nothing in that type is a command, a
//! file with a key, or an environment variable. Endpoints may use the keys of [`endpoint_keys`]; credentials
//! are names of stored secrets, and endpoints that would use the node's own credentials are refused. Local
//! paths are absolute.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use knarr_core::job::{After, Deletes, Priority, Publish, Verify};
use knarr_core::location::Location;
use knarr_core::plan::{IfExists, SymlinkPolicy};
use knarr_core::units::{ByteSize, Span};
use knarr_steps::StepSpec;
use serde::Deserialize;

use crate::config::check::{Checker, Place};
use crate::config::node::{Key, Node, Value};
use crate::config::problem::Problem;
use crate::config::read::{At, Many, read};
use crate::config::resolved::{Config, Endpoint, Job, ServedUser};
use crate::config::shape::{
    AcknowledgeShape, HooksShape, HoursShape, JobShape, MatchShape, ParameterShape, RetryShape,
    ScheduleShape, SecretSource, ServerUserShape,
};
use crate::config::{Bases, ConfigProblems, check, loops};
use crate::suggest;

/// Steps that can do without a file of the node: keys are secrets, or stand there themselves.
const STEPS: [&str; 9] = [
    "decompress",
    "compress",
    "extract",
    "archive",
    "checksum",
    "rename",
    "decrypt",
    "encrypt",
    "sign",
];
const SECTIONS: [&str; 3] = ["endpoints", "jobs", "sftp_server"];
/// What may be said of a user of the SFTP server: no file with keys, and of a password only the hash.
const USER_KEYS: [&str; 13] = [
    "enabled",
    "expires",
    "networks",
    "key",
    "authority",
    "password_hash",
    "require",
    "connections",
    "root",
    "mounts",
    "permissions",
    "paths",
    "quota",
];

/// Who wrote a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Origin {
    /// Whoever may write to the file.
    #[default]
    File,
    /// Whoever may speak to the node.
    Network,
}

/// A job as it may come over the network.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkJob {
    #[serde(default)]
    watch: Many<At<String>>,
    from: Option<At<String>>,
    #[serde(default)]
    schedule: Many<At<ScheduleShape>>,
    after_job: Option<At<String>>,
    #[serde(default, rename = "match")]
    matching: MatchShape,
    #[serde(default)]
    steps: At<Vec<StepSpec>>,
    to: At<String>,
    publish: Option<At<Publish>>,
    after: Option<At<After>>,
    deletes: Option<At<Deletes>>,
    if_exists: Option<IfExists>,
    symlinks: Option<SymlinkPolicy>,
    verify: Option<Verify>,
    bandwidth: Option<At<ByteSize>>,
    #[serde(default)]
    retry: RetryShape,
    rescan: Option<At<Span>>,
    poll: Option<At<Span>>,
    verify_destination: Option<At<Span>>,
    timezone: Option<At<String>>,
    http_token: Option<SecretSource>,
    #[serde(default)]
    window: Many<At<HoursShape>>,
    #[serde(default)]
    parameters: BTreeMap<String, At<ParameterShape>>,
    acknowledge: Option<At<AcknowledgeShape>>,
    priority: Option<Priority>,
}

impl From<NetworkJob> for JobShape {
    fn from(job: NetworkJob) -> Self {
        Self {
            watch: job.watch,
            from: job.from,
            schedule: job.schedule,
            after_job: job.after_job,
            matching: job.matching,
            steps: job.steps,
            to: job.to,
            publish: job.publish,
            after: job.after,
            deletes: job.deletes,
            if_exists: job.if_exists,
            symlinks: job.symlinks,
            verify: job.verify,
            bandwidth: job.bandwidth,
            retry: job.retry,
            rescan: job.rescan,
            poll: job.poll,
            verify_destination: job.verify_destination,
            timezone: job.timezone,
            http_token: job.http_token,
            window: job.window,
            parameters: job.parameters,
            acknowledge: job.acknowledge,
            priority: job.priority,
            after_upload: Many::default(),
            // They can name a scanner, and commands.
            checks: Many::default(),
            hooks: HooksShape::default(),
            alert: Many::default(),
        }
    }
}

/// What a document adds.
#[derive(Debug, Default)]
pub(crate) struct Addition {
    /// Endpoints, each with its definition as JSON.
    pub(crate) endpoints: Vec<(Endpoint, String)>,
    /// Jobs, each with its definition as JSON.
    pub(crate) jobs: Vec<(Job, String)>,
    /// Users of the SFTP server, each with its definition as JSON.
    pub(crate) users: Vec<(ServedUser, String)>,
}

/// Reads a document that came over the network, and checks it together with what is there.
///
/// # Errors
/// Everything that is wrong.
pub(crate) fn parse(
    text: &str,
    name: &Path,
    there: &Config,
    home: Option<&Path>,
) -> Result<Addition, ConfigProblems> {
    let wrong = |problems| ConfigProblems::new(name, text, problems);
    let root = Node::parse(text).map_err(|problem| wrong(vec![*problem]))?;
    let bases = Bases {
        directory: Path::new("/"),
        home,
    };
    let mut checker = Checker::new(bases, Origin::Network);
    let addition = checker.addition(&root, there);
    if checker.problems.is_empty() {
        Ok(addition)
    } else {
        Err(wrong(checker.problems))
    }
}

/// The keys that an endpoint of a type may have, and those of which it needs one to log in with.
fn endpoint_keys(kind: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    Some(match kind {
        "sftp" => (
            &[
                "type",
                "host",
                "port",
                "user",
                "path",
                "password",
                "keyboard_interactive",
                "host_key",
                "limits",
                "verify",
            ],
            &["password", "keyboard_interactive"],
        ),
        "s3" => (
            &[
                "type",
                "bucket",
                "path",
                "region",
                "endpoint",
                "path_style",
                "access_key",
                "secret_key",
                "part_size",
                "limits",
                "verify",
            ],
            &["access_key"],
        ),
        "gcs" => (
            &[
                "type",
                "bucket",
                "path",
                "service_account",
                "part_size",
                "limits",
                "verify",
            ],
            &["service_account"],
        ),
        "azure" => (
            &[
                "type",
                "container",
                "account",
                "path",
                "endpoint",
                "access_key",
                "part_size",
                "limits",
                "verify",
            ],
            &["access_key"],
        ),
        "local" => (&["type", "path", "limits", "verify"], &[]),
        _ => return None,
    })
}

impl Checker<'_> {
    fn addition(&mut self, root: &Node, there: &Config) -> Addition {
        let mut addition = Addition::default();
        if let Value::Map(entries) = &root.value {
            for (key, _value) in entries {
                if !SECTIONS.contains(&key.name.as_str()) {
                    let message = format!("`{}` cannot come over the network", key.name);
                    let help = suggest::help(&key.name, &SECTIONS, "possible keys");
                    self.helped(String::new(), &key.span, message, &help);
                }
            }
        } else {
            let message = format!("a map of {} is expected", SECTIONS.join(", "));
            self.problem("", &root.span, message);
        }
        let endpoints = self.section(root, "endpoints");
        self.endpoint_names = there.endpoints.keys().cloned().collect();
        let new = endpoints.iter().map(|(key, _node)| key.name.clone());
        self.endpoint_names.extend(new);
        for (key, node) in endpoints {
            self.name_of("endpoint", "endpoints", key);
            self.check_endpoint(key, node);
            if let Some(endpoint) = self.endpoint(key, node) {
                addition.endpoints.push((endpoint, node.json()));
            }
        }
        let mut combined = Config {
            endpoints: there.endpoints.clone(),
            jobs: there.jobs.clone(),
            ..Config::default()
        };
        let added = addition.endpoints.iter();
        combined
            .endpoints
            .extend(added.map(|(endpoint, _)| (endpoint.name.clone(), endpoint.clone())));
        let mut spans = BTreeMap::new();
        for (key, node) in self.section(root, "jobs") {
            self.name_of("job", "jobs", key);
            let place = format!("jobs.{}", key.name);
            let Some(shape) = self.keep(read::<NetworkJob>(node, &place, &key.span)) else {
                continue;
            };
            spans.insert(key.name.clone(), shape.to.span.clone());
            self.check_job(&shape, Place(&place));
            if let Some(job) = self.job(key, shape.into(), Place(&place)) {
                combined.jobs.insert(key.name.clone(), job.clone());
                addition.jobs.push((job, node.json()));
            }
        }
        self.check_together(&combined, &spans);
        addition.users = self.network_users(root, there);
        addition
    }

    /// The users of the SFTP server of a document.
    fn network_users(&mut self, root: &Node, there: &Config) -> Vec<(ServedUser, String)> {
        let Some((key, section)) = root.get("sftp_server") else {
            return Vec::new();
        };
        if let Value::Map(entries) = &section.value {
            for (key, _value) in entries.iter().filter(|(key, _)| key.name != "users") {
                let message = format!("`{}` cannot come over the network", key.name);
                let help = "of the section `sftp_server` only `users` can";
                let place = format!("sftp_server.{}", key.name);
                self.helped(place, &key.span, message, help);
            }
        }
        let mut users = Vec::new();
        let written = self.section(section, "users");
        if !written.is_empty() && there.sftp_server.is_none() {
            let message = "the node has no SFTP server".to_owned();
            let help = "its file needs a section `sftp_server`, and the node a new start";
            self.helped("sftp_server".to_owned(), &key.span, message, help);
        }
        for (key, node) in written {
            self.name_of("user", "sftp_server.users", key);
            let place = format!("sftp_server.users.{}", key.name);
            self.check_user(node, &place);
            let Some(shape) = self.keep(read::<ServerUserShape>(node, &place, &key.span)) else {
                continue;
            };
            if let Some(user) = self.served_user(key, &shape, None, Place(&place)) {
                users.push((user, node.json()));
            }
        }
        users
    }

    /// No key but those that are let in, and places as those of jobs are.
    fn check_user(&mut self, node: &Node, place: &str) {
        let Value::Map(entries) = &node.value else {
            return;
        };
        for (key, value) in entries {
            if !USER_KEYS.contains(&key.name.as_str()) {
                let message = format!("`{}` cannot come over the network", key.name);
                let help = match key.name.as_str() {
                    "password" => {
                        "give its hash: `knarr sftp-server hash-password` prints it".to_owned()
                    }
                    name => suggest::help(name, &USER_KEYS, "possible keys"),
                };
                self.helped(format!("{place}.{}", key.name), &key.span, message, &help);
                continue;
            }
            match (key.name.as_str(), &value.value) {
                ("root", _) => self.check_place(value, format!("{place}.root")),
                ("mounts", Value::Map(mounts)) => {
                    for (name, mount) in mounts {
                        if let Some((_, root)) = mount.get("root") {
                            self.check_place(root, format!("{place}.mounts.{}", name.name));
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// An endpoint, or a local path that begins with `/`.
    fn check_place(&mut self, node: &Node, place: String) {
        let Value::Text(text) = &node.value else {
            return;
        };
        match Location::parse(text) {
            Ok(Location::Sftp { .. } | Location::Object { .. }) => self.helped(
                place,
                &node.span,
                "over the network a place is named by an endpoint".to_owned(),
                "put it under `endpoints`, with its credentials as { secret: NAME }",
            ),
            Ok(Location::Local { path }) => self.check_path(&path, &node.span, place),
            // An endpoint; what is none is told elsewhere.
            Ok(Location::Endpoint { .. }) | Err(_) => {}
        }
    }

    /// What only shows when all jobs are looked at.
    fn check_together(&mut self, combined: &Config, spans: &BTreeMap<String, Range<usize>>) {
        for (job, problem) in check::wrong_followers(&combined.jobs) {
            if let Some(span) = spans.get(&job) {
                self.problems.push(problem.at(Some(span.clone())));
            }
        }
        for (job, span) in spans {
            if let Some(message) = loops::find_from(combined, job) {
                let help = "deliver to a directory outside of what is watched";
                self.helped(format!("jobs.{job}.to"), span, message, help);
            }
        }
    }

    /// Local paths are absolute, other places are endpoints, and steps name no file.
    fn check_job(&mut self, job: &NetworkJob, place: Place<'_>) {
        let watched = job.watch.0.iter().map(|path| ("watch", path));
        let acknowledge = job.acknowledge.as_ref();
        let acknowledge = acknowledge.and_then(|acknowledge| acknowledge.value.to.as_ref());
        let others = [
            ("from", job.from.as_ref()),
            ("to", Some(&job.to)),
            ("acknowledge.to", acknowledge),
        ];
        let others = others
            .into_iter()
            .filter_map(|(name, written)| Some((name, written?)));
        for (name, written) in watched.chain(others) {
            match Location::parse(&written.value) {
                Ok(Location::Sftp { .. } | Location::Object { .. }) => self.helped(
                    place.of(name),
                    &written.span,
                    "over the network a place is named by an endpoint".to_owned(),
                    "put it under `endpoints`, with its credentials as { secret: NAME }",
                ),
                Ok(Location::Local { path }) => {
                    self.check_path(&path, &written.span, place.of(name));
                }
                // An endpoint; what is none is told elsewhere.
                Ok(Location::Endpoint { .. }) | Err(_) => {}
            }
        }
        for step in &job.steps.value {
            if !STEPS.contains(&step.name()) {
                let message = format!("the step `{}` cannot come over the network", step.name());
                let help = "a job of the file can have it";
                self.helped(place.of("steps"), &job.steps.span, message, help);
            } else if let Some(file) = step.references().files.first() {
                let name = step.name();
                let message = format!("`{file}` of the step `{name}` would be a file of the node");
                let help = "over the network keys are names of secrets, or age recipients";
                self.helped(place.of("steps"), &job.steps.span, message, help);
            }
        }
        if let Some(SecretSource::Env(_)) = &job.http_token {
            let message = "environment variables cannot be named over the network".to_owned();
            let help = "store it with `knarr secret set NAME` and write { secret: NAME }";
            self.helped(place.of("http_token"), &job.to.span, message, help);
        }
    }

    fn check_path(&mut self, path: &str, span: &Range<usize>, place: String) {
        if !path.starts_with('/') {
            let message = "over the network a local path begins with `/`".to_owned();
            self.helped(
                place,
                span,
                message,
                "nobody knows what else it would be relative to",
            );
        }
    }

    fn check_endpoint(&mut self, key: &Key, node: &Node) {
        let place = format!("endpoints.{}", key.name);
        let Value::Map(entries) = &node.value else {
            return;
        };
        let kind = node.get("type").and_then(|(_, kind)| match &kind.value {
            Value::Text(text) => endpoint_keys(text),
            _ => None,
        });
        // A wrong type is told elsewhere.
        let Some((keys, credentials)) = kind else {
            return;
        };
        for (name, value) in entries {
            let place = format!("{place}.{}", name.name);
            if !keys.contains(&name.name.as_str()) {
                let message = format!("`{}` cannot come over the network", name.name);
                let help = suggest::help(&name.name, keys, "possible keys");
                self.helped(place, &name.span, message, &help);
            } else if value.get("env").is_some() {
                let message = "environment variables cannot be named over the network".to_owned();
                let help = "store it with `knarr secret set NAME` and write { secret: NAME }";
                self.helped(place, &name.span, message, help);
            } else if let ("path", Some((_, kind)), Value::Text(path)) =
                (name.name.as_str(), node.get("type"), &value.value)
                && matches!(&kind.value, Value::Text(kind) if kind == "local")
            {
                self.check_path(path, &value.span, place);
            }
        }
        let has = |credential: &&str| node.get(credential).is_some();
        if !credentials.is_empty() && !credentials.iter().any(has) {
            let message = "it would log in with the node's own credentials".to_owned();
            let help = format!("give it {}: {{ secret: NAME }}", credentials.join(" or "));
            self.problems.push(
                Problem::new(message)
                    .in_place(place)
                    .help(help)
                    .at(Some(key.span.clone())),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    fn refused(text: &str) -> String {
        let parsed = super::parse(text, Path::new("document"), &Config::default(), None);
        let problems = parsed.expect_err(text);
        let told = problems
            .data()
            .into_iter()
            .map(|problem| format!("{problem:?}"));
        told.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn k12_nothing_that_names_a_command_a_key_file_or_the_environment_comes_over_the_network() {
        let job = "from: /in, to: /out";
        for (text, told) in [
            (format!("jobs: {{ a1: {{ {job}, before: {{ command: [id] }} }} }}"), "before"),
            (format!("jobs: {{ a1: {{ {job}, hooks: {{ after_run: x1 }} }} }}"), "hooks"),
            (format!("jobs: {{ a1: {{ {job}, command: [id] }} }}"), "command"),
            (format!("jobs: {{ a1: {{ {job}, check: {{ command: [id] }} }} }}"), "check"),
            (format!("jobs: {{ a1: {{ {job}, scanner: {{ command: [id] }} }} }}"), "scanner"),
            (format!("jobs: {{ a1: {{ {job}, steps: [{{ command: [id] }}] }} }}"), "command"),
            (format!("jobs: {{ a1: {{ {job}, steps: [{{ verify: {{ signed_by: [/k] }} }}] }} }}"), "verify"),
            (format!("jobs: {{ a1: {{ {job}, steps: [{{ decrypt: {{ pgp: k, signed_by: [/k] }} }}] }} }}"), "a file of the node"),
            (format!("jobs: {{ a1: {{ {job}, steps: [{{ encrypt: {{ age: {{ recipients: [/k] }} }} }}] }} }}"), "a file of the node"),
            (format!("jobs: {{ a1: {{ {job}, http_token: {{ env: HOME }} }} }}"), "environment"),
            ("jobs: { a1: { from: in, to: /out } }".to_owned(), "begins with"),
            ("jobs: { a1: { from: /in, to: \"~/out\" } }".to_owned(), "begins with"),
            ("jobs: { a1: { watch: in, to: /out } }".to_owned(), "begins with"),
            ("jobs: { a1: { from: \"s3://b/\", to: /out } }".to_owned(), "by an endpoint"),
            ("jobs: { a1: { from: \"sftp://h/\", to: /out } }".to_owned(), "by an endpoint"),
            (format!("jobs: {{ a1: {{ {job}, acknowledge: {{ file: \"{{name}}.ok\", to: x }} }} }}"), "begins with"),
            ("targets: { t1: { command: [id] } }".to_owned(), "targets"),
            ("alerts: { t1: { to: t1 } }".to_owned(), "alerts"),
            ("node: { state: /tmp }".to_owned(), "node"),
            ("sftp_server: { listen: x }".to_owned(), "sftp_server"),
            ("sftp_server: { users: { anna: { key_file: /k, root: /srv } } }".to_owned(), "key_file"),
            ("sftp_server: { users: { anna: { password: { env: P }, root: /srv } } }".to_owned(), "hash-password"),
            ("sftp_server: { users: { anna: { password_hash: hunter2, root: /srv } } }".to_owned(), "password_hash"),
            ("sftp_server: { users: { anna: { root: srv } } }".to_owned(), "begins with"),
            ("sftp_server: { users: { anna: { mounts: { /in: { root: \"sftp://h/\" } } } } }".to_owned(), "by an endpoint"),
            ("sftp_server: { users: { anna: { root: /srv } } }".to_owned(), "nothing to log in by"),
            ("endpoints: { e1: { type: sftp, host: h1, key: /k, password: { secret: s } } }".to_owned(), "key"),
            ("endpoints: { e1: { type: sftp, host: h1, known_hosts: /k, password: { secret: s } } }".to_owned(), "known_hosts"),
            ("endpoints: { e1: { type: sftp, host: h1, agent: true, password: { secret: s } } }".to_owned(), "agent"),
            ("endpoints: { e1: { type: sftp, host: h1, password: { env: HOME } } }".to_owned(), "environment"),
            ("endpoints: { e1: { type: sftp, host: h1 } }".to_owned(), "own credentials"),
            ("endpoints: { e1: { type: s3, bucket: b1 } }".to_owned(), "own credentials"),
            ("endpoints: { e1: { type: s3, bucket: b1, profile: p } }".to_owned(), "profile"),
            ("endpoints: { e1: { type: gcs, bucket: b1 } }".to_owned(), "own credentials"),
            ("endpoints: { e1: { type: azure, container: c1, account: a } }".to_owned(), "own credentials"),
            ("endpoints: { e1: { type: local, path: in } }".to_owned(), "begins with"),
        ] {
            assert!(refused(&text).contains(told), "{text}: {}", refused(&text));
        }
    }

    #[test]
    fn steps_with_keys_that_are_secrets_come_over_the_network() {
        let text = "jobs: { a1: { from: /in, to: /out, steps: [{ decrypt: { pgp: partner-key } }, \
                    { sign: { pgp: own-key } }] } }";
        let parsed = super::parse(text, Path::new("document"), &Config::default(), None);
        let addition = parsed.unwrap_or_else(|problems| panic!("{:?}", problems.data()));
        let (job, _json) = addition.jobs.first().expect("one job");
        assert!(job.key_files.is_empty());
    }

    #[test]
    fn what_is_harmless_comes_over_the_network_as_json() {
        let text = "endpoints:\n  partner: { type: sftp, host: h1, password: { secret: s1 } }\n\
                    jobs:\n  a1: { from: \"partner:out/\", to: /srv/in, schedule: { cron: \"0 6 * * *\" } }\n";
        let parsed = super::parse(text, Path::new("document"), &Config::default(), None);
        let addition = parsed.unwrap_or_else(|problems| panic!("{:?}", problems.data()));
        let (job, json) = addition.jobs.first().expect("one job");
        assert_eq!(job.name, "a1");
        assert_eq!(
            json,
            "{\"from\":\"partner:out/\",\"schedule\":{\"cron\":\"0 6 * * *\"},\"to\":\"/srv/in\"}"
        );
        let again = format!(
            "jobs: {{ a1: {json} }}\nendpoints: {{ partner: {} }}",
            addition.endpoints[0].1
        );
        super::parse(&again, Path::new("stored"), &Config::default(), None)
            .expect("it is read again");
    }
}
