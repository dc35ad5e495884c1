//! Servers that break the protocol: always a typed error, never a hang, a panic or a growing queue.

use std::future::Future;
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use futures::future::join_all;
use knarr_sftp::client::{ConnectionError, DirectoryOptions, Error, FileReader, ReadOptions};
use knarr_sftp::codec::{NameEntry, Reply, Request, ServerPacket, Status, StatusCode};
use knarr_sftp::{Attributes, ClientOptions, OpenFlags};
use proptest::prelude::{ProptestConfig, any, prop};
use proptest::proptest;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::files::Random;
use crate::script::{Script, attributes, encoded, handle, status};

/// Nothing here takes longer than a few milliseconds; what takes this long hangs.
const HANG: Duration = Duration::from_secs(30);

pub(crate) async fn no_hang<T>(future: impl Future<Output = T>) -> T {
    timeout(HANG, future).await.expect("the client hangs")
}

fn packet(id: u32, reply: Reply) -> Bytes {
    encoded(&ServerPacket::Reply { id, reply })
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(u32::try_from(body.len()).unwrap());
    out.extend_from_slice(body);
    out
}

fn with_id(kind: u8, id: u32, fields: &[u8]) -> Vec<u8> {
    framed(&[&[kind][..], &id.to_be_bytes(), fields].concat())
}

pub(crate) fn entry(name: &'static [u8]) -> NameEntry {
    NameEntry {
        name: Bytes::from_static(name),
        long_name: Bytes::new(),
        attributes: Attributes::default(),
    }
}

/// The error of a STAT that is answered with what `answer` makes of its id.
async fn stat_against(answer: impl FnOnce(u32) -> Vec<u8> + Send + 'static) -> Error {
    let client = Script::serve(ClientOptions::default(), |mut script| async move {
        if let Some((id, _)) = script.request().await {
            script.raw(&answer(id)).await;
        }
        script.wait().await;
    })
    .await;
    let error = no_hang(async {
        // Some answers are right, and what follows is not: then the next request gets the error.
        match client.stat(b"file").await {
            Ok(_) => client
                .stat(b"again")
                .await
                .expect_err("the violation was not noticed"),
            Err(error) => error,
        }
    })
    .await;
    assert!(
        client
            .failure()
            .is_some_and(|reason| reason.is_protocol_violation()),
        "{error}"
    );
    assert!(
        no_hang(client.stat(b"later"))
            .await
            .unwrap_err()
            .is_protocol_violation()
    );
    error
}

#[tokio::test]
async fn h43_replies_that_break_the_protocol_end_the_connection_with_the_reason() {
    let length = |length: u32| move |_| length.to_be_bytes().to_vec();
    stat_against(length(0)).await;
    stat_against(length(u32::MAX)).await;
    stat_against(length(300 * 1024)).await;
    // Unknown, repeated and impossible ids.
    stat_against(|id| packet(id ^ 1, attributes(1)).to_vec()).await;
    stat_against(|id| packet(id ^ 0x1_0000, attributes(1)).to_vec()).await;
    stat_against(|_| packet(u32::MAX, attributes(1)).to_vec()).await;
    stat_against(|id| [packet(id, attributes(1)), packet(id, attributes(1))].concat()).await;
    // Replies to something else.
    stat_against(|id| packet(id, handle()).to_vec()).await;
    stat_against(|id| packet(id, status(StatusCode::Ok)).to_vec()).await;
    stat_against(|id| packet(id, Reply::Names(vec![entry(b"x")])).to_vec()).await;
    stat_against(|id| packet(id, Reply::Data(Bytes::from_static(b"x"))).to_vec()).await;
    stat_against(|id| packet(id, Reply::Data(vec![7; 200_000].into())).to_vec()).await;
    stat_against(|id| packet(id, Reply::Extended(Bytes::new())).to_vec()).await;
    stat_against(|_| {
        encoded(&ServerPacket::Version {
            version: 3,
            extensions: Vec::new(),
        })
        .to_vec()
    })
    .await;
    // What cannot be decoded: no id, an unknown type, fields that are not there.
    stat_against(|_| framed(&[105])).await;
    stat_against(|id| with_id(250, id, &[])).await;
    stat_against(|id| with_id(3, id, &[0; 64])).await;
    stat_against(|id| with_id(105, id, &[0, 0, 0, 1, 0, 0])).await;
    stat_against(|id| with_id(101, id, &[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff])).await;
    stat_against(|id| with_id(104, id, &[0xff, 0xff, 0xff, 0xff])).await;
    stat_against(|id| with_id(102, id, &framed(&[b'h'; 257]))).await;
    stat_against(|id| with_id(103, id, &[0xff; 100_000])).await;
}

