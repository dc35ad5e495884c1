//! The decorators: each passes the suite, and does the one thing it is there for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use knarr_core::entry::Kind;
use knarr_remote::conformance::{self, Fixture, pattern, put, read_all, relative, try_put};
use knarr_remote::decorate::dry_run::{DryRun, DryRunMode, PretendedChange};
use knarr_remote::decorate::limit::{Bandwidth, Limited, Limits};
use knarr_remote::decorate::record::{Call, Recording};
use knarr_remote::decorate::retry::{RetryPolicy, Retrying};
use knarr_remote::local::LocalRemote;
use knarr_remote::memory::{Fault, MemoryRemote};
use knarr_remote::operation::Operation;
use knarr_remote::{
    Committer, ErrorKind, ListOptions, NewNode, ReadOptions, Remote, Removal, RenameOptions,
    Replace, StagedId, WriteOptions,
};
use tokio::sync::Semaphore;

fn memory() -> Arc<dyn Remote> {
    Arc::new(MemoryRemote::new())
}

const SOON: RetryPolicy = RetryPolicy {
    attempts: 4,
    first_delay: Duration::from_millis(2),
    longest_delay: Duration::from_millis(5),
};

fn file_options(path: &str, replace: Replace) -> WriteOptions {
    let id = StagedId::derive(b"decorators", &relative(path));
    let mut options = WriteOptions::new(NewNode::File { size: None }, id);
    options.replace = replace;
    options
}

