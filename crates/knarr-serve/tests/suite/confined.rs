//! What a confined client can reach, what it may do there, and what becomes of its uploads.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use knarr_serve::files::{Account, Permission, Permissions, Policy, Rule, Uploads};
use knarr_sftp::client::DirectoryOptions;
use knarr_sftp::{Attributes, Client, OpenFlags, StatusCode};

use crate::support::{Served, make};

const CREATE: OpenFlags = OpenFlags::WRITE;

fn fresh() -> OpenFlags {
    CREATE | OpenFlags::CREATE | OpenFlags::TRUNCATE
}

fn continued() -> OpenFlags {
    CREATE | OpenFlags::CREATE
}

async fn put(client: &Client, path: &[u8], content: &[u8]) -> Result<(), knarr_sftp::Error> {
    let handle = client.open(path, fresh(), Attributes::default()).await?;
    handle.write(0, content).await?;
    handle.close().await
}

async fn names(client: &Client, path: &[u8]) -> Vec<Vec<u8>> {
    let directory = client.open_directory(path, DirectoryOptions::default());
    let entries = directory.await.unwrap().collect().await.unwrap();
    let mut names: Vec<Vec<u8>> = entries.iter().map(|entry| entry.name.to_vec()).collect();
    names.sort();
    names
}

fn code<T>(outcome: Result<T, knarr_sftp::Error>) -> Option<StatusCode> {
    outcome.err().and_then(|error| error.code())
}

#[tokio::test]
async fn h01_no_path_leads_out_of_the_root() {
    let served = Served::confined(Policy::default(), Uploads::Direct);
    make(&served.outside("canary"), b"secret");
    let client = served.client().await;
    let outside = served.outside("canary");
    let absolute = outside.as_os_str().as_bytes();
    for path in [
        &b"../canary"[..],
        b"/../canary",
        b"x/../../canary",
        b"./../canary",
        b"..//canary",
        b"/proc/self/root/etc/passwd",
        absolute,
    ] {
        let read = client.open(path, OpenFlags::READ, Attributes::default());
        assert_eq!(
            code(read.await),
            Some(StatusCode::NoSuchFile),
            "{}",
            path.escape_ascii()
        );
        assert!(client.remove(path).await.is_err());
        assert!(client.stat(path).await.is_err());
    }
    put(&client, b"../canary", b"mine").await.unwrap();
    assert_eq!(std::fs::read(&outside).unwrap(), b"secret");
    assert_eq!(std::fs::read(served.path("canary")).unwrap(), b"mine");
    let error = client.remove_directory(b"/").await;
    assert_eq!(code(error), Some(StatusCode::PermissionDenied));
    let nul = client.stat(b"canary\0.txt").await;
    assert_eq!(code(nul), Some(StatusCode::BadMessage));
}

#[tokio::test]
async fn h04_links_do_not_lead_out_of_the_root() {
    let served = Served::confined(Policy::default(), Uploads::Direct);
    make(&served.outside("canary"), b"secret");
    served.write("dir/file", b"inside");
    symlink(served.outside("canary"), served.path("absolute")).unwrap();
    symlink("../canary", served.path("relative")).unwrap();
    symlink("../..", served.path("dir/up")).unwrap();
    symlink("dir", served.path("within")).unwrap();
    symlink("/dir/file", served.path("from_root")).unwrap();
    let client = served.client().await;
    for path in [&b"absolute"[..], b"relative", b"dir/up/canary"] {
        let read = client.open(path, OpenFlags::READ, Attributes::default());
        let read = code(read.await);
        assert!(read.is_some(), "{} was opened", path.escape_ascii());
        let mode = Attributes::with_permissions(0o777);
        assert!(client.set_attributes(path, mode).await.is_err());
    }
    // What a link means inside of the root, it means to the client.
    for path in [&b"within/file"[..], b"from_root"] {
        assert_eq!(client.stat(path).await.unwrap().size, Some(6));
    }
    for target in [&b"/etc"[..], b"../x", b"dir/../../x"] {
        let made = client.symlink(target, b"new").await;
        assert_eq!(code(made), Some(StatusCode::PermissionDenied));
    }
    assert!(client.hard_link(b"../canary", b"hard").await.is_err());
    assert!(client.rename(b"dir/file", b"/../../moved").await.is_ok());
    assert!(served.path("moved").exists());
    assert_eq!(std::fs::read(served.outside("canary")).unwrap(), b"secret");
    let mode = served.outside("canary").metadata().unwrap().permissions();
    assert_ne!(mode.mode() & 0o777, 0o777);
}

