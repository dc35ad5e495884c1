//! Serves the protocol on the socket.

use std::sync::{Arc, Mutex, PoisonError};

use knarr_core::Clock;
use knarr_engine::node::Control;
use knarr_engine::oneshot::Environment;
use knarr_store::Store;
use knarr_store::secrets::KeySource;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::counting::Counting;
use crate::desk::{Counter, Desk, FileState};
use crate::host::Host;
use crate::services;
use crate::socket::{Known, Socket};
use crate::{MAX_CONNECTIONS, MAX_MESSAGE_BYTES, v1};

/// How many calls of one connection are under way at once.
const CALLS: usize = 32;

/// How long the supervisor may take to answer if it is alive.
const ALIVE: std::time::Duration = std::time::Duration::from_secs(5);

/// What the services share.
#[derive(Clone)]
pub struct Node {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) control: Control,
    pub(crate) counter: Counter,
    pub(crate) environment: Environment,
    pub(crate) key: KeySource,
    pub(crate) stop: CancellationToken,
    pub(crate) counting: Counting,
    version: &'static str,
    started_at: i64,
    file: Arc<Mutex<FileState>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

impl Node {
    /// What is served: the desk, and the node behind `control`, which runs in `environment`. `key` is where
    /// the key of the secrets is, `version` that of the program.
    #[must_use]
    pub fn new<H: Host>(
        desk: &Desk<H>,
        control: Control,
        environment: Environment,
        key: KeySource,
        version: &'static str,
    ) -> Self {
        Self {
            store: environment.store.clone(),
            clock: Arc::clone(&environment.clock),
            started_at: environment.clock.now().nanoseconds(),
            stop: environment.cancel.clone(),
            counting: Counting::default(),
            counter: desk.counter(),
            file: desk.file(),
            control,
            environment,
            key,
            version,
        }
    }

    pub(crate) fn about(&self) -> v1::About {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        v1::About {
            version: self.version.to_owned(),
            process: std::process::id(),
            started_at: self.started_at,
            file: file.name.clone(),
            file_problem: file.problem.clone(),
            file_read_at: file.read_at,
            needs_restart: file.needs_restart.clone(),
        }
    }

    /// Whether the supervisor of the jobs answers, within some seconds.
    pub async fn is_alive(&self) -> bool {
        let listed = tokio::time::timeout(ALIVE, self.control.list()).await;
        matches!(listed, Ok(Ok(_)))
    }

    /// Reads the file again, as `knarr reload` and SIGHUP ask for.
    ///
    /// # Errors
    /// If the node is stopping. What is wrong with the file is in the answer.
    pub async fn reload(&self) -> Result<v1::Reloaded, crate::DeskError> {
        self.counter.ask(crate::desk::Request::Reload).await
    }
}

/// Serves until the node stops. What is asked for then is answered, streams end.
///
/// # Errors
/// If the socket does not work.
pub async fn serve(node: Node, socket: Socket) -> Result<(), tonic::transport::Error> {
    let stop = node.stop.clone();
    let (accepted, connections) = mpsc::channel(1);
    let accepting = accept(&socket, &accepted, &stop);
    let serving = Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .max_concurrent_streams(64)
        .add_service(
            v1::jobs_server::JobsServer::new(services::Jobs(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::runs_server::RunsServer::new(services::Runs(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::endpoints_server::EndpointsServer::new(services::Endpoints(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::queue_server::QueueServer::new(services::Queue(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::history_server::HistoryServer::new(services::History(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::events_server::EventsServer::new(services::Events(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::secrets_server::SecretsServer::new(services::Secrets(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::alerts_server::AlertsServer::new(services::Alerts(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::audit_server::AuditServer::new(services::Audit(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::users_server::UsersServer::new(services::Users(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            v1::node_server::NodeServer::new(services::Nodes(node))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.cancelled());
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return served,
        () = accepting => {}
    }
    drop(accepted);
    serving.await
}

/// Takes connections, as many as there is room for, of those who are served.
async fn accept(
    socket: &Socket,
    accepted: &mpsc::Sender<Result<Known, std::io::Error>>,
    stop: &CancellationToken,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            stream = socket.listener.accept() => stream,
        };
        match stream {
            Ok((stream, _unnamed)) => {
                if let Some(known) = Known::new(stream, permit)
                    && accepted.send(Ok(known)).await.is_err()
                {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the control socket is lost");
                // Too many open files, for instance: not again at once.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}
