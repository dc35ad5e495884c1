//! Has jobs at work what is on record: for each job one change after the other, for different ones side by side.
//!
//! Constraints: a change that is slow, because a run ends or a place does not answer, delays no other job and
//! no other answer. Changes of one job that come meanwhile become one, which follows. At most [`OPENINGS`]
//! jobs are opened at a time; in memory is one entry for each job that changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use knarr_engine::node::{Control, ControlError, NodeJob};
use tokio::sync::Semaphore;

use crate::desk::{Desk, DeskError, OPENING};
use crate::host::{Host, Opening};

/// How many jobs are opened at a time.
const OPENINGS: usize = 16;

/// What is under way.
pub(super) struct Works<'h> {
    tasks: FuturesUnordered<Opening<'h, Done>>,
    /// The jobs that change now.
    turns: BTreeMap<String, Turn>,
    /// Answers that wait until jobs are at work.
    answers: BTreeMap<u64, Waiting>,
    number: u64,
    room: Arc<Semaphore>,
}

/// A change of a job.
#[derive(Default)]
struct Turn {
    /// The answers that wait for it.
    for_answers: Vec<u64>,
    /// What was asked for since it began.
    again: Option<Vec<u64>>,
}

struct Waiting {
    jobs: usize,
    answer: Box<dyn FnOnce() + Send>,
}

/// What ended.
pub(super) enum Done {
    /// The change of a job.
    Job(String, AtWork),
    /// Something that gave its answer itself.
    Answer,
}

/// What became of a change.
pub(super) enum AtWork {
    /// The job is at work.
    Yes,
    /// There is no such job any more.
    Gone,
    /// It is not: why.
    No(String),
}

impl<'h> Works<'h> {
    pub(super) fn new() -> Self {
        Self {
            tasks: FuturesUnordered::new(),
            turns: BTreeMap::new(),
            answers: BTreeMap::new(),
            number: 0,
            room: Arc::new(Semaphore::new(OPENINGS)),
        }
    }

    /// The next that ends; nothing if nothing is under way.
    pub(super) async fn next(&mut self) -> Option<Done> {
        self.tasks.next().await
    }

    /// Does something that gives its answer itself.
    pub(super) fn answer(&self, task: impl Future<Output = ()> + Send + 'h) {
        self.tasks.push(Box::pin(async move {
            task.await;
            Done::Answer
        }));
    }

    /// Gives the answer when all these jobs have changed.
    pub(super) fn change<H: Host + 'h>(
        &mut self,
        desk: &Desk<H>,
        jobs: &[String],
        answer: impl FnOnce() + Send + 'static,
    ) {
        if jobs.is_empty() || desk.control.is_none() {
            answer();
            return;
        }
        self.number += 1;
        let waiting = Waiting {
            jobs: jobs.len(),
            answer: Box::new(answer),
        };
        self.answers.insert(self.number, waiting);
        for job in jobs {
            self.change_one(desk, job, vec![self.number]);
        }
    }

    fn change_one<H: Host + 'h>(&mut self, desk: &Desk<H>, job: &str, for_answers: Vec<u64>) {
        if let Some(turn) = self.turns.get_mut(job) {
            turn.again.get_or_insert_default().extend(for_answers);
            return;
        }
        let Some(control) = desk.control.clone() else {
            return;
        };
        let turn = Turn {
            for_answers,
            again: None,
        };
        self.turns.insert(job.to_owned(), turn);
        let (opening, room) = (desk.host.open(job), Arc::clone(&self.room));
        let job = job.to_owned();
        self.tasks.push(Box::pin(async move {
            let opened = {
                // The semaphore is never closed.
                let _room = room.acquire().await;
                opened(&job, opening).await
            };
            let at_work = put(&control, &job, opened).await;
            Done::Job(job, at_work)
        }));
    }

    /// The change of a job has ended: the next begins, and who waited for it has an answer.
    pub(super) fn ended<H: Host + 'h>(&mut self, desk: &Desk<H>, job: &str) {
        let Some(turn) = self.turns.remove(job) else {
            return;
        };
        if let Some(for_answers) = turn.again {
            self.change_one(desk, job, for_answers);
        }
        for number in turn.for_answers {
            let Some(waiting) = self.answers.get_mut(&number) else {
                continue;
            };
            waiting.jobs -= 1;
            if waiting.jobs == 0
                && let Some(waiting) = self.answers.remove(&number)
            {
                (waiting.answer)();
            }
        }
    }
}

/// A job whose places are open.
///
/// # Errors
/// [`DeskError::Missing`] if there is none, [`DeskError::Refused`] with the reason if it cannot be.
pub(super) async fn opened(
    job: &str,
    opening: Opening<'_, Result<Option<NodeJob>, String>>,
) -> Result<NodeJob, DeskError> {
    match tokio::time::timeout(OPENING, opening).await {
        Ok(Ok(Some(opened))) => Ok(opened),
        Ok(Ok(None)) => Err(DeskError::Missing(format!("there is no job `{job}`"))),
        Ok(Err(why)) => Err(DeskError::Refused(why)),
        Err(_elapsed) => {
            let message = "one of its places does not answer".to_owned();
            Err(DeskError::Refused(message))
        }
    }
}

/// Puts a job to work in the place of what was there; or takes that away.
async fn put(control: &Control, job: &str, opened: Result<NodeJob, DeskError>) -> AtWork {
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // What ran with the definition of before must not go on.
            let _unknown: Result<(), ControlError> = control.remove(job).await;
            return match error {
                DeskError::Missing(_) => AtWork::Gone,
                error => AtWork::No(error.to_string()),
            };
        }
    };
    let begun = match control.replace(opened.clone()).await {
        Err(ControlError::Unknown { .. }) => control.add(opened).await,
        replaced => replaced,
    };
    match begun {
        Ok(()) => AtWork::Yes,
        Err(error) => AtWork::No(error.to_string()),
    }
}
