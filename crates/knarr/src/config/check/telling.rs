//! Targets, alert rules and hooks: who is told, of what, when.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use knarr_core::alert::{Rule, SubjectKind};
use knarr_engine::announce::{BeforeShape, MOST_ATTEMPTS};
use knarr_engine::outbox::LocalFile;
use knarr_engine::outbox::shape::{RuleShape, ShapeError, TargetShape};

use crate::config::check::{Checker, Place};
use crate::config::node::{Key, Node, Value};
use crate::config::read::{At, read};
use crate::config::resolved::{Config, Hooks, LogSettings, Metrics, Retention};
use crate::config::shape::{HooksShape, JobShape, LogShape, MetricsShape, RetentionShape};
use crate::suggest;

/// Records and events are kept for a day at least: what is pruned is gone.
const LEAST_KEPT: Duration = Duration::from_secs(86_400);
/// The least length of a log file, in bytes.
const LEAST_LOG: u64 = 64 * 1024;

/// Names that rules and hooks use, and where they stand.
#[derive(Debug)]
pub(super) struct Telling {
    /// Also of those that are wrong, so that one error does not cause others.
    targets: Vec<String>,
    /// Those that follow everything and cannot be told of one thing.
    followers: Vec<String>,
}

impl Telling {
    /// No names.
    pub(super) const EMPTY: Self = Self {
        targets: Vec::new(),
        followers: Vec::new(),
    };
}