#[tokio::test]
async fn h03_a_directory_that_turns_into_a_link_and_back_never_lets_a_write_out() {
    let served = Served::confined(Policy::default(), Uploads::Staged);
    std::fs::create_dir(served.path("real")).unwrap();
    std::fs::create_dir(served.outside("out")).unwrap();
    let (real, link) = (served.path("real"), served.path("swapped"));
    symlink(served.outside("out"), &link).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let attacker = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let here = rustix::fs::CWD;
                rustix::fs::renameat_with(here, &real, here, &link, flags).unwrap();
            }
        }
    });
    let client = served.client().await;
    let mut done = 0;
    for round in 0..1000 {
        let path = format!("real/{round}");
        done += u32::from(put(&client, path.as_bytes(), b"x").await.is_ok());
    }
    stop.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
    assert!(done > 0, "no write was ever done");
    let out = std::fs::read_dir(served.outside("out")).unwrap().count();
    assert_eq!(out, 0, "something was written outside");
}

#[tokio::test]
async fn k2_an_upload_is_seen_under_its_name_only_when_it_is_closed() {
    let served = Served::confined(Policy::default(), Uploads::Staged);
    let (client, ended) = served.client_and_end().await;
    let target = served.path("file");
    let handle = client.open(b"file", fresh(), Attributes::with_permissions(0o640));
    let handle = handle.await.unwrap();
    handle.write(0, b"first half").await.unwrap();
    assert!(!target.exists());
    assert!(names(&client, b"/").await.is_empty());
    assert_eq!(client.stat(b"file").await.unwrap().size, Some(10));
    let second = client.open(b"file", fresh(), Attributes::default());
    assert_eq!(code(second.await), Some(StatusCode::Failure));
    let read = client.open(b"file", OpenFlags::READ, Attributes::default());
    assert_eq!(code(read.await), Some(StatusCode::NoSuchFile));
    handle.close().await.unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"first half");
    assert_eq!(
        target.metadata().unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert_eq!(names(&client, b"/").await, [b"file"]);

    // The old file stays until the new one is complete, and lends it its permissions.
    let handle = client.open(b"file", fresh(), Attributes::default());
    let handle = handle.await.unwrap();
    handle.write(0, b"new").await.unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"first half");
    handle.close().await.unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"new");
    assert_eq!(
        target.metadata().unwrap().permissions().mode() & 0o777,
        0o640
    );
    drop(client);
    ended.await.unwrap().unwrap();
    let lines = served.seen.lines();
    let uploads: Vec<&String> = lines
        .iter()
        .filter(|line| line.starts_with("uploaded"))
        .collect();
    assert_eq!(uploads, ["uploaded /file 10", "uploaded /file 3"]);
}

#[tokio::test]
async fn k9_an_upload_whose_connection_died_is_kept_hidden_and_continued() {
    let served = Served::confined(Policy::default(), Uploads::Staged);
    let (mut raw, ended) = served.raw().await;
    let open = knarr_sftp::codec::Request::Open {
        path: bytes::Bytes::from_static(b"file"),
        flags: fresh(),
        attributes: Attributes::default(),
    };
    let knarr_sftp::codec::Reply::Handle(handle) = raw.ask(open).await else {
        panic!("not opened");
    };
    let write = knarr_sftp::codec::Request::Write {
        handle,
        offset: 0,
        data: bytes::Bytes::from_static(b"first "),
    };
    raw.ask(write).await;
    drop(raw);
    ended.await.unwrap().unwrap();
    assert_eq!(
        served.seen.lines().last().map(String::as_str),
        Some("abandoned file 6")
    );
    assert!(!served.path("file").exists());

    let client = served.client().await;
    assert!(names(&client, b"/").await.is_empty());
    let kept = client.stat(b"file").await.unwrap().size.unwrap();
    assert_eq!(kept, 6);
    let handle = client.open(b"file", continued(), Attributes::default());
    let handle = handle.await.unwrap();
    handle.write(kept, b"second").await.unwrap();
    handle.close().await.unwrap();
    assert_eq!(std::fs::read(served.path("file")).unwrap(), b"first second");

    // One that nobody wants any more is removed by its name, and does not keep a directory.
    client
        .create_directory(b"d", Attributes::default())
        .await
        .unwrap();
    for name in [&b"d/one"[..], b"d/two"] {
        let handle = client.open(name, fresh(), Attributes::default()).await;
        std::mem::forget(handle.unwrap());
    }
    client.remove(b"d/one").await.unwrap();
    client.remove_directory(b"d").await.unwrap();
}

