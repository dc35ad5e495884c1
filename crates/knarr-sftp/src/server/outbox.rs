//! Replies on their way to the client.
//!
//! Constraints: small replies are gathered into one buffer until it is worth a write. A large payload is read
//! from the file into the buffer that is sent: its header is put before it, and nothing is copied. What waits
//! is counted by the memory that it holds, not by the bytes that are used of it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::codec::{Reply, Status, StatusCode, kind};
use crate::server::queue::Queue;

/// Small replies are gathered until there are so many bytes of them.
const GATHERED_BYTES: usize = 32 * 1024;

/// Length, type, id and length of the payload.
const DATA_HEADER: usize = 13;

/// A payload up to this length is copied behind the small replies before it.
const COPIED_BYTES: usize = 8 * 1024;

#[derive(Debug)]
pub(crate) struct Outbox {
    queue: Arc<Queue<Bytes>>,
    gathered: BytesMut,
    /// A buffer that was not used up by the last payload.
    spare: Vec<u8>,
    limit_bytes: usize,
}

impl Outbox {
    pub(crate) fn new(queue: Arc<Queue<Bytes>>, limit_bytes: usize) -> Self {
        Self {
            queue,
            gathered: BytesMut::new(),
            spare: Vec::new(),
            limit_bytes,
        }
    }

    /// Whether there is room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.has_room()
    }

    /// Answers the request `id`.
    pub(crate) fn reply(&mut self, id: u32, reply: &Reply) {
        if let Err(error) = reply.encode(id, self.limit_bytes, &mut self.gathered) {
            // Only what a file system said can be too long: a link or a path.
            let status = Reply::Status(Status {
                code: StatusCode::Failure,
                message: Bytes::from(error.to_string()),
                language: Bytes::from_static(b"en"),
            });
            status
                .encode(id, usize::MAX, &mut self.gathered)
                .expect("nothing is longer than the limit");
        }
        self.flush_if(GATHERED_BYTES);
    }

    /// Sends a packet that is encoded already.
    pub(crate) fn packet(&mut self, packet: &[u8]) {
        self.gathered.extend_from_slice(packet);
    }

    /// A buffer for a payload of `length` bytes: it holds a header to come, and has room for exactly the payload.
    pub(crate) fn buffer(&mut self, length: usize) -> Vec<u8> {
        let wanted = DATA_HEADER + length;
        let mut buffer = std::mem::take(&mut self.spare);
        if buffer.capacity() == wanted {
            buffer.clear();
        } else {
            buffer = Vec::with_capacity(wanted);
        }
        buffer.resize(DATA_HEADER, 0);
        buffer
    }

    /// Answers the request `id` with the payload that was appended to `buffer`.
    pub(crate) fn data(&mut self, id: u32, mut buffer: Vec<u8>) {
        let payload = buffer.len() - DATA_HEADER;
        let field = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        buffer[0..4].copy_from_slice(&field(DATA_HEADER - 4 + payload));
        buffer[4] = kind::DATA;
        buffer[5..9].copy_from_slice(&id.to_be_bytes());
        buffer[9..DATA_HEADER].copy_from_slice(&field(payload));
        // A short payload in a large buffer would hold the whole of it until it is sent.
        if payload <= COPIED_BYTES || buffer.len() < buffer.capacity() / 2 {
            self.gathered.extend_from_slice(&buffer);
            self.spare = buffer;
            self.flush_if(GATHERED_BYTES);
        } else {
            self.flush();
            let held = buffer.capacity();
            self.queue.put(Bytes::from(buffer), held);
        }
    }

    /// Takes back a buffer that got no payload.
    pub(crate) fn unused(&mut self, buffer: Vec<u8>) {
        self.spare = buffer;
    }

    fn flush_if(&mut self, bytes: usize) {
        if self.gathered.len() >= bytes {
            self.flush();
        }
    }

    /// Hands what was gathered to the sender.
    pub(crate) fn flush(&mut self) {
        if !self.gathered.is_empty() {
            let bytes = self.gathered.split().freeze();
            let held = bytes.len();
            self.queue.put(bytes, held);
        }
    }

    /// Nothing more will come.
    pub(crate) fn close(&mut self) {
        self.flush();
        self.queue.close();
    }
}
