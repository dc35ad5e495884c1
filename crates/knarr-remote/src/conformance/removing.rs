//! Removing: what was named, as it was seen, and nothing else.

use knarr_core::entry::Kind;

use super::Fixture;
use super::support::{
    assert_content, assert_refused, chain, listed_files, make, pattern, put, relative, remove, stat,
};
use crate::error::ErrorKind;
use crate::remote::{NewNode, Removal};

pub(super) async fn what_was_named_is_removed_and_nothing_else(fixture: Fixture) {
    let remote = &*fixture.subject;
    for path in ["a", "b/1", "b/2", "c/3", "c.d"] {
        put(remote, path, pattern(1, 10)).await;
    }
    let directories = remote.describe().capabilities.directories;
    let mut removals = vec![
        ("b/1", Kind::File),
        ("b/2", Kind::File),
        ("missing", Kind::File),
    ];
    if directories {
        // The files before their directory, in one call.
        removals.extend([("b", Kind::Directory), ("no/such", Kind::Directory)]);
    }
    removals.push(("c/3", Kind::File));
    let removals: Vec<Removal> = removals
        .into_iter()
        .map(|(path, kind)| Removal {
            path: relative(path),
            kind,
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
    assert_eq!(
        listed_files(remote).await,
        ["a", "c.d"],
        "what was not named stays"
    );
    if directories {
        assert_eq!(
            stat(remote, "b").await,
            None,
            "a removed directory is there"
        );
        assert!(
            stat(remote, "c").await.is_some(),
            "a directory that nobody named is gone"
        );
    }
    assert!(
        remote.remove(&[]).await.is_empty(),
        "removing nothing gives no results"
    );
}

pub(super) async fn k5_another_version_or_another_kind_is_not_removed(fixture: Fixture) {
    let remote = &*fixture.subject;
    let old = put(remote, "d/file", pattern(1, 10)).await;
    let new = put(remote, "d/file", pattern(2, 20)).await;
    let seen = |entry: &knarr_core::Entry| {
        [Removal {
            path: entry.path.clone(),
            kind: entry.kind,
            seen: Some(entry.fingerprint()),
        }]
    };
    let results = remote.remove(&seen(&old.entry)).await;
    for result in results {
        assert_refused(
            result,
            &[ErrorKind::Changed],
            "removing another version than was seen",
        );
    }
    assert_content(remote, "d/file", &pattern(2, 20)).await;

    if remote.describe().capabilities.directories {
        assert_refused(
            remove(remote, "d", Kind::Directory).await,
            &[ErrorKind::NotEmpty],
            "removing a directory that is not empty",
        );
        for (path, kind, what) in [
            ("d/file", Kind::Directory, "removing a file as a directory"),
            ("d", Kind::File, "removing a directory as a file"),
        ] {
            assert_refused(
                remove(remote, path, kind).await,
                &[ErrorKind::WrongKind],
                what,
            );
        }
    }
    if remote.describe().capabilities.symlinks {
        make(
            remote,
            "link",
            NewNode::Symlink {
                target: b"d/file".to_vec().into(),
            },
        )
        .await;
        assert_refused(
            remove(remote, "link", Kind::File).await,
            &[ErrorKind::WrongKind],
            "removing a link as a file",
        );
        remove(remote, "link", Kind::Symlink)
            .await
            .expect("a link can be removed");
        assert_eq!(stat(remote, "link").await, None, "a removed link is there");
    }
    assert_content(remote, "d/file", &pattern(2, 20)).await;

    for attempt in ["what was seen", "what is gone already"] {
        for result in remote.remove(&seen(&new.entry)).await {
            if let Err(error) = result {
                panic!("removing {attempt} failed: {}", chain(&error));
            }
        }
    }
    assert!(
        listed_files(remote).await.is_empty(),
        "a removed file is listed"
    );
}
