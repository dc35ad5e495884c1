//! Whole files against OpenSSH's own server, over one and several connections.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use bytes::Bytes;
use knarr_sftp::client::{
    AtEnd, Durability, Error, FileReader, FileWriter, ReadOptions, WriteOptions,
};
use knarr_sftp::{Attributes, Client, Handle, OpenFlags};

use crate::server::Server;

/// A small generator of its own: the same bytes in every run, and cheap without optimisation.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> usize {
        usize::try_from(self.next() % limit).unwrap()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Bytes {
        (0..length.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .take(length)
            .collect()
    }
}

async fn open(clients: &[Client], name: &[u8], flags: OpenFlags) -> Vec<Handle> {
    let mut handles = Vec::new();
    for client in clients {
        handles.push(
            client
                .open(name, flags, Attributes::default())
                .await
                .unwrap(),
        );
    }
    handles
}

async fn read_all(mut reader: FileReader) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    while let Some(piece) = reader.next().await? {
        content.extend_from_slice(&piece);
    }
    assert!(reader.next().await?.is_none());
    reader.close().await?;
    Ok(content)
}

fn write_flags() -> OpenFlags {
    OpenFlags::WRITE | OpenFlags::CREATE
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_travel_there_and_back_with_requests_of_any_size() {
    let mut server = Server::new();
    let clients = [server.connect().await, server.connect().await];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let content = random.bytes(64 * 1024 * 1024);
    for connections in 1..=2 {
        let options = WriteOptions {
            request_bytes: u32::try_from(1000 + random.below(254_000)).unwrap(),
            ..WriteOptions::default()
        };
        let handles = open(&clients[..connections], b"file", write_flags()).await;
        let mut writer = FileWriter::new(handles, &options).unwrap();
        let mut left = content.clone();
        while !left.is_empty() {
            let length = (1 + random.below(600_000)).min(left.len());
            writer.write(left.split_to(length)).await.unwrap();
            assert!(writer.acknowledged() <= writer.position());
        }
        assert_eq!(
            writer.finish(Durability::Flushed).await.unwrap(),
            content.len() as u64
        );
        assert!(std::fs::read(server.path().join("file")).unwrap() == content);

        for end in [None, Some(content.len() as u64)] {
            let options = ReadOptions {
                end,
                at_end: AtEnd::ExpectEndOfFile,
                request_bytes: u32::try_from(1000 + random.below(400_000)).unwrap(),
                ..ReadOptions::default()
            };
            let handles = open(&clients[..connections], b"file", OpenFlags::READ).await;
            let reader = FileReader::new(handles, &options).unwrap();
            assert!(read_all(reader).await.unwrap() == content);
        }
        std::fs::remove_file(server.path().join("file")).unwrap();
    }
}

#[tokio::test]
async fn a_file_is_complete_only_when_no_handle_is_being_opened_on_it() {
    let mut server = Server::new();
    let clients = [server.connect().await, server.connect().await];
    let mut handles = open(&clients, b"file", write_flags()).await;
    let later = handles.remove(1);
    let (joining, join) = tokio::sync::mpsc::channel(1);
    let mut writer = FileWriter::new(handles, &WriteOptions::default())
        .unwrap()
        .joined_by(join);
    writer.write(Bytes::from_static(b"content")).await.unwrap();
    let place = joining.reserve().await.unwrap();
    {
        let mut ending = std::pin::pin!(writer.end_joining());
        assert!(futures::poll!(ending.as_mut()).is_pending());
        place.send(later);
        ending.await;
    }
    assert!(joining.reserve().await.is_err(), "nothing joins any more");
    writer.end_joining().await;
    assert_eq!(writer.finish(Durability::Unflushed).await.unwrap(), 7);
}

/// Losing the later connection ends the reader, so it must have had a share.
#[tokio::test(flavor = "multi_thread")]
async fn handles_that_come_later_share_the_work() {
    let mut server = Server::new();
    let clients = [server.connect().await, server.connect().await];
    let content = Random(23).bytes(8 * 1024 * 1024);
    let requests = WriteOptions {
        requests_in_flight: 4,
        ..WriteOptions::default()
    };
    let handles = open(&clients[..1], b"file", write_flags()).await;
    let (joining, join) = tokio::sync::mpsc::channel(1);
    let mut writer = FileWriter::new(handles, &requests).unwrap().joined_by(join);
    let mut left = content.clone();
    writer.write(left.split_to(3_000_000)).await.unwrap();
    let mut later = open(&clients[1..], b"file", OpenFlags::WRITE).await;
    joining.send(later.remove(0)).await.unwrap();
    drop(joining);
    writer.write(left).await.unwrap();
    writer.finish(Durability::Flushed).await.unwrap();
    assert!(std::fs::read(server.path().join("file")).unwrap() == content);

    for lost in [false, true] {
        let options = ReadOptions {
            end: Some(content.len() as u64),
            requests_in_flight: 4,
            ..ReadOptions::default()
        };
        let handles = open(&clients[..1], b"file", OpenFlags::READ).await;
        let (joining, join) = tokio::sync::mpsc::channel(1);
        let mut reader = FileReader::new(handles, &options).unwrap().joined_by(join);
        let first = reader.next().await.unwrap().unwrap();
        let mut later = open(&clients[1..], b"file", OpenFlags::READ).await;
        joining.send(later.remove(0)).await.unwrap();
        if lost {
            clients[1].close();
        }
        let read = read_all(reader).await;
        if lost {
            let error = read.unwrap_err();
            assert!(error.is_connection_lost(), "{error}");
        } else {
            assert!([&first, &read.unwrap()[..]].concat() == content);
        }
    }
}

#[tokio::test]
async fn reading_starts_and_ends_where_it_is_told() {
    let mut server = Server::new();
    let clients = [server.connect().await];
    let content = Random(7).bytes(100_000);
    std::fs::File::create(server.path().join("file"))
        .unwrap()
        .write_all_at(&content, 0)
        .unwrap();
    for (offset, end) in [
        (0, 0),
        (0, 1),
        (1, 100_000),
        (99_999, 100_000),
        (5, 70_001),
        (9, 3),
    ] {
        let options = ReadOptions {
            offset,
            end: Some(end),
            request_bytes: 777,
            requests_in_flight: 5,
            ..ReadOptions::default()
        };
        let handles = open(&clients, b"file", OpenFlags::READ).await;
        let read = read_all(FileReader::new(handles, &options).unwrap())
            .await
            .unwrap();
        let range = usize::try_from(offset).unwrap()..usize::try_from(end.max(offset)).unwrap();
        assert!(read == content[range]);
    }
    let options = ReadOptions {
        offset: 99_000,
        ..ReadOptions::default()
    };
    let handles = open(&clients, b"file", OpenFlags::READ).await;
    let read = read_all(FileReader::new(handles, &options).unwrap())
        .await
        .unwrap();
    assert!(read == content[99_000..]);
    let options = ReadOptions {
        offset: 100_001,
        ..ReadOptions::default()
    };
    let handles = open(&clients, b"file", OpenFlags::READ).await;
    assert!(
        read_all(FileReader::new(handles, &options).unwrap())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_file_that_is_not_as_long_as_expected_is_an_error() {
    let mut server = Server::new();
    let clients = [server.connect().await];
    let content = Random(8).bytes(50_000);
    std::fs::File::create(server.path().join("file"))
        .unwrap()
        .write_all_at(&content, 0)
        .unwrap();
    let options = |end, at_end| ReadOptions {
        end: Some(end),
        at_end,
        request_bytes: 4096,
        ..ReadOptions::default()
    };
    let handles = open(&clients, b"file", OpenFlags::READ).await;
    let reader = FileReader::new(handles, &options(50_001, AtEnd::Stop)).unwrap();
    let error = read_all(reader).await.unwrap_err();
    let early = matches!(
        error,
        Error::EndedEarly {
            expected_bytes: 50_001,
            actual_bytes: 50_000,
            ..
        }
    );
    assert!(early, "{error}");
    let handles = open(&clients, b"file", OpenFlags::READ).await;
    let mut reader = FileReader::new(handles, &options(49_999, AtEnd::ExpectEndOfFile)).unwrap();
    let error = loop {
        match reader.next().await {
            Ok(piece) => assert!(piece.is_some(), "the growth was not seen"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(
            error,
            Error::Grew {
                expected_bytes: 49_999,
                ..
            }
        ),
        "{error}"
    );
    // The error stays.
    assert!(matches!(reader.next().await, Err(Error::Grew { .. })));
    let handles = open(&clients, b"file", OpenFlags::READ).await;
    let reader = FileReader::new(handles, &options(49_999, AtEnd::Stop)).unwrap();
    assert_eq!(read_all(reader).await.unwrap().len(), 49_999);
}

#[tokio::test]
async fn k9_a_write_goes_on_from_the_acknowledged_offset() {
    let mut server = Server::new();
    let content = Random(9).bytes(3_000_000);
    let clients = [server.connect().await];
    let handles = open(&clients, b"file", write_flags()).await;
    let mut writer = FileWriter::new(handles, &WriteOptions::default()).unwrap();
    writer.write(content.slice(..2_000_000)).await.unwrap();
    let sent = writer.acknowledged();
    assert!(sent < 2_000_000, "what is held back cannot be acknowledged");
    writer.flush().await.unwrap();
    assert_eq!(writer.acknowledged(), 2_000_000);
    // The line is cut, and nothing is told to the server.
    clients[0].close();
    let error = writer.write(content.slice(2_000_000..)).await.unwrap_err();
    assert!(error.is_connection_lost());
    let offset = writer.acknowledged();
    drop(writer);

    let clients = [server.connect().await];
    let handles = open(&clients, b"file", write_flags()).await;
    let options = WriteOptions {
        offset,
        ..WriteOptions::default()
    };
    let mut writer = FileWriter::new(handles, &options).unwrap();
    writer
        .write(content.slice(usize::try_from(offset).unwrap()..))
        .await
        .unwrap();
    writer.finish(Durability::Unflushed).await.unwrap();
    assert!(std::fs::read(server.path().join("file")).unwrap() == content);
}

#[tokio::test]
async fn writing_beyond_the_end_leaves_a_hole() {
    let mut server = Server::new();
    let clients = [server.connect().await];
    let handles = open(&clients, b"sparse", write_flags()).await;
    let offset = 1 << 30;
    let options = WriteOptions {
        offset,
        ..WriteOptions::default()
    };
    let mut writer = FileWriter::new(handles, &options).unwrap();
    writer.write(Bytes::from_static(b"end")).await.unwrap();
    assert_eq!(
        writer.finish(Durability::Unflushed).await.unwrap(),
        offset + 3
    );
    let metadata = server.path().join("sparse").metadata().unwrap();
    assert_eq!(metadata.len(), offset + 3);
    assert!(metadata.blocks() < 1000);
}

#[tokio::test]
async fn the_first_write_that_fails_ends_the_writer() {
    let mut server = Server::new();
    let clients = [server.connect().await];
    std::fs::File::create(server.path().join("file")).unwrap();
    // The server accepts the open and refuses each WRITE: the handle is for reading.
    let handles = open(&clients, b"file", OpenFlags::READ).await;
    let mut writer = FileWriter::new(handles, &WriteOptions::default()).unwrap();
    let error = loop {
        if let Err(error) = writer.write(Bytes::from(vec![1; 100_000])).await {
            break error;
        }
        assert!(
            writer.position() < 1 << 30,
            "no error although every WRITE failed"
        );
    };
    assert!(error.code().is_some(), "{error}");
    assert_eq!(writer.acknowledged(), 0);
    assert_eq!(
        writer.write(Bytes::new()).await.unwrap_err().code(),
        error.code()
    );
    assert!(writer.finish(Durability::Unflushed).await.is_err());
    assert!(clients[0].failure().is_none());
}

#[tokio::test]
async fn an_empty_file_is_written_and_read() {
    let mut server = Server::new();
    let clients = [server.connect().await];
    let handles = open(&clients, b"empty", write_flags()).await;
    let writer = FileWriter::new(handles, &WriteOptions::default()).unwrap();
    assert_eq!(writer.finish(Durability::Flushed).await.unwrap(), 0);
    for end in [None, Some(0)] {
        let options = ReadOptions {
            end,
            at_end: AtEnd::ExpectEndOfFile,
            ..Default::default()
        };
        let handles = open(&clients, b"empty", OpenFlags::READ).await;
        assert!(
            read_all(FileReader::new(handles, &options).unwrap())
                .await
                .unwrap()
                .is_empty()
        );
    }
    assert!(matches!(
        FileReader::new(Vec::new(), &ReadOptions::default()),
        Err(Error::Misused { .. })
    ));
}
