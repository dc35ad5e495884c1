//! The twin in memory: the suite in each of its shapes, and its faults.

use std::sync::Arc;

use knarr_core::tree::TreeItem;
use knarr_remote::conformance::{self, pattern, put, read_all, relative, try_put};
use knarr_remote::listing::complete_entries;
use knarr_remote::memory::{Fault, MemoryRemote};
use knarr_remote::operation::Operation;
use knarr_remote::{
    Capabilities, ErrorKind, ListOptions, MtimeSupport, NewNode, ReadOptions, Remote, Retry,
    StagedId, WriteOptions,
};

fn shared(remote: MemoryRemote) -> Arc<dyn Remote> {
    Arc::new(remote)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_twin_passes_the_suite() {
    conformance::run_all(async || shared(MemoryRemote::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r38_the_twin_that_folds_case_passes_the_suite() {
    conformance::run_all(async || shared(MemoryRemote::case_insensitive())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_twin_of_an_object_store_passes_the_suite() {
    conformance::run_all(async || shared(MemoryRemote::object_store())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_twin_of_an_sftp_server_passes_the_suite() {
    conformance::run_all(async || {
        let capabilities = Capabilities {
            mtime: MtimeSupport::Kept {
                precision_nanoseconds: 1_000_000_000,
            },
            ..MemoryRemote::all_capabilities()
        };
        let clock = Arc::new(knarr_core::time::SystemClock);
        shared(MemoryRemote::with("memory", capabilities, clock))
    })
    .await;
}

#[tokio::test]
async fn k5_a_listing_that_breaks_off_says_that_it_is_incomplete() {
    let remote = MemoryRemote::new();
    for number in 0..10 {
        remote.put(&relative(&format!("{number}")), "x").unwrap();
    }
    remote.faults().break_next_listing_after(4);
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    assert_eq!(items.len(), 5);
    assert!(
        matches!(items.last(), Some(TreeItem::Incomplete(_))),
        "{:?}",
        items.last()
    );
    complete_entries(items).unwrap_err();

    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    assert_eq!(
        complete_entries(items).unwrap().len(),
        10,
        "only one listing breaks off"
    );
}

#[tokio::test]
async fn the_nth_call_of_a_kind_fails_and_no_other() {
    let remote = MemoryRemote::new();
    remote.put(&relative("a"), "x").unwrap();
    remote
        .faults()
        .add(Fault::next(Operation::Stat, ErrorKind::Throttled).after(2));
    remote
        .faults()
        .add(Fault::next(Operation::Read, ErrorKind::PermissionDenied).at(relative("b")));
    remote.stat(&relative("a")).await.unwrap();
    remote.stat(&relative("a")).await.unwrap();
    let error = remote.stat(&relative("a")).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Throttled, Retry::Later)
    );
    remote.stat(&relative("a")).await.unwrap();

    read_all(&remote, &relative("a"), ReadOptions::default())
        .await
        .unwrap();
    let error = read_all(&remote, &relative("b"), ReadOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn a_place_that_is_down_does_nothing_until_it_is_back() {
    let remote = MemoryRemote::new();
    remote.faults().set_down(true);
    let path = relative("a");
    assert_eq!(
        remote.stat(&path).await.unwrap_err().retry,
        Retry::EndpointDown
    );
    let options = WriteOptions::new(NewNode::File { size: None }, StagedId(1));
    let content = pattern(1, 10);
    assert_eq!(
        try_put(&remote, &path, options, &content)
            .await
            .unwrap_err()
            .kind,
        ErrorKind::Unreachable
    );
    assert_eq!(remote.staged_count(), 0);
    remote.faults().set_down(false);
    put(&remote, "a", content.clone()).await;
    assert_eq!(remote.content(&path), Some(content));
}

#[tokio::test]
async fn k9_a_restart_finds_what_was_staged() {
    let remote = MemoryRemote::new();
    let path = relative("a");
    let options = WriteOptions::new(NewNode::File { size: Some(20) }, StagedId(7));
    let mut upload = remote.write(&path, options).await.unwrap();
    upload.write(pattern(1, 10)).await.unwrap();
    let after_restart = remote.clone();
    drop((upload, remote));
    assert_eq!(after_restart.staged_count(), 1);
    assert!(after_restart.entries().is_empty());
}
