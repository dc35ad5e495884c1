//! Where a watch job writes a file, and what it may replace there.

use knarr_core::job::Deletes;
use knarr_core::plan::{Decision, IfExists, Operation, Policy, Side, decide_existing};
use knarr_core::template::TemplateInput;
use knarr_core::tree::Synced;
use knarr_core::{Entry, Kind, RelPath};
use knarr_remote::{ErrorKind, RemoteError, Removal, Replace, Retry};

use crate::batch::Reused;
use crate::node::deliver::Delivering;
use crate::node::room::LEFT;
use crate::put::{self, PutError};
use crate::transfer::{Opened, RESUMABLE_FROM_BYTES, Target};

/// Where a file goes.
enum Place {
    /// To this path, replacing this.
    Free(RelPath, Replace),
    /// Nowhere: this is there, and it is the same; delivered by an attempt that could not record it.
    Same(Entry),
    /// Nowhere: policy says to leave what is there.
    Leave(&'static str),
    /// Nowhere, and a person has to see why.
    Refuse(String),
}

/// What was found out and decided while a file was staged.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) synced: Option<Synced>,
    /// Whether to look at the destination first.
    pub(crate) look: bool,
    pub(crate) left: Option<String>,
    /// What is there already and is the same.
    pub(crate) same: Option<Entry>,
    pub(crate) replaced: bool,
    /// Its SHA-256, if the job asks for it and it was read.
    pub(crate) sha256: Option<String>,
    /// Its content, if it was read when it was looked at.
    pub(crate) opened: Opened,
    /// What an earlier run staged and did not publish.
    pub(crate) reused: Option<Reused>,
}

impl Delivering {
    /// Where the file goes, under the name that the steps gave it; nothing if it is left.
    pub(crate) async fn target(
        &self,
        entry: &Entry,
        named: RelPath,
        decided: &mut Decided,
    ) -> Result<Option<Target>, PutError> {
        let (path, replace) = match self.place(entry, named, decided).await? {
            Place::Free(path, replace) => (path, replace),
            Place::Same(there) => {
                decided.same = Some(there);
                return Ok(None);
            }
            Place::Leave(reason) => {
                decided.left = Some(reason.to_owned());
                return Ok(None);
            }
            Place::Refuse(reason) => {
                decided.left = Some(reason);
                return Ok(None);
            }
        };
        decided.replaced = !matches!(replace, Replace::Nothing);
        let written = self.written_at(entry, path, replace).await?;
        let (path, replace) = (written.path, written.replace);
        decided.reused = written.reused;
        let journal = &self.context.journal;
        let resumable = entry.size >= RESUMABLE_FROM_BYTES && self.job.steps.is_empty();
        let (resume, checkpoints) = if resumable {
            let found = self.context.checkpoints(Side::Destination, &path, entry);
            let (resume, sink) = found.await.map_err(PutError::Engine)?;
            (resume, Some(sink))
        } else {
            (None, None)
        };
        let (staged_id, verify) = (journal.staged_id(&path), self.context.verify);
        Ok(Some(Target {
            path,
            staged_id,
            replace,
            verify,
            resume,
            checkpoints,
        }))
    }

    async fn place(
        &self,
        entry: &Entry,
        named: RelPath,
        decided: &Decided,
    ) -> Result<Place, PutError> {
        let input = TemplateInput {
            path: &named,
            mtime: entry.mtime,
            now: self.context.clock.now(),
            time_zone: &self.job.time_zone,
            matched: self.job.matched(entry),
        };
        let path = match self.job.template.fill(&input) {
            Ok(path) => path,
            Err(error) => return Ok(Place::Refuse(crate::error::chain(&error))),
        };
        if let Some(synced) = &decided.synced
            && *synced.at_destination() == path
        {
            // Delivered by this job: its next version may replace it.
            return Ok(match self.job.if_exists {
                IfExists::KeepBoth => self.beside(path).await?,
                _ => Place::Free(path, Replace::Seen(synced.destination.clone())),
            });
        }
        if !decided.look && self.job.if_exists != IfExists::KeepBoth {
            // Most names are new; the commit refuses to replace what is there after all.
            return Ok(Place::Free(path, Replace::Nothing));
        }
        let there = self
            .context
            .destination
            .stat(&path)
            .await
            .map_err(PutError::Remote)?;
        let Some(there) = there else {
            return Ok(Place::Free(path, Replace::Nothing));
        };
        if there.kind == Kind::Directory && self.job.deletes == Deletes::Mirror {
            return self.instead_of_directory(path).await;
        }
        let policy = Policy {
            if_exists: self.job.if_exists,
            adopt: true,
            ..self.context.policy.clone()
        };
        if !self.job.steps.is_empty() && self.job.if_exists == IfExists::Differs {
            // What the steps make cannot be compared with what they are made from.
            return Ok(Place::Free(path, Replace::Seen(there.fingerprint())));
        }
        let ours = Entry {
            path: path.clone(),
            ..entry.clone()
        };
        let fingerprint = there.fingerprint();
        Ok(match decide_existing(ours, there, &policy) {
            Some(Decision::Operation(Operation::Put { beside, .. })) => match beside {
                knarr_core::plan::Beside::No => Place::Free(path, Replace::Seen(fingerprint)),
                knarr_core::plan::Beside::Numbered => self.beside(path).await?,
            },
            Some(Decision::Operation(Operation::Adopt { destination, .. })) => {
                Place::Same(destination)
            }
            Some(Decision::Problem(problem)) => Place::Refuse(problem.message),
            Some(Decision::Operation(_) | Decision::Conflict(_)) | None => Place::Leave(LEFT),
        })
    }

    /// A directory became a file: once what was in it is gone at the destination, it makes way.
    async fn instead_of_directory(&self, path: RelPath) -> Result<Place, PutError> {
        let removal = Removal {
            path: path.clone(),
            kind: Kind::Directory,
            seen: None,
        };
        let removals = std::slice::from_ref(&removal);
        let removed = self.context.destination.remove(removals).await;
        if removed.into_iter().all(|result| result.is_ok()) {
            return Ok(Place::Free(path, Replace::Nothing));
        }
        let message = "a directory that is not empty is there";
        let error = RemoteError::new(ErrorKind::AlreadyExists, "write", message).at(&path);
        Err(PutError::Remote(error.with_retry(Retry::Later)))
    }

    async fn beside(&self, path: RelPath) -> Result<Place, PutError> {
        let destination = self.context.destination.as_ref();
        if destination
            .stat(&path)
            .await
            .map_err(PutError::Remote)?
            .is_none()
        {
            return Ok(Place::Free(path, Replace::Nothing));
        }
        let free = put::free_name(destination, &path)
            .await
            .map_err(PutError::Remote)?;
        Ok(Place::Free(free, Replace::Nothing))
    }
}
