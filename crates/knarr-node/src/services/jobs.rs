//! The service of jobs.

use std::collections::BTreeMap;

use knarr_engine::node::{NodeJob, RunEnd};
use knarr_engine::oneshot::Environment;
use knarr_engine::pickup::{Cause, PickupJob, Preview, Verdict};
use knarr_store::definitions::DefinitionKind;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::desk::{self, Put};
use crate::query::{self, Pause};
use crate::services::{
    Jobs, Reply, Streamed, WAITING_EVENTS, blocking, by, control_status, runs, streamed,
};
use crate::{MAX_DOCUMENT_BYTES, v1};

/// The document, unless it is too long.
fn document(document: v1::Document) -> Result<v1::Document, Status> {
    if document.yaml.len() > MAX_DOCUMENT_BYTES {
        let message = format!("the document is longer than {MAX_DOCUMENT_BYTES} bytes");
        return Err(Status::invalid_argument(message));
    }
    Ok(document)
}

impl Jobs {
    async fn put(&self, put: Put, request: Request<v1::Document>) -> Reply<v1::Changes> {
        let (by, document) = (by(&request), document(request.into_inner())?);
        let ask = |reply| desk::Request::Put(put, document, by, reply);
        Ok(Response::new(self.0.counter.ask(ask).await?))
    }

    async fn pause_or_resume(&self, job: String, what: Pause) -> Reply<v1::Changed> {
        self.of(&job).await?;
        let changed = blocking(&self.0.store, move |store| query::pause(store, &job, what)).await?;
        // What is stopping needs no telling.
        let _stopping: Result<(), _> = self.0.control.pauses_changed().await;
        Ok(changed)
    }

    /// The job, which has to exist.
    async fn of(&self, job: &str) -> Result<v1::Job, Status> {
        let name = job.to_owned();
        let ask = |reply| desk::Request::Jobs(Some(name), reply);
        let jobs = self.0.counter.ask(ask).await?;
        let missing = || Status::not_found(format!("there is no job `{job}`"));
        jobs.into_iter().next().ok_or_else(missing)
    }
}

#[tonic::async_trait]
impl v1::jobs_server::Jobs for Jobs {
    async fn validate(&self, request: Request<v1::Document>) -> Reply<v1::Validated> {
        let document = document(request.into_inner())?;
        let ask = |reply| desk::Request::Validate(document, reply);
        Ok(Response::new(self.0.counter.ask(ask).await?))
    }

    async fn plan(&self, request: Request<v1::Document>) -> Reply<v1::Changes> {
        let document = document(request.into_inner())?;
        let ask = |reply| desk::Request::Plan(document, reply);
        Ok(Response::new(self.0.counter.ask(ask).await?))
    }

    async fn add(&self, request: Request<v1::Document>) -> Reply<v1::Changes> {
        self.put(Put::Add, request).await
    }

    async fn update(&self, request: Request<v1::Document>) -> Reply<v1::Changes> {
        self.put(Put::Update, request).await
    }

    async fn remove(&self, request: Request<v1::JobName>) -> Reply<v1::Changed> {
        let (by, name) = (by(&request), request.into_inner().job);
        let ask = |reply| desk::Request::Remove(DefinitionKind::Job, name, by, reply);
        Ok(Response::new(self.0.counter.ask(ask).await?))
    }

    async fn list(&self, _request: Request<v1::ListJobsRequest>) -> Reply<v1::ListJobsReply> {
        let ask = |reply| desk::Request::Jobs(None, reply);
        let jobs = self.0.counter.ask(ask).await?;
        Ok(Response::new(v1::ListJobsReply { jobs }))
    }

    async fn show(&self, request: Request<v1::JobName>) -> Reply<v1::Job> {
        Ok(Response::new(self.of(&request.into_inner().job).await?))
    }

    async fn pause(&self, request: Request<v1::JobName>) -> Reply<v1::Changed> {
        let by = by(&request);
        self.pause_or_resume(request.into_inner().job, Pause::Begin { by })
            .await
    }

    async fn resume(&self, request: Request<v1::JobName>) -> Reply<v1::Changed> {
        self.pause_or_resume(request.into_inner().job, Pause::End)
            .await
    }

    type RunStream = Streamed<v1::RunEvent>;

