//! The commit: one request that makes an object visible, and the looks before and after it.
//!
//! Why this is safe:
//!
//! 1. What may not be replaced is looked at before, and the request carries the same as a condition.
//!    Some stores ignore conditions: until one has refused by it (412), the look is what counts.
//! 2. If the answer leaves open whether it was done (a time-out, 5xx, 200 with an error in it, "no
//!    such upload"), the object is looked at. If it carries the mark of this upload and has its
//!    length, it was done. Only then, or else, anything is repeated.
//! 3. After it the store's checksum, or else the length, is compared with ours.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use knarr_core::entry::Identity;
use knarr_core::job::Verify;
use knarr_core::record::Evidence;
use knarr_core::{ContentHash, Entry, RelPath, Timestamp};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{ObjectMeta, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion};

use super::conditions::Conditions;
use super::error::Failure;
use super::http::{ConfirmedChecksum, backoff};
use super::parts::{SavedUpload, attributes, has_mark};
use super::resume::{self, Looks, find_completed};
use super::s3::{Completed, Condition, Receipt, bare};
use super::send::{self, Begun};
use super::{Head, Inner, entry_of, read};
use crate::error::{ErrorKind, RemoteError, Retry};
use crate::remote::{ReadOptions, Reader as _, Replace};
use crate::upload::{CheckpointSink, CheckpointUpdate, Committed, Committer, Staged};

/// How often a request is sent whose connection breaks.
const CUTS: u32 = 4;
/// How often a completion is tried.
const COMPLETIONS: u32 = 5;
/// How many items of a batch are committed at once.
const COMMITS_AT_ONCE: usize = 32;
/// An object up to this length is sent twice to find out whether the store keeps conditions.
const PROBE_LIMIT: usize = 256 << 10;

/// What waits for its commit.
pub(super) struct StagedObject {
    pub(super) key: Path,
    pub(super) length: u64,
    pub(super) hash: ContentHash,
    pub(super) mtime: Option<Timestamp>,
    pub(super) replace: Replace,
    pub(super) verify: Verify,
    pub(super) content: Content,
}

/// Where its bytes are.
pub(super) enum Content {
    /// Here.
    Whole(PutPayload),
    /// At the store, in parts.
    Parts {
        saved: SavedUpload,
        begun: Begun,
        receipts: Vec<String>,
        sink: Option<Arc<dyn CheckpointSink>>,
    },
    /// Under the final name already.
    Finished {
        saved: SavedUpload,
        sink: Option<Arc<dyn CheckpointSink>>,
    },
}

/// What the store has of an upload that was not completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Everything, as far as anybody knows.
    Kept,
    /// Nothing that could still be completed.
    Lost,
}

/// Commits one object at a time; a batch gains nothing.
pub(super) struct ObjectCommitter {
    inner: Arc<Inner>,
}

impl ObjectCommitter {
    pub(super) const fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }
}

/// Whether `replace` lets what lies at `path` be replaced.
pub(super) fn check_replace(
    operation: &str,
    path: &RelPath,
    replace: &Replace,
    there: Option<&Head>,
) -> Result<(), RemoteError> {
    let seen = there.map(|head| entry_of(path.clone(), &head.meta));
    let refuse = |kind, message: &str| Err(RemoteError::new(kind, operation, message).at(path));
    match (replace, seen) {
        (Replace::Anything, _) | (Replace::Nothing, None) => Ok(()),
        (Replace::Nothing, Some(_)) => {
            refuse(ErrorKind::AlreadyExists, "something is there already")
        }
        (Replace::Seen(seen), Some(now)) if seen.still_describes(&now) => Ok(()),
        (Replace::Seen(_), Some(_)) => {
            refuse(ErrorKind::Changed, "it is another version than was seen")
        }
        (Replace::Seen(_), None) => refuse(ErrorKind::Changed, "what was seen there is gone"),
    }
}

