//! The services of the protocol: each call is handed to [`query`], to the desk, or to the node.

mod jobs;
mod runs;
mod watching;

use std::pin::Pin;

use knarr_core::tree::TreeItem;
use knarr_engine::node::ControlError;
use knarr_remote::ListOptions;
use knarr_store::Store;
use knarr_store::definitions::DefinitionKind;
use knarr_store::secrets::{SecretError, SecretValue};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::desk::{self, DeskError};
use crate::follow::{self, Cursor};
use crate::query::{self, Pause, QueryError};
use crate::server::Node;
use crate::socket::Peer;
use crate::v1;

pub(crate) struct Jobs(pub(crate) Node);
pub(crate) struct Runs(pub(crate) Node);
pub(crate) struct Endpoints(pub(crate) Node);
pub(crate) struct Queue(pub(crate) Node);
pub(crate) struct History(pub(crate) Node);
pub(crate) struct Events(pub(crate) Node);
pub(crate) struct Secrets(pub(crate) Node);
pub(crate) struct Nodes(pub(crate) Node);
pub(crate) struct Alerts(pub(crate) Node);
pub(crate) struct Audit(pub(crate) Node);
pub(crate) struct Users(pub(crate) Node);

/// How many events wait for a reader at most.
pub(crate) const WAITING_EVENTS: usize = 256;
/// How long an endpoint may take to be tested.
const TESTING: std::time::Duration = std::time::Duration::from_secs(60);

type Reply<T> = Result<Response<T>, Status>;
pub(crate) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl From<QueryError> for Status {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Argument(message) => Self::invalid_argument(message),
            QueryError::Missing(message) => Self::not_found(message),
            QueryError::Store(error) => Self::internal(knarr_engine::chain(&error)),
        }
    }
}

impl From<DeskError> for Status {
    fn from(error: DeskError) -> Self {
        let message = error.to_string();
        match error {
            DeskError::Wrong(_) => Self::invalid_argument(message),
            DeskError::Refused(_) => Self::failed_precondition(message),
            DeskError::Missing(_) => Self::not_found(message),
            DeskError::Store(error) => Self::internal(knarr_engine::chain(&error)),
            DeskError::Control(error) => control_status(&error),
        }
    }
}

pub(crate) fn control_status(error: &ControlError) -> Status {
    let message = error.to_string();
    match error {
        ControlError::Unknown { .. } => Status::not_found(message),
        ControlError::Known { .. } => Status::already_exists(message),
        ControlError::Watches { .. }
        | ControlError::UnderWay { .. }
        | ControlError::Waits { .. }
        | ControlError::Leaving { .. } => Status::failed_precondition(message),
        ControlError::Parameters { .. } => Status::invalid_argument(message),
        ControlError::Stopped => Status::unavailable(message),
    }
}

/// Answers on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    store: &Store,
    look: impl FnOnce(&Store) -> Result<T, QueryError> + Send + 'static,
) -> Reply<T> {
    let store = store.clone();
    let looked = tokio::task::spawn_blocking(move || look(&store)).await;
    let looked = looked.map_err(|_panic| Status::internal("internal error"))?;
    Ok(Response::new(looked?))
}

/// Who asks. Nobody comes here whose identity is not known.
pub(crate) fn by<T>(request: &Request<T>) -> String {
    let peer = request.extensions().get::<Peer>();
    peer.map_or_else(|| "somebody".to_owned(), |peer| peer.name.to_string())
}

pub(crate) fn streamed<T: Send + 'static>(
    receiver: mpsc::Receiver<Result<T, Status>>,
) -> Streamed<T> {
    Box::pin(ReceiverStream::new(receiver))
}

#[tonic::async_trait]
impl v1::endpoints_server::Endpoints for Endpoints {
    async fn list(
        &self,
        _request: Request<v1::ListEndpointsRequest>,
    ) -> Reply<v1::ListEndpointsReply> {
        let endpoints = self.0.counter.ask(desk::Request::Endpoints).await?;
        Ok(Response::new(v1::ListEndpointsReply { endpoints }))
    }

