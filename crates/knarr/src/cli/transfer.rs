//! What `copy`, `move`, `mirror`, `sync` and `plan` take, and what it means.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use knarr_core::filter::Filter;
use knarr_core::job::Verify;
use knarr_core::location::Location;
use knarr_core::plan::{IfExists, SymlinkPolicy};
use knarr_core::retry::RetryPolicy;
use knarr_core::units::{ByteSize, Span};
use serde::{Deserialize, Serialize};

use crate::cli::oneshot::Approval;
use crate::command_error::CommandError;
use crate::environment::Environment;

/// Copy what the destination lacks
///
/// Looks at both sides and sends what is missing or differs. Nothing is removed at the destination.
/// Given again after an interruption, it goes on where it was: finished files and finished parts of
/// large ones are not sent again.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  knarr copy ./out sftp://acme@partner.example/in\n  knarr copy s3://bucket/raw ./raw --include '*.csv' --min-age 30s --dry-run"
)]
pub(crate) struct CopyArguments {
    #[command(flatten)]
    pub(crate) places: Places,
    #[command(flatten)]
    pub(crate) how: TransferArguments,
}

/// Copy, then remove from the source what was verified at the destination
///
/// A file is removed from the source only after its copy was verified. Empty directories stay.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr move ./outbox partner:inbox --verify full")]
pub(crate) struct MoveArguments {
    #[command(flatten)]
    pub(crate) places: Places,
    #[command(flatten)]
    pub(crate) how: TransferArguments,
}

/// Make the destination what the source is
///
/// As `copy`, and what the source does not have is removed from the destination. Nothing is removed if
/// the source could not be listed completely; more than 100 files and 30 % are held for approval (exit
/// code 3).
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  knarr mirror ./site s3://bucket/site --exclude '*.tmp'\n  knarr mirror ./site s3://bucket/site --approve-deletes"
)]
pub(crate) struct MirrorArguments {
    #[command(flatten)]
    pub(crate) places: Places,
    #[command(flatten)]
    pub(crate) how: TransferArguments,
    #[command(flatten)]
    pub(crate) approval: ApprovalArguments,
}

/// Give each of two locations the other's changes
///
/// Changes, deletions and renames since the last time go both ways. Where both sides changed the same
/// path, both versions are kept, one under a name that says so. The first time, nothing is removed.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  knarr sync ~/Documents nas:Documents")]
pub(crate) struct SyncArguments {
    #[command(flatten)]
    pub(crate) places: Places,
    #[command(flatten)]
    pub(crate) how: TransferArguments,
    #[command(flatten)]
    pub(crate) approval: ApprovalArguments,
}

/// What is done between two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verb {
    /// The destination gets what it lacks
    Copy,
    /// The same, and the source loses what was verified
    Move,
    /// The destination becomes what the source is
    Mirror,
    /// Each gets the other's changes
    Sync,
}

impl Verb {
    /// The name of the command.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Move => "move",
            Self::Mirror => "mirror",
            Self::Sync => "sync",
        }
    }
}

/// Two locations.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub(crate) struct Places {
    /// Where from: a path, a URL or endpoint:path
    source: String,
    /// Where to: a path, a URL or endpoint:path; a directory
    destination: String,
}

/// What approves large removals.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct ApprovalArguments {
    /// Carry out removals even if they are so many that they would be held
    #[arg(long)]
    pub(crate) approve_deletes: bool,
}

/// How files are chosen and sent.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransferArguments {
    /// Show what would be done, and do nothing
    #[arg(long)]
    #[serde(skip)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) choice: ChoiceArguments,
    /// What to do when something is at the destination already
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    if_exists: IfExistsArgument,
    /// Compare contents even where size and time are equal
    #[arg(long)]
    checksum: bool,
    /// How to verify what was sent
    #[arg(long, value_enum, value_name = "HOW")]
    verify: Option<VerifyArgument>,
    /// What to do with symbolic links; they are never followed
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    symlinks: SymlinksArgument,
    /// How many files at once; by default what suits the two places
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    transfers: Option<u16>,
    /// The most bytes a second, such as 20MiB
    #[arg(long, value_name = "RATE", value_parser = ByteSize::parse)]
    bandwidth: Option<ByteSize>,
    /// How many attempts there are for each file
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
}

/// Which files are meant.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChoiceArguments {
    /// Only files that match this glob; may be given more than once. Without `/` it is matched
    /// against the name at any depth, `**` crosses directories
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leave out what matches this glob, a directory with all in it; may be given more than once
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Leave out smaller files, such as 1KiB
    #[arg(long, value_name = "SIZE", value_parser = ByteSize::parse)]
    min_size: Option<ByteSize>,
    /// Leave out larger files, such as 2GiB
    #[arg(long, value_name = "SIZE", value_parser = ByteSize::parse)]
    max_size: Option<ByteSize>,
    /// Leave out files that changed less long ago, such as 30s
    #[arg(long, value_name = "AGE", value_parser = Span::parse)]
    min_age: Option<Span>,
    /// Leave out files that changed longer ago, such as 7d
    #[arg(long, value_name = "AGE", value_parser = Span::parse)]
    max_age: Option<Span>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
