//! The words of a job's specification that are plain data.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of a source file after its destination was verified.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// It stays.
    #[default]
    Keep,
    /// It is deleted.
    Delete,
    /// It is moved into this directory, relative to the watched directory; `done/` is usual.
    Move(String),
    /// This is added to its name, such as `.done`.
    Rename(String),
}

/// What a deletion at the source means for the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Deletes {
    /// Nothing: what was delivered stays.
    #[default]
    Keep,
    /// It is deleted there too.
    Mirror,
}

/// How a delivery is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// By the strongest means the destination offers without reading everything back. Where the source
    /// is removed afterwards and only the length can be compared, everything is read back.
    #[default]
    Offered,
    /// As `offered`, and an equal length is enough to remove the source where nothing better is offered.
    Size,
    /// By reading everything back and comparing hashes.
    Full,
}

/// When what a run delivers becomes visible at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Publish {
    /// Each file when it is delivered.
    #[default]
    Each,
    /// All files of a run together when all are staged and verified, or none.
    Batch,
    /// The same; and files that match this glob when all others are visible.
    Last(String),
}

/// How a manifest says what it lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManifestFormat {
    /// A name a line; what begins with `#` is a remark.
    #[default]
    Lines,
    /// What `sha256sum` writes.
    Sha256sum,
    /// What `sha512sum` writes.
    Sha512sum,
    /// What `md5sum` writes.
    Md5sum,
    /// A JSON list of names, or of objects with `name` and, if they are known, `size`, `sha256`, `sha512` and
    /// `md5`.
    Json,
}

/// Which jobs go first where several compete: for the transfers of an endpoint, and for the runs of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Four times as often as `normal`.
    High,
    /// What jobs have that do not say.
    #[default]
    Normal,
    /// A quarter as often as `normal`.
    Low,
}
