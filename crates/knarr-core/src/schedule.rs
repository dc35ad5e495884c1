//! When a job runs by itself.
//!
//! The times come from a cron pattern, read in a time zone. Where clocks are set forward, a pattern of
//! fixed times runs at the first moment after the gap; where they are set back, once, at the first of the
//! two. A pattern with `*` or a step in its time runs at every time that the wall clock shows. (That is
//! how Vixie's cron has it, and the Open Cron Pattern Specification after it.)
//!
//! Nothing here knows what time it is. A schedule is asked with the latest time that was dealt with and
//! the present one, and says what is to be done now; whoever asks stores the answer before acting on it,
//! so that no time is dealt with twice, also after a crash.

use std::str::FromStr as _;
use std::time::Duration;

use croner::{Cron, JobType};
use jiff::Zoned;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hash::ContentHash;
use crate::time::Timestamp;

/// How late a run may begin and still not count as missed. A node looks at its schedules at least this
/// often.
pub const PUNCTUAL: Duration = Duration::from_secs(60);

/// A clock that is set back by more than this was wrong before: patterns of fixed times go on from the
/// present, too. (By less, and they wait, so that nothing runs twice.)
const CORRECTION: Duration = Duration::from_secs(3 * 3_600);

/// What happens when it is time and the last run has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// That time is left out.
    #[default]
    Forbid,
    /// One run follows when the present one has ended, however many times passed meanwhile.
    Queue,
    /// The present run is stopped; what it has under way is kept and gone on with.
    Replace,
}

/// What happens to times at which the node was not running, or the clock was set forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// One run for all of them.
    #[default]
    Latest,
    /// None.
    Skip,
    /// One run for each, one after the other.
    All,
}

/// Why a schedule is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The pattern cannot be read.
    #[error("`{pattern}` is no cron pattern: {reason}")]
    Pattern {
        /// As it was written.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It never comes to pass.
    #[error("`{pattern}` never comes to pass")]
    Never {
        /// As it was written.
        pattern: String,
    },
}

/// When a job runs by itself.
#[derive(Debug, Clone)]
pub struct Schedule {
    pattern: String,
    cron: Cron,
    time_zone: TimeZone,
    overlap: Overlap,
    missed: Missed,
    jitter: Duration,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// A run is to begin, for this time of the pattern.
    pub run_for: Option<Timestamp>,
    /// The latest time that is dealt with by that.
    pub fired_until: Timestamp,
}

impl Schedule {
    /// A schedule with the usual rules: no overlap, one run for all that was missed, no jitter.
    ///
    /// The pattern has five fields (minute, hour, day of the month, month, day of the week), or six with
    /// the seconds first.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub fn new(pattern: &str, time_zone: TimeZone) -> Result<Self, ScheduleError> {
        let cron = Cron::from_str(pattern).map_err(|error| ScheduleError::Pattern {
            pattern: pattern.to_owned(),
            reason: error.to_string(),
        })?;
        let schedule = Self {
            pattern: pattern.to_owned(),
            cron,
            time_zone,
            overlap: Overlap::default(),
            missed: Missed::default(),
            jitter: Duration::ZERO,
        };
        // The 30th of February, for instance.
        let beginning = Timestamp::from_seconds(1_700_000_000);
        if schedule.next_after(beginning).is_none() {
            return Err(ScheduleError::Never {
                pattern: pattern.to_owned(),
            });
        }
        Ok(schedule)
    }

    /// The same with these rules. Runs begin up to `jitter` later than the pattern says, each job at its
    /// own moment.
    #[must_use]
    pub const fn with(mut self, overlap: Overlap, missed: Missed, jitter: Duration) -> Self {
        self.overlap = overlap;
        self.missed = missed;
        self.jitter = jitter;
        self
    }

    /// As it was written.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The zone its times are read in.
    #[must_use]
    pub const fn time_zone(&self) -> &TimeZone {
        &self.time_zone
    }

    /// What happens when the last run has not ended.
    #[must_use]
    pub const fn overlap(&self) -> Overlap {
        self.overlap
    }

    /// What happens to times that passed without a run.
    #[must_use]
    pub const fn missed(&self) -> Missed {
        self.missed
    }

    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        self.cron.describe()
    }

    /// The first time of the pattern behind `after`; nothing if there is none in the next centuries.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let next = self.cron.find_next_occurrence(&self.zoned(after)?, false);
        next.ok().and_then(|next| timestamp(&next))
    }

    /// The last time of the pattern up to `until`.
    fn last_until(&self, until: Timestamp) -> Option<Timestamp> {
        let last = self
            .cron
            .find_previous_occurrence(&self.zoned(until)?, true);
        last.ok().and_then(|last| timestamp(&last))
    }

    fn zoned(&self, at: Timestamp) -> Option<Zoned> {
        let at = jiff::Timestamp::from_nanosecond(i128::from(at.nanoseconds())).ok()?;
        Some(at.to_zoned(self.time_zone.clone()))
    }

    /// How much later than `time` the job `name` begins.
    #[must_use]
    pub fn delay(&self, name: &str, time: Timestamp) -> Duration {
        if self.jitter.is_zero() {
            return Duration::ZERO;
        }
        let seed = [name.as_bytes(), &time.nanoseconds().to_le_bytes()].concat();
        let hash = ContentHash::of(&seed);
        self.jitter.mul_f64(f64::from(hash.as_bytes()[0]) / 255.0)
    }

    /// What is to be done at `now` for the job `name`, if all times up to `fired_until` are dealt with.
    /// Nothing: it is not yet time for anything.
    #[must_use]
    pub fn due(&self, name: &str, fired_until: Timestamp, now: Timestamp) -> Option<Due> {
        if self.is_set_back(fired_until, now) {
            return Some(Due {
                run_for: None,
                fired_until: now,
            });
        }
        let begins = |time: Timestamp| time.after(self.delay(name, time));
        let first = self.next_after(fired_until)?;
        if begins(first) > now {
            return None;
        }
        if self.missed == Missed::All {
            return Some(Due {
                run_for: Some(first),
                fired_until: first,
            });
        }
        // Of a time whose moment has not come yet because of the jitter, nothing is said.
        let mut last = self.last_until(now).filter(|last| *last >= first)?;
        if begins(last) > now {
            let before = Timestamp::from_nanoseconds(last.nanoseconds() - 1);
            last = self.last_until(before).filter(|last| *last >= first)?;
        }
        let is_missed = now.since(begins(last)) > PUNCTUAL;
        Some(Due {
            run_for: (!is_missed || self.missed == Missed::Latest).then_some(last),
            fired_until: last,
        })
    }

    /// When to ask again, at the latest: then something may be due.
    #[must_use]
    pub fn wakes(&self, name: &str, fired_until: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if self.is_set_back(fired_until, now) {
            return Some(now);
        }
        let next = self.next_after(fired_until)?;
        Some(next.after(self.delay(name, next)))
    }

    /// Whether the clock was set back, so that the schedule goes on from the present.
    fn is_set_back(&self, fired_until: Timestamp, now: Timestamp) -> bool {
        let repeats = self.cron.determine_job_type() != JobType::FixedTime;
        fired_until > now && (repeats || fired_until.since(now) > CORRECTION)
    }
}

