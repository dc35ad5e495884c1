//! Reading files and looking at single paths.

use bytes::Bytes;
use knarr_core::entry::Kind;

use super::Fixture;
use super::support::{
    assert_content, assert_refused, chain, make, pattern, put, read_all, relative, stat,
};
use crate::error::ErrorKind;
use crate::remote::{NewNode, ReadOptions};

pub(super) async fn a_file_is_read_whole_and_from_any_offset(fixture: Fixture) {
    let remote = &*fixture.subject;
    let content = pattern(1, 3_000_001);
    let written = put(&*fixture.filler, "in/data.bin", content.clone()).await;
    let path = relative("in/data.bin");
    for offset in [0, 1, 4_096, 262_144, 1_048_577, 3_000_000, 3_000_001_usize] {
        let options = ReadOptions {
            offset: offset as u64,
            expected: Some(written.entry.fingerprint()),
        };
        let read = match read_all(remote, &path, options).await {
            Ok(read) => read,
            Err(error) => panic!("reading from byte {offset} failed: {}", chain(&error)),
        };
        assert!(
            read == content[offset..],
            "from byte {offset} came {} bytes, not the {} that are there",
            read.len(),
            content.len() - offset
        );
    }

    let mut reader = remote
        .read(&path, ReadOptions::default())
        .await
        .expect("the file can be opened again");
    assert_eq!(reader.entry().path, path, "a reader knows its path");
    assert_eq!(reader.entry().size, 3_000_001, "a reader knows the length");
    while reader.next().await.expect("the file can be read").is_some() {}
    assert!(
        reader
            .next()
            .await
            .expect("the end stays the end")
            .is_none(),
        "after the end came more bytes"
    );
    let after = reader
        .finish()
        .await
        .expect("the file can be looked at after the end");
    assert!(
        reader.entry().fingerprint().still_describes(&after),
        "nobody touched it, but {:?} became {after:?}",
        reader.entry()
    );
}

pub(super) async fn an_empty_file_is_read_as_no_bytes(fixture: Fixture) {
    put(&*fixture.filler, "empty", Bytes::new()).await;
    assert_content(&*fixture.subject, "empty", b"").await;
    let entry = stat(&*fixture.subject, "empty")
        .await
        .expect("an empty file is there");
    assert_eq!((entry.kind, entry.size), (Kind::File, 0));
}

pub(super) async fn a_file_that_is_not_the_expected_one_is_not_read(fixture: Fixture) {
    let old = put(&*fixture.filler, "data", pattern(1, 100)).await;
    put(&*fixture.filler, "data", pattern(2, 200)).await;
    let options = ReadOptions {
        offset: 0,
        expected: Some(old.entry.fingerprint()),
    };
    let read = read_all(&*fixture.subject, &relative("data"), options).await;
    assert_refused(
        read,
        &[ErrorKind::Changed],
        "reading another version than the expected one",
    );
}

pub(super) async fn a_file_replaced_while_it_is_read_is_never_read_as_a_mixture(fixture: Fixture) {
    let old = pattern(1, 5_000_000);
    put(&*fixture.filler, "data", old.clone()).await;
    let path = relative("data");
    let mut reader = fixture
        .subject
        .read(&path, ReadOptions::default())
        .await
        .expect("the file can be opened");
    let first = reader
        .next()
        .await
        .expect("the file can be read")
        .expect("it is not empty");
    assert_eq!(
        first,
        old[..first.len()],
        "the first chunk is what was written"
    );

    put(&*fixture.filler, "data", pattern(2, 6_000_000)).await;
    let mut noticed = false;
    let mut read = first.to_vec();
    loop {
        match reader.next().await {
            Ok(Some(chunk)) => read.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(_) => {
                noticed = true;
                break;
            }
        }
    }
    if !noticed {
        noticed = match reader.finish().await {
            Ok(after) => !reader.entry().fingerprint().still_describes(&after),
            Err(_) => true,
        };
    }
    assert!(
        noticed || read == old,
        "the file was replaced while it was read, and the reader did not tell of the mixture"
    );
}

pub(super) async fn what_is_not_a_file_is_not_read(fixture: Fixture) {
    let remote = &*fixture.subject;
    put(&*fixture.filler, "directory/file", pattern(1, 10)).await;
    let missing = read_all(remote, &relative("nothing"), ReadOptions::default()).await;
    assert_refused(missing, &[ErrorKind::NotFound], "reading a missing file");
    let deep = read_all(remote, &relative("no/such/file"), ReadOptions::default()).await;
    assert_refused(
        deep,
        &[ErrorKind::NotFound],
        "reading below a missing directory",
    );
    let kinds: &[ErrorKind] = if remote.describe().capabilities.directories {
        &[ErrorKind::WrongKind]
    } else {
        &[ErrorKind::WrongKind, ErrorKind::NotFound]
    };
    let directory = read_all(remote, &relative("directory"), ReadOptions::default()).await;
    assert_refused(directory, kinds, "reading a directory");
    if remote.describe().capabilities.symlinks {
        let target = b"directory/file".to_vec().into_boxed_slice();
        make(&*fixture.filler, "link", NewNode::Symlink { target }).await;
        let link = read_all(remote, &relative("link"), ReadOptions::default()).await;
        assert_refused(
            link,
            &[ErrorKind::WrongKind],
            "reading through a symbolic link",
        );
    }
}

pub(super) async fn stat_tells_what_is_there_and_what_is_not(fixture: Fixture) {
    let remote = &*fixture.subject;
    put(&*fixture.filler, "a/b/file", pattern(1, 1_234)).await;
    let entry = stat(remote, "a/b/file")
        .await
        .expect("what was written is there");
    assert_eq!(entry.path, relative("a/b/file"));
    assert_eq!((entry.kind, entry.size), (Kind::File, 1_234));
    assert!(
        entry.mtime.is_some() || entry.identity.is_some(),
        "without mtime and identity no change could be seen: {entry:?}"
    );
    for missing in [
        "nothing",
        "a/nothing",
        "no/such/directory",
        "a/b/file/below",
    ] {
        assert_eq!(
            stat(remote, missing).await,
            None,
            "nothing is at \"{missing}\""
        );
    }
    if remote.describe().capabilities.directories {
        let entry = stat(remote, "a/b").await.expect("the parent was made");
        assert_eq!((entry.kind, entry.size), (Kind::Directory, 0));
    }
}
