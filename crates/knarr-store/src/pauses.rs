//! Endpoints that a person paused: jobs that use them wait.

use knarr_core::Timestamp;

use crate::codec::Malformed;
use crate::error::StoreError;
use crate::read::Reader;
use crate::transaction::Tx;

/// What the names begin with under which pauses are kept. Behind it stands the name of the endpoint.
const PREFIX: &str = "endpoint_pause.";

/// A pause of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Kept {
    version: u32,
    since: i64,
    by: String,
}

/// An endpoint that is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PausedEndpoint {
    /// Its name in the configuration.
    pub name: String,
    /// Since when.
    pub since: Timestamp,
    /// Who paused it.
    pub by: String,
}

impl std::fmt::Display for PausedEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, since, by } = self;
        write!(f, "the endpoint `{name}` was paused by {by} at {since}")
    }
}

impl Reader<'_> {
    /// All endpoints that are paused, by name.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn paused_endpoints(&self) -> Result<Vec<PausedEndpoint>, StoreError> {
        let kept = self.settings_below(PREFIX, "", usize::MAX)?;
        let pause = |(name, text): (String, String)| {
            let kept: Kept = serde_json::from_str(&text).map_err(|_error| {
                StoreError::damaged("the pause of an endpoint", Malformed::Text)
            })?;
            Ok(PausedEndpoint {
                name,
                since: Timestamp::from_nanoseconds(kept.since),
                by: kept.by,
            })
        };
        kept.into_iter().map(pause).collect()
    }
}

impl Tx<'_> {
    /// Pauses an endpoint: jobs that use it wait. Says whether it was not paused before.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn pause_endpoint(&mut self, name: &str, by: &str) -> Result<bool, StoreError> {
        let key = format!("{PREFIX}{name}");
        if self.setting(&key)?.is_some() {
            return Ok(false);
        }
        let kept = Kept {
            version: 1,
            since: self.now().nanoseconds(),
            by: by.to_owned(),
        };
        let text = serde_json::to_string(&kept).expect("a number and a text are always JSON");
        self.set_setting(&key, &text)?;
        Ok(true)
    }

    /// Ends the pause of an endpoint. Says whether there was one.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn resume_endpoint(&mut self, name: &str) -> Result<bool, StoreError> {
        let key = format!("{PREFIX}{name}");
        let was = self.setting(&key)?.is_some();
        if was {
            self.remove_setting(&key)?;
        }
        Ok(was)
    }
}