    async fn run(&self, request: Request<v1::RunJobRequest>) -> Reply<Self::RunStream> {
        let v1::RunJobRequest { job, parameters } = request.into_inner();
        // Listened first, then begun: nothing is missed.
        let events = self.0.control.events();
        let given = parameters.into_iter().collect();
        let asked = self.0.control.start_given(&job, Cause::Manual, given).await;
        let asked = asked.map_err(|error| control_status(&error))?;
        let (to, receiver) = mpsc::channel(WAITING_EVENTS);
        tokio::spawn(runs::tell_asked(job, events, asked, to));
        Ok(Response::new(streamed(receiver)))
    }

    async fn cancel(&self, request: Request<v1::JobName>) -> Reply<v1::Changed> {
        let cancelled = self.0.control.cancel_job(&request.into_inner().job).await;
        let changed = cancelled.map_err(|error| control_status(&error))?;
        Ok(Response::new(v1::Changed { changed }))
    }

    type DryRunStream = Streamed<v1::Preview>;

    async fn dry_run(&self, request: Request<v1::RunJobRequest>) -> Reply<Self::DryRunStream> {
        let v1::RunJobRequest { job, parameters } = request.into_inner();
        let ask = |reply| desk::Request::Open(job.clone(), reply);
        let NodeJob::Runs(opened) = self.0.counter.ask(ask).await? else {
            let message = format!("`{job}` watches, it does not run once");
            return Err(Status::failed_precondition(message));
        };
        let given: BTreeMap<_, _> = parameters.into_iter().collect();
        if let Err(error) = opened.pickup.values(&given) {
            return Err(Status::invalid_argument(knarr_engine::chain(&error)));
        }
        let (to, receiver) = mpsc::channel(WAITING_EVENTS);
        let environment = Environment {
            cancel: self.0.stop.child_token(),
            ..self.0.environment.clone()
        };
        tokio::spawn(preview(opened.pickup, given, environment, to));
        Ok(Response::new(streamed(receiver)))
    }
}

/// What a run would do with each file. The engine tells it from within, where nothing can be awaited, so
/// that runs on a thread of its own and is handed on by another; a slow reader slows both.
async fn preview(
    pickup: PickupJob,
    given: BTreeMap<String, String>,
    environment: Environment,
    to: mpsc::Sender<Result<v1::Preview, Status>>,
) {
    let (sender, receiver) = std::sync::mpsc::sync_channel(WAITING_EVENTS);
    let handing_on = {
        let to = to.clone();
        tokio::task::spawn_blocking(move || {
            while let Ok(preview) = receiver.recv() {
                if to.blocking_send(Ok(preview)).is_err() {
                    return;
                }
            }
        })
    };
    let runtime = tokio::runtime::Handle::current();
    let looking = tokio::task::spawn_blocking(move || {
        runtime.block_on(pickup.preview_given(&environment, &given, |preview| {
            // The reader has gone.
            let _gone: Result<(), _> = sender.send(previewed(preview));
        }))
    });
    let looked = looking.await;
    // Nothing to be told: it ends with its sender.
    let _ended: Result<(), _> = handing_on.await;
    let error = match looked {
        Ok(Ok(())) => return,
        Ok(Err(error)) => Status::failed_precondition(knarr_engine::chain(&error)),
        Err(_panic) => Status::internal("internal error"),
    };
    let _gone: Result<(), _> = to.send(Err(error)).await;
}

fn previewed(preview: Preview<'_>) -> v1::Preview {
    use v1::preview::Verdict as Told;
    match preview {
        Preview::File(entry, verdict) => {
            let (verdict, reason) = match verdict {
                Verdict::Take => (Told::Take, String::new()),
                Verdict::Finish => (Told::Finish, "it was delivered before".to_owned()),
                Verdict::Leave(reason) => (Told::Leave, reason),
            };
            v1::Preview {
                path: entry.path.as_bytes().to_vec(),
                size_bytes: entry.size,
                verdict: verdict.into(),
                reason,
            }
        }
        Preview::NotNow(reason) => v1::Preview {
            verdict: Told::NotNow.into(),
            reason: reason.to_owned(),
            ..v1::Preview::default()
        },
        Preview::Trouble(message) => v1::Preview {
            verdict: Told::Unknown.into(),
            reason: message.to_owned(),
            ..v1::Preview::default()
        },
    }
}

/// How a run ended, in the form of the protocol.
pub(super) fn ended(end: &RunEnd) -> v1::Ended {
    match end {
        RunEnd::Ended(ended) => v1::Ended {
            state: ended.report.state.name().to_owned(),
            report: serde_json::to_string(&ended.report)
                .expect("numbers and names are always JSON"),
            message: ended.message.clone().unwrap_or_default(),
        },
        RunEnd::Failed(message) => v1::Ended {
            message: message.clone(),
            ..v1::Ended::default()
        },
    }
}