#[tokio::test]
async fn h43_a_read_that_returns_more_than_asked_or_nothing_ends_the_connection() {
    for length in [0_usize, 101, 100_000] {
        let client = Script::serve(ClientOptions::default(), move |mut script| async move {
            while let Some((id, request)) = script.request().await {
                match request {
                    Request::Open { .. } => script.reply(id, handle()).await,
                    _ => script.reply(id, Reply::Data(vec![1; length].into())).await,
                }
            }
        })
        .await;
        let file = client
            .open(b"file", OpenFlags::READ, Attributes::default())
            .await
            .unwrap();
        let error = no_hang(file.read(0, 100)).await.unwrap_err();
        let Error::ConnectionLost { reason } = &error else {
            panic!("{error}")
        };
        let expected = matches!(
            **reason,
            ConnectionError::WrongLength { asked_bytes: 100, received_bytes } if received_bytes == length
        );
        assert!(expected, "{reason}");
    }
}

#[tokio::test]
async fn h02_a_resolved_path_that_is_none_or_many_ends_the_connection() {
    for names in [Vec::new(), vec![entry(b"/a"), entry(b"/b")]] {
        let client = Script::serve(ClientOptions::default(), move |mut script| async move {
            if let Some((id, _)) = script.request().await {
                script.reply(id, Reply::Names(names)).await;
            }
            script.wait().await;
        })
        .await;
        assert!(
            no_hang(client.real_path(b"."))
                .await
                .unwrap_err()
                .is_protocol_violation()
        );
        assert!(client.failure().is_some());
    }
}

#[tokio::test]
async fn other_versions_and_broken_greetings_are_refused() {
    let version = |version| {
        encoded(&ServerPacket::Version {
            version,
            extensions: Vec::new(),
        })
        .to_vec()
    };
    let greetings: Vec<(Vec<u8>, bool)> = vec![
        (version(2), true),
        (version(4), true),
        (version(0), true),
        (packet(1, attributes(1)).to_vec(), true),
        (
            packet(1, Reply::Data(vec![0; 100_000].into())).to_vec(),
            true,
        ),
        (framed(&[2, 0, 0, 0]), true),
        (framed(&[2, 0, 0, 0, 3, 0, 0, 0, 9, b'x']), true),
        (framed(&[2, 0, 0, 0, 3, 0, 0, 0, 1, b'x']), true),
        (framed(&[2, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff]), true),
        (b"This account is not available.\n".to_vec(), true),
        (vec![0, 0, 0, 0], true),
        (Vec::new(), false),
        (vec![0, 0, 0, 5, 2], false),
    ];
    for (greeting, violation) in greetings {
        let shown = greeting.escape_ascii().to_string();
        let outcome = no_hang(Script::serve_raw(
            ClientOptions::default(),
            usize::MAX,
            |mut script| async move {
                script.packet().await;
                script.raw(&greeting).await;
            },
        ))
        .await;
        let error = outcome.expect_err(&shown);
        assert_eq!(error.is_protocol_violation(), violation, "{shown}: {error}");
        assert!(error.is_connection_lost());
    }
}

#[tokio::test]
async fn r48_odd_limits_and_unknown_extensions_do_no_harm() {
    let offers = [
        ("limits@openssh.com", "1"),
        ("\u{0}", ""),
        ("limits@openssh.com", "9"),
    ];
    for payload in [vec![0xff_u8; 32], vec![0; 32], vec![0; 31]] {
        let broken = payload.len() < 32;
        let outcome = no_hang(Script::serve_raw(
            ClientOptions::default(),
            usize::MAX,
            move |mut script| async move {
                script.accept(&offers).await;
                if let Some((id, _)) = script.request().await {
                    script.reply(id, Reply::Extended(payload.into())).await;
                }
                script.wait().await;
            },
        ))
        .await;
        match outcome {
            Ok(client) => {
                assert!(!broken);
                assert!((1..=255 * 1024).contains(&client.limits().read_bytes));
            }
            Err(error) => assert!(broken && error.is_protocol_violation(), "{error}"),
        }
    }
}

