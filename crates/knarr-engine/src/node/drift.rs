//! Compares what the destination holds with what was delivered (`verify_destination`).
//!
//! Between these checks a job trusts its synced tree. What is missing at the destination or was changed
//! there, while the source still has what was delivered, is told, recorded and delivered again, as
//! `if_exists` says. Constraints: a listing only saves looks at single files, nothing is concluded from
//! it; a path that is dirty already is left to whoever works on it; at most [`DIFFERENCES`] differences
//! are held in memory. A destination that holds nothing of all that was delivered is taken for another
//! directory (a disk that is not mounted), and nothing is sent there; so nothing is concluded before
//! something was found, or all was looked at. What cannot be looked at is told and passed over; only a
//! comparison that reached its end counts as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use knarr_core::plan::Side;
use knarr_core::record::Action;
use knarr_core::tree::{Synced, TreeItem};
use knarr_core::{Entry, Kind, RelPath};
use knarr_remote::{ListOptions, Listing, RemoteError, Retry};
use tokio::sync::{Notify, mpsc};

use crate::error::EngineError;
use crate::journal::Drifted;
use crate::node::deliver::Delivering;
use crate::node::health::Circuit;
use crate::node::observe::Mark;
use crate::observer::Trouble;

/// How many differences are gathered before they are recorded.
const DIFFERENCES: usize = 1_000;
/// If more than this is missing and nothing is there, it is another place.
const ALL_GONE: usize = 100;
/// How many deliveries the thread that reads the synced tree may be ahead.
const AHEAD: usize = 256;
/// How many files are looked at at once.
const LOOKS: usize = 16;
/// How many paths that cannot be looked at are told one by one.
const TOLD: u64 = 20;
/// The longest pause after a comparison that did not reach its end.
const AGAIN: Duration = Duration::from_secs(600);
/// The longest sleep, so that a clock that was set is noticed.
const SLEEP: Duration = Duration::from_secs(3_600);

/// Compares from time to time.
#[derive(Debug)]
pub(crate) struct Drift {
    pub(crate) delivering: Arc<Delivering>,
    pub(crate) circuit: Circuit,
    pub(crate) wake: Arc<Notify>,
}

/// Why a comparison ended early.
enum Stopped {
    Engine(EngineError),
    Remote(RemoteError),
}

/// How far a comparison came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// Everything was looked at.
    End,
    /// Something was found only after differences were passed over, so everything is to be looked at again.
    Found,
    /// We were asked to stop.
    Cancelled,
}

/// Whether what was delivered is known to be there, at least some of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Known,
    /// It may be another one: nothing is recorded before something was found.
    Unknown,
}

/// What a look at one path tells.
enum Look {
    /// Nothing that a delivery could mend.
    Nothing,
    Differs(Box<Drifted>),
    /// It could not be looked at.
    Failed(RelPath, RemoteError),
}

/// What the looks of one comparison add up to.
struct Gathered {
    differences: Vec<Drifted>,
    /// Differences that were not kept.
    passed_over: u64,
    /// Paths that could not be looked at.
    failed: u64,
}

impl Drift {
    /// Compares every so often, until asked to stop.
    ///
    /// # Errors
    /// If the state could not be read or written.
    pub(crate) async fn run(self) -> Result<(), EngineError> {
        let context = &self.delivering.context;
        let Some(period) = self.delivering.job.verify_destination else {
            context.cancel.cancelled().await;
            return Ok(());
        };
        loop {
            let now = context.clock.now();
            // The first time there is nothing to compare: what is delivered now is known to be there.
            let last = match context.journal.last_verified().await? {
                Some(last) if last <= now => last,
                _ => {
                    context.journal.set_last_verified(now).await?;
                    now
                }
            };
            let pause = last.after(period).since(now);
            if pause > Duration::ZERO {
                tokio::select! {
                    () = context.cancel.cancelled() => return Ok(()),
                    () = tokio::time::sleep(pause.min(SLEEP)) => continue,
                }
            }
            self.circuit.until_up().await;
            if context.cancel.is_cancelled() {
                return Ok(());
            }
            match self.compare().await {
                Ok(Reached::End | Reached::Found) => {
                    context.journal.set_last_verified(now).await?;
                    continue;
                }
                Ok(Reached::Cancelled) => return Ok(()),
                Err(Stopped::Engine(error)) => return Err(error),
                Err(Stopped::Remote(error)) => self.say(&format!(
                    "the destination cannot be compared with what was delivered, which is tried again: {}",
                    crate::error::chain(&error)
                )),
            }
            tokio::select! {
                () = context.cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(period.min(AGAIN)) => {}
            }
        }
    }

