//! What has to hold for a run, and for a file.

use knarr_core::units::{ByteSize, Span};
use knarr_engine::ContentType;
use knarr_engine::outbox::shape::DayShape;
use knarr_steps::ChecksumAlgorithm;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::read::{At, Many};

/// A condition for a run, or a check of each file. One or more keys; all of them have to hold.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct CheckShape {
    /// A glob that has to match some file at the source; otherwise the run is skipped.
    #[serde(default)]
    pub(in crate::config) marker_present: Many<At<String>>,
    /// A glob that must match no file at the source; otherwise the run is skipped.
    #[serde(default)]
    pub(in crate::config) marker_absent: Many<At<String>>,
    /// So much room has to be left at the destination; otherwise the run fails.
    pub(in crate::config) free_space: Option<ByteSize>,
    /// So many inodes have to be free at the destination; otherwise the run fails.
    pub(in crate::config) free_inodes: Option<u64>,
    /// Hours in which no run begins, and in which one that is under way stops.
    #[serde(default)]
    pub(in crate::config) blackout: Many<At<HoursShape>>,
    /// So many files have to match; otherwise the run is skipped.
    pub(in crate::config) min_files: Option<u64>,
    /// If more files match, the run fails.
    pub(in crate::config) max_files: Option<u64>,
    /// Some file at the source has to have changed within this time; otherwise the run fails.
    pub(in crate::config) fresh: Option<Span>,
    /// Each file has to have this checksum in a file beside it, such as `name.sha256`. Without that file it
    /// is left until it is there.
    pub(in crate::config) checksum: Option<At<ChecksumAlgorithm>>,
    /// The only kinds of content that are taken, told by how it begins.
    #[serde(default)]
    pub(in crate::config) types: Many<ContentType>,
    /// What becomes of a file whose content the job has delivered before, under whatever name: `skip` counts it
    /// as delivered, `park` leaves it to a person. Without it, it is delivered.
    pub(in crate::config) duplicates: Option<At<DuplicatesShape>>,
    /// How long a content is remembered for `duplicates`; 90d by default.
    pub(in crate::config) duplicates_within: Option<At<Span>>,
    /// A scanner: a program that gets the content on its standard input, and ends with 0 if it is clean, with 1
    /// if not; or one that is asked over ICAP.
    pub(in crate::config) scan: Option<At<ScanShape>>,
}

/// A span of time that comes on some days.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct HoursShape {
    /// When it begins, such as `22:00`.
    pub(in crate::config) from: At<String>,
    /// When it ends; on the next day, if that is not later.
    pub(in crate::config) to: At<String>,
    /// The days on which it begins, such as `[sat, sun]`; every day by default.
    #[serde(default)]
    pub(in crate::config) days: Vec<DayShape>,
    /// The time zone; by default the job's `timezone`.
    pub(in crate::config) timezone: Option<At<String>>,
}

/// What becomes of a file whose content was delivered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum DuplicatesShape {
    /// It counts as delivered: its source is taken care of, and nothing is moved.
    #[default]
    Skip,
    /// It is parked until a person acts.
    Park,
}

/// A scanner.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ScanShape {
    /// The absolute path of a program, and its arguments. Only in the configuration file.
    #[serde(default)]
    pub(in crate::config) command: Vec<String>,
    /// Instead of a program: the URL of a service, such as icap://scanner.example:1344/avscan.
    pub(in crate::config) icap: Option<String>,
    /// How long it may take after the last byte, and over ICAP for each step; 60s by default.
    pub(in crate::config) timeout: Option<Span>,
}
