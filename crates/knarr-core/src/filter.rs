//! Which paths are meant.

use std::fmt;
use std::time::Duration;

use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Serialize;

use crate::entry::{Entry, Kind};
use crate::path::RelPath;
use crate::pattern::Pattern;
use crate::time::Timestamp;

/// Names that editors and desktop programs use for a moment; left out of watched folders by default.
pub const TEMPORARY_NAMES: [&str; 12] = [
    ".*.sw[a-p]",
    ".*.sw[a-p]x",
    "*~",
    ".#*",
    "#*#",
    "4913",
    ".goutputstream-*",
    ".~lock.*#",
    "~$*",
    ".fuse_hidden*",
    ".nfs[0-9a-f]*",
    "*.crdownload",
];

/// Which paths are meant: globs, and limits on size and age.
///
/// A pattern without `/` is matched against the name at any depth; one with a `/` against the whole
/// path, from the root. `*` does not match `/`, `**` does. Case matters. A directory that is excluded
/// is not looked into. If there are includes, a file has to match one of them; directories are always
/// looked into, as something below might match.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    include: Option<Globs>,
    exclude: Option<Globs>,
    /// Leave out smaller files (bytes).
    pub min_size: Option<u64>,
    /// Leave out larger files (bytes).
    pub max_size: Option<u64>,
    /// Leave out files that changed less long ago.
    pub min_age: Option<Duration>,
    /// Leave out files that changed longer ago.
    pub max_age: Option<Duration>,
    /// Leave out files whose path does not match.
    pub pattern: Option<Pattern>,
    /// Leave out files that changed before this.
    pub modified_from: Option<Timestamp>,
    /// Leave out files that changed at this moment or later.
    pub modified_until: Option<Timestamp>,
}

/// A glob that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("`{pattern}` is not a glob: {reason}")]
pub struct FilterError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Debug, Clone)]
struct Globs {
    names: GlobSet,
    paths: GlobSet,
}

impl Globs {
    fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Option<Self>, FilterError> {
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        let mut any = false;
        for pattern in patterns {
            any = true;
            let error = |reason: String| FilterError {
                pattern: pattern.to_owned(),
                reason,
            };
            let trimmed = pattern.strip_suffix('/').unwrap_or(pattern);
            let rooted = trimmed.strip_prefix('/').unwrap_or(trimmed);
            if rooted.is_empty() {
                return Err(error("it is empty".to_owned()));
            }
            let glob = GlobBuilder::new(rooted)
                .literal_separator(true)
                .build()
                .map_err(|reason| error(reason.kind().to_string()))?;
            if trimmed.contains('/') {
                paths.add(glob)
            } else {
                names.add(glob)
            };
        }
        let build = |builder: GlobSetBuilder| {
            builder.build().map_err(|reason| FilterError {
                pattern: "all together".to_owned(),
                reason: reason.to_string(),
            })
        };
        Ok(if any {
            Some(Self {
                names: build(names)?,
                paths: build(paths)?,
            })
        } else {
            None
        })
    }

    fn matches(&self, path: &RelPath) -> bool {
        self.names
            .is_match_candidate(&Candidate::from_bytes(path.name()))
            || (!self.paths.is_empty()
                && self
                    .paths
                    .is_match_candidate(&Candidate::from_bytes(path.as_bytes())))
    }
}

impl Filter {
    /// A filter of globs.
    ///
    /// # Errors
    /// [`FilterError`] for the first pattern that is none.
    pub fn new<'a>(
        include: impl IntoIterator<Item = &'a str>,
        exclude: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, FilterError> {
        Ok(Self {
            include: Globs::new(include)?,
            exclude: Globs::new(exclude)?,
            ..Self::default()
        })
    }

    /// This filter with the globs of another one.
    #[must_use]
    pub fn with_globs_of(self, other: Self) -> Self {
        Self {
            include: other.include,
            exclude: other.exclude,
            ..self
        }
    }

