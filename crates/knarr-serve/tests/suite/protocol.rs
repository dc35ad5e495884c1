//! The server against the own client: every operation, and what it costs.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use bytes::Bytes;
use knarr_serve::files::{
    Execution, LocalOptions, Operation, Operations, Policy, ServeError, Uploads,
};
use knarr_sftp::client::{Durability, FileReader, FileWriter, ReadOptions, WriteOptions};
use knarr_sftp::codec::{
    ExtendedRequest, Extension, Owner, Reply, Request, ServerPacket, StatusCode, Times,
};
use knarr_sftp::{Attributes, FileType, OpenFlags};
use tokio::io::AsyncWriteExt as _;

use crate::support::{Served, make};

fn create() -> OpenFlags {
    OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE
}

fn direct() -> Served {
    Served::confined(Policy::default(), Uploads::Direct)
}

#[tokio::test]
async fn the_server_offers_every_extension_and_says_its_limits() {
    let served = direct();
    let client = served.client().await;
    for extension in Extension::ALL {
        assert!(client.has(extension), "{}", extension.name());
    }
    assert_eq!(client.limits().read_bytes, 255 * 1024);
    assert_eq!(client.limits().write_bytes, 255 * 1024);
    assert_eq!(client.limits().open_handles, Some(1000));
}

#[tokio::test]
async fn a_file_is_written_read_changed_and_closed() {
    let served = direct();
    let client = served.client().await;
    let handle = client
        .open(b"/file", create(), Attributes::with_permissions(0o640))
        .await
        .unwrap();
    handle.write(0, b"hello ").await.unwrap();
    handle.write(6, &[b'x'; 200_000]).await.unwrap();
    handle.sync().await.unwrap();
    assert_eq!(handle.stat().await.unwrap().size, Some(200_006));
    let size = Attributes {
        size: Some(8),
        ..Attributes::default()
    };
    handle.set_attributes(size).await.unwrap();
    handle.close().await.unwrap();
    let path = served.path("file");
    assert_eq!(std::fs::read(&path).unwrap(), b"hello xx");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert!(served.seen.lines().contains(&"uploaded /file 8".to_owned()));

    let handle = client
        .open(b"file", OpenFlags::READ, Attributes::default())
        .await
        .unwrap();
    let read = handle.read(6, 1000).await.unwrap();
    assert_eq!(read.as_deref(), Some(&b"xx"[..]));
    assert_eq!(handle.read(8, 1000).await.unwrap(), None);
    assert_eq!(handle.read(u64::MAX, 1000).await.unwrap(), None);
    assert!(
        handle
            .write(0, b"no")
            .await
            .unwrap_err()
            .is_permission_denied()
    );
    handle.close().await.unwrap();

    let times = Times {
        accessed_seconds: 1_000_000_000,
        modified_seconds: 4_000_000_000,
    };
    let owner = path.metadata().unwrap();
    let owner = Owner {
        user: owner.uid(),
        group: owner.gid(),
    };
    let wanted = Attributes {
        permissions: Some(0o600),
        times: Some(times),
        owner: Some(owner),
        ..Attributes::default()
    };
    client.set_attributes(b"file", wanted).await.unwrap();
    let seen = client.stat(b"file").await.unwrap();
    assert_eq!(seen.permissions, Some(0o100_600));
    assert_eq!((seen.times, seen.owner), (Some(times), Some(owner)));
}

#[tokio::test]
async fn names_are_made_listed_renamed_and_removed() {
    let served = direct();
    let client = served.client().await;
    client
        .create_directory(b"/d", Attributes::with_permissions(0o700))
        .await
        .unwrap();
    served.write("d/a", b"a");
    served.write("d/b", b"bb");
    std::fs::File::create(
        served
            .path("d")
            .join(std::ffi::OsStr::from_bytes(b"\xff\n")),
    )
    .unwrap();
    let directory = client
        .open_directory(b"d", knarr_sftp::client::DirectoryOptions::default())
        .await
        .unwrap();
    let mut names = directory.collect().await.unwrap();
    names.sort_by(|left, right| left.name.cmp(&right.name));
    let listed: Vec<&[u8]> = names.iter().map(|entry| &*entry.name).collect();
    assert_eq!(listed, [&b"a"[..], b"b", b"\xff\n"]);
    assert_eq!(names[1].attributes.size, Some(2));
    assert!(names[0].long_name.starts_with(b"-rw"));

    let error = client.rename(b"d/a", b"d/b").await.unwrap_err();
    assert_eq!(error.code(), Some(StatusCode::Failure));
    client.rename(b"d/a", b"d/c").await.unwrap();
    client.posix_rename(b"d/c", b"d/b").await.unwrap();
    assert_eq!(std::fs::read(served.path("d/b")).unwrap(), b"a");
    client.hard_link(b"d/b", b"d/h").await.unwrap();
    client.symlink(b"b", b"d/s").await.unwrap();
    assert_eq!(client.read_link(b"d/s").await.unwrap(), &b"b"[..]);
    let link = client.lstat(b"d/s").await.unwrap();
    assert_eq!(link.file_type(), Some(FileType::Symlink));
    let target = client.stat(b"d/s").await.unwrap();
    assert_eq!(target.file_type(), Some(FileType::Regular));
    let gone = client.stat(b"d/gone").await.unwrap_err();
    assert_eq!(gone.code(), Some(StatusCode::NoSuchFile));
    assert!(client.remove_directory(b"d").await.is_err());
    for name in [&b"d/b"[..], b"d/h", b"d/s", b"d/\xff\n"] {
        client.remove(name).await.unwrap();
    }
    client.remove_directory(b"d").await.unwrap();
    assert_eq!(client.real_path(b"x/../y/.").await.unwrap(), &b"/y"[..]);
    assert_eq!(client.expand_path(b"~/y").await.unwrap(), &b"/y"[..]);
    let space = client.filesystem_statistics(b"/").await.unwrap();
    assert!(space.available_bytes() > 0);
}

