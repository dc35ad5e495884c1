//! Replays the corpus of the fuzz target `sftp_codec`, and holds it to the seeds made here.
//!
//! `KNARR_BLESS=1` writes the seeds that are missing or differ. Files that a fuzzer has added stay.

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use knarr_sftp::codec::{
    Attributes, ClientPacket, ExtendedRequest, Extension, FilesystemStatistics, NameEntry,
    OpenFlags, Owner, Reply, Request, ServerLimits, ServerPacket, Status, StatusCode, Times,
    exercise,
};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/sftp_codec")
}

#[test]
fn h43_the_corpus_of_the_fuzzer_is_replayed() {
    let entries = std::fs::read_dir(directory()).expect("the corpus is part of the repository");
    let mut count = 0;
    for entry in entries {
        exercise(&std::fs::read(entry.unwrap().path()).unwrap().into());
        count += 1;
    }
    assert!(count >= 40, "only {count} files in the corpus");
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "seeds need not survive a power cut"
)]
fn each_kind_of_packet_is_a_seed_of_the_corpus() {
    let bless = std::env::var_os("KNARR_BLESS").is_some();
    for (name, seed) in seeds() {
        exercise(&seed);
        let path = directory().join(&name);
        if bless {
            std::fs::write(&path, &seed).unwrap();
        }
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(
            committed == seed,
            "seed {name} is not in the corpus: run with KNARR_BLESS=1"
        );
    }
}

fn bytes(text: &'static [u8]) -> Bytes {
    Bytes::from_static(text)
}

fn full_attributes() -> Attributes {
    Attributes {
        size: Some(1 << 40),
        owner: Some(Owner {
            user: 1000,
            group: 100,
        }),
        permissions: Some(0o100_644),
        times: Some(Times {
            accessed_seconds: 1_700_000_000,
            modified_seconds: u32::MAX,
        }),
        extended: vec![(bytes(b"acl@example.com"), bytes(b"\x00\xff"))],
    }
}

pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    let (path, handle) = (bytes(b"/srv/f\xc3\xa4\xff"), bytes(b"\0\0\0\x01"));
    let (from, to) = (bytes(b".staged.part"), bytes(b"final name"));
    let permissions = Attributes::with_permissions(0o755);
    let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
    let mut all = vec![
        (
            "open",
            Request::Open {
                path: path.clone(),
                flags,
                attributes: full_attributes(),
            },
        ),
        (
            "close",
            Request::Close {
                handle: handle.clone(),
            },
        ),
        (
            "read",
            Request::Read {
                handle: handle.clone(),
                offset: u64::MAX,
                length: u32::MAX,
            },
        ),
        (
            "write",
            Request::Write {
                handle: handle.clone(),
                offset: 9,
                data: bytes(b"data"),
            },
        ),
        ("lstat", Request::Lstat { path: path.clone() }),
        (
            "fstat",
            Request::Fstat {
                handle: handle.clone(),
            },
        ),
        (
            "setstat",
            Request::Setstat {
                path: path.clone(),
                attributes: full_attributes(),
            },
        ),
        ("opendir", Request::Opendir { path: path.clone() }),
        (
            "readdir",
            Request::Readdir {
                handle: handle.clone(),
            },
        ),
        ("remove", Request::Remove { path: path.clone() }),
        (
            "mkdir",
            Request::Mkdir {
                path: path.clone(),
                attributes: permissions.clone(),
            },
        ),
        ("rmdir", Request::Rmdir { path: path.clone() }),
        ("realpath", Request::Realpath { path: bytes(b".") }),
        ("stat", Request::Stat { path: Bytes::new() }),
        (
            "rename",
            Request::Rename {
                from: from.clone(),
                to: to.clone(),
            },
        ),
        ("readlink", Request::Readlink { path: path.clone() }),
        (
            "symlink",
            Request::Symlink {
                target: bytes(b"../.."),
                link: to.clone(),
            },
        ),
    ];
    let attributes = permissions.clone();
    all.push((
        "fsetstat",
        Request::Fsetstat {
            handle: handle.clone(),
            attributes: permissions,
        },
    ));
    let (from_offset, length, to_offset) = (1, 0, 1 << 33);
    let extended = [
        (
            "posix-rename",
            ExtendedRequest::PosixRename {
                from: from.clone(),
                to: to.clone(),
            },
        ),
        (
            "hardlink",
            ExtendedRequest::Hardlink {
                from,
                to: to.clone(),
            },
        ),
        ("statvfs", ExtendedRequest::Statvfs { path: path.clone() }),
        (
            "fstatvfs",
            ExtendedRequest::Fstatvfs {
                handle: handle.clone(),
            },
        ),
        (
            "fsync",
            ExtendedRequest::Fsync {
                handle: handle.clone(),
            },
        ),
        (
            "lsetstat",
            ExtendedRequest::Lsetstat {
                path: path.clone(),
                attributes,
            },
        ),
        ("limits", ExtendedRequest::Limits),
        ("expand-path", ExtendedRequest::ExpandPath { path }),
        (
            "copy-data",
            ExtendedRequest::CopyData {
                from: handle.clone(),
                from_offset,
                length,
                to: handle.clone(),
                to_offset,
            },
        ),
        (
            "check-file-handle",
            ExtendedRequest::CheckFileHandle {
                handle,
                algorithms: bytes(b"sha256,md5"),
                offset: 1,
                length: 0,
                block_bytes: 256,
            },
        ),
        (
            "check-file-name",
            ExtendedRequest::CheckFileName {
                path: bytes(b"/srv/f"),
                algorithms: bytes(b"md5"),
                offset: 0,
                length: u64::MAX,
                block_bytes: 0,
            },
        ),
        (
            "users-groups-by-id",
            ExtendedRequest::UsersGroupsById {
                users: bytes(b"\0\0\0\0\0\0\x03\xe8"),
                groups: bytes(b"\0\0\0\0"),
            },
        ),
        (
            "other",
            ExtendedRequest::Other {
                name: bytes(b"md5-hash"),
                payload: bytes(b"\0\0"),
            },
        ),
    ];
    all.extend(extended.map(|(name, request)| (name, Request::Extended(request))));
    all
}