#[tokio::test]
async fn h02_a_listing_without_end_is_cut_off_and_never_held() {
    let client = Script::serve(ClientOptions::default(), |mut script| async move {
        while let Some((id, request)) = script.request().await {
            let reply = match request {
                Request::Opendir { .. } => handle(),
                Request::Readdir { .. } => Reply::Names(
                    [&b".."[..], b"/etc/passwd", b"", b"a\0b"]
                        .map(entry)
                        .to_vec(),
                ),
                _ => status(StatusCode::Ok),
            };
            script.reply(id, reply).await;
        }
    })
    .await;
    let options = DirectoryOptions { name_limit: 10_000 };
    let mut directory = client.open_directory(b".", options).await.unwrap();
    let mut names = 0;
    let error = loop {
        match no_hang(directory.next_batch()).await {
            Ok(batch) => {
                let batch = batch.expect("the listing has no end");
                assert!(batch.iter().all(|entry| !entry.is_plain()));
                names += batch.len();
                assert!(client.requests_in_flight() <= 8);
            }
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, Error::DirectoryTooLarge { limit: 10_000, .. }),
        "{error}"
    );
    assert_eq!(names, 10_000);
    // A listing that goes on with nothing ends.
    let client = Script::serve(ClientOptions::default(), |mut script| async move {
        while let Some((id, request)) = script.request().await {
            let reply = match request {
                Request::Opendir { .. } => handle(),
                Request::Readdir { .. } => Reply::Names(Vec::new()),
                _ => status(StatusCode::Ok),
            };
            script.reply(id, reply).await;
        }
    })
    .await;
    let directory = client
        .open_directory(b".", DirectoryOptions::default())
        .await
        .unwrap();
    assert!(no_hang(directory.collect()).await.unwrap().is_empty());
}

