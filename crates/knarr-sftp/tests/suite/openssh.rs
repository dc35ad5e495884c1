//! Every operation against OpenSSH's own server.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use bytes::Bytes;
use futures::future::join_all;
use knarr_sftp::client::{DirectoryOptions, Error};
use knarr_sftp::codec::{Extension, Owner, Times};
use knarr_sftp::{Attributes, ClientOptions, FileType, OpenFlags, StatusCode};

use crate::server::Server;

fn create() -> OpenFlags {
    OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE
}

#[tokio::test]
async fn the_extensions_and_limits_of_openssh_are_known() {
    let mut server = Server::new();
    let client = server.connect().await;
    for extension in Extension::ALL {
        // copy-data came with OpenSSH 9.0, expand-path with 8.7: both are in Debian 12. It has no check-file.
        if matches!(
            extension,
            Extension::CheckFileHandle | Extension::CheckFileName
        ) {
            assert!(!client.has(extension), "{}", extension.name());
            continue;
        }
        assert!(client.has(extension), "{}", extension.name());
    }
    assert_eq!(client.limits().read_bytes, 255 * 1024);
    assert_eq!(client.limits().write_bytes, 255 * 1024);
    assert!(client.limits().open_handles.is_some());
    let options = ClientOptions {
        without: vec![Extension::PosixRename, Extension::Limits],
        ..ClientOptions::default()
    };
    let client = server.connect_with(options, &[]).await;
    assert!(!client.has(Extension::PosixRename));
    assert_eq!(client.limits().read_bytes, 32 * 1024);
    let error = client.posix_rename(b"a", b"b").await.unwrap_err();
    assert!(matches!(
        error,
        Error::ExtensionMissing {
            extension: Extension::PosixRename
        }
    ));
    assert!(error.is_unsupported());
}

#[tokio::test]
async fn a_file_is_written_read_changed_and_closed() {
    let mut server = Server::new();
    let client = server.connect().await;
    let path = server.path().join("file");
    let name = path.as_os_str().as_bytes();
    let handle = client
        .open(name, create(), Attributes::with_permissions(0o640))
        .await
        .unwrap();
    handle.write(0, b"hello ").await.unwrap();
    handle.write(6, &[b'x'; 20_000]).await.unwrap();
    handle.sync().await.unwrap();
    assert_eq!(handle.stat().await.unwrap().size, Some(20_006));
    handle
        .set_attributes(Attributes {
            size: Some(8),
            ..Attributes::default()
        })
        .await
        .unwrap();
    handle.close().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"hello xx");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);

    let handle = client
        .open(name, OpenFlags::READ, Attributes::default())
        .await
        .unwrap();
    assert_eq!(
        handle.read(0, 5).await.unwrap().as_deref(),
        Some(&b"hello"[..])
    );
    assert_eq!(
        handle.read(6, 1000).await.unwrap().as_deref(),
        Some(&b"xx"[..])
    );
    assert_eq!(handle.read(8, 1000).await.unwrap(), None);
    assert_eq!(
        handle
            .read(u64::MAX, 1000)
            .await
            .map_err(|error| error.code())
            .ok(),
        None
    );
    assert_eq!(handle.read(0, 0).await.unwrap().as_deref(), Some(&b""[..]));
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
    client.set_attributes(name, wanted).await.unwrap();
    let seen = client.stat(name).await.unwrap();
    assert_eq!(seen.file_type(), Some(FileType::Regular));
    assert_eq!(seen.permissions, Some(0o100_600));
    assert_eq!(seen.times, Some(times));
    assert_eq!(seen.owner, Some(owner));
    assert_eq!(seen.size, Some(8));
}

