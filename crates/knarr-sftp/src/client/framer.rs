//! Cuts a stream of chunks into packets.
//!
//! Constraints: a packet inside one chunk is a slice of it. The payload of a DATA packet that is
//! spread over chunks is handed on as the slices that it is; every other packet is small and put
//! together. A server that sends its bytes one by one must not make a list of a packet's bytes, so
//! from a few pieces on the rest is copied into one buffer of the packet's size.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::client::ConnectionError;
use crate::codec::{LENGTH_BYTES, kind};

/// Pieces of a packet that are kept apart before the rest is copied.
const PIECES: usize = 16;

/// Bytes of a DATA packet before its payload: type, id, length.
const DATA_HEADER_BYTES: usize = 9;

/// A packet without its length.
#[derive(Debug)]
pub(crate) enum Frame {
    /// In one piece.
    Whole(Bytes),
    /// A DATA packet in pieces.
    Data {
        /// Id of the request.
        id: u32,
        /// The payload, cut to the length that the packet declares. May be empty.
        pieces: Vec<Bytes>,
        /// Length of the payload in bytes.
        length: usize,
    },
}

#[derive(Debug)]
pub(crate) struct Framer {
    limit_bytes: usize,
    /// The chunk that is being cut.
    chunk: Bytes,
    /// The length field, as far as it has arrived.
    length: [u8; LENGTH_BYTES],
    length_bytes: usize,
    /// The packet that is being collected: pieces, then what was copied, then what is missing.
    pieces: Vec<Bytes>,
    copied: BytesMut,
    missing_bytes: usize,
    collecting: bool,
}

impl Framer {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            chunk: Bytes::new(),
            length: [0; LENGTH_BYTES],
            length_bytes: 0,
            pieces: Vec::new(),
            copied: BytesMut::new(),
            missing_bytes: 0,
            collecting: false,
        }
    }

    /// Takes the next chunk. The one before must have been used up: `next` returned `None`.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "the chunk before was not used up");
        self.chunk = chunk;
    }

    /// Bytes of an unfinished packet.
    pub(crate) fn partial_bytes(&self) -> usize {
        let pieces: usize = self.pieces.iter().map(Bytes::len).sum();
        self.length_bytes + pieces + self.copied.len()
    }

    /// The next packet that is complete, or `None` if a chunk is needed.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, ConnectionError> {
        if !self.collecting && !self.start()? {
            return Ok(None);
        }
        if self.pieces.is_empty()
            && self.copied.is_empty()
            && self.chunk.len() >= self.missing_bytes
        {
            let body = self.chunk.split_to(self.missing_bytes);
            self.finish();
            return Ok(Some(Frame::Whole(body)));
        }
        self.collect();
        if self.missing_bytes > 0 {
            return Ok(None);
        }
        let mut pieces = std::mem::take(&mut self.pieces);
        if !self.copied.is_empty() {
            pieces.push(std::mem::take(&mut self.copied).freeze());
        }
        self.finish();
        assemble(pieces).map(Some)
    }

    /// Reads the length; false if it has not arrived yet.
    fn start(&mut self) -> Result<bool, ConnectionError> {
        while self.length_bytes < LENGTH_BYTES {
            if self.chunk.is_empty() {
                return Ok(false);
            }
            self.length[self.length_bytes] = self.chunk.get_u8();
            self.length_bytes += 1;
        }
        let bytes = u32::from_be_bytes(self.length);
        match usize::try_from(bytes) {
            Ok(length) if length > 0 && length <= self.limit_bytes => {
                self.missing_bytes = length;
                self.collecting = true;
                Ok(true)
            }
            _ => Err(ConnectionError::PacketLength {
                bytes,
                limit_bytes: self.limit_bytes,
            }),
        }
    }

    fn collect(&mut self) {
        let bytes = self.chunk.len().min(self.missing_bytes);
        if bytes == 0 {
            return;
        }
        let piece = self.chunk.split_to(bytes);
        if self.copied.is_empty() && self.pieces.len() < PIECES {
            self.pieces.push(piece);
        } else {
            if self.copied.is_empty() {
                self.copied.reserve(self.missing_bytes);
            }
            self.copied.extend_from_slice(&piece);
        }
        self.missing_bytes -= bytes;
    }

    fn finish(&mut self) {
        self.collecting = false;
        self.length_bytes = 0;
        self.missing_bytes = 0;
    }
}

