//! `ls` and `stat`: what lies at a location.

use clap::Args;
use knarr_core::entry::{Entry, Identity, Kind};
use knarr_core::path::printable;
use knarr_core::tree::TreeItem;
use knarr_core::units::ByteSize;
use knarr_core::{Clock as _, RelPath, Timestamp};
use knarr_remote::{ListOptions, Listing};
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::oneshot::looking_at;
use crate::cli::transfer::{ChoiceArguments, location};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::location::{Opened, Opener, Role};
use crate::output::{Format, Output, Style};

/// List what lies at a location
///
/// In path order, streamed, however many there are. Exit code 1 if a part could not be listed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  knarr ls -rl partner:inbox\n  knarr ls s3://bucket/raw --json"
)]
pub(crate) struct LsArguments {
    /// A path, a URL or endpoint:path
    location: String,
    /// Everything below, not only the direct children
    #[arg(short, long)]
    recursive: bool,
    /// Size and time too
    #[arg(short, long)]
    long: bool,
    #[command(flatten)]
    choice: ChoiceArguments,
}

/// Tell what lies at one location
///
/// Exit code 1 if nothing is there.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr stat partner:inbox/report.csv")]
pub(crate) struct StatArguments {
    /// A path, a URL or endpoint:path
    location: String,
}

/// What is printed instead of an entry.
#[derive(Serialize)]
struct Trouble<'a> {
    problem: &'a str,
    path: Option<&'a RelPath>,
}

pub(crate) fn ls(arguments: &LsArguments, context: &Context, output: &mut Output) -> CommandResult {
    let filter = std::sync::Arc::new(arguments.choice.filter()?);
    let location = location(&arguments.location)?;
    let opener = Opener::new(context)?;
    let now = context.clock.now();
    context.runtime()?.block_on(async {
        let opened = opener.open(&location, Role::Source).await?;
        if let Some(path) = &opened.single_file {
            let entry = stat_of(&opened, path).await?;
            print_entry(&entry, arguments, output)?;
            return Ok(Outcome::Done);
        }
        let paths = std::sync::Arc::clone(&filter);
        let options = ListOptions {
            shallow: !arguments.recursive,
            filter: Some(std::sync::Arc::new(move |path: &RelPath, kind| {
                paths.takes_path(path, kind)
            })),
            ..ListOptions::default()
        };
        let mut listing = list(&opened, options).await?;
        let mut outcome = Outcome::Done;
        while let Some(batch) = listing.next_batch().await {
            for item in batch {
                match item {
                    TreeItem::Entry(entry) => {
                        if filter.takes_entry(&entry, now) {
                            print_entry(&entry, arguments, output)?;
                        }
                    }
                    TreeItem::Excluded { .. } => {}
                    TreeItem::Problem(problem) => {
                        tracing::warn!(path = %problem.path, "{}", problem.message);
                        print_trouble(&problem.message, Some(&problem.path), output)?;
                    }
                    TreeItem::Incomplete(part) => {
                        outcome = Outcome::SomeFailed;
                        tracing::error!(below = ?part.below, "not listed: {}", part.reason);
                        print_trouble(&part.reason, part.below.as_ref(), output)?;
                    }
                }
            }
        }
        Ok(outcome)
    })
}

pub(crate) fn stat(
    arguments: &StatArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    let location = location(&arguments.location)?;
    let opener = Opener::new(context)?;
    context.runtime()?.block_on(async {
        let opened = opener.open(&location, Role::Source).await?;
        if let Some(path) = &opened.single_file {
            let entry = stat_of(&opened, path).await?;
            print_stat(&location.to_string(), &entry, output)?;
            return Ok(Outcome::Done);
        }
        // The root itself has no entry: that it can be listed says that it is there.
        let options = ListOptions {
            shallow: true,
            ..ListOptions::default()
        };
        let mut listing = list(&opened, options).await?;
        let (mut directories, mut files, mut bytes) = (0_u64, 0_u64, 0_u64);
        while let Some(batch) = listing.next_batch().await {
            for item in batch {
                match item {
                    TreeItem::Entry(entry) if entry.kind == Kind::Directory => directories += 1,
                    TreeItem::Entry(entry) => {
                        files += 1;
                        bytes += entry.size;
                    }
                    TreeItem::Excluded { .. } | TreeItem::Problem(_) | TreeItem::Incomplete(_) => {}
                }
            }
        }
        print_directory(&location.to_string(), (directories, files, bytes), output)?;
        Ok(Outcome::Done)
    })
}