enum IfExistsArgument {
    /// Leave it alone
    Skip,
    /// Replace it, unless size and time say that it is the same
    Overwrite,
    /// Replace it if the source's is newer
    Newer,
    /// Replace it if the content differs
    #[default]
    Differs,
    /// Leave it and write beside it under a numbered name
    KeepBoth,
    /// Report it
    Fail,
}

#[derive(Debug, Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum VerifyArgument {
    /// By the strongest means the destination offers without reading everything back
    Offered,
    /// As offered, and for `move` an equal length is enough where nothing better is offered; the record
    /// says so
    Size,
    /// By reading everything back and comparing hashes
    Full,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SymlinksArgument {
    /// Copy the link itself
    #[default]
    Keep,
    /// Leave links out
    Skip,
}

/// What the arguments mean.
#[derive(Debug, Clone)]
pub(crate) struct TransferOptions {
    /// Which files are meant.
    pub(crate) filter: Arc<Filter>,
    /// What to do when something is there already.
    pub(crate) if_exists: IfExists,
    /// Whether contents are compared even where size and time are equal.
    pub(crate) compare: Compare,
    /// How to verify; nothing for what the endpoint says.
    pub(crate) verify: Option<Verify>,
    /// What to do with symbolic links.
    pub(crate) symlinks: SymlinkPolicy,
    /// How many files at once.
    pub(crate) transfers: Option<usize>,
    /// The most bytes a second.
    pub(crate) bandwidth_bytes_per_second: Option<u64>,
    /// How failed attempts are repeated.
    pub(crate) retry: RetryPolicy,
}

/// What tells whether two files are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    /// Size and time, and the content only where these cannot tell.
    SizeAndTime,
    /// The content.
    Content,
}

impl ApprovalArguments {
    /// Whether it was given.
    pub(crate) const fn approval(self) -> Approval {
        if self.approve_deletes {
            Approval::Given
        } else {
            Approval::NotGiven
        }
    }
}

impl TransferArguments {
    /// What the arguments mean.
    ///
    /// # Errors
    /// If a glob is none.
    pub(crate) fn options(&self) -> Result<TransferOptions, CommandError> {
        Ok(TransferOptions {
            filter: Arc::new(self.choice.filter()?),
            if_exists: match self.if_exists {
                IfExistsArgument::Skip => IfExists::Skip,
                IfExistsArgument::Overwrite => IfExists::Overwrite,
                IfExistsArgument::Newer => IfExists::Newer,
                IfExistsArgument::Differs => IfExists::Differs,
                IfExistsArgument::KeepBoth => IfExists::KeepBoth,
                IfExistsArgument::Fail => IfExists::Fail,
            },
            compare: if self.checksum {
                Compare::Content
            } else {
                Compare::SizeAndTime
            },
            verify: self.verify.map(|verify| match verify {
                VerifyArgument::Offered => Verify::Offered,
                VerifyArgument::Size => Verify::Size,
                VerifyArgument::Full => Verify::Full,
            }),
            symlinks: match self.symlinks {
                SymlinksArgument::Keep => SymlinkPolicy::Keep,
                SymlinksArgument::Skip => SymlinkPolicy::Skip,
            },
            transfers: self.transfers.map(usize::from),
            bandwidth_bytes_per_second: self.bandwidth.map(|rate| rate.0.max(1)),
            retry: RetryPolicy {
                attempts: self.attempts,
                // A person waits: be back soon, and give up within minutes.
                from: Duration::from_secs(1),
                to: Duration::from_secs(30),
            },
        })
    }
}

impl ChoiceArguments {
    /// The filter.
    ///
    /// # Errors
    /// If a glob is none.
    pub(crate) fn filter(&self) -> Result<Filter, CommandError> {
        let mut filter = Filter::new(
            self.include.iter().map(String::as_str),
            self.exclude.iter().map(String::as_str),
        )
        .map_err(|error| {
            CommandError::usage(error).hint("globs know *, ?, [abc], {a,b} and **; `\\` escapes")
        })?;
        filter.min_size = self.min_size.map(|size| size.0);
        filter.max_size = self.max_size.map(|size| size.0);
        filter.min_age = self.min_age.map(|span| span.0);
        filter.max_age = self.max_age.map(|span| span.0);
        Ok(filter)
    }
}

impl Places {
    /// The same with local paths from the root, so that they mean the same from everywhere.
    ///
    /// # Errors
    /// If one is no location.
    pub(crate) fn absolute(&self, environment: &Environment) -> Result<Self, CommandError> {
        let absolute = |text: &String| -> Result<String, CommandError> {
            Ok(match location(text)? {
                Location::Local { path } => {
                    let slash = if path.ends_with('/') { "/" } else { "" };
                    let path = environment.absolute(std::path::Path::new(&path));
                    format!("{}{slash}", path.display())
                }
                _ => text.clone(),
            })
        };
        Ok(Self {
            source: absolute(&self.source)?,
            destination: absolute(&self.destination)?,
        })
    }

    /// The two locations.
    ///
    /// # Errors
    /// If one is none.
    pub(crate) fn locations(&self) -> Result<(Location, Location), CommandError> {
        Ok((location(&self.source)?, location(&self.destination)?))
    }
}

/// Reads a location. Not left to clap, which would repeat a password that stands in it.
///
/// # Errors
/// If it is none.
pub(crate) fn location(text: &str) -> Result<Location, CommandError> {
    Location::parse(text).map_err(CommandError::usage)
}
