//! Directories on real SFTP servers: the suite, and what is special to SFTP.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use knarr_core::entry::Kind;
use knarr_core::job::Verify;
use knarr_core::record::Evidence;
use knarr_core::tree::TreeItem;
use knarr_core::{ContentHash, RelPath};
use knarr_remote::conformance::{self, RecordingSink, pattern, read_all, relative};
use knarr_remote::listing::complete_entries;
use knarr_remote::sftp::{Flush, ReplaceWithoutPosixRename, SftpEndpoint, SftpOptions, SftpRemote};
use knarr_remote::{
    ErrorKind, ListOptions, NewNode, ReadOptions, Remote, Removal, RenameOptions, Replace,
    StagedId, WriteOptions,
};
use knarr_sftp::codec::Extension;
use knarr_testkit::asyncssh::AsyncsshServer;
use knarr_testkit::proxy::FaultProxy;
use knarr_testkit::sshd::Sshd;

use crate::sftp_support::{
    asyncssh_options, asyncssh_remote, bytes_of, deliver, feed, finish, names_in, put_local,
    remote, remote_with, resumable, ssh_options, ssh_options_through, told, write_options,
};

/// Fresh roots on one server, which share its connections.
fn fresh_roots(
    endpoint: &SftpEndpoint,
    base: Vec<u8>,
) -> impl Fn() -> Arc<dyn Remote> + Send + Sync {
    let (endpoint, number) = (endpoint.clone(), AtomicU64::new(0));
    move || {
        let name = format!("/case {}", number.fetch_add(1, Ordering::Relaxed));
        let root = [base.as_slice(), name.as_bytes()].concat();
        std::fs::create_dir(std::ffi::OsStr::from_bytes(&root)).unwrap();
        let remote: Arc<dyn Remote> = Arc::new(SftpRemote::new(&endpoint, root));
        remote
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_openssh_passes_the_suite() {
    let server = Sshd::start();
    let endpoint = SftpEndpoint::new(SftpOptions::new(ssh_options(&server)));
    let make = fresh_roots(&endpoint, bytes_of(&server.data_directory()));
    conformance::run_all(async || make()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_the_separate_sftp_server_without_extensions_passes_the_suite() {
    let server = Sshd::start();
    let mut options = SftpOptions::new(ssh_options(&server));
    options.without = Extension::ALL.to_vec();
    options.replace_without_posix_rename = ReplaceWithoutPosixRename::Allow;
    options.connections = Some(1);
    let endpoint = SftpEndpoint::new(options);
    let make = fresh_roots(&endpoint, bytes_of(&server.data_directory()));
    conformance::run_all(async || make()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_asyncssh_passes_the_suite() {
    let server = AsyncsshServer::builder().password("hush").start();
    let endpoint = SftpEndpoint::new(asyncssh_options(&server, "hush"));
    let make = fresh_roots(&endpoint, bytes_of(&server.root()));
    conformance::run_all(async || make()).await;
}

#[tokio::test]
async fn a_location_says_where_it_is_without_secrets() {
    let server = Sshd::start();
    let endpoint = SftpEndpoint::new(SftpOptions::new(ssh_options(&server)));
    let remote = SftpRemote::new(&endpoint, *b"/srv/out/");
    let base = format!("sftp://{}@127.0.0.1:{}", server.user(), server.port());
    assert_eq!(remote.describe().endpoint, base);
    assert_eq!(remote.describe().location, format!("{base}/srv/out"));
    assert_eq!(
        SftpRemote::new(&endpoint, *b"in").describe().location,
        format!("{base}/~/in")
    );
    assert_eq!(
        server.session_processes(),
        0,
        "describing does not touch the network"
    );
    remote.endpoint().probe().await.unwrap();
}

#[tokio::test]
async fn a_file_arrives_with_its_mtime_and_mode_and_nothing_is_left_beside_it() {
    let server = Sshd::start();
    let remote = remote(&server);
    for (path, size) in [("small", 4_096), ("in/several/large", 20_000_000)] {
        let content = pattern(1, size);
        let path = relative(path);
        let mut options = write_options(&path, size, Replace::Nothing);
        options.mode = Some(0o604);
        options.mtime = Some(knarr_core::Timestamp::from_seconds(1_000_000_000));
        let mut upload = remote.write(&path, options).await.unwrap();
        feed(&mut *upload, &content).await.unwrap();
        assert_eq!(upload.resumed_at(), 0);
        let committed = finish(upload, &content).await.unwrap();
        assert!(
            matches!(committed.evidence, Evidence::SizeOnly { .. }),
            "{:?}",
            committed.evidence
        );
        let there = server.data_directory().join(path.as_os_str());
        let metadata = std::fs::metadata(&there).unwrap();
        assert_eq!(metadata.mtime(), 1_000_000_000);
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o604);
        assert!(
            std::fs::read(&there).unwrap() == content,
            "the bytes of {path}"
        );
    }
    assert_eq!(names_in(&server.data_directory()), ["in", "small"]);
    assert_eq!(
        names_in(&server.data_directory().join("in/several")),
        ["large"]
    );
}

#[tokio::test]
async fn k4_reading_everything_back_proves_what_arrived() {
    let server = Sshd::start();
    let remote = remote(&server);
    for size in [0, 1_000, 20_000_000] {
        let content = pattern(2, size);
        let path = relative(&size.to_string());
        let mut options = write_options(&path, size, Replace::Nothing);
        options.verify = Verify::Full;
        let mut upload = remote.write(&path, options).await.unwrap();
        feed(&mut *upload, &content).await.unwrap();
        let committed = finish(upload, &content).await.unwrap();
        let hash = ContentHash::of(&content);
        assert_eq!(committed.evidence, Evidence::ReadBack { hash });
    }
}

#[tokio::test]
async fn k4_damage_on_the_way_is_found_by_reading_everything_back() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .flip_byte(500)
        .start();
    let remote = asyncssh_remote(&server);
    for size in [1_000, 600_000] {
        let content = pattern(3, size);
        let path = relative("damaged");
        let mut options = write_options(&path, size, Replace::Nothing);
        options.verify = Verify::Full;
        let mut upload = remote.write(&path, options).await.unwrap();
        feed(&mut *upload, &content).await.unwrap();
        let error = finish(upload, &content).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
        assert!(error.to_string().contains("read back"), "{error}");
        assert_eq!(
            remote.stat(&path).await.unwrap(),
            None,
            "nothing has the final name"
        );
    }
}

#[tokio::test]
async fn h03_a_link_at_the_staged_name_is_not_followed() {
    let server = Sshd::start();
    let remote = remote(&server);
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("canary");
    put_local(&canary, b"untouched");
    for (name, size) in [("small", 100), ("large", 3_000_000)] {
        let path = relative(name);
        let staged = StagedId::derive(b"tests", &path).file_name();
        std::os::unix::fs::symlink(&canary, server.data_directory().join(staged)).unwrap();
        deliver(&remote, name, &pattern(1, size), Replace::Nothing)
            .await
            .unwrap();
    }
    assert_eq!(std::fs::read(&canary).unwrap(), b"untouched");
    assert_eq!(names_in(&server.data_directory()), ["large", "small"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_files_are_listed_whole_and_in_order() {
    let server = Sshd::start();
    for number in 0..10_000 {
        let name = format!("d{}/e{}/file {number}", number % 10, number % 70);
        put_local(&server.data_directory().join(name), b"");
    }
    let remote = remote(&server);
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    let entries = complete_entries(items).unwrap();
    let files = entries
        .iter()
        .filter(|entry| entry.kind == Kind::File)
        .count();
    assert_eq!(files, 10_000);
    let in_order = entries.windows(2).all(|pair| {
        knarr_core::path::tree_order((&pair[0].path, pair[0].kind), (&pair[1].path, pair[1].kind))
            .is_lt()
    });
    assert!(in_order, "the order of trees");
}

#[tokio::test]
async fn k5_a_directory_that_cannot_be_listed_is_not_an_empty_one() {
    let server = AsyncsshServer::builder().password("hush").start();
    let remote = asyncssh_remote(&server);
    put_local(&server.root().join("a/1"), b"");
    put_local(&server.root().join("c/2"), b"");
    // What is a directory while it is listed, and none when it is entered.
    std::fs::create_dir(server.root().join("b")).unwrap();
    let mut listing = remote
        .list(ListOptions {
            filter: Some({
                let directory = server.root().join("b");
                Arc::new(move |path: &RelPath, _kind| {
                    if path.as_bytes() == b"b" {
                        std::fs::remove_dir(&directory).unwrap();
                    }
                    true
                })
            }),
            ..ListOptions::default()
        })
        .await
        .unwrap();
    let mut items = Vec::new();
    while let Some(batch) = listing.next_batch().await {
        items.extend(batch);
    }
    let shown: Vec<String> = items
        .iter()
        .map(|item| match item {
            TreeItem::Entry(entry) => entry.path.to_string(),
            TreeItem::Incomplete(incomplete) => format!("? {:?}", incomplete.below),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(shown, ["a", "a/1", "b", "? Some(\"b\")", "c", "c/2"]);
}

#[tokio::test]
async fn names_that_are_not_utf8_survive_and_links_keep_their_targets() {
    let server = Sshd::start();
    let remote = remote(&server);
    let name = RelPath::new(*b"d\xff/\xfe\x80.txt").unwrap();
    let mut upload = remote
        .write(&name, write_options(&name, 3, Replace::Nothing))
        .await
        .unwrap();
    upload.write(Bytes::from_static(b"abc")).await.unwrap();
    finish(upload, &Bytes::from_static(b"abc")).await.unwrap();
    assert_eq!(
        std::fs::read(server.data_directory().join(name.as_os_str())).unwrap(),
        b"abc"
    );
    std::os::unix::fs::symlink("\u{1b}nowhere", server.data_directory().join("link")).unwrap();
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    let entries = complete_entries(items).unwrap();
    assert!(entries.iter().any(|entry| entry.path == name));
    let link = entries
        .iter()
        .find(|entry| entry.kind == Kind::Symlink)
        .unwrap();
    assert_eq!(
        link.link_target.as_deref(),
        Some("\u{1b}nowhere".as_bytes())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn k2_a_reader_sees_only_the_old_or_the_new_file() {
    let server = Sshd::start();
    let remote = remote(&server);
    let versions: Vec<Bytes> = (0..20).map(|seed| pattern(seed, 1_500_000)).collect();
    deliver(&remote, "file", &versions[0], Replace::Nothing)
        .await
        .unwrap();
    let path = server.data_directory().join("file");
    let done = Arc::new(AtomicBool::new(false));
    let looking = {
        let (done, versions) = (Arc::clone(&done), versions.clone());
        tokio::task::spawn_blocking(move || {
            let mut looks = 0_u64;
            while !done.load(Ordering::Acquire) {
                let seen = std::fs::read(&path).unwrap();
                assert!(
                    versions.iter().any(|version| *version == seen),
                    "{} bytes",
                    seen.len()
                );
                looks += 1;
            }
            looks
        })
    };
    for version in &versions {
        deliver(&remote, "file", version, Replace::Anything)
            .await
            .unwrap();
    }
    done.store(true, Ordering::Release);
    assert!(looking.await.unwrap() > 0);
    assert_eq!(names_in(&server.data_directory()), ["file"]);
}

#[tokio::test]
async fn r48_without_posix_rename_replacing_needs_leave() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .without_extension("posix-rename@openssh.com")
        .without_extension("fsync@openssh.com")
        .start();
    let remote = asyncssh_remote(&server);
    let (old, new) = (pattern(1, 100), pattern(2, 200));
    let there = deliver(&remote, "file", &old, Replace::Nothing)
        .await
        .unwrap();
    for replace in [Replace::Anything, Replace::Seen(there.entry.fingerprint())] {
        let error = deliver(&remote, "file", &new, replace).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
        assert!(
            error
                .to_string()
                .contains("replace_without_posix_rename: allow"),
            "{error}"
        );
    }
    assert_eq!(std::fs::read(server.root().join("file")).unwrap(), old);

    let mut options = asyncssh_options(&server, "hush");
    options.replace_without_posix_rename = ReplaceWithoutPosixRename::Allow;
    let remote = remote_with(options, &server.root());
    deliver(
        &remote,
        "file",
        &new,
        Replace::Seen(there.entry.fingerprint()),
    )
    .await
    .unwrap();
    assert_eq!(std::fs::read(server.root().join("file")).unwrap(), new);
    let renamed = remote
        .rename(
            &relative("file"),
            &relative("other"),
            RenameOptions {
                replace: Replace::Nothing,
            },
        )
        .await
        .unwrap();
    assert_eq!(renamed.path, relative("other"));
}

#[tokio::test]
async fn r48_without_any_extension_files_arrive_whole() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .without_extension("all")
        .read_limit(10_000)
        .start();
    let remote = asyncssh_remote(&server);
    for size in [0, 100, 40_000, 300_000, 2_000_000] {
        let content = pattern(4, size);
        let path = size.to_string();
        deliver(&remote, &path, &content, Replace::Nothing)
            .await
            .unwrap();
        let read = read_all(&remote, &relative(&path), ReadOptions::default())
            .await
            .unwrap();
        assert!(read == content, "{size} bytes");
    }
    assert_eq!(remote.available_bytes().await.unwrap(), None);
}

#[tokio::test]
async fn k1_a_flush_that_fails_is_no_success() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .refuse("fsync")
        .start();
    let remote = asyncssh_remote(&server);
    for size in [100, 3_000_000] {
        let error = deliver(&remote, "file", &pattern(1, size), Replace::Nothing)
            .await
            .unwrap_err();
        assert_ne!(error.kind, ErrorKind::Unreachable, "{error}");
        assert_eq!(remote.stat(&relative("file")).await.unwrap(), None);
    }
    let mut options = asyncssh_options(&server, "hush");
    options.flush = Flush::Never;
    let remote = remote_with(options, &server.root());
    deliver(&remote, "file", &pattern(1, 100), Replace::Nothing)
        .await
        .unwrap();
}

#[tokio::test]
async fn r48_a_server_that_forgets_bytes_is_noticed_before_the_commit() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .forget_writes_after(50_000)
        .start();
    let remote = asyncssh_remote(&server);
    deliver(&remote, "fits", &pattern(1, 40_000), Replace::Nothing)
        .await
        .unwrap();
    for size in [100_000, 3_000_000] {
        let error = deliver(&remote, "lost", &pattern(1, size), Replace::Nothing)
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Changed, "{error}");
        assert_eq!(remote.stat(&relative("lost")).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_from_other_failures() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .full_after(1_000_000)
        .start();
    let remote = asyncssh_remote(&server);
    deliver(&remote, "fits", &pattern(1, 400_000), Replace::Nothing)
        .await
        .unwrap();
    let error = deliver(&remote, "big", &pattern(1, 3_000_000), Replace::Nothing)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{}", told(&error));
    assert_eq!(remote.stat(&relative("big")).await.unwrap(), None);
}

#[tokio::test]
async fn a_read_only_server_refuses_in_words() {
    let server = Sshd::builder().subsystem("internal-sftp -R").start();
    let remote = remote(&server);
    put_local(&server.data_directory().join("file"), b"kept");
    let error = deliver(&remote, "new", &pattern(1, 10), Replace::Nothing)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::PermissionDenied, "{}", told(&error));
    let removal = Removal {
        path: relative("file"),
        kind: Kind::File,
        seen: None,
    };
    let error = remote.remove(&[removal]).await.remove(0).unwrap_err();
    assert_eq!(error.kind, ErrorKind::PermissionDenied, "{}", told(&error));
    assert_eq!(
        read_all(&remote, &relative("file"), ReadOptions::default())
            .await
            .unwrap(),
        b"kept"
    );
}

#[tokio::test]
async fn free_space_is_told() {
    let server = Sshd::start();
    assert!(remote(&server).available_bytes().await.unwrap().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_travel_side_by_side() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).start();
    let options = SftpOptions::new(ssh_options_through(&server, proxy.port()));
    let remote = remote_with(options, &server.data_directory());
    remote.endpoint().probe().await.unwrap();
    proxy.set_latency(Duration::from_millis(150));
    let (remote, content) = (&remote, &pattern(1, 4_096));
    let delivered = join_all((0..200).map(|number| async move {
        deliver(remote, &number.to_string(), content, Replace::Nothing).await
    }));
    // One after the other they would take three minutes.
    let delivered = tokio::time::timeout(Duration::from_secs(60), delivered)
        .await
        .unwrap();
    for outcome in delivered {
        outcome.unwrap();
    }
    assert_eq!(names_in(&server.data_directory()).len(), 200);
}

#[tokio::test]
async fn a_small_file_leaves_no_checkpoint_and_a_large_one_does() {
    let server = Sshd::start();
    let remote = remote(&server);
    for (name, size, known, updates) in [
        ("small", 1_000_000, true, 0..1),
        ("small, of unknown length", 200_000, false, 0..1),
        ("large", 20_000_000, true, 2..100),
        ("large, of unknown length", 20_000_000, false, 2..100),
    ] {
        let sink = RecordingSink::new();
        let content = pattern(5, size);
        let path = relative(name);
        let mut options = resumable(&path, size, &sink, None);
        if !known {
            options.node = NewNode::File { size: None };
        }
        let mut upload = remote.write(&path, options).await.unwrap();
        feed(&mut *upload, &content).await.unwrap();
        finish(upload, &content).await.unwrap();
        assert!(
            updates.contains(&sink.updates()),
            "{name}: {}",
            sink.updates()
        );
    }
}

#[tokio::test]
async fn two_roots_on_one_server_share_its_connections() {
    let server = Sshd::start();
    let mut options = SftpOptions::new(ssh_options(&server));
    options.connections = Some(2);
    let endpoint = SftpEndpoint::new(options);
    let roots: Vec<SftpRemote> = ["a", "b", "c"]
        .map(|name| {
            let root = server.data_directory().join(name);
            SftpRemote::new(&endpoint, bytes_of(&root))
        })
        .to_vec();
    // The roots are made, as they are missing.
    for root in &roots {
        deliver(root, "in/file", &pattern(1, 20_000_000), Replace::Nothing)
            .await
            .unwrap();
    }
    let accepted = server.log().matches("Accepted publickey").count();
    assert_eq!(accepted, 2, "connections");
}

#[tokio::test]
async fn a_directory_that_is_asked_for_is_made_with_what_it_is_to_have() {
    let server = Sshd::start();
    let remote = remote(&server);
    let path = relative("new/directory");
    let mut options = WriteOptions::new(NewNode::Directory, StagedId::derive(b"tests", &path));
    options.mode = Some(0o700);
    let upload = remote.write(&path, options).await.unwrap();
    assert!(
        names_in(&server.data_directory()).is_empty(),
        "nothing before the commit"
    );
    let committed = finish(upload, &Bytes::new()).await.unwrap();
    assert_eq!(
        (committed.entry.kind, committed.entry.mode),
        (Kind::Directory, Some(0o700))
    );
    assert_eq!(committed.evidence, Evidence::None);
}
