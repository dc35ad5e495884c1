//! What has to hold for a run to begin.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use knarr_core::alert::Hours;
use knarr_core::choose::{Chooser, Order};
use knarr_core::filter::Filter;
use knarr_core::tree::TreeItem;
use knarr_core::units::{ByteSize, Span};
use knarr_core::{Entry, Kind, RelPath, Timestamp};
use knarr_remote::{ListOptions, Remote, RemoteError};

use crate::error::EngineError;

/// What has to hold for a run of a job to begin.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// Hours in which no run begins; one that is under way when they begin is stopped, and the next one
    /// goes on from there.
    pub blackouts: Vec<Hours>,
    /// The only hours in which a run begins, if there are any.
    pub windows: Vec<Hours>,
    /// Each of these has to match a file at the source.
    pub markers_present: Vec<Marker>,
    /// None of these may match a file at the source.
    pub markers_absent: Vec<Marker>,
    /// So much has to be free at the destination, in bytes.
    pub free_bytes: Option<u64>,
    /// So many inodes have to be free there.
    pub free_inodes: Option<u64>,
    /// So many files have to match.
    pub min_files: Option<u64>,
    /// No more files may match: more of them are a sign of something wrong.
    pub max_files: Option<u64>,
    /// Some file at the source has to have changed within this time.
    pub fresh: Option<Duration>,
    /// Who knows how much room there is at the destination.
    pub space: Option<Arc<dyn Space>>,
}

/// A glob, and how it was written.
#[derive(Clone)]
pub struct Marker {
    text: String,
    filter: Filter,
}

impl Marker {
    /// Reads a glob, as in `match.include`.
    ///
    /// # Errors
    /// If it is none.
    pub fn new(text: &str) -> Result<Self, knarr_core::filter::FilterError> {
        Ok(Self {
            text: text.to_owned(),
            filter: Filter::new([text], [])?,
        })
    }

    /// Whether a file is one.
    pub(crate) fn is(&self, path: &RelPath) -> bool {
        self.filter.takes_path(path, Kind::File)
    }
}

impl fmt::Debug for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Marker").field(&self.text).finish()
    }
}

/// How much room a place has.
#[async_trait]
pub trait Space: Send + Sync + fmt::Debug {
    /// Free bytes and inodes; nothing for what the place does not tell.
    ///
    /// # Errors
    /// If it cannot be asked.
    async fn free(&self) -> Result<(Option<u64>, Option<u64>), RemoteError>;
}

/// Which of the files that match a run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choice {
    /// Only so many of the newest, delivered or not; others are never taken.
    pub newest: Option<usize>,
    /// At most so many in one run; the next one takes the others.
    pub limit: Option<usize>,
    /// Which come first if there is a limit.
    pub order: Order,
}

/// Why a run does not take place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is not the time for it.
    Skip(String),
    /// Something is wrong.
    Fail(String),
}

/// What was found out before the run.
#[derive(Debug, Default)]
pub(crate) struct Surveyed {
    /// The only files that are taken; all if nothing is here.
    pub(crate) only: Option<BTreeSet<RelPath>>,
}

impl Conditions {
    /// Whether the time is one for a run.
    pub(crate) fn check_time(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.blackouts.iter().any(|hours| hours.end(now).is_some()) {
            return Err(Refusal::Skip("it is in a blackout".to_owned()));
        }
        if !self.windows.is_empty() && !self.windows.iter().any(|hours| hours.end(now).is_some()) {
            return Err(Refusal::Skip(
                "it is outside of the job's window".to_owned(),
            ));
        }
        Ok(())
    }

    /// Whether there is room at the destination.
    pub(crate) async fn check_space(&self) -> Result<(), Refusal> {
        if self.free_bytes.is_none() && self.free_inodes.is_none() {
            return Ok(());
        }
        let unknown =
            || Refusal::Fail("the destination does not tell how much room it has".to_owned());
        let Some(space) = &self.space else {
            return Err(unknown());
        };
        let (bytes, inodes) = space.free().await.map_err(|error| {
            let reason = crate::error::chain(&error);
            Refusal::Fail(format!(
                "the destination cannot be asked for room: {reason}"
            ))
        })?;
        if let Some(least) = self.free_bytes {
            let free = bytes.ok_or_else(unknown)?;
            if free < least {
                return Err(Refusal::Fail(format!(
                    "only {} are free at the destination, and `free_space` asks for {}",
                    ByteSize(free),
                    ByteSize(least)
                )));
            }
        }
        if let Some(least) = self.free_inodes {
            let free = inodes.ok_or_else(unknown)?;
            if free < least {
                return Err(Refusal::Fail(format!(
                    "only {free} inodes are free at the destination, and `free_inodes` asks for {least}"
                )));
            }
        }
        Ok(())
    }