    async fn test(&self, request: Request<v1::EndpointName>) -> Reply<v1::Tested> {
        let name = request.into_inner().endpoint;
        let began = std::time::Instant::now();
        let ask = |reply| desk::Request::Endpoint(name, reply);
        let mut tested = match self.0.counter.ask(ask).await {
            Ok(remote) => {
                let location = remote.describe().location.clone();
                let looked = tokio::time::timeout(TESTING, look(remote.as_ref())).await;
                let looked = looked.unwrap_or_else(|_elapsed| Err("it does not answer".to_owned()));
                let (entries, error) = match looked {
                    Ok(entries) => (entries, String::new()),
                    Err(error) => (0, error),
                };
                v1::Tested {
                    reached: error.is_empty(),
                    location,
                    entries,
                    error,
                    took_milliseconds: 0,
                }
            }
            Err(DeskError::Refused(error)) => v1::Tested {
                error,
                ..v1::Tested::default()
            },
            Err(error) => return Err(error.into()),
        };
        tested.took_milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(tested))
    }

    async fn remove(&self, request: Request<v1::EndpointName>) -> Reply<v1::Changed> {
        let (by, name) = (by(&request), request.into_inner().endpoint);
        let ask = |reply| desk::Request::Remove(DefinitionKind::Endpoint, name, by, reply);
        Ok(Response::new(self.0.counter.ask(ask).await?))
    }

    async fn pause(&self, request: Request<v1::EndpointName>) -> Reply<v1::Changed> {
        let by = by(&request);
        self.pause_or_resume(request.into_inner().endpoint, Pause::Begin { by })
            .await
    }

    async fn resume(&self, request: Request<v1::EndpointName>) -> Reply<v1::Changed> {
        self.pause_or_resume(request.into_inner().endpoint, Pause::End)
            .await
    }
}

impl Endpoints {
    async fn pause_or_resume(&self, endpoint: String, what: Pause) -> Reply<v1::Changed> {
        let all = self.0.counter.ask(desk::Request::Endpoints).await?;
        // The pause of one that is gone can be ended.
        if what != Pause::End && !all.iter().any(|one| one.name == endpoint) {
            let message = format!("there is no endpoint `{endpoint}`");
            return Err(Status::not_found(message));
        }
        let changed = blocking(&self.0.store, move |store| {
            query::pause_endpoint(store, &endpoint, what)
        });
        let changed = changed.await?;
        // What is stopping needs no telling.
        let _stopping: Result<(), _> = self.0.control.pauses_changed().await;
        Ok(changed)
    }
}

/// How many entries the root has, of the first batch.
async fn look(remote: &dyn knarr_remote::Remote) -> Result<u64, String> {
    let options = ListOptions {
        shallow: true,
        ..ListOptions::default()
    };
    let listing = remote.list(options).await;
    let mut listing = listing.map_err(|error| knarr_engine::chain(&error))?;
    let mut entries = 0;
    for item in listing.next_batch().await.unwrap_or_default() {
        match item {
            TreeItem::Incomplete(part) => {
                return Err(format!("its root cannot be listed: {}", part.reason));
            }
            TreeItem::Entry(_) | TreeItem::Problem(_) | TreeItem::Excluded { .. } => entries += 1,
        }
    }
    Ok(entries)
}

#[tonic::async_trait]
impl v1::queue_server::Queue for Queue {
    async fn list(&self, request: Request<v1::ListQueueRequest>) -> Reply<v1::ListQueueReply> {
        let (request, now) = (request.into_inner(), self.0.clock.now());
        blocking(&self.0.store, move |store| {
            query::queue(store, &request, now)
        })
        .await
    }

    async fn retry(&self, request: Request<v1::RetryQueueRequest>) -> Reply<v1::RetriedQueue> {
        let job = request.into_inner().job;
        blocking(&self.0.store, move |store| query::retry_queue(store, &job)).await
    }

    async fn parked_messages(
        &self,
        request: Request<v1::ParkedMessagesRequest>,
    ) -> Reply<v1::ParkedMessagesReply> {
        let request = request.into_inner();
        blocking(&self.0.store, move |store| {
            query::parked_messages(store, &request)
        })
        .await
    }

    async fn retry_messages(
        &self,
        request: Request<v1::RetryMessagesRequest>,
    ) -> Reply<v1::RetriedQueue> {
        let id = request.into_inner().id;
        blocking(&self.0.store, move |store| query::retry_messages(store, id)).await
    }
}

#[tonic::async_trait]
impl v1::history_server::History for History {
    async fn files(&self, request: Request<v1::HistoryRequest>) -> Reply<v1::HistoryReply> {
        let request = request.into_inner();
        blocking(&self.0.store, move |store| query::history(store, &request)).await
    }

    async fn trace(&self, request: Request<v1::TraceRequest>) -> Reply<v1::HistoryReply> {
        let request = request.into_inner();
        blocking(&self.0.store, move |store| query::trace(store, &request)).await
    }
}

