//! Streams of clients against the server: those of the corpus of the fuzz target `sftp_server`, and what is made of them.
//!
//! `KNARR_BLESS=1` writes the seeds that are missing or differ. Files that a fuzzer has added stay.

use std::path::PathBuf;

use bytes::{BufMut as _, Bytes, BytesMut};
use knarr_sftp::codec::{Attributes, ClientPacket, ExtendedRequest, OpenFlags, Request};
use knarr_sftp::server::exercise;
use proptest::prelude::{Strategy, any, prop};
use proptest::test_runner::{Config, TestRunner};

use crate::corpus::requests;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/sftp_server")
}

fn encoded(packet: &ClientPacket) -> BytesMut {
    let mut out = BytesMut::new();
    packet.encode(usize::MAX, &mut out).unwrap();
    out
}

fn init() -> BytesMut {
    encoded(&ClientPacket::Init { version: 3 })
}

fn open(id: u32) -> BytesMut {
    let request = Request::Open {
        path: Bytes::from_static(b"/file"),
        flags: OpenFlags::READ | OpenFlags::WRITE | OpenFlags::CREATE,
        attributes: Attributes::default(),
    };
    encoded(&ClientPacket::Request { id, request })
}

fn opendir(id: u32) -> BytesMut {
    let path = Bytes::from_static(b"/");
    let request = Request::Opendir { path };
    encoded(&ClientPacket::Request { id, request })
}

