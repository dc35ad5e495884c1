//! Where jobs and endpoints are looked up and changed: at the node, or, if none runs, on the state itself.

use std::sync::Arc;

use knarr_node::client::Client;
use knarr_node::{Desk, DeskError, v1};
use knarr_store::Store;
use tonic::Status;

use crate::cli::backend::{Backend, Fresh, Session, told};
use crate::cli::context::Context;
use crate::cli::host::NodeHost;
use crate::command_error::CommandError;
use crate::location::{Asking, Opener};

/// The desk of a state that no node has.
type OwnDesk<'c> = Desk<NodeHost<'c>>;

/// A desk on a state directory, with the file and what was added.
///
/// # Errors
/// If the file is wrong, or the state cannot be read.
pub(crate) async fn own<'c>(
    context: &'c Context,
    store: Store,
) -> Result<OwnDesk<'c>, CommandError> {
    let opener = Opener::with_config(context, context.config()?, Asking::Person);
    let host = NodeHost::new(context, opener, Vec::new());
    let mut desk = Desk::new(host, store, Arc::new(context.clock), None);
    desk.recall().await?;
    Ok(desk)
}

/// Asks the node, or works on the state.
///
/// # Errors
/// What the one or the other says.
pub(crate) fn ask<T>(
    context: &Context,
    node: impl AsyncFnOnce(Client) -> Result<T, Status>,
    state: impl AsyncFnOnce(&mut OwnDesk<'_>) -> Result<T, DeskError>,
) -> Result<T, CommandError> {
    let session = Session::open(context, Fresh::Make)?;
    session.runtime.block_on(async {
        match &session.backend {
            Backend::Node(client) => node(client.clone()).await.map_err(told),
            Backend::State(store) => {
                let mut desk = own(context, store.as_ref().clone()).await?;
                Ok(state(&mut desk).await?)
            }
        }
    })
}

/// All jobs, or the one of this name if there is one.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn jobs(context: &Context, only: Option<&str>) -> Result<Vec<v1::Job>, CommandError> {
    ask(
        context,
        async |client| match only {
            None => {
                let reply = client.jobs().list(v1::ListJobsRequest {}).await?;
                Ok(reply.into_inner().jobs)
            }
            Some(job) => {
                let job = job.to_owned();
                match client.jobs().show(v1::JobName { job }).await {
                    Ok(job) => Ok(vec![job.into_inner()]),
                    Err(status) if status.code() == tonic::Code::NotFound => Ok(Vec::new()),
                    Err(status) => Err(status),
                }
            }
        },
        async |desk| desk.list(only).await,
    )
}

/// One job.
///
/// # Errors
/// If there is none of that name, with what was probably meant.
pub(crate) fn job(context: &Context, name: &str) -> Result<v1::Job, CommandError> {
    if let Some(job) = jobs(context, Some(name))?.pop() {
        return Ok(job);
    }
    let all = jobs(context, None)?;
    let names: Vec<&str> = all.iter().map(|job| job.name.as_str()).collect();
    let error = CommandError::usage(format!("there is no job `{name}`"));
    Err(error.hint(crate::suggest::help(name, &names, "known jobs")))
}
