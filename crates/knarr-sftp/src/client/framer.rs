//! Packets of a server from a stream of chunks.
//!
//! Constraint: the payload of a DATA packet that is spread over chunks is handed on as the slices that it is; every
//! other packet is small and put together. How it is cut: [`crate::cutter`].

use bytes::{Buf as _, Bytes};

use crate::client::ConnectionError;
use crate::codec::kind;
use crate::cutter::{Cut, Cutter, ImpossibleLength, shorten};

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
    cutter: Cutter,
}

impl Framer {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            cutter: Cutter::new(limit_bytes),
        }
    }

    /// Takes the next chunk. The one before must have been used up: `next` returned `None`.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.cutter.push(chunk);
    }

    /// Bytes of an unfinished packet.
    pub(crate) fn partial_bytes(&self) -> usize {
        self.cutter.partial_bytes()
    }

    /// The next packet that is complete, or `None` if a chunk is needed.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, ConnectionError> {
        match self.cutter.next() {
            Ok(None) => Ok(None),
            Ok(Some(Cut::Whole(body))) => Ok(Some(Frame::Whole(body))),
            Ok(Some(Cut::Pieces(pieces))) => assemble(pieces).map(Some),
            Err(ImpossibleLength { bytes, limit_bytes }) => {
                Err(ConnectionError::PacketLength { bytes, limit_bytes })
            }
        }
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
    shorten(&mut pieces, length);
    Ok(Frame::Data { id, pieces, length })
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, BytesMut};
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
    fn h43_impossible_lengths_end_the_connection() {
        let mut framer = Framer::new(100);
        framer.push(Bytes::copy_from_slice(&101_u32.to_be_bytes()));
        let error = framer.next().unwrap_err();
        assert!(matches!(
            error,
            ConnectionError::PacketLength { bytes: 101, .. }
        ));
    }
}
