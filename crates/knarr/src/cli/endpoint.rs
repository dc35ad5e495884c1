//! `endpoint`: the places that jobs name.

use clap::{Args, Subcommand};
use knarr_node::query::{self, Pause};
use knarr_node::{timestamp, v1};
use knarr_store::definitions::DefinitionKind;

use crate::cli::backend::{Fresh, Session, told};
use crate::cli::context::Context;
use crate::cli::desk;
use crate::cli::job::change::{PauseVerb, user};
use crate::cli::look::shown_time;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Align, Format, Output, Style};

/// List, test, pause and remove endpoints
///
/// Endpoints stand in the configuration, or are added with the jobs that need them (`knarr job add`).
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr endpoint ls\n  knarr endpoint test partner")]
pub(crate) struct EndpointArguments {
    #[command(subcommand)]
    verb: EndpointVerb,
}

#[derive(Debug, Subcommand)]
enum EndpointVerb {
    /// List the endpoints
    #[command(after_help = "Examples:\n  knarr endpoint ls --json")]
    Ls,
    /// Have the running node connect to an endpoint and list its root; without a node, `knarr check --connect`
    #[command(after_help = "Examples:\n  knarr endpoint test partner")]
    Test(OneEndpoint),
    /// Have the jobs that use an endpoint wait
    ///
    /// What is under way with it ends in good order, and nothing begins. When it is resumed, each job that
    /// would have run meanwhile runs once. It survives a restart of the node.
    #[command(after_help = "Examples:\n  knarr endpoint pause partner")]
    Pause(OneEndpoint),
    /// End a pause
    #[command(after_help = "Examples:\n  knarr endpoint resume partner")]
    Resume(OneEndpoint),
    /// Remove an endpoint that was added and that no job names
    #[command(after_help = "Examples:\n  knarr endpoint rm partner")]
    Rm(OneEndpoint),
}

#[derive(Debug, Args)]
struct OneEndpoint {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
}

pub(crate) fn run(
    arguments: &EndpointArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    match &arguments.verb {
        EndpointVerb::Ls => list(context, output),
        EndpointVerb::Test(OneEndpoint { endpoint }) => test(endpoint, context, output),
        EndpointVerb::Pause(OneEndpoint { endpoint }) => {
            pause(endpoint, PauseVerb::Begin, context, output)
        }
        EndpointVerb::Resume(OneEndpoint { endpoint }) => {
            pause(endpoint, PauseVerb::End, context, output)
        }
        EndpointVerb::Rm(OneEndpoint { endpoint }) => remove(endpoint, context, output),
    }
}

/// All endpoints.
fn all(context: &Context) -> Result<Vec<v1::Endpoint>, CommandError> {
    desk::ask(
        context,
        async |client| {
            let request = v1::ListEndpointsRequest {};
            Ok(client
                .endpoints()
                .list(request)
                .await?
                .into_inner()
                .endpoints)
        },
        async |desk| desk.list_endpoints().await,
    )
}

fn list(context: &Context, output: &mut Output) -> CommandResult {
    let endpoints = all(context)?;
    let mut rows = Vec::new();
    for endpoint in &endpoints {
        let origin = match endpoint.origin() {
            v1::job::Origin::Added => "added",
            v1::job::Origin::File | v1::job::Origin::Unspecified => "file",
        };
        if output.format == Format::Json {
            output.json(&serde_json::json!({
                "endpoint": endpoint.name,
                "type": endpoint.r#type,
                "origin": origin,
                "place": endpoint.place,
                "paused_since": endpoint.paused_since.map(timestamp),
                "paused_by": (!endpoint.paused_by.is_empty()).then_some(&endpoint.paused_by),
                "problem": (!endpoint.problem.is_empty()).then_some(&endpoint.problem),
            }))?;
        }
        let state = match endpoint.paused_since {
            _ if !endpoint.problem.is_empty() => endpoint.problem.clone(),
            Some(since) => format!(
                "paused by {} since {}",
                endpoint.paused_by,
                shown_time(timestamp(since))
            ),
            None => "-".to_owned(),
        };
        rows.push([
            endpoint.name.clone(),
            origin.to_owned(),
            endpoint.r#type.clone(),
            endpoint.place.clone(),
            state,
        ]);
    }
    if output.format == Format::Text {
        let headings = [
            ("ENDPOINT", Align::Left),
            ("FROM", Align::Left),
            ("TYPE", Align::Left),
            ("PLACE", Align::Left),
            ("STATE", Align::Left),
        ];
        output.table(headings, &rows)?;
    }
    Ok(Outcome::Done)
}

