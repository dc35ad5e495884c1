//! What is on record as a stream that loses and repeats nothing over any number of connections.
//!
//! A cursor holds the number of the last record, the number of the last run whose beginning was told, and
//! the numbers of the runs whose beginning was told and whose end was not. So it says all that is needed,
//! and nothing has to be kept for anybody.

use std::time::Duration;

use knarr_core::run::RunState;
use knarr_store::history::HistoryFilter;
use knarr_store::runs::{RunFilter, RunId};
use knarr_store::{Reader, Store, StoreError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::convert::{file_record, run_of};
use crate::v1;
use crate::v1::log_event::What;

/// How often it is looked whether there is something new.
const LOOK: Duration = Duration::from_millis(250);
/// How many records are read at a time.
const PAGE: usize = 256;
/// How many runs may be open in a cursor: more than can be under way.
const OPEN_RUNS: usize = 4_096;

/// How far a reader came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    record: u64,
    run: u64,
    open: Vec<u64>,
}

impl Cursor {
    /// Reads what [`Cursor::text`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        let mut parts = text.split('-');
        let record = parts.next()?.parse().ok()?;
        let run = parts.next()?.parse().ok()?;
        let open = match parts.next()? {
            "" => Vec::new(),
            open => {
                let numbers = open.split(',').map(|number| number.parse().ok());
                numbers.collect::<Option<Vec<u64>>>()?
            }
        };
        let good = parts.next().is_none() && open.len() <= OPEN_RUNS;
        good.then_some(Self { record, run, open })
    }

    pub(crate) fn text(&self) -> String {
        let open: Vec<String> = self.open.iter().map(u64::to_string).collect();
        format!("{}-{}-{}", self.record, self.run, open.join(","))
    }

    /// Behind everything that is there.
    pub(crate) fn now(store: &Store) -> Result<Self, StoreError> {
        store.read(|reader| {
            let newest = reader.history(&HistoryFilter::default(), 1)?;
            let runs = reader.runs(&RunFilter::default(), 1)?;
            let running = RunFilter {
                state: Some(RunState::Running),
                ..RunFilter::default()
            };
            let open = reader.runs(&running, OPEN_RUNS)?;
            Ok(Self {
                record: newest.first().map_or(0, |record| record.seq),
                run: runs.first().map_or(0, |run| run.id.0),
                open: open.iter().rev().map(|run| run.id.0).collect(),
            })
        })
    }

    /// What follows, in one consistent look: runs that began, records, runs that ended. A run's end is
    /// told when all records of that look were, so it comes behind all its files.
    fn next(&mut self, reader: &Reader<'_>) -> Result<Vec<v1::LogEvent>, StoreError> {
        let mut events = Vec::new();
        for run in reader.runs_after(RunId(self.run), PAGE)? {
            self.run = run.id.0;
            self.open.push(run.id.0);
            events.push(self.event(What::Begun(run_of(run))));
        }
        if events.len() == PAGE {
            // There may be more, and a run's beginning comes before its files.
            return Ok(events);
        }
        let records = reader.records_after(self.record, PAGE)?;
        let is_last = records.len() < PAGE;
        for record in records {
            self.record = record.seq;
            // What retention writes is no news of a file.
            if record.record.decided_by == knarr_store::retention::DECIDED_BY {
                continue;
            }
            events.push(self.event(What::File(file_record(record))));
        }
        if is_last {
            for number in self.open.clone() {
                let run = reader.stored_run(RunId(number))?;
                if run
                    .as_ref()
                    .is_some_and(|run| run.state == RunState::Running)
                {
                    continue;
                }
                self.open.retain(|open| *open != number);
                if let Some(run) = run {
                    events.push(self.event(What::Ended(run_of(run))));
                }
            }
        }
        Ok(events)
    }

    fn event(&self, what: What) -> v1::LogEvent {
        v1::LogEvent {
            cursor: self.text(),
            what: Some(what),
        }
    }
}

/// Sends everything behind `cursor`; with `follow` until the reader goes or the node stops.
pub(crate) async fn follow(
    store: Store,
    mut cursor: Cursor,
    follow: bool,
    to: mpsc::Sender<Result<v1::LogEvent, Status>>,
    stop: CancellationToken,
) {
    let mut caught_up = false;
    loop {
        let mut looking = cursor.clone();
        let looked = store.read_async(move |reader| {
            let events = looking.next(reader)?;
            Ok((looking, events))
        });
        let events = match looked.await {
            Ok((after, events)) => {
                cursor = after;
                events
            }
            Err(error) => {
                // The reader has gone: then there is nobody to tell.
                let _gone: Result<(), _> = to.send(Err(Status::internal(error.to_string()))).await;
                return;
            }
        };
        let is_end = events.is_empty();
        for event in events {
            if to.send(Ok(event)).await.is_err() {
                return;
            }
        }
        if !is_end {
            continue;
        }
        if !std::mem::replace(&mut caught_up, true) {
            let event = cursor.event(What::CaughtUp(v1::CaughtUp {}));
            if to.send(Ok(event)).await.is_err() {
                return;
            }
        }
        if !follow {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = to.closed() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Everything behind a cursor, for a command that reads the state itself.
///
/// # Errors
/// If the cursor is none, or the state cannot be read.
pub fn page(store: &Store, cursor: &str) -> Result<Vec<v1::LogEvent>, crate::query::QueryError> {
    let mut cursor = match cursor {
        "now" => Cursor::now(store)?,
        text => Cursor::parse(text).ok_or_else(|| {
            crate::query::QueryError::Argument(format!("`{text}` is not a cursor"))
        })?,
    };
    let mut events = store.read(|reader| cursor.next(reader))?;
    if events.is_empty() {
        events.push(cursor.event(What::CaughtUp(v1::CaughtUp {})));
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::Cursor;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        for cursor in [
            Cursor::default(),
            Cursor {
                record: u64::MAX,
                run: 7,
                open: vec![3, 7],
            },
        ] {
            assert_eq!(Cursor::parse(&cursor.text()), Some(cursor));
        }
        assert_eq!(Cursor::parse(""), Some(Cursor::default()));
        for text in ["1", "1-2", "a-b-", "1-2-3,", "1-2-3-4", "-1-2-", "1-2-x"] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
