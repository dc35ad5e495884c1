//! The service of runs, and their events as streams.

use std::sync::Arc;

use knarr_core::RelPath;
use knarr_engine::node::{Asked, JobEvent, What};
use knarr_engine::observer::Trouble;
use knarr_engine::pickup::Cause;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::query;
use crate::services::jobs::ended;
use crate::services::{Reply, Runs, Streamed, WAITING_EVENTS, blocking, control_status, streamed};
use crate::v1;
use crate::v1::run_event;

type To = mpsc::Sender<Result<v1::RunEvent, Status>>;

fn in_protocol(event: JobEvent) -> Option<v1::RunEvent> {
    let bytes = |path: Option<RelPath>| path.map(|path| path.as_bytes().to_vec());
    let what = match event.what {
        What::Begun { cause } => run_event::What::Begun(v1::Begun {
            cause: cause.to_owned(),
        }),
        What::Planned { items, bytes } => run_event::What::Planned(v1::Planned { items, bytes }),
        What::Started { path, size } => run_event::What::Started(v1::FileStarted {
            path: path.as_bytes().to_vec(),
            size_bytes: size,
        }),
        What::Progress { path, bytes: more } => run_event::What::Progress(v1::Progress {
            path: bytes(path).unwrap_or_default(),
            bytes: more,
        }),
        What::Retry { path, error } => run_event::What::Retry(v1::Retrying {
            path: path.as_bytes().to_vec(),
            error,
        }),
        What::Finished {
            path,
            action,
            bytes,
        } => run_event::What::Finished(v1::FileFinished {
            path: path.as_bytes().to_vec(),
            action: action.name().to_owned(),
            bytes,
        }),
        What::Trouble {
            path,
            kind,
            message,
        } => run_event::What::Trouble(v1::Trouble {
            path: bytes(path).unwrap_or_default(),
            kind: trouble(kind).to_owned(),
            message,
        }),
        What::Ended(end) => run_event::What::Ended(ended(&end)),
        _ => return None,
    };
    Some(v1::RunEvent {
        run: event.run,
        job: event.job.to_string(),
        what: Some(what),
    })
}

const fn trouble(kind: Trouble) -> &'static str {
    match kind {
        Trouble::Conflict => "conflict",
        Trouble::Problem => "problem",
        Trouble::Error => "error",
        Trouble::Notice => "notice",
    }
}

fn missed(job: &str, run: u64, count: u64) -> v1::RunEvent {
    v1::RunEvent {
        run,
        job: job.to_owned(),
        what: Some(run_event::What::Missed(count)),
    }
}

/// Tells the events of a run that was asked for, and its end for certain.
pub(super) async fn tell_asked(
    job: String,
    mut events: broadcast::Receiver<JobEvent>,
    mut asked: Asked,
    to: To,
) {
    let mut run = 0;
    let end = loop {
        tokio::select! {
            biased;
            begun = &mut asked.begun, if run == 0 => match begun {
                Ok(number) => run = number,
                // It never begins; its end says why.
                Err(_never) => break (&mut asked.ended).await,
            },
            event = events.recv(), if run > 0 => {
                let event = match event {
                    // Its end comes below.
                    Ok(JobEvent { what: What::Ended(_), .. }) => continue,
                    Ok(event) if event.run == run => in_protocol(event),
                    Ok(_other) => None,
                    Err(RecvError::Lagged(count)) => Some(missed(&job, run, count)),
                    Err(RecvError::Closed) => break (&mut asked.ended).await,
                };
                if let Some(event) = event && to.send(Ok(event)).await.is_err() {
                    // The run goes on without whoever asked for it.
                    return;
                }
            }
            end = &mut asked.ended => break end,
        }
    };
    let last = match end {
        Ok(end) => Ok(v1::RunEvent {
            run,
            job,
            what: Some(run_event::What::Ended(ended(&end))),
        }),
        Err(_gone) => Err(Status::unavailable(
            "the node stopped before the run had ended",
        )),
    };
    let _gone: Result<(), _> = to.send(last).await;
}

