//! The steps of a job, with the keys they need and the place where they put what has to wait.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use knarr_core::Timestamp;
use knarr_steps::{Context, Keys, Recipe, StepError, StepSpec};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How many archives of a job lie unpacked in the spool at once.
const UNPACKED_AT_ONCE: usize = 2;

/// For how long keys that were found valid count as that.
const KEYS_FRESH: Duration = Duration::from_secs(60);

/// The steps of a job, ready to be used. Cheap to clone.
#[derive(Clone)]
pub struct Steps {
    specs: Arc<[StepSpec]>,
    keys: Keys,
    spool: PathBuf,
    made: Arc<Mutex<Option<(Timestamp, Recipe)>>>,
    /// Held while what came out of an archive waits in the spool.
    unpacking: Arc<Semaphore>,
}

/// No steps.
impl Default for Steps {
    fn default() -> Self {
        Self::new(Vec::new(), Keys::new(), PathBuf::new())
    }
}

impl Steps {
    /// Steps that get these keys. In the directory `spool`, which is made when it is needed, unnamed
    /// files wait: archives for their directory, and what came out of one until its last byte was verified.
    #[must_use]
    pub fn new(specs: Vec<StepSpec>, keys: Keys, spool: PathBuf) -> Self {
        Self {
            specs: specs.into(),
            keys,
            spool,
            made: Arc::default(),
            unpacking: Arc::new(Semaphore::new(UNPACKED_AT_ONCE)),
        }
    }

    /// Whether the content stays as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// As the configuration writes them.
    #[must_use]
    pub fn specs(&self) -> &[StepSpec] {
        &self.specs
    }

    /// Whether one file may become any number of files.
    pub(crate) fn unpacks(&self) -> bool {
        let extracts = |step: &StepSpec| matches!(step, StepSpec::Extract(_));
        self.specs.iter().any(extracts)
    }

    /// The steps with their keys unlocked, and found valid within the last minute.
    ///
    /// # Errors
    /// If a key is missing, cannot be unlocked, is expired or is not fit for its step.
    pub fn recipe(&self, now: Timestamp) -> Result<Recipe, StepError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, recipe)) = made.as_ref()
            && *at <= now
            && now.since(*at) < KEYS_FRESH
        {
            return Ok(recipe.clone());
        }
        let directory = self.spool.clone();
        let spool = move || unnamed_file(&directory);
        let context = Context::new(now, Arc::new(spool)).with_keys(self.keys.clone());
        let recipe = Recipe::new(&self.specs, &context)?;
        *made = Some((now, recipe.clone()));
        Ok(recipe)
    }

    /// Waits for room in the spool: as long as the permit is held, it holds what came out of an archive.
    /// Nothing if the job ends.
    pub(crate) async fn unpacking(&self) -> Option<SemaphorePermit<'_>> {
        self.unpacking.acquire().await.ok()
    }

    /// A file without a name, which is gone when it is closed.
    pub(crate) fn unnamed_file(&self) -> std::io::Result<File> {
        unnamed_file(&self.spool)
    }
}

fn unnamed_file(directory: &PathBuf) -> std::io::Result<File> {
    std::fs::create_dir_all(directory)?;
    tempfile::tempfile_in(directory)
}

/// Without the keys.
impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.specs.iter().map(StepSpec::name);
        f.debug_list().entries(names).finish()
    }
}