#[async_trait]
impl Committer for ObjectCommitter {
    async fn commit(&self, batch: Vec<Staged>) -> Vec<Result<Committed, RemoteError>> {
        let commits = batch.into_iter().map(|staged| {
            let inner = Arc::clone(&self.inner);
            async move {
                let Staged { path, state, .. } = staged;
                match state.downcast::<StagedObject>() {
                    Ok(object) => {
                        Commit {
                            inner,
                            path,
                            object: *object,
                        }
                        .run()
                        .await
                    }
                    Err(_other) => {
                        let message = "this was staged by something else";
                        Err(RemoteError::new(ErrorKind::Other, "commit", message).at(&path))
                    }
                }
            }
        });
        stream::iter(commits)
            .buffered(COMMITS_AT_ONCE)
            .collect()
            .await
    }
}

struct Commit {
    inner: Arc<Inner>,
    path: RelPath,
    object: StagedObject,
}

impl Commit {
    async fn run(mut self) -> Result<Committed, RemoteError> {
        let nothing = Content::Whole(PutPayload::default());
        let (committed, sink) = match std::mem::replace(&mut self.object.content, nothing) {
            Content::Whole(payload) => (self.whole(payload).await?, None),
            Content::Finished { saved, sink } => (self.finished(&saved).await?, sink),
            Content::Parts {
                saved,
                begun,
                receipts,
                sink,
            } => match self.parts(&saved, begun, &receipts).await {
                Ok(committed) => (committed, sink),
                Err((error, left)) => {
                    return Err(self.after_failure(&saved, sink, error, left).await);
                }
            },
        };
        if self.object.verify == Verify::Full {
            return self.read_back(committed, sink).await;
        }
        Ok(committed)
    }

    fn failed(&self, failure: Failure) -> RemoteError {
        failure.into_remote("commit", Some(&self.path))
    }

    async fn head(&self) -> Result<Option<Head>, RemoteError> {
        self.inner
            .head(&self.object.key)
            .await
            .map_err(|failure| self.failed(failure))
    }

    /// Looks at what would be replaced, unless that is of no interest or the store does it reliably.
    async fn look_before(&self) -> Result<Option<ObjectMeta>, RemoteError> {
        let needed = match self.object.replace {
            Replace::Anything => false,
            Replace::Nothing => self.inner.conditions() != Conditions::Kept,
            Replace::Seen(_) => true,
        };
        if !needed {
            return Ok(None);
        }
        let there = self.head().await?;
        check_replace("commit", &self.path, &self.object.replace, there.as_ref())?;
        Ok(there.map(|head| head.meta))
    }

    fn refused_by_condition(&self) -> RemoteError {
        let (kind, message) = match self.object.replace {
            Replace::Nothing => (ErrorKind::AlreadyExists, "something is there already"),
            _ => (ErrorKind::Changed, "it is another version than was seen"),
        };
        RemoteError::new(kind, "commit", message).at(&self.path)
    }

    async fn put(&self, payload: &PutPayload, mode: PutMode) -> Result<PutResult, Failure> {
        let mark = content_mark(self.object.hash);
        let options = PutOptions {
            mode,
            attributes: attributes(self.object.mtime, mark),
            ..PutOptions::default()
        };
        Ok(self
            .inner
            .store
            .put_opts(&self.object.key, payload.clone(), options)
            .await?)
    }

    fn put_mode(&self, before: Option<ObjectMeta>) -> PutMode {
        match (&self.object.replace, self.inner.conditions(), before) {
            (Replace::Anything, _, _) | (_, Conditions::Ignored, _) => PutMode::Overwrite,
            (Replace::Nothing, _, _) => PutMode::Create,
            (Replace::Seen(_), _, Some(meta)) if meta.e_tag.is_some() => {
                PutMode::Update(UpdateVersion {
                    e_tag: meta.e_tag,
                    version: meta.version,
                })
            }
            (Replace::Seen(_), _, _) => PutMode::Overwrite,
        }
    }

