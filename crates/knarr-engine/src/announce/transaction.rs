//! What is written in the transaction of a record, and what is counted once that is on the disk.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use knarr_core::alert::{Event, Subject, What};
use knarr_core::record::{Action, CustodyRecord};
use knarr_core::run::RunState;
use knarr_core::tree::Synced;
use knarr_core::{Kind, RelPath, Timestamp};
use knarr_store::events::{FileEvent, NewEvent};
use knarr_store::runs::RunId;
use knarr_store::{StoreError, Tx};

use crate::announce::{Announced, Announcer, Followed};
use crate::journal::Change;
use crate::node::Looks;
use crate::outbox::notifier::{Waiting, event_of};
use crate::outbox::{FileFacts, RunFacts};
use crate::report::Report;

/// What is told of one run. The default, for commands, tells nobody.
#[derive(Debug, Clone, Default)]
pub(crate) struct Announcing(Option<Arc<Bound>>);

#[derive(Debug)]
struct Bound {
    announcer: Announcer,
    job: String,
    run: RunId,
    destination_root: String,
    began: Instant,
    /// What the job says, as it was when the run began: a job that is changed or removed meanwhile has its
    /// files told as it promised. Nothing for what is no job.
    announced: Option<Announced>,
    /// What was seen of the run and is not written yet.
    seen: OnceLock<Waiting>,
}

impl Announcing {
    pub(super) fn new(announcer: Announcer, job: &str, run: RunId, root: &str) -> Self {
        let announced = announcer.announced(job);
        Self(Some(Arc::new(Bound {
            announcer,
            job: job.to_owned(),
            run,
            destination_root: root.to_owned(),
            began: Instant::now(),
            announced,
            seen: OnceLock::new(),
        })))
    }

    /// Writes what is to be told of the records among `changes`. Belongs into their transaction.
    pub(crate) fn record<'c>(
        &self,
        tx: &mut Tx<'_>,
        changes: impl Iterator<Item = &'c Change> + Clone,
    ) -> Result<(), StoreError> {
        let Some(bound) = &self.0 else {
            return Ok(());
        };
        let mut records = records(changes.clone()).peekable();
        if records.peek().is_none() {
            return Ok(());
        }
        if bound.announcer.followed() == Followed::Yes {
            // What led to these records comes before them.
            if let Some(seen) = bound.seen.get() {
                seen.write(tx, usize::MAX)?;
            }
            let events: Vec<NewEvent> = records
                .clone()
                .filter(|r| is_of_a_file(r))
                .map(event_of)
                .collect();
            tx.append_events(&events)?;
        }
        let Some(announced) = &bound.announced else {
            return Ok(());
        };
        if !announced.hooks.after_file.is_empty() {
            for record in records.clone().filter(|record| is_told(record.action)) {
                let synced = synced_of(changes.clone(), &record.path);
                if synced.is_some_and(|synced| synced.source.kind == Kind::Directory) {
                    continue;
                }
                let path = bound.destination_path(record, synced);
                let facts = FileFacts::of(record, &bound.destination_root, &path);
                for target in &announced.hooks.after_file {
                    tx.enqueue(&facts.message(&bound.job, bound.run, target))?;
                }
            }
        }
        bound.judge_records(tx, records, announced.looks)
    }

    /// Has what was seen of the run written no later than what became of it.
    pub(crate) fn follow(&self, seen: Waiting) {
        if let Some(bound) = &self.0 {
            // A run has one who watches it; the first counts.
            bound.seen.set(seen).ok();
        }
    }

    /// Counts the records among `changes`, which are on the disk, and has whoever waits look.
    pub(crate) fn recorded<'c>(&self, changes: impl Iterator<Item = &'c Change> + Clone) {
        let Some(bound) = &self.0 else {
            return;
        };
        let mut any = false;
        for record in records(changes) {
            any = true;
            bound.announcer.meters().record(&bound.job, record);
        }
        if any {
            bound.announcer.wake();
        }
    }

    /// Writes that paths wait to be handled that did not wait before.
    pub(crate) fn enqueued(
        &self,
        tx: &mut Tx<'_>,
        paths: &[(RelPath, u64)],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(bound) = self.0.as_ref().filter(|_| self.writes_events()) else {
            return Ok(());
        };
        let event = |(path, size): &(RelPath, u64)| NewEvent {
            at,
            what: FileEvent::Enqueued,
            job: bound.job.clone(),
            run: Some(bound.run),
            path: path.clone(),
            size: Some(*size),
        };
        let events: Vec<_> = paths.iter().map(event).collect();
        tx.append_events(&events)
    }

    /// Whether events of files are written.
    pub(crate) fn writes_events(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|bound| bound.announcer.followed() == Followed::Yes)
    }

    /// Writes what is to be told of the end of the run. Belongs into the transaction that ends it.
    pub(crate) fn run_ended(
        &self,
        tx: &mut Tx<'_>,
        report: &Report,
        state: RunState,
        message: Option<&str>,
    ) -> Result<(), StoreError> {
        let Some(bound) = &self.0 else {
            return Ok(());
        };
        let now = tx.now();
        let run = tx.stored_run(bound.run)?;
        let began_at = run.map_or(now, |run| run.started_at);
        if let Some(announced) = &bound.announced {
            let facts = RunFacts {
                outcome: outcome(state).to_owned(),
                files: report.created + report.updated + report.renamed,
                bytes: report.bytes,
                failed: report.failed + report.problems,
                began_at,
                at: now,
                message: message.map(str::to_owned),
            };
            for target in &announced.hooks.after_run {
                tx.enqueue(&facts.message(&bound.job, bound.run, target))?;
            }
        }
        let what = match state {
            RunState::Done => What::Succeeded,
            RunState::Partial => What::Failed(message.map_or_else(
                || format!("run {}: {} paths failed", report.run, report.failed),
                str::to_owned,
            )),
            RunState::Failed => What::Failed(format!(
                "run {}: {}",
                report.run,
                message.unwrap_or("it could not be carried out")
            )),
            // Held plans are judged by themselves; who stopped a run knows it.
            RunState::Held | RunState::Interrupted | RunState::Running | RunState::Skipped => {
                return Ok(());
            }
        };
        bound.judge(tx, vec![bound.happened(now, what)])
    }

    /// The run ended, and that is on the disk.
    pub(crate) fn run_has_ended(&self, state: RunState) {
        if let Some(bound) = &self.0 {
            let took = bound.began.elapsed();
            bound.announcer.meters().run(&bound.job, state, took);
            bound.announcer.wake();
        }
    }
}

