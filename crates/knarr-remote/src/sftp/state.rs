//! What an interrupted upload leaves in the database, and what a staged thing tells its committer.

use bytes::Bytes;
use knarr_core::Entry;
use knarr_core::record::Evidence;
use serde::{Deserialize, Serialize};

use crate::remote::{NewNode, Replace, WriteOptions};
use crate::upload::{ResumeState, StagedId};

/// The version of [`StartedState`] that is written.
const VERSION: u32 = 1;

/// The text of a "started" checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StartedState {
    version: u32,
    /// The name of the staged file, which lies beside its final name.
    staged: String,
}

/// The text to save for an upload under `id`.
pub(super) fn started(id: StagedId) -> String {
    let state = StartedState {
        version: VERSION,
        staged: id.file_name(),
    };
    serde_json::to_string(&state).expect("two plain fields can always be written")
}

/// Where an earlier attempt got to, if its state is one that can be gone on from.
pub(super) fn resumable(options: &WriteOptions) -> Option<u64> {
    let ResumeState { state, offset, .. } = options.resume.as_ref()?;
    let earlier: StartedState = serde_json::from_str(state).ok()?;
    let fits = earlier.version == VERSION && earlier.staged == options.staged_id.file_name();
    (fits && *offset > 0).then_some(*offset)
}

/// The name of the staged file in a "started" text; nothing if it is no text of ours.
pub(super) fn staged_name(state: &str) -> Option<String> {
    let earlier: StartedState = serde_json::from_str(state).ok()?;
    let is_ours = earlier.version == VERSION
        && knarr_fs::stage::staged_id(earlier.staged.as_bytes()).is_some();
    is_ours.then_some(earlier.staged)
}

/// What the committer needs to know.
#[derive(Debug)]
pub(super) struct StagedState {
    /// The path of what is staged; a directory is not staged at all.
    pub(super) staged: Option<Bytes>,
    /// What it is.
    pub(super) node: NewNode,
    /// How it looked under its staged name, as an entry of its final path.
    pub(super) entry: Entry,
    /// The permission bits and times that a directory is to get.
    pub(super) attributes: knarr_sftp::Attributes,
    /// What may be replaced.
    pub(super) replace: Replace,
    /// How it is known to hold the right bytes.
    pub(super) evidence: Evidence,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_gone_on_from_only_if_it_is_about_the_same_staged_file() {
        let with = |state: String, offset| {
            let node = NewNode::File { size: None };
            let mut options = WriteOptions::new(node, StagedId(7));
            options.resume = Some(ResumeState {
                state,
                offset,
                parts: Vec::new(),
            });
            resumable(&options)
        };
        assert_eq!(with(started(StagedId(7)), 5), Some(5));
        assert_eq!(with(started(StagedId(7)), 0), None);
        assert_eq!(with(started(StagedId(8)), 5), None);
        assert_eq!(with("{}".to_owned(), 5), None);
        assert_eq!(with(started(StagedId(7)).replace(":1", ":2"), 5), None);
    }

    #[test]
    fn k12_a_saved_text_names_a_staged_file_and_nothing_else() {
        let name = StagedId(7).file_name();
        assert_eq!(staged_name(&started(StagedId(7))), Some(name.clone()));
        for other in ["../x", "data", "", ".knarr-7.part"] {
            assert_eq!(
                staged_name(&started(StagedId(7)).replace(&name, other)),
                None,
                "{other}"
            );
        }
        assert_eq!(staged_name("nonsense"), None);
    }
}
