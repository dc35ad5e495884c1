//! What a watch job is made of.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use knarr_core::filter::Filter;
use knarr_core::job::{After, Deletes, Priority, Verify};
use knarr_core::matching::Matching;
use knarr_core::parameters::Parameters;
use knarr_core::pattern::Pattern;
use knarr_core::plan::{Brake, IfExists, SymlinkPolicy};
use knarr_core::retry::RetryPolicy;
use knarr_core::template::Template;
use knarr_core::{Entry, Kind, RelPath};
use knarr_remote::Remote;

use crate::acknowledge::Acknowledge;
use crate::batch::Publish;
use crate::conditions::{Choice, Conditions};
use crate::duplicates::Duplicates;
use crate::inspect::FileChecks;
use crate::manifest::ManifestSpec;
use crate::steps::Steps;
use crate::turns::Turns;

/// When a job looks at its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looks {
    /// All the time: it watches.
    Always,
    /// Once in each run.
    InRuns,
}

/// By what a file counts as complete that nobody has told to be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Completeness {
    /// It was at rest for as long as the job says.
    #[default]
    Rest,
    /// It has its name: it was uploaded to the own SFTP server, which gives names to what is complete only.
    Uploaded,
}

/// A job that delivers what appears at its source: in directories that it watches, or at a place that it
/// looks at in runs.
#[derive(Debug, Clone)]
pub struct WatchJob {
    /// Its name.
    pub name: String,
    /// When it looks.
    pub looks: Looks,
    /// The watched directories.
    pub sources: Vec<PathBuf>,
    /// The names of the endpoints that it uses, as the configuration has them: if one of them is paused, it
    /// waits.
    pub endpoints: Vec<String>,
    /// Which files are meant. For a job that looks in runs, as of the run.
    pub filter: Arc<Filter>,
    /// Which files are meant by a run, where that depends on when it begins.
    pub matching: Option<Arc<Matching>>,
    /// Which of them a run takes.
    pub choice: Choice,
    /// What has to hold for a run to begin.
    pub conditions: Arc<Conditions>,
    /// What is asked of each file's content.
    pub checks: Arc<FileChecks>,
    /// What whoever asks for a run may say.
    pub parameters: Arc<Parameters>,
    /// How whoever the files come from is told of their delivery.
    pub acknowledge: Option<Arc<Acknowledge>>,
    /// How long a file has to be at rest where nothing better says that it is complete.
    pub settle: Duration,
    /// What else says that it is complete, where it need not be at rest.
    pub complete: Completeness,
    /// What becomes of a file whose content was delivered before; nothing: it is delivered.
    pub duplicates: Option<Duplicates>,
    /// What is done to a file on the way.
    pub steps: Steps,
    /// Where to.
    pub destination: Arc<dyn Remote>,
    /// The path below it.
    pub template: Template,
    /// The zone in which the template writes dates.
    pub time_zone: TimeZone,
    /// When what a run delivers becomes visible.
    pub publish: Publish,
    /// The files that list what is taken, if there are any: then nothing else is.
    pub manifest: Option<ManifestSpec>,
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
    /// How often the destination is compared with what was delivered; nothing for never.
    pub verify_destination: Option<Duration>,
    /// How many files at once; nothing for what suits the destination.
    pub transfers: Option<usize>,
    /// Turns at the endpoints that limit how many files all jobs have on their way; in the order of the
    /// endpoints' names.
    pub turns: Vec<Turns>,
    /// Which jobs go first.
    pub priority: Priority,
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

    /// Whether a path is meant, given that the directory it is in is.
    pub(crate) fn takes_path(&self, path: &RelPath, kind: Kind) -> bool {
        self.aside().as_ref() != Some(path) && self.filter.takes_path(path, kind)
    }

    /// Whether a path is meant, with all that it lies in.
    pub(crate) fn takes_path_from_root(&self, path: &RelPath, kind: Kind) -> bool {
        let is_aside = self
            .aside()
            .is_some_and(|aside| *path == aside || path.is_below(&aside));
        !is_aside && self.filter.takes_path_from_root(path, kind)
    }

    /// The expression whose groups can stand in the destination, and the path that matched it.
    pub(crate) fn matched<'a>(&'a self, entry: &'a Entry) -> Option<(&'a Pattern, &'a RelPath)> {
        let pattern = self.filter.pattern.as_ref()?;
        Some((pattern, &entry.path))
    }

    /// Where sources are moved when they were delivered: nothing there is delivered again.
    fn aside(&self) -> Option<RelPath> {
        match &self.after {
            After::Move(directory) => RelPath::new(directory.trim_matches('/').as_bytes()).ok(),
            After::Keep | After::Delete | After::Rename(_) => None,
        }
    }
}
