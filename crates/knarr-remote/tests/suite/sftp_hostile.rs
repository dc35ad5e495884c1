//! Servers that lie about names and sizes (H-02). Whatever they say, nothing outside is touched.

use std::time::Duration;

use knarr_core::Kind;
use knarr_core::tree::TreeItem;
use knarr_remote::conformance::{pattern, read_all, relative};
use knarr_remote::{ErrorKind, ListOptions, ReadOptions, Remote as _, Replace};
use knarr_testkit::asyncssh::AsyncsshServer;

use crate::sftp_support::{
    asyncssh_options, asyncssh_remote, deliver, put_local, remote_with, told,
};

fn hostile_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        &b""[..],
        b"/",
        b"..",
        b"../up",
        b"/etc/passwd",
        b"a/b",
        b"nul\0byte",
        b"./x",
        b"x/..",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    names.push(vec![b'n'; 60_000]);
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn h02_names_that_are_none_become_problems() {
    for below in [None, Some("inner")] {
        let mut builder = AsyncsshServer::builder().password("hush");
        for name in hostile_names() {
            builder = builder.listed_name(&name);
        }
        let server = builder.start();
        put_local(&server.root().join("inner/good"), b"good");
        let remote = asyncssh_remote(&server);
        let options = ListOptions {
            below: below.map(relative),
            shallow: true,
            ..ListOptions::default()
        };
        let items = remote.list(options).await.unwrap().collect().await;
        let problems = items
            .iter()
            .filter(|item| matches!(item, TreeItem::Problem(_)))
            .count();
        // `..` itself is what every directory lists.
        assert_eq!(problems, hostile_names().len() - 1, "{items:#?}");
        for item in &items {
            match item {
                TreeItem::Entry(entry) => {
                    assert!(
                        entry.path.as_bytes().ends_with(b"good") || entry.path == relative("inner")
                    );
                }
                TreeItem::Problem(problem) => {
                    assert!(problem.message.len() < 1_000 && !problem.message.contains('\0'));
                    if below.is_some() {
                        assert_eq!(problem.path, relative("inner"), "reported at the directory");
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        let in_order = items
            .windows(2)
            .all(|pair| knarr_core::path::tree_order(key(&pair[0]), key(&pair[1])).is_le());
        assert!(in_order, "problems stand in order, too");
    }
}

fn key(item: &TreeItem) -> (&knarr_core::RelPath, Kind) {
    match item {
        TreeItem::Entry(entry) => (&entry.path, entry.kind),
        TreeItem::Problem(problem) => (&problem.path, problem.kind),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h02_names_that_only_look_hostile_are_kept() {
    let names: [&[u8]; 5] = [b"..\\x", b"...", b"-rf", b"new\nline", b"\xff"];
    let mut builder = AsyncsshServer::builder().password("hush");
    for name in names {
        builder = builder.listed_name(name);
    }
    let server = builder.start();
    let items = asyncssh_remote(&server)
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    assert_eq!(items.len(), names.len());
    assert!(
        items.iter().all(|item| matches!(item, TreeItem::Entry(_))),
        "{items:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn h02_a_name_that_is_listed_twice_is_a_problem_and_is_not_entered() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .listed_twice()
        .start();
    put_local(&server.root().join("directory/below"), b"");
    put_local(&server.root().join("file"), b"");
    let items = asyncssh_remote(&server)
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    let paths: Vec<String> = items
        .iter()
        .map(|item| match item {
            TreeItem::Problem(problem) => problem.path.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(paths, ["directory", "file"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn h02_an_endless_listing_ends_in_an_error() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .endless_listing()
        .start();
    let mut options = asyncssh_options(&server, "hush");
    options.names_per_directory = 20_000;
    let remote = remote_with(options, &server.root());
    let error = remote.list(ListOptions::default()).await.unwrap_err();
    assert!(told(&error).contains("20002"), "{}", told(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn h02_a_tree_without_end_is_listed_as_far_as_somebody_wants_and_no_further() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .endless_depth()
        .start();
    let remote = asyncssh_remote(&server);
    let mut listing = remote.list(ListOptions::default()).await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(60), listing.next_batch()).await;
    assert!(first.unwrap().is_some_and(|batch| !batch.is_empty()));
    drop(listing);
    // The server is as good as before.
    deliver(&remote, "file", &pattern(1, 10), Replace::Nothing)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn r48_a_wrong_size_in_the_attributes_is_noticed() {
    for offset in [10, -10] {
        let server = AsyncsshServer::builder()
            .password("hush")
            .size_offset(offset)
            .start();
        put_local(&server.root().join("file"), &pattern(1, 1_000));
        let remote = asyncssh_remote(&server);
        let read = read_all(&remote, &relative("file"), ReadOptions::default()).await;
        match read {
            Err(error) => assert_eq!(error.kind, ErrorKind::Changed, "{error}"),
            // What is missing at the end is for the one who knows the right length to notice.
            Ok(read) => assert!(offset < 0 && read.len() == 990, "{} bytes", read.len()),
        }
        let error = deliver(&remote, "new", &pattern(1, 100), Replace::Nothing)
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Changed, "{error}");
        assert!(!server.root().join("new").exists());
    }
}