#[tokio::test]
async fn h06_what_a_server_says_is_shortened_and_cannot_write_to_a_terminal() {
    let client = Script::serve(ClientOptions::default(), |mut script| async move {
        if let Some((id, _)) = script.request().await {
            let message = [&b"\x1b[2J\r\n\xff"[..], &[b'x'; 200_000]].concat().into();
            let code = StatusCode::Other(77);
            script
                .reply(
                    id,
                    Reply::Status(Status {
                        code,
                        message,
                        language: Bytes::new(),
                    }),
                )
                .await;
        }
        script.wait().await;
    })
    .await;
    let error = no_hang(client.remove(b"\x1b[2J")).await.unwrap_err();
    let shown = error.to_string();
    assert!(
        shown.len() < 3000 && !shown.contains(char::is_control),
        "{shown}"
    );
    assert!(shown.contains("status 77"), "{shown}");
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up() {
    let options = ClientOptions {
        idle_limit: Duration::from_millis(200),
        ..ClientOptions::default()
    };
    let never = Script::serve_raw(options.clone(), usize::MAX, |mut script| async move {
        script.wait().await;
    });
    let error = no_hang(never).await.expect_err("nobody answered");
    assert!(error.is_connection_lost() && !error.is_protocol_violation());

    let client = Script::serve(options, |mut script| async move {
        script.wait().await;
    })
    .await;
    // Silence counts only while somebody waits.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(client.failure().is_none());
    let outcomes = no_hang(join_all((0..5).map(|_| client.stat(b"file")))).await;
    for outcome in outcomes {
        let Err(Error::ConnectionLost { reason }) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(
            matches!(*reason, ConnectionError::Silent { waiting: 5, .. }),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn requests_and_bytes_in_flight_are_limited() {
    let options = ClientOptions {
        request_limit: 4,
        byte_limit: 64 * 1024,
        ..ClientOptions::default()
    };
    // The script says how many requests it holds unanswered whenever no more come.
    let (report, mut held) = mpsc::channel(100);
    let client = Script::serve(options, |mut script| async move {
        let mut waiting = Vec::new();
        loop {
            match timeout(Duration::from_millis(100), script.request()).await {
                Ok(Some((id, Request::Open { .. }))) => script.reply(id, handle()).await,
                Ok(Some(request)) => waiting.push(request),
                Ok(None) => return,
                Err(_) => {
                    report.send(waiting.len()).await.ok();
                    for (id, request) in waiting.drain(..) {
                        let reply = match request {
                            Request::Read { length, .. } => {
                                let length = usize::try_from(length).unwrap();
                                Reply::Data(vec![1; length].into())
                            }
                            Request::Stat { .. } => attributes(1),
                            _ => status(StatusCode::Ok),
                        };
                        script.reply(id, reply).await;
                    }
                }
            }
        }
    })
    .await;
    let file = client
        .open(b"file", OpenFlags::READ, Attributes::default())
        .await
        .unwrap();
    for outcome in no_hang(join_all((0..10).map(|_| client.stat(b"file")))).await {
        outcome.unwrap();
    }
    for outcome in no_hang(join_all((0..6).map(|_| file.read(0, 32 * 1024)))).await {
        assert_eq!(outcome.unwrap().unwrap().len(), 32 * 1024);
    }
    held.close();
    let mut most = 0;
    let mut reads = Vec::new();
    while let Some(count) = held.recv().await {
        assert!(count <= 4, "{count} requests in flight");
        most = most.max(count);
        reads.push(count);
    }
    assert_eq!(most, 4);
    // Six READs of 32 KiB in 64 KiB: never three at once.
    assert!(
        reads
            .iter()
            .rev()
            .filter(|count| **count > 0)
            .take(3)
            .all(|count| *count <= 2)
    );
}

#[tokio::test]
async fn a_reader_that_is_not_read_does_not_stop_the_others() {
    let content = Random(12).bytes(4_000_000);
    let served = content.clone();
    let client = Script::serve(ClientOptions::default(), |script| async move {
        let mut script = script;
        while let Some((id, request)) = script.request().await {
            let reply = match request {
                Request::Open { .. } => handle(),
                Request::Read { offset, length, .. } => {
                    let start = usize::try_from(offset).unwrap();
                    let end = start + usize::try_from(length).unwrap();
                    Reply::Data(served.slice(start..end))
                }
                Request::Stat { .. } => attributes(1),
                _ => status(StatusCode::Ok),
            };
            script.reply(id, reply).await;
        }
    })
    .await;
    let file = client
        .open(b"file", OpenFlags::READ, Attributes::default())
        .await
        .unwrap();
    let options = ReadOptions {
        end: Some(content.len() as u64),
        ..ReadOptions::default()
    };
    let mut reader = FileReader::new(vec![file], &options).unwrap();
    let first = no_hang(reader.next()).await.unwrap().unwrap();
    for _ in 0..100 {
        no_hang(client.stat(b"file")).await.unwrap();
    }
    let mut read = first.len();
    while let Some(piece) = no_hang(reader.next()).await.unwrap() {
        read += piece.len();
    }
    assert_eq!(read, content.len());
}

#[tokio::test]
async fn a_handle_that_arrives_after_its_caller_left_is_closed() {
    let (report, mut closed) = mpsc::channel(1);
    let (go, mut wait) = mpsc::channel::<()>(1);
    let client = Script::serve(ClientOptions::default(), |mut script| async move {
        while let Some((id, request)) = script.request().await {
            match request {
                Request::Open { .. } => {
                    wait.recv().await;
                    script.reply(id, handle()).await;
                }
                Request::Close { handle } => {
                    script.reply(id, status(StatusCode::Ok)).await;
                    report.send(handle).await.ok();
                }
                _ => script.reply(id, attributes(1)).await,
            }
        }
    })
    .await;
    let opening = client.open(b"file", OpenFlags::READ, Attributes::default());
    assert!(timeout(Duration::from_millis(50), opening).await.is_err());
    go.send(()).await.unwrap();
    let handle = no_hang(closed.recv()).await.unwrap();
    assert_eq!(handle, Bytes::from_static(b"handle"));
    no_hang(client.stat(b"file")).await.unwrap();
    assert_eq!(client.requests_in_flight(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn h43_arbitrary_bytes_from_a_server_never_hang_or_panic(
        first in prop::collection::vec(any::<u8>(), 0..100),
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..100), 0..5),
        greeted in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(no_hang(async {
            let outcome = Script::serve_raw(
                ClientOptions::default(),
                usize::MAX,
                move |mut script| async move {
                    if greeted {
                        script.accept(&[]).await;
                        script.packet().await;
                    }
                    for body in bodies {
                        script.raw(&framed(&body)).await;
                    }
                    script.raw(&first).await;
                },
            )
            .await;
            if let Ok(client) = outcome {
                let file = client.open(b"file", OpenFlags::READ, Attributes::default()).await;
                assert!(file.is_err(), "no reply can have had the right id");
                assert!(client.failure().is_some());
            }
        }));
    }
}
