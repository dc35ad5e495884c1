//! Files that tell whoever a file came from that it was delivered.
//!
//! An acknowledgement is *owed* from the transaction that records the delivery on (K3, K11): then its name
//! and content are fixed. It is written afterwards, by one at a time, and the debt goes in the transaction
//! that records it as written. So it never comes before the delivery is durable; a process that dies in
//! between leaves the debt, which the next run pays first, with the same file; and there is one record of it
//! for each version. What becomes of the source does not wait for it, nor it for that.
//!
//! At most [`PAGE`] debts are in memory, whatever the number of files.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::tz::TimeZone;
use knarr_core::parameters::Values;
use knarr_core::phrase::{About, Acknowledgement, Phrase, PhraseError, PhraseInput, Subject};
use knarr_core::plan::Side;
use knarr_core::record::{Action, CustodyRecord};
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_remote::{
    Committed, ErrorKind, NewNode, Remote, RemoteError, Replace, Retry, WriteOptions,
};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::Change;
use crate::journal::notes::{Kept, Note};
use crate::observer::Trouble;

/// How many debts are read at once.
const PAGE: usize = 64;
/// How many files are written at once.
const AT_ONCE: usize = 8;
/// How often a watch tries again what could not be written.
const AGAIN: Duration = Duration::from_secs(30);

/// How deliveries are acknowledged.
#[derive(Debug, Clone)]
pub struct Acknowledge {
    /// Where to; the source, if it is nothing.
    pub at: Option<Arc<dyn Remote>>,
    /// The path of the file there.
    pub file: Phrase,
    /// What it holds.
    pub content: Phrase,
    /// Whether each file has one, or each run that delivered something.
    pub per: About,
    /// The zone of its dates.
    pub time_zone: TimeZone,
}

/// The acknowledgements of a job.
#[derive(Debug, Default)]
pub(crate) struct Acknowledging {
    how: Option<Arc<Acknowledge>>,
    /// Rung when something is owed.
    owed: Notify,
    /// Held by whoever writes.
    turn: Mutex<()>,
}

/// Who is told of what could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Telling {
    Nobody,
    Everybody,
}

/// How a round ended.
#[derive(Debug, Default)]
struct Round {
    failed: u64,
}

impl Acknowledging {
    pub(crate) fn new(how: Option<&Arc<Acknowledge>>) -> Self {
        Self {
            how: how.map(Arc::clone),
            ..Self::default()
        }
    }

    /// What is owed once the delivery of `entry` is on record. Belongs into the transaction of that record.
    ///
    /// # Errors
    /// If what its name is made of gives no path.
    pub(crate) fn owe(
        &self,
        context: &Context,
        entry: &Entry,
        sha256: Option<&str>,
    ) -> Result<Option<Change>, PhraseError> {
        let Some(how) = self
            .how
            .as_ref()
            .filter(|_| entry.kind == knarr_core::Kind::File)
        else {
            return Ok(None);
        };
        if how.per == About::Run {
            return Ok(Some(Change::note(Note::Count { bytes: entry.size })));
        }
        let subject = Subject::File {
            path: &entry.path,
            size: entry.size,
            mtime: entry.mtime,
            sha256,
        };
        let owed = how.filled(context, subject)?;
        Ok(Some(owe(context, &owed)))
    }

    /// Has what is owed written soon.
    pub(crate) fn hurry(&self) {
        self.owed.notify_one();
    }
}

impl Acknowledge {
    /// The same, with the values of a run's parameters.
    pub(crate) fn bound(&self, values: &Values) -> Self {
        Self {
            content: self.content.bound(values),
            ..self.clone()
        }
    }

