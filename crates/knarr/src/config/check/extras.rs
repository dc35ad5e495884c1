//! Parameters of runs, acknowledgements, and how attempts are repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use knarr_core::job::{Deletes, Publish};
use knarr_core::parameters::{self, Parameter, Parameters};
use knarr_core::phrase::{About, Phrase};
use knarr_core::retry::RetryPolicy;
use knarr_core::units::Span;
use knarr_engine::{Duplicates, OnDuplicate};

use super::{Checker, Place};
use crate::config::read::At;
use crate::config::resolved::AcknowledgeSettings;
use crate::config::shape::{
    AcknowledgeShape, DuplicatesShape, JobShape, ParameterShape, PerShape, RetryShape,
};

/// The longest content of an acknowledgement, as it is written.
const MOST_CONTENT_BYTES: usize = 64 << 10;
/// How long a content is remembered at least, and how long it usually is.
const LEAST_WITHIN: Duration = Duration::from_secs(3_600);
const USUAL_WITHIN: Duration = Duration::from_secs(90 * 86_400);

impl Checker<'_> {
    pub(super) fn parameters(&mut self, shape: &JobShape, place: Place<'_>) -> Parameters {
        let (mut declared, place) = (BTreeMap::new(), place.of("parameters"));
        for (name, parameter) in &shape.parameters {
            let ParameterShape { default, pattern } = &parameter.value;
            match Parameter::new(name, pattern.as_deref(), default.as_deref()) {
                Ok(parameter) => drop(declared.insert(name.clone(), parameter)),
                Err(error) => {
                    let place = format!("{place}.{name}");
                    self.problem(place, &parameter.span, error.to_string());
                }
            }
        }
        let Some((_, first)) = shape.parameters.first_key_value() else {
            return Parameters::default();
        };
        if declared.len() > parameters::MOST {
            let message = format!("a job has at most {} parameters", parameters::MOST);
            self.problem(place.clone(), &first.span, message);
        }
        if shape.from.is_none() {
            let message =
                "a job that watches has no runs that anybody could give values to".to_owned();
            let help = "name the place to look at with `from` instead of `watch`";
            self.helped(place.clone(), &first.span, message, help);
        }
        let parameters = Parameters::new(declared);
        let runs_by_itself = !shape.schedule.0.is_empty()
            || shape.after_job.is_some()
            || !shape.after_upload.0.is_empty()
            || shape.http_token.is_some();
        if let Some(name) = parameters.required().filter(|_| runs_by_itself) {
            let span = shape
                .parameters
                .get(name)
                .map_or(0..0, |at| at.span.clone());
            let message = "nobody gives it a value when the job runs by itself".to_owned();
            let help = "give it a `default`, or leave the trigger out";
            self.helped(format!("{place}.{name}"), &span, message, help);
        }
        parameters
    }

    /// Whether all parameters in a glob are declared.
    pub(super) fn parameters_in(
        &mut self,
        glob: &At<String>,
        parameters: &Parameters,
        place: String,
    ) {
        let names = parameters.names();
        let unknown = parameters::in_glob(&glob.value).find(|name| !names.contains(name));
        if let Some(name) = unknown {
            let message = format!("the job has no parameter `{name}`");
            let help = "declare it under `parameters` of the job";
            self.helped(place, &glob.span, message, help);
        }
    }

    pub(super) fn acknowledge(
        &mut self,
        shape: &JobShape,
        parameters: &Parameters,
        place: Place<'_>,
    ) -> Option<AcknowledgeSettings> {
        let AcknowledgeShape {
            file,
            content,
            per,
            to,
        } = &shape.acknowledge.as_ref()?.value;
        let per = match per.unwrap_or_default() {
            PerShape::File => About::File,
            PerShape::Run => About::Run,
        };
        if per == About::Run && shape.from.is_none() {
            let message = "a job that watches has no runs; it can acknowledge each file";
            self.problem(place.of("acknowledge.per"), &file.span, message);
        }
        let name = Phrase::parse(&file.value, per, &[]);
        let name = name.map_err(|error| {
            let place = place.of("acknowledge.file");
            self.problem(place, &file.span, error.to_string());
        });
        let name = name.ok()?;
        let Some(glob) = name.glob() else {
            let message = "files at the source could have such a name".to_owned();
            let help = "put it into a directory of its own, or add to its name: `ack/{name}`, `{name}.ok`; {dir} \
                        has to stand between slashes";
            self.helped(place.of("acknowledge.file"), &file.span, message, help);
            return None;
        };
        let empty = At::default();
        let content = content.as_ref().unwrap_or(&empty);
        if content.value.len() > MOST_CONTENT_BYTES {
            let message = "this has at most 64 KiB";
            self.problem(place.of("acknowledge.content"), &content.span, message);
        }
        let filled = Phrase::parse(&content.value, per, &parameters.names());
        let filled = filled.map_err(|error| {
            let place = place.of("acknowledge.content");
            self.problem(place, &content.span, error.to_string());
        });
        let to = match to {
            None => None,
            Some(to) => Some(self.location(&to.value, &to.span, place.of("acknowledge.to"))?),
        };
        Some(AcknowledgeSettings {
            is_own: to.is_none().then_some(glob),
            to,
            file: name,
            content: filled.ok()?,
            per,
        })
    }

    pub(super) fn duplicates(&mut self, shape: &JobShape, place: Place<'_>) -> Option<Duplicates> {
        let checks = || shape.checks.0.iter().map(|check| &check.value);
        let within = checks().find_map(|check| check.duplicates_within.as_ref());
        let Some(then) = checks().find_map(|check| check.duplicates.as_ref()) else {
            if let Some(within) = within {
                let message =
                    "this says how long contents are remembered for `duplicates`".to_owned();
                let help =
                    "say what becomes of a duplicate: `duplicates: skip` or `duplicates: park`";
                self.helped(
                    place.of("checks.duplicates_within"),
                    &within.span,
                    message,
                    help,
                );
            }
            return None;
        };
        if shape
            .deletes
            .as_ref()
            .is_some_and(|at| at.value == Deletes::Mirror)
        {
            let message =
                "`mirror` would delete what another file of the same content stands for".to_owned();
            let help = "use `deletes: keep`, or leave `duplicates` out";
            self.helped(place.of("checks.duplicates"), &then.span, message, help);
        }
        let together = shape.publish.as_ref().map(|at| &at.value);
        if shape.matching.manifest.is_some()
            || together.is_some_and(|publish| *publish != Publish::Each)
        {
            let message =
                "files that are published together are not compared with each other".to_owned();
            let help = "leave `duplicates` out, or use `publish: each` without a manifest";
            self.helped(place.of("checks.duplicates"), &then.span, message, help);
        }
        if let Some(within) = within.filter(|within| within.value.0 < LEAST_WITHIN) {
            let message = "this has to be at least 1h";
            self.problem(place.of("checks.duplicates_within"), &within.span, message);
        }
        Some(Duplicates {
            then: match then.value {
                DuplicatesShape::Skip => OnDuplicate::Skip,
                DuplicatesShape::Park => OnDuplicate::Park,
            },
            within: within.map_or(USUAL_WITHIN, |within| within.value.0),
        })
    }

    pub(super) fn retry(&mut self, shape: &RetryShape, place: Place<'_>) -> RetryPolicy {
        let usual = RetryPolicy::default();
        let pause = |pause: Option<&At<Span>>, usual| pause.map_or(usual, |span| span.value.0);
        let from = pause(shape.from.as_ref(), usual.from);
        let to = pause(shape.to.as_ref(), usual.to.max(from));
        let attempts = shape.attempts.as_ref();
        if let Some(attempts) = attempts.filter(|attempts| attempts.value == 0) {
            let message = "this has to be at least 1";
            self.problem(place.of("retry.attempts"), &attempts.span, message);
        }
        if let Some(longest) = shape.to.as_ref().filter(|_longest| to < from) {
            let message = "the longest pause is shorter than the first";
            self.problem(place.of("retry.to"), &longest.span, message);
        }
        RetryPolicy {
            attempts: attempts.map_or(usual.attempts, |attempts| attempts.value),
            from,
            to,
        }
    }
}
