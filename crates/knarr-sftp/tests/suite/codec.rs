//! The codec as properties: what is encoded is decoded, and nothing makes a decoder panic.

use bytes::{Bytes, BytesMut};
use knarr_sftp::codec::{
    Attributes, ClientPacket, CodecError, ExtendedRequest, NameEntry, OpenFlags, Owner, Reply,
    Request, ServerPacket, Status, StatusCode, Times, encode_write_header, exercise,
};
use proptest::prelude::{Just, Strategy, any, prop};
use proptest::{prop_assert, prop_assert_eq, prop_oneof, proptest};

fn string() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let owner = prop::option::of(any::<(u32, u32)>());
    let times = prop::option::of(any::<(u32, u32)>());
    let extended = prop::collection::vec((string(), string()), 0..3);
    (
        any::<Option<u64>>(),
        owner,
        any::<Option<u32>>(),
        times,
        extended,
    )
        .prop_map(|(size, owner, permissions, times, extended)| Attributes {
            size,
            owner: owner.map(|(user, group)| Owner { user, group }),
            permissions,
            times: times.map(|(accessed_seconds, modified_seconds)| Times {
                accessed_seconds,
                modified_seconds,
            }),
            extended,
        })
}

fn extended_request() -> impl Strategy<Value = ExtendedRequest> {
    prop_oneof![
        (string(), string()).prop_map(|(from, to)| ExtendedRequest::PosixRename { from, to }),
        (string(), string()).prop_map(|(from, to)| ExtendedRequest::Hardlink { from, to }),
        string().prop_map(|path| ExtendedRequest::Statvfs { path }),
        string().prop_map(|handle| ExtendedRequest::Fstatvfs { handle }),
        string().prop_map(|handle| ExtendedRequest::Fsync { handle }),
        string().prop_map(|path| ExtendedRequest::ExpandPath { path }),
        (string(), attributes())
            .prop_map(|(path, attributes)| ExtendedRequest::Lsetstat { path, attributes }),
        Just(ExtendedRequest::Limits),
        (string(), any::<(u64, u64, u64)>(), string()).prop_map(
            |(from, (from_offset, length, to_offset), to)| ExtendedRequest::CopyData {
                from,
                from_offset,
                length,
                to,
                to_offset
            }
        ),
        (string(), string(), any::<(u64, u64, u32)>(), any::<bool>()).prop_map(
            |(subject, algorithms, (offset, length, block_bytes), is_open)| if is_open {
                ExtendedRequest::CheckFileHandle {
                    handle: subject,
                    algorithms,
                    offset,
                    length,
                    block_bytes,
                }
            } else {
                ExtendedRequest::CheckFileName {
                    path: subject,
                    algorithms,
                    offset,
                    length,
                    block_bytes,
                }
            }
        ),
        (string(), string())
            .prop_map(|(users, groups)| ExtendedRequest::UsersGroupsById { users, groups }),
        (string(), string()).prop_map(|(name, payload)| ExtendedRequest::Other { name, payload }),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let by_path = prop_oneof![
        string().prop_map(|path| Request::Lstat { path }),
        string().prop_map(|path| Request::Opendir { path }),
        string().prop_map(|path| Request::Remove { path }),
        string().prop_map(|path| Request::Rmdir { path }),
        string().prop_map(|path| Request::Realpath { path }),
        string().prop_map(|path| Request::Stat { path }),
        string().prop_map(|path| Request::Readlink { path }),
        (string(), attributes())
            .prop_map(|(path, attributes)| Request::Setstat { path, attributes }),
        (string(), attributes()).prop_map(|(path, attributes)| Request::Mkdir { path, attributes }),
        (string(), string()).prop_map(|(from, to)| Request::Rename { from, to }),
        (string(), string()).prop_map(|(target, link)| Request::Symlink { target, link }),
    ];
    let by_handle = prop_oneof![
        string().prop_map(|handle| Request::Close { handle }),
        string().prop_map(|handle| Request::Fstat { handle }),
        string().prop_map(|handle| Request::Readdir { handle }),
        (string(), any::<u64>(), any::<u32>()).prop_map(|(handle, offset, length)| Request::Read {
            handle,
            offset,
            length
        }),
        (string(), any::<u64>(), string()).prop_map(|(handle, offset, data)| Request::Write {
            handle,
            offset,
            data
        }),
        (string(), attributes())
            .prop_map(|(handle, attributes)| Request::Fsetstat { handle, attributes }),
    ];
    prop_oneof![
        by_path,
        by_handle,
        (string(), any::<u32>(), attributes()).prop_map(|(path, flags, attributes)| {
            Request::Open {
                path,
                flags: OpenFlags::from_bits(flags),
                attributes,
            }
        }),
        extended_request().prop_map(Request::Extended),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let name =
        (string(), string(), attributes()).prop_map(|(name, long_name, attributes)| NameEntry {
            name,
            long_name,
            attributes,
        });
    prop_oneof![
        (any::<u32>(), string(), string()).prop_map(|(code, message, language)| {
            Reply::Status(Status {
                code: StatusCode::from_number(code),
                message,
                language,
            })
        }),
        string().prop_map(Reply::Handle),
        string().prop_map(Reply::Data),
        prop::collection::vec(name, 0..5).prop_map(Reply::Names),
        attributes().prop_map(Reply::Attributes),
        string().prop_map(Reply::Extended),
    ]
}

fn client_packet() -> impl Strategy<Value = ClientPacket> {
    prop_oneof![
        1 => any::<u32>().prop_map(|version| ClientPacket::Init { version }),
        20 => (any::<u32>(), request())
            .prop_map(|(id, request)| ClientPacket::Request { id, request }),
    ]
}

fn server_packet() -> impl Strategy<Value = ServerPacket> {
    let extensions = prop::collection::vec((string(), string()), 0..5);
    prop_oneof![
        1 => (any::<u32>(), extensions)
            .prop_map(|(version, extensions)| ServerPacket::Version { version, extensions }),
        10 => (any::<u32>(), reply()).prop_map(|(id, reply)| ServerPacket::Reply { id, reply }),
    ]
}

/// Checks the length before the packet and takes it off.
fn body(encoded: BytesMut) -> Bytes {
    let encoded = encoded.freeze();
    let length = u32::from_be_bytes(encoded[..4].try_into().unwrap());
    assert_eq!(usize::try_from(length).unwrap(), encoded.len() - 4);
    encoded.slice(4..)
}

proptest! {
    #[test]
    fn requests_survive_a_round_trip_and_ignore_what_follows(packet in client_packet(), tail in string()) {
        let mut out = BytesMut::new();
        packet.encode(usize::MAX, &mut out).unwrap();
        let body = body(out);
        prop_assert_eq!(&ClientPacket::decode(body.clone()), &Ok(packet.clone()));
        // rclone sends WRITEs with bytes behind the declared data. Only an extension that is not
        // known has no fields, and takes everything.
        let takes_all = matches!(
            &packet,
            ClientPacket::Request { request: Request::Extended(ExtendedRequest::Other { .. }), .. }
        );
        if !takes_all {
            let longer = [&body[..], &tail].concat().into();
            prop_assert_eq!(ClientPacket::decode(longer), Ok(packet));
        }
    }

    #[test]
    fn replies_survive_a_round_trip(packet in server_packet()) {
        let mut out = BytesMut::new();
        packet.encode(usize::MAX, &mut out).unwrap();
        prop_assert_eq!(ServerPacket::decode(body(out)), Ok(packet));
    }

    #[test]
    fn h43_a_packet_that_is_cut_is_an_error_or_a_shorter_packet_and_never_a_panic(
        client in client_packet(),
        server in server_packet(),
        keep in 0_usize..200,
    ) {
        for encoded in [
            { let mut out = BytesMut::new(); client.encode(usize::MAX, &mut out).unwrap(); out },
            { let mut out = BytesMut::new(); server.encode(usize::MAX, &mut out).unwrap(); out },
        ] {
            let body = body(encoded);
            exercise(&body.slice(..keep.min(body.len())));
        }
    }

    #[test]
    fn h43_arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        exercise(&bytes.into());
    }

    #[test]
    fn h43_arbitrary_fields_behind_a_known_type_never_panic(
        kind in prop_oneof![1_u8..=20, 101_u8..=105, 200_u8..=201],
        fields in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(4), Just(255), any::<u8>()], 0..120),
    ) {
        exercise(&[&[kind][..], &fields].concat().into());
    }

    #[test]
    fn a_packet_over_the_limit_leaves_the_buffer_as_it_was(packet in client_packet(), before in string()) {
        let mut whole = BytesMut::new();
        packet.encode(usize::MAX, &mut whole).unwrap();
        let length = whole.len() - 4;
        let mut out = BytesMut::from(&before[..]);
        prop_assert_eq!(
            packet.encode(length - 1, &mut out),
            Err(CodecError::TooLarge { bytes: length, limit_bytes: length - 1 })
        );
        prop_assert_eq!(&out[..], &before[..]);
        packet.encode(length, &mut out).unwrap();
        prop_assert!(out.ends_with(&whole));
    }

    #[test]
    fn a_header_and_its_data_are_the_write_of_the_whole(
        id in any::<u32>(),
        handle in string(),
        offset in any::<u64>(),
        data in string(),
        limit in 0_usize..100,
    ) {
        let mut whole = BytesMut::new();
        let request = Request::Write { handle: &handle[..], offset, data: &data[..] };
        request.encode(id, usize::MAX, &mut whole).unwrap();
        let mut parts = BytesMut::from(&b"before"[..]);
        encode_write_header(id, &handle, offset, data.len(), usize::MAX, &mut parts).unwrap();
        parts.extend_from_slice(&data);
        prop_assert_eq!(parts.strip_prefix(b"before"), Some(&whole[..]));

        let (mut one, mut other) = (BytesMut::new(), BytesMut::new());
        let refused = request.encode(id, limit, &mut one).is_err();
        let header = encode_write_header(id, &handle, offset, data.len(), limit, &mut other);
        prop_assert_eq!(header.is_err(), refused);
        prop_assert_eq!(other.is_empty(), refused);
    }
}

#[test]
fn a_decoded_payload_is_a_slice_of_the_packet() {
    let packet = ServerPacket::Reply {
        id: 1,
        reply: Reply::Data(Bytes::from(vec![7; 1000])),
    };
    let mut out = BytesMut::new();
    packet.encode(usize::MAX, &mut out).unwrap();
    let body = body(out);
    let range = body.as_ptr_range();
    let Ok(ServerPacket::Reply {
        reply: Reply::Data(data),
        ..
    }) = ServerPacket::decode(body)
    else {
        panic!("no data");
    };
    assert!(range.contains(&data.as_ptr()));
}