    async fn whole(&self, payload: PutPayload) -> Result<Committed, RemoteError> {
        let before = self.look_before().await?;
        let mut mode = self.put_mode(before);
        let mut attempt = 0;
        loop {
            let failure = match self.put(&payload, mode.clone()).await {
                Ok(result) => {
                    let probe = mode == PutMode::Create && payload.content_length() <= PROBE_LIMIT;
                    let result = if probe && self.inner.begin_probe() {
                        self.probe(&payload).await.unwrap_or(result)
                    } else {
                        result
                    };
                    return self.was_put(result).await;
                }
                Err(failure) => failure,
            };
            if failure.is_unsupported() && mode != PutMode::Overwrite {
                self.inner.set_conditions(Conditions::Ignored);
                self.look_before().await?;
                mode = PutMode::Overwrite;
                continue;
            }
            if !failure.is_precondition() && !failure.is_unclear() {
                return Err(self.failed(failure));
            }
            if failure.status == Some(412) {
                self.inner.set_conditions(Conditions::Kept);
            }
            // The adapter does not repeat a conditional request whose connection broke, as it cannot
            // tell its own object from another's. A server that has just refused one does that.
            attempt += 1;
            let again = failure.was_cut() && attempt < CUTS;
            let mark = content_mark(self.object.hash);
            match self.unclear(&mark, failure, Looks::Once).await {
                Err(error) if again => {
                    tracing::debug!(path = %self.path, %error, "the commit is tried again");
                    tokio::time::sleep(backoff(attempt)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Finds out whether the store keeps conditions, by sending once more what was just created: a
    /// store that does refuses it, and with one that does not nothing has changed. Gives the new
    /// answer, if it was taken.
    async fn probe(&self, payload: &PutPayload) -> Option<PutResult> {
        let probed = self.put(payload, PutMode::Create).await;
        let (conditions, result) = match probed {
            Ok(result) => (Conditions::Ignored, Some(result)),
            Err(failure) if failure.status == Some(412) => (Conditions::Kept, None),
            Err(failure) if failure.is_unsupported() => (Conditions::Ignored, None),
            Err(_passing) => (Conditions::Unknown, None),
        };
        tracing::debug!(?conditions, location = %self.inner.description.location, "conditional requests");
        self.inner.set_conditions(conditions);
        result
    }

    async fn was_put(&self, result: PutResult) -> Result<Committed, RemoteError> {
        let confirmed = result.extensions.get::<ConfirmedChecksum>();
        if let (Some(confirmed), Some(etag)) = (confirmed, &result.e_tag) {
            let mut entry = Entry::file(self.path.clone(), self.object.length);
            entry.identity = Some(Identity::Tag(bare(etag).into()));
            let evidence = Evidence::ServerChecksum {
                algorithm: confirmed.algorithm.to_owned(),
                value: confirmed.value.clone(),
            };
            return Ok(Committed { entry, evidence });
        }
        let head = self.head().await?;
        let entry = self.check_length(head)?;
        Ok(Committed {
            entry,
            evidence: size_only("the store confirmed no checksum"),
        })
    }

    /// The entry of what is there after the commit, if it has the right length.
    fn check_length(&self, head: Option<Head>) -> Result<Entry, RemoteError> {
        let wrong = |message: String| {
            Err(RemoteError::new(ErrorKind::Protocol, "commit", message).at(&self.path))
        };
        match head {
            Some(head) if head.meta.size == self.object.length => {
                Ok(entry_of(self.path.clone(), &head.meta))
            }
            Some(head) => wrong(format!(
                "{} bytes are there after {} were committed",
                head.meta.size, self.object.length
            )),
            None => wrong("it is not there after it was committed".to_owned()),
        }
    }

    /// What is there, if it carries this mark and has our length.
    async fn find_completed(
        &self,
        mark: &str,
        looks: Looks,
    ) -> Result<Option<Committed>, RemoteError> {
        let (key, length) = (&self.object.key, self.object.length);
        let found = find_completed(&self.inner, key, mark, length, looks).await;
        let found = found.map_err(|failure| self.failed(failure))?;
        Ok(found.map(|head| Committed {
            entry: entry_of(self.path.clone(), &head.meta),
            evidence: size_only("the answer was lost; the object there has our mark and length"),
        }))
    }

    /// Looks whether it was done all the same.
    async fn unclear(
        &self,
        mark: &str,
        failure: Failure,
        looks: Looks,
    ) -> Result<Committed, RemoteError> {
        if let Some(committed) = self.find_completed(mark, looks).await? {
            return Ok(committed);
        }
        if failure.is_precondition() {
            return Err(self.refused_by_condition());
        }
        Err(self.failed(failure))
    }

    async fn finished(&self, saved: &SavedUpload) -> Result<Committed, RemoteError> {
        let head = self.head().await?;
        let ours = head
            .as_ref()
            .is_some_and(|head| has_mark(&head.attributes, &saved.mark));
        if !ours {
            let message = "what an earlier attempt completed was replaced meanwhile";
            return Err(RemoteError::new(ErrorKind::Changed, "commit", message).at(&self.path));
        }
        let entry = self.check_length(head)?;
        let evidence = size_only("an earlier attempt completed it, and its answer was lost");
        Ok(Committed { entry, evidence })
    }

    async fn complete(
        &self,
        saved: &SavedUpload,
        receipts: &[String],
        condition: &Condition,
    ) -> Result<Completed, Failure> {
        if let Some(s3) = &self.inner.s3 {
            let receipts: Vec<&str> = receipts.iter().map(String::as_str).collect();
            return s3
                .complete(&self.object.key, &saved.upload_id, &receipts, condition)
                .await;
        }
        let part = |receipt: &String| PartId {
            content_id: receipt.clone(),
        };
        let parts = receipts.iter().map(part).collect();
        let store = &self.inner.store;
        let result = store
            .complete_multipart(&self.object.key, &saved.upload_id, parts)
            .await?;
        let etag = result.e_tag.as_deref().map(|etag| bare(etag).to_owned());
        Ok(Completed {
            etag,
            crc64nvme: None,
        })
    }

    async fn parts(
        &self,
        saved: &SavedUpload,
        begun: Begun,
        receipts: &[String],
    ) -> Result<Committed, (RemoteError, Left)> {
        let kept = |error| (error, Left::Kept);
        let before = match self.look_before().await {
            Ok(before) => before,
            // What an earlier attempt asked to be completed may have appeared just now.
            Err(error) => {
                return match self.find_completed(&saved.mark, Looks::Once).await {
                    Ok(Some(committed)) => Ok(committed),
                    _ => Err(kept(error)),
                };
            }
        };
        let mut condition = self.condition(before);
        let mut attempt = 0;
        loop {
            let failure = match self.complete(saved, receipts, &condition).await {
                Ok(completed) => {
                    return self.was_completed(completed, receipts).await.map_err(kept);
                }
                Err(failure) => failure,
            };
            if failure.is_unsupported() && condition != Condition::None {
                condition = Condition::None;
                continue;
            }
            // Some servers answer "access denied" for an upload that was completed: what is there decides.
            let asked_before = begun == Begun::Earlier || attempt > 0;
            let denied = failure.is_denied() && asked_before;
            let lost = failure.is_upload_gone()
                || failure.code.as_deref() == Some("InvalidPart")
                || denied && resume::is_lost(&self.inner, &self.object.key, saved).await;
            let looks = if asked_before && (lost || denied) {
                Looks::WhileItMayAppear
            } else {
                Looks::Once
            };
            let gone = lost || failure.is_denied();
            if !gone && !failure.is_precondition() && !failure.is_unclear() && !failure.is_passing()
            {
                return Err((self.failed(failure), Left::Kept));
            }
            attempt += 1;
            let again = !gone && failure.status != Some(412) && attempt < COMPLETIONS;
            match self.unclear(&saved.mark, failure, looks).await {
                Ok(committed) => return Ok(committed),
                Err(error) if again && error.kind != ErrorKind::NotFound => {
                    tracing::debug!(path = %self.path, %error, "completing is tried again");
                    tokio::time::sleep(backoff(attempt)).await;
                }
                Err(error) if lost => return Err((error, Left::Lost)),
                Err(error) => return Err((error, Left::Kept)),
            }
        }
    }

    /// The condition of the completion, if `before` was there before it.
    fn condition(&self, before: Option<ObjectMeta>) -> Condition {
        let etag = before.and_then(|meta| meta.e_tag);
        match (&self.object.replace, self.inner.conditions(), etag) {
            (Replace::Anything, _, _) | (_, Conditions::Ignored, _) => Condition::None,
            (Replace::Nothing, _, _) => Condition::Absent,
            (Replace::Seen(_), _, Some(etag)) => Condition::Is(etag),
            (Replace::Seen(_), _, None) => Condition::None,
        }
    }

    async fn was_completed(
        &self,
        completed: Completed,
        receipts: &[String],
    ) -> Result<Committed, RemoteError> {
        let head = self.head().await?;
        let entry = self.check_length(head)?;
        let etag_there = match &entry.identity {
            Some(Identity::Tag(tag)) => Some(tag.to_string()),
            _ => None,
        };
        // Some servers answer with another ETag than they show: not an error, but no proof either.
        if completed.etag.is_some() && completed.etag != etag_there {
            tracing::debug!(path = %self.path, ?completed, ?etag_there, "another ETag is there");
        }
        let all_confirmed = || {
            receipts.iter().all(|receipt| {
                let receipt = Receipt::read(receipt);
                receipt.crc64nvme.is_some() || receipt.sha256.is_some()
            })
        };
        let evidence = match completed.crc64nvme {
            Some(value) if all_confirmed() => Evidence::ServerChecksum {
                algorithm: "crc64nvme".to_owned(),
                value,
            },
            _ if all_confirmed() => Evidence::ServerChecksum {
                algorithm: "checksum of each part".to_owned(),
                value: format!(
                    "{} parts, ETag {}",
                    receipts.len(),
                    etag_there.unwrap_or_default()
                ),
            },
            _ => size_only("the store confirmed no checksums of the parts"),
        };
        Ok(Committed { entry, evidence })
    }

    /// What becomes of an upload that was not completed: one that nobody has a record of is removed, and
    /// of one that the store has lost nobody keeps a record, so that the next attempt begins anew.
    async fn after_failure(
        &self,
        saved: &SavedUpload,
        sink: Option<Arc<dyn CheckpointSink>>,
        error: RemoteError,
        left: Left,
    ) -> RemoteError {
        if sink.is_some() && left == Left::Kept {
            return error;
        }
        if let Err(error) = send::forget(&self.inner, &self.path, saved, sink.as_ref()).await {
            tracing::warn!(path = %self.path, %error, "an upload that is gone is still noted");
        }
        match left {
            Left::Kept => error,
            Left::Lost => error.with_retry(Retry::Later),
        }
    }

    /// Reads everything back; what is there stays there, whatever comes of it. If it is damaged,
    /// its parts are of no use any more, and the next attempt sends everything anew.
    async fn read_back(
        &self,
        committed: Committed,
        sink: Option<Arc<dyn CheckpointSink>>,
    ) -> Result<Committed, RemoteError> {
        let expected = Some(committed.entry.fingerprint());
        let options = ReadOptions {
            offset: 0,
            expected,
        };
        let mut reader = read::open(Arc::clone(&self.inner), &self.path, options).await?;
        let mut hasher = blake3::Hasher::new();
        while let Some(chunk) = reader.next().await? {
            hasher.update(&chunk);
        }
        let hash = ContentHash::from(hasher.finalize());
        if hash != self.object.hash {
            if let Some(sink) = sink {
                sink.save(CheckpointUpdate::Forgotten).await?;
            }
            let message = "other bytes were read back than were sent";
            return Err(RemoteError::new(ErrorKind::Protocol, "commit", message).at(&self.path));
        }
        Ok(Committed {
            evidence: Evidence::ReadBack { hash },
            ..committed
        })
    }
}

/// The mark of an object that goes in one request: its content.
fn content_mark(hash: ContentHash) -> String {
    format!("blake3-{hash}")
}

fn size_only(reason: &str) -> Evidence {
    Evidence::SizeOnly {
        reason: reason.to_owned(),
    }
}