fn assemble(mut pieces: Vec<Bytes>) -> Result<Frame, ConnectionError> {
    // The header of a DATA packet nearly always lies in the first piece. Where it does not, the
    // packet is put together like any other.
    let data = pieces
        .first_mut()
        .filter(|first| first.len() >= DATA_HEADER_BYTES && first.first() == Some(&kind::DATA));
    let Some(first) = data else {
        return Ok(Frame::Whole(pieces.concat().into()));
    };
    first.advance(1);
    let id = first.get_u32();
    let declared = first.get_u32();
    let left: usize = pieces.iter().map(Bytes::len).sum();
    let length = usize::try_from(declared)
        .ok()
        .filter(|length| *length <= left);
    let length = length.ok_or(ConnectionError::Codec {
        source: crate::codec::CodecError::Truncated {
            field: "data",
            needed_bytes: u64::from(declared),
            left_bytes: left as u64,
        },
    })?;
    let mut wanted = length;
    for piece in &mut pieces {
        piece.truncate(wanted);
        wanted -= piece.len();
    }
    pieces.retain(|piece| !piece.is_empty());
    Ok(Frame::Data { id, pieces, length })
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    fn flat(frame: Frame) -> Vec<u8> {
        match frame {
            Frame::Whole(body) => body.to_vec(),
            Frame::Data { id, pieces, length } => {
                let mut body = vec![kind::DATA];
                body.put_u32(id);
                body.put_u32(u32::try_from(length).unwrap());
                body.extend(pieces.concat());
                body
            }
        }
    }

    proptest! {
        #[test]
        fn packets_are_the_same_wherever_the_stream_is_cut(
            bodies in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..200)), 1..8),
            cuts in prop::collection::vec(1_usize..60, 1..40),
        ) {
            let mut stream = BytesMut::new();
            let mut expected = Vec::new();
            for (is_data, bytes) in bodies {
                let body = if is_data {
                    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
                    [&[kind::DATA, 1, 2, 3, 4][..], &length, &bytes].concat()
                } else {
                    [&[kind::STATUS][..], &bytes].concat()
                };
                stream.put_u32(u32::try_from(body.len()).unwrap());
                stream.extend_from_slice(&body);
                expected.push(body);
            }
            let mut stream = stream.freeze();
            let mut framer = Framer::new(1000);
            let mut received = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            while !stream.is_empty() {
                let cut = cuts.next().unwrap().min(stream.len());
                framer.push(stream.split_to(cut));
                while let Some(frame) = framer.next().unwrap() {
                    received.push(flat(frame));
                }
            }
            prop_assert_eq!(framer.partial_bytes(), 0);
            prop_assert_eq!(received, expected);
        }
    }

    #[test]
    fn a_packet_in_one_chunk_is_a_slice_of_it() {
        let chunk = Bytes::from_static(&[0, 0, 0, 2, 101, 9, 0, 0, 0, 1]);
        let address = chunk.as_ptr();
        let mut framer = Framer::new(100);
        framer.push(chunk);
        let Ok(Some(Frame::Whole(body))) = framer.next() else {
            panic!("no packet")
        };
        assert_eq!(body.as_ptr(), address.wrapping_add(4));
        assert!(framer.next().unwrap().is_none());
        assert_eq!(framer.partial_bytes(), 4);
    }

    #[test]
    fn h43_impossible_lengths_are_refused_before_anything_is_allocated() {
        for length in [0_u32, 101, 0x7fff_ffff, u32::MAX] {
            let mut framer = Framer::new(100);
            framer.push(Bytes::copy_from_slice(&length.to_be_bytes()));
            let error = framer.next().unwrap_err();
            assert!(
                matches!(error, ConnectionError::PacketLength { bytes, .. } if bytes == length)
            );
        }
    }

    #[test]
    fn a_packet_that_arrives_byte_by_byte_is_kept_in_few_pieces() {
        let mut framer = Framer::new(100_000);
        framer.push(Bytes::from_static(&[
            0,
            0,
            0x40,
            0,
            kind::DATA,
            0,
            0,
            0,
            1,
            0,
            0,
            0x3f,
            0,
        ]));
        assert!(framer.next().unwrap().is_none());
        for _ in 9..0x4000 {
            framer.push(Bytes::from_static(b"x"));
            if let Some(Frame::Data { pieces, length, .. }) = framer.next().unwrap() {
                assert_eq!(length, 0x3f00);
                assert!(pieces.len() <= PIECES + 1);
                return;
            }
            assert!(framer.pieces.len() <= PIECES);
        }
        panic!("the packet was never complete");
    }
}
