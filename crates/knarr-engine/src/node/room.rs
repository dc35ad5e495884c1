//! Where what comes out of the steps goes, and what becomes of what is there already.
//!
//! What the steps made can only be compared by its content. So what an attempt delivered and could not
//! record is recognised, whatever `if_exists` says of files that somebody else put there.

use knarr_core::plan::IfExists;
use knarr_core::record::Action;
use knarr_core::template::TemplateInput;
use knarr_core::{ContentHash, Entry, Kind, RelPath};
use knarr_remote::{Committed, NewNode, Replace, Staged, Upload, WriteOptions};
use knarr_steps::{Head, Node};

use crate::node::deliver::Delivering;
use crate::node::place::Decided;
use crate::put::{self, PutError};
use crate::transfer::TransferError;

/// Why a file is left that `if_exists: skip` says to leave.
pub(crate) const LEFT: &str =
    "a file of this name is at the destination, and if_exists says to leave it";

/// What one thing that came out of the steps may do at the destination.
#[derive(Debug)]
pub(super) enum Room {
    /// It goes to this path.
    Free(RelPath, Replace),
    /// This is there. If it is not the same, then that.
    Taken(Box<Entry>, Otherwise),
}

/// Whether the destination is asked what has the name of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Before anything is written.
    First,
    /// Not before the commit says that something has it: most names are new.
    IfTaken,
}

/// What becomes of an output whose name is taken by something else.
#[derive(Debug)]
pub(super) enum Otherwise {
    /// It goes to this path.
    Write(RelPath, Replace),
    /// It is left.
    Leave,
    /// Nothing of the file is delivered.
    Refuse(String),
}

/// One thing that is at the destination.
#[derive(Debug)]
pub(crate) struct Landed {
    pub(crate) path: RelPath,
    pub(crate) committed: Committed,
    pub(crate) action: Action,
    /// Of its content, if it has one.
    pub(crate) hash: Option<ContentHash>,
}

impl Delivering {
    /// What an output may do at the destination, under the name that the steps gave it.
    pub(super) async fn room(
        &self,
        entry: &Entry,
        head: &Head,
        decided: &Decided,
    ) -> Result<Room, PutError> {
        let look = if decided.look {
            Look::First
        } else {
            Look::IfTaken
        };
        self.room_after(look, entry, head, decided).await
    }

    /// The same, looked for or not.
    pub(super) async fn room_after(
        &self,
        look: Look,
        entry: &Entry,
        head: &Head,
        decided: &Decided,
    ) -> Result<Room, PutError> {
        let path = self.output_path(entry, head)?;
        let policy = self.job.if_exists;
        // Delivered by this job: its next version may replace it.
        let delivered = decided
            .synced
            .as_ref()
            .filter(|synced| *synced.at_destination() == path && policy != IfExists::KeepBoth);
        if let Some(synced) = delivered.filter(|_| look == Look::IfTaken) {
            let replace = Replace::Seen(synced.destination.clone());
            return Ok(Room::Free(path, replace));
        }
        if look == Look::IfTaken && policy != IfExists::KeepBoth {
            // Most names are new; the commit refuses to replace what is there after all.
            return Ok(Room::Free(path, Replace::Nothing));
        }
        let destination = self.context.destination.as_ref();
        let there = destination.stat(&path).await.map_err(PutError::Remote)?;
        let Some(there) = there else {
            return Ok(Room::Free(path, Replace::Nothing));
        };
        if kind_of(&head.node) != there.kind {
            let message = format!("something else of the name \"{path}\" is at the destination");
            return Err(refused(message));
        }
        let seen = Replace::Seen(there.fingerprint());
        if delivered.is_some_and(|synced| synced.destination.still_describes(&there)) {
            return Ok(Room::Free(path, seen));
        }
        let is_newer =
            matches!((head.mtime, there.mtime), (Some(ours), Some(theirs)) if ours > theirs);
        let otherwise = match policy {
            IfExists::Overwrite | IfExists::Differs => Otherwise::Write(path, seen),
            IfExists::Newer if is_newer => Otherwise::Write(path, seen),
            IfExists::Newer | IfExists::Skip => Otherwise::Leave,
            IfExists::KeepBoth => {
                let free = put::free_name(destination, &path).await;
                Otherwise::Write(free.map_err(PutError::Remote)?, Replace::Nothing)
            }
            IfExists::Fail => Otherwise::Refuse(format!(
                "\"{path}\" is at the destination, and if_exists says to fail"
            )),
        };
        Ok(Room::Taken(Box::new(there), otherwise))
    }

