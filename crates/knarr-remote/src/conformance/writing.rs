//! Writing: nothing before the commit, everything after it, and only what may be replaced.

use bytes::Bytes;
use knarr_core::entry::Kind;
use knarr_core::record::Evidence;
use knarr_core::{ContentHash, Timestamp};

use super::Fixture;
use super::support::{
    ODD_CHUNK, assert_content, assert_refused, chain, commit_all, commit_one, file_options,
    listed_files, make, node_options, pattern, put, relative, remove, stage, stat, try_put,
};
use crate::error::ErrorKind;
use crate::remote::{MtimeSupport, NewNode, Remote, Replace};

/// More than the smallest part of an object store and than any flush window below 8 MiB.
const BIG: usize = 9 << 20;

pub(super) async fn k2_nothing_is_visible_before_the_commit(fixture: Fixture) {
    let remote = &*fixture.subject;
    let (old, new) = (pattern(1, 1_000), pattern(2, 700_000));
    put(remote, "in/old", old.clone()).await;

    let path = relative("in/new");
    let options = file_options(&path, new.len(), Replace::Nothing);
    let mut upload = remote
        .write(&path, options)
        .await
        .expect("a new file can be begun");
    upload
        .write(new.slice(..ODD_CHUNK))
        .await
        .expect("a first chunk is taken");
    assert_eq!(
        stat(remote, "in/new").await,
        None,
        "a file is visible while it is written"
    );
    assert_eq!(
        listed_files(remote).await,
        ["in/old"],
        "a file is listed while it is written"
    );
    upload
        .write(new.slice(ODD_CHUNK..))
        .await
        .expect("the rest is taken");
    let staged_new = upload
        .stage(new.len() as u64, ContentHash::of(&new))
        .await
        .expect("a complete file is staged");

    let path = relative("in/old");
    let options = file_options(&path, new.len(), Replace::Anything);
    let staged_old = stage(remote, &path, options, &new, ODD_CHUNK)
        .await
        .expect("a complete replacement is staged");
    assert_eq!(
        stat(remote, "in/new").await,
        None,
        "a file is visible before its commit"
    );
    assert_eq!(
        listed_files(remote).await,
        ["in/old"],
        "a staged file is listed"
    );
    assert_content(remote, "in/old", &old).await;

    commit_one(staged_new)
        .await
        .expect("the new file is committed");
    commit_one(staged_old)
        .await
        .expect("the replacement is committed");
    assert_eq!(listed_files(remote).await, ["in/new", "in/old"]);
    assert_content(remote, "in/new", &new).await;
    assert_content(remote, "in/old", &new).await;
}

pub(super) async fn files_of_all_sizes_arrive_whole(fixture: Fixture) {
    let remote = &*fixture.subject;
    let sizes = [
        0,
        1,
        4_095,
        4_096,
        65_537,
        (256 << 10) - 1,
        256 << 10,
        (256 << 10) + 1,
        BIG,
    ];
    for (seed, size) in sizes.into_iter().enumerate() {
        let content = pattern(seed as u64, size);
        for known in [true, false] {
            let name = format!("{size} bytes, known before {known}");
            let path = relative(&name);
            let mut options = file_options(&path, size, Replace::Nothing);
            if !known {
                options.node = NewNode::File { size: None };
            }
            let chunk = if size == BIG { 1_000_003 } else { ODD_CHUNK };
            let staged = match stage(remote, &path, options, &content, chunk).await {
                Ok(staged) => staged,
                Err(error) => panic!("staging \"{path}\" failed: {}", chain(&error)),
            };
            let committed = commit_one(staged)
                .await
                .expect("what is staged can be committed");
            assert_eq!(committed.entry.path, path);
            assert_eq!(
                (committed.entry.kind, committed.entry.size),
                (Kind::File, size as u64)
            );
            assert_content(remote, &name, &content).await;
        }
    }
}

pub(super) async fn what_was_committed_says_how_it_is_known(fixture: Fixture) {
    for size in [0, 10, 400_000] {
        let content = pattern(1, size);
        let committed = put(&*fixture.subject, "data", content.clone()).await;
        match committed.evidence {
            Evidence::ReadBack { hash } | Evidence::Written { hash } => assert_eq!(
                hash,
                ContentHash::of(&content),
                "the evidence for {size} bytes is about other bytes"
            ),
            Evidence::ServerChecksum { algorithm, value } => assert!(
                !algorithm.is_empty() && !value.is_empty(),
                "the evidence for {size} bytes does not say which checksum"
            ),
            Evidence::SizeOnly { reason } => {
                assert!(
                    !reason.is_empty(),
                    "the evidence for {size} bytes gives no reason"
                );
            }
            Evidence::None => panic!("{size} bytes were moved, and nothing says that they arrived"),
        }
    }
}

