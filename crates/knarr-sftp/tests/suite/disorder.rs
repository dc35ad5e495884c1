//! Servers that keep the protocol and still do not do what one expects: short reads, replies in any
//! order, lines that are cut.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use knarr_sftp::client::{
    AtEnd, DirectoryOptions, Durability, Error, FileReader, FileWriter, ReadOptions, WriteOptions,
};
use knarr_sftp::codec::{Reply, Request, StatusCode};
use knarr_sftp::{Attributes, Client, ClientOptions, OpenFlags};
use tokio::time::timeout;

use crate::files::Random;
use crate::hostile::{entry, no_hang};
use crate::script::{Script, attributes, handle, status};

/// What one short session sees, for every length after which the server's line is cut.
async fn short_session(client: Client) -> Result<(), Error> {
    let file = client
        .open(b"file", OpenFlags::READ, Attributes::default())
        .await?;
    let options = ReadOptions {
        request_bytes: 10,
        ..ReadOptions::default()
    };
    let mut reader = FileReader::new(vec![file], &options)?;
    let mut read = 0;
    while let Some(piece) = reader.next().await? {
        read += piece.len();
    }
    assert_eq!(read, 25, "a cut line must not look like the end of a file");
    reader.close().await?;
    let listed = client
        .open_directory(b".", DirectoryOptions::default())
        .await?
        .collect()
        .await?;
    assert_eq!(
        listed.len(),
        3,
        "a cut line must not look like the end of a directory"
    );
    client.stat(b"file").await?;
    Ok(())
}

async fn honest(mut script: Script) {
    script.accept(&[("posix-rename@openssh.com", "1")]).await;
    let mut listed = 0;
    while let Some((id, request)) = script.request().await {
        let reply = match request {
            Request::Open { .. } | Request::Opendir { .. } => handle(),
            Request::Read { offset, length, .. } if offset < 25 => {
                let length = usize::try_from(u64::from(length).min(25 - offset)).unwrap();
                Reply::Data(vec![1; length].into())
            }
            Request::Readdir { .. } if listed < 3 => {
                listed += 1;
                Reply::Names(vec![entry(b"name")])
            }
            Request::Read { .. } | Request::Readdir { .. } => status(StatusCode::Eof),
            Request::Close { .. } => status(StatusCode::Ok),
            Request::Stat { .. } => attributes(25),
            request => panic!("unexpected {request:?}"),
        };
        script.reply(id, reply).await;
    }
}

#[tokio::test]
async fn k5_a_line_that_is_cut_at_any_byte_is_an_error_and_never_an_end() {
    let mut cut = 0;
    loop {
        let session = async {
            let client = Script::serve_raw(ClientOptions::default(), cut, honest).await?;
            short_session(client).await
        };
        match no_hang(session).await {
            Ok(()) => break,
            Err(error) => {
                assert!(error.is_connection_lost(), "cut after {cut} bytes: {error}");
                assert!(
                    !error.is_protocol_violation(),
                    "cut after {cut} bytes: {error}"
                );
            }
        }
        cut += 1;
        assert!(cut < 2000, "the session never succeeds");
    }
    assert!(
        cut > 200,
        "the session is shorter than it should be: {cut} bytes"
    );
}

/// Replies to READs of `content` in random order and of random length.
async fn disorderly(mut script: Script, content: Bytes, seed: u64) {
    let mut random = Random(seed);
    let mut waiting: Vec<(u32, Request)> = Vec::new();
    loop {
        // Gather requests until none comes for a moment, then answer one of them.
        if waiting.is_empty() {
            let Some(request) = script.request().await else {
                return;
            };
            waiting.push(request);
            continue;
        }
        let moment = Duration::from_millis(random.next() % 2);
        if let Ok(received) = timeout(moment, script.request()).await {
            let Some(request) = received else { return };
            waiting.push(request);
            continue;
        }
        let (id, request) = waiting.swap_remove(random.below(waiting.len() as u64));
        let reply = match request {
            Request::Open { .. } => handle(),
            Request::Read { offset, length, .. } => {
                let start = usize::try_from(offset).unwrap().min(content.len());
                let left = content.len() - start;
                let length = left.min(usize::try_from(length).unwrap());
                match length {
                    0 => status(StatusCode::Eof),
                    _ if random.below(3) == 0 => {
                        let length = 1 + random.below(length as u64);
                        Reply::Data(content.slice(start..start + length))
                    }
                    _ => Reply::Data(content.slice(start..start + length)),
                }
            }
            _ => status(StatusCode::Ok),
        };
        script.reply(id, reply).await;
    }
}

#[tokio::test]
async fn r48_short_reads_and_replies_out_of_order_give_the_right_bytes() {
    let content = Random(11).bytes(1_500_000);
    for seed in 1..8_u64 {
        let mut handles = Vec::new();
        for connection in 0..2 {
            let content = content.clone();
            let client = Script::serve(ClientOptions::default(), move |script| {
                disorderly(script, content, seed * 2 + connection)
            })
            .await;
            let flags = OpenFlags::READ;
            handles.push(
                client
                    .open(b"file", flags, Attributes::default())
                    .await
                    .unwrap(),
            );
        }
        let options = ReadOptions {
            end: (seed % 2 == 0).then_some(content.len() as u64),
            at_end: AtEnd::ExpectEndOfFile,
            request_bytes: 20_000,
            requests_in_flight: 20,
            ..ReadOptions::default()
        };
        let mut reader = FileReader::new(handles, &options).unwrap();
        let mut read = BytesMut::new();
        while let Some(piece) = no_hang(reader.next()).await.unwrap() {
            read.extend_from_slice(&piece);
        }
        assert!(read == content, "seed {seed}");
    }
}

#[tokio::test]
async fn r48_acknowledgements_out_of_order_never_run_ahead() {
    // Statuses come in the reverse order of each four WRITEs; the second WRITE of the third four fails.
    let client = Script::serve(ClientOptions::default(), |mut script| async move {
        let (mut four, mut written) = (Vec::new(), 0);
        while let Some((id, request)) = script.request().await {
            match request {
                Request::Open { .. } => script.reply(id, handle()).await,
                Request::Write { .. } => {
                    written += 1;
                    let failed = written == 10;
                    let code = if failed {
                        StatusCode::Failure
                    } else {
                        StatusCode::Ok
                    };
                    four.push((id, code));
                    if four.len() == 4 {
                        while let Some((id, code)) = four.pop() {
                            script.reply(id, status(code)).await;
                        }
                    }
                }
                _ => script.reply(id, status(StatusCode::Ok)).await,
            }
        }
    })
    .await;
    let file = client
        .open(b"file", OpenFlags::WRITE, Attributes::default())
        .await
        .unwrap();
    let options = WriteOptions {
        request_bytes: 1000,
        requests_in_flight: 4,
        offset: 0,
    };
    let mut writer = FileWriter::new(vec![file], &options).unwrap();
    let error = no_hang(async {
        loop {
            if let Err(error) = writer.write(Bytes::from_static(&[0; 1000])).await {
                return error;
            }
        }
    })
    .await;
    assert!(error.is_failure(), "{error}");
    assert_eq!(writer.acknowledged(), 9000);
    assert!(writer.finish(Durability::Unflushed).await.is_err());
}
