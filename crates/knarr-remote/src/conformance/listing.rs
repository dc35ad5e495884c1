//! Listing: order, completeness, parts of trees.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use knarr_core::entry::Kind;
use knarr_core::tree::TreeItem;

use super::Fixture;
use super::support::{
    chain, file_options, list, listed_files, paths_but_directories, pattern, put, relative, stat,
    try_put,
};
use crate::error::ErrorKind;
use crate::listing::ListOptions;
use crate::remote::{Remote, Removal, Replace};

/// More than a page of an object store's listing, and than a batch of ours.
const MANY: usize = 1_100;

pub(super) async fn a_listing_comes_in_tree_order(fixture: Fixture) {
    // The byte after the common part lies below, at and above `/`.
    let files = [
        "a!", "a!b/x", "a-", "a.b", "a/b", "a/b.c", "a/c/d", "a0", "aa", "z",
    ];
    for path in files.iter().rev() {
        if *path != "a!" {
            put(&*fixture.filler, path, path.as_bytes().to_vec()).await;
        }
    }
    let entries = list(&*fixture.subject, ListOptions::default()).await;
    assert_eq!(
        paths_but_directories(&entries),
        files[1..],
        "the files of the tree"
    );
    let directories: Vec<String> = entries
        .iter()
        .filter(|entry| entry.kind == Kind::Directory)
        .map(|entry| entry.path.to_string())
        .collect();
    if fixture.subject.describe().capabilities.directories {
        assert_eq!(
            directories,
            ["a!b", "a", "a/c"],
            "the directories of the tree"
        );
    }
}

pub(super) async fn an_empty_root_lists_as_nothing(fixture: Fixture) {
    let entries = list(&*fixture.subject, ListOptions::default()).await;
    assert!(entries.is_empty(), "a fresh root holds {entries:?}");
}

pub(super) async fn a_part_of_the_tree_can_be_listed(fixture: Fixture) {
    for path in ["a", "b/1", "b/2/3", "b/2/4/5", "b.c", "bb/6"] {
        put(&*fixture.filler, path, Bytes::from_static(b"x")).await;
    }
    let remote = &*fixture.subject;
    let below = ListOptions {
        below: Some(relative("b")),
        ..ListOptions::default()
    };
    let entries = list(remote, below.clone()).await;
    assert_eq!(
        paths_but_directories(&entries),
        ["b/1", "b/2/3", "b/2/4/5"],
        "below \"b\""
    );
    assert!(
        entries.iter().all(|entry| entry.path != relative("b")),
        "the directory itself is not part of what is below it"
    );

    let shown = |entries: Vec<knarr_core::Entry>| -> Vec<String> {
        entries
            .iter()
            .map(|entry| format!("{} {}", entry.kind, entry.path))
            .collect()
    };
    let shallow = list(
        remote,
        ListOptions {
            shallow: true,
            ..ListOptions::default()
        },
    )
    .await;
    assert_eq!(
        shown(shallow),
        ["file a", "file b.c", "directory b", "directory bb"],
        "the direct children of the root"
    );
    let shallow = list(
        remote,
        ListOptions {
            shallow: true,
            ..below
        },
    )
    .await;
    assert_eq!(
        shown(shallow),
        ["file b/1", "directory b/2"],
        "the direct children of \"b\""
    );
}

pub(super) async fn a_filter_leaves_out_files_and_whole_directories(fixture: Fixture) {
    for path in ["keep/1", "keep/2.tmp", "leave/3", "leave/4/5", "six"] {
        put(&*fixture.filler, path, Bytes::from_static(b"x")).await;
    }
    let options = ListOptions {
        filter: Some(Arc::new(|path, kind| match kind {
            Kind::Directory => path.as_bytes() != b"leave",
            _ => !path.as_bytes().ends_with(b".tmp"),
        })),
        ..ListOptions::default()
    };
    let entries = list(&*fixture.subject, options).await;
    assert_eq!(
        paths_but_directories(&entries),
        ["keep/1", "six"],
        "what the filter lets through"
    );
    assert!(
        entries
            .iter()
            .all(|entry| !entry.path.as_bytes().starts_with(b"leave")),
        "a directory that is left out has nothing below it: {entries:?}"
    );
}