/// The handle that the server gives out as the `number`th, from 1.
fn handle(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Each request, with `handle` where it has one.
fn each(handle: &Bytes) -> Vec<(&'static str, BytesMut)> {
    let of = |(name, mut request): (&'static str, Request)| {
        if let Request::Close { handle: place }
        | Request::Read { handle: place, .. }
        | Request::Write { handle: place, .. }
        | Request::Fstat { handle: place }
        | Request::Fsetstat { handle: place, .. }
        | Request::Readdir { handle: place } = &mut request
        {
            *place = handle.clone();
        }
        if let Request::Extended(
            ExtendedRequest::Fstatvfs { handle: place }
            | ExtendedRequest::Fsync { handle: place }
            | ExtendedRequest::CheckFileHandle { handle: place, .. },
        ) = &mut request
        {
            *place = handle.clone();
        }
        if let Request::Extended(ExtendedRequest::CopyData { from, to, .. }) = &mut request {
            (*from, *to) = (handle.clone(), handle.clone());
        }
        (name, encoded(&ClientPacket::Request { id: 9, request }))
    };
    requests().into_iter().map(of).collect()
}

/// Streams that lead the server through its states, each with every request.
fn seeds() -> Vec<(String, BytesMut)> {
    let mut seeds = Vec::new();
    let mut add = |name: String, parts: &[&[u8]]| {
        let mut stream = BytesMut::new();
        stream.put_u8(u8::try_from(seeds.len() % 251).unwrap());
        stream.extend_from_slice(&parts.concat());
        seeds.push((name, stream));
    };
    let (init, open, opendir) = (init(), open(1), opendir(2));
    let everything = each(&handle(1)).into_iter().map(|(_, packet)| packet);
    let everything: BytesMut = everything.flatten().collect();
    add("greeting".to_owned(), &[&init]);
    add("greeting-twice".to_owned(), &[&init, &init]);
    add("no-greeting".to_owned(), &[&open]);
    add(
        "everything".to_owned(),
        &[&init, &open, &opendir, &everything],
    );
    add("nothing-open".to_owned(), &[&init, &everything]);
    add("too-many-open".to_owned(), &[&init, &open.repeat(20)]);
    add("cut".to_owned(), &[&init, &open[..10]]);
    add("huge".to_owned(), &[&init, &u32::MAX.to_be_bytes(), &open]);
    for (name, packet) in each(&handle(1)) {
        add(format!("file-{name}"), &[&init, &open, &packet, &packet]);
    }
    seeds
}

/// As the fuzz target does.
fn play(data: &[u8]) {
    if let Some((piece, stream)) = data.split_first() {
        exercise(&Bytes::copy_from_slice(stream), usize::from(*piece));
    }
}

#[test]
fn h43_the_corpus_of_streams_is_replayed() {
    let entries = std::fs::read_dir(directory()).expect("the corpus is part of the repository");
    let mut count = 0;
    for entry in entries {
        play(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 35, "only {count} files in the corpus");
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "seeds need not survive a power cut"
)]
fn each_state_of_a_session_is_a_seed_of_the_corpus() {
    let bless = std::env::var_os("KNARR_BLESS").is_some();
    for (name, seed) in seeds() {
        let path = directory().join(&name);
        if bless {
            std::fs::create_dir_all(directory()).unwrap();
            std::fs::write(&path, &seed).unwrap();
        }
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(
            committed == seed,
            "seed {name} is not in the corpus: run with KNARR_BLESS=1"
        );
    }
}

#[test]
fn h43_each_packet_type_in_each_state_is_answered_or_ends_the_connection() {
    let (init, open, opendir) = (init(), open(1), opendir(2));
    let close = |number| {
        let handle = handle(number);
        encoded(&ClientPacket::Request {
            id: 3,
            request: Request::Close { handle },
        })
    };
    let (closed_file, closed_directory) = (close(1), close(2));
    let states: [(&str, Vec<&[u8]>); 8] = [
        ("nothing came", vec![]),
        ("greeted", vec![&init]),
        ("greeted twice", vec![&init, &init]),
        ("a file is open", vec![&init, &open]),
        ("a directory is open", vec![&init, &opendir]),
        ("both are open", vec![&init, &open, &opendir]),
        (
            "closed",
            vec![&init, &open, &opendir, &closed_file, &closed_directory],
        ),
        ("in a packet", vec![&init, &open[..open.len() - 3]]),
    ];
    for (_state, before) in &states {
        let before = before.concat();
        let mut packets: Vec<BytesMut> = [handle(1), handle(2), handle(7), Bytes::new()]
            .iter()
            .flat_map(each)
            .map(|(_, packet)| packet)
            .collect();
        // Every type there is, known or not, with fields that mean nothing.
        for kind in 0..=255_u8 {
            for fields in [&[][..], &[0; 4], &[0; 40], &[0xff; 40]] {
                let mut packet = BytesMut::new();
                packet.put_u32(u32::try_from(1 + fields.len()).unwrap());
                packet.put_u8(kind);
                packet.put_slice(fields);
                packets.push(packet);
            }
        }
        for packet in packets {
            let stream = Bytes::from([before.as_slice(), &packet, &packet].concat());
            exercise(&stream, 4096);
        }
    }
}

/// A change to a stream.
#[derive(Debug, Clone)]
enum Change {
    Flip(usize, u8),
    Cut(usize, usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
    Length(usize, u32),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<usize>();
    proptest::prop_oneof![
        (at, 1_u8..).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (at, 1_usize..40).prop_map(|(at, bytes)| Change::Cut(at, bytes)),
        (at, prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (at, 1_usize..200).prop_map(|(at, bytes)| Change::Repeat(at, bytes)),
        (at, any::<u32>()).prop_map(|(at, length)| Change::Length(at, length)),
    ]
}

fn changed(mut stream: Vec<u8>, change: Change) -> Vec<u8> {
    let length = stream.len().max(1);
    match change {
        Change::Flip(at, bits) => {
            if let Some(byte) = stream.get_mut(at % length) {
                *byte ^= bits;
            }
        }
        Change::Cut(at, bytes) => {
            let start = at % length;
            let end = (start + bytes).min(stream.len());
            stream.drain(start.min(end)..end);
        }
        Change::Insert(at, bytes) => {
            let at = (at % length).min(stream.len());
            stream.splice(at..at, bytes);
        }
        Change::Repeat(at, bytes) => {
            let start = (at % length).min(stream.len());
            let end = (start + bytes).min(stream.len());
            let again = stream[start..end].to_vec();
            stream.splice(end..end, again);
        }
        Change::Length(at, length_field) => {
            let at = at % length;
            if let Some(place) = stream.get_mut(at..at + 4) {
                place.copy_from_slice(&length_field.to_be_bytes());
            }
        }
    }
    stream
}

#[test]
fn h43_streams_that_are_changed_anywhere_never_panic_hang_or_break_a_limit() {
    let seeds: Vec<Vec<u8>> = seeds().into_iter().map(|(_, seed)| seed.to_vec()).collect();
    let cases = (
        0..seeds.len(),
        0..seeds.len(),
        prop::collection::vec(change(), 1..8),
    );
    let mut runner = TestRunner::new(Config {
        cases: 3_000,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&cases, |(first, second, changes)| {
        // Two of them, one behind the other, without the second one's first byte.
        let mut stream = seeds[first].clone();
        stream.extend_from_slice(&seeds[second][1..]);
        for change in changes {
            stream = changed(stream, change);
        }
        play(&stream);
        Ok(())
    });
    outcome.unwrap();
}