    async fn compare(&self) -> Result<Reached, Stopped> {
        match self.pass(Place::Unknown).await? {
            Reached::Found => self.pass(Place::Known).await,
            reached => Ok(reached),
        }
    }

    /// Looks at everything once.
    async fn pass(&self, place: Place) -> Result<Reached, Stopped> {
        let context = &self.delivering.context;
        let listing = if self.delivering.job.mirrors_paths() {
            let listed = context.destination.list(ListOptions::default()).await;
            Some(listed.map_err(Stopped::Remote)?)
        } else {
            None
        };
        let found = AtomicU64::new(0);
        let counter = Arc::new(AtomicU64::new(0));
        let (sender, mut receiver) = mpsc::channel(AHEAD);
        let (cursor, counting) = (context.journal.synced_cursor(), Arc::clone(&counter));
        let feeding =
            tokio::task::spawn_blocking(move || feed(cursor, listing, &sender, &counting));
        let candidates = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let mut looks = candidates
            .map(|synced| self.look(synced, &found))
            .buffer_unordered(LOOKS);
        let is_known = || {
            let there = found.load(Ordering::Relaxed) + counter.load(Ordering::Relaxed);
            place == Place::Known || there > 0
        };
        let mut gathered = Gathered {
            differences: Vec::new(),
            passed_over: 0,
            failed: 0,
        };
        while let Some(look) = looks.next().await {
            if context.cancel.is_cancelled() {
                return Ok(Reached::Cancelled);
            }
            self.gather(&mut gathered, look)?;
            if gathered.differences.len() >= DIFFERENCES && is_known() {
                self.record(std::mem::take(&mut gathered.differences))
                    .await?;
                if gathered.passed_over > 0 {
                    return Ok(Reached::Found);
                }
            }
        }
        // Nobody listens any more, and the thread has ended.
        drop(looks);
        let panicked = |_panic| Stopped::Engine(EngineError::Internal("a comparison panicked"));
        feeding.await.map_err(panicked)?.map_err(Stopped::Engine)?;
        if gathered.failed > TOLD {
            let failed = gathered.failed;
            self.say(&format!(
                "{failed} paths could not be compared with what was delivered"
            ));
        }
        if !is_known() && gathered.differences.len() > ALL_GONE {
            self.say(
                "nothing of what was delivered is at the destination any more: it is taken for another \
                 place (a disk that is not mounted?), and nothing is delivered again",
            );
            return Ok(Reached::End);
        }
        self.record(gathered.differences).await?;
        // The last that was looked at may have been the first that was found.
        Ok(if gathered.passed_over > 0 {
            Reached::Found
        } else {
            Reached::End
        })
    }

    /// Keeps a difference as long as there is room; tells what could not be looked at.
    fn gather(&self, gathered: &mut Gathered, look: Look) -> Result<(), Stopped> {
        match look {
            Look::Nothing => {}
            Look::Differs(_) if gathered.differences.len() >= DIFFERENCES => {
                gathered.passed_over += 1;
            }
            Look::Differs(difference) => gathered.differences.push(*difference),
            Look::Failed(_, error) if error.retry == Retry::EndpointDown => {
                return Err(Stopped::Remote(error));
            }
            Look::Failed(path, error) => {
                gathered.failed += 1;
                if gathered.failed <= TOLD {
                    let message = format!(
                        "it cannot be compared with what was delivered: {}",
                        crate::error::chain(&error)
                    );
                    let context = &self.delivering.context;
                    context.trouble(Some(&path), Trouble::Notice, &message);
                }
            }
        }
        Ok(())
    }

