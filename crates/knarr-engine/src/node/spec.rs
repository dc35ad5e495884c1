//! What a watch job is made of.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use knarr_core::filter::Filter;
use knarr_core::job::{After, Deletes, Verify};
use knarr_core::plan::{Brake, IfExists, SymlinkPolicy};
use knarr_core::retry::RetryPolicy;
use knarr_core::template::Template;
use knarr_remote::Remote;
use knarr_steps::StepSpec;

/// A job that watches directories and delivers what appears in them.
#[derive(Debug, Clone)]
pub struct WatchJob {
    /// Its name.
    pub name: String,
    /// The watched directories.
    pub sources: Vec<PathBuf>,
    /// Which files are meant.
    pub filter: Arc<Filter>,
    /// How long a file has to be at rest where nothing better says that it is complete.
    pub settle: Duration,
    /// What is done to a file on the way.
    pub steps: Vec<StepSpec>,
    /// Where to.
    pub destination: Arc<dyn Remote>,
    /// The path below it.
    pub template: Template,
    /// The zone in which the template writes dates.
    pub time_zone: TimeZone,
    /// What becomes of the source.
    pub after: After,
    /// What a deletion at the source means.
    pub deletes: Deletes,
    /// What to do when something is at the destination that this job did not deliver.
    pub if_exists: IfExists,
    /// What to do with symbolic links.
    pub symlinks: SymlinkPolicy,
    /// How deliveries are verified.
    pub verify: Verify,
    /// How failed attempts are repeated.
    pub retry: RetryPolicy,
    /// How often everything is looked at, whatever the watcher said.
    pub rescan: Duration,
    /// How often what cannot be watched is looked at.
    pub poll: Duration,
    /// How many files at once; nothing for what suits the destination.
    pub transfers: Option<usize>,
    /// When deletions are held.
    pub brake: Brake,
}

impl WatchJob {
    /// Whether a path at the source says where it lies at the destination, whenever it is asked: then a
    /// rename of a whole directory can be one rename there.
    #[must_use]
    pub fn mirrors_paths(&self) -> bool {
        self.template.is_identity() && self.steps.is_empty()
    }
}
