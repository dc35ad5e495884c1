//! Renaming and removing keys.
//!
//! A rename is a copy inside the store, a look at the copy, and a removal of the original: nothing is
//! transferred, and at no time the content is under neither name.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use knarr_core::{Entry, RelPath};
use object_store::path::Path;
use object_store::{CopyOptions, ObjectStoreExt as _};

use super::commit::check_replace;
use super::error::Failure;
use super::{Inner, entry_of, is_object, s3};
use crate::error::{ErrorKind, RemoteError};
use crate::remote::{Removal, Replace};

/// What S3 copies in one request, in bytes.
const COPY_LIMIT: u64 = 5 << 30;
/// How many keys one request removes.
const DELETE_BATCH: usize = 1_000;
/// How many keys are looked at at once before they are removed.
const LOOKS_AT_ONCE: usize = 16;

pub(super) async fn rename(
    inner: &Arc<Inner>,
    from: &RelPath,
    to: &RelPath,
    replace: &Replace,
) -> Result<Entry, RemoteError> {
    let (from_key, to_key) = (
        inner.prefix.key("rename", from)?,
        inner.prefix.key("rename", to)?,
    );
    let failed = |failure: Failure| failure.into_remote("rename", Some(from));
    let Some(original) = inner.head(&from_key).await.map_err(failed)? else {
        return Err(RemoteError::new(ErrorKind::NotFound, "rename", "it is not there").at(from));
    };
    let entry = entry_of(from.clone(), &original.meta);
    if original.meta.size > COPY_LIMIT {
        let message = "an object store copies at most 5 GiB in one request";
        return Err(RemoteError::new(ErrorKind::Unsupported, "rename", message).at(from));
    }
    if from == to {
        return Ok(entry);
    }
    if *replace != Replace::Anything {
        let there = inner.head(&to_key).await.map_err(failed)?;
        check_replace("rename", to, replace, there.as_ref())?;
    }
    inner
        .store
        .copy_opts(&from_key, &to_key, CopyOptions::default())
        .await
        .map_err(|error| failed(Failure::store(&error)))?;
    let copy = inner.head(&to_key).await.map_err(failed)?;
    let Some(copy) = copy.filter(|copy| copy.meta.size == original.meta.size) else {
        let message = "the copy is not there; the original was left alone";
        return Err(RemoteError::new(ErrorKind::Protocol, "rename", message).at(to));
    };
    // Somebody may have replaced the original meanwhile: that version has not been copied.
    let now = inner.head(&from_key).await.map_err(failed)?;
    if let Some(now) = now {
        if !entry
            .fingerprint()
            .still_describes(&entry_of(from.clone(), &now.meta))
        {
            let message = "it was replaced during the rename, both versions are there now";
            return Err(RemoteError::new(ErrorKind::Changed, "rename", message).at(from));
        }
        inner
            .store
            .delete(&from_key)
            .await
            .map_err(|error| failed(Failure::store(&error)))?;
    }
    Ok(entry_of(to.clone(), &copy.meta))
}

pub(super) async fn remove(
    inner: &Arc<Inner>,
    removals: &[Removal],
) -> Vec<Result<(), RemoteError>> {
    let mut checks = Vec::with_capacity(removals.len());
    for removal in removals {
        checks.push(check(inner, removal));
    }
    // What is to go, or why not, in the order of the removals.
    let checked: Vec<Result<Option<Path>, RemoteError>> =
        stream::iter(checks).buffered(LOOKS_AT_ONCE).collect().await;
    let mut keys = Vec::new();
    let mut results = Vec::with_capacity(removals.len());
    for (index, outcome) in checked.into_iter().enumerate() {
        results.push(outcome.map(|key| {
            if let Some(key) = key {
                keys.push((index, key));
            }
        }));
    }
    for batch in keys.chunks(DELETE_BATCH) {
        let outcome = delete(inner, batch.iter().map(|(_, key)| key.clone()).collect()).await;
        for ((index, _), failure) in batch.iter().zip(outcome) {
            let path = removals.get(*index).map(|removal| &removal.path);
            if let (Some(failure), Some(result)) = (failure, results.get_mut(*index)) {
                *result = Err(failure.into_remote("remove", path));
            }
        }
    }
    results
}

/// Whether the object may go; nothing if there is none.
async fn check(inner: &Arc<Inner>, removal: &Removal) -> Result<Option<Path>, RemoteError> {
    if !is_object(removal.kind) {
        return Ok(None);
    }
    let key = inner.prefix.key("remove", &removal.path)?;
    let Some(seen) = &removal.seen else {
        return Ok(Some(key));
    };
    let head = inner.head(&key).await;
    match head.map_err(|failure| failure.into_remote("remove", Some(&removal.path)))? {
        None => Ok(None),
        Some(head) if seen.still_describes(&entry_of(removal.path.clone(), &head.meta)) => {
            Ok(Some(key))
        }
        Some(head) => {
            let etag = head.meta.e_tag.as_deref().map(s3::bare).unwrap_or_default();
            let message = format!("another version ({etag}) is there now than was seen");
            Err(RemoteError::new(ErrorKind::Changed, "remove", message).at(&removal.path))
        }
    }
}

/// Removes keys with one request; for each why it failed, or nothing.
async fn delete(inner: &Arc<Inner>, keys: Vec<Path>) -> Vec<Option<Failure>> {
    let count = keys.len();
    let store = Arc::clone(&inner.store);
    // A task of its own: the adapter panics when a server reports on a key that was not asked for.
    let deleting = tokio::spawn(async move {
        let keys = stream::iter(keys.into_iter().map(Ok)).boxed();
        let results: Vec<object_store::Result<Path>> = store.delete_stream(keys).collect().await;
        results
    });
    let results = match deleting.await {
        Ok(results) => results,
        Err(_panicked) => {
            let message = "the store reported on keys that were not to be removed";
            return vec![Some(Failure::of(ErrorKind::Protocol, message)); count];
        }
    };
    let one = |result: object_store::Result<Path>| match result {
        Ok(_) => None,
        Err(error) => Some(Failure::store(&error)).filter(|failure| !failure.is_not_found()),
    };
    if results.len() == count {
        return results.into_iter().map(one).collect();
    }
    // The request as a whole failed.
    let failure = results
        .into_iter()
        .find_map(|result| result.err().map(|e| Failure::store(&e)));
    let failure = failure.unwrap_or_else(|| {
        Failure::of(
            ErrorKind::Protocol,
            "the store did not say which keys it removed",
        )
    });
    vec![Some(failure); count]
}