fn test(endpoint: &str, context: &Context, output: &mut Output) -> CommandResult {
    let session = Session::open(context, Fresh::Refuse)?;
    let client = session.node()?;
    let request = v1::EndpointName {
        endpoint: endpoint.to_owned(),
    };
    let answer = session.runtime.block_on(client.endpoints().test(request));
    let tested = answer.map_err(told)?.into_inner();
    if output.format == Format::Json {
        output.json(&serde_json::json!({
            "endpoint": endpoint,
            "ok": tested.reached,
            "location": tested.location,
            "milliseconds": tested.took_milliseconds,
            "entries": tested.entries,
            "error": (!tested.error.is_empty()).then_some(&tested.error),
        }))?;
    } else if tested.reached {
        let word = output.paint(Style::Good, "reached");
        output.line(format!(
            "{word}      {endpoint}   {} in {} ms",
            tested.location, tested.took_milliseconds
        ))?;
    } else {
        let word = output.paint(Style::Bad, "not reached");
        output.line(format!("{word}  {endpoint}   {}", tested.error))?;
    }
    Ok(if tested.reached {
        Outcome::Done
    } else {
        Outcome::Unreachable
    })
}

fn pause(endpoint: &str, what: PauseVerb, context: &Context, output: &mut Output) -> CommandResult {
    if what == PauseVerb::Begin {
        let all = all(context)?;
        if !all.iter().any(|one| one.name == endpoint) {
            let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
            let error = CommandError::usage(format!("there is no endpoint `{endpoint}`"));
            return Err(error.hint(crate::suggest::help(endpoint, &names, "known endpoints")));
        }
    }
    let session = Session::open(context, Fresh::Make)?;
    let request = v1::EndpointName {
        endpoint: endpoint.to_owned(),
    };
    let changed = session.ask(
        async |client| {
            let mut endpoints = client.endpoints();
            let answer = match what {
                PauseVerb::Begin => endpoints.pause(request).await?,
                PauseVerb::End => endpoints.resume(request).await?,
            };
            Ok(answer.into_inner())
        },
        |store| {
            let what = match what {
                PauseVerb::Begin => Pause::Begin { by: user(context) },
                PauseVerb::End => Pause::End,
            };
            query::pause_endpoint(store, endpoint, what)
        },
    )?;
    if output.format == Format::Json {
        output.json(&serde_json::json!({ "endpoint": endpoint, "changed": changed.changed }))?;
        return Ok(Outcome::Done);
    }
    output.line(match (what, changed.changed) {
        (PauseVerb::Begin, true) => format!("{endpoint} is paused: jobs that use it wait"),
        (PauseVerb::Begin, false) => format!("{endpoint} was paused already"),
        (PauseVerb::End, true) => format!("{endpoint} is resumed"),
        (PauseVerb::End, false) => format!("{endpoint} was not paused"),
    })?;
    Ok(Outcome::Done)
}

fn remove(endpoint: &str, context: &Context, output: &mut Output) -> CommandResult {
    let request = v1::EndpointName {
        endpoint: endpoint.to_owned(),
    };
    let changed = desk::ask(
        context,
        async |client| Ok(client.endpoints().remove(request).await?.into_inner()),
        async |desk| {
            desk.remove_definition(DefinitionKind::Endpoint, endpoint, &user(context))
                .await
        },
    )?;
    if output.format == Format::Json {
        output.json(&serde_json::json!({ "endpoint": endpoint, "changed": changed.changed }))?;
    } else {
        output.line(format!("{endpoint} is removed"))?;
    }
    Ok(Outcome::Done)
}