/// A limit that is there and in nobody's way.
fn generous() -> Limits {
    Limits {
        bandwidth: Some(Bandwidth::new(4 << 30)),
        calls: Some(Arc::new(Semaphore::new(1))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_remote_passes_the_suite_with_one_call_at_once() {
    conformance::run_all(async || {
        let remote: Arc<dyn Remote> = Arc::new(Limited::new(memory(), generous()));
        remote
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_remote_passes_the_suite() {
    conformance::run_all(async || {
        let remote: Arc<dyn Remote> = Arc::new(Recording::new(memory()));
        remote
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retrying_remote_passes_the_suite_around_one_that_fails_now_and_then() {
    conformance::run_all(async || {
        let memory = MemoryRemote::new();
        for operation in [
            Operation::List,
            Operation::Stat,
            Operation::Read,
            Operation::ReadChunk,
            Operation::ReadFinish,
            Operation::Write,
            Operation::Remove,
        ] {
            for after in [0, 1, 5, 6, 11] {
                memory
                    .faults()
                    .add(Fault::next(operation, ErrorKind::Throttled).after(after));
            }
        }
        // All faults of two kinds may meet in one read.
        let policy = RetryPolicy {
            attempts: 12,
            ..SOON
        };
        let remote: Arc<dyn Remote> = Arc::new(Retrying::new(Arc::new(memory), policy));
        remote
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn decorators_around_decorators_pass_the_suite() {
    conformance::run_all(async || {
        let recording = Arc::new(Recording::new(memory()));
        let limited = Arc::new(Limited::new(recording, generous()));
        let remote: Arc<dyn Remote> = Arc::new(Retrying::new(limited, SOON));
        remote
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_passes_the_reading_half_of_the_suite() {
    for mode in [DryRunMode::Refuse, DryRunMode::Pretend] {
        conformance::run_reading(async || {
            let filler = memory();
            let subject = Arc::new(DryRun::new(Arc::clone(&filler), mode));
            Fixture { subject, filler }
        })
        .await;
    }
}

#[tokio::test]
async fn retrying_goes_on_reading_where_it_failed() {
    let memory = MemoryRemote::new();
    let content = pattern(1, 1_000_000);
    memory.put(&relative("data"), content.clone()).unwrap();
    memory.faults().add(
        Fault::next(Operation::ReadChunk, ErrorKind::Protocol)
            .after(3)
            .times(2),
    );
    let recording = Arc::new(Recording::new(Arc::new(memory)));
    let record = Arc::clone(recording.record());
    let remote = Retrying::new(recording, SOON);
    let read = read_all(&remote, &relative("data"), ReadOptions::default())
        .await
        .unwrap();
    assert_eq!(read, content);
    assert_eq!(record.bytes_read(), 1_000_000, "no byte was read twice");
    assert_eq!(
        record.count(Operation::Read),
        3,
        "opened once and after each of two faults"
    );
}

#[tokio::test]
async fn retrying_does_not_mix_versions() {
    let memory = MemoryRemote::new();
    memory
        .put(&relative("data"), pattern(1, 1_000_000))
        .unwrap();
    let remote = Retrying::new(Arc::new(memory.clone()), SOON);
    let mut reader = remote
        .read(&relative("data"), ReadOptions::default())
        .await
        .unwrap();
    reader.next().await.unwrap().unwrap();
    memory
        .put(&relative("data"), pattern(2, 2_000_000))
        .unwrap();
    memory
        .faults()
        .add(Fault::next(Operation::ReadChunk, ErrorKind::Protocol));
    let error = reader.next().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Changed, "{error}");
}

#[tokio::test]
async fn retrying_gives_up_after_its_attempts_and_at_once_where_it_cannot_help() {
    let memory = MemoryRemote::new();
    let recording = Arc::new(Recording::new(Arc::new(memory.clone())));
    let record = Arc::clone(recording.record());
    let remote = Retrying::new(recording, SOON);
    memory
        .faults()
        .add(Fault::next(Operation::Stat, ErrorKind::Throttled).times(10));
    let error = remote.stat(&relative("a")).await.unwrap_err();
    assert_eq!(
        (error.kind, record.count(Operation::Stat)),
        (ErrorKind::Throttled, 4)
    );
    memory.faults().clear();
    record.reset();

    memory.faults().set_down(true);
    let error = remote.stat(&relative("a")).await.unwrap_err();
    assert_eq!(
        (error.kind, record.count(Operation::Stat)),
        (ErrorKind::Unreachable, 1)
    );
}

#[tokio::test]
async fn retrying_repeats_neither_renames_nor_commits() {
    let memory = MemoryRemote::new();
    memory.put(&relative("a"), "x").unwrap();
    let recording = Arc::new(Recording::new(Arc::new(memory.clone())));
    let record = Arc::clone(recording.record());
    let remote = Retrying::new(recording, SOON);
    memory
        .faults()
        .add(Fault::next(Operation::Rename, ErrorKind::Throttled));
    memory
        .faults()
        .add(Fault::next(Operation::Commit, ErrorKind::Throttled));
    let options = RenameOptions {
        replace: Replace::Nothing,
    };
    remote
        .rename(&relative("a"), &relative("b"), options)
        .await
        .unwrap_err();
    let content = pattern(1, 10);
    try_put(
        &remote,
        &relative("c"),
        file_options("c", Replace::Nothing),
        &content,
    )
    .await
    .unwrap_err();
    assert_eq!(
        (
            record.count(Operation::Rename),
            record.count(Operation::Commit)
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn retrying_removes_again_what_failed_and_the_directory_around_it() {
    let memory = MemoryRemote::new();
    for path in ["d/1", "d/2", "d/3"] {
        memory.put(&relative(path), "x").unwrap();
    }
    memory
        .faults()
        .add(Fault::next(Operation::Remove, ErrorKind::Throttled).at(relative("d/2")));
    let remote = Retrying::new(Arc::new(memory.clone()), SOON);
    let removals: Vec<Removal> = ["d/1", "d/2", "d/3", "d"]
        .into_iter()
        .map(|path| Removal {
            path: relative(path),
            kind: if path == "d" {
                Kind::Directory
            } else {
                Kind::File
            },
            seen: None,
        })
        .collect();
    for result in remote.remove(&removals).await {
        result.unwrap();
    }
    assert!(memory.entries().is_empty());
}

#[tokio::test]
async fn a_call_waits_for_a_permit_and_gives_it_back() {
    let calls = Arc::new(Semaphore::new(0));
    let limits = Limits {
        bandwidth: None,
        calls: Some(Arc::clone(&calls)),
    };
    let remote = Arc::new(Limited::new(memory(), limits));
    let waiting = tokio::spawn({
        let remote = Arc::clone(&remote);
        async move { remote.stat(&relative("a")).await }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished(), "a call went on without a permit");
    calls.add_permits(1);
    assert_eq!(waiting.await.unwrap().unwrap(), None);
    assert_eq!(calls.available_permits(), 1);
}

#[tokio::test]
async fn an_open_file_holds_no_permit_so_a_copy_within_one_endpoint_does_not_lock_up() {
    let remote = Limited::new(memory(), generous());
    let content = pattern(1, 500_000);
    put(&remote, "from", content.clone()).await;
    let mut reader = remote
        .read(&relative("from"), ReadOptions::default())
        .await
        .unwrap();
    let mut upload = remote
        .write(&relative("to"), file_options("to", Replace::Nothing))
        .await
        .unwrap();
    while let Some(chunk) = reader.next().await.unwrap() {
        upload.write(chunk).await.unwrap();
    }
    let staged = upload
        .stage(500_000, knarr_core::ContentHash::of(&content))
        .await
        .unwrap();
    let committer = Arc::clone(&staged.committer);
    committer.commit(vec![staged]).await.pop().unwrap().unwrap();
    let read = read_all(&remote, &relative("to"), ReadOptions::default())
        .await
        .unwrap();
    assert_eq!(read, content);
}

#[tokio::test]
async fn a_copy_past_a_limit_is_not_offered() {
    let directory = tempfile::TempDir::new().unwrap();
    let local: Arc<dyn Remote> = Arc::new(LocalRemote::new(directory.path()));
    assert!(
        Limited::new(Arc::clone(&local), generous())
            .as_local()
            .is_none()
    );
    assert!(
        Limited::new(Arc::clone(&local), Limits::default())
            .as_local()
            .is_some()
    );
    assert!(Recording::new(Arc::clone(&local)).as_local().is_none());
    assert!(
        DryRun::new(Arc::clone(&local), DryRunMode::Pretend)
            .as_local()
            .is_none()
    );
    assert!(Retrying::new(local, SOON).as_local().is_some());
}

#[tokio::test]
async fn what_is_staged_through_one_decorator_goes_into_one_batch() {
    let recording = Arc::new(Recording::new(memory()));
    let limited = Limited::new(recording, generous());
    let mut committers: Vec<Arc<dyn Committer>> = Vec::new();
    for path in ["a", "b"] {
        let upload = limited
            .write(&relative(path), file_options(path, Replace::Nothing))
            .await
            .unwrap();
        let staged = upload
            .stage(0, knarr_core::ContentHash::of(b""))
            .await
            .unwrap();
        committers.push(Arc::clone(&staged.committer));
    }
    assert!(Arc::ptr_eq(&committers[0], &committers[1]));
    assert_eq!(
        committers[0].batch_limit(),
        1_000,
        "as the place itself wants it"
    );
}

#[tokio::test]
async fn recording_tells_exactly_what_was_asked() {
    let memory = MemoryRemote::new();
    memory.put(&relative("a/b"), "content").unwrap();
    let remote = Recording::new(Arc::new(memory));
    let record = Arc::clone(remote.record());
    remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    remote.stat(&relative("a/b")).await.unwrap();
    read_all(&remote, &relative("a/b"), ReadOptions::default())
        .await
        .unwrap();
    let call = |operation, path: Option<&str>| Call {
        operation,
        path: path.map(relative),
    };
    assert_eq!(
        record.calls(),
        [
            call(Operation::List, None),
            call(Operation::Stat, Some("a/b")),
            call(Operation::Read, Some("a/b")),
        ]
    );
    assert_eq!((record.changes(), record.bytes_read()), (0, 7));

    record.reset();
    put(&remote, "c", Bytes::from_static(b"123")).await;
    assert_eq!(
        (record.count(Operation::Commit), record.bytes_written()),
        (1, 3)
    );
    assert_eq!((record.changes(), record.count(Operation::List)), (2, 0));
}

#[tokio::test]
async fn a_dry_run_refuses_every_change() {
    let memory = MemoryRemote::new();
    memory.put(&relative("a"), "x").unwrap();
    let before = memory.entries();
    let remote = DryRun::new(Arc::new(memory.clone()), DryRunMode::Refuse);
    let content = pattern(1, 10);
    let options = file_options("b", Replace::Nothing);
    let written = try_put(&remote, &relative("b"), options, &content)
        .await
        .map(drop);
    let options = RenameOptions {
        replace: Replace::Nothing,
    };
    let renamed = remote
        .rename(&relative("a"), &relative("b"), options)
        .await
        .map(drop);
    let removal = Removal {
        path: relative("a"),
        kind: Kind::File,
        seen: None,
    };
    let removed = remote.remove(&[removal]).await.pop().unwrap();
    for result in [written, renamed, removed] {
        assert_eq!(result.unwrap_err().kind, ErrorKind::Unsupported);
    }
    assert_eq!(memory.entries(), before);
    assert_eq!(memory.staged_count(), 0);
}

#[tokio::test]
async fn a_pretended_change_is_answered_remembered_and_not_made() {
    let memory = MemoryRemote::new();
    let seen = memory.put(&relative("a"), "x").unwrap().fingerprint();
    memory.put(&relative("a"), "longer").unwrap();
    let before = memory.entries();
    let remote = DryRun::new(Arc::new(memory.clone()), DryRunMode::Pretend);

    let committed = put(&remote, "d/b", pattern(1, 10)).await;
    assert_eq!(
        (committed.entry.path, committed.entry.size),
        (relative("d/b"), 10)
    );
    let options = RenameOptions {
        replace: Replace::Nothing,
    };
    remote
        .rename(&relative("a"), &relative("c"), options.clone())
        .await
        .unwrap();
    let removal = Removal {
        path: relative("a"),
        kind: Kind::File,
        seen: None,
    };
    remote
        .remove(std::slice::from_ref(&removal))
        .await
        .pop()
        .unwrap()
        .unwrap();
    assert_eq!(
        remote.pretended(),
        [
            PretendedChange::Put {
                path: relative("d/b"),
                kind: Kind::File,
                size: 10
            },
            PretendedChange::Rename {
                from: relative("a"),
                to: relative("c")
            },
            PretendedChange::Remove {
                path: relative("a")
            },
        ]
    );

    // What would fail fails here, too.
    let content = pattern(1, 10);
    let (path, write) = (relative("a"), file_options("a", Replace::Nothing));
    let over = try_put(&remote, &path, write, &content).await;
    assert_eq!(over.unwrap_err().kind, ErrorKind::AlreadyExists);
    let gone = remote
        .rename(&relative("none"), &relative("c"), options)
        .await;
    assert_eq!(gone.unwrap_err().kind, ErrorKind::NotFound);
    let another = Removal {
        seen: Some(seen),
        ..removal
    };
    let removed = remote.remove(&[another]).await.pop().unwrap();
    assert_eq!(removed.unwrap_err().kind, ErrorKind::Changed);
    assert_eq!(memory.entries(), before);
    assert_eq!(memory.staged_count(), 0);
}