pub(super) async fn a_directory_that_is_missing_is_not_an_empty_one(fixture: Fixture) {
    if !fixture.subject.describe().capabilities.directories {
        return;
    }
    put(&*fixture.filler, "file", Bytes::from_static(b"x")).await;
    for missing in ["nothing", "file"] {
        let options = ListOptions {
            below: Some(relative(missing)),
            ..ListOptions::default()
        };
        match fixture.subject.list(options).await {
            Err(error) => assert!(
                matches!(error.kind, ErrorKind::NotFound | ErrorKind::WrongKind),
                "listing below \"{missing}\" failed with {}",
                chain(&error)
            ),
            Ok(listing) => {
                let items = listing.collect().await;
                assert!(
                    items
                        .iter()
                        .any(|item| matches!(item, TreeItem::Incomplete(_))),
                    "below \"{missing}\", which is no directory, an empty listing ended well"
                );
            }
        }
    }
}

pub(super) async fn a_big_listing_is_complete_and_may_be_dropped_half_way(fixture: Fixture) {
    let path = |number: usize| relative(&format!("d{:02}/file {number:04}", number % 7));
    let filler = &fixture.filler;
    futures::stream::iter(0..MANY)
        .for_each_concurrent(32, |number| async move {
            let content = Bytes::from(number.to_string());
            let path = path(number);
            let options = file_options(&path, content.len(), Replace::Nothing);
            if let Err(error) = try_put(&**filler, &path, options, &content).await {
                panic!("writing \"{path}\" failed: {}", chain(&error));
            }
        })
        .await;

    let mut half = fixture
        .subject
        .list(ListOptions::default())
        .await
        .expect("the tree can be listed before anything else");
    assert!(
        half.next_batch().await.is_some(),
        "a big listing has a first batch"
    );
    drop(half);

    let entries = list(&*fixture.subject, ListOptions::default()).await;
    let mut expected: Vec<String> = (0..MANY).map(|number| path(number).to_string()).collect();
    expected.sort();
    assert!(
        paths_but_directories(&entries) == expected,
        "{MANY} files were written, and {} listed",
        paths_but_directories(&entries).len()
    );
    remove_all(&**filler, &expected).await;
    let left = listed_files(&*fixture.subject).await;
    assert!(
        left.is_empty(),
        "all was removed, and {} are left: {left:?}",
        left.len()
    );
}

async fn remove_all(remote: &dyn Remote, paths: &[String]) {
    let removals: Vec<Removal> = paths
        .iter()
        .map(|path| Removal {
            path: relative(path),
            kind: Kind::File,
            seen: None,
        })
        .collect();
    let results = remote.remove(&removals).await;
    assert_eq!(
        results.len(),
        removals.len(),
        "removing gives one result an item"
    );
    for (removal, result) in removals.iter().zip(results) {
        if let Err(error) = result {
            panic!("removing \"{}\" failed: {}", removal.path, chain(&error));
        }
    }
}

pub(super) async fn k7_list_and_stat_and_commit_agree_on_what_they_saw(fixture: Fixture) {
    let mut committed = Vec::new();
    for (seed, path) in ["a", "b/c", "b/d", "e"].into_iter().enumerate() {
        committed.push(
            put(&*fixture.filler, path, pattern(seed as u64, 1_000 + seed))
                .await
                .entry,
        );
    }
    let entries = list(&*fixture.subject, ListOptions::default()).await;
    for after_commit in &committed {
        let path = &after_commit.path;
        let listed = entries
            .iter()
            .find(|entry| entry.path == *path)
            .unwrap_or_else(|| panic!("\"{path}\" was committed and is not listed"));
        let looked_at = stat(
            &*fixture.subject,
            path.as_utf8().expect("our names are text"),
        )
        .await;
        let looked_at = looked_at.unwrap_or_else(|| panic!("\"{path}\" was committed and is gone"));
        for (who, other) in [("list", listed), ("stat", &looked_at)] {
            assert!(
                after_commit.fingerprint().still_describes(other)
                    && other.fingerprint().still_describes(after_commit),
                "{who} sees {other:?} where the commit saw {after_commit:?}"
            );
        }
        assert!(
            listed.fingerprint().still_describes(&looked_at),
            "stat sees {looked_at:?} where list saw {listed:?}"
        );
    }
}
