//! What a job may ask for besides its files: parameters of its runs, and acknowledgements.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::read::At;

/// A parameter of a job's runs: `{param.NAME}` in `match.include`, `match.exclude`, `to` and the content of
/// acknowledgements.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ParameterShape {
    /// Its value where nobody gives one. Without it each run has to be given one.
    pub(in crate::config) default: Option<String>,
    /// The regular expression that the whole value has to match; letters, digits, `.`, `_` and `-` by default.
    pub(in crate::config) pattern: Option<String>,
}

/// A file that tells whoever the files come from that they were delivered.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct AcknowledgeShape {
    /// Its path at the source, such as `ack/{name}.ok`. Of a file: {name}, {stem}, {extension}, {dir}, {path},
    /// {size}, {sha256}, {mtime:%Y%m%d}; of a run: {files}, {bytes}, {failed}; of both: {run}, {job}, {time},
    /// {now:%Y%m%d}.
    pub(in crate::config) file: At<String>,
    /// What it holds, with the same placeholders; nothing by default.
    pub(in crate::config) content: Option<At<String>>,
    /// One for each `file` (default), or one for each `run` that delivered something.
    pub(in crate::config) per: Option<PerShape>,
    /// Another place for it than the source: a path, a URL or `endpoint:path`.
    pub(in crate::config) to: Option<At<String>>,
}

/// What is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum PerShape {
    /// Each file.
    #[default]
    File,
    /// Each run that delivered something.
    Run,
}
