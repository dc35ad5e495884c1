//! `init`: writes a first configuration, and tries it.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use knarr_core::location::{Location, ObjectStoreKind};
use knarr_remote::ListOptions;

use crate::cli::context::Context;
use crate::cli::transfer::location;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::{self, Bases, Config};
use crate::location::{Asking, Opener};
use crate::output::{Format, Output};
use crate::terminal;

/// Write a first configuration, and try it
///
/// Asks for what is not given, if it is run at a terminal; where the destination is asked for, also for
/// what its kind needs. Writes a commented knarr.yaml (or the file
/// that --config names) with one job and its destination, which is then connected to. A file that exists
/// is never overwritten.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  knarr init\n  knarr init --source /srv/out --destination sftp://acme@partner.example/in --key ~/.ssh/id_ed25519\n  knarr init --source /srv/out --destination s3://bucket/raw --profile delivery"
)]
pub(crate) struct InitArguments {
    /// The directory to watch
    #[arg(long, value_name = "DIRECTORY")]
    source: Option<String>,
    /// Where to: a directory, sftp://user@host:port/path or s3://bucket/prefix
    #[arg(long, value_name = "LOCATION")]
    destination: Option<String>,
    /// The name of the job
    #[arg(long, default_value = "deliver", value_name = "NAME")]
    job: String,
    /// Decompress on the way
    #[arg(long)]
    decompress: bool,
    /// SFTP: the fingerprint of the host key, SHA256:…; without it, known_hosts decides
    #[arg(long, value_name = "FINGERPRINT")]
    host_key: Option<String>,
    /// SFTP: a private key file; without it, the agent and the usual keys are tried
    #[arg(long, value_name = "FILE")]
    key: Option<String>,
    /// SFTP: the name of the secret that is the password
    #[arg(long, value_name = "SECRET")]
    password: Option<String>,
    /// S3: the URL of a compatible store, such as http://127.0.0.1:9000
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// S3: the region
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// S3: the profile of ~/.aws/config; without it, the environment decides
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
    /// S3: the names of the secrets that are the access key and the secret key
    #[arg(long, value_names = ["ACCESS", "SECRET"], num_args = 2)]
    keys: Option<Vec<String>>,
    /// Do not try the connection
    #[arg(long)]
    no_connect: bool,
}

pub(crate) fn run(
    arguments: &InitArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let file = context
        .global
        .config
        .clone()
        .unwrap_or_else(|| PathBuf::from("knarr.yaml"));
    if file.exists() {
        return Err(
            CommandError::usage(format!("{} exists already", file.display()))
                .hint("--config FILE names another; a file is never overwritten"),
        );
    }
    let source = answer(
        arguments.source.as_ref(),
        "--source",
        "Which directory is watched? ",
        context,
    )?;
    let destination = answer(
        arguments.destination.as_ref(),
        "--destination",
        "Where do its files go (a directory, sftp://user@host/path, s3://bucket/prefix)? ",
        context,
    )?;
    let place = location(&destination)?;
    let mut answered = arguments.clone();
    if arguments.destination.is_none() {
        ask_the_rest(&mut answered, &place)?;
    }
    let arguments = &answered;
    let text = compose(arguments, &source, &place)?;
    let absolute = context.environment.absolute(&file);
    let bases = Bases {
        directory: absolute.parent().unwrap_or(Path::new("/")),
        home: context.environment.home.as_deref(),
    };
    // What would be wrong is told before anything is written.
    let config = config::parse(&text, &file, bases)
        .map_err(|problems| CommandError::usage(Box::new(problems)))?;
    write(&file, &text)?;
    if output.format == Format::Json {
        output.json(&serde_json::json!({ "file": file }))?;
    } else {
        output.line(format!("{} is written", file.display()))?;
        for name in secrets_of(arguments) {
            output.line(format!(
                "store the secret it names: knarr secret set {name}"
            ))?;
        }
    }
    output.flush()?;
    if !arguments.no_connect {
        try_it(&config, context)?;
    }
    if output.format == Format::Text {
        output.line("start it: knarr run")?;
    }
    Ok(Outcome::Done)
}

