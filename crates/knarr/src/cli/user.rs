//! `user`: who may log in to the own SFTP server.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use knarr_node::{timestamp, v1};
use knarr_store::definitions::DefinitionKind;

use crate::cli::context::Context;
use crate::cli::desk;
use crate::cli::job::change::{self, Put, user};
use crate::command_error::{CommandResult, Outcome};
use crate::output::{Align, Format, Output};

/// List, add, change and remove users of the SFTP server
///
/// Users stand in the configuration, or are added to a node while it runs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr user ls\n  knarr user add acme.yaml")]
pub(crate) struct UserArguments {
    #[command(subcommand)]
    verb: UserVerb,
}

#[derive(Debug, Subcommand)]
enum UserVerb {
    /// List the users: how they log in, and what they see
    #[command(after_help = "Examples:\n  knarr user ls --json")]
    Ls,
    /// Add the users of a document
    ///
    /// The document has `sftp_server: { users: … }` as the configuration has it, and may have jobs and
    /// endpoints, too. A password is given as its hash, as `knarr sftp-server hash-password` prints it; files with keys
    /// cannot be named. It survives a restart of the node.
    #[command(after_help = "Examples:\n  knarr user add acme.yaml")]
    Add(Document),
    /// Replace users that were added; who is another than before loses the connections
    #[command(after_help = "Examples:\n  knarr user update acme.yaml")]
    Update(Document),
    /// Remove a user that was added, and end what is open of them
    #[command(after_help = "Examples:\n  knarr user rm acme")]
    Rm {
        /// The user
        #[arg(value_name = "USER")]
        user: String,
    },
}

#[derive(Debug, Args)]
struct Document {
    /// The file, or - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) fn run(
    arguments: &UserArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    match &arguments.verb {
        UserVerb::Ls => list(context, output),
        UserVerb::Add(Document { file }) => change::put(Put::Add, file, context, output),
        UserVerb::Update(Document { file }) => change::put(Put::Update, file, context, output),
        UserVerb::Rm { user } => remove(user, context, output),
    }
}

fn list(context: &Context, output: &mut Output) -> CommandResult {
    let users = desk::ask(
        context,
        async |client| {
            let request = v1::ListUsersRequest {};
            Ok(client.users().list(request).await?.into_inner().users)
        },
        async |desk| desk.list_users().await,
    )?;
    let mut rows = Vec::new();
    for user in &users {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let origin = match user.origin() {
            v1::job::Origin::Added => "added",
            v1::job::Origin::File | v1::job::Origin::Unspecified => "file",
        };
        if output.format == Format::Json {
            output.json(&serde_json::json!({
                "user": user.name,
                "origin": origin,
                "enabled": user.enabled,
                "expires": given(&user.expires),
                "logs_in_by": user.proofs,
                "places": user.places,
                "problem": given(&user.problem),
                "added_at": user.added_at.map(timestamp),
                "added_by": given(&user.added_by),
                "updated_at": user.updated_at.map(timestamp),
            }))?;
        }
        let state = if !user.problem.is_empty() {
            user.problem.clone()
        } else if !user.enabled {
            "disabled".to_owned()
        } else if user.expires.is_empty() {
            "-".to_owned()
        } else {
            format!("until {}", user.expires)
        };
        rows.push([
            user.name.clone(),
            origin.to_owned(),
            user.proofs.join(", "),
            user.places.join(", "),
            state,
        ]);
    }
    if output.format == Format::Text {
        let headings = [
            ("USER", Align::Left),
            ("FROM", Align::Left),
            ("LOGS IN BY", Align::Left),
            ("SEES", Align::Left),
            ("STATE", Align::Left),
        ];
        output.table(headings, &rows)?;
    }
    Ok(Outcome::Done)
}

fn remove(name: &str, context: &Context, output: &mut Output) -> CommandResult {
    let request = v1::UserName {
        user: name.to_owned(),
    };
    let changed = desk::ask(
        context,
        async |client| Ok(client.users().remove(request).await?.into_inner()),
        async |desk| {
            desk.remove_definition(DefinitionKind::User, name, &user(context))
                .await
        },
    )?;
    if output.format == Format::Json {
        output.json(&serde_json::json!({ "user": name, "changed": changed.changed }))?;
    } else {
        output.line(format!("{name} is removed"))?;
    }
    Ok(Outcome::Done)
}
