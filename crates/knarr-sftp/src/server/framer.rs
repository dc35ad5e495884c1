//! Work from a stream of chunks of a client.
//!
//! Constraint: the payload of a WRITE that is spread over chunks is handed on as the slices that it is, and goes to the
//! file from where it was received. Every other packet is small and put together. How it is cut: [`crate::cutter`].

use bytes::{Buf as _, Bytes};

use crate::codec::{ClientPacket, CodecError, HANDLE_LIMIT, Request, kind};
use crate::cutter::{Cut, Cutter, ImpossibleLength, shorten};
use crate::server::ServeError;

/// Bytes of a WRITE before its handle (type, id, length) and between handle and payload (offset, length).
const WRITE_HEAD: usize = 9;
const WRITE_MIDDLE: usize = 12;

/// A packet of a client, and what it asks for.
#[derive(Debug)]
pub(crate) struct Work {
    /// Number that the reply has to carry; zero for INIT.
    pub(crate) id: u32,
    pub(crate) task: Task,
}

/// What a client asks for.
#[derive(Debug)]
pub(crate) enum Task {
    Init,
    Request(Request),
    /// A WRITE whose payload came in pieces.
    Write {
        handle: Bytes,
        offset: u64,
        data: Vec<Bytes>,
    },
    /// A packet that cannot be read, but has an id.
    Unreadable(CodecError),
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

    /// The next packet that is complete, with its length in bytes, or `None` if a chunk is needed.
    pub(crate) fn next(&mut self) -> Result<Option<(Work, usize)>, ServeError> {
        let cut = self.cutter.next().map_err(|impossible| {
            let ImpossibleLength { bytes, limit_bytes } = impossible;
            ServeError::PacketLength { bytes, limit_bytes }
        })?;
        Ok(match cut {
            None => None,
            Some(Cut::Whole(body)) => {
                let bytes = body.len();
                Some((work_of(body)?, bytes))
            }
            Some(Cut::Pieces(mut pieces)) => {
                let bytes = pieces.iter().map(Bytes::len).sum();
                let work = match write_in_pieces(&mut pieces) {
                    Some(work) => work,
                    None => work_of(pieces.concat().into())?,
                };
                Some((work, bytes))
            }
        })
    }
}

/// What a packet in one piece asks for. One that cannot be read is refused by its id if it has one.
fn work_of(body: Bytes) -> Result<Work, ServeError> {
    match ClientPacket::decode(body.clone()) {
        Ok(ClientPacket::Init { .. }) => Ok(Work {
            id: 0,
            task: Task::Init,
        }),
        Ok(ClientPacket::Request { id, request }) => Ok(Work {
            id,
            task: Task::Request(request),
        }),
        Err(error) => {
            let id = body.get(1..5).and_then(|bytes| bytes.try_into().ok());
            match id.map(u32::from_be_bytes) {
                Some(id) if body.first() != Some(&kind::INIT) => Ok(Work {
                    id,
                    task: Task::Unreadable(error),
                }),
                _ => Err(ServeError::Packet { source: error }),
            }
        }
    }
}

/// A WRITE in pieces, if it is one and its header lies in the first piece, as it nearly always does. Leaves the
/// pieces alone otherwise, and where something is wrong with it.
fn write_in_pieces(pieces: &mut Vec<Bytes>) -> Option<Work> {
    let total: usize = pieces.iter().map(Bytes::len).sum();
    let first = pieces.first_mut()?;
    if first.first() != Some(&kind::WRITE) {
        return None;
    }
    let mut head = first.clone();
    head.advance(1);
    let id = head.try_get_u32().ok()?;
    let handle_bytes = usize::try_from(head.try_get_u32().ok()?).ok()?;
    if handle_bytes > HANDLE_LIMIT || head.len() < handle_bytes + WRITE_MIDDLE {
        return None;
    }
    let handle = head.split_to(handle_bytes);
    let offset = head.try_get_u64().ok()?;
    let declared = usize::try_from(head.try_get_u32().ok()?).ok()?;
    let header = WRITE_HEAD + handle_bytes + WRITE_MIDDLE;
    if declared > total - header {
        return None;
    }
    first.advance(header);
    // rclone sends bytes behind the declared ones; they are not part of the file.
    shorten(pieces, declared);
    Some(Work {
        id,
        task: Task::Write {
            handle,
            offset,
            data: std::mem::take(pieces),
        },
    })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    /// Everything as one WRITE in one piece would say it.
    fn flat(work: Work) -> (u32, Option<(Bytes, u64, Vec<u8>)>) {
        let write = match work.task {
            Task::Write {
                handle,
                offset,
                data,
            } => Some((handle, offset, data.concat())),
            Task::Request(Request::Write {
                handle,
                offset,
                data,
            }) => Some((handle, offset, data.to_vec())),
            _ => None,
        };
        (work.id, write)
    }

    proptest! {
        #[test]
        fn packets_are_the_same_wherever_the_stream_is_cut(
            writes in prop::collection::vec((any::<u32>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..200), 0_usize..5), 1..8),
            cuts in prop::collection::vec(1_usize..60, 1..40),
        ) {
            let mut stream = BytesMut::new();
            let mut expected = Vec::new();
            for (id, offset, data, tail) in writes {
                let handle = Bytes::from_static(b"handle");
                let start = stream.len();
                let data = Bytes::from(data);
                let request = Request::Write { handle: handle.clone(), offset, data: data.clone() };
                request.encode(id, usize::MAX, &mut stream).unwrap();
                let length = u32::try_from(stream.len() - start - 4 + tail).unwrap();
                stream[start..start + 4].copy_from_slice(&length.to_be_bytes());
                stream.extend_from_slice(&[0xee; 5][..tail]);
                expected.push((id, Some((handle, offset, data.to_vec()))));
            }
            let mut stream = stream.freeze();
            let mut framer = Framer::new(1000);
            let mut received = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            while !stream.is_empty() {
                let cut = cuts.next().unwrap().min(stream.len());
                framer.push(stream.split_to(cut));
                while let Some((work, _)) = framer.next().unwrap() {
                    received.push(flat(work));
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
        assert!(matches!(error, ServeError::PacketLength { bytes: 101, .. }));
    }
}
