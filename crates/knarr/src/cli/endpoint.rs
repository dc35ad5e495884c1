//! `endpoint`: the places that jobs name.

use clap::{Args, Subcommand};
use knarr_node::v1;
use knarr_store::definitions::DefinitionKind;

use crate::cli::backend::{Fresh, Session, told};
use crate::cli::context::Context;
use crate::cli::desk;
use crate::command_error::{CommandResult, Outcome};
use crate::output::{Align, Format, Output, Style};

/// List, test and remove endpoints
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
        EndpointVerb::Rm(OneEndpoint { endpoint }) => remove(endpoint, context, output),
    }
}

fn list(context: &Context, output: &mut Output) -> CommandResult {
    use knarr_node::Host as _;
    let endpoints = desk::ask(
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
        async |desk| Ok(desk.host().endpoints()),
    )?;
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
            }))?;
        }
        rows.push([
            endpoint.name.clone(),
            origin.to_owned(),
            endpoint.r#type.clone(),
            endpoint.place.clone(),
        ]);
    }
    if output.format == Format::Text {
        let headings = [
            ("ENDPOINT", Align::Left),
            ("FROM", Align::Left),
            ("TYPE", Align::Left),
            ("PLACE", Align::Left),
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

fn remove(endpoint: &str, context: &Context, output: &mut Output) -> CommandResult {
    let request = v1::EndpointName {
        endpoint: endpoint.to_owned(),
    };
    let changed = desk::ask(
        context,
        async |client| Ok(client.endpoints().remove(request).await?.into_inner()),
        async |desk| {
            desk.remove_definition(DefinitionKind::Endpoint, endpoint)
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
