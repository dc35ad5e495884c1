//! A local directory: the suite, and what only a disk can do.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use knarr_core::tree::TreeItem;
use knarr_core::{ContentHash, Kind};
use knarr_remote::conformance::{self, RecordingSink, pattern, put, read_all, relative, try_put};
use knarr_remote::listing::complete_entries;
use knarr_remote::local::{LOOK_BYTES, LocalRemote, Looked, SMALL_BYTES, WAITING_BYTES};
use knarr_remote::{
    CheckpointSink, ErrorKind, ListOptions, NewNode, ReadOptions, Remote, Replace, Retry, Staged,
    StagedId, WriteOptions,
};
use tempfile::TempDir;

fn place() -> (TempDir, LocalRemote) {
    let directory = TempDir::new().unwrap();
    let remote = LocalRemote::new(directory.path());
    (directory, remote)
}

fn options(size: Option<u64>, path: &str) -> WriteOptions {
    let id = StagedId::derive(b"local tests", &relative(path));
    WriteOptions::new(NewNode::File { size }, id)
}

/// All names that the disk itself shows below `directory`, our own included.
fn names_on_disk(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            names.extend(
                names_on_disk(&entry.path())
                    .iter()
                    .map(|below| format!("{name}/{below}")),
            );
        } else {
            names.push(name);
        }
    }
    names.sort();
    names
}

async fn write_and_stage(remote: &LocalRemote, path: &str, content: &Bytes) -> Staged {
    let options = options(Some(content.len() as u64), path);
    let mut upload = remote.write(&relative(path), options).await.unwrap();
    upload.write(content.clone()).await.unwrap();
    upload
        .stage(content.len() as u64, ContentHash::of(content))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_directory_passes_the_suite() {
    let directories = Mutex::new(Vec::new());
    conformance::run_all(async || {
        let (directory, remote) = place();
        directories.lock().unwrap().push(directory);
        let remote: Arc<dyn Remote> = Arc::new(remote);
        remote
    })
    .await;
}

#[tokio::test]
async fn a_missing_root_is_made_by_writing_and_never_by_looking() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("not/yet");
    let remote = LocalRemote::new(&path);
    let error = remote.list(ListOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert_eq!(remote.stat(&relative("a")).await.unwrap(), None);
    assert!(!parent.path().join("not").exists(), "looking made the root");
    put(&remote, "a/b", pattern(1, 10)).await;
    assert!(path.join("a/b").is_file());
}

#[tokio::test]
async fn k5_a_root_that_was_replaced_is_down_and_not_empty() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("root");
    std::fs::create_dir(&path).unwrap();
    let remote = LocalRemote::new(&path);
    put(&remote, "a", pattern(1, 10)).await;

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the accident, not our own doing"
    )]
    std::fs::rename(&path, parent.path().join("elsewhere")).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = remote.list(ListOptions::default()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Unreachable, Retry::EndpointDown),
        "{error}"
    );

    // From then on it is what is there; whether it is the right one is for the caller to compare.
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    assert!(complete_entries(items).unwrap().is_empty());
}

#[tokio::test]
async fn k5_a_root_that_vanishes_makes_absences_errors() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("root");
    let remote = LocalRemote::new(&path);
    put(&remote, "a", pattern(1, 10)).await;
    std::fs::remove_dir_all(&path).unwrap();
    let error = remote.stat(&relative("a")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn k5_a_directory_that_may_not_be_read_makes_the_listing_incomplete() {
    let (directory, remote) = place();
    put(&remote, "closed/file", pattern(1, 10)).await;
    put(&remote, "open", pattern(1, 10)).await;
    let closed = directory.path().join("closed");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    let readable_anyway = std::fs::read_dir(&closed).is_ok();
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    let shallow = ListOptions {
        shallow: true,
        ..ListOptions::default()
    };
    let children = remote.list(shallow).await.unwrap().collect().await;
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).unwrap();

    assert_eq!(
        complete_entries(children).unwrap().len(),
        2,
        "the children can be told"
    );
    let incomplete = items.iter().any(|item| {
        matches!(item, TreeItem::Incomplete(incomplete) if incomplete.below == Some(relative("closed")))
    });
    // Root reads it all the same; then it has to be complete.
    let complete = complete_entries(items).is_ok_and(|entries| entries.len() == 3);
    assert_ne!(incomplete, complete);
    assert_eq!(complete, readable_anyway);
}

#[tokio::test]
async fn k12_no_link_leads_out_of_the_root() {
    let outside = TempDir::new().unwrap();
    let (directory, remote) = place();
    symlink(outside.path(), directory.path().join("out")).unwrap();
    let path = relative("out/file");
    for size in [10, 1_000_000] {
        let content = pattern(1, size);
        let mut options = options(Some(size as u64), "out/file");
        options.replace = Replace::Anything;
        let error = try_put(&remote, &path, options, &content)
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::WrongKind, "{error}");
    }
    assert_eq!(names_on_disk(outside.path()), [""; 0]);
    assert_eq!(remote.stat(&path).await.unwrap(), None);
    read_all(&remote, &path, ReadOptions::default())
        .await
        .unwrap_err();
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    let entries = complete_entries(items).unwrap();
    assert_eq!(entries.len(), 1, "a link is listed as a link: {entries:?}");
    assert_eq!(entries[0].kind, Kind::Symlink);
}