    /// Whether everything passes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.include.is_none()
            && self.exclude.is_none()
            && self.pattern.is_none()
            && !self.limits_entries()
    }

    /// Whether size or age matter, so that [`Filter::takes_entry`] has to be asked.
    #[must_use]
    pub const fn limits_entries(&self) -> bool {
        self.min_size.is_some()
            || self.max_size.is_some()
            || self.min_age.is_some()
            || self.max_age.is_some()
            || self.modified_from.is_some()
            || self.modified_until.is_some()
    }

    /// Whether the path is meant, by its name alone. `false` for a directory leaves out all below.
    #[must_use]
    pub fn takes_path(&self, path: &RelPath, kind: Kind) -> bool {
        if self
            .exclude
            .as_ref()
            .is_some_and(|globs| globs.matches(path))
        {
            return false;
        }
        kind == Kind::Directory || (self.includes(path) && self.fits_pattern(path))
    }

    fn includes(&self, path: &RelPath) -> bool {
        let include = self.include.as_ref();
        include.is_none_or(|globs| globs.matches(path))
    }

    fn fits_pattern(&self, path: &RelPath) -> bool {
        let pattern = self.pattern.as_ref();
        pattern.is_none_or(|pattern| pattern.matches(path))
    }

    /// The same for a path that did not come from walking down from the root: no directory above
    /// it may be excluded either.
    #[must_use]
    pub fn takes_path_from_root(&self, path: &RelPath, kind: Kind) -> bool {
        let mut above = path.parent();
        while let Some(directory) = above {
            if !self.takes_path(&directory, Kind::Directory) {
                return false;
            }
            above = directory.parent();
        }
        self.takes_path(path, kind)
    }

    /// Whether the file is meant, by size and age.
    #[must_use]
    pub fn takes_entry(&self, entry: &Entry, now: Timestamp) -> bool {
        if entry.kind != Kind::File {
            return true;
        }
        let age = entry.mtime.map(|mtime| now.since(mtime));
        self.min_size.is_none_or(|least| entry.size >= least)
            && self.max_size.is_none_or(|most| entry.size <= most)
            && self
                .min_age
                .is_none_or(|least| age.is_none_or(|age| age >= least))
            && self
                .max_age
                .is_none_or(|most| age.is_none_or(|age| age <= most))
            && !self.is_before(entry)
            && !self.is_after(entry)
    }

    fn is_before(&self, entry: &Entry) -> bool {
        matches!((entry.mtime, self.modified_from), (Some(at), Some(from)) if at < from)
    }

    fn is_after(&self, entry: &Entry) -> bool {
        matches!((entry.mtime, self.modified_until), (Some(at), Some(until)) if at >= until)
    }
}

/// Why something is not meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotMeant {
    /// An exclude matches it, or a directory that it lies in.
    Excluded,
    /// No include matches it.
    NotIncluded,
    /// It does not match the regular expression.
    NotMatching,
    /// It is smaller than the least size.
    TooSmall,
    /// It is larger than the greatest size.
    TooLarge,
    /// It changed less long ago than the least age.
    TooYoung,
    /// It changed longer ago than the greatest age.
    TooOld,
    /// It changed before the first moment that counts.
    BeforeWindow,
    /// It changed after the last moment that counts.
    AfterWindow,
}

impl fmt::Display for NotMeant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Excluded => "it matches `exclude`",
            Self::NotIncluded => "it matches none of `include`",
            Self::NotMatching => "its path does not match `regex`",
            Self::TooSmall => "it is smaller than `min_size`",
            Self::TooLarge => "it is larger than `max_size`",
            Self::TooYoung => "it changed less than `min_age` ago",
            Self::TooOld => "it changed more than `max_age` ago",
            Self::BeforeWindow => "it changed before `modified_from`, or before the last run",
            Self::AfterWindow => "it changed after `modified_until`",
        })
    }
}

impl Filter {
    /// Why an entry is not meant; nothing if it is. Says the same as [`Filter::takes_path_from_root`] and
    /// [`Filter::takes_entry`] together.
    #[must_use]
    pub fn why_not(&self, entry: &Entry, now: Timestamp) -> Option<NotMeant> {
        if !self.takes_path_from_root(&entry.path, entry.kind) {
            // With a directory's eyes, only excludes count.
            let excluded = !self.takes_path_from_root(&entry.path, Kind::Directory);
            return Some(if excluded {
                NotMeant::Excluded
            } else if self.includes(&entry.path) {
                NotMeant::NotMatching
            } else {
                NotMeant::NotIncluded
            });
        }
        if self.takes_entry(entry, now) {
            return None;
        }
        let age = entry.mtime.map(|mtime| now.since(mtime));
        let is_less = |least: Option<Duration>| matches!((age, least), (Some(age), Some(least)) if age < least);
        Some(if self.min_size.is_some_and(|least| entry.size < least) {
            NotMeant::TooSmall
        } else if self.max_size.is_some_and(|most| entry.size > most) {
            NotMeant::TooLarge
        } else if is_less(self.min_age) {
            NotMeant::TooYoung
        } else if matches!((age, self.max_age), (Some(age), Some(most)) if age > most) {
            NotMeant::TooOld
        } else if self.is_before(entry) {
            NotMeant::BeforeWindow
        } else {
            NotMeant::AfterWindow
        })
    }
}