#[tokio::test]
async fn names_are_renamed_linked_and_removed() {
    let mut server = Server::new();
    let client = server.connect().await;
    let root = server.path();
    std::fs::create_dir(root.join("d")).unwrap();
    for name in ["a", "b"] {
        client
            .open(name.as_bytes(), create(), Attributes::default())
            .await
            .unwrap();
    }
    // OpenSSH refuses to rename over what is there, and with the extension does not.
    assert!(client.rename(b"a", b"b").await.unwrap_err().is_failure());
    client.posix_rename(b"a", b"b").await.unwrap();
    assert!(!root.join("a").exists());
    client.rename(b"b", b"d/c").await.unwrap();
    client.hard_link(b"d/c", b"d/hard").await.unwrap();
    assert_eq!(root.join("d/c").metadata().unwrap().nlink(), 2);
    client.symlink(b"../nowhere", b"d/soft").await.unwrap();
    assert_eq!(
        std::fs::read_link(root.join("d/soft")).unwrap(),
        OsStr::new("../nowhere")
    );
    assert_eq!(
        client.read_link(b"d/soft").await.unwrap(),
        Bytes::from_static(b"../nowhere")
    );
    let kind = client.lstat(b"d/soft").await.unwrap().file_type();
    assert_eq!(kind, Some(FileType::Symlink));
    assert!(client.stat(b"d/soft").await.unwrap_err().is_not_found());
    let times = Some(Times {
        accessed_seconds: 5,
        modified_seconds: 6,
    });
    let wanted = Attributes {
        times,
        ..Attributes::default()
    };
    client.set_link_attributes(b"d/soft", wanted).await.unwrap();
    assert_eq!(
        client.lstat(b"d/soft").await.unwrap().modified_seconds(),
        Some(6)
    );
    client
        .create_directory(b"new", Attributes::with_permissions(0o700))
        .await
        .unwrap();
    assert_eq!(
        client.stat(b"new").await.unwrap().file_type(),
        Some(FileType::Directory)
    );
    let here = std::fs::canonicalize(root).unwrap();
    assert_eq!(
        client.real_path(b".").await.unwrap(),
        here.as_os_str().as_bytes()
    );
    assert!(!client.expand_path(b"~").await.unwrap().is_empty());
    client.remove_directory(b"new").await.unwrap();
    for name in [&b"d/c"[..], b"d/hard", b"d/soft"] {
        client.remove(name).await.unwrap();
    }
    client.remove_directory(b"d").await.unwrap();
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
    let statistics = client.filesystem_statistics(b".").await.unwrap();
    assert!(statistics.available_bytes() > 0 && statistics.name_bytes >= 255);
}

#[tokio::test]
async fn refusals_of_the_server_carry_code_operation_and_path() {
    let mut server = Server::new();
    let client = server.connect().await;
    let error = client
        .open(b"no\nsuch", OpenFlags::READ, Attributes::default())
        .await
        .unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        r#"open "no\nsuch": no such file (the server says: No such file)"#
    );
    client
        .open(b"there", create(), Attributes::default())
        .await
        .unwrap();
    let exclusive = create() | OpenFlags::EXCLUSIVE;
    let error = client
        .open(b"there", exclusive, Attributes::default())
        .await
        .unwrap_err();
    assert!(error.is_failure(), "{error}");
    let error = client
        .create_directory(b"there", Attributes::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(StatusCode::Failure));
    std::fs::create_dir_all(server.path().join("full/inside")).unwrap();
    assert!(
        client
            .remove_directory(b"full")
            .await
            .unwrap_err()
            .is_failure()
    );
    assert!(
        client
            .remove_directory(b"absent")
            .await
            .unwrap_err()
            .is_not_found()
    );
    assert!(client.read_link(b"there").await.is_err());
    let error = client
        .open_directory(b"absent", DirectoryOptions::default())
        .await
        .unwrap_err();
    assert!(error.is_not_found());
    // A server that may only read refuses in its own words.
    let reader = server.connect_with(ClientOptions::default(), &["-R"]).await;
    let error = reader
        .open(b"new", create(), Attributes::default())
        .await
        .unwrap_err();
    assert!(error.is_permission_denied(), "{error}");
    // None of this has hurt the connection.
    assert!(client.stat(b"there").await.is_ok() && client.failure().is_none());
}

