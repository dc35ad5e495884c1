//! Clients that break the rules: never a panic, bounded memory, an end with a reason.

use std::path::PathBuf;

use bytes::{BufMut as _, Bytes, BytesMut};
use knarr_serve::files::{Policy, ServeError, Uploads};
use knarr_sftp::codec::{Reply, Request, ServerPacket, StatusCode};
use knarr_sftp::{Attributes, OpenFlags};
use proptest::prelude::{any, prop};
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};

use crate::support::{Raw, Served};

fn served() -> Served {
    Served::confined(Policy::default(), Uploads::Staged)
}

fn code(reply: &Reply) -> Option<StatusCode> {
    match reply {
        Reply::Status(status) => Some(status.code),
        _ => None,
    }
}

async fn open(raw: &mut Raw, path: &'static [u8], flags: OpenFlags) -> Bytes {
    let request = Request::Open {
        path: Bytes::from_static(path),
        flags,
        attributes: Attributes::default(),
    };
    match raw.ask(request).await {
        Reply::Handle(handle) => handle,
        other => panic!("not opened: {other:?}"),
    }
}

#[tokio::test]
async fn h43_a_packet_of_an_impossible_length_ends_the_connection() {
    for length in [0_u32, 300_000, 0x7fff_ffff, u32::MAX] {
        let (mut raw, ended) = served().raw().await;
        raw.stream.write_all(&length.to_be_bytes()).await.unwrap();
        assert_eq!(raw.next().await, None);
        let end = ended.await.unwrap();
        assert!(
            matches!(end, Err(ServeError::PacketLength { bytes, .. }) if bytes == length),
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn h43_what_cannot_be_read_is_refused_and_the_connection_goes_on() {
    let (mut raw, _ended) = served().raw().await;
    // An unknown type, a string beyond the packet, a handle of 300 bytes, an attribute count of 4 billion.
    let mut long_handle = BytesMut::new();
    long_handle.put_slice(&[4, 0, 0, 0, 9]);
    long_handle.put_u32(300);
    long_handle.put_slice(&[b'h'; 300]);
    for (body, expected) in [
        (&b"\x63\0\0\0\x09"[..], StatusCode::OperationUnsupported),
        (b"\x11\0\0\0\x09\xff\xff\xff\xff/", StatusCode::BadMessage),
        (&long_handle, StatusCode::BadMessage),
        (
            b"\x0e\0\0\0\x09\0\0\0\x01d\x80\0\0\0\xff\xff\xff\xff",
            StatusCode::BadMessage,
        ),
        (
            b"\xc8\0\0\0\x09\0\0\0\x07unknown",
            StatusCode::OperationUnsupported,
        ),
        // A reply of a server.
        (b"\x65\0\0\0\x09\0\0\0\0", StatusCode::OperationUnsupported),
    ] {
        let length = u32::try_from(body.len()).unwrap();
        raw.stream.write_all(&length.to_be_bytes()).await.unwrap();
        raw.stream.write_all(body).await.unwrap();
        let (id, reply) = raw.reply().await;
        assert_eq!((id, code(&reply)), (9, Some(expected)));
    }
    let reply = raw.ask(Request::Realpath { path: Bytes::new() }).await;
    assert!(matches!(reply, Reply::Names(_)));
}

#[tokio::test]
async fn h43_handles_cannot_be_forged_reused_or_taken_from_another_session() {
    let served = served();
    served.write("file", b"content");
    let (mut raw, _ended) = served.raw().await;
    let (mut other, _other_ended) = served.raw().await;
    let handle = open(&mut raw, b"file", OpenFlags::READ).await;
    let read = |handle: &Bytes| Request::Read {
        handle: handle.clone(),
        offset: 0,
        length: 10,
    };
    let failure = Some(StatusCode::Failure);
    assert_eq!(code(&other.ask(read(&handle)).await), failure);
    for forged in [&b""[..], b"\0", b"\0\0\0\0\0\0\0\x09", &[0xff; 256]] {
        let forged = Bytes::copy_from_slice(forged);
        assert_eq!(code(&raw.ask(read(&forged)).await), failure);
    }
    let close = || Request::Close {
        handle: handle.clone(),
    };
    assert_eq!(code(&raw.ask(close()).await), Some(StatusCode::Ok));
    assert_eq!(code(&raw.ask(close()).await), failure);
    assert_eq!(code(&raw.ask(read(&handle)).await), failure);
    let directory = Request::Opendir {
        path: Bytes::from_static(b"/"),
    };
    let Reply::Handle(directory) = raw.ask(directory).await else {
        panic!("not opened");
    };
    assert_ne!(directory, handle);
    assert_eq!(code(&raw.ask(read(&directory)).await), failure);
    let next = || Request::Readdir {
        handle: directory.clone(),
    };
    assert!(matches!(raw.ask(next()).await, Reply::Names(_)));
    assert_eq!(code(&raw.ask(next()).await), Some(StatusCode::Eof));
    let request = Request::Close {
        handle: directory.clone(),
    };
    raw.ask(request).await;
    assert_eq!(code(&raw.ask(next()).await), failure);
}

#[tokio::test]
async fn h43_absurd_offsets_lengths_and_sizes_are_answered() {
    let served = served();
    served.write("file", &[5; 400_000]);
    let (mut raw, _ended) = served.raw().await;
    let handle = open(&mut raw, b"file", OpenFlags::READ | OpenFlags::WRITE).await;
    let read = |offset, length| Request::Read {
        handle: handle.clone(),
        offset,
        length,
    };
    let whole = raw.ask(read(0, u32::MAX)).await;
    assert!(matches!(whole, Reply::Data(data) if data.len() == 255 * 1024));
    for offset in [u64::MAX, 1 << 63, i64::MAX as u64] {
        let reply = raw.ask(read(offset, 100)).await;
        assert!(matches!(reply, Reply::Status(_)), "{reply:?}");
        let write = Request::Write {
            handle: handle.clone(),
            offset,
            data: Bytes::from_static(b"x"),
        };
        assert_ne!(code(&raw.ask(write).await), Some(StatusCode::Ok));
    }
    for size in [1 << 63, u64::MAX] {
        let attributes = Attributes {
            size: Some(size),
            ..Attributes::default()
        };
        let request = Request::Fsetstat {
            handle: handle.clone(),
            attributes,
        };
        assert_ne!(code(&raw.ask(request).await), Some(StatusCode::Ok));
    }
    let long = Request::Stat {
        path: Bytes::from(vec![b'a'; 250_000]),
    };
    assert_ne!(code(&raw.ask(long).await), None);
    assert_eq!(served.path("file").metadata().unwrap().len(), 400_000);
}

#[tokio::test]
async fn h43_a_request_id_that_is_used_twice_is_answered_twice() {
    let (mut raw, _ended) = served().raw().await;
    for _ in 0..2 {
        raw.request(5, Request::Realpath { path: Bytes::new() })
            .await;
    }
    for _ in 0..2 {
        assert_eq!(raw.reply().await.0, 5);
    }
}

#[tokio::test]
async fn h43_a_million_opens_stop_at_the_limit() {
    let served = served();
    served.write("file", b"");
    let (mut raw, _ended) = served.raw().await;
    let mut opened = 0;
    for _ in 0..1500 {
        let request = Request::Open {
            path: Bytes::from_static(b"file"),
            flags: OpenFlags::READ,
            attributes: Attributes::default(),
        };
        match raw.ask(request).await {
            Reply::Handle(_) => opened += 1,
            reply => assert_eq!(code(&reply), Some(StatusCode::Failure)),
        }
    }
    assert_eq!(opened, 1000);
}

#[tokio::test]
async fn a_client_that_goes_away_inside_a_packet_is_reported() {
    let (mut raw, ended) = served().raw().await;
    raw.stream.write_all(b"\0\0\0\x20\x11").await.unwrap();
    raw.stream.shutdown().await.unwrap();
    assert_eq!(raw.next().await, None::<ServerPacket>);
    let end = ended.await.unwrap();
    assert!(
        matches!(end, Err(ServeError::CutOff { bytes: 5 })),
        "{end:?}"
    );
}

/// Sends bytes as they are and reads until the server ends; what the server says is packets.
async fn play(served: &Served, bytes: &[u8]) -> Result<(), ServeError> {
    let (stream, ended) = served.stream();
    let (mut reader, mut writer) = split(stream);
    let mut said = Vec::new();
    let reading = reader.read_to_end(&mut said);
    let writing = async {
        // The server may end before it has read all.
        writer.write_all(bytes).await.ok();
        writer.shutdown().await.ok();
    };
    let (read, ()) = tokio::join!(reading, writing);
    read.unwrap();
    let mut said = Bytes::from(said);
    while !said.is_empty() {
        let length = usize::try_from(bytes::Buf::get_u32(&mut said)).unwrap();
        ServerPacket::decode(said.split_to(length)).expect("the server encodes well");
    }
    ended.await.unwrap().map(drop)
}

#[tokio::test]
async fn h43_every_packet_of_the_corpus_is_answered_or_ends_the_connection() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/sftp_codec");
    let served = served();
    let mut all = BytesMut::from(&b"\0\0\0\x05\x01\0\0\0\x03"[..]);
    for entry in std::fs::read_dir(corpus).unwrap() {
        let body = std::fs::read(entry.unwrap().path()).unwrap();
        let mut bytes = BytesMut::from(&b"\0\0\0\x05\x01\0\0\0\x03"[..]);
        bytes.put_u32(u32::try_from(body.len()).unwrap());
        bytes.put_slice(&body);
        play(&served, &bytes).await.ok();
        if body.len() >= 5 && body[0] != 1 {
            all.put_u32(u32::try_from(body.len()).unwrap());
            all.put_slice(&body);
        }
    }
    play(&served, &all).await.unwrap();
    let beside = std::fs::read_dir(served.outside("")).unwrap().count();
    assert_eq!(beside, 1, "something was made outside of the root");
}

#[test]
fn h43_arbitrary_bytes_never_make_the_server_panic_or_hang() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let served = served();
    served.write("f", b"content");
    let strategy = prop::collection::vec(
        (
            prop::sample::select(vec![
                1_u8, 3, 4, 5, 6, 8, 9, 11, 12, 13, 14, 16, 18, 20, 200, 77,
            ]),
            prop::collection::vec(any::<u8>(), 0..60),
            0_u8..20,
        ),
        0..30,
    );
    let mut runner = TestRunner::new(Config::with_cases(200));
    runner
        .run(&strategy, |packets| {
            let mut bytes = BytesMut::from(&b"\0\0\0\x05\x01\0\0\0\x03"[..]);
            for (kind, tail, lie) in packets {
                // Most lengths are true; some are not, and shift everything behind them.
                let lie = u32::from(lie.saturating_sub(17));
                bytes.put_u32(u32::try_from(1 + tail.len()).unwrap() + lie);
                bytes.put_u8(kind);
                bytes.put_slice(&tail);
            }
            runtime.block_on(async { play(&served, &bytes).await.ok() });
            Ok(())
        })
        .unwrap();
}
