//! Renaming files and directories.

use knarr_core::Entry;
use knarr_core::entry::Kind;

use super::Fixture;
use super::support::{
    assert_content, assert_refused, chain, listed_files, pattern, put, relative, stat,
};
use crate::error::{ErrorKind, RemoteError};
use crate::remote::{Remote, RenameOptions, Replace};

async fn rename(
    remote: &dyn Remote,
    from: &str,
    to: &str,
    replace: Replace,
) -> Result<Entry, RemoteError> {
    remote
        .rename(&relative(from), &relative(to), RenameOptions { replace })
        .await
}

pub(super) async fn a_file_gets_another_name(fixture: Fixture) {
    let remote = &*fixture.subject;
    let content = pattern(1, 1_000);
    let written = put(remote, "old/name", content.clone()).await;
    let renamed = rename(remote, "old/name", "new/place/name", Replace::Nothing).await;
    if !remote.describe().capabilities.rename {
        assert_refused(
            renamed,
            &[ErrorKind::Unsupported],
            "renaming where that is not possible",
        );
        assert_content(remote, "old/name", &content).await;
        return;
    }
    let entry = match renamed {
        Ok(entry) => entry,
        Err(error) => panic!("renaming a file failed: {}", chain(&error)),
    };
    assert_eq!(
        entry.path,
        relative("new/place/name"),
        "the renamed entry has the new path"
    );
    assert!(
        written.entry.fingerprint().still_describes(&entry),
        "{:?} became {entry:?} by a rename",
        written.entry
    );
    assert_eq!(listed_files(remote).await, ["new/place/name"]);
    assert_content(remote, "new/place/name", &content).await;
    assert_refused(
        rename(remote, "old/name", "third", Replace::Nothing).await,
        &[ErrorKind::NotFound],
        "renaming what is gone",
    );
}

pub(super) async fn k6_a_rename_replaces_only_what_it_may(fixture: Fixture) {
    let remote = &*fixture.subject;
    if !remote.describe().capabilities.rename {
        return;
    }
    let (old, new) = (pattern(1, 100), pattern(2, 200));
    let there = put(remote, "to", old.clone()).await;
    let from = put(remote, "from", new.clone()).await;
    assert_refused(
        rename(remote, "from", "to", Replace::Nothing).await,
        &[ErrorKind::AlreadyExists],
        "renaming to a name that is taken",
    );
    assert_refused(
        rename(
            remote,
            "from",
            "to",
            Replace::Seen(from.entry.fingerprint()),
        )
        .await,
        &[ErrorKind::Changed],
        "renaming over another version than was seen",
    );
    assert_content(remote, "from", &new).await;
    assert_content(remote, "to", &old).await;

    rename(
        remote,
        "from",
        "to",
        Replace::Seen(there.entry.fingerprint()),
    )
    .await
    .unwrap_or_else(|error| panic!("what was seen was not replaced: {}", chain(&error)));
    assert_content(remote, "to", &new).await;
    put(remote, "again", old.clone()).await;
    rename(remote, "again", "to", Replace::Anything)
        .await
        .unwrap_or_else(|error| panic!("anything was not replaced: {}", chain(&error)));
    assert_content(remote, "to", &old).await;
    assert_eq!(listed_files(remote).await, ["to"]);

    if remote.describe().capabilities.directories {
        put(remote, "directory/file", new.clone()).await;
        assert_refused(
            rename(remote, "to", "directory", Replace::Anything).await,
            &[ErrorKind::WrongKind, ErrorKind::AlreadyExists],
            "renaming a file over a directory",
        );
        assert_content(remote, "directory/file", &new).await;
        assert_content(remote, "to", &old).await;
    }
}

pub(super) async fn a_directory_gets_another_name(fixture: Fixture) {
    let remote = &*fixture.subject;
    let capabilities = &remote.describe().capabilities;
    if !capabilities.rename || !capabilities.directories {
        return;
    }
    for path in ["old/1", "old/2/3", "older", "taken/4"] {
        put(remote, path, path.as_bytes().to_vec()).await;
    }
    let entry = rename(remote, "old", "deep/new", Replace::Nothing)
        .await
        .unwrap_or_else(|error| panic!("renaming a directory failed: {}", chain(&error)));
    assert_eq!(
        (entry.path, entry.kind),
        (relative("deep/new"), Kind::Directory)
    );
    let expected = ["deep/new/1", "deep/new/2/3", "older", "taken/4"];
    assert_eq!(listed_files(remote).await, expected);
    assert_eq!(
        stat(remote, "old").await,
        None,
        "the old name is still there"
    );
    assert_content(remote, "deep/new/2/3", b"old/2/3").await;

    let over = rename(remote, "deep/new", "taken", Replace::Nothing).await;
    assert!(
        over.is_err(),
        "a directory was renamed over one that is not empty"
    );
    let into = rename(remote, "deep", "deep/new/deeper", Replace::Nothing).await;
    assert!(into.is_err(), "a directory was renamed into itself");
    assert_eq!(
        listed_files(remote).await,
        expected,
        "after renames that were refused"
    );
}
