//! The suite itself: a place that breaks one promise fails the case that holds it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::record::Evidence;
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_remote::conformance::{Case, Fixture, READING, WRITING};
use knarr_remote::memory::MemoryRemote;
use knarr_remote::{
    Committed, Committer, Description, ListOptions, Listing, ReadOptions, Reader, Remote,
    RemoteError, Removal, RenameOptions, Replace, Staged, Upload, WriteOptions,
};

/// The promise that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    Nothing,
    LosesTheLastItemOfListings,
    ListsBackwards,
    TakesMissingDirectoriesForEmpty,
    ReadsAnyVersion,
    ReadsFromTheStart,
    ReplacesWhateverIsThere,
    RenamesOverWhateverIsThere,
    RemovesAnyVersion,
    IsVisibleBeforeTheCommit,
    FlipsABit,
    ForgetsTimes,
    ForgetsModes,
    ForgetsEvidence,
    MergesNames,
    NeverResumes,
    NeverGivesUp,
}

#[derive(Debug, Clone)]
struct Saboteur {
    inner: MemoryRemote,
    sabotage: Sabotage,
}

impl Saboteur {
    fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == sabotage
    }

    fn merged(&self, path: &RelPath) -> RelPath {
        if self.is(Sabotage::MergesNames) {
            RelPath::new(path.as_bytes().to_ascii_lowercase()).unwrap()
        } else {
            path.clone()
        }
    }
}

#[async_trait]
impl Remote for Saboteur {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }

    async fn list(&self, options: ListOptions) -> Result<Listing, RemoteError> {
        let mut items = match self.inner.list(options).await {
            Ok(listing) => listing.collect().await,
            Err(_) if self.is(Sabotage::TakesMissingDirectoriesForEmpty) => Vec::new(),
            Err(error) => return Err(error),
        };
        if self.is(Sabotage::LosesTheLastItemOfListings) {
            items.pop();
        }
        if self.is(Sabotage::ListsBackwards) {
            items.reverse();
        }
        let (sender, listing) = Listing::channel();
        tokio::spawn(async move {
            for item in items {
                if sender.send(vec![item]).await.is_err() {
                    return;
                }
            }
            sender.end().await;
        });
        Ok(listing)
    }

    async fn stat(&self, path: &RelPath) -> Result<Option<Entry>, RemoteError> {
        let found = self.inner.stat(&self.merged(path)).await?;
        Ok(found.map(|entry| Entry {
            path: path.clone(),
            ..entry
        }))
    }

    async fn read(
        &self,
        path: &RelPath,
        mut options: ReadOptions,
    ) -> Result<Box<dyn Reader>, RemoteError> {
        if self.is(Sabotage::ReadsAnyVersion) {
            options.expected = None;
        }
        if self.is(Sabotage::ReadsFromTheStart) {
            options.offset = 0;
        }
        self.inner.read(&self.merged(path), options).await
    }

    async fn write(
        &self,
        path: &RelPath,
        mut options: WriteOptions,
    ) -> Result<Box<dyn Upload>, RemoteError> {
        match self.sabotage {
            Sabotage::ReplacesWhateverIsThere | Sabotage::MergesNames => {
                options.replace = Replace::Anything;
            }
            Sabotage::IsVisibleBeforeTheCommit => {
                self.inner.put(path, "half of it")?;
                options.replace = Replace::Anything;
            }
            Sabotage::ForgetsTimes => options.mtime = None,
            Sabotage::ForgetsModes => options.mode = None,
            Sabotage::NeverResumes => options.resume = None,
            _ => {}
        }
        let upload = self.inner.write(&self.merged(path), options).await?;
        Ok(Box::new(SabotagedUpload {
            upload,
            path: path.clone(),
            sabotage: self.sabotage,
        }))
    }

    async fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        mut options: RenameOptions,
    ) -> Result<Entry, RemoteError> {
        if self.is(Sabotage::RenamesOverWhateverIsThere) {
            options.replace = Replace::Anything;
        }
        self.inner.rename(from, to, options).await
    }

    async fn remove(&self, removals: &[Removal]) -> Vec<Result<(), RemoteError>> {
        let mut removals = removals.to_vec();
        if self.is(Sabotage::RemovesAnyVersion) {
            for removal in &mut removals {
                removal.seen = None;
            }
        }
        self.inner.remove(&removals).await
    }

    async fn abandon(&self, path: &RelPath, state: &str) -> Result<(), RemoteError> {
        if self.is(Sabotage::NeverGivesUp) {
            return Ok(());
        }
        self.inner.abandon(path, state).await
    }
}

#[derive(Debug)]
struct SabotagedUpload {
    upload: Box<dyn Upload>,
    path: RelPath,
    sabotage: Sabotage,
}

#[async_trait]
impl Upload for SabotagedUpload {
    fn resumed_at(&self) -> u64 {
        self.upload.resumed_at()
    }

    async fn resumed_hash(&mut self) -> Result<Option<blake3::Hasher>, RemoteError> {
        self.upload.resumed_hash().await
    }