#[tokio::test]
async fn r36_a_fifo_is_neither_opened_nor_missed() {
    let (directory, remote) = place();
    let fifo = directory.path().join("fifo");
    let made = std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .unwrap();
    assert!(made.success());
    let error = read_all(&remote, &relative("fifo"), ReadOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::WrongKind, "{error}");
    assert_eq!(
        remote.stat(&relative("fifo")).await.unwrap().unwrap().kind,
        Kind::Special
    );
}

#[tokio::test]
async fn small_files_touch_the_disk_only_in_their_commit() {
    let (directory, remote) = place();
    let mut batch = Vec::new();
    for number in 0..50 {
        batch.push(write_and_stage(&remote, &format!("d/{number}"), &pattern(number, 1_000)).await);
    }
    assert_eq!(names_on_disk(directory.path()), [""; 0]);
    let committer = Arc::clone(&batch[0].committer);
    for result in committer.commit(batch).await {
        result.unwrap();
    }
    assert_eq!(names_on_disk(directory.path()).len(), 50);
}

#[tokio::test]
async fn k10_what_waits_for_a_commit_is_limited_in_memory_and_the_rest_waits_on_the_disk() {
    let (directory, remote) = place();
    let content = pattern(1, usize::try_from(SMALL_BYTES).unwrap());
    let fitting = WAITING_BYTES / content.len();
    let mut batch = Vec::new();
    for number in 0..fitting + 3 {
        batch.push(write_and_stage(&remote, &format!("{number}"), &content).await);
    }
    assert_eq!(
        names_on_disk(directory.path()).len(),
        3,
        "what does not fit is staged"
    );
    let committer = Arc::clone(&batch[0].committer);
    for result in committer.commit(batch).await {
        assert_eq!(result.unwrap().entry.size, SMALL_BYTES);
    }
    // The room is free again.
    let again = write_and_stage(&remote, "again", &content).await;
    assert_eq!(names_on_disk(directory.path()).len(), fitting + 3);
    drop(again);
}

#[tokio::test]
async fn what_was_refused_or_given_up_leaves_no_staged_file() {
    let (directory, remote) = place();
    put(&remote, "taken/file", pattern(1, 10)).await;
    for (path, replace) in [
        ("taken/file", Replace::Nothing),
        ("taken", Replace::Anything),
    ] {
        for size in [10, 1_000_000] {
            let mut options = options(Some(size as u64), path);
            options.replace = replace.clone();
            let content = pattern(2, size);
            try_put(&remote, &relative(path), options, &content)
                .await
                .unwrap_err();
        }
    }
    let mut upload = remote
        .write(&relative("given up"), options(Some(1_000_000), "given up"))
        .await
        .unwrap();
    upload.write(pattern(1, 500_000)).await.unwrap();
    upload.abort().await;
    assert_eq!(names_on_disk(directory.path()), ["taken/file"]);
}

#[tokio::test]
async fn k9_a_staged_beginning_that_is_another_is_noticed_and_written_anew() {
    let (directory, remote) = place();
    let path = relative("big");
    let sink = RecordingSink::new();
    let begin = async |resume| {
        let mut options = options(Some(2_000_000), "big");
        let checkpoints: Arc<dyn CheckpointSink> = Arc::<RecordingSink>::clone(&sink);
        options.checkpoints = Some(checkpoints);
        options.resume = resume;
        remote.write(&path, options).await.unwrap()
    };
    let mut first = begin(None).await;
    first.write(pattern(1, 1_000_000)).await.unwrap();
    first.suspend().await;
    let staged = directory.path().join(&names_on_disk(directory.path())[0]);
    let mut damaged = std::fs::read(&staged).unwrap();
    assert_eq!(damaged.len(), 1_000_000);
    damaged[500_000] ^= 1;
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the damage, not our own doing"
    )]
    std::fs::write(&staged, &damaged).unwrap();

    let content = pattern(1, 2_000_000);
    let mut second = begin(sink.state()).await;
    assert_eq!(second.resumed_at(), 1_000_000);
    let error = second.write(content.clone()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Changed, Retry::Later),
        "{error}"
    );
    second.abort().await;
    assert_eq!(sink.state(), None);

    let mut third = begin(sink.state()).await;
    third.write(content.clone()).await.unwrap();
    assert_eq!(third.sent(), 2_000_000);
    let staged = third
        .stage(2_000_000, ContentHash::of(&content))
        .await
        .unwrap();
    let committer = Arc::clone(&staged.committer);
    committer.commit(vec![staged]).await.pop().unwrap().unwrap();
    assert_eq!(
        std::fs::read(directory.path().join("big")).unwrap(),
        content
    );
}

