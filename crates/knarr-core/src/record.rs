//! The custody record: what happened to a file, and how anybody can know.

use serde::{Deserialize, Serialize};

use crate::hash::ContentHash;
use crate::path::RelPath;
use crate::time::Timestamp;

/// What was done, or decided, about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// New at the destination.
    Created,
    /// Replaced an older version.
    Updated,
    /// The destination's file got the source's new name.
    Renamed,
    /// Removed from the destination, because the source has it no more.
    Deleted,
    /// Removed from the source, after the destination was verified.
    SourceRemoved,
    /// Moved aside at the source, after the destination was verified.
    SourceMoved,
    /// Both sides had it already; recorded as agreed.
    Adopted,
    /// Both sides changed; both versions were kept.
    Conflict,
    /// An attempt failed and will be repeated.
    Failed,
    /// Nothing more is tried until a person acts.
    Parked,
    /// Cannot be handled here.
    Problem,
    /// A plan was held because it deletes too much.
    Held,
    /// A person approved a held plan.
    Approved,
    /// Left alone on purpose (exists already, filtered by policy).
    Skipped,
    /// Older records were removed, as the retention says.
    Pruned,
    /// A client of the own SFTP server logged in.
    LoggedIn,
    /// Attempts to log in to the own SFTP server, or to reach it, were refused.
    LogInRefused,
    /// A client of the own SFTP server uploaded it.
    Uploaded,
    /// An upload to the own SFTP server broke off.
    UploadCut,
    /// A client of the own SFTP server read it.
    Downloaded,
    /// A client of the own SFTP server removed it.
    Removed,
    /// A client of the own SFTP server gave it another name.
    Moved,
    /// A client of the own SFTP server made a directory or a link, set attributes, or wrote into a file.
    Changed,
    /// A request of a client of the own SFTP server was refused.
    Refused,
    /// Clients of the own SFTP server did something that could not be recorded.
    Unrecorded,
    /// Whoever it came from was told of its delivery, by a file.
    Acknowledged,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::Created,
        Self::Updated,
        Self::Renamed,
        Self::Deleted,
        Self::SourceRemoved,
        Self::SourceMoved,
        Self::Adopted,
        Self::Conflict,
        Self::Failed,
        Self::Parked,
        Self::Problem,
        Self::Held,
        Self::Approved,
        Self::Skipped,
        Self::Pruned,
        Self::LoggedIn,
        Self::LogInRefused,
        Self::Uploaded,
        Self::UploadCut,
        Self::Downloaded,
        Self::Removed,
        Self::Moved,
        Self::Changed,
        Self::Refused,
        Self::Unrecorded,
        Self::Acknowledged,
    ];

    /// The name in records and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Renamed => "renamed",
            Self::Deleted => "deleted",
            Self::SourceRemoved => "source_removed",
            Self::SourceMoved => "source_moved",
            Self::Adopted => "adopted",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
            Self::Parked => "parked",
            Self::Problem => "problem",
            Self::Held => "held",
            Self::Approved => "approved",
            Self::Skipped => "skipped",
            Self::Pruned => "pruned",
            Self::LoggedIn => "logged_in",
            Self::LogInRefused => "log_in_refused",
            Self::Uploaded => "uploaded",
            Self::UploadCut => "upload_cut",
            Self::Downloaded => "downloaded",
            Self::Removed => "removed",
            Self::Moved => "moved",
            Self::Changed => "changed",
            Self::Refused => "refused",
            Self::Unrecorded => "unrecorded",
            Self::Acknowledged => "acknowledged",
        }
    }

    /// Reads [`Action::name`] back.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// Whether it tells what a client of the own SFTP server did, and nothing of what a job did.
    #[must_use]
    pub const fn is_of_a_client(self) -> bool {
        matches!(
            self,
            Self::LoggedIn
                | Self::LogInRefused
                | Self::Uploaded
                | Self::UploadCut
                | Self::Downloaded
                | Self::Removed
                | Self::Moved
                | Self::Changed
                | Self::Refused
                | Self::Unrecorded
        )
    }
}

/// How it is known that the destination holds the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Evidence {
    /// The content was read back and hashed.
    ReadBack {
        /// The hash of what was read back.
        hash: ContentHash,
    },
    /// What was written was hashed on its way to the disk, its length checked and the disk flushed.
    Written {
        /// The hash of what was written.
        hash: ContentHash,
    },
    /// The server verified a checksum that went with the bytes.
    ServerChecksum {
        /// Such as `crc64nvme` or `sha256`.
        algorithm: String,
        /// The checksum as the server's protocol writes it.
        value: String,
    },
    /// Only the length could be compared, as the destination offers nothing better.
    SizeOnly {
        /// Why nothing stronger was done.
        reason: String,
    },
    /// Nothing moved, so nothing was verified.
    None,
}

/// What one step made of its input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, such as `decompress`.
    pub step: String,
    /// What it found and did, such as `gzip, 2 members`.
    pub detail: String,
    /// Bytes in.
    pub input_bytes: u64,
    /// Bytes out.
    pub output_bytes: u64,
}

/// One line of the story of a path. Appended, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustodyRecord {
    /// When it was recorded.
    pub at: Timestamp,
    /// The run it belongs to.
    pub run: u64,
    /// The job, or the command for a one-shot run.
    pub job: String,
    /// The path below the source's root.
    pub path: RelPath,
    /// What was done.
    pub action: Action,
    /// Where from, as a person would write it, without secrets.
    pub source: String,
    /// Where to, as a person would write it, without secrets.
    pub destination: String,
    /// The length of the source's content in bytes.
    pub size: u64,
    /// The source's mtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<Timestamp>,
    /// The hash of the source's content as it was read, or nothing if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_hash: Option<ContentHash>,
    /// How the destination is known to hold it.
    pub evidence: Evidence,
    /// When it was first seen in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<Timestamp>,
    /// Why it counted as complete, such as `closed after write`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_because: Option<String>,
    /// The steps and what they made of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepRecord>,
    /// Which attempt this was, from 1.
    pub attempt: u32,
    /// Bytes that went over the wire in this attempt (fewer than the size after a resume).
    pub moved_bytes: u64,
    /// How long the attempt took, in microseconds.
    pub duration_microseconds: u64,
    /// What went wrong, or a remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Who decided: `plan`, or the person who approved.
    pub decided_by: String,
}
