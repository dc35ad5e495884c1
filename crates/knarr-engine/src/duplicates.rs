//! Contents that a job has delivered before, under whatever name.
//!
//! What was delivered is kept by its length and hash, in the transaction of the record of its delivery. A
//! file is read before it is delivered only if something of its length was: nothing else can be the same. Of
//! files of one length that come at once, the first is delivered and recorded before the next is looked at;
//! from then on, each waits for those with its own hash only.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use knarr_core::entry::Fingerprint;
use knarr_core::record::Action;
use knarr_core::tree::Synced;
use knarr_core::{ContentHash, Entry, Kind, RelPath, Timestamp};
use knarr_remote::{ReadOptions, Remote, RemoteError};
use knarr_store::dirty::Dirty;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::context::{Context, Tally};
use crate::error::EngineError;
use crate::journal::notes::{Kept, Note};
use crate::journal::{Change, Journal};
use crate::node::{Delivering, Outcome};
use crate::observer::Event;
use crate::put::{self, PutError};
use crate::transfer::TransferError;

/// How often contents are looked through for those that are too old.
const EVERY: Duration = Duration::from_secs(24 * 3_600);
/// How many are looked through at once.
const PAGE: usize = 500;

/// What becomes of a file whose content was delivered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duplicates {
    /// What is done with it.
    pub then: OnDuplicate,
    /// How long a content is remembered after its delivery.
    pub within: Duration,
}

/// What is done with a file whose content was delivered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDuplicate {
    /// It counts as delivered: its source is taken care of, and nothing is moved.
    Skip,
    /// It is parked until a person acts.
    Park,
}

/// A content that was delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// Under which name it came.
    path: RelPath,
    /// As it was at the source.
    source: Fingerprint,
    /// Where it went.
    delivered_as: RelPath,
    /// As it was there.
    destination: Fingerprint,
    at: Timestamp,
    run: u64,
}

impl Known {
    /// Whether it is this very version of this very file, which is delivered again for some reason.
    fn is(&self, entry: &Entry) -> bool {
        self.path == entry.path
            && self.source.still_describes(entry)
            && self.source.identity == entry.identity
    }

    fn reason(&self) -> String {
        let at = self.at.to_calendar();
        format!(
            "its content is that of \"{}\", which was delivered in run {} ({at:.0})",
            self.path, self.run
        )
    }
}

/// Contents that are on their way: by length, or by hash.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    claimed: Mutex<BTreeSet<String>>,
    freed: Notify,
}

/// As long as it lives, nobody else delivers the same.
#[derive(Debug)]
pub(crate) struct Claim<'c> {
    contents: &'c Contents,
    key: String,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let claimed = self.contents.claimed.lock();
        claimed
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
        self.contents.freed.notify_waiters();
    }
}

impl Contents {
    async fn claim(&self, key: String) -> Claim<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From now on it is told.
            freed.as_mut().enable();
            let is_new = {
                let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
                claimed.insert(key.clone())
            };
            if is_new {
                let contents = self;
                return Claim { contents, key };
            }
            freed.await;
        }
    }
}

/// What is known about the content of a file that is about to be delivered.
pub(crate) enum Checked<'c> {
    /// It may go, and nothing like it does meanwhile.
    New(Option<Claim<'c>>),
    /// It was delivered before.
    Duplicate(Box<Known>, ContentHash),
}

fn key_of(size: u64, hash: ContentHash) -> String {
    format!("{size:020}.{hash}")
}

/// Whether anything of this length was delivered.
async fn has_length(journal: &Journal, size: u64) -> Result<bool, EngineError> {
    let after = format!("{size:020}.");
    let next = journal.kept(Kept::Content, &after, 1).await?;
    Ok(next.iter().any(|(key, _)| key.starts_with(&after)))
}

/// The delivery of the same content, if it was another one than that of this very version.
async fn known(
    journal: &Journal,
    how: Duplicates,
    entry: &Entry,
    hash: ContentHash,
    now: Timestamp,
) -> Result<Option<Known>, EngineError> {
    let text = journal
        .kept_under(Kept::Content, &key_of(entry.size, hash))
        .await?;
    let known = text.and_then(|text| serde_json::from_str::<Known>(&text).ok());
    Ok(known.filter(|known| !known.is(entry) && now.since(known.at) < how.within))
}

/// Whether the content of a file can be a duplicate at all. What is empty says nothing.
fn is_asked(how: Option<Duplicates>, entry: &Entry) -> Option<Duplicates> {
    how.filter(|_| entry.kind == Kind::File && entry.size > 0)
}

/// Why a run would not deliver a file, if its content was delivered before. Reads the file if it has to.
///
/// # Errors
/// If the state cannot be read. What cannot be read at the source is not known to be a duplicate.
pub(crate) async fn preview(
    journal: &Journal,
    source: &dyn Remote,
    how: Option<Duplicates>,
    entry: &Entry,
    now: Timestamp,
) -> Result<Option<String>, EngineError> {
    let Some(how) = is_asked(how, entry) else {
        return Ok(None);
    };
    if !has_length(journal, entry.size).await? {
        return Ok(None);
    }
    let Ok(hash) = hash_of(source, entry).await else {
        return Ok(None);
    };
    let known = known(journal, how, entry, hash, now).await?;
    Ok(known.map(|known| known.reason()))
}

async fn hash_of(source: &dyn Remote, entry: &Entry) -> Result<ContentHash, RemoteError> {
    let options = ReadOptions {
        offset: 0,
        expected: Some(entry.fingerprint()),
    };
    let mut reader = source.read(&entry.path, options).await?;
    let mut hasher = blake3::Hasher::new();
    while let Some(chunk) = reader.next().await? {
        hasher.update(&chunk);
    }
    Ok(hasher.finalize().into())
}