#[tokio::test]
async fn k2_what_an_earlier_upload_left_is_never_published_as_it_is_or_as_the_end_of_another() {
    let served = Served::confined(Policy::default(), Uploads::Staged);
    let leave = async || {
        let client = served.client().await;
        let handle = client.open(b"file", fresh(), Attributes::default());
        let handle = handle.await.unwrap();
        handle.write(0, b"left by the first").await.unwrap();
        std::mem::forget(handle);
        client.close();
        drop(client);
    };
    let open = async |client: &Client| {
        // The connection before has just ended, and its lock ends with it.
        for _ in 0..200 {
            let opened = client.open(b"file", continued(), Attributes::default());
            match opened.await {
                Ok(handle) => return handle,
                Err(_busy) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
        panic!("the earlier upload stays locked");
    };
    leave().await;
    let client = served.client().await;
    // Nothing was added.
    let untouched = open(&client).await;
    assert_eq!(code(untouched.close().await), Some(StatusCode::Failure));
    assert!(!served.path("file").exists());
    // A gap.
    let beyond = open(&client).await;
    assert!(beyond.write(100, b"far").await.is_err());
    assert_eq!(code(beyond.close().await), Some(StatusCode::Failure));
    assert!(!served.path("file").exists());
    // From the beginning: nothing of the first is behind it.
    let anew = open(&client).await;
    anew.write(0, b"short").await.unwrap();
    anew.close().await.unwrap();
    assert_eq!(std::fs::read(served.path("file")).unwrap(), b"short");
    let link = client.symlink(b".knarr-upload-x", b"peek").await;
    assert!(link.is_err(), "no link leads to what is hidden");
}

#[tokio::test]
async fn k2_an_upload_that_is_shorter_than_declared_or_was_cut_does_not_appear() {
    let served = Served::confined(Policy::default(), Uploads::Staged);
    let client = served.client().await;
    let declared = Attributes {
        size: Some(10),
        ..Attributes::default()
    };
    let handle = client.open(b"file", fresh(), declared).await.unwrap();
    handle.write(0, b"short").await.unwrap();
    assert_eq!(code(handle.close().await), Some(StatusCode::Failure));
    assert!(!served.path("file").exists());
    let exclusive = CREATE | OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
    let handle = client.open(b"other", exclusive, Attributes::default());
    let handle = handle.await.unwrap();
    served.write("other", b"came meanwhile");
    assert_eq!(code(handle.close().await), Some(StatusCode::Failure));
    let kept = std::fs::read(served.path("other")).unwrap();
    assert_eq!(kept, b"came meanwhile");
}

#[tokio::test]
async fn another_knarr_stages_by_itself_and_renames() {
    let served = Served::confined(Policy::default(), Uploads::Staged);
    let client = served.client().await;
    let staged = b".knarr-0123456789abcdef.part";
    put(&client, staged, b"content").await.unwrap();
    client.posix_rename(staged, b"file").await.unwrap();
    assert_eq!(std::fs::read(served.path("file")).unwrap(), b"content");
    // The server's own names are out of reach.
    let own = std::fs::read_dir(served.path("")).unwrap().count();
    assert_eq!(own, 1);
    let hidden = client.stat(b".knarr-upload-00.part").await;
    assert_eq!(code(hidden), Some(StatusCode::NoSuchFile));
}

#[tokio::test]
async fn a_drop_box_takes_and_shows_nothing() {
    for uploads in [Uploads::Direct, Uploads::Staged] {
        let served = Served::confined(Policy::new(Permissions::DROP_BOX), uploads);
        served.write("there", b"old");
        let client = served.client().await;
        put(&client, b"new", b"content").await.unwrap();
        assert_eq!(std::fs::read(served.path("new")).unwrap(), b"content");
        let denied = Some(StatusCode::PermissionDenied);
        let listing = client.open_directory(b"/", DirectoryOptions::default());
        assert_eq!(code(listing.await), denied);
        let reading = client.open(b"there", OpenFlags::READ, Attributes::default());
        assert_eq!(code(reading.await), denied);
        assert_eq!(code(put(&client, b"there", b"mine").await), denied);
        assert_eq!(code(client.remove(b"there").await), denied);
        assert_eq!(code(client.rename(b"new", b"other").await), denied);
        let made = client.create_directory(b"d", Attributes::default());
        assert_eq!(code(made.await), denied);
        assert_eq!(std::fs::read(served.path("there")).unwrap(), b"old");
    }
}

#[tokio::test]
async fn read_only_changes_nothing() {
    let served = Served::confined(Policy::new(Permissions::READ_ONLY), Uploads::Direct);
    served.write("file", b"old");
    let client = served.client().await;
    let denied = Some(StatusCode::PermissionDenied);
    assert_eq!(code(put(&client, b"file", b"x").await), denied);
    assert_eq!(code(put(&client, b"new", b"x").await), denied);
    let touched = client.set_attributes(b"file", Attributes::with_permissions(0));
    assert_eq!(code(touched.await), denied);
    let reading = client.open(b"file", OpenFlags::READ, Attributes::default());
    let reading = reading.await.unwrap();
    let touched = reading.set_attributes(Attributes::with_permissions(0));
    assert_eq!(code(touched.await), denied);
    assert_eq!(names(&client, b"/").await, [b"file"]);
}

#[tokio::test]
async fn rules_hold_for_a_directory_and_a_link_does_not_lead_around_them() {
    let rule = Rule {
        prefix: b"private".to_vec(),
        permissions: Permissions::NONE,
    };
    let served = Served::confined(Policy::default().with_rule(rule), Uploads::Direct);
    served.write("private/file", b"secret");
    symlink("private", served.path("around")).unwrap();
    let client = served.client().await;
    for path in [&b"private/file"[..], b"x/../private/file", b"around/file"] {
        let read = client.open(path, OpenFlags::READ, Attributes::default());
        assert!(read.await.is_err(), "{}", path.escape_ascii());
        assert!(client.stat(path).await.is_err());
    }
    assert!(client.rename(b"private", b"public").await.is_err());
    let permission = Permission::List;
    assert!(Permissions::NONE.with(permission).has(permission));
}

#[tokio::test]
async fn h43_the_quota_is_kept_by_every_way_to_write() {
    for uploads in [Uploads::Direct, Uploads::Staged] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        make(&root.join("old"), &[0; 400]);
        let account = Account::measure(&root, Some(1000), Some(3)).unwrap();
        let account = Arc::new(account);
        let options = knarr_serve::files::LocalOptions {
            reach: knarr_serve::files::Reach::Confined { root },
            policy: Policy::default().with_account(Arc::clone(&account)),
            uploads,
            ..knarr_serve::files::LocalOptions::default()
        };
        let served = Served::new(directory, options);
        let client = served.client().await;
        assert_eq!((account.used_bytes(), account.used_files()), (400, 1));
        put(&client, b"fits", &[1; 500]).await.unwrap();
        assert_eq!(account.used_bytes(), 900);
        assert_eq!(
            code(put(&client, b"large", &[1; 200]).await),
            Some(StatusCode::Failure)
        );
        assert!(
            served
                .path("large")
                .metadata()
                .map_or(0, |large| large.len())
                == 0
        );
        let sparse = client.open(b"fits", OpenFlags::WRITE, Attributes::default());
        let sparse = sparse.await.unwrap();
        assert_eq!(
            code(sparse.write(1 << 40, b"x").await),
            Some(StatusCode::Failure)
        );
        let size = Attributes {
            size: Some(1 << 62),
            ..Attributes::default()
        };
        assert_eq!(
            code(sparse.set_attributes(size).await),
            Some(StatusCode::Failure)
        );
        sparse.close().await.unwrap();
        client.remove(b"large").await.unwrap();
        put(&client, b"old", &[1; 100]).await.unwrap();
        assert_eq!((account.used_bytes(), account.used_files()), (600, 2));
        client.remove(b"fits").await.unwrap();
        assert_eq!((account.used_bytes(), account.used_files()), (100, 1));
        for name in [&b"a"[..], b"b"] {
            put(&client, name, b"").await.unwrap();
        }
        assert_eq!(
            code(put(&client, b"c", b"").await),
            Some(StatusCode::Failure)
        );
    }
}