#[tonic::async_trait]
impl v1::events_server::Events for Events {
    type FollowStream = Streamed<v1::LogEvent>;

    async fn follow(&self, request: Request<v1::EventsRequest>) -> Reply<Self::FollowStream> {
        let request = request.into_inner();
        let cursor = match request.cursor.as_str() {
            "now" => {
                let now = blocking(&self.0.store, |store| Ok(Cursor::now(store)?));
                now.await?.into_inner()
            }
            text => Cursor::parse(text)
                .ok_or_else(|| Status::invalid_argument(format!("`{text}` is not a cursor")))?,
        };
        let (to, receiver) = mpsc::channel(WAITING_EVENTS);
        let (store, stop) = (self.0.store.clone(), self.0.stop.clone());
        tokio::spawn(follow::follow(store, cursor, request.follow, to, stop));
        Ok(Response::new(streamed(receiver)))
    }
}

fn secret_status(error: &SecretError) -> Status {
    let message = knarr_engine::chain(error);
    match error {
        SecretError::Missing { .. } => Status::not_found(message),
        SecretError::Name { .. } | SecretError::TooLong { .. } => Status::invalid_argument(message),
        SecretError::Store(_) => Status::internal(message),
        _ => Status::failed_precondition(message),
    }
}

impl Secrets {
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&knarr_store::secrets::Secrets) -> Result<T, SecretError> + Send + 'static,
    ) -> Result<T, Status> {
        let secrets = knarr_store::secrets::Secrets::new(self.0.store.clone(), self.0.key.clone());
        let worked = tokio::task::spawn_blocking(move || work(&secrets)).await;
        let worked = worked.map_err(|_panic| Status::internal("internal error"))?;
        worked.map_err(|error| secret_status(&error))
    }
}

#[tonic::async_trait]
impl v1::secrets_server::Secrets for Secrets {
    async fn set(&self, request: Request<v1::SetSecretRequest>) -> Reply<v1::SecretDone> {
        let v1::SetSecretRequest { name, value } = request.into_inner();
        let value = SecretValue::new(value);
        self.with(move |secrets| secrets.set(&name, &value)).await?;
        Ok(Response::new(v1::SecretDone {}))
    }

    async fn list(&self, _request: Request<v1::ListSecretsRequest>) -> Reply<v1::ListSecretsReply> {
        let listed = self.with(knarr_store::secrets::Secrets::list).await?;
        let secret = |info: knarr_store::secrets::SecretInfo| v1::Secret {
            name: info.name,
            updated_at: info.updated_at.nanoseconds(),
        };
        let secrets = listed.into_iter().map(secret).collect();
        Ok(Response::new(v1::ListSecretsReply { secrets }))
    }

    async fn remove(&self, request: Request<v1::SecretName>) -> Reply<v1::SecretDone> {
        let name = request.into_inner().name;
        self.with(move |secrets| secrets.remove(&name)).await?;
        Ok(Response::new(v1::SecretDone {}))
    }
}

#[tonic::async_trait]
impl v1::node_server::Node for Nodes {
    async fn status(&self, _request: Request<v1::StatusRequest>) -> Reply<v1::StatusReply> {
        let now = self.0.clock.now();
        let status = blocking(&self.0.store, move |store| query::status(store, now)).await?;
        let mut status = status.into_inner();
        let jobs = self.0.control.list().await;
        for job in jobs.map_err(|error| control_status(&error))? {
            let running = job.running.iter().map(|run| v1::Running {
                job: job.name.clone(),
                run: run.run,
                cause: run.cause.to_owned(),
                since: run.since.nanoseconds(),
            });
            status.running.extend(running);
        }
        status.node = Some(self.0.about());
        let node = &self.0;
        node.counting
            .fill(&mut status, &node.store, now, &node.stop);
        Ok(Response::new(status))
    }

    async fn reload(&self, _request: Request<v1::ReloadRequest>) -> Reply<v1::Reloaded> {
        Ok(Response::new(self.0.reload().await?))
    }

    async fn held(&self, _request: Request<v1::HeldRequest>) -> Reply<v1::HeldReply> {
        blocking(&self.0.store, query::held).await
    }

    async fn approve(&self, request: Request<v1::ApproveRequest>) -> Reply<v1::Approved> {
        let (by, request) = (by(&request), request.into_inner());
        blocking(&self.0.store, move |store| {
            query::approve(store, &request, &by)
        })
        .await
    }
}