fn answer(
    given: Option<&String>,
    flag: &str,
    question: &str,
    context: &Context,
) -> Result<String, CommandError> {
    if let Some(given) = given {
        return Ok(given.clone());
    }
    let missing = || CommandError::usage(format!("{flag} is missing"));
    if !context.environment.stdin_is_terminal {
        return Err(missing().hint("at a terminal it would be asked for"));
    }
    terminal::ask(question)
        .map_err(CommandError::failed)?
        .filter(|answer| !answer.is_empty())
        .ok_or_else(missing)
}

/// Asks for what this kind of destination may need; an empty answer leaves it to the usual places.
fn ask_the_rest(arguments: &mut InitArguments, destination: &Location) -> Result<(), CommandError> {
    match destination {
        Location::Sftp { .. } => {
            ask_unless_given(
                &mut arguments.key,
                "Private key file (empty: the agent and the usual keys)? ",
            )?;
            ask_unless_given(
                &mut arguments.host_key,
                "Fingerprint of the host key, SHA256:… (empty: known_hosts decides)? ",
            )?;
        }
        Location::Object { .. } => {
            ask_unless_given(
                &mut arguments.endpoint,
                "URL of the store (empty: Amazon's)? ",
            )?;
            ask_unless_given(
                &mut arguments.region,
                "Region (empty: what the environment says)? ",
            )?;
            if arguments.keys.is_none() {
                ask_unless_given(
                    &mut arguments.profile,
                    "Profile of ~/.aws/config (empty: the environment decides)? ",
                )?;
            }
        }
        Location::Local { .. } | Location::Endpoint { .. } => {}
    }
    if !arguments.decompress {
        let answer = terminal::ask("Decompress gzip, zstd, xz and bzip2 on the way [y/N]? ")
            .map_err(CommandError::failed)?;
        arguments.decompress =
            answer.is_some_and(|answer| matches!(&*answer.to_lowercase(), "y" | "yes"));
    }
    Ok(())
}

fn ask_unless_given(given: &mut Option<String>, question: &str) -> Result<(), CommandError> {
    if given.is_none() {
        *given = terminal::ask(question)
            .map_err(CommandError::failed)?
            .filter(|answer| !answer.is_empty());
    }
    Ok(())
}

fn secrets_of(arguments: &InitArguments) -> impl Iterator<Item = &String> {
    arguments
        .password
        .iter()
        .chain(arguments.keys.iter().flatten())
}

/// The text of the configuration.
fn compose(
    arguments: &InitArguments,
    source: &str,
    destination: &Location,
) -> Result<String, CommandError> {
    let (endpoint, to) = match destination {
        Location::Local { path } => (String::new(), path.clone()),
        Location::Endpoint { .. } => {
            return Err(CommandError::usage("there are no endpoints yet")
                .hint("name the place itself: a directory, sftp://… or s3://…"));
        }
        Location::Sftp {
            user,
            host,
            port,
            path,
        } => (
            sftp(arguments, user.as_deref(), host, *port, path),
            "destination:".to_owned(),
        ),
        Location::Object {
            store: ObjectStoreKind::S3,
            bucket,
            prefix,
        } => (s3(arguments, bucket, prefix), "destination:".to_owned()),
        Location::Object { .. } => {
            return Err(
                CommandError::usage("this wizard knows directories, SFTP and S3").hint(
                    "for Google and Azure write the endpoint by hand; `knarr schema` has all keys",
                ),
            );
        }
    };
    let mut text = String::from(
        "# What Knarr moves. `knarr check` tells what is wrong, `knarr schema` prints all keys.\n",
    );
    text.push_str(&endpoint);
    let steps = if arguments.decompress {
        "    steps: [decompress]       # gzip, zstd, xz and bzip2, recognised by content\n"
    } else {
        ""
    };
    write!(
        text,
        "jobs:\n  {}:\n    watch: {}\n    match:\n      # include: [\"*.csv\"]      # only these; all files without it\n      \
         settle: 2s              # where nothing better says that a file is complete\n{steps}    \
         to: {}\n    after: keep               # or: delete, {{ move: done/ }}\n    \
         deletes: keep             # or: mirror, to delete there what is deleted here\n",
        quoted(&arguments.job),
        quoted(source),
        quoted(&to),
    )
    .map_err(CommandError::failed)?;
    Ok(text)
}

