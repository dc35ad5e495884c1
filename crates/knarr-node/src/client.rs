//! The other end of the socket, for commands.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::socket::SOCKET;
use crate::v1;

/// How long a node may take to answer that it is there.
const GREETING: Duration = Duration::from_secs(10);

/// The longest answer that a command takes, in bytes: a list of all jobs, however many.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A connection to a node.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

/// Why a node that is there does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket cannot be used.
    #[error("a node runs with this state, but its socket {} cannot be used", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not answer.
    #[error(
        "a node runs with this state, but does not serve the user of this command at {}: {reason}",
        path.display()
    )]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

/// Connects to the node of a state directory; nothing if none runs there.
///
/// # Errors
/// If one is there and does not serve us.
pub async fn connect(state: &Path) -> Result<Option<Client>, ConnectError> {
    let path = state.join(SOCKET);
    match UnixStream::connect(&path).await {
        Ok(_there) => {}
        // Nobody listens at what a dead process left.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(source) => return Err(ConnectError::Socket { path, source }),
    }
    let refused = |reason: String| ConnectError::Refused {
        path: path.clone(),
        reason,
    };
    // The name of the host means nothing on this socket.
    let endpoint = Endpoint::from_static("http://node.invalid").connect_timeout(GREETING);
    let socket = path.clone();
    let connector = tower::service_fn(move |_uri: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let connected = endpoint.connect_with_connector(connector).await;
    let channel = connected.map_err(|error| refused(knarr_engine::chain(&error)))?;
    let client = Client { channel };
    // Says whether we are served at all: the node hangs up on others.
    let request = v1::HeldRequest {};
    match tokio::time::timeout(GREETING, client.node().held(request)).await {
        Ok(Ok(_served)) => Ok(Some(client)),
        Ok(Err(status)) => Err(refused(status.message().to_owned())),
        Err(_elapsed) => Err(refused("it does not answer".to_owned())),
    }
}

impl Client {
    /// The service of jobs.
    #[must_use]
    pub fn jobs(&self) -> v1::jobs_client::JobsClient<Channel> {
        v1::jobs_client::JobsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The service of runs.
    #[must_use]
    pub fn runs(&self) -> v1::runs_client::RunsClient<Channel> {
        v1::runs_client::RunsClient::new(self.channel.clone())
    }

    /// The service of endpoints.
    #[must_use]
    pub fn endpoints(&self) -> v1::endpoints_client::EndpointsClient<Channel> {
        v1::endpoints_client::EndpointsClient::new(self.channel.clone())
    }

    /// The service of the queue.
    #[must_use]
    pub fn queue(&self) -> v1::queue_client::QueueClient<Channel> {
        v1::queue_client::QueueClient::new(self.channel.clone())
    }

    /// The service of the history.
    #[must_use]
    pub fn history(&self) -> v1::history_client::HistoryClient<Channel> {
        v1::history_client::HistoryClient::new(self.channel.clone())
    }

    /// The service of events.
    #[must_use]
    pub fn events(&self) -> v1::events_client::EventsClient<Channel> {
        v1::events_client::EventsClient::new(self.channel.clone())
    }

    /// The service of secrets.
    #[must_use]
    pub fn secrets(&self) -> v1::secrets_client::SecretsClient<Channel> {
        v1::secrets_client::SecretsClient::new(self.channel.clone())
    }

    /// The service of alerts.
    #[must_use]
    pub fn alerts(&self) -> v1::alerts_client::AlertsClient<Channel> {
        v1::alerts_client::AlertsClient::new(self.channel.clone())
    }

    /// The service of the custody record.
    #[must_use]
    pub fn audit(&self) -> v1::audit_client::AuditClient<Channel> {
        v1::audit_client::AuditClient::new(self.channel.clone())
    }

    /// The service of users.
    #[must_use]
    pub fn users(&self) -> v1::users_client::UsersClient<Channel> {
        v1::users_client::UsersClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The service of the node.
    #[must_use]
    pub fn node(&self) -> v1::node_client::NodeClient<Channel> {
        v1::node_client::NodeClient::new(self.channel.clone())
    }
}
