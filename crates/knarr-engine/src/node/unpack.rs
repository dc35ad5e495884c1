//! Delivers what comes out of an archive: first all of it is verified, then each file gets its place.
//!
//! If that is interrupted, some of the files are at the destination and the archive is not on record as
//! delivered: it is taken again, and what is there already is recognised by its content.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use knarr_core::record::{Action, CustodyRecord};
use knarr_core::{ContentHash, Entry, Kind};
use knarr_remote::Upload;

use crate::batch::Role;
use crate::context::Tally;
use crate::error::EngineError;
use crate::journal::Change;
use crate::node::deliver::Delivering;
use crate::node::place::Decided;
use crate::node::quarantine::{Content, Item, Quarantine, Verified, What};
use crate::node::room::{self, Landed, Look, Otherwise, Room};
use crate::node::write::{Delivered, is_taken};
use crate::put::PutError;
use crate::transfer::{self, Driven, TransferError};

/// How many files of an archive are on their way at once. Each may hold an open file until it is committed.
const WINDOW: usize = 256;
/// A file that is longer is written only after its name was looked at: a look costs less.
const SMALL_BYTES: u64 = 256 * 1024;
/// How many records share a transaction.
const RECORDS: usize = 500;
/// How much is read from the quarantine at once.
const CHUNK_BYTES: u64 = 256 * 1024;

/// What became of one file of an archive.
enum Placed {
    Landed(Box<Landed>),
    /// Something else has its name and stays.
    Left(Box<Entry>),
}

impl Delivering {
    /// Unpacks an archive and delivers all that is in it, or nothing. What came out is on record when this
    /// returns, but for the first file, with which the archive is recorded as delivered.
    pub(super) async fn unpack(
        &self,
        entry: &Entry,
        decided: &mut Decided,
        record: &CustodyRecord,
    ) -> Result<Delivered, PutError> {
        let Some(_room) = self.job.steps.unpacking().await else {
            return Err(PutError::Transfer(TransferError::Cancelled));
        };
        let (verified, driven) = self.verify_archive(entry, decided).await?;
        let verified = Arc::new(verified);
        self.refuse_early(entry, &verified, decided).await?;
        let mut recording = Recording {
            delivering: self,
            entry,
            record: CustodyRecord {
                source_hash: Some(driven.source_hash),
                steps: driven.steps.clone(),
                ..record.clone()
            },
            first: None,
            left: 0,
            changes: Vec::new(),
            sent: 0,
        };
        let placed = self
            .place_all(entry, &verified, decided, &mut recording)
            .await;
        // Also after an error: what has its name is on record.
        let (first, left, sent) = recording.finish(placed.is_err()).await?;
        placed?;
        if left > 0 {
            return Err(room::refused(format!(
                "{left} of its files are left, as others of their names are at the destination and if_exists says \
                 to leave those; the source stays"
            )));
        }
        let Some(main) = first else {
            return Err(room::refused(
                "nothing that could be delivered came out of it".to_owned(),
            ));
        };
        Ok(Delivered {
            main,
            others: Vec::new(),
            source_hash: Some(driven.source_hash),
            sent,
            steps: driven.steps,
        })
    }

