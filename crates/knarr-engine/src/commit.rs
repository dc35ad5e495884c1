//! Groups what is staged into batches and commits them.
//!
//! While one batch is committed the next one gathers, so a lone file is committed at once and
//! thousands share their flushes. A batch holds only things of one committer.

use std::collections::VecDeque;
use std::sync::Arc;

use knarr_remote::{Committed, ErrorKind, RemoteError, Staged};
use tokio::sync::{mpsc, oneshot};

/// How many staged things may wait for their commit.
const WAITING: usize = 2_048;
/// How many things a batch has at most.
const BATCH: usize = 1_024;

type Reply = oneshot::Sender<Result<Committed, RemoteError>>;

/// Hands staged things to the task that commits them in batches.
#[derive(Debug, Clone)]
pub(crate) struct CommitQueue {
    sender: mpsc::Sender<(Staged, Reply)>,
}

impl CommitQueue {
    /// Starts the task. It ends when the last clone is dropped.
    pub(crate) fn start(tasks: &tokio_util::task::TaskTracker) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tasks.spawn(run(receiver));
        Self { sender }
    }

    /// Commits `staged`; durable and visible when this returns `Ok`.
    pub(crate) async fn commit(&self, staged: Staged) -> Result<Committed, RemoteError> {
        let stopped =
            || RemoteError::new(ErrorKind::Cancelled, "commit", "the commit queue stopped");
        let path = staged.path.clone();
        if staged.committer.batch_limit() <= 1 {
            // A batch would gain nothing; every file commits beside the others.
            let committer = Arc::clone(&staged.committer);
            let mut results = committer.commit(vec![staged]).await;
            return results.pop().unwrap_or_else(|| Err(stopped().at(&path)));
        }
        let (reply, result) = oneshot::channel();
        self.sender
            .send((staged, reply))
            .await
            .map_err(|_closed| stopped().at(&path))?;
        result.await.map_err(|_dropped| stopped().at(&path))?
    }
}

async fn run(mut receiver: mpsc::Receiver<(Staged, Reply)>) {
    let mut waiting: VecDeque<(Staged, Reply)> = VecDeque::new();
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
        let Some((first, _)) = waiting.front() else {
            continue;
        };
        let committer = Arc::clone(&first.committer);
        let limit = committer.batch_limit().clamp(1, BATCH);
        let mut replies = Vec::new();
        let mut batch = Vec::new();
        let mut others = VecDeque::new();
        for (staged, reply) in waiting.drain(..) {
            if batch.len() < limit && Arc::ptr_eq(&staged.committer, &committer) {
                batch.push(staged);
                replies.push(reply);
            } else {
                others.push_back((staged, reply));
            }
        }
        waiting = others;
        let results = committer.commit(batch).await;
        debug_assert_eq!(
            results.len(),
            replies.len(),
            "a committer answers for every item"
        );
        for (reply, result) in replies.into_iter().zip(results) {
            // Whoever waited may have been cancelled; the commit stands, and the next look finds it.
            drop(reply.send(result));
        }
    }
}