async fn list(opened: &Opened, options: ListOptions) -> Result<Listing, CommandError> {
    let location = || opened.remote.describe().location.clone();
    opened
        .remote
        .list(options)
        .await
        .map_err(|error| looking_at(location(), error))
}

async fn stat_of(opened: &Opened, path: &RelPath) -> Result<Entry, CommandError> {
    opened.remote.stat(path).await?.ok_or_else(|| {
        CommandError::failed(format!(
            "\"{path}\" was there a moment ago and is gone from {}",
            opened.remote.describe().location
        ))
    })
}

fn print_entry(
    entry: &Entry,
    arguments: &LsArguments,
    output: &mut Output,
) -> Result<(), CommandError> {
    if output.format == Format::Json {
        return Ok(output.json(entry)?);
    }
    let mut name = entry.path.to_string();
    match entry.kind {
        Kind::Directory => name.push('/'),
        Kind::Symlink => {
            let target = entry.link_target.as_deref().unwrap_or_default();
            name = format!("{name} → {}", printable(target));
        }
        Kind::File | Kind::Special => {}
    }
    if !arguments.long {
        return Ok(output.line(name)?);
    }
    let size = match entry.kind {
        Kind::File => ByteSize(entry.size).to_string(),
        Kind::Directory | Kind::Symlink | Kind::Special => "-".to_owned(),
    };
    let time = entry.mtime.map_or_else(|| "-".to_owned(), shown_time);
    Ok(output.line(format!("{size:>11}  {time:<19}  {name}"))?)
}

fn print_trouble(
    problem: &str,
    path: Option<&RelPath>,
    output: &mut Output,
) -> Result<(), CommandError> {
    if output.format == Format::Json {
        output.json(&Trouble { problem, path })?;
    }
    Ok(())
}

fn print_stat(location: &str, entry: &Entry, output: &mut Output) -> Result<(), CommandError> {
    if output.format == Format::Json {
        return Ok(output.json(entry)?);
    }
    let heading = output.paint(Style::Bold, location);
    output.line(heading)?;
    output.line(format!("  kind      {}", entry.kind))?;
    if entry.kind == Kind::File {
        output.line(format!(
            "  size      {} ({} bytes)",
            ByteSize(entry.size),
            entry.size
        ))?;
    }
    if let Some(mtime) = entry.mtime {
        output.line(format!("  changed   {}", shown_time(mtime)))?;
    }
    if let Some(mode) = entry.mode {
        output.line(format!("  mode      {mode:04o}"))?;
    }
    match &entry.identity {
        Some(Identity::Inode(inode)) => output.line(format!("  inode     {inode}"))?,
        Some(Identity::Tag(tag)) => {
            output.line(format!("  tag       {}", printable(tag.as_bytes())))?;
        }
        None => {}
    }
    if let Some(target) = &entry.link_target {
        output.line(format!("  target    {}", printable(target)))?;
    }
    Ok(())
}

fn print_directory(
    location: &str,
    (directories, files, bytes): (u64, u64, u64),
    output: &mut Output,
) -> Result<(), CommandError> {
    if output.format == Format::Json {
        return Ok(output.json(&serde_json::json!({
            "kind": "directory",
            "directories": directories,
            "files": files,
            "bytes": bytes,
        }))?);
    }
    let heading = output.paint(Style::Bold, location);
    output.line(heading)?;
    output.line("  kind      directory")?;
    output.line(format!(
        "  holds     {directories} directories and {files} files of {} in all, directly",
        ByteSize(bytes)
    ))?;
    Ok(())
}

/// A time in the machine's zone, to the second.
pub(crate) fn shown_time(time: Timestamp) -> String {
    time.to_calendar()
        .to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}