impl Checker<'_> {
    /// The section `targets`.
    pub(super) fn targets(&mut self, root: &Node, config: &mut Config) {
        for (key, node) in self.section(root, "targets") {
            self.name_of("target", "targets", key);
            self.telling.targets.push(key.name.clone());
            let place = format!("targets.{}", key.name);
            let Some(mut shape) = self.keep(read::<TargetShape>(node, &place, &key.span)) else {
                continue;
            };
            self.absolute(&mut shape);
            if let Err(error) = shape.check(&self.local_file()) {
                self.shape_error(&place, key, node, &error);
            }
            if shape
                .at_once
                .is_some_and(|count| !(1..=64).contains(&count))
            {
                let span = span_of(node, &["at_once"], &key.span);
                self.problem(
                    format!("{place}.at_once"),
                    &span,
                    "this has to be between 1 and 64",
                );
            }
            if shape.postgres.is_some() {
                self.telling.followers.push(key.name.clone());
            }
            config.targets.insert(key.name.clone(), shape);
        }
    }

    /// The section `alerts`.
    pub(super) fn alerts(&mut self, root: &Node, config: &mut Config) {
        for (key, node) in self.section(root, "alerts") {
            self.name_of("alert", "alerts", key);
            let place = format!("alerts.{}", key.name);
            let shape = self.keep(read::<RuleShape>(node, &place, &key.span));
            if let Some(rule) =
                shape.and_then(|shape| self.rule(shape, &key.name, (&place, key, node)))
            {
                self.known_subjects(&rule, &place, node, &key.span, config);
                config.rules.push(rule);
            }
        }
    }

    fn rule(
        &mut self,
        mut shape: RuleShape,
        name: &str,
        (place, key, node): (&str, &Key, &Node),
    ) -> Option<Rule> {
        if shape.to.is_empty() {
            let help = "name targets: `to: [chat]`";
            self.helped(
                format!("{place}.to"),
                &key.span,
                "nobody is told".to_owned(),
                help,
            );
        }
        let escalated = shape.escalate.iter().flat_map(|step| &step.to);
        let named: Vec<String> = shape.to.iter().chain(escalated).cloned().collect();
        for target in &named {
            let span = text_in(node, target).unwrap_or_else(|| key.span.clone());
            self.known_target(&format!("{place}.to"), target, &span);
        }
        if matches!(
            shape.on,
            knarr_engine::outbox::shape::ConditionShape::Expiring(_)
        ) {
            for about in &mut shape.about {
                *about = self.path(about).to_string_lossy().into_owned();
            }
        }
        if matches!(
            shape.on,
            knarr_engine::outbox::shape::ConditionShape::Failure(0)
        ) {
            let span = span_of(node, &["on", "failure"], &key.span);
            self.problem(
                format!("{place}.on.failure"),
                &span,
                "this has to be at least 1",
            );
        }
        match shape.make(name) {
            Ok(rule) => Some(rule),
            Err(error) => {
                self.shape_error(place, key, node, &error);
                None
            }
        }
    }

    fn known_subjects(
        &mut self,
        rule: &Rule,
        place: &str,
        node: &Node,
        usual: &Range<usize>,
        config: &Config,
    ) {
        let (noun, known): (_, Vec<&str>) = match rule.condition.concerns() {
            SubjectKind::Job => ("job", self.job_names.iter().map(String::as_str).collect()),
            SubjectKind::Endpoint => (
                "endpoint",
                config.endpoints.keys().map(String::as_str).collect(),
            ),
            // Which files are keys is known when they are read.
            SubjectKind::Credential => return,
        };
        let unknown: Vec<&String> = rule
            .about
            .iter()
            .filter(|name| !known.contains(&name.as_str()))
            .collect();
        let mut found = Vec::new();
        for name in unknown {
            let span = text_in(node, name).unwrap_or_else(|| usual.clone());
            let help = suggest::help(name, &known, &format!("known {noun}s"));
            found.push((span, format!("there is no {noun} `{name}`"), help));
        }
        for (span, message, help) in found {
            self.helped(format!("{place}.about"), &span, message, &help);
        }
    }

    fn known_target(&mut self, place: &str, target: &str, span: &Range<usize>) {
        if self.telling.followers.iter().any(|name| name == target) {
            let message = format!("`{target}` gets everything that happens to files by itself");
            let help = "name a webhook, an e-mail or a command";
            self.helped(place.to_owned(), span, message, help);
        } else if !self.telling.targets.iter().any(|name| name == target) {
            let known: Vec<&str> = self.telling.targets.iter().map(String::as_str).collect();
            let help = if known.is_empty() {
                "name it under `targets`".to_owned()
            } else {
                suggest::help(target, &known, "known targets")
            };
            let message = format!("there is no target `{target}`");
            self.helped(place.to_owned(), span, message, &help);
        }
    }

    /// The hooks of a job.
    pub(super) fn hooks(&mut self, job: &JobShape, place: Place<'_>) -> Hooks {
        let HooksShape {
            before,
            after_file,
            after_run,
        } = &job.hooks;
        let mut hooks = Hooks::default();
        for at in &before.0 {
            if job.from.is_none() {
                let message = "a job that watches has no runs before which something could be done";
                let help = "name the place to look at with `from` instead of `watch`";
                self.helped(place.of("hooks.before"), &at.span, message.to_owned(), help);
                continue;
            }
            hooks.before.extend(self.before(at, place));
        }
        for (name, targets, into) in [
            ("after_file", after_file, &mut hooks.after_file),
            ("after_run", after_run, &mut hooks.after_run),
        ] {
            for target in &targets.0 {
                let place = place.of(&format!("hooks.{name}"));
                self.known_target(&place, &target.value, &target.span);
                into.push(target.value.clone());
            }
        }
        if let Some(first) = after_run.0.first()
            && job.from.is_none()
        {
            let message = "a job that watches has no runs that end";
            let help = "`after_file` tells of each file";
            self.helped(
                place.of("hooks.after_run"),
                &first.span,
                message.to_owned(),
                help,
            );
        }
        hooks
    }

    fn before(&mut self, at: &At<BeforeShape>, place: Place<'_>) -> Option<BeforeShape> {
        let mut shape = at.value.clone();
        if let Some(http) = &mut shape.http {
            http.ca = http.ca.take().map(|path| self.path_of(&path));
        }
        if let Some(command) = &mut shape.command {
            command.directory = command.directory.take().map(|path| self.path_of(&path));
        }
        let attempts = shape.attempts.unwrap_or(1);
        if attempts == 0 || attempts > MOST_ATTEMPTS {
            let message = format!("`attempts` has to be between 1 and {MOST_ATTEMPTS}");
            self.problem(place.of("hooks.before"), &at.span, message);
        }
        match shape.check(&self.local_file()) {
            Ok(()) => Some(shape),
            Err(error) => {
                self.problem(place.of("hooks.before"), &at.span, error.to_string());
                None
            }
        }
    }

    /// The rules that stand in a job: they are about this job.
    pub(super) fn job_rules(&mut self, job: &Key, node: &Node, place: Place<'_>) -> Vec<Rule> {
        let Some((key, listed)) = node.get("alert") else {
            return Vec::new();
        };
        let nodes = match &listed.value {
            Value::List(nodes) => nodes.as_slice(),
            Value::Null => return Vec::new(),
            _ => std::slice::from_ref(listed),
        };
        let place = place.of("alert");
        let mut rules: Vec<Rule> = Vec::new();
        for node in nodes {
            let at = Key {
                name: key.name.clone(),
                span: node.span.clone(),
            };
            let Some(mut shape) = self.keep(read::<RuleShape>(node, &place, &node.span)) else {
                continue;
            };
            if !shape.about.is_empty() {
                let span = span_of(node, &["about"], &node.span);
                let message = "a rule that stands in a job is about this job";
                let help = "leave `about` out, or write the rule under `alerts`";
                self.helped(format!("{place}.about"), &span, message.to_owned(), help);
            }
            shape.about = vec![job.name.clone()];
            let condition = condition_name(node);
            let mut name = format!("{}.{condition}", job.name);
            // Episodes are known by the name of the rule: it must not change when another is added.
            while rules.iter().any(|rule| rule.name == name) {
                name.push('+');
            }
            let Some(rule) = self.rule(shape, &name, (&place, &at, node)) else {
                continue;
            };
            if rule.condition.concerns() == SubjectKind::Job {
                rules.push(rule);
            } else {
                let message = format!("`{condition}` is not about a job");
                let help = "write this rule under `alerts`, at the top of the file";
                self.helped(place.clone(), &node.span, message, help);
            }
        }
        rules
    }

    pub(super) fn log(&mut self, shape: &LogShape) -> LogSettings {
        let usual = LogSettings::default();
        let max_bytes = shape
            .max_size
            .as_ref()
            .map_or(usual.max_bytes, |size| size.value.0);
        if let Some(size) = shape.max_size.as_ref().filter(|_| max_bytes < LEAST_LOG) {
            self.problem(
                "node.log.max_size",
                &size.span,
                "this has to be at least 64KiB",
            );
        }
        let keep = shape.keep.as_ref().map_or(usual.keep, |keep| keep.value);
        if let Some(keep) = shape.keep.as_ref().filter(|keep| keep.value > 1_000) {
            self.problem("node.log.keep", &keep.span, "this has to be at most 1000");
        }
        LogSettings {
            file: shape.file.as_ref().map(|file| self.path(&file.value)),
            max_bytes,
            keep,
            format: shape.format.unwrap_or_default(),
        }
    }

    pub(super) fn metrics(&mut self, shape: &MetricsShape) -> Option<Metrics> {
        let listen = &shape.listen;
        let Ok(address) = listen.value.parse::<SocketAddr>() else {
            let message = format!("`{}` is not an address with a port", listen.value);
            let help = "write 127.0.0.1:9464";
            self.helped(
                "node.metrics.listen".to_owned(),
                &listen.span,
                message,
                help,
            );
            return None;
        };
        Some(Metrics { listen: address })
    }

    pub(super) fn retention(&mut self, shape: &RetentionShape) -> Retention {
        let mut kept = |name: &str, span: &Option<At<knarr_core::units::Span>>| {
            let span = span.as_ref()?;
            if span.value.0 < LEAST_KEPT {
                let place = format!("node.retention.{name}");
                self.problem(place, &span.span, "this has to be at least 1d");
            }
            Some(span.value.0)
        };
        Retention {
            history: kept("history", &shape.history),
            events: kept("events", &shape.events),
        }
    }

    /// Paths in a target, relative to the configuration file's directory, made absolute.
    fn absolute(&self, shape: &mut TargetShape) {
        let certificates = [
            shape.webhook.as_mut().map(|target| &mut target.ca),
            shape.email.as_mut().map(|target| &mut target.ca),
            shape.postgres.as_mut().map(|target| &mut target.ca),
            shape.command.as_mut().map(|target| &mut target.directory),
        ];
        for path in certificates.into_iter().flatten() {
            *path = path.take().map(|path| self.path_of(&path));
        }
    }

    fn path_of(&self, path: &Path) -> PathBuf {
        path.to_str()
            .map_or_else(|| path.to_owned(), |text| self.path(text))
    }

    fn local_file(&self) -> LocalFile {
        LocalFile::read_from(self.bases.directory.join("knarr.yaml"))
    }

    /// Tells what is wrong where it stands.
    fn shape_error(&mut self, place: &str, key: &Key, node: &Node, error: &ShapeError) {
        let at = |path: &[&str]| span_of(node, path, &key.span);
        let span = match error {
            ShapeError::Time(text) | ShapeError::Zone(text) => {
                text_in(node, text).unwrap_or_else(|| key.span.clone())
            }
            ShapeError::Hours(_) => at(&["quiet"]),
            ShapeError::Login => at(&["email"]),
            ShapeError::Webhook(_) => at(&["webhook", "url"]),
            ShapeError::Email(_) => at(&["email", "to"]),
            ShapeError::Command(_) => at(&["command", "run"]),
            ShapeError::Kind
            | ShapeError::BeforeKind
            | ShapeError::Secret(_)
            | ShapeError::File { .. } => key.span.clone(),
        };
        self.problem(place, &span, error.to_string());
    }
}

/// The name of a rule's condition, as it is written.
fn condition_name(node: &Node) -> String {
    match node.get("on").map(|(_, on)| &on.value) {
        Some(Value::Map(entries)) => entries.first().map(|(key, _)| key.name.clone()),
        Some(Value::Text(name)) => Some(name.clone()),
        _ => None,
    }
    .unwrap_or_default()
}

/// Where the value below these keys stands, or `usual`.
fn span_of(node: &Node, path: &[&str], usual: &Range<usize>) -> Range<usize> {
    let mut at = node;
    for name in path {
        match at.get(name) {
            Some((_, below)) => at = below,
            None => return usual.clone(),
        }
    }
    at.span.clone()
}

/// Where a text stands somewhere below.
fn text_in(node: &Node, wanted: &str) -> Option<Range<usize>> {
    match &node.value {
        Value::Text(text) if text == wanted => Some(node.span.clone()),
        Value::List(nodes) => nodes.iter().find_map(|node| text_in(node, wanted)),
        Value::Map(entries) => entries.iter().find_map(|(_, node)| text_in(node, wanted)),
        _ => None,
    }
}