fn timestamp(zoned: &Zoned) -> Option<Timestamp> {
    let nanoseconds = i64::try_from(zoned.timestamp().as_nanosecond()).ok()?;
    Some(Timestamp::from_nanoseconds(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: &str = "Europe/Berlin";

    fn schedule(pattern: &str, zone: &str) -> Schedule {
        Schedule::new(pattern, TimeZone::get(zone).unwrap()).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        timestamp(&text.parse::<Zoned>().unwrap()).unwrap()
    }

    fn shown(schedule: &Schedule, time: Timestamp) -> String {
        let zoned = schedule.zoned(time).unwrap();
        zoned.strftime("%F %T %Z").to_string()
    }

    /// The runs of a node that looks every `step` from `from` to `until`.
    fn runs(schedule: &Schedule, from: &str, until: &str, step: Duration) -> Vec<String> {
        let (mut now, until) = (at(from), at(until));
        let (mut fired, mut runs) = (now, Vec::new());
        while now <= until {
            while let Some(due) = schedule.due("job", fired, now) {
                fired = due.fired_until;
                runs.extend(due.run_for.map(|time| shown(schedule, time)));
            }
            now = now.after(step);
        }
        runs
    }

    #[test]
    fn r50_a_fixed_time_in_the_hour_that_is_left_out_runs_once_after_it() {
        let daily = schedule("30 2 * * *", BERLIN);
        assert_eq!(
            runs(
                &daily,
                "2026-03-28T12:00[Europe/Berlin]",
                "2026-03-30T12:00[Europe/Berlin]",
                Duration::from_secs(20)
            ),
            ["2026-03-29 03:00:00 CEST", "2026-03-30 02:30:00 CEST"]
        );
    }

    #[test]
    fn r50_a_fixed_time_in_the_hour_that_comes_twice_runs_once() {
        for (zone, day, times) in [
            (BERLIN, "2026-10-25", "30 2 * * *"),
            ("America/New_York", "2026-11-01", "30 1 * * *"),
        ] {
            let daily = schedule(times, zone);
            let (from, until) = (
                format!("{day}T00:00[{zone}]"),
                format!("{day}T12:00[{zone}]"),
            );
            let found = runs(&daily, &from, &until, Duration::from_secs(20));
            assert_eq!(found.len(), 1, "{zone}: {found:?}");
        }
    }

    #[test]
    fn r50_every_five_minutes_runs_all_through_both_changes_of_the_clock() {
        for (zone, from, until, hours) in [
            (BERLIN, "2026-03-29T00:00", "2026-03-29T06:00", 5),
            (BERLIN, "2026-10-25T00:00", "2026-10-25T06:00", 7),
            (
                "America/New_York",
                "2026-03-08T00:00",
                "2026-03-08T06:00",
                5,
            ),
            (
                "America/New_York",
                "2026-11-01T00:00",
                "2026-11-01T06:00",
                7,
            ),
        ] {
            let poll = schedule("*/5 * * * *", zone);
            let found = runs(
                &poll,
                &format!("{from}[{zone}]"),
                &format!("{until}[{zone}]"),
                Duration::from_secs(10),
            );
            assert_eq!(found.len(), hours * 12, "{zone} {from}");
            let distinct: std::collections::BTreeSet<_> = found.iter().collect();
            assert_eq!(distinct.len(), found.len(), "{zone} {from}: a doubled run");
        }
    }

    #[test]
    fn what_was_missed_is_made_up_for_as_the_rule_says() {
        let from = at("2026-06-01T00:00:10[UTC]");
        let now = at("2026-06-01T03:30:30[UTC]");
        for (rule, expected) in [
            (Missed::Latest, vec!["03:00"]),
            (Missed::Skip, vec![]),
            (Missed::All, vec!["01:00", "02:00", "03:00"]),
        ] {
            let hourly = schedule("0 * * * *", "UTC").with(Overlap::Forbid, rule, Duration::ZERO);
            let (mut fired, mut found) = (from, Vec::new());
            while let Some(due) = hourly.due("job", fired, now) {
                assert!(due.fired_until > fired);
                fired = due.fired_until;
                found.extend(due.run_for.map(|time| shown(&hourly, time)));
            }
            let times: Vec<String> = expected
                .iter()
                .map(|time| format!("2026-06-01 {time}:00 UTC"))
                .collect();
            assert_eq!(found, times, "{rule:?}");
            assert_eq!(
                hourly.wakes("job", fired, now),
                Some(at("2026-06-01T04:00[UTC]"))
            );
        }
    }

    #[test]
    fn r50_a_clock_that_jumps_by_a_day_and_back_neither_stops_nor_doubles_a_schedule() {
        let (day, minute) = (Duration::from_secs(86_400), Duration::from_secs(60));
        for (pattern, expected) in [("*/10 * * * *", 18), ("0 12 * * *", 2)] {
            let schedule = schedule(pattern, "UTC");
            let start = at("2026-06-01T11:30[UTC]");
            let (mut fired, mut found) = (start, Vec::new());
            // An hour, an hour with a clock that is a day ahead, and an hour after that was mended.
            for step in 0..180 {
                let mut now = start;
                for _ in 0..=step {
                    now = now.after(minute);
                }
                if (60..120).contains(&step) {
                    now = now.after(day);
                }
                while let Some(due) = schedule.due("job", fired, now) {
                    fired = due.fired_until;
                    found.extend(due.run_for);
                }
            }
            let distinct: std::collections::BTreeSet<_> = found.iter().collect();
            assert_eq!(distinct.len(), found.len(), "{pattern}: {found:?}");
            // The day that the clock seemed to leap over is made up for by one run.
            assert!(
                found.len().abs_diff(expected) <= 1,
                "{pattern}: {} runs",
                found.len()
            );
        }
    }

    #[test]
    fn jitter_spreads_jobs_and_loses_no_run() {
        let hourly = schedule("0 * * * *", "UTC").with(
            Overlap::Forbid,
            Missed::Latest,
            Duration::from_secs(1_800),
        );
        let (mut now, until) = (at("2026-06-01T00:30[UTC]"), at("2026-06-02T00:45[UTC]"));
        let (mut fired, mut begun) = (now, Vec::new());
        while now <= until {
            while let Some(due) = hourly.due("job", fired, now) {
                fired = due.fired_until;
                begun.extend(due.run_for.map(|time| now.since(time)));
            }
            now = now.after(Duration::from_secs(15));
        }
        assert_eq!(begun.len(), 24);
        assert!(begun.iter().all(|late| *late <= Duration::from_secs(1_815)));
        assert!(begun.iter().any(|late| *late > Duration::from_secs(300)));
    }

    #[test]
    fn what_is_no_pattern_or_never_comes_is_refused() {
        for wrong in ["", "* * *", "61 * * * *", "every day"] {
            let error = Schedule::new(wrong, TimeZone::UTC).unwrap_err();
            assert!(
                matches!(error, ScheduleError::Pattern { .. }),
                "{wrong}: {error}"
            );
        }
        let never = Schedule::new("0 0 30 2 *", TimeZone::UTC).unwrap_err();
        assert!(matches!(never, ScheduleError::Never { .. }), "{never}");
        schedule("15 30 4 * * *", "UTC");
    }
}
