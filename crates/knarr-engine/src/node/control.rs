//! What can be asked of a node while it runs.
//!
//! Constraints: at most [`QUEUED_COMMANDS`] commands wait, whoever comes then waits, too. The events of runs
//! are a bounded broadcast: a listener that is too slow is told how many it missed.

use std::collections::BTreeMap;

use knarr_core::Timestamp;
use knarr_core::parameters::ParameterError;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::node::told::KEPT_EVENTS;
use crate::node::{JobEvent, NodeJob};
use crate::pickup::{Cause, Ended};

/// How many commands wait at most.
const QUEUED_COMMANDS: usize = 64;

/// A handle on a running node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    events: broadcast::Sender<JobEvent>,
}

/// The other end of a [`Control`], for the node.
#[derive(Debug)]
pub struct Commands {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) events: broadcast::Sender<JobEvent>,
}

/// A handle, and what a node needs to follow it.
#[must_use]
pub fn control() -> (Control, Commands) {
    let (sender, commands) = mpsc::channel(QUEUED_COMMANDS);
    let (events, _receiver) = broadcast::channel(KEPT_EVENTS);
    let control = Control {
        commands: sender,
        events: events.clone(),
    };
    (control, Commands { commands, events })
}

/// Why a node does not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It does not know the job.
    #[error("there is no job `{job}`")]
    Unknown {
        /// The name.
        job: String,
    },
    /// It has a job of that name already.
    #[error("there is a job `{job}` already")]
    Known {
        /// The name.
        job: String,
    },
    /// The job has no runs.
    #[error("`{job}` watches, it does not run once")]
    Watches {
        /// The name.
        job: String,
    },
    /// A run is under way, and this cause does not wait for its end.
    #[error("a run of `{job}` is under way already (run {run})")]
    UnderWay {
        /// The name.
        job: String,
        /// The run; 0 while it waits for its turn.
        run: u64,
    },
    /// It waits for a person.
    #[error("`{job}` waits: {reason}")]
    Waits {
        /// The name.
        job: String,
        /// For what.
        reason: String,
    },
    /// The job is being removed or replaced.
    #[error("`{job}` is being stopped; try again")]
    Leaving {
        /// The name.
        job: String,
    },
    /// What was given for the run's parameters is not what the job allows.
    #[error("`{job}` cannot be run like that: {reason}")]
    Parameters {
        /// The name.
        job: String,
        /// What is wrong.
        reason: ParameterError,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// It has a report.
    Ended(Ended),
    /// It never began, or could not be recorded: why.
    Failed(String),
}

/// A run that was asked for.
#[derive(Debug)]
pub struct Asked {
    /// Its number, as soon as it has one. Nothing comes if it never begins.
    pub begun: oneshot::Receiver<u64>,
    /// How it ended.
    pub ended: oneshot::Receiver<RunEnd>,
}

/// A job, and what it does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobNow {
    /// Its name.
    pub name: String,
    /// What is under way: at most one run, or one for each watched directory.
    pub running: Vec<RunningNow>,
    /// Why it is not at work although it should be.
    pub problem: Option<String>,
    /// What it waits for: an endpoint that is paused.
    pub waits: Option<String>,
}

/// A run that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningNow {
    /// Its number; 0 while it waits for its turn.
    pub run: u64,
    /// What set it off, as it stands in the history.
    pub cause: &'static str,
    /// Since when.
    pub since: Timestamp,
}

/// The answer to a command.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// Who waits for a run.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    /// What the first of them gave for the run's parameters.
    pub(crate) given: BTreeMap<String, String>,
    pub(crate) begun: Vec<oneshot::Sender<u64>>,
    pub(crate) ended: Vec<oneshot::Sender<RunEnd>>,
}