pub(super) async fn a_wrong_length_is_refused(fixture: Fixture) {
    let remote = &*fixture.subject;
    for (declared, wrong) in [(10, 11), (10, 9), (0, 1), (400_000, 400_001)] {
        let content = pattern(1, declared);
        let path = relative("data");
        let mut options = file_options(&path, declared, Replace::Nothing);
        options.node = NewNode::File { size: None };
        let mut upload = remote
            .write(&path, options)
            .await
            .expect("a new file can be begun");
        upload
            .write(content.clone())
            .await
            .expect("the bytes are taken");
        let staged = upload.stage(wrong, ContentHash::of(&content)).await;
        assert!(staged.is_err(), "{declared} bytes were staged as {wrong}");
        assert_eq!(
            stat(remote, "data").await,
            None,
            "a file of a wrong length is visible"
        );
    }
    put(remote, "data", pattern(2, 20)).await;
    assert_content(remote, "data", &pattern(2, 20)).await;
}

pub(super) async fn an_abort_leaves_nothing_visible(fixture: Fixture) {
    let remote = &*fixture.subject;
    let old = pattern(1, 50);
    put(remote, "in/old", old.clone()).await;
    for name in ["in/old", "in/new"] {
        for size in [100, 2_000_000] {
            let path = relative(name);
            let options = file_options(&path, size, Replace::Anything);
            let mut upload = remote
                .write(&path, options)
                .await
                .expect("an upload can be begun");
            upload
                .write(pattern(2, size / 2))
                .await
                .expect("the first half is taken");
            upload.abort().await;
        }
    }
    assert_eq!(
        listed_files(remote).await,
        ["in/old"],
        "after uploads were given up"
    );
    assert_content(remote, "in/old", &old).await;
    // What was given up is in nobody's way.
    put(remote, "in/new", pattern(3, 30)).await;
    assert_content(remote, "in/new", &pattern(3, 30)).await;
}

pub(super) async fn k6_only_what_may_be_replaced_is_replaced(fixture: Fixture) {
    let remote = &*fixture.subject;
    let attempt = async |replace: Replace, content: &Bytes| {
        let path = relative("data");
        try_put(
            remote,
            &path,
            file_options(&path, content.len(), replace),
            content,
        )
        .await
    };
    let versions: Vec<Bytes> = (0..5)
        .map(|seed| pattern(seed, 100 + seed as usize))
        .collect();

    let first = attempt(Replace::Nothing, &versions[0])
        .await
        .expect("a new file replaces nothing");
    assert_refused(
        attempt(Replace::Nothing, &versions[1]).await,
        &[ErrorKind::AlreadyExists],
        "writing a new file where one is",
    );
    assert_content(remote, "data", &versions[0]).await;

    let second = attempt(Replace::Seen(first.entry.fingerprint()), &versions[1])
        .await
        .expect("what was seen is still there and may be replaced");
    assert_content(remote, "data", &versions[1]).await;

    assert_refused(
        attempt(Replace::Seen(first.entry.fingerprint()), &versions[2]).await,
        &[ErrorKind::Changed],
        "replacing another version than was seen",
    );
    assert_content(remote, "data", &versions[1]).await;

    attempt(Replace::Anything, &versions[3])
        .await
        .expect("anything may be replaced");
    assert_content(remote, "data", &versions[3]).await;

    remove(remote, "data", Kind::File)
        .await
        .expect("a file can be removed");
    assert_refused(
        attempt(Replace::Seen(second.entry.fingerprint()), &versions[4]).await,
        &[ErrorKind::Changed],
        "replacing what was seen and is gone",
    );
    assert_eq!(
        stat(remote, "data").await,
        None,
        "what was refused is there"
    );
    attempt(Replace::Anything, &versions[4])
        .await
        .expect("nothing may be replaced, too");
    assert_content(remote, "data", &versions[4]).await;
}