#[tokio::test]
async fn k9_a_large_upload_saves_checkpoints_while_it_runs() {
    let (_directory, remote) = place();
    let sink = RecordingSink::new();
    let length: u64 = 200 << 20;
    let mut options = options(Some(length), "big");
    let checkpoints: Arc<dyn CheckpointSink> = Arc::<RecordingSink>::clone(&sink);
    options.checkpoints = Some(checkpoints);
    let mut upload = remote.write(&relative("big"), options).await.unwrap();
    let chunk = Bytes::from(vec![7; 1 << 20]);
    for _ in 0..200 {
        upload.write(chunk.clone()).await.unwrap();
    }
    drop(upload);
    let state = sink.state().unwrap();
    assert!(
        state.offset >= 64 << 20,
        "after 200 MiB the last checkpoint is {}",
        state.offset
    );
}

#[tokio::test]
async fn r35_a_file_cut_short_while_it_is_read_is_an_error_and_not_an_end() {
    let (directory, remote) = place();
    put(&remote, "big", pattern(1, 8_000_000)).await;
    let mut reader = remote
        .read(&relative("big"), ReadOptions::default())
        .await
        .unwrap();
    reader.next().await.unwrap().unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(directory.path().join("big"))
        .unwrap();
    file.set_len(4_000_000).unwrap();
    let error = loop {
        match reader.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a file cut short looked like a whole one"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::Changed, "{error}");
}

#[tokio::test]
async fn errors_say_what_where_and_why() {
    let (directory, remote) = place();
    let error = read_all(&remote, &relative("a\nb"), ReadOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot open \"a\\nb\": nothing is there");
    let source = std::error::Error::source(&error).unwrap().to_string();
    let shown = directory.path().display();
    assert_eq!(source, format!("cannot open \"{shown}/a\\nb\""));
}

/// What each of many looks said, and the content where it was read.
async fn looked(remote: &LocalRemote, names: &[&str]) -> Vec<(Option<Kind>, Option<Vec<u8>>)> {
    let paths = names.iter().map(|name| relative(name));
    let mut found = Vec::new();
    for looked in remote.look_each(&paths.collect::<Vec<_>>()).await {
        let kind = looked.now.unwrap().map(|entry| entry.kind);
        let mut content = None;
        if let Some(mut reader) = looked.reader {
            let mut bytes = Vec::new();
            while let Some(chunk) = reader.next().await.unwrap() {
                bytes.extend_from_slice(&chunk);
            }
            let after = reader.finish().await.unwrap();
            assert_eq!(&after, reader.entry());
            content = Some(bytes);
        }
        found.push((kind, content));
    }
    found
}

#[tokio::test]
async fn many_are_looked_at_together_and_small_files_are_read_with_it() {
    let (directory, remote) = place();
    let at = |name: &str| directory.path().join(name);
    put(&remote, "small", "content").await;
    put(&remote, "empty", "").await;
    put(&remote, "long", pattern(1, 300 << 10)).await;
    std::fs::create_dir(at("directory")).unwrap();
    symlink("small", at("link")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(at("fifo"))
        .status();
    assert!(made.unwrap().success());
    let names = [
        "small",
        "gone",
        "empty",
        "long",
        "directory",
        "link",
        "fifo",
        "small",
    ];
    let small = (Some(Kind::File), Some(b"content".to_vec()));
    let expected = [
        small.clone(),
        (None, None),
        (Some(Kind::File), Some(Vec::new())),
        (Some(Kind::File), None),
        (Some(Kind::Directory), None),
        (Some(Kind::Symlink), None),
        (Some(Kind::Special), None),
        small,
    ];
    assert_eq!(looked(&remote, &names).await, expected);
}

#[tokio::test]
async fn what_is_read_while_looking_is_bounded() {
    let (_directory, remote) = place();
    let content = pattern(1, 200 << 10);
    let fitting = LOOK_BYTES / content.len();
    let paths: Vec<_> = (0..fitting + 20)
        .map(|number| relative(&format!("{number:03}")))
        .collect();
    for path in &paths {
        put(&remote, &path.to_string(), content.clone()).await;
    }
    for _ in 0..2 {
        let found = remote.look_each(&paths).await;
        let seen = |looked: &&Looked| looked.now.as_ref().unwrap().is_some();
        assert_eq!(found.iter().filter(seen).count(), paths.len());
        let read = found.iter().filter(|looked| looked.reader.is_some());
        assert_eq!(read.count(), fitting);
        let more = remote.look_each(&paths[..1]).await;
        assert!(more[0].reader.is_none(), "all room is taken");
        // Whoever holds no content any more gives the room back.
        drop(found);
    }
}