    async fn look(&self, synced: Synced, found: &AtomicU64) -> Look {
        let path = synced.path.clone();
        match self.difference(synced, found).await {
            Ok(Some(difference)) => Look::Differs(Box::new(difference)),
            Ok(None) => Look::Nothing,
            Err(error) => Look::Failed(path, error),
        }
    }

    /// The difference, if there is one that a delivery can mend.
    async fn difference(
        &self,
        synced: Synced,
        found: &AtomicU64,
    ) -> Result<Option<Drifted>, RemoteError> {
        let context = &self.delivering.context;
        let there = context.destination.stat(synced.at_destination()).await?;
        if let Some(there) = &there
            && synced.destination.still_describes(there)
        {
            found.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let Some(entry) = context.source.stat(&synced.path).await? else {
            return Ok(None);
        };
        if !synced.source.still_describes(&entry) {
            // An edit: whoever observes the source takes care of it.
            return Ok(None);
        }
        Ok(Some(self.drifted(synced, &entry, there.is_none())))
    }

    fn drifted(&self, synced: Synced, entry: &Entry, is_missing: bool) -> Drifted {
        let context = &self.delivering.context;
        let what = if is_missing {
            "is missing at the destination"
        } else {
            "was changed at the destination"
        };
        let message = format!("what was delivered {what}; it is delivered again");
        let mut record = context
            .journal
            .custody(Action::Failed, entry, Side::Destination);
        record.destination = context
            .journal
            .shown_at(Side::Destination, synced.at_destination());
        record.message = Some(message);
        let mark = Mark {
            path: entry.path.clone(),
            kind: entry.kind,
            observed: Some(entry.fingerprint()),
            ready_at: context.clock.now(),
            because: Some(what.to_owned()),
            renamed_from: None,
        };
        Drifted {
            synced,
            record,
            mark,
        }
    }

    async fn record(&self, differences: Vec<Drifted>) -> Result<(), Stopped> {
        let context = &self.delivering.context;
        let told = context.journal.drifted(differences).await;
        for record in told.map_err(Stopped::Engine)? {
            let message = record.message.unwrap_or_default();
            context.trouble(Some(&record.path), Trouble::Notice, &message);
        }
        self.wake.notify_one();
        Ok(())
    }

    fn say(&self, message: &str) {
        let context = &self.delivering.context;
        let message = format!("job `{}`: {message}", self.delivering.job.name);
        context.trouble(None, Trouble::Notice, &message);
    }
}

/// Hands on what has to be looked at: everything, or what a listing does not show as it was delivered.
fn feed(
    cursor: impl Iterator<Item = Result<Synced, EngineError>>,
    listing: Option<Listing>,
    sender: &mpsc::Sender<Synced>,
    found: &AtomicU64,
) -> Result<(), EngineError> {
    let mut listed = listing.map(|listing| Listed::new(listing).peekable());
    for synced in cursor {
        let synced = synced?;
        if synced.kind() == Kind::Directory {
            continue;
        }
        if let Some(listed) = &mut listed {
            let key = synced.path.order_key(synced.kind());
            let behind = |entry: &Entry| entry.path.order_key(entry.kind) < key;
            while listed.next_if(behind).is_some() {}
            let same = |entry: &Entry| {
                entry.path == synced.path && synced.destination.still_describes(entry)
            };
            if listed.next_if(same).is_some() {
                found.fetch_add(1, Ordering::Relaxed);
                continue;
            }
        }
        if sender.blocking_send(synced).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The entries of a listing. What it could not see is missing, and so looked at one by one.
struct Listed {
    listing: Listing,
    batch: std::vec::IntoIter<TreeItem>,
}

impl Listed {
    fn new(listing: Listing) -> Self {
        let batch = Vec::new().into_iter();
        Self { listing, batch }
    }
}

impl Iterator for Listed {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            match self.batch.next() {
                Some(TreeItem::Entry(entry)) => return Some(entry),
                Some(_) => {}
                None => self.batch = self.listing.blocking_next_batch()?.into_iter(),
            }
        }
    }
}