impl Delivering {
    /// Whether the content of a file was delivered before. What is new is claimed until its delivery is on
    /// record.
    pub(crate) async fn check_content(&self, entry: &Entry) -> Result<Checked<'_>, PutError> {
        let Some(how) = is_asked(self.job.duplicates, entry) else {
            return Ok(Checked::New(None));
        };
        let context = &self.context;
        let length = self.claim(entry.size.to_string()).await?;
        let has_length = has_length(&context.journal, entry.size).await;
        if !has_length.map_err(PutError::Engine)? {
            return Ok(Checked::New(Some(length)));
        }
        drop(length);
        let hash = self.hash(entry).await?;
        let same = self.claim(key_of(entry.size, hash)).await?;
        let now = context.clock.now();
        let known = known(&context.journal, how, entry, hash, now).await;
        Ok(match known.map_err(PutError::Engine)? {
            Some(known) => Checked::Duplicate(Box::new(known), hash),
            None => Checked::New(Some(same)),
        })
    }

    async fn claim(&self, key: String) -> Result<Claim<'_>, PutError> {
        tokio::select! {
            () = self.context.cancel.cancelled() => {
                Err(PutError::Transfer(TransferError::Cancelled))
            }
            claim = self.context.contents.claim(key) => Ok(claim),
        }
    }

    async fn hash(&self, entry: &Entry) -> Result<ContentHash, PutError> {
        let Ok(_slot) = self.context.slots.acquire().await else {
            return Err(PutError::Transfer(TransferError::Cancelled));
        };
        let source = self.context.source.as_ref();
        let hash = put::hash_content(&self.context, source, entry).await;
        hash.map_err(|error| PutError::Transfer(TransferError::Source(error)))
    }

    /// What is kept of a delivery, in the transaction of its record.
    pub(crate) async fn remember_content(
        &self,
        entry: &Entry,
        there: &Entry,
        hash: Option<ContentHash>,
    ) -> Result<Option<Change>, PutError> {
        if is_asked(self.job.duplicates, entry).is_none() {
            return Ok(None);
        }
        let hash = match hash {
            Some(hash) => hash,
            None => self.hash(entry).await?,
        };
        let known = Known {
            path: entry.path.clone(),
            source: entry.fingerprint(),
            delivered_as: there.path.clone(),
            destination: there.fingerprint(),
            at: self.context.clock.now(),
            run: self.context.journal.run(),
        };
        let text = serde_json::to_string(&known).unwrap_or_default();
        let key = key_of(entry.size, hash);
        Ok(Some(Change::note(Note::Keep(Kept::Content, key, text))))
    }

    /// Records that a file was not delivered, as its content was before, and takes care of its source.
    pub(crate) async fn skip_duplicate(
        &self,
        dirty: &Dirty,
        entry: &Entry,
        known: Known,
        hash: ContentHash,
    ) -> Result<Outcome, PutError> {
        let reason = known.reason();
        let then = self.job.duplicates.map(|how| how.then);
        if then == Some(OnDuplicate::Park) {
            return Ok(Outcome::Park(format!(
                "{reason}; `duplicates` says to park it"
            )));
        }
        let mut record = self.custody(Action::Skipped, entry, dirty);
        record.source_hash = Some(hash);
        record.destination = self.shown(&known.delivered_as);
        record.message = Some(reason);
        let is_elsewhere = known.delivered_as != entry.path;
        let synced = Synced {
            path: entry.path.clone(),
            source: entry.fingerprint(),
            destination: known.destination,
            destination_path: is_elsewhere.then_some(known.delivered_as),
            hash: Some(hash),
        };
        let changes = vec![
            Change::Synced(Box::new(synced)),
            Change::Custody(Box::new(record)),
        ];
        let outcome = self.settle(dirty, changes).await?;
        Tally::add(&self.context.tally.skipped, 1);
        let (path, action) = (&dirty.path, Action::Skipped);
        self.context.observer.event(&Event::Finished {
            path,
            action,
            bytes: 0,
        });
        if self.context.removes_source() {
            let disposed = crate::dispose::dispose(&self.context, entry).await;
            disposed.map_err(PutError::Engine)?;
        }
        Ok(outcome)
    }
}

/// Forgets contents that were delivered too long ago, once a day.
///
/// # Errors
/// If the state cannot be read or written.
pub(crate) async fn forget_old(
    context: &Context,
    how: Option<Duplicates>,
) -> Result<(), EngineError> {
    let Some(how) = how else {
        return Ok(());
    };
    let (journal, now) = (&context.journal, context.clock.now());
    let last = journal.last_forgotten().await?;
    if last.is_some_and(|last| last <= now && now.since(last) < EVERY) {
        return Ok(());
    }
    let mut after = String::new();
    while !context.cancel.is_cancelled() {
        let page = journal.kept(Kept::Content, &after, PAGE).await?;
        let Some((last, _)) = page.last() else {
            break;
        };
        after.clone_from(last);
        let is_old = |text: &str| {
            let known = serde_json::from_str::<Known>(text);
            known.map_or(true, |known| now.since(known.at) >= how.within)
        };
        let old = page.into_iter().filter(|(_, text)| is_old(text));
        let changes = old.map(|(key, _)| Change::note(Note::Drop(Kept::Content, key)));
        journal.record(changes.collect()).await?;
    }
    journal.set_last_forgotten(now).await
}
