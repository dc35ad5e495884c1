//! Moments as a person names them: `today`, `yesterday`, `today-7d`, `now-2h`, `2026-11-01`; and dates in
//! patterns: `report-{yesterday:%Y%m%d}.csv`.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Zoned};

use crate::time::Timestamp;

/// The longest way from the named day, in days, weeks, months or hours.
const MOST: i64 = 100_000;

/// A moment that depends on when one asks.
#[derive(Debug, Clone)]
pub struct Moment {
    base: Base,
    /// Added first.
    days: i64,
    offset: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Now,
    Today,
    Date(Date),
}

/// Text that names no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MomentError {
    /// It is none of the forms.
    #[error(
        "`{0}` is not a moment: write now, today, yesterday, with an offset as in today-7d, today-1w, \
         today-1m or now-2h, or a date as in 2026-11-01"
    )]
    Unknown(String),
    /// The part behind the colon is no date format.
    #[error("`{0}` is not a date format: {1}")]
    Format(String, String),
    /// The calendar does not reach that far.
    #[error("`{0}` is further away than the calendar goes")]
    TooFar(String),
}

impl Moment {
    /// Reads a moment.
    ///
    /// # Errors
    /// [`MomentError::Unknown`].
    pub fn parse(text: &str) -> Result<Self, MomentError> {
        let unknown = || MomentError::Unknown(text.to_owned());
        if let Ok(date) = text.parse::<Date>() {
            let base = Base::Date(date);
            let (days, offset) = (0, Span::new());
            return Ok(Self { base, days, offset });
        }
        let split = text.find(['+', '-']).unwrap_or(text.len());
        let (name, offset) = text.split_at_checked(split).ok_or_else(unknown)?;
        let (base, days) = match name {
            "now" => (Base::Now, 0),
            "today" => (Base::Today, 0),
            "yesterday" => (Base::Today, -1),
            _ => return Err(unknown()),
        };
        let offset = if offset.is_empty() {
            Span::new()
        } else {
            parse_offset(offset).ok_or_else(unknown)?
        };
        Ok(Self { base, days, offset })
    }

    /// The moment, for somebody who asks at `now` in a zone. A day is its first moment there.
    ///
    /// # Errors
    /// [`MomentError::TooFar`].
    pub fn at(&self, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, MomentError> {
        let zoned = self.zoned(now, zone)?;
        let nanoseconds = i64::try_from(zoned.timestamp().as_nanosecond());
        let nanoseconds = nanoseconds.map_err(|_far| self.too_far())?;
        Ok(Timestamp::from_nanoseconds(nanoseconds))
    }

    fn zoned(&self, now: Timestamp, zone: &TimeZone) -> Result<Zoned, MomentError> {
        let now = now.to_calendar().to_zoned(zone.clone());
        let base = match self.base {
            Base::Now => Ok(now),
            Base::Today => now.start_of_day(),
            Base::Date(date) => date.to_zoned(zone.clone()),
        };
        base.and_then(|base| base.checked_add(Span::new().days(self.days)))
            .and_then(|base| base.checked_add(self.offset))
            .map_err(|_far| self.too_far())
    }

    fn too_far(&self) -> MomentError {
        MomentError::TooFar(format!("{:?}", self.base))
    }
}

fn parse_offset(text: &str) -> Option<Span> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("-", rest) => (-1, rest),
        ("+", rest) => (1, rest),
        _ => return None,
    };
    let unit = rest.chars().last()?;
    let number: i64 = rest.strip_suffix(unit)?.parse().ok()?;
    if !(0..=MOST).contains(&number) {
        return None;
    }
    let number = sign * number;
    match unit {
        'h' => Span::new().try_hours(number).ok(),
        'd' => Span::new().try_days(number).ok(),
        'w' => Span::new().try_weeks(number).ok(),
        'm' => Span::new().try_months(number).ok(),
        _ => None,
    }
}

/// Whether a pattern has dates in it.
#[must_use]
pub fn has_dates(pattern: &str) -> bool {
    find(pattern).is_some()
}

/// The pattern with each `{today:%Y-%m-%d}` (or `yesterday`, `now`, with an offset) written out. Other
/// braces stay: they are alternatives of a glob.
///
/// # Errors
/// A [`MomentError`], for a placeholder that is one and cannot be filled.
pub fn fill_dates(pattern: &str, now: Timestamp, zone: &TimeZone) -> Result<String, MomentError> {
    let (mut filled, mut rest) = (String::with_capacity(pattern.len()), pattern);
    while let Some((before, moment, format, behind)) = find(rest) {
        filled.push_str(before);
        let zoned = Moment::parse(moment)?.zoned(now, zone)?;
        let written = jiff::fmt::strtime::format(format, &zoned)
            .map_err(|error| MomentError::Format(format.to_owned(), error.to_string()))?;
        filled.push_str(&written);
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// What is before the first placeholder, its moment and format, and what is behind it.
fn find(text: &str) -> Option<(&str, &str, &str, &str)> {
    let mut from = 0;
    loop {
        let open = from + text.get(from..)?.find('{')?;
        let inside = text.get(open + 1..)?;
        let starts = ["today", "yesterday", "now"];
        if starts.iter().any(|start| inside.starts_with(start))
            && let Some((placeholder, behind)) = inside.split_once('}')
            && let Some((moment, format)) = placeholder.split_once(':')
        {
            return Some((text.get(..open)?, moment, format, behind));
        }
        from = open + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-03-29 10:00 in Berlin, the day on which clocks are set forward.
    fn now() -> Timestamp {
        Timestamp::from_seconds(1_774_771_200)
    }

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    #[test]
    fn days_are_days_of_the_zone() {
        for (text, expected) in [
            ("now", "2026-03-29T10:00:00+02:00"),
            ("now-2h", "2026-03-29T08:00:00+02:00"),
            ("now-10h", "2026-03-28T23:00:00+01:00"),
            ("today", "2026-03-29T00:00:00+01:00"),
            ("today+1d", "2026-03-30T00:00:00+02:00"),
            ("yesterday", "2026-03-28T00:00:00+01:00"),
            ("yesterday-1w", "2026-03-21T00:00:00+01:00"),
            ("today-1m", "2026-02-28T00:00:00+01:00"),
            ("2026-11-01", "2026-11-01T00:00:00+01:00"),
        ] {
            let at = Moment::parse(text).unwrap().at(now(), &berlin()).unwrap();
            let expected: jiff::Timestamp = expected.parse().unwrap();
            assert_eq!(at.to_calendar(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "tomorrow",
            "today-",
            "today-3x",
            "today-d",
            "2026-13-01",
            "now-9999999d",
        ] {
            assert!(Moment::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dates_in_patterns_are_written_out_and_alternatives_stay() {
        let fill = |pattern| fill_dates(pattern, now(), &berlin());
        assert_eq!(
            fill("{a,b}-{yesterday:%Y%m%d}-{today-2d:%d.%m}.{csv,txt}").unwrap(),
            "{a,b}-20260328-27.03.{csv,txt}"
        );
        assert_eq!(fill("{today,b}").unwrap(), "{today,b}");
        assert!(has_dates("x{today:%F}") && !has_dates("{todays}"));
        assert!(fill("{today-3x:%F}").is_err());
    }
}
