//! Groups what is staged into batches and commits them.
//!
//! While one batch is committed the next one gathers, so a lone file is committed at once and
//! thousands share their flushes. A batch holds only things of one committer. What has to be found again
//! after a crash is noted before its batch is committed (K11): one transaction a batch.

use std::collections::VecDeque;
use std::sync::Arc;

use knarr_remote::{Committed, ErrorKind, RemoteError, Staged};
use knarr_store::intents::{Intended, IntentId};
use tokio::sync::{mpsc, oneshot};

use crate::error::EngineError;
use crate::journal::Journal;

/// How many staged things may wait for their commit.
const WAITING: usize = 2_048;
/// How many things a batch has at most.
const BATCH: usize = 1_024;

/// How a commit ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What lies there now.
    pub(crate) committed: Result<Committed, RemoteError>,
    /// What was noted before. After an error, too: whether it was done all the same, whoever knows the
    /// error tells, or whoever looks there afterwards.
    pub(crate) intent: Option<IntentId>,
}

impl Outcome {
    /// Nothing was noted, so nothing was done.
    pub(crate) const fn not_begun(error: RemoteError) -> Self {
        Self {
            committed: Err(error),
            intent: None,
        }
    }
}

/// Something that waits for its commit.
#[derive(Debug)]
struct Waiting {
    staged: Staged,
    intended: Option<Intended>,
    reply: oneshot::Sender<Outcome>,
}

/// Hands staged things to the task that commits them in batches.
#[derive(Debug, Clone)]
pub(crate) struct CommitQueue {
    sender: mpsc::Sender<Waiting>,
    journal: Journal,
}

impl CommitQueue {
    /// Starts the task. It ends when the last clone is dropped.
    pub(crate) fn start(tasks: &tokio_util::task::TaskTracker, journal: &Journal) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tasks.spawn(run(receiver, journal.clone()));
        let journal = journal.clone();
        Self { sender, journal }
    }

    /// Commits `staged`; durable and visible when this returns `Ok`. Nobody finds it after a crash.
    pub(crate) async fn commit(&self, staged: Staged) -> Result<Committed, RemoteError> {
        self.commit_intended(staged, None).await.committed
    }

    /// The same, after it was noted what is meant. The intent is to be cleared with the record of what
    /// became of it.
    pub(crate) async fn commit_intended(
        &self,
        staged: Staged,
        intended: Option<Intended>,
    ) -> Outcome {
        let stopped =
            || RemoteError::new(ErrorKind::Cancelled, "commit", "the commit queue stopped");
        let path = staged.path.clone();
        if staged.committer.batch_limit() <= 1 {
            // A batch would gain nothing; every file commits beside the others. The store groups what
            // they note.
            let committer = Arc::clone(&staged.committer);
            let intent = match self.journal.intend_each(vec![intended]).await {
                Ok(mut intents) => intents.pop().flatten(),
                Err(error) => return Outcome::not_begun(unnoted(&error).at(&path)),
            };
            let mut results = committer.commit(vec![staged]).await;
            let committed = results.pop().unwrap_or_else(|| Err(stopped().at(&path)));
            return Outcome { committed, intent };
        }
        let (reply, result) = oneshot::channel();
        let waiting = Waiting {
            staged,
            intended,
            reply,
        };
        if self.sender.send(waiting).await.is_err() {
            return Outcome::not_begun(stopped().at(&path));
        }
        // Without an answer it is open whether it was noted and done: the next look tells.
        let unanswered = |_dropped| Outcome::not_begun(stopped().at(&path));
        result.await.unwrap_or_else(unanswered)
    }
}

fn unnoted(error: &EngineError) -> RemoteError {
    let message =
        "the state directory does not work, so it could not be noted what is about to be done";
    let cause = std::io::Error::other(crate::error::chain(error));
    RemoteError::new(ErrorKind::Other, "commit", message).caused_by(cause)
}

async fn run(mut receiver: mpsc::Receiver<Waiting>, journal: Journal) {
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match receiver.recv().await {
                Some(next) => waiting.push_back(next),
                None => return,
            }
        }
        while waiting.len() < BATCH
            && let Ok(next) = receiver.try_recv()
        {
            waiting.push_back(next);
        }
        let Some(first) = waiting.front() else {
            continue;
        };
        let committer = Arc::clone(&first.staged.committer);
        let limit = committer.batch_limit().clamp(1, BATCH);
        let (mut batch, mut intended, mut replies) = (Vec::new(), Vec::new(), Vec::new());
        let mut others = VecDeque::new();
        for next in waiting.drain(..) {
            if batch.len() < limit && Arc::ptr_eq(&next.staged.committer, &committer) {
                batch.push(next.staged);
                intended.push(next.intended);
                replies.push(next.reply);
            } else {
                others.push_back(next);
            }
        }
        waiting = others;
        let intents = match journal.intend_each(intended).await {
            Ok(intents) => intents,
            Err(error) => {
                for reply in replies {
                    drop(reply.send(Outcome::not_begun(unnoted(&error))));
                }
                continue;
            }
        };
        let results = committer.commit(batch).await;
        debug_assert_eq!(
            results.len(),
            replies.len(),
            "a committer answers for every item"
        );
        for ((reply, committed), intent) in replies.into_iter().zip(results).zip(intents) {
            // Whoever waited may have been cancelled; the commit stands, and the next look finds it.
            drop(reply.send(Outcome { committed, intent }));
        }
    }
}