async fn five_thousand_reads(execution: Execution) {
    let mut served = direct();
    served.options.execution = execution;
    served.write("large", &vec![7; 300_000]);
    let (mut raw, ended) = served.raw().await;
    let open = Request::Open {
        path: Bytes::from_static(b"large"),
        flags: OpenFlags::READ,
        attributes: Attributes::default(),
    };
    let Reply::Handle(handle) = raw.ask(open).await else {
        panic!("not opened");
    };
    for id in 0..5000 {
        let request = Request::Read {
            handle: handle.clone(),
            offset: u64::from(id),
            length: 32 * 1024,
        };
        // The pipe back holds two replies: this returns only because the server goes on receiving.
        raw.request(id, request).await;
    }
    for expected in 0..5000 {
        let (id, reply) = raw.reply().await;
        assert_eq!(id, expected);
        assert!(matches!(reply, Reply::Data(data) if data.len() == 32 * 1024));
    }
    drop(raw);
    assert_eq!(ended.await.unwrap().unwrap().requests, 5001);
}

#[tokio::test]
async fn h43_five_thousand_reads_before_the_first_reply_is_taken_are_answered() {
    for execution in [Execution::OnThisTask, Execution::OnBlockingThread] {
        five_thousand_reads(execution).await;
    }
}

/// With several threads, single requests are carried out in place, and many on a thread of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h43_five_thousand_reads_are_answered_where_single_ones_are_carried_out_in_place() {
    five_thousand_reads(Execution::OnBlockingThread).await;
}

#[tokio::test]
async fn h43_a_client_that_never_takes_a_reply_is_held_where_its_requests_are_full() {
    let mut served = direct();
    served.options.limits.request_bytes = 64 * 1024;
    served.options.limits.reply_bytes = 64 * 1024;
    served.write("large", &vec![7; 300_000]);
    let (mut raw, ended) = served.raw().await;
    let open = Request::Open {
        path: Bytes::from_static(b"large"),
        flags: OpenFlags::READ,
        attributes: Attributes::default(),
    };
    let Reply::Handle(handle) = raw.ask(open).await else {
        panic!("not opened");
    };
    let read = Request::Read {
        handle,
        offset: 0,
        length: 1000,
    };
    // Far more than both queues and both directions of the pipe hold.
    let total = 20_000_u32;
    let mut sent = 0;
    while sent < total {
        let send = raw.request(sent, read.clone());
        let held = std::time::Duration::from_millis(500);
        if tokio::time::timeout(held, send).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < total, "the server took everything");
    drop(raw);
    // The client is gone in the middle of a packet, or the pipe is broken: an end, not a hang.
    ended.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn large_files_go_both_ways_through_the_pipelined_reader_and_writer() {
    let served = direct();
    let client = served.client().await;
    let content: Vec<u8> = (0..3_000_000_u32)
        .map(|n| (n * 7 + n / 251) as u8)
        .collect();
    let handle = client
        .open(b"big", create(), Attributes::default())
        .await
        .unwrap();
    let mut writer = FileWriter::new(vec![handle], &WriteOptions::default()).unwrap();
    for chunk in content.chunks(100_000) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    writer.finish(Durability::Flushed).await.unwrap();
    assert!(std::fs::read(served.path("big")).unwrap() == content);
    let handle = client
        .open(b"big", OpenFlags::READ, Attributes::default())
        .await
        .unwrap();
    let mut reader = FileReader::new(vec![handle], &ReadOptions::default()).unwrap();
    let mut read = Vec::new();
    while let Some(bytes) = reader.next().await.unwrap() {
        read.extend_from_slice(&bytes);
    }
    assert!(read == content);
}

#[tokio::test]
async fn data_is_copied_and_hashed_on_the_server() {
    let served = direct();
    served.write("source", b"0123456789");
    let client = served.client().await;
    let read = client.open(b"source", OpenFlags::READ, Attributes::default());
    let read = read.await.unwrap();
    let write = client.open(b"copy", create(), Attributes::default());
    let write = write.await.unwrap();
    read.copy_data(2, 0, &write, 1).await.unwrap();
    write.close().await.unwrap();
    assert_eq!(std::fs::read(served.path("copy")).unwrap(), b"\x0023456789");

    let (mut raw, _ended) = served.raw().await;
    let check = |algorithms: &'static [u8], offset, length, block_bytes| {
        Request::Extended(ExtendedRequest::CheckFileName {
            path: Bytes::from_static(b"source"),
            algorithms: Bytes::from_static(algorithms),
            offset,
            length,
            block_bytes,
        })
    };
    let Reply::Extended(answer) = raw.ask(check(b"crc32,md5", 0, 0, 0)).await else {
        panic!("no hash");
    };
    let expected = b"\0\0\0\x0acheck-file\0\0\0\x03md5\x78\x1e\x5e\x24\x5d\x69\xb5\x66\x97\x9b\x86\xe2\x8d\x23\xf2\xc7";
    assert_eq!(&answer[..], expected);
    make(&served.path("source"), &[1; 1000]);
    let Reply::Extended(answer) = raw.ask(check(b"sha256", 100, 600, 256)).await else {
        panic!("no hash");
    };
    assert_eq!(answer.len(), 14 + 10 + 3 * 32);
    for (algorithms, offset, block_bytes) in
        [(&b"crc32"[..], 0, 0), (b"md5", 0, 255), (b"md5", 1001, 0)]
    {
        let reply = raw.ask(check(algorithms, offset, 0, block_bytes)).await;
        assert!(matches!(reply, Reply::Status(_)), "{reply:?}");
    }
}