#[derive(Debug)]
pub(crate) enum Command {
    Start {
        job: String,
        cause: Cause,
        given: BTreeMap<String, String>,
        reply: Reply<Asked>,
    },
    CancelJob {
        job: String,
        reply: Reply<bool>,
    },
    CancelRun {
        run: u64,
        reply: Reply<bool>,
    },
    Add {
        job: Box<NodeJob>,
        reply: Reply<()>,
    },
    Replace {
        job: Box<NodeJob>,
        reply: Reply<()>,
    },
    Remove {
        job: String,
        reply: Reply<()>,
    },
    Pauses {
        reply: Reply<()>,
    },
    List {
        reply: Reply<Vec<JobNow>>,
    },
}

impl Control {
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(command(reply)).await;
        sent.map_err(|_gone| ControlError::Stopped)?;
        answer.await.map_err(|_gone| ControlError::Stopped)?
    }

    /// What happens in runs from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<JobEvent> {
        self.events.subscribe()
    }

    /// Begins a run of a job. By hand only if none is under way; for any other cause a run follows the one
    /// that is under way, one for all that ask meanwhile. What an upload asks for waits while the job is
    /// paused; a pause does not hold back other causes. While an endpoint of the job is paused all wait, and
    /// nothing begins by hand.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn start(&self, job: &str, cause: Cause) -> Result<Asked, ControlError> {
        self.start_given(job, cause, BTreeMap::new()).await
    }

    /// The same, with values of parameters of the run. A run that follows another one has those of whoever asked
    /// for it first.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn start_given(
        &self,
        job: &str,
        cause: Cause,
        given: BTreeMap<String, String>,
    ) -> Result<Asked, ControlError> {
        let job = job.to_owned();
        let command = |reply| Command::Start {
            job,
            cause,
            given,
            reply,
        };
        self.ask(command).await
    }

    /// Begins a run of a job, and waits for nothing.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn trigger(&self, job: &str, cause: Cause) -> Result<(), ControlError> {
        self.start(job, cause).await.map(drop)
    }

    /// Ends the run of a job that is under way, in good order. Says whether there was one.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn cancel_job(&self, job: &str) -> Result<bool, ControlError> {
        let job = job.to_owned();
        self.ask(|reply| Command::CancelJob { job, reply }).await
    }

    /// Ends a run that is under way, in good order. Says whether it was.
    ///
    /// # Errors
    /// [`ControlError::Stopped`], and [`ControlError::Watches`] for what is no run but a watch.
    pub async fn cancel_run(&self, run: u64) -> Result<bool, ControlError> {
        self.ask(|reply| Command::CancelRun { run, reply }).await
    }

    /// Adds a job. What its schedule would have done before is not made up for.
    ///
    /// # Errors
    /// [`ControlError::Known`] if there is one of its name.
    pub async fn add(&self, job: NodeJob) -> Result<(), ControlError> {
        let job = Box::new(job);
        self.ask(|reply| Command::Add { job, reply }).await
    }

    /// Puts a job in the place of the one of its name. Returns when what was running has ended in good order
    /// and the new one is at work.
    ///
    /// # Errors
    /// [`ControlError::Unknown`] if there is none of its name.
    pub async fn replace(&self, job: NodeJob) -> Result<(), ControlError> {
        let job = Box::new(job);
        self.ask(|reply| Command::Replace { job, reply }).await
    }

    /// Takes a job away. Returns when what was running has ended in good order.
    ///
    /// # Errors
    /// [`ControlError::Unknown`] if there is none of that name.
    pub async fn remove(&self, job: &str) -> Result<(), ControlError> {
        let job = job.to_owned();
        self.ask(|reply| Command::Remove { job, reply }).await
    }

    /// Has the pauses on record looked at now instead of a few seconds later.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    pub async fn pauses_changed(&self) -> Result<(), ControlError> {
        self.ask(|reply| Command::Pauses { reply }).await
    }

    /// All jobs, and what they do now.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    pub async fn list(&self) -> Result<Vec<JobNow>, ControlError> {
        self.ask(|reply| Command::List { reply }).await
    }
}