/// A glob that matches just this text.
#[must_use]
pub fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '*' | '?' | '[' | ']' | '{' | '}' | ',' => format!("[{c}]"),
        '\\' => "\\\\".to_owned(),
        other => other.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_match_at_any_depth_and_paths_from_the_root() {
        let filter = Filter::new(["*.csv.gz", "top/**/*.txt"], ["tmp", "/top/secret"]).unwrap();
        for (text, expected) in [
            ("a.csv.gz", true),
            ("x/y/a.csv.gz", true),
            ("a.csv", false),
            ("top/x/y/b.txt", true),
            ("other/top/b.txt", false),
            ("x/tmp/a.csv.gz", false),
            ("top/secret/a.csv.gz", false),
            ("x/top/secret/a.csv.gz", true),
        ] {
            assert_eq!(
                filter.takes_path_from_root(&path(text), Kind::File),
                expected,
                "{text}"
            );
        }
        let odd = RelPath::new(*b"\xff.csv.gz").unwrap();
        assert!(filter.takes_path(&odd, Kind::File));
    }

    #[test]
    fn size_and_age_limit_files_only() {
        let filter = Filter {
            min_size: Some(10),
            max_age: Some(Duration::from_secs(60)),
            ..Filter::default()
        };
        let now = Timestamp::from_seconds(1_000);
        let mut entry = Entry::file(path("a"), 10);
        entry.mtime = Some(Timestamp::from_seconds(950));
        assert!(filter.takes_entry(&entry, now));
        entry.mtime = Some(Timestamp::from_seconds(900));
        assert!(!filter.takes_entry(&entry, now));
        assert!(filter.takes_entry(&Entry::directory(path("d")), now));
    }

    #[test]
    fn why_something_is_not_meant_agrees_with_whether_it_is() {
        let filter = Filter {
            min_size: Some(10),
            max_size: Some(20),
            min_age: Some(Duration::from_secs(60)),
            max_age: Some(Duration::from_secs(600)),
            pattern: Some(Pattern::new("(tmp/)?[a-m].*").unwrap()),
            modified_from: Some(Timestamp::from_seconds(9_600)),
            modified_until: Some(Timestamp::from_seconds(9_920)),
            ..Filter::new(["*.csv"], ["tmp"]).unwrap()
        };
        let now = Timestamp::from_seconds(10_000);
        for (name, size, age, expected) in [
            ("a.csv", 15, 100, None),
            ("tmp/a.csv", 15, 100, Some(NotMeant::Excluded)),
            ("a.txt", 15, 100, Some(NotMeant::NotIncluded)),
            ("a.csv", 9, 100, Some(NotMeant::TooSmall)),
            ("a.csv", 21, 100, Some(NotMeant::TooLarge)),
            ("a.csv", 15, 10, Some(NotMeant::TooYoung)),
            ("a.csv", 15, 1_000, Some(NotMeant::TooOld)),
            ("z.csv", 15, 100, Some(NotMeant::NotMatching)),
            ("a.csv", 15, 401, Some(NotMeant::BeforeWindow)),
            ("a.csv", 15, 80, Some(NotMeant::AfterWindow)),
        ] {
            let mut entry = Entry::file(path(name), size);
            entry.mtime = Some(Timestamp::from_seconds(10_000 - age));
            assert_eq!(filter.why_not(&entry, now), expected, "{name} {size} {age}");
            let takes = filter.takes_path_from_root(&entry.path, entry.kind)
                && filter.takes_entry(&entry, now);
            assert_eq!(takes, expected.is_none());
        }
    }

    #[test]
    fn a_broken_glob_is_named() {
        let error = Filter::new(["ok", "a[b"], []).unwrap_err();
        assert!(error.to_string().contains("a[b"), "{error}");
    }
}
