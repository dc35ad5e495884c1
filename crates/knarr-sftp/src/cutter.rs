//! Cuts a stream of chunks into packets.
//!
//! Constraints: a packet inside one chunk is a slice of it. One that is spread over chunks is handed on as the slices
//! that it is, so that a payload goes to its place from where it was received. A peer that sends its bytes one by one must
//! not make a list of a packet's bytes, so from [`PIECES`] on the rest is copied into one buffer of the packet's size.
//! Nothing is allocated for a length before the limit has been checked.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::codec::LENGTH_BYTES;

/// Pieces of a packet that are kept apart before the rest is copied.
pub(crate) const PIECES: usize = 16;

/// The body of a packet.
#[derive(Debug)]
pub(crate) enum Cut {
    /// In one piece.
    Whole(Bytes),
    /// As it arrived: two pieces and more, or one that had to be copied.
    Pieces(Vec<Bytes>),
}

/// A length that no packet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImpossibleLength {
    pub(crate) bytes: u32,
    pub(crate) limit_bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Cutter {
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

impl Cutter {
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
    pub(crate) fn next(&mut self) -> Result<Option<Cut>, ImpossibleLength> {
        if !self.collecting && !self.start()? {
            return Ok(None);
        }
        if self.pieces.is_empty()
            && self.copied.is_empty()
            && self.chunk.len() >= self.missing_bytes
        {
            let body = self.chunk.split_to(self.missing_bytes);
            self.finish();
            return Ok(Some(Cut::Whole(body)));
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
        Ok(Some(Cut::Pieces(pieces)))
    }

    /// Reads the length; false if it has not arrived yet.
    fn start(&mut self) -> Result<bool, ImpossibleLength> {
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
            _ => Err(ImpossibleLength {
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

/// Cuts `pieces` to `length` bytes in all, and leaves the empty ones out.
pub(crate) fn shorten(pieces: &mut Vec<Bytes>, length: usize) {
    let mut wanted = length;
    for piece in pieces.iter_mut() {
        piece.truncate(wanted);
        wanted -= piece.len();
    }
    pieces.retain(|piece| !piece.is_empty());
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn packets_are_the_same_wherever_the_stream_is_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..8),
            cuts in prop::collection::vec(1_usize..60, 1..40),
        ) {
            let mut stream = BytesMut::new();
            for body in &bodies {
                stream.put_u32(u32::try_from(body.len()).unwrap());
                stream.extend_from_slice(body);
            }
            let mut stream = stream.freeze();
            let mut cutter = Cutter::new(1000);
            let mut received = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            while !stream.is_empty() {
                let cut = cuts.next().unwrap().min(stream.len());
                cutter.push(stream.split_to(cut));
                while let Some(cut) = cutter.next().unwrap() {
                    received.push(match cut {
                        Cut::Whole(body) => body.to_vec(),
                        Cut::Pieces(pieces) => pieces.concat(),
                    });
                }
            }
            prop_assert_eq!(cutter.partial_bytes(), 0);
            prop_assert_eq!(received, bodies);
        }
    }

    #[test]
    fn a_packet_in_one_chunk_is_a_slice_of_it() {
        let chunk = Bytes::from_static(&[0, 0, 0, 2, 101, 9, 0, 0, 0, 1]);
        let address = chunk.as_ptr();
        let mut cutter = Cutter::new(100);
        cutter.push(chunk);
        let Ok(Some(Cut::Whole(body))) = cutter.next() else {
            panic!("no packet")
        };
        assert_eq!(body.as_ptr(), address.wrapping_add(4));
        assert!(cutter.next().unwrap().is_none());
        assert_eq!(cutter.partial_bytes(), 4);
    }

    #[test]
    fn h43_impossible_lengths_are_refused_before_anything_is_allocated() {
        for bytes in [0_u32, 101, 0x7fff_ffff, u32::MAX] {
            let mut cutter = Cutter::new(100);
            cutter.push(Bytes::copy_from_slice(&bytes.to_be_bytes()));
            let limit_bytes = 100;
            assert_eq!(
                cutter.next().unwrap_err(),
                ImpossibleLength { bytes, limit_bytes }
            );
        }
    }

    #[test]
    fn a_packet_that_arrives_byte_by_byte_is_kept_in_few_pieces() {
        let mut cutter = Cutter::new(100_000);
        cutter.push(Bytes::from_static(&[0, 0, 0x40, 0]));
        assert!(cutter.next().unwrap().is_none());
        for _ in 0..0x4000 {
            cutter.push(Bytes::from_static(b"x"));
            if let Some(Cut::Pieces(pieces)) = cutter.next().unwrap() {
                assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 0x4000);
                assert!(pieces.len() <= PIECES + 1);
                return;
            }
            assert!(cutter.pieces.len() <= PIECES);
        }
        panic!("the packet was never complete");
    }
}
