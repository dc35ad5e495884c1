//! When a job runs, and where it takes files from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use jiff::tz::TimeZone;
use knarr_core::location::Location;
use knarr_core::schedule::Schedule;

use crate::config::check::{Checker, Place};
use crate::config::node::Key;
use crate::config::problem::Problem;
use crate::config::read::At;
use crate::config::resolved::{Config, Job};
use crate::config::shape::JobShape;
use crate::suggest;

/// More would make a time of the pattern fall behind the next one of most patterns.
const MOST_JITTER: Duration = Duration::from_secs(86_400);

impl Checker<'_> {
    /// Whether the users are there for whose uploads jobs wait, each given with its job and place.
    pub(super) fn uploaders(&mut self, config: &Config, waiting: &[(String, Range<usize>)]) {
        let users: Vec<&str> = config.sftp_server.as_ref().map_or(Vec::new(), |server| {
            server
                .users
                .iter()
                .map(|user| user.user.name.as_str())
                .collect()
        });
        for (name, span) in waiting {
            let Some(job) = config.jobs.get(name) else {
                continue;
            };
            let place = || format!("jobs.{name}.after_upload");
            if job.from.is_none() {
                let message = "a job that watches does not wait for uploads".to_owned();
                let help = "name the directory of the uploads with `from` instead of `watch`";
                self.helped(place(), span, message, help);
            }
            let unknown = job
                .after_upload
                .iter()
                .find(|user| !users.contains(&user.as_str()));
            if let Some(unknown) = unknown {
                let message = format!("there is no user `{unknown}` of `sftp_server`");
                let help = suggest::help(unknown, &users, "known users");
                self.helped(place(), span, message, &help);
            }
        }
    }

    /// Where a job takes files from that does not watch; it has to do one of the two.
    pub(super) fn from(
        &mut self,
        shape: &JobShape,
        key: &Key,
        place: Place<'_>,
    ) -> Option<Location> {
        let Some(from) = &shape.from else {
            if shape.watch.0.is_empty() {
                self.helped(
                    place.0.to_owned(),
                    &key.span,
                    "no source is named".to_owned(),
                    "name directories to `watch`, or a place to take files `from` when the job runs",
                );
            }
            return None;
        };
        if !shape.watch.0.is_empty() {
            self.helped(
                place.of("from"),
                &from.span,
                "a job either watches directories or takes files from a place".to_owned(),
                "leave out `watch` or `from`, or make two jobs of it",
            );
        }
        for (name, given) in [("rescan", &shape.rescan), ("poll", &shape.poll)] {
            if let Some(given) = given {
                let message = "this is for jobs that watch; a job with `from` looks when it runs";
                self.problem(place.of(name), &given.span, message);
            }
        }
        self.location(&from.value, &from.span, place.of("from"))
    }

    pub(super) fn time_zone(&mut self, zone: &At<String>, place: String) -> TimeZone {
        TimeZone::get(&zone.value).unwrap_or_else(|_unknown| {
            let message = format!("`{}` is not a time zone", zone.value);
            let help = "write a name such as Europe/Berlin or UTC";
            self.helped(place, &zone.span, message, help);
            TimeZone::UTC
        })
    }

    pub(super) fn schedules(
        &mut self,
        shape: &JobShape,
        time_zone: &TimeZone,
        place: Place<'_>,
    ) -> Vec<Schedule> {
        let mut schedules = Vec::new();
        for at in &shape.schedule.0 {
            let written = &at.value;
            if shape.from.is_none() {
                let message = "a job that watches does not run by the clock";
                let help = "name the place to look at with `from` instead of `watch`";
                self.helped(place.of("schedule"), &at.span, message.to_owned(), help);
                continue;
            }
            let zone = match &written.timezone {
                None => time_zone.clone(),
                Some(zone) => self.time_zone(zone, place.of("schedule.timezone")),
            };
            let jitter = written.jitter.as_ref().map(|jitter| jitter.value.0);
            if let Some(jitter) = &written.jitter
                && jitter.value.0 > MOST_JITTER
            {
                let message = "this has to be at most 1d";
                self.problem(place.of("schedule.jitter"), &jitter.span, message);
            }
            match Schedule::new(&written.cron.value, zone) {
                Ok(schedule) => schedules.push(schedule.with(
                    written.overlap.unwrap_or_default(),
                    written.missed.unwrap_or_default(),
                    jitter.unwrap_or_default(),
                )),
                Err(error) => self.helped(
                    place.of("schedule.cron"),
                    &written.cron.span,
                    error.to_string(),
                    "five fields: minute, hour, day of the month, month, day of the week, such as \"*/5 * * * *\"",
                ),
            }
        }
        schedules
    }
}

/// Jobs that follow one that there is not, or each other in a circle.
pub(in crate::config) fn wrong_followers(jobs: &BTreeMap<String, Job>) -> Vec<(String, Problem)> {
    let names: Vec<&str> = jobs.keys().map(String::as_str).collect();
    let mut problems = Vec::new();
    for (name, job) in jobs {
        let Some(before) = &job.after_job else {
            continue;
        };
        let place = format!("jobs.{name}.after_job");
        let problem = match jobs.get(before) {
            None => Problem::new(format!("there is no job `{before}`")).help(suggest::help(
                before,
                &names,
                "known jobs",
            )),
            Some(other) if other.from.is_none() => {
                Problem::new(format!("`{before}` watches all the time and never ends"))
                    .help("a job can follow one that runs, with `from`")
            }
            Some(_) if job.from.is_none() => {
                Problem::new("a job that watches does not run after another")
                    .help("name the place to look at with `from` instead of `watch`")
            }
            Some(_) if follows_itself(name, jobs) => {
                Problem::new("it would follow itself, for ever")
            }
            Some(_) => continue,
        };
        problems.push((name.clone(), problem.in_place(place)));
    }
    problems
}

fn follows_itself(name: &str, jobs: &BTreeMap<String, Job>) -> bool {
    let before = |name: &str| jobs.get(name).and_then(|job| job.after_job.as_deref());
    let mut at = before(name);
    for _ in 0..jobs.len() {
        match at {
            Some(found) if found == name => return true,
            Some(found) => at = before(found),
            None => return false,
        }
    }
    false
}