fn sftp(
    arguments: &InitArguments,
    user: Option<&str>,
    host: &str,
    port: Option<u16>,
    path: &str,
) -> String {
    let mut lines = vec!["type: sftp".to_owned(), format!("host: {}", quoted(host))];
    lines.extend(port.map(|port| format!("port: {port}")));
    lines.extend(user.map(|user| format!("user: {}", quoted(user))));
    if !path.is_empty() {
        lines.push(format!("path: {}", quoted(path)));
    }
    lines.extend(
        arguments
            .key
            .as_ref()
            .map(|key| format!("key: {}", quoted(key))),
    );
    if let Some(password) = &arguments.password {
        lines.push(format!("password: {{ secret: {} }}", quoted(password)));
    }
    match &arguments.host_key {
        Some(host_key) => lines.push(format!("host_key: {}", quoted(host_key))),
        None => lines
            .push("# host_key: \"SHA256:…\"   # without it, ~/.ssh/known_hosts decides".to_owned()),
    }
    section(&lines)
}

fn s3(arguments: &InitArguments, bucket: &str, prefix: &str) -> String {
    let mut lines = vec!["type: s3".to_owned(), format!("bucket: {}", quoted(bucket))];
    if !prefix.is_empty() {
        lines.push(format!("path: {}", quoted(prefix)));
    }
    for (key, value) in [
        ("endpoint", &arguments.endpoint),
        ("region", &arguments.region),
        ("profile", &arguments.profile),
    ] {
        lines.extend(
            value
                .as_ref()
                .map(|value| format!("{key}: {}", quoted(value))),
        );
    }
    match arguments.keys.as_deref() {
        Some([access, secret]) => {
            lines.push(format!("access_key: {{ secret: {} }}", quoted(access)));
            lines.push(format!("secret_key: {{ secret: {} }}", quoted(secret)));
        }
        _ if arguments.profile.is_none() => {
            lines.push(
                "# credentials come from the environment or ~/.aws; or name a `profile`".to_owned(),
            );
        }
        _ => {}
    }
    section(&lines)
}

fn section(lines: &[String]) -> String {
    let mut text = String::from("endpoints:\n  destination:\n");
    for line in lines {
        text.push_str("    ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// A text as YAML: plain where that is safe, else in quotes, which are JSON's.
fn quoted(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "/._-@~".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off"].contains(&&*text.to_lowercase());
    if is_plain {
        text.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}

/// Writes a new file, durably.
fn write(file: &Path, text: &str) -> Result<(), CommandError> {
    let failed = |source| {
        CommandError::failed(NotWritten {
            path: file.to_owned(),
            source,
        })
    };
    let mut opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(file)
        .map_err(failed)?;
    opened.write_all(text.as_bytes()).map_err(failed)?;
    opened.sync_all().map_err(failed)
}

/// The file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
struct NotWritten {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

fn try_it(config: &Config, context: &Context) -> Result<(), CommandError> {
    for job in config.jobs.values() {
        for directory in job.watch.iter().filter(|directory| !directory.is_dir()) {
            tracing::warn!("{} does not exist yet", directory.display());
        }
    }
    let opener = Opener::with_config(context, config.clone(), Asking::Person);
    context.runtime()?.block_on(async {
        for endpoint in config.endpoints.values() {
            let opened = opener.open_endpoint(endpoint).await?;
            let options = ListOptions {
                shallow: true,
                ..ListOptions::default()
            };
            match opened.remote.list(options).await {
                Ok(mut listing) => drop(listing.next_batch().await),
                // It is made with the first delivery.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    return Err(CommandError::from(error)
                        .hint("the file is written: correct it, and try `knarr check --connect`"));
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn what_yaml_would_misread_is_put_in_quotes() {
        for (text, yaml) in [
            ("/srv/in", "/srv/in"),
            ("no", "\"no\""),
            ("12", "\"12\""),
            ("a: b", "\"a: b\""),
            ("~/x", "\"~/x\""),
            ("destination:", "\"destination:\""),
            ("a\"b", "\"a\\\"b\""),
        ] {
            assert_eq!(quoted(text), yaml, "{text}");
        }
    }
}