#[tokio::test]
async fn a_request_that_no_server_takes_is_refused_here_and_the_connection_stays() {
    let mut server = Server::new();
    let client = server.connect().await;
    let error = client.stat(&vec![b'x'; 1024 * 1024]).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unsendable {
                operation: "stat",
                ..
            }
        ),
        "{error}"
    );
    let handle = client
        .open(b"file", create(), Attributes::default())
        .await
        .unwrap();
    let error = handle.write(0, &vec![0; 300 * 1024]).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unsendable {
                operation: "write",
                ..
            }
        ),
        "{error}"
    );
    handle.write(0, b"fine").await.unwrap();
    assert_eq!(client.requests_in_flight(), 0);
}

#[tokio::test]
async fn r37_names_are_bytes_and_survive_whatever_they_are() {
    let mut server = Server::new();
    let client = server.connect().await;
    let mut names: Vec<Vec<u8>> = [
        &b"\xff\xfe\x80"[..],
        b"new\nline",
        b"-rf",
        b"quo'te\"s",
        b" ",
        b"\x1b[31m",
        "\u{e4}".as_bytes(),
        "a\u{308}".as_bytes(),
        b"*?[",
        b"...",
    ]
    .into_iter()
    .map(<[u8]>::to_vec)
    .collect();
    names.push(vec![0xff; 255]);
    names.push(vec![b'n'; 255]);
    for name in &names {
        let handle = client
            .open(name, create(), Attributes::default())
            .await
            .unwrap();
        handle.write(0, name).await.unwrap();
        handle.close().await.unwrap();
    }
    for name in &names {
        let content = std::fs::read(server.path().join(OsStr::from_bytes(name))).unwrap();
        assert_eq!(&content, name);
    }
    let directory = client
        .open_directory(b".", DirectoryOptions::default())
        .await
        .unwrap();
    let entries = directory.collect().await.unwrap();
    let mut seen: Vec<Vec<u8>> = entries
        .iter()
        .filter(|entry| entry.is_plain())
        .map(|entry| entry.name.to_vec())
        .collect();
    seen.sort();
    names.sort();
    assert_eq!(seen, names);
    let sizes = entries.iter().filter(|entry| entry.is_plain());
    assert!(sizes.clone().count() == names.len());
    for entry in sizes {
        assert_eq!(entry.attributes.size, Some(entry.name.len() as u64));
    }
    let error = client
        .open(&[b'n'; 256], create(), Attributes::default())
        .await
        .unwrap_err();
    assert!(error.code().is_some(), "{error}");
}

#[tokio::test]
async fn r52_a_directory_of_twenty_thousand_names_is_listed_once_and_completely() {
    let mut server = Server::new();
    let client = server.connect().await;
    let count = 20_000_usize;
    std::fs::create_dir(server.path().join("big")).unwrap();
    for number in 0..count {
        std::fs::File::create(server.path().join(format!("big/{number:0>200}"))).unwrap();
    }
    let mut directory = client
        .open_directory(b"big", DirectoryOptions::default())
        .await
        .unwrap();
    let mut seen = vec![false; count];
    while let Some(batch) = directory.next_batch().await.unwrap() {
        for entry in batch.iter().filter(|entry| entry.is_plain()) {
            let text = std::str::from_utf8(&entry.name).unwrap();
            let number: usize = text.parse().unwrap();
            assert!(
                !std::mem::replace(&mut seen[number], true),
                "{number} came twice"
            );
        }
    }
    assert!(seen.iter().all(|seen| *seen));
    assert!(directory.next_batch().await.unwrap().is_none());
    let options = DirectoryOptions { name_limit: 1000 };
    let error = client
        .open_directory(b"big", options)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        Error::DirectoryTooLarge { limit: 1000, .. }
    ));
}

