//! `secret`: set, list and remove secrets. They come from stdin or a prompt, never from an argument.

use std::io::Read as _;

use clap::{Args, Subcommand};
use knarr_node::client::Client;
use knarr_node::{timestamp, v1};
use knarr_store::secrets::{MAX_SECRET_BYTES, SecretError, SecretValue, Secrets};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::cli::backend::{self, Backend, Fresh, Session};
use crate::cli::context::Context;
use crate::cli::look::shown_time;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::{Align, Format, Output};
use crate::secrets::key_source;
use crate::terminal;

/// Keep secrets, which the configuration names as { secret: NAME }
///
/// They are stored encrypted; the key lies outside of the state directory, in
/// $XDG_CONFIG_HOME/knarr/secret.key (for the system's state /etc/knarr/secret.key), or comes as
/// $KNARR_SECRET_KEY or as the systemd credential knarr-secret-key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr secret set acme-password\n  knarr secret ls")]
pub(crate) struct SecretArguments {
    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    /// Store a secret, read from stdin or asked for at the terminal
    ///
    /// From stdin one line break at the end is left out: `printf %s "$PASSWORD" | knarr secret set
    /// NAME` and a file with a last line both work.
    #[command(after_help = "Example:\n  knarr secret set acme-password")]
    Set {
        /// How the configuration names it
        name: String,
    },
    /// List the names of the secrets
    #[command(after_help = "Example:\n  knarr secret ls")]
    Ls,
    /// Remove a secret
    #[command(after_help = "Example:\n  knarr secret rm acme-password")]
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    updated_at: knarr_core::Timestamp,
}

pub(crate) fn run(
    arguments: &SecretArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let session = Session::open(context, Fresh::Make)?;
    let direct = match &session.backend {
        Backend::State(store) => {
            let key = key_source(context, store);
            Some(Secrets::new(store.as_ref().clone(), key))
        }
        Backend::Node(_) => None,
    };
    match &arguments.command {
        SecretCommand::Set { name } => {
            let value = read_value(name, context)?;
            match &direct {
                Some(secrets) => secrets.set(name, &value).map_err(told)?,
                None => {
                    let request = v1::SetSecretRequest {
                        name: name.clone(),
                        value: value.as_bytes().to_vec(),
                    };
                    asked(&session, async |client| client.secrets().set(request).await)?;
                }
            }
        }
        SecretCommand::Rm { name } => match &direct {
            Some(secrets) => secrets.remove(name).map_err(told)?,
            None => {
                let request = v1::SecretName { name: name.clone() };
                asked(&session, async |client| {
                    client.secrets().remove(request).await
                })?;
            }
        },
        SecretCommand::Ls => {
            let list: Vec<(String, knarr_core::Timestamp)> = match &direct {
                Some(secrets) => {
                    let list = secrets.list().map_err(told)?.into_iter();
                    list.map(|secret| (secret.name, secret.updated_at))
                        .collect()
                }
                None => {
                    let request = v1::ListSecretsRequest {};
                    let listed = asked(&session, async |client| {
                        client.secrets().list(request).await
                    })?;
                    let list = listed.secrets.into_iter();
                    list.map(|secret| (secret.name, timestamp(secret.updated_at)))
                        .collect()
                }
            };
            print(&list, output)?;
        }
    }
    Ok(Outcome::Done)
}

/// Asks the node.
fn asked<T>(
    session: &Session,
    call: impl AsyncFnOnce(Client) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, CommandError> {
    let answer = session.runtime.block_on(call(session.node()?));
    Ok(answer.map_err(backend::told)?.into_inner())
}

fn print(
    list: &[(String, knarr_core::Timestamp)],
    output: &mut Output,
) -> Result<(), CommandError> {
    if output.format == Format::Json {
        for (name, updated_at) in list {
            let updated_at = *updated_at;
            output.json(&Listed { name, updated_at })?;
        }
        return Ok(());
    }
    let rows: Vec<[String; 2]> = list
        .iter()
        .map(|(name, updated_at)| [name.clone(), shown_time(*updated_at)])
        .collect();
    Ok(output.table([("NAME", Align::Left), ("SET", Align::Left)], &rows)?)
}

fn read_value(name: &str, context: &Context) -> Result<SecretValue, CommandError> {
    if context.environment.stdin_is_terminal {
        let question = format!("Secret {}: ", knarr_core::path::printable(name.as_bytes()));
        let typed = terminal::ask_secret(&question)
            .map_err(CommandError::failed)?
            .filter(|typed| !typed.is_empty())
            .ok_or_else(|| CommandError::usage("nothing was typed, and nothing was stored"))?;
        return Ok(SecretValue::new(typed.as_bytes().to_vec()));
    }
    // Reserved at once, so that growing leaves no copies behind.
    let limit = MAX_SECRET_BYTES + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    std::io::stdin()
        .lock()
        .take(limit as u64)
        .read_to_end(&mut bytes)
        .map_err(CommandError::failed)?;
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.is_empty() {
        return Err(CommandError::usage(
            "stdin was empty, and nothing was stored",
        ));
    }
    Ok(SecretValue::new(text.to_vec()))
}

fn told(error: SecretError) -> CommandError {
    match error {
        SecretError::Missing { name } => {
            CommandError::usage(format!("there is no secret \"{name}\""))
                .hint("`knarr secret ls` lists them")
        }
        SecretError::Store(error) => error.into(),
        other => CommandError::usage(other),
    }
}
