//! Gives up what interrupted transfers left and nobody goes on with.
//!
//! Two things are left behind by a process that dies: what the state knows of (uploads, with what is
//! needed to resume them), and staged files at local destinations, also of small files and of other
//! installations. Both are given up when nobody touched them for as long as the configuration keeps
//! them: an upload that goes on puts off its end with every checkpoint, and a staged file that is
//! written, renamed or given a time changes its inode (ctime, as its mtime is that of the source).

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use knarr_core::entry::{Fingerprint, Identity, Kind};
use knarr_core::plan::Side;
use knarr_core::{RelPath, Timestamp};
use knarr_fs::Root;
use knarr_fs::walk::{WalkOptions, Walker};
use knarr_remote::{ErrorKind, Retry};

use crate::context::Context;
use crate::error::EngineError;

/// How many uploads are given up at once: at the end of a command somebody waits.
const UPLOADS: usize = 100;
/// How often staged files are looked for, which means to walk through the destination.
pub(crate) const EVERY: Duration = Duration::from_secs(24 * 3_600);
/// How many items the walk passes at once.
const WALK_BATCH: usize = 4_096;

/// Whether staged files are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sweep {
    /// Now.
    Now,
    /// If that was not done for a day.
    Daily,
}

/// Gives up what is too old. Trouble with a place is logged, and tried again another time.
///
/// # Errors
/// If the state cannot be read or written.
pub(crate) async fn tidy(context: &Context, sweep: Sweep) -> Result<(), EngineError> {
    uploads(context).await?;
    let now = context.clock.now();
    let last = context.journal.last_tidied().await?;
    let due = match (sweep, last) {
        (Sweep::Now, _) => true,
        // The first command of a pair has nothing to look for.
        (Sweep::Daily, None) => false,
        (Sweep::Daily, Some(last)) => last > now || now.since(last) >= EVERY,
    };
    if due {
        for side in [Side::Destination, Side::Source] {
            if side == Side::Destination || context.policy.mode == knarr_core::plan::Mode::TwoWay {
                staged_files(context, side, now).await?;
            }
        }
    }
    if due || last.is_none() {
        context.journal.set_last_tidied(now).await?;
    }
    Ok(())
}

async fn uploads(context: &Context) -> Result<(), EngineError> {
    for (side, upload) in context.journal.expired_uploads(UPLOADS).await? {
        if context.cancel.is_cancelled() {
            return Ok(());
        }
        let begun = &upload.begun_as;
        let Ok(path) = RelPath::new(begun.destination.as_slice()) else {
            context.journal.forget_expired(upload.id).await?;
            continue;
        };
        // Deliveries run meanwhile, and resume what was begun.
        if !context.journal.may_give_up(upload.id, &path).await? {
            continue;
        }
        match context.side(side).abandon(&path, &begun.upload).await {
            Ok(()) => tracing::info!(%path, "an unfinished upload was given up"),
            Err(error) if error.kind == ErrorKind::InvalidName => {
                tracing::warn!(%path, %error, "an unfinished upload is not of this place");
            }
            Err(error) => {
                tracing::warn!(%path, %error, "an unfinished upload cannot be given up yet");
                if error.retry == Retry::EndpointDown {
                    return Ok(());
                }
                continue;
            }
        }
        context.journal.forget_expired(upload.id).await?;
    }
    Ok(())
}

async fn staged_files(context: &Context, side: Side, now: Timestamp) -> Result<(), EngineError> {
    let Some(local) = context.side(side).as_local() else {
        return Ok(());
    };
    // Missing: then nothing lies there.
    let Ok(root) = local.root() else {
        return Ok(());
    };
    let kept = context.journal.keep_unfinished();
    let cancel = context.cancel.clone();
    let sweeping = tokio::task::spawn_blocking(move || {
        let walker = match Walker::new(&root, WalkOptions::default()) {
            Ok(walker) => walker,
            Err(error) => {
                tracing::debug!(%error, "staged files cannot be looked for");
                return;
            }
        };
        for path in leftovers(walker, || cancel.is_cancelled()) {
            // The age is of the very look that the removal goes by: what was written since is not removed.
            let seen = seen_old(&root, &path, now, kept);
            match seen.map(|seen| root.remove(&path, &seen)) {
                Some(Ok(())) => tracing::info!(%path, "an old staged file was removed"),
                Some(Err(error)) => {
                    let error = crate::error::chain(&error);
                    tracing::warn!(%path, %error, "an old staged file cannot be removed");
                }
                None => {}
            }
        }
    });
    sweeping
        .await
        .map_err(|_panic| EngineError::Internal("looking for staged files panicked"))
}

fn leftovers(mut walker: Walker<'_>, stop: impl Fn() -> bool) -> Vec<RelPath> {
    let mut passed = Vec::new();
    while walker.next_batch(&mut passed, WALK_BATCH) && !stop() {
        passed.clear();
    }
    walker.leftovers().to_vec()
}

/// What the file looks like, if nobody touched it for as long as it is kept.
fn seen_old(root: &Root, path: &RelPath, now: Timestamp, kept: Duration) -> Option<Fingerprint> {
    let name = std::ffi::OsStr::from_bytes(path.as_bytes());
    let found = std::fs::symlink_metadata(root.display().join(name)).ok()?;
    let touched = Timestamp::from_seconds(found.ctime());
    // From the future: the clock was set, and nothing is known.
    let is_old = found.is_file() && touched <= now && now.since(touched) >= kept;
    is_old.then(|| Fingerprint {
        kind: Kind::File,
        size: found.len(),
        mtime: Some(Timestamp::from_parts(found.mtime(), found.mtime_nsec())),
        identity: Some(Identity::Inode(found.ino())),
        link_target: None,
    })
}