impl Bound {
    /// What rules make of records: that something came, and, of a job without runs, that something failed.
    fn judge_records<'c>(
        &self,
        tx: &mut Tx<'_>,
        records: impl Iterator<Item = &'c CustodyRecord>,
        looks: Looks,
    ) -> Result<(), StoreError> {
        let listens = self.announcer.listens_to_arrivals(&self.job);
        let (mut arrived, mut events) = (None, Vec::new());
        for record in records {
            match record.action {
                action if is_told(action) => arrived = arrived.max(Some(record.at)),
                Action::Parked if looks == Looks::Always => {
                    let why = record.message.as_deref().unwrap_or("no reason is known");
                    let reason = format!("{}: {why}", record.path);
                    events.push(self.happened(record.at, What::Failed(reason)));
                }
                _ => {}
            }
        }
        if let Some(at) = arrived.filter(|_| listens) {
            events.push(self.happened(at, What::Arrived));
        }
        self.judge(tx, events)
    }

    fn judge(&self, tx: &mut Tx<'_>, events: Vec<Event>) -> Result<(), StoreError> {
        let alerting = self.announcer.alerting();
        if events.is_empty() || alerting.is_silent() {
            return Ok(());
        }
        alerting.judge(tx, &events).map(drop)
    }

    fn happened(&self, at: Timestamp, what: What) -> Event {
        let subject = Subject::job(&self.job);
        Event { at, what, subject }
    }

    /// Where a file lies below the destination's root. The record has it as a person reads it.
    fn destination_path(&self, record: &CustodyRecord, synced: Option<&Synced>) -> RelPath {
        let root = self.destination_root.trim_end_matches('/');
        let shown = record.destination.strip_prefix(root);
        let shown = shown.map(|shown| shown.trim_start_matches('/'));
        if let Some(synced) = synced {
            let at = synced.at_destination();
            if shown.is_none_or(|shown| shown == at.to_string()) {
                return at.clone();
            }
        }
        shown
            .and_then(|shown| RelPath::new(shown.as_bytes()).ok())
            .unwrap_or_else(|| record.path.clone())
    }
}

/// Whether the destination got something by it.
pub(super) const fn is_delivery(action: Action) -> bool {
    matches!(action, Action::Created | Action::Updated | Action::Renamed)
}

/// Whether hooks are told of it: that the job took a file, which is at the destination. What was found there
/// already may be what an earlier attempt delivered and could not record, and nobody was told of that.
const fn is_told(action: Action) -> bool {
    is_delivery(action) || matches!(action, Action::Adopted)
}

/// Whether it is about one path, and not about a plan.
const fn is_of_a_file(record: &CustodyRecord) -> bool {
    !matches!(
        record.action,
        Action::Held | Action::Approved | Action::Pruned | Action::Acknowledged
    )
}

const fn outcome(state: RunState) -> &'static str {
    match state {
        RunState::Done => "done",
        RunState::Partial => "partial",
        RunState::Failed => "failed",
        RunState::Held => "held",
        RunState::Interrupted => "cancelled",
        RunState::Running => "running",
        RunState::Skipped => "skipped",
    }
}

fn records<'c>(
    changes: impl Iterator<Item = &'c Change> + Clone,
) -> impl Iterator<Item = &'c CustodyRecord> + Clone {
    changes.filter_map(|change| match change {
        Change::Custody(record) => Some(&**record),
        _ => None,
    })
}

fn synced_of<'c>(
    mut changes: impl Iterator<Item = &'c Change>,
    path: &RelPath,
) -> Option<&'c Synced> {
    changes.find_map(|change| match change {
        Change::Synced(synced) if synced.path == *path => Some(&**synced),
        _ => None,
    })
}