#[tokio::test]
async fn numbers_of_users_and_groups_get_names() {
    let served = direct();
    let (mut raw, _ended) = served.raw().await;
    let request = Request::Extended(ExtendedRequest::UsersGroupsById {
        users: Bytes::from_static(b"\0\0\0\0\xff\xff\xff\xf0"),
        groups: Bytes::from_static(b"\0\0\0\0"),
    });
    let Reply::Extended(answer) = raw.ask(request).await else {
        panic!("no names");
    };
    assert_eq!(
        &answer[..],
        b"\0\0\0\x0c\0\0\0\x04root\0\0\0\0\0\0\0\x08\0\0\0\x04root"
    );
}

#[tokio::test]
async fn requests_that_are_switched_off_are_refused_and_their_extensions_not_offered() {
    let mut served = direct();
    served.options.allowed = Operations::all()
        .without(Operation::Remove)
        .without(Operation::PosixRename);
    served.write("file", b"");
    let client = served.client().await;
    let error = client.remove(b"file").await.unwrap_err();
    assert_eq!(error.code(), Some(StatusCode::PermissionDenied));
    assert!(!client.has(Extension::PosixRename));
}

#[tokio::test]
async fn handles_are_limited_and_given_back_by_close() {
    let mut served = direct();
    served.options.limits.open_handles = 3;
    let client = served.client().await;
    let options = knarr_sftp::client::DirectoryOptions::default;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(client.open_directory(b"/", options()).await.unwrap());
    }
    let error = client.open_directory(b"/", options()).await.unwrap_err();
    assert_eq!(error.code(), Some(StatusCode::Failure));
    open.pop().unwrap().collect().await.unwrap();
    client.open_directory(b"/", options()).await.unwrap();
}

#[tokio::test]
async fn without_a_root_paths_are_those_of_the_system() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    make(&file, b"plain");
    let served = Served::new(directory, LocalOptions::default());
    let client = served.client().await;
    let path = file.as_os_str().as_bytes();
    assert_eq!(client.stat(path).await.unwrap().size, Some(5));
    let canonical = client.real_path(b".").await.unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(
        canonical,
        here.canonicalize().unwrap().as_os_str().as_bytes()
    );
    let root = client.real_path(b"~root").await.unwrap();
    assert!(!root.is_empty());
    assert!(client.filesystem_statistics(path).await.is_ok());
}

#[tokio::test]
async fn the_order_of_the_greeting_is_kept() {
    let served = direct();
    let (mut raw, ended) = served.raw().await;
    raw.stream
        .write_all(b"\0\0\0\x05\x01\0\0\0\x03")
        .await
        .unwrap();
    assert_eq!(raw.next().await, None::<ServerPacket>);
    let end = ended.await.unwrap();
    assert!(matches!(end, Err(ServeError::Order { .. })), "{end:?}");
}