pub(super) async fn a_batch_is_committed_item_by_item(fixture: Fixture) {
    let remote = &*fixture.subject;
    let taken = pattern(99, 9);
    put(remote, "d/07", taken.clone()).await;
    let mut staged = Vec::new();
    let content = |number: usize| pattern(number as u64, number * 1_000);
    for number in 0..20 {
        let path = relative(&format!("d/{number:02}"));
        let content = content(number);
        let options = file_options(&path, content.len(), Replace::Nothing);
        match stage(remote, &path, options, &content, ODD_CHUNK).await {
            Ok(item) => staged.push(item),
            Err(error) => assert!(
                number == 7 && error.kind == ErrorKind::AlreadyExists,
                "staging \"{path}\" failed: {}",
                chain(&error)
            ),
        }
    }
    for (path, result) in commit_all(staged).await {
        if path == relative("d/07") {
            assert_refused(
                result,
                &[ErrorKind::AlreadyExists],
                "the item whose path was taken",
            );
        } else {
            match result {
                Ok(committed) => assert_eq!(committed.entry.path, path, "results keep the order"),
                Err(error) => panic!("committing \"{path}\" failed: {}", chain(&error)),
            }
        }
    }
    for number in 0..20 {
        let expected = if number == 7 {
            taken.clone()
        } else {
            content(number)
        };
        assert_content(remote, &format!("d/{number:02}"), &expected).await;
    }
}

pub(super) async fn mtimes_are_kept_as_exactly_as_promised(fixture: Fixture) {
    let remote = &*fixture.subject;
    let MtimeSupport::Kept {
        precision_nanoseconds,
    } = remote.describe().capabilities.mtime
    else {
        return;
    };
    for (size, nanoseconds) in [
        (0, 946_684_800_000_000_001),
        (10, 1_700_000_000_123_456_789),
        (400_000, 1_790_000_000_999_999_999),
    ] {
        let mtime = Timestamp::from_nanoseconds(nanoseconds);
        let path = relative(&format!("file of {size}"));
        let mut options = file_options(&path, size, Replace::Nothing);
        options.mtime = Some(mtime);
        let committed = try_put(remote, &path, options, &pattern(1, size))
            .await
            .unwrap_or_else(|error| panic!("writing \"{path}\" failed: {}", chain(&error)));
        let looked_at = remote
            .stat(&path)
            .await
            .expect("what was committed can be looked at")
            .expect("what was committed is there");
        for (who, entry) in [("commit", &committed.entry), ("stat", &looked_at)] {
            let kept = entry
                .mtime
                .unwrap_or_else(|| panic!("{who} does not know the mtime of \"{path}\""));
            assert!(
                kept.distance(mtime).as_nanos() < u128::from(precision_nanoseconds.max(1)),
                "{who} says {kept:?} where {mtime:?} was to be kept to {precision_nanoseconds} ns"
            );
        }
    }
}

pub(super) async fn modes_are_kept_where_promised(fixture: Fixture) {
    let remote = &*fixture.subject;
    if !remote.describe().capabilities.modes {
        return;
    }
    for (size, mode) in [(10, 0o640), (10, 0o700), (400_000, 0o444)] {
        let path = relative(&format!("{mode:o} {size}"));
        let mut options = file_options(&path, size, Replace::Nothing);
        options.mode = Some(mode);
        let committed = try_put(remote, &path, options, &pattern(1, size))
            .await
            .unwrap_or_else(|error| panic!("writing \"{path}\" failed: {}", chain(&error)));
        assert_eq!(
            committed.entry.mode,
            Some(mode),
            "the mode of \"{path}\" after the commit"
        );
        let looked_at = remote.stat(&path).await.expect("a file can be looked at");
        assert_eq!(
            looked_at.and_then(|entry| entry.mode),
            Some(mode),
            "the mode of \"{path}\""
        );
    }
    if remote.describe().capabilities.directories {
        make_directory_with_mode(remote).await;
    }
}

async fn make_directory_with_mode(remote: &dyn Remote) {
    let path = relative("directory");
    let mut options = node_options(&path, NewNode::Directory, Replace::Nothing);
    options.mode = Some(0o750);
    if let Err(error) = try_put(remote, &path, options, &Bytes::new()).await {
        panic!("making a directory with a mode failed: {}", chain(&error));
    }
    let entry = stat(remote, "directory")
        .await
        .expect("the directory is there");
    assert_eq!(entry.mode, Some(0o750), "the mode of a directory");
    make(remote, "directory/below", NewNode::Directory).await;
}
