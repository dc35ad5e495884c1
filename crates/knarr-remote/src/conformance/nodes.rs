//! Directories and symbolic links.

use bytes::Bytes;
use knarr_core::entry::Kind;

use super::Fixture;
use super::support::{
    assert_content, assert_refused, file_options, list, make, pattern, put, relative, stat,
    try_make, try_put,
};
use crate::error::ErrorKind;
use crate::listing::ListOptions;
use crate::remote::{NewNode, Replace};

pub(super) async fn directories_are_made_with_and_without_asking(fixture: Fixture) {
    let remote = &*fixture.subject;
    if !remote.describe().capabilities.directories {
        let made = try_make(remote, "directory", NewNode::Directory, Replace::Nothing).await;
        assert_refused(
            made,
            &[ErrorKind::Unsupported],
            "making a directory where there are none",
        );
        return;
    }
    let made = make(remote, "a/b/empty", NewNode::Directory).await;
    assert_eq!((made.entry.kind, made.entry.size), (Kind::Directory, 0));
    put(remote, "c/d/file", pattern(1, 10)).await;
    // One that a transfer below it made first is as good as one that was asked for.
    make(remote, "c/d", NewNode::Directory).await;
    make(remote, "a/b/empty", NewNode::Directory).await;
    let listed: Vec<String> = list(remote, ListOptions::default())
        .await
        .iter()
        .map(|entry| format!("{} {}", entry.kind, entry.path))
        .collect();
    let expected = [
        "directory a",
        "directory a/b",
        "directory a/b/empty",
        "directory c",
        "directory c/d",
        "file c/d/file",
    ];
    assert_eq!(listed, expected);
}

pub(super) async fn files_and_directories_never_replace_each_other(fixture: Fixture) {
    let remote = &*fixture.subject;
    if !remote.describe().capabilities.directories {
        return;
    }
    let content = pattern(1, 10);
    put(remote, "directory/file", content.clone()).await;

    for replace in [Replace::Nothing, Replace::Anything] {
        let path = relative("directory");
        let over = try_put(
            remote,
            &path,
            file_options(&path, 10, replace.clone()),
            &content,
        )
        .await;
        assert_refused(
            over,
            &[ErrorKind::WrongKind, ErrorKind::AlreadyExists],
            "writing a file over a directory",
        );
        let over = try_make(
            remote,
            "directory/file",
            NewNode::Directory,
            replace.clone(),
        )
        .await;
        assert_refused(
            over,
            &[ErrorKind::WrongKind, ErrorKind::AlreadyExists],
            "making a directory over a file",
        );
        let path = relative("directory/file/below");
        let below = try_put(remote, &path, file_options(&path, 10, replace), &content).await;
        assert_refused(below, &[ErrorKind::WrongKind], "writing below a file");
    }
    assert_content(remote, "directory/file", &content).await;
}

pub(super) async fn symbolic_links_are_kept_as_links(fixture: Fixture) {
    let remote = &*fixture.subject;
    let link = |target: &[u8]| NewNode::Symlink {
        target: target.into(),
    };
    if !remote.describe().capabilities.symlinks {
        let made = try_make(remote, "link", link(b"file"), Replace::Nothing).await;
        assert_refused(
            made,
            &[ErrorKind::Unsupported],
            "making a link where there are none",
        );
        return;
    }
    let content = pattern(1, 10);
    put(remote, "file", content.clone()).await;
    let targets: [&[u8]; 5] = [
        b"file",
        b"dangling/../nowhere",
        b"../outside",
        b"/absolute",
        b"not \xff utf-8",
    ];
    for (number, target) in targets.into_iter().enumerate() {
        let path = format!("links/{number}");
        let made = make(remote, &path, link(target)).await;
        let looked_at = stat(remote, &path)
            .await
            .expect("a link is there, whatever it points to");
        for entry in [&made.entry, &looked_at] {
            assert_eq!(entry.kind, Kind::Symlink);
            assert_eq!(
                entry.link_target.as_deref(),
                Some(target),
                "the target of \"{path}\""
            );
        }
    }
    let listed = list(remote, ListOptions::default()).await;
    for (number, target) in targets.into_iter().enumerate() {
        let path = relative(&format!("links/{number}"));
        let entry = listed
            .iter()
            .find(|entry| entry.path == path)
            .expect("links are listed");
        assert_eq!(
            entry.link_target.as_deref(),
            Some(target),
            "the listed target of \"{path}\""
        );
    }

    // Replacing a link replaces the link, not what it points to.
    make(remote, "link", link(b"file")).await;
    assert_refused(
        try_make(remote, "link", link(b"other"), Replace::Nothing).await,
        &[ErrorKind::AlreadyExists],
        "making a link where one is",
    );
    let replaced = try_make(remote, "link", link(b"other"), Replace::Anything).await;
    replaced.expect("a link may be replaced by a link");
    let entry = stat(remote, "link").await.expect("the link is there");
    assert_eq!(entry.link_target.as_deref(), Some(b"other".as_slice()));
    put(remote, "link", Bytes::from_static(b"a file now")).await;
    assert_content(remote, "link", b"a file now").await;
    assert_content(remote, "file", &content).await;
    assert_eq!(
        stat(remote, "other").await,
        None,
        "what the link pointed to was made"
    );
}