#[tokio::test]
async fn a_thousand_small_files_are_written_side_by_side_on_one_connection() {
    let mut server = Server::new();
    let client = server.connect().await;
    let upload = |number: usize| {
        let client = client.clone();
        async move {
            let (staged, name) = (format!(".{number}.part"), format!("{number}"));
            let handle = client
                .open(staged.as_bytes(), create(), Attributes::default())
                .await?;
            handle
                .write(0, &vec![number.to_le_bytes()[0]; number])
                .await?;
            handle.close().await?;
            client
                .posix_rename(staged.as_bytes(), name.as_bytes())
                .await
        }
    };
    let outcomes = join_all((0..1000).map(|number| tokio::spawn(upload(number)))).await;
    for outcome in outcomes {
        outcome.unwrap().unwrap();
    }
    for number in 0..1000_usize {
        let content = std::fs::read(server.path().join(number.to_string())).unwrap();
        assert_eq!(content, vec![number.to_le_bytes()[0]; number]);
    }
    assert_eq!(std::fs::read_dir(server.path()).unwrap().count(), 1000);
    assert_eq!(client.requests_in_flight(), 0);
}

#[tokio::test]
async fn requests_that_are_polled_together_arrive_in_order() {
    let mut server = Server::new();
    let client = server.connect().await;
    let handle = client
        .open(b"staged", create(), Attributes::default())
        .await
        .unwrap();
    let (written, renamed, seen) = futures::join!(
        handle.write(0, b"content"),
        client.posix_rename(b"staged", b"final"),
        client.stat(b"final"),
    );
    written.unwrap();
    renamed.unwrap();
    assert_eq!(seen.unwrap().size, Some(7));
}

#[tokio::test]
async fn handles_that_are_dropped_are_given_back() {
    let mut server = Server::new();
    let client = server.connect().await;
    std::fs::File::create(server.path().join("file")).unwrap();
    // More than the server can have open at a time. A dropped future leaves its handle behind, too.
    let limit = client.limits().open_handles.unwrap();
    for number in 0..limit * 2 {
        let open = client.open(b"file", OpenFlags::READ, Attributes::default());
        if number % 2 == 0 {
            drop(open.await.unwrap());
        } else {
            tokio::select! {
                biased;
                handle = open => drop(handle.unwrap()),
                () = std::future::ready(()) => {}
            }
        }
    }
    client
        .open(b"file", OpenFlags::READ, Attributes::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn the_server_copies_between_two_open_files() {
    let mut server = Server::new();
    let client = server.connect().await;
    let other = server.connect().await;
    std::fs::File::create(server.path().join("to")).unwrap();
    let from = client
        .open(b"from", create() | OpenFlags::READ, Attributes::default())
        .await
        .unwrap();
    from.write(0, b"0123456789").await.unwrap();
    let to = client
        .open(b"to", OpenFlags::WRITE, Attributes::default())
        .await
        .unwrap();
    from.copy_data(2, 5, &to, 1).await.unwrap();
    assert_eq!(
        std::fs::read(server.path().join("to")).unwrap(),
        b"\x0023456"
    );
    let to = other
        .open(b"to", OpenFlags::WRITE, Attributes::default())
        .await
        .unwrap();
    let error = from.copy_data(0, 0, &to, 0).await.unwrap_err();
    assert!(matches!(error, Error::Misused { .. }));
}

#[tokio::test]
async fn a_killed_server_ends_every_request() {
    let mut server = Server::new();
    let client = server.connect().await;
    let handle = client
        .open(b"file", create(), Attributes::default())
        .await
        .unwrap();
    server.kill().await;
    let outcomes = join_all((0..300).map(|number| handle.write(number, b"x"))).await;
    for outcome in outcomes {
        assert!(outcome.unwrap_err().is_connection_lost());
    }
    assert!(client.failure().is_some());
    assert!(handle.close().await.unwrap_err().is_connection_lost());
}
