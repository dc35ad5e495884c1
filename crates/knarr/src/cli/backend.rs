//! Who answers: the node that runs with this state, or, if none does, the state directory itself.

use std::path::{Path, PathBuf};

use knarr_node::client::{self, Client, ConnectError};
use knarr_node::query::QueryError;
use knarr_node::{DeskError, Unreadable};
use knarr_store::Store;
use tokio::runtime::Runtime;
use tonic::{Code, Status};

use crate::cli::context::Context;
use crate::command_error::{CommandError, Kind};

/// Who answers.
pub(crate) enum Backend {
    /// A node, over its socket.
    Node(Client),
    /// The state, which no node has.
    State(Box<Store>),
}

/// A backend, and the runtime that speaks to it.
pub(crate) struct Session {
    pub(crate) runtime: Runtime,
    pub(crate) backend: Backend,
    pub(crate) state: PathBuf,
}

/// What happens if there is no state yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fresh {
    /// It is made.
    Make,
    /// That is an error.
    Refuse,
}

impl Session {
    /// Finds out who answers.
    ///
    /// # Errors
    /// If a node is there and does not serve us, or the state cannot be opened.
    pub(crate) fn open(context: &Context, fresh: Fresh) -> Result<Self, CommandError> {
        let state = context.state()?;
        let runtime = context.runtime()?;
        let backend = match runtime.block_on(client(&state))? {
            Some(client) => Backend::Node(client),
            None => Backend::State(Box::new(match fresh {
                Fresh::Make => context.open_store(&state)?,
                Fresh::Refuse => context.existing_store()?,
            })),
        };
        Ok(Self {
            runtime,
            backend,
            state,
        })
    }

    /// Asks the node, or the state.
    ///
    /// # Errors
    /// What the one or the other says.
    pub(crate) fn ask<T>(
        &self,
        node: impl AsyncFnOnce(Client) -> Result<T, Status>,
        state: impl FnOnce(&Store) -> Result<T, QueryError>,
    ) -> Result<T, CommandError> {
        match &self.backend {
            Backend::Node(client) => {
                let asked = self.runtime.block_on(node(client.clone()));
                asked.map_err(told)
            }
            Backend::State(store) => Ok(state(store)?),
        }
    }

    /// The node, without which the command makes no sense.
    ///
    /// # Errors
    /// If none runs.
    pub(crate) fn node(&self) -> Result<Client, CommandError> {
        match &self.backend {
            Backend::Node(client) => Ok(client.clone()),
            Backend::State(_) => Err(CommandError::new(
                Kind::Unreachable,
                NoNode(self.state.clone()),
            )
            .hint("`knarr run` starts one; --state or $KNARR_STATE name its state directory")),
        }
    }
}

/// The node of a state directory, if one runs.
///
/// # Errors
/// If it is there and does not serve us.
pub(crate) async fn client(state: &Path) -> Result<Option<Client>, CommandError> {
    client::connect(state).await.map_err(|error| {
        let error: ConnectError = error;
        CommandError::new(Kind::Unreachable, error)
            .hint("only root and the user of the node are served")
    })
}

/// No node runs.
#[derive(Debug, thiserror::Error)]
#[error("no node runs with the state in {}", .0.display())]
struct NoNode(PathBuf);

/// What a node says, with the exit code that belongs to it.
pub(crate) fn told(status: Status) -> CommandError {
    let message = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => {
            CommandError::usage(message)
        }
        Code::Unavailable => CommandError::new(
            Kind::Unreachable,
            format!("the node does not answer: {message}"),
        ),
        _ => CommandError::failed(format!("the node failed: {message}")),
    }
}

impl From<QueryError> for CommandError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Argument(message) | QueryError::Missing(message) => Self::usage(message),
            QueryError::Store(error) => error.into(),
        }
    }
}

impl From<DeskError> for CommandError {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Store(error) => error.into(),
            error => Self::usage(error),
        }
    }
}

impl From<Unreadable> for CommandError {
    fn from(error: Unreadable) -> Self {
        Self::failed(error)
    }
}
