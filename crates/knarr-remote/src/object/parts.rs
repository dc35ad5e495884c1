//! How a file is cut into parts, and what a later attempt has to know about that.
//!
//! Constraints: at most 10,000 parts; the cut depends only on what is saved, so that every attempt
//! makes the same parts. A file of known length has parts of one length (some stores want that); one
//! of unknown length has parts that double every 1,000, so that it can grow to 8 TiB.

use std::sync::atomic::{AtomicU64, Ordering};

use knarr_core::Timestamp;
use knarr_core::time::{Clock as _, SystemClock};
use object_store::{Attribute, Attributes};
use serde::{Deserialize, Serialize};

use crate::upload::StagedId;

/// The most parts that a store takes.
pub(super) const MAX_PARTS: u32 = 10_000;
/// After how many parts they double, if the length is unknown.
const DOUBLE_AFTER: u32 = 1_000;
/// Part lengths are whole multiples of this.
const STEP: u64 = 1 << 20;
/// The metadata by which an object of ours is known again. Only letters and digits, as not every
/// store takes more.
const MARK: &str = "knarrmark";
/// The metadata in which rclone and others keep the source's time, in seconds.
const MTIME: &str = "mtime";

/// How a file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartPlan {
    /// The length of the first part in bytes.
    part_size: u64,
    /// The length of the file, if it was known before.
    size: Option<u64>,
}

impl PartPlan {
    /// Cuts a file of `size` bytes into parts of `wished` bytes, or longer ones where that many would
    /// be too many.
    pub(super) fn new(size: Option<u64>, wished: u64) -> Self {
        let least = size.unwrap_or(0).div_ceil(u64::from(MAX_PARTS));
        let part_size = wished.max(least.div_ceil(STEP) * STEP);
        Self { part_size, size }
    }

    /// The length of the file, if it was known before.
    pub(super) const fn size(&self) -> Option<u64> {
        self.size
    }

    /// The length of the part with this number (from 0); the last one may be shorter.
    pub(super) fn length(&self, number: u32) -> u64 {
        match self.size {
            None => self.part_size << (number / DOUBLE_AFTER).min(20),
            Some(size) => size
                .saturating_sub(u64::from(number).saturating_mul(self.part_size))
                .min(self.part_size),
        }
    }
}

/// What is saved about a multipart upload when it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedUpload {
    /// The whole key.
    pub(super) key: String,
    /// The store's name for the upload.
    pub(super) upload_id: String,
    /// What the finished object carries in its metadata; empty where the store cannot keep it.
    pub(super) mark: String,
    /// How the file is cut.
    pub(super) plan: PartPlan,
}

/// A mark for a new upload, which no other upload has.
pub(super) fn new_mark(staged_id: StagedId) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&staged_id.0.to_le_bytes());
    hasher.update(&SystemClock.now().nanoseconds().to_le_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    hasher.update(&COUNTER.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    let hash = hasher.finalize().to_hex();
    format!("upload-{}", hash.get(..32).unwrap_or(&hash))
}

/// The metadata of an object: the source's time and our mark.
pub(super) fn attributes(mtime: Option<Timestamp>, mark: String) -> Attributes {
    let mut attributes = Attributes::with_capacity(2);
    if let Some(mtime) = mtime {
        attributes.insert(Attribute::Metadata(MTIME.into()), seconds(mtime).into());
    }
    if !mark.is_empty() {
        attributes.insert(Attribute::Metadata(MARK.into()), mark.into());
    }
    attributes
}

/// Whether the metadata has this mark.
pub(super) fn has_mark(attributes: &Attributes, mark: &str) -> bool {
    !mark.is_empty()
        && attributes
            .get(&Attribute::Metadata(MARK.into()))
            .is_some_and(|found| found.as_ref() == mark)
}

/// Seconds since the epoch as a decimal fraction.
fn seconds(time: Timestamp) -> String {
    let nanoseconds = time.nanoseconds();
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let (whole, part) = (
        nanoseconds.unsigned_abs() / 1_000_000_000,
        nanoseconds.unsigned_abs() % 1_000_000_000,
    );
    if part == 0 {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{part:09}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_never_has_more_parts_than_a_store_takes() {
        for size in [
            0,
            1,
            8 << 20,
            (8 << 20) + 1,
            80_000 << 20,
            (80_000 << 20) + 1,
            5 << 40,
        ] {
            let plan = PartPlan::new(Some(size), 8 << 20);
            let parts = size.div_ceil(plan.length(0).max(1));
            assert!(parts <= u64::from(MAX_PARTS), "{size} makes {parts} parts");
            let sum: u64 = (0..MAX_PARTS).map(|number| plan.length(number)).sum();
            assert_eq!(sum, size, "the parts are the file");
        }
        let plan = PartPlan::new(None, 8 << 20);
        let sum: u64 = (0..MAX_PARTS).map(|number| plan.length(number)).sum();
        assert!(sum >= 5 << 40, "{sum}");
        assert_eq!(plan.length(0), plan.length(DOUBLE_AFTER - 1));
    }

    #[test]
    fn times_are_written_as_others_read_them() {
        for (nanoseconds, text) in [
            (1_700_000_000_123_456_789, "1700000000.123456789"),
            (1_000_000_000, "1"),
            (1_000_000_001, "1.000000001"),
            (-1_500_000_000, "-1.500000000"),
        ] {
            assert_eq!(seconds(Timestamp::from_nanoseconds(nanoseconds)), text);
        }
    }

    #[test]
    fn no_two_uploads_have_the_same_mark() {
        assert_ne!(new_mark(StagedId(1)), new_mark(StagedId(1)));
    }
}