/// Tells the events of a run that is under way, and its end.
async fn tell(runs: Arc<Runs>, run: v1::Run, mut events: broadcast::Receiver<JobEvent>, to: To) {
    let node = &runs.0;
    let number = run.run;
    loop {
        // It may have ended before anybody listened, or in another process.
        let store = node.store.clone();
        let now = tokio::task::spawn_blocking(move || query::run(&store, number)).await;
        if let Ok(Ok(now)) = now
            && now.state != "running"
        {
            break drain(&mut events, number, &to).await;
        }
        let event = tokio::select! {
            () = node.stop.cancelled() => return,
            () = to.closed() => return,
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => continue,
            event = next_of(&mut events, number, &run.job) => event,
        };
        let Some(event) = event else { break };
        let is_end = matches!(event.what, Some(run_event::What::Ended(_)));
        if to.send(Ok(event)).await.is_err() || is_end {
            return;
        }
    }
    let store = node.store.clone();
    let ended = tokio::task::spawn_blocking(move || query::run(&store, number)).await;
    let last = match ended {
        Ok(Ok(run)) => Ok(v1::RunEvent {
            run: number,
            job: run.job,
            what: Some(run_event::What::Ended(v1::Ended {
                state: run.state,
                report: String::new(),
                message: run.message,
            })),
        }),
        Ok(Err(error)) => Err(error.into()),
        Err(_panic) => Err(Status::internal("internal error")),
    };
    let _gone: Result<(), _> = to.send(last).await;
}

/// What was told and is not handed on yet.
async fn drain(events: &mut broadcast::Receiver<JobEvent>, run: u64, to: &To) {
    loop {
        match events.try_recv() {
            Ok(event) if event.run == run && !matches!(event.what, What::Ended(_)) => {
                let Some(event) = in_protocol(event) else {
                    continue;
                };
                if to.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            Ok(_) | Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return,
        }
    }
}

async fn next_of(
    events: &mut broadcast::Receiver<JobEvent>,
    run: u64,
    job: &str,
) -> Option<v1::RunEvent> {
    loop {
        match events.recv().await {
            Ok(event) if event.run == run => {
                if let Some(event) = in_protocol(event) {
                    return Some(event);
                }
            }
            Ok(_other) => {}
            Err(RecvError::Lagged(count)) => return Some(missed(job, run, count)),
            Err(RecvError::Closed) => return None,
        }
    }
}

#[tonic::async_trait]
impl v1::runs_server::Runs for Runs {
    async fn list(&self, request: Request<v1::ListRunsRequest>) -> Reply<v1::ListRunsReply> {
        let request = request.into_inner();
        blocking(&self.0.store, move |store| query::runs(store, &request)).await
    }

    async fn show(&self, request: Request<v1::RunNumber>) -> Reply<v1::Run> {
        let run = request.into_inner().run;
        blocking(&self.0.store, move |store| query::run(store, run)).await
    }

    type FollowStream = Streamed<v1::RunEvent>;

    async fn follow(&self, request: Request<v1::RunNumber>) -> Reply<Self::FollowStream> {
        let number = request.into_inner().run;
        let events = self.0.control.events();
        let run = blocking(&self.0.store, move |store| query::run(store, number));
        let run = run.await?.into_inner();
        let (to, receiver) = mpsc::channel(WAITING_EVENTS);
        tokio::spawn(tell(Arc::new(Self(self.0.clone())), run, events, to));
        Ok(Response::new(streamed(receiver)))
    }

    async fn retry(&self, request: Request<v1::RunNumber>) -> Reply<v1::Retried> {
        let number = request.into_inner().run;
        let retried = blocking(&self.0.store, move |store| {
            let run = query::run(store, number)?;
            let paths = query::retry_queue(store, &run.job)?.count;
            Ok((run, paths))
        });
        let (run, paths) = retried.await?.into_inner();
        if run.kind != "pickup" {
            return Ok(Response::new(v1::Retried { paths, run: 0 }));
        }
        let asked = self.0.control.start(&run.job, Cause::Manual).await;
        let asked = asked.map_err(|error| control_status(&error))?;
        let begun = asked.begun.await.unwrap_or(0);
        Ok(Response::new(v1::Retried { paths, run: begun }))
    }

    async fn cancel(&self, request: Request<v1::RunNumber>) -> Reply<v1::Cancelled> {
        let number = request.into_inner().run;
        blocking(&self.0.store, move |store| query::run(store, number)).await?;
        let cancelled = self.0.control.cancel_run(number).await;
        let changed = cancelled.map_err(|error| control_status(&error))?;
        Ok(Response::new(v1::Cancelled { changed }))
    }
}
