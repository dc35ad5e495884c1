//! Times of day in a zone: when nobody is to be woken, and until when something has to be there.

use jiff::Zoned;
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;

use crate::alert::Severity;
use crate::time::Timestamp;

/// How many days a search goes back or ahead: one more than a week, so that every weekday is met.
const SEARCH_DAYS: i64 = 8;

/// Days of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weekdays(u8);

impl Weekdays {
    /// Every day.
    pub const ALL: Self = Self(0x7f);

    /// These.
    #[must_use]
    pub fn of(days: impl IntoIterator<Item = Weekday>) -> Self {
        Self(days.into_iter().fold(0, |bits, day| bits | Self::bit(day)))
    }

    /// Whether a day is one of them.
    #[must_use]
    pub fn contains(self, day: Weekday) -> bool {
        self.0 & Self::bit(day) != 0
    }

    fn bit(day: Weekday) -> u8 {
        u8::try_from(day.to_monday_zero_offset()).map_or(0, |offset| 1 << offset)
    }
}

/// Why hours cannot be quiet hours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoursError {
    /// Nobody would ever be told.
    #[error("hours that begin and end at the same time on every day never end: leave a time out")]
    NeverEnd,
    /// There is no day.
    #[error("name at least one day of the week, or leave the days out for every day")]
    NoDay,
}

/// When only what is urgent is told; the rest waits for the end of it.
#[derive(Debug, Clone, PartialEq)]
pub struct QuietHours {
    hours: Hours,
    urgent: Severity,
}

impl QuietHours {
    /// From `from` until `to` (the next day, if it is not later), on the days on which it begins. What is
    /// at least `urgent` is told all the same.
    ///
    /// # Errors
    /// If they never end, or never begin.
    pub fn new(
        from: Time,
        to: Time,
        days: Weekdays,
        zone: TimeZone,
        urgent: Severity,
    ) -> Result<Self, HoursError> {
        let hours = Hours::new(from, to, days, zone)?;
        Ok(Self { hours, urgent })
    }

    /// From when on something of this severity may be told that happens at `at`: at once, or when the
    /// quiet hours are over.
    #[must_use]
    pub fn release(&self, severity: Severity, at: Timestamp) -> Timestamp {
        if severity >= self.urgent {
            return at;
        }
        let mut release = at;
        // Hours that adjoin (a quiet weekend) are passed one after the other.
        for _ in 0..SEARCH_DAYS {
            match self.hours.end(release) {
                Some(end) if end > release => release = end,
                _ => break,
            }
        }
        release
    }
}

/// A span of time that comes on some days: from a time of day until another, that day or the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Hours {
    from: Time,
    to: Time,
    days: Weekdays,
    zone: TimeZone,
}

impl Hours {
    /// From `from` until `to` (the next day, if it is not later), on the days on which it begins.
    ///
    /// # Errors
    /// If they never end, or never begin.
    pub fn new(from: Time, to: Time, days: Weekdays, zone: TimeZone) -> Result<Self, HoursError> {
        if days.0 == 0 {
            return Err(HoursError::NoDay);
        }
        if from == to && days == Weekdays::ALL {
            return Err(HoursError::NeverEnd);
        }
        Ok(Self {
            from,
            to,
            days,
            zone,
        })
    }

    /// When the hours end in which `at` is; nothing if it is in none.
    #[must_use]
    pub fn end(&self, at: Timestamp) -> Option<Timestamp> {
        let today = at.to_calendar().to_zoned(self.zone.clone()).date();
        [today.yesterday().ok(), Some(today)]
            .into_iter()
            .flatten()
            .filter(|day| self.days.contains(day.weekday()))
            .find_map(|day| {
                let last = if self.to > self.from {
                    day
                } else {
                    day.tomorrow().ok()?
                };
                let begin = instant(day, self.from, &self.zone)?;
                let end = instant(last, self.to, &self.zone)?;
                (begin <= at && at < end).then_some(end)
            })
    }
}

/// A time of day until which something has to have come.
#[derive(Debug, Clone, PartialEq)]
pub struct Deadline {
    /// Until when.
    pub by: Time,
    /// What came before this time of the same day (the day before, if it is not earlier than `by`) does
    /// not count; without it, what came before the deadline before this one.
    pub since: Option<Time>,
    /// On which days.
    pub days: Weekdays,
    /// Whose time of day.
    pub zone: TimeZone,
}

impl Deadline {
    /// The latest deadline that is not after `at`, and since when what came counts for it.
    #[must_use]
    pub fn latest(&self, at: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let today = at.to_calendar().to_zoned(self.zone.clone()).date();
        let (day, deadline) = self.before(today, |deadline| deadline <= at)?;
        let counts_since = match self.since {
            Some(since) if since < self.by => instant(day, since, &self.zone)?,
            Some(since) => instant(day.yesterday().ok()?, since, &self.zone)?,
            None => self.before(day.yesterday().ok()?, |_any| true)?.1,
        };
        Some((deadline, counts_since))
    }

    fn before(&self, day: Date, fits: impl Fn(Timestamp) -> bool) -> Option<(Date, Timestamp)> {
        let mut day = day;
        for _ in 0..=SEARCH_DAYS {
            if self.days.contains(day.weekday())
                && let Some(deadline) = instant(day, self.by, &self.zone)
                && fits(deadline)
            {
                return Some((day, deadline));
            }
            day = day.yesterday().ok()?;
        }
        None
    }
}

/// The instant at which a clock on the wall shows this. A time that the clock leaves out (summer time
/// begins) is taken as much later, one that it shows twice is the first of both.
fn instant(day: Date, time: Time, zone: &TimeZone) -> Option<Timestamp> {
    let zoned: Zoned = day.to_datetime(time).to_zoned(zone.clone()).ok()?;
    i64::try_from(zoned.timestamp().as_nanosecond())
        .ok()
        .map(Timestamp::from_nanoseconds)
}