    fn filled(
        &self,
        context: &Context,
        subject: Subject<'_>,
    ) -> Result<Acknowledgement, PhraseError> {
        let input = PhraseInput {
            subject,
            now: context.clock.now(),
            time_zone: &self.time_zone,
            run: context.journal.run(),
            job: context.journal.job(),
        };
        let (about, size) = match subject {
            Subject::File { path, size, .. } => (Some(path.clone()), size),
            Subject::Run { bytes, .. } => (None, bytes),
        };
        Ok(Acknowledgement {
            about,
            size,
            name: self.file.fill_path(&input)?,
            content: self.content.fill(&input),
        })
    }

    fn place<'a>(&'a self, context: &'a Context) -> &'a Arc<dyn Remote> {
        self.at.as_ref().unwrap_or(&context.source)
    }

    /// Where a file lies, as a person writes it.
    fn shown(&self, context: &Context, name: &RelPath) -> String {
        match &self.at {
            None => context.journal.shown_at(Side::Source, name),
            Some(remote) => {
                let base = remote.describe().location.trim_end_matches('/');
                format!("{base}/{name}")
            }
        }
    }
}

fn owe(context: &Context, owed: &Acknowledgement) -> Change {
    // In the order in which they are owed: a file that is there twice tells of the later version.
    let at = context.clock.now().nanoseconds().max(0);
    let key = format!("{at:020}.{}", owed.digest());
    let text = serde_json::to_string(owed).unwrap_or_default();
    Change::note(Note::Keep(Kept::Acknowledgement, key, text))
}