    fn sent(&self) -> u64 {
        self.upload.sent()
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), RemoteError> {
        let mut bytes = chunk.to_vec();
        if self.sabotage == Sabotage::FlipsABit
            && let Some(last) = bytes.last_mut()
        {
            *last ^= 1;
        }
        self.upload.write(bytes.into()).await
    }

    async fn stage(self: Box<Self>, length: u64, hash: ContentHash) -> Result<Staged, RemoteError> {
        let Self {
            upload,
            path,
            sabotage,
        } = *self;
        let staged = upload.stage(length, hash).await?;
        let inner = Arc::clone(&staged.committer);
        let committer = Arc::new(SabotagedCommitter {
            inner,
            path,
            sabotage,
        });
        Ok(Staged {
            committer,
            ..staged
        })
    }

    async fn suspend(self: Box<Self>) {
        self.upload.suspend().await;
    }

    async fn abort(self: Box<Self>) {
        self.upload.abort().await;
    }
}

/// One for each upload, so it knows the path as it was asked for.
struct SabotagedCommitter {
    inner: Arc<dyn Committer>,
    path: RelPath,
    sabotage: Sabotage,
}

#[async_trait]
impl Committer for SabotagedCommitter {
    async fn commit(&self, batch: Vec<Staged>) -> Vec<Result<Committed, RemoteError>> {
        let batch = batch
            .into_iter()
            .map(|staged| Staged {
                committer: Arc::clone(&self.inner),
                ..staged
            })
            .collect();
        let results = self.inner.commit(batch).await.into_iter();
        results
            .map(|result| {
                let mut committed = result?;
                committed.entry.path = self.path.clone();
                if self.sabotage == Sabotage::ForgetsEvidence {
                    committed.evidence = Evidence::None;
                }
                Ok(committed)
            })
            .collect()
    }
}

fn case(name: &str) -> &'static Case {
    READING
        .iter()
        .chain(WRITING)
        .find(|case| case.name == name)
        .unwrap()
}

async fn passes(name: &str, sabotage: Sabotage) -> bool {
    let remote = Arc::new(Saboteur {
        inner: MemoryRemote::new(),
        sabotage,
    });
    tokio::spawn((case(name).run)(Fixture::of(remote)))
        .await
        .is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broken_promise_fails_the_case_that_holds_it() {
    for (sabotage, name) in [
        (
            Sabotage::LosesTheLastItemOfListings,
            "a_big_listing_is_complete_and_may_be_dropped_half_way",
        ),
        (Sabotage::ListsBackwards, "a_listing_comes_in_tree_order"),
        (
            Sabotage::TakesMissingDirectoriesForEmpty,
            "a_directory_that_is_missing_is_not_an_empty_one",
        ),
        (
            Sabotage::ReadsAnyVersion,
            "a_file_that_is_not_the_expected_one_is_not_read",
        ),
        (
            Sabotage::ReadsFromTheStart,
            "a_file_is_read_whole_and_from_any_offset",
        ),
        (
            Sabotage::ReplacesWhateverIsThere,
            "k6_only_what_may_be_replaced_is_replaced",
        ),
        (
            Sabotage::ReplacesWhateverIsThere,
            "a_batch_is_committed_item_by_item",
        ),
        (
            Sabotage::RenamesOverWhateverIsThere,
            "k6_a_rename_replaces_only_what_it_may",
        ),
        (
            Sabotage::RemovesAnyVersion,
            "k5_another_version_or_another_kind_is_not_removed",
        ),
        (
            Sabotage::IsVisibleBeforeTheCommit,
            "k2_nothing_is_visible_before_the_commit",
        ),
        (
            Sabotage::IsVisibleBeforeTheCommit,
            "an_abort_leaves_nothing_visible",
        ),
        (Sabotage::FlipsABit, "files_of_all_sizes_arrive_whole"),
        (
            Sabotage::ForgetsTimes,
            "mtimes_are_kept_as_exactly_as_promised",
        ),
        (Sabotage::ForgetsModes, "modes_are_kept_where_promised"),
        (
            Sabotage::ForgetsEvidence,
            "what_was_committed_says_how_it_is_known",
        ),
        (
            Sabotage::MergesNames,
            "r37_every_name_arrives_byte_exact_or_is_refused",
        ),
        (
            Sabotage::MergesNames,
            "r38_names_that_differ_by_case_never_merge",
        ),
        (
            Sabotage::NeverResumes,
            "k9_a_suspended_upload_goes_on_where_it_was",
        ),
        (
            Sabotage::NeverGivesUp,
            "what_an_earlier_attempt_left_can_be_given_up_by_what_it_saved",
        ),
    ] {
        assert!(
            passes(name, Sabotage::Nothing).await,
            "{name} fails a place that is sound"
        );
        assert!(
            !passes(name, sabotage).await,
            "{name} does not notice that it {sabotage:?}"
        );
    }
}
