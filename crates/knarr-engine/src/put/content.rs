//! What files hold: read to the end, for comparing and for proof.

use std::sync::Arc;

use knarr_core::job::Verify;
use knarr_core::record::Evidence;
use knarr_core::{ContentHash, Entry, RelPath};
use knarr_remote::{Committed, ErrorKind, ReadOptions, Remote, RemoteError};

use super::PutError;
use crate::context::Context;
use crate::transfer::TransferError;

/// Whether both sides hold the same bytes; reads both.
pub(crate) async fn same_content(
    context: &Context,
    from: &Arc<dyn Remote>,
    into: &Arc<dyn Remote>,
    ours: &Entry,
    theirs: &Entry,
) -> Result<bool, PutError> {
    if ours.size != theirs.size {
        return Ok(false);
    }
    let (left, right) = tokio::join!(
        hash_content(context, from.as_ref(), ours),
        hash_content(context, into.as_ref(), theirs)
    );
    let left = left.map_err(|error| PutError::Transfer(TransferError::Source(error)))?;
    let right = right.map_err(|error| PutError::Transfer(TransferError::Destination(error)))?;
    Ok(left == right)
}

/// Reads a file to its end for its hash.
pub(crate) async fn hash_content(
    context: &Context,
    remote: &dyn Remote,
    entry: &Entry,
) -> Result<ContentHash, RemoteError> {
    let options = ReadOptions {
        offset: 0,
        expected: Some(entry.fingerprint()),
    };
    let mut reader = remote.read(&entry.path, options).await?;
    let mut hasher = blake3::Hasher::new();
    while let Some(chunk) = reader.next().await? {
        if context.cancel.is_cancelled() {
            return Err(RemoteError::new(ErrorKind::Cancelled, "read", "stopped").at(&entry.path));
        }
        hasher.update(&chunk);
    }
    Ok(hasher.finalize().into())
}

/// K4: before the source goes, the length alone is not enough, unless the user said so. `hash` is that
/// of what was written.
pub(crate) async fn verify(
    context: &Context,
    into: &Arc<dyn Remote>,
    path: &RelPath,
    hash: ContentHash,
    committed: &mut Committed,
) -> Result<(), PutError> {
    let weak = matches!(committed.evidence, Evidence::SizeOnly { .. });
    let needed = match context.verify {
        Verify::Full => !matches!(committed.evidence, Evidence::ReadBack { .. }),
        Verify::Offered => weak && context.removes_source(),
        Verify::Size => false,
    };
    if !needed {
        return Ok(());
    }
    let entry = Entry {
        path: path.clone(),
        ..committed.entry.clone()
    };
    let there = hash_content(context, into.as_ref(), &entry)
        .await
        .map_err(PutError::Remote)?;
    if there != hash {
        return Err(PutError::Damaged);
    }
    committed.evidence = Evidence::ReadBack { hash: there };
    Ok(())
}