/// Writes what is owed from earlier, and what becomes owed, until `until` is cancelled.
///
/// # Errors
/// If the state cannot be read or written.
pub(crate) async fn keep_up(
    context: Arc<Context>,
    until: &CancellationToken,
    telling: Telling,
) -> Result<(), EngineError> {
    if context.acknowledging.how.is_none() {
        until.cancelled().await;
        return Ok(());
    }
    let mut told = false;
    loop {
        // Once is enough, as long as it goes on.
        let telling = if told { Telling::Nobody } else { telling };
        told = round(&context, telling).await?.failed > 0;
        tokio::select! {
            () = until.cancelled() => return Ok(()),
            () = context.acknowledging.owed.notified() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Writes what a run owes at its end, and counts what could not be written as failed.
///
/// # Errors
/// If the state cannot be read or written.
pub(crate) async fn finish_run(context: &Context) -> Result<(), EngineError> {
    let Some(how) = &context.acknowledging.how else {
        return Ok(());
    };
    if how.per == About::Run {
        conclude(context, how).await?;
    }
    let round = round(context, Telling::Everybody).await?;
    Tally::add(&context.tally.failed, round.failed);
    Ok(())
}

/// What runs delivered since the last acknowledgement becomes one.
async fn conclude(context: &Context, how: &Acknowledge) -> Result<(), EngineError> {
    let Some((files, bytes)) = context.journal.uncounted().await? else {
        return Ok(());
    };
    let failed = context
        .tally
        .failed
        .load(std::sync::atomic::Ordering::Relaxed);
    let subject = Subject::Run {
        files,
        bytes,
        failed,
    };
    match how.filled(context, subject) {
        Ok(owed) => {
            let changes = vec![owe(context, &owed), Change::note(Note::Counted)];
            context.journal.record(changes).await
        }
        Err(error) => {
            let message = format!(
                "the run cannot be acknowledged: {}",
                crate::error::chain(&error)
            );
            Tally::add(&context.tally.failed, 1);
            context.trouble(None, Trouble::Error, &message);
            Ok(())
        }
    }
}

/// Writes all that is owed, each once.
async fn round(context: &Context, telling: Telling) -> Result<Round, EngineError> {
    let mut round = Round::default();
    let Some(how) = &context.acknowledging.how else {
        return Ok(round);
    };
    let _turn = context.acknowledging.turn.lock().await;
    let (mut after, mut stuck) = (String::new(), BTreeSet::new());
    while !context.cancel.is_cancelled() && stuck.len() < PAGE {
        let page = context
            .journal
            .kept(Kept::Acknowledgement, &after, PAGE)
            .await?;
        // Those of one name one after the other, and none before an older one that is still owed.
        let (mut batch, mut names) = (Vec::new(), BTreeSet::new());
        for (key, text) in page {
            let Ok(owed) = serde_json::from_str::<Acknowledgement>(&text) else {
                context.journal.record(vec![paid(key.clone())]).await?;
                tracing::error!(key, "an acknowledgement in the state cannot be read");
                after = key;
                continue;
            };
            if names.contains(&owed.name) {
                break;
            }
            after.clone_from(&key);
            if !stuck.contains(&owed.name) {
                names.insert(owed.name.clone());
                batch.push((key, owed));
            }
        }
        if batch.is_empty() {
            if context
                .journal
                .kept(Kept::Acknowledgement, &after, 1)
                .await?
                .is_empty()
            {
                break;
            }
            continue;
        }
        let writing = batch.into_iter().map(|(key, owed)| async move {
            let written = write(context, how, &owed).await;
            (key, owed, written)
        });
        let mut writing = futures::stream::iter(writing).buffer_unordered(AT_ONCE);
        let (mut changes, mut is_down) = (Vec::new(), false);
        while let Some((key, owed, written)) = writing.next().await {
            match written {
                Ok(committed) => {
                    changes.push(paid(key));
                    let record = record(context, how, &owed, committed);
                    changes.push(Change::Custody(Box::new(record)));
                }
                Err(error) if error.kind == ErrorKind::Cancelled => {}
                Err(error) => {
                    round.failed += 1;
                    is_down |= error.retry == Retry::EndpointDown;
                    tell(context, how, &owed, &error, telling);
                    stuck.insert(owed.name);
                }
            }
        }
        drop(writing);
        context.journal.record(changes).await?;
        if is_down {
            break;
        }
    }
    Ok(round)
}

fn paid(key: String) -> Change {
    Change::note(Note::Drop(Kept::Acknowledgement, key))
}

async fn write(
    context: &Context,
    how: &Acknowledge,
    owed: &Acknowledgement,
) -> Result<Committed, RemoteError> {
    let size = owed.content.len() as u64;
    let options = WriteOptions {
        // Its name is the job's own: what is there is an earlier one.
        replace: Replace::Anything,
        verify: context.verify,
        ..WriteOptions::new(
            NewNode::File { size: Some(size) },
            context.journal.staged_id(&owed.name),
        )
    };
    let mut upload = how.place(context).write(&owed.name, options).await?;
    if !owed.content.is_empty()
        && let Err(error) = upload.write(owed.content.clone().into()).await
    {
        upload.abort().await;
        return Err(error);
    }
    let staged = upload.stage(size, ContentHash::of(&owed.content)).await?;
    context.commits.commit(staged).await
}

fn record(
    context: &Context,
    how: &Acknowledge,
    owed: &Acknowledgement,
    committed: Committed,
) -> CustodyRecord {
    let path = owed.about.clone().unwrap_or_else(|| owed.name.clone());
    let entry = Entry::file(path, owed.size);
    let mut record = context
        .journal
        .custody(Action::Acknowledged, &entry, Side::Destination);
    if owed.about.is_none() {
        context
            .journal
            .shown_root(Side::Source)
            .clone_into(&mut record.source);
        record.message = Some("the run".to_owned());
    }
    record.destination = how.shown(context, &owed.name);
    record.evidence = committed.evidence;
    record.moved_bytes = owed.content.len() as u64;
    record
}

fn tell(
    context: &Context,
    how: &Acknowledge,
    owed: &Acknowledgement,
    error: &RemoteError,
    telling: Telling,
) {
    let message = format!(
        "delivered, but the acknowledgement {} could not be written, which is tried again: {}",
        how.shown(context, &owed.name),
        crate::error::chain(error)
    );
    tracing::debug!(message);
    if telling == Telling::Everybody {
        context.tally.note_error(error);
        context.trouble(owed.about.as_ref(), Trouble::Error, &message);
    }
}