    async fn place_all(
        &self,
        entry: &Entry,
        verified: &Arc<Verified>,
        decided: &Decided,
        recording: &mut Recording<'_>,
    ) -> Result<(), PutError> {
        let mut items = verified.items().map_err(quarantined)?;
        let mut under_way = FuturesUnordered::new();
        let mut failed = None;
        loop {
            while failed.is_none()
                && under_way.len() < WINDOW
                && let Some(item) = items.next()
            {
                let item = item.map_err(quarantined)?;
                under_way.push(self.place_item(entry, item, Arc::clone(verified), decided));
            }
            // After an error nothing is begun any more, and what is under way is waited for.
            match under_way.next().await {
                None => break,
                Some(Ok(Some((item, placed)))) => {
                    if let Err(error) = recording.add(&item, placed).await {
                        failed = failed.or(Some(error));
                    }
                }
                Some(Ok(None)) => {}
                Some(Err(error)) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Reads the archive to its end, into the quarantine.
    async fn verify_archive(
        &self,
        entry: &Entry,
        decided: &mut Decided,
    ) -> Result<(Verified, Driven), PutError> {
        let Ok(_slot) = self.context.slots.acquire().await else {
            return Err(PutError::Transfer(TransferError::Cancelled));
        };
        let steps = &self.job.steps;
        let recipe = steps.recipe(self.context.clock.now());
        let recipe = recipe.map_err(|error| PutError::Transfer(TransferError::Step(error)))?;
        let opened = std::mem::take(&mut decided.opened);
        let mut quarantine = Quarantine::open(steps).map_err(quarantined)?;
        let transfer = self.transfer(entry, None, opened);
        let mut inspection = self.inspection(entry).await?;
        let driven = transfer::drive(&transfer, &recipe, &mut inspection, &mut quarantine).await;
        let driven = driven.map_err(PutError::Transfer)?;
        decided.sha256 = inspection.take_sha256();
        let verified = tokio::task::spawn_blocking(move || quarantine.verified()).await;
        let verified = verified
            .map_err(|_panic| PutError::Engine(EngineError::Internal("a quarantine panicked")))?;
        Ok((verified.map_err(quarantined)?, driven))
    }

    /// One name that is no path is enough for nothing to be published; with `if_exists: fail`, one that is taken.
    async fn refuse_early(
        &self,
        entry: &Entry,
        verified: &Verified,
        decided: &Decided,
    ) -> Result<(), PutError> {
        for item in verified.items().map_err(quarantined)? {
            self.output_path(entry, &item.map_err(quarantined)?.head())?;
        }
        if self.job.if_exists != knarr_core::plan::IfExists::Fail {
            return Ok(());
        }
        let looks =
            futures::stream::iter(verified.items().map_err(quarantined)?).map(|item| async {
                let item = item.map_err(quarantined)?;
                let head = item.head();
                let room = self.room_after(Look::First, entry, &head, decided).await?;
                match (room, &item.what) {
                    (Room::Taken(there, Otherwise::Refuse(reason)), what) => {
                        if self.is_there(&there, what).await? {
                            Ok(())
                        } else {
                            Err(room::refused(reason))
                        }
                    }
                    _ => Ok(()),
                }
            });
        let mut looks = looks.buffer_unordered(WINDOW);
        while let Some(looked) = looks.next().await {
            looked?;
        }
        Ok(())
    }

    /// Brings one of them to its place.
    async fn place_item(
        &self,
        entry: &Entry,
        item: Item,
        verified: Arc<Verified>,
        decided: &Decided,
    ) -> Result<Option<(Item, Placed)>, PutError> {
        if item.what == What::Directory
            && !self.context.destination.describe().capabilities.directories
        {
            return Ok(None);
        }
        let hash = match &item.what {
            What::File(content) => Some(content.hash),
            What::Directory | What::Symlink { .. } => None,
        };
        let is_small = matches!(&item.what, What::File(content) if content.length <= SMALL_BYTES);
        for _ in 0..3 {
            if self.context.cancel.is_cancelled() {
                return Err(PutError::Transfer(TransferError::Cancelled));
            }
            // Where one name is taken, others will be.
            let look = if is_small && !decided.look && !verified.finds_taken.load(Ordering::Relaxed)
            {
                Look::IfTaken
            } else {
                Look::First
            };
            let head = item.head();
            let room = self.room_after(look, entry, &head, decided).await?;
            let (path, replace) = match room {
                Room::Free(path, replace) => (path, replace),
                Room::Taken(there, _) if self.is_there(&there, &item.what).await? => {
                    let landed = room::landed_before(*there, hash);
                    return Ok(Some((item, Placed::Landed(Box::new(landed)))));
                }
                Room::Taken(_, Otherwise::Write(path, replace)) => (path, replace),
                Room::Taken(there, Otherwise::Leave) => {
                    return Ok(Some((item, Placed::Left(there))));
                }
                Room::Taken(_, Otherwise::Refuse(reason)) => return Err(room::refused(reason)),
            };
            let Ok(slot) = self.context.slots.acquire().await else {
                return Err(PutError::Transfer(TransferError::Cancelled));
            };
            let action = room::action_of(&replace);
            let upload = self
                .open_output(entry, &item.head(), &path, replace)
                .await?;
            let staged = stage_item(upload, &item.what, &verified).await?;
            let slot = transfer::after_staging(slot, &staged);
            let landed = self.land(staged, hash, action).await;
            drop(slot);
            match landed {
                Ok(landed) => return Ok(Some((item, Placed::Landed(Box::new(landed))))),
                // What has the name is looked at.
                Err(PutError::Remote(error)) if is_taken(&error) => {
                    verified.finds_taken.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        Err(PutError::Transfer(TransferError::Changed))
    }

    /// Whether what is at the destination is what came out.
    async fn is_there(&self, there: &Entry, what: &What) -> Result<bool, PutError> {
        match what {
            What::File(content) => {
                let Ok(_slot) = self.context.slots.acquire().await else {
                    return Err(PutError::Transfer(TransferError::Cancelled));
                };
                self.holds(there, content.length, content.hash).await
            }
            What::Directory => Ok(there.kind == Kind::Directory),
            What::Symlink { target } => {
                Ok(there.kind == Kind::Symlink && there.link_target.as_deref() == Some(target))
            }
        }
    }
}

/// Records what was delivered, many in one transaction.
struct Recording<'a> {
    delivering: &'a Delivering,
    entry: &'a Entry,
    /// That of the archive; each file gets a copy.
    record: CustodyRecord,
    /// With it the archive is recorded as delivered: a file, if there is one.
    first: Option<Landed>,
    /// How many are left, as something else has their names.
    left: u64,
    changes: Vec<Change>,
    sent: u64,
}

impl Recording<'_> {
    async fn add(&mut self, item: &Item, placed: Placed) -> Result<(), PutError> {
        let landed = match placed {
            Placed::Landed(landed) => *landed,
            Placed::Left(there) => {
                self.left += 1;
                let left = Landed {
                    action: Action::Skipped,
                    ..room::landed_before(*there, None)
                };
                return self.note(left).await;
            }
        };
        if let (What::File(content), Action::Created | Action::Updated) =
            (&item.what, landed.action)
        {
            self.sent += content.length;
        }
        let is_file = |landed: &Landed| landed.committed.entry.kind == Kind::File;
        let Some(first) = self.first.take() else {
            self.first = Some(landed);
            return Ok(());
        };
        let (first, other) = match (is_file(&first), is_file(&landed)) {
            (false, true) => (landed, first),
            _ => (first, landed),
        };
        self.first = Some(first);
        self.note(other).await
    }

    async fn note(&mut self, landed: Landed) -> Result<(), PutError> {
        let change = match self.delivering.context.batches.get() {
            // Directories are there when they are made, and many archives may have the same ones.
            Some(batches)
                if landed.action != Action::Skipped
                    && landed.committed.entry.kind != Kind::Directory =>
            {
                let (entry, record) = (self.entry, &self.record);
                let staged = self.delivering;
                let staged =
                    staged.staged_change(batches, entry, record, landed, Role::Other, None);
                staged.await?
            }
            _ => {
                let record = self.delivering.output_record(&self.record, &landed);
                Change::Custody(Box::new(record))
            }
        };
        self.changes.push(change);
        if self.changes.len() >= RECORDS {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), PutError> {
        let changes = std::mem::take(&mut self.changes);
        let journal = &self.delivering.context.journal;
        journal.record(changes).await.map_err(PutError::Engine)
    }

    /// Records what is left to record; after an error the first one, too, as nothing follows.
    async fn finish(mut self, failed: bool) -> Result<(Option<Landed>, u64, u64), PutError> {
        if (failed || self.left > 0)
            && let Some(first) = self.first.take()
        {
            self.note(first).await?;
        }
        self.flush().await?;
        Tally::add(&self.delivering.context.tally.sent, self.sent);
        Ok((self.first, self.left, self.sent))
    }
}

async fn stage_item(
    mut upload: Box<dyn Upload>,
    what: &What,
    verified: &Verified,
) -> Result<knarr_remote::Staged, PutError> {
    let at_destination = |error| PutError::Transfer(TransferError::Destination(error));
    let (length, hash) = match what {
        What::File(Content {
            offset,
            length,
            hash,
        }) => {
            let mut done = 0;
            while done < *length {
                let wanted = CHUNK_BYTES.min(length - done);
                let mut chunk = vec![0; usize::try_from(wanted).unwrap_or_default()];
                // From the page cache, as a rule: it was written a moment ago.
                let read = verified.contents.read_exact_at(&mut chunk, offset + done);
                if let Err(error) = read {
                    upload.abort().await;
                    return Err(quarantined(error));
                }
                if let Err(error) = upload.write(Bytes::from(chunk)).await {
                    upload.abort().await;
                    return Err(at_destination(error));
                }
                done += wanted;
            }
            (*length, *hash)
        }
        What::Directory | What::Symlink { .. } => (0, ContentHash::of(b"")),
    };
    upload.stage(length, hash).await.map_err(at_destination)
}

fn quarantined(error: std::io::Error) -> PutError {
    PutError::Transfer(TransferError::Quarantine(error))
}