    /// Where an output goes, under the name that the steps gave it.
    pub(super) fn output_path(&self, entry: &Entry, head: &Head) -> Result<RelPath, PutError> {
        let input = TemplateInput {
            path: &head.path,
            mtime: head.mtime,
            now: self.context.clock.now(),
            time_zone: &self.job.time_zone,
            matched: self.job.matched(entry),
        };
        let filled = self.job.template.fill(&input);
        filled.map_err(|error| refused(crate::error::chain(&error)))
    }

    /// Whether what is there holds these bytes.
    pub(super) async fn holds(
        &self,
        there: &Entry,
        length: u64,
        hash: ContentHash,
    ) -> Result<bool, PutError> {
        if there.kind != Kind::File || there.size != length {
            return Ok(false);
        }
        let context = &self.context;
        let read = put::hash_content(context, context.destination.as_ref(), there).await;
        Ok(read.map_err(PutError::Remote)? == hash)
    }

    /// Begins to write an output.
    pub(super) async fn open_output(
        &self,
        source: &Entry,
        head: &Head,
        path: &RelPath,
        replace: Replace,
    ) -> Result<Box<dyn Upload>, PutError> {
        let node = match &head.node {
            Node::Directory => NewNode::Directory,
            Node::Symlink { target } => NewNode::Symlink {
                target: target.clone(),
            },
            Node::File | Node::HardLink { .. } => NewNode::File { size: head.size },
        };
        let (path, replace) = if node == NewNode::Directory {
            // Nobody takes it for a file.
            (path.clone(), replace)
        } else {
            let written = self.written_at(source, path.clone(), replace).await?;
            (written.path, written.replace)
        };
        // Into a directory that nobody may enter, nothing could be written.
        let mode = match head.node {
            Node::Directory => head.mode.map(|mode| mode | 0o700),
            _ => head.mode.or(source.mode),
        };
        let options = WriteOptions {
            mtime: head.mtime.or(source.mtime),
            mode,
            replace,
            verify: self.context.verify,
            ..WriteOptions::new(node, self.context.journal.staged_id(&path))
        };
        let upload = self.context.destination.write(&path, options).await;
        upload.map_err(|error| PutError::Transfer(TransferError::Destination(error)))
    }

    /// Gives a staged output its name, and verifies it as the job asks for.
    pub(super) async fn land(
        &self,
        staged: Staged,
        hash: Option<ContentHash>,
        action: Action,
    ) -> Result<Landed, PutError> {
        let path = staged.path.clone();
        let committed = self.context.commits.commit(staged).await;
        let mut committed = committed.map_err(PutError::Remote)?;
        if let Some(hash) = hash {
            let context = &self.context;
            put::verify(context, &context.destination, &path, hash, &mut committed).await?;
        }
        Ok(Landed {
            path,
            committed,
            action,
            hash,
        })
    }
}

/// What is there already and is the same.
pub(super) fn landed_before(there: Entry, hash: Option<ContentHash>) -> Landed {
    Landed {
        path: there.path.clone(),
        committed: Committed {
            evidence: match hash {
                Some(hash) => knarr_core::record::Evidence::ReadBack { hash },
                None => knarr_core::record::Evidence::None,
            },
            entry: there,
        },
        action: Action::Adopted,
        hash,
    }
}

pub(crate) fn refused(message: String) -> PutError {
    PutError::Transfer(TransferError::Left(message))
}

pub(super) const fn kind_of(node: &Node) -> Kind {
    match node {
        Node::File | Node::HardLink { .. } => Kind::File,
        Node::Directory => Kind::Directory,
        Node::Symlink { .. } => Kind::Symlink,
    }
}

/// What replacing something is called in the record.
pub(super) const fn action_of(replace: &Replace) -> Action {
    match replace {
        Replace::Nothing => Action::Created,
        Replace::Seen(_) | Replace::Anything => Action::Updated,
    }
}
