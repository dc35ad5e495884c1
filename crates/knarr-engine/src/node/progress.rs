//! What is in flight, for `knarr queue`: gathered from the events, written at most once a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use knarr_core::{Clock, RelPath, Timestamp};
use knarr_store::in_flight::InFlight;
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;
use crate::journal::Journal;
use crate::observer::{Event, Observer};

/// How often the table is written.
const PERIOD: Duration = Duration::from_secs(1);
/// What is quicker than this is never written.
const WORTH_SHOWING: Duration = Duration::from_millis(500);
/// How many files are written at most.
const FILES: usize = 256;

/// An observer that keeps account of what is in flight, and hands everything on.
#[derive(Debug)]
pub(crate) struct Progress {
    inner: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
    flights: Mutex<BTreeMap<RelPath, Flight>>,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    done_bytes: u64,
    total_bytes: u64,
    started_at: Timestamp,
}

impl Progress {
    pub(crate) fn new(inner: Arc<dyn Observer>, clock: Arc<dyn Clock>) -> Self {
        Self {
            inner,
            clock,
            flights: Mutex::default(),
        }
    }

    /// A path is not in flight any more, however that ended.
    pub(crate) fn ended(&self, path: &RelPath) {
        self.flights().remove(path);
    }

    fn flights(&self) -> MutexGuard<'_, BTreeMap<RelPath, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worth_showing(&self) -> Vec<InFlight> {
        let now = self.clock.now();
        let flights = self.flights();
        flights
            .iter()
            .filter(|(_, flight)| now.since(flight.started_at) >= WORTH_SHOWING)
            .take(FILES)
            .map(|(path, flight)| InFlight {
                path: path.clone(),
                done_bytes: flight.done_bytes,
                total_bytes: flight.total_bytes,
                started_at: flight.started_at,
            })
            .collect()
    }

    /// Writes the table until asked to stop.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub(crate) async fn write(
        &self,
        journal: &Journal,
        cancel: &CancellationToken,
    ) -> Result<(), EngineError> {
        let mut shown = Vec::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(PERIOD) => {}
            }
            let files = self.worth_showing();
            if files != shown {
                journal.set_in_flight(files.clone()).await?;
                shown = files;
            }
        }
    }
}

impl Observer for Progress {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Started { path, size } => {
                let (started_at, total_bytes) = (self.clock.now(), *size);
                let flight = Flight {
                    done_bytes: 0,
                    total_bytes,
                    started_at,
                };
                self.flights().insert((*path).clone(), flight);
            }
            Event::Progress {
                path: Some(path),
                bytes,
            } => {
                if let Some(flight) = self.flights().get_mut(path) {
                    flight.done_bytes += bytes;
                }
            }
            Event::Finished { path, .. } => self.ended(path),
            Event::Planned { .. }
            | Event::Progress { path: None, .. }
            | Event::Retry { .. }
            | Event::Trouble { .. } => {}
        }
        self.inner.event(event);
    }
}