    const fn needs_survey(&self) -> bool {
        !self.markers_present.is_empty()
            || !self.markers_absent.is_empty()
            || self.min_files.is_some()
            || self.max_files.is_some()
            || self.fresh.is_some()
    }

    /// Looks at all of the source, if a condition or the choice asks for it.
    ///
    /// # Errors
    /// If the source cannot be listed to its end.
    pub(crate) async fn survey(
        &self,
        choice: Choice,
        source: &dyn Remote,
        is_meant: impl Fn(&Entry) -> bool + Send,
        now: Timestamp,
    ) -> Result<Result<Surveyed, Refusal>, EngineError> {
        if !self.needs_survey() && choice.newest.is_none() {
            return Ok(Ok(Surveyed::default()));
        }
        let failed = |source_error| EngineError::Look {
            location: source.describe().location.clone(),
            source: source_error,
        };
        let listing = source.list(ListOptions::default()).await;
        let mut listing = listing.map_err(failed)?;
        let mut seen = Seen {
            present: vec![false; self.markers_present.len()],
            absent: None,
            changed: None,
            files: 0,
            newest: choice.newest.map(Chooser::new),
        };
        while let Some(items) = listing.next_batch().await {
            for item in items {
                match item {
                    TreeItem::Entry(entry) if entry.kind == Kind::File => {
                        seen.note(self, entry, &is_meant);
                    }
                    TreeItem::Incomplete(part) => {
                        let reason =
                            format!("the source cannot be listed completely: {}", part.reason);
                        return Ok(Err(Refusal::Fail(reason)));
                    }
                    TreeItem::Entry(_) | TreeItem::Problem(_) | TreeItem::Excluded { .. } => {}
                }
            }
        }
        Ok(seen.judge(self, now))
    }
}

/// What a survey found.
struct Seen {
    present: Vec<bool>,
    absent: Option<RelPath>,
    changed: Option<Timestamp>,
    files: u64,
    newest: Option<Chooser<RelPath>>,
}

impl Seen {
    fn note(&mut self, conditions: &Conditions, entry: Entry, is_meant: impl Fn(&Entry) -> bool) {
        let markers = conditions.markers_present.iter();
        for (marker, found) in markers.zip(&mut self.present) {
            *found |= marker.is(&entry.path);
        }
        let mut absent = conditions.markers_absent.iter();
        if self.absent.is_none() && absent.any(|marker| marker.is(&entry.path)) {
            self.absent = Some(entry.path.clone());
        }
        self.changed = self.changed.max(entry.mtime);
        if is_meant(&entry) {
            self.files += 1;
            if let Some(newest) = &mut self.newest {
                let rank = Order::Newest.rank(&entry.path, entry.mtime, entry.size);
                newest.offer(rank, entry.path);
            }
        }
    }

    fn judge(self, conditions: &Conditions, now: Timestamp) -> Result<Surveyed, Refusal> {
        let missing = conditions.markers_present.iter().zip(&self.present);
        if let Some((marker, _)) = missing.into_iter().find(|(_, found)| !**found) {
            let text = &marker.text;
            return Err(Refusal::Skip(format!(
                "no file at the source matches `{text}`"
            )));
        }
        if let Some(path) = self.absent {
            return Err(Refusal::Skip(format!("\"{path}\" is at the source")));
        }
        if let Some(fresh) = conditions.fresh
            && self
                .changed
                .is_none_or(|changed| now.since(changed) > fresh)
        {
            return Err(Refusal::Fail(format!(
                "nothing at the source changed within {}",
                Span(fresh)
            )));
        }
        let files = self.files;
        if let Some(least) = conditions.min_files.filter(|least| files < *least) {
            return Err(Refusal::Skip(format!(
                "{files} files match, and `min_files` asks for {least}"
            )));
        }
        if let Some(most) = conditions.max_files.filter(|most| files > *most) {
            return Err(Refusal::Fail(format!(
                "{files} files match, and `max_files` is {most}"
            )));
        }
        let only = self
            .newest
            .map(|newest| newest.into_chosen().into_iter().collect());
        Ok(Surveyed { only })
    }
}
