//! What has to hold for a run and for a file, and which files are meant.

use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use knarr_core::Timestamp;
use knarr_core::alert::Hours;
use knarr_core::filter::{Filter, TEMPORARY_NAMES, escaped};
use knarr_core::job::{After, Deletes};
use knarr_core::matching::{Matching, Since};
use knarr_core::moment::Moment;
use knarr_core::parameters::Parameters;
use knarr_core::pattern::Pattern;
use knarr_engine::conditions::{Choice, Conditions, Marker};
use knarr_engine::outbox::shape::days;
use knarr_engine::{FileChecks, IcapScan, ScanCommand};

use crate::config::check::{Checker, Place};
use crate::config::read::At;
use crate::config::resolved::TemporaryFiles;
use crate::config::shape::{HoursShape, JobShape, MatchShape, ScanShape};

const SCAN_LIMIT: Duration = Duration::from_secs(60);

/// What a job means, and what has to hold for it.
pub(super) struct Meant {
    /// As of now.
    pub(super) filter: Filter,
    /// If it is another one at another time.
    pub(super) matching: Option<Matching>,
    pub(super) choice: Choice,
    pub(super) conditions: Conditions,
    pub(super) checks: FileChecks,
}

impl Checker<'_> {
    pub(super) fn meant(
        &mut self,
        shape: &JobShape,
        parameters: &Parameters,
        own: Option<String>,
        zone: &TimeZone,
        place: Place<'_>,
    ) -> Option<Meant> {
        let checks = self.file_checks(shape, place);
        let conditions = self.conditions(shape, zone, place);
        let choice = self.choice(shape, place);
        // What the job writes there itself is none of its files.
        let mut exclude: Vec<String> = own.into_iter().collect();
        if let Some(algorithm) = checks.checksum {
            // It comes with its file, and is none of its own.
            exclude.push(format!("*{}", algorithm.suffix()));
        }
        if let Some(After::Rename(suffix)) = shape.after.as_ref().map(|after| &after.value) {
            exclude.push(format!("*{}", escaped(suffix)));
        }
        let matching = self.matching(&shape.matching, parameters, exclude, zone, place)?;
        // Any time will do to find out what is wrong.
        let values = parameters.any();
        let filter = match matching.at_with(Timestamp::from_seconds(0), None, &values) {
            Ok(filter) => filter,
            Err(error) => {
                self.problem(place.of("match"), &(0..0), error.to_string());
                return None;
            }
        };
        self.what_is_forgotten(shape, &matching, &checks, place);
        let matching = (!matching.is_fixed()).then_some(matching);
        if let (Some(_), None) = (&matching, &shape.from) {
            let message = "dates in patterns, `modified_from`, `modified_until` and `newer_than_last_run` are for \
                           jobs that run";
            let help = "name the place to look at with `from` instead of `watch`";
            self.helped(place.of("match"), &(0..0), message.to_owned(), help);
        }
        Some(Meant {
            filter,
            matching,
            choice,
            conditions,
            checks,
        })
    }

    /// Refuses what would have files deleted or forgotten because of when a run looks.
    fn what_is_forgotten(
        &mut self,
        shape: &JobShape,
        matching: &Matching,
        checks: &FileChecks,
        place: Place<'_>,
    ) {
        let mut globs = matching.include.iter().chain(&matching.exclude);
        if let Some(deletes) = &shape.deletes
            && deletes.value == Deletes::Mirror
            && globs.any(|glob| {
                knarr_core::moment::has_dates(glob)
                    || knarr_core::parameters::in_glob(glob).next().is_some()
            })
        {
            let message = "`mirror` would delete yesterday's delivery when the dates or parameters of the patterns \
                           move on";
            let help = "use `deletes: keep`";
            self.helped(place.of("deletes"), &deletes.span, message.to_owned(), help);
        }
        let puts_off = [
            ("match.limit", shape.matching.limit.is_some()),
            ("match.min_age", shape.matching.min_age.is_some()),
            ("checks.checksum", checks.checksum.is_some()),
        ];
        let put_off = puts_off.into_iter().find(|(_, is_given)| *is_given);
        if let (Since::LastRun, Some((name, _))) = (matching.since, put_off) {
            let message =
                format!("`newer_than_last_run` would forget what `{name}` leaves to the next run");
            let help = "leave one of the two out: what was delivered is remembered anyway";
            self.helped(
                place.of("match.newer_than_last_run"),
                &(0..0),
                message,
                help,
            );
        }
    }

    fn matching(
        &mut self,
        shape: &MatchShape,
        parameters: &Parameters,
        more: Vec<String>,
        zone: &TimeZone,
        place: Place<'_>,
    ) -> Option<Matching> {
        let before = self.problems.len();
        for (name, globs) in [("include", &shape.include), ("exclude", &shape.exclude)] {
            for glob in &globs.0 {
                let place_of_glob = place.of(&format!("match.{name}"));
                self.parameters_in(glob, parameters, place_of_glob);
                let now = Timestamp::from_seconds(0);
                let filled = knarr_core::moment::fill_dates(&glob.value, now, zone);
                let wrong = match filled {
                    Ok(filled) => Filter::new([parameters.any().fill_glob(&filled).as_str()], [])
                        .err()
                        .map(|e| e.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                if let Some(wrong) = wrong {
                    self.problem(place.of(&format!("match.{name}")), &glob.span, wrong);
                }
            }
        }
        self.size_and_age(shape, place);
        let mut fixed = Filter::default();
        fixed.min_size = shape.min_size.map(|size| size.0);
        fixed.max_size = shape.max_size.as_ref().map(|size| size.value.0);
        fixed.min_age = shape.min_age.map(|span| span.0);
        fixed.max_age = shape.max_age.as_ref().map(|span| span.value.0);
        fixed.pattern = self.pattern(shape.regex.as_ref(), place);
        let modified_from = self.moment(shape.modified_from.as_ref(), "modified_from", place);
        let modified_until = self.moment(shape.modified_until.as_ref(), "modified_until", place);
        if self.problems.len() > before {
            return None;
        }
        let temporary: &[&str] = match shape.temporary.unwrap_or_default() {
            TemporaryFiles::Ignore => &TEMPORARY_NAMES,
            TemporaryFiles::Take => &[],
        };
        let written = |globs: &[At<String>]| globs.iter().map(|glob| glob.value.clone()).collect();
        let mut exclude: Vec<String> = written(&shape.exclude.0);
        exclude.extend(temporary.iter().map(|&glob| glob.to_owned()));
        exclude.extend(more);
        Some(Matching {
            include: written(&shape.include.0),
            exclude,
            fixed,
            modified_from,
            modified_until,
            since: if shape.newer_than_last_run == Some(true) {
                Since::LastRun
            } else {
                Since::Ever
            },
            zone: zone.clone(),
        })
    }

    fn size_and_age(&mut self, shape: &MatchShape, place: Place<'_>) {
        if let Some(most) = &shape.max_size
            && shape.min_size.is_some_and(|least| least.0 > most.value.0)
        {
            let message = "this is less than `min_size`, so no file matches";
            self.problem(place.of("match.max_size"), &most.span, message);
        }
        if let Some(most) = &shape.max_age
            && shape.min_age.is_some_and(|least| least.0 > most.value.0)
        {
            let message = "this is less than `min_age`, so no file matches";
            self.problem(place.of("match.max_age"), &most.span, message);
        }
    }

    pub(super) fn pattern(
        &mut self,
        written: Option<&At<String>>,
        place: Place<'_>,
    ) -> Option<Pattern> {
        let written = written?;
        Pattern::new(&written.value)
            .map_err(|error| {
                self.problem(place.of("match.regex"), &written.span, error.to_string());
            })
            .ok()
    }

    fn moment(
        &mut self,
        written: Option<&At<String>>,
        name: &str,
        place: Place<'_>,
    ) -> Option<Moment> {
        let written = written?;
        Moment::parse(&written.value)
            .map_err(|error| {
                self.problem(
                    place.of(&format!("match.{name}")),
                    &written.span,
                    error.to_string(),
                );
            })
            .ok()
    }

    fn choice(&mut self, shape: &JobShape, place: Place<'_>) -> Choice {
        let matching = &shape.matching;
        for (name, number) in [("newest", &matching.newest), ("limit", &matching.limit)] {
            let Some(number) = number else { continue };
            if !(1..=1_000_000).contains(&number.value) {
                let message = "this has to be between 1 and 1,000,000";
                self.problem(place.of(&format!("match.{name}")), &number.span, message);
            }
            if shape.from.is_none() {
                let message =
                    format!("`{name}` is for jobs that run; a job that watches takes what comes");
                let help = "name the place to look at with `from` instead of `watch`";
                self.helped(
                    place.of(&format!("match.{name}")),
                    &number.span,
                    message,
                    help,
                );
            }
        }
        let number = |number: &Option<At<u32>>| number.as_ref().map(|number| number.value as usize);
        Choice {
            newest: number(&matching.newest),
            limit: number(&matching.limit),
            order: matching.order.unwrap_or_default(),
        }
    }

    fn conditions(&mut self, shape: &JobShape, zone: &TimeZone, place: Place<'_>) -> Conditions {
        let mut found = Conditions::default();
        for check in &shape.checks.0 {
            let check = &check.value;
            for (name, globs, markers) in [
                (
                    "marker_present",
                    &check.marker_present,
                    &mut found.markers_present,
                ),
                (
                    "marker_absent",
                    &check.marker_absent,
                    &mut found.markers_absent,
                ),
            ] {
                for glob in &globs.0 {
                    match Marker::new(&glob.value) {
                        Ok(marker) => markers.push(marker),
                        Err(error) => {
                            let place = place.of(&format!("checks.{name}"));
                            self.problem(place, &glob.span, error.to_string());
                        }
                    }
                }
            }
            for hours in &check.blackout.0 {
                found
                    .blackouts
                    .extend(self.hours(hours, zone, &place.of("checks.blackout")));
            }
            found.free_bytes = found.free_bytes.max(check.free_space.map(|size| size.0));
            found.free_inodes = found.free_inodes.max(check.free_inodes);
            found.min_files = found.min_files.max(check.min_files);
            found.max_files = check.max_files.or(found.max_files);
            found.fresh = check.fresh.map(|span| span.0).or(found.fresh);
            let is_of_run = found.free_bytes.is_some()
                || found.free_inodes.is_some()
                || found.min_files.is_some()
                || found.max_files.is_some()
                || found.fresh.is_some()
                || !found.markers_present.is_empty()
                || !found.markers_absent.is_empty()
                || !found.blackouts.is_empty();
            if is_of_run && shape.from.is_none() {
                let message =
                    "a job that watches has no runs that a condition could skip".to_owned();
                let help = "possible are `checksum`, `types` and `scan`; or look in runs, with `from` and `schedule`";
                let span = shape
                    .checks
                    .0
                    .first()
                    .map_or(0..0, |first| first.span.clone());
                self.helped(place.of("checks"), &span, message, help);
                break;
            }
        }
        for hours in &shape.window.0 {
            if shape.from.is_none() {
                let message = "a window is for jobs that run";
                self.problem(place.of("window"), &hours.span, message);
            }
            found
                .windows
                .extend(self.hours(hours, zone, &place.of("window")));
        }
        found
    }

    fn hours(&mut self, hours: &At<HoursShape>, zone: &TimeZone, place: &str) -> Option<Hours> {
        let shape = &hours.value;
        let mut time = |written: &At<String>| {
            let parsed = Time::strptime("%H:%M", &written.value);
            parsed
                .map_err(|_error| {
                    let message = format!("`{}` is not a time of day such as 22:30", written.value);
                    self.problem(place, &written.span, message);
                })
                .ok()
        };
        let (from, to) = (time(&shape.from), time(&shape.to));
        let zone = match &shape.timezone {
            Some(written) => self.time_zone(written, place.to_owned()),
            None => zone.clone(),
        };
        let days = days(&shape.days);
        Hours::new(from?, to?, days, zone)
            .map_err(|error| self.problem(place, &hours.span, error.to_string()))
            .ok()
    }

    fn file_checks(&mut self, shape: &JobShape, place: Place<'_>) -> FileChecks {
        let mut found = FileChecks::default();
        for check in &shape.checks.0 {
            let check = &check.value;
            if let Some(checksum) = &check.checksum {
                found.checksum = Some(checksum.value);
            }
            found.types.extend(check.types.0.iter().copied());
            if let Some(scan) = &check.scan {
                match &scan.value.icap {
                    Some(url) => found.icap = self.icap(scan, url, place),
                    None => found.scan = self.scan(scan, place),
                }
            }
        }
        found
    }

    fn icap(&mut self, scan: &At<ScanShape>, url: &str, place: Place<'_>) -> Option<IcapScan> {
        if !scan.value.command.is_empty() {
            let message = "a scanner is a `command` or an `icap` service, not both".to_owned();
            let help = "write two `scan`s, and both are asked";
            self.helped(place.of("checks.scan"), &scan.span, message, help);
        }
        let timeout = scan.value.timeout.map_or(SCAN_LIMIT, |span| span.0);
        IcapScan::new(url, timeout)
            .map_err(|error| self.problem(place.of("checks.scan"), &scan.span, error.to_string()))
            .ok()
    }

    fn scan(&mut self, scan: &At<ScanShape>, place: Place<'_>) -> Option<ScanCommand> {
        let mut words = scan.value.command.iter();
        let program = words.next().filter(|program| program.starts_with('/'));
        let Some(program) = program else {
            let message = "the command has to begin with the absolute path of a program".to_owned();
            let help = "such as `scan: { command: [/usr/bin/clamdscan, --no-summary, \"-\"] }`";
            self.helped(place.of("checks.scan"), &scan.span, message, help);
            return None;
        };
        Some(ScanCommand {
            program: program.into(),
            arguments: words.map(Into::into).collect(),
            timeout: scan.value.timeout.map_or(SCAN_LIMIT, |span| span.0),
        })
    }
}
