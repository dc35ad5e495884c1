//! Which files a job means, as it is written: some of it depends on when the job runs.

use jiff::tz::TimeZone;

use crate::filter::{Filter, FilterError};
use crate::moment::{self, Moment, MomentError};
use crate::parameters::{self, Values};
use crate::time::Timestamp;

/// Which files a job means.
#[derive(Debug, Clone)]
pub struct Matching {
    /// Globs of which a file has to match one; with dates as in `report-{yesterday:%Y%m%d}.csv`.
    pub include: Vec<String>,
    /// Globs of what is left out; with dates.
    pub exclude: Vec<String>,
    /// All that does not depend on time. Its globs do not count.
    pub fixed: Filter,
    /// Leave files out that changed before.
    pub modified_from: Option<Moment>,
    /// Leave files out that changed then or later.
    pub modified_until: Option<Moment>,
    /// What earlier runs mean for it.
    pub since: Since,
    /// Whose days they are.
    pub zone: TimeZone,
}

/// Whether what was there before the last run counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Since {
    /// It does.
    #[default]
    Ever,
    /// Only what changed after the last good run had begun does.
    LastRun,
}

/// What cannot be matched by.
#[derive(Debug, thiserror::Error)]
pub enum MatchingError {
    /// A date in a pattern.
    #[error(transparent)]
    Moment(MomentError),
    /// A pattern.
    #[error(transparent)]
    Filter(FilterError),
}

impl Matching {
    /// Whether it is always the same, whenever a job runs.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        let mut globs = self.include.iter().chain(&self.exclude);
        self.modified_from.is_none()
            && self.modified_until.is_none()
            && self.since == Since::Ever
            && !globs
                .any(|glob| moment::has_dates(glob) || parameters::in_glob(glob).next().is_some())
    }

    /// What is meant by a run that begins at `now`. `last` is when the last good one began.
    ///
    /// # Errors
    /// If a date cannot be told, or a glob is none once the dates stand in it.
    pub fn at(&self, now: Timestamp, last: Option<Timestamp>) -> Result<Filter, MatchingError> {
        self.at_with(now, last, &Values::default())
    }

    /// The same, with the values of the run's parameters.
    ///
    /// # Errors
    /// As [`Matching::at`].
    pub fn at_with(
        &self,
        now: Timestamp,
        last: Option<Timestamp>,
        values: &Values,
    ) -> Result<Filter, MatchingError> {
        let filled = |globs: &[String]| -> Result<Vec<String>, MatchingError> {
            // The dates first: a value is never read as one.
            let fill = |glob: &String| {
                let dated = moment::fill_dates(glob, now, &self.zone);
                dated.map(|glob| values.fill_glob(&glob))
            };
            let filled: Result<_, _> = globs.iter().map(fill).collect();
            filled.map_err(MatchingError::Moment)
        };
        let (include, exclude) = (filled(&self.include)?, filled(&self.exclude)?);
        let globs = Filter::new(
            include.iter().map(String::as_str),
            exclude.iter().map(String::as_str),
        )
        .map_err(MatchingError::Filter)?;
        let moment = |moment: &Option<Moment>| {
            let at = moment.as_ref().map(|moment| moment.at(now, &self.zone));
            at.transpose().map_err(MatchingError::Moment)
        };
        let last = last.filter(|_| self.since == Since::LastRun);
        let mut filter = self.fixed.clone().with_globs_of(globs);
        filter.modified_from = moment(&self.modified_from)?.max(last);
        filter.modified_until = moment(&self.modified_until)?;
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Entry, Kind};
    use crate::path::RelPath;

    #[test]
    fn what_is_meant_moves_with_the_days() {
        let mut fixed = Filter::default();
        fixed.min_size = Some(3);
        let matching = Matching {
            include: vec!["report-{yesterday:%Y%m%d}.csv".to_owned()],
            exclude: Vec::new(),
            fixed,
            modified_from: None,
            modified_until: Some(Moment::parse("today").unwrap()),
            since: Since::LastRun,
            zone: TimeZone::UTC,
        };
        assert!(!matching.is_fixed());
        let day = 86_400;
        let now = Timestamp::from_seconds(20_000 * day + 3_600);
        let filter = matching
            .at(now, Some(Timestamp::from_seconds(19_999 * day)))
            .unwrap();
        let mut entry = Entry::file(RelPath::new(*b"report-20241003.csv").unwrap(), 5);
        let mut takes = |seconds| {
            entry.mtime = Some(Timestamp::from_seconds(seconds));
            filter.takes_path(&entry.path, Kind::File) && filter.takes_entry(&entry, now)
        };
        assert!(takes(19_999 * day + 5));
        assert!(!takes(19_999 * day - 5), "before the last run");
        assert!(!takes(20_000 * day), "today");
        let tomorrow = Timestamp::from_seconds(20_001 * day + 3_600);
        let filter = matching.at(tomorrow, None).unwrap();
        assert!(
            !filter.takes_path(&entry.path, Kind::File),
            "the report of another day"
        );
    }
}