fn replies() -> Vec<(&'static str, Reply)> {
    let status = |code| {
        let (message, language) = (bytes(b"No such file"), bytes(b"en"));
        Reply::Status(Status {
            code,
            message,
            language,
        })
    };
    let entry = |name| NameEntry {
        name: bytes(name),
        long_name: bytes(b"-rw-r--r--    1 0  0   4096 Jan  1 00:00 x"),
        attributes: full_attributes(),
    };
    let limits = ServerLimits {
        packet_bytes: 262_144,
        read_bytes: 261_120,
        write_bytes: 261_120,
        open_handles: 1019,
    };
    let statistics = FilesystemStatistics {
        block_bytes: 4096,
        blocks: 9,
        ..Default::default()
    };
    vec![
        ("status-ok", status(StatusCode::Ok)),
        ("status-not-found", status(StatusCode::NoSuchFile)),
        ("status-other", status(StatusCode::Other(u32::MAX))),
        ("handle", Reply::Handle(bytes(b"\0\0\0\x01"))),
        ("data", Reply::Data(bytes(b"data of a file"))),
        (
            "names",
            Reply::Names(vec![entry(b"a\xff"), entry(b".."), entry(b"")]),
        ),
        ("names-none", Reply::Names(Vec::new())),
        ("attributes", Reply::Attributes(full_attributes())),
        ("attributes-none", Reply::Attributes(Attributes::default())),
        ("extended-limits", Reply::Extended(limits.encode())),
        ("extended-statvfs", Reply::Extended(statistics.encode())),
    ]
}

fn seeds() -> Vec<(String, Bytes)> {
    let mut seeds = Vec::new();
    let mut add = |name: String, encoded: BytesMut| seeds.push((name, encoded.freeze().slice(4..)));
    let mut client = |name: &str, packet: ClientPacket| {
        let mut out = BytesMut::new();
        packet.encode(usize::MAX, &mut out).unwrap();
        add(format!("client-{name}"), out);
    };
    client("init", ClientPacket::Init { version: 3 });
    for (name, request) in requests() {
        client(
            name,
            ClientPacket::Request {
                id: 0x0001_0000,
                request,
            },
        );
    }
    let extensions = Extension::ALL.map(|extension| {
        (
            bytes(extension.name().as_bytes()),
            bytes(extension.version().as_bytes()),
        )
    });
    let version = ServerPacket::Version {
        version: 3,
        extensions: extensions.to_vec(),
    };
    let mut server = |name: &str, packet: ServerPacket| {
        let mut out = BytesMut::new();
        packet.encode(usize::MAX, &mut out).unwrap();
        add(format!("server-{name}"), out);
    };
    server("version", version);
    for (name, reply) in replies() {
        server(
            name,
            ServerPacket::Reply {
                id: 0x0001_0000,
                reply,
            },
        );
    }
    let raw: [(&str, &'static [u8]); 5] = [
        ("empty", b""),
        ("names-too-many", b"\x68\0\0\0\0\xff\xff\xff\xff"),
        ("string-too-long", b"\x0b\0\0\0\0\xff\xff\xff\xff/"),
        (
            "attributes-endless",
            b"\x69\0\0\0\0\x80\0\0\0\xff\xff\xff\xff\0\0\0\0",
        ),
        (
            "write-with-tail",
            b"\x06\0\0\0\0\0\0\0\x01h\0\0\0\0\0\0\0\0\0\0\0\x01xyz",
        ),
    ];
    seeds.extend(raw.map(|(name, body)| (format!("raw-{name}"), bytes(body))));
    seeds
}
