//! Buffers that are used again.
//!
//! A large file passes through thousands of equal buffers. Given back to the allocator, each is unmapped
//! and faulted in again, which costs as much as a copy of its bytes; so a reader keeps its own.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Spare buffers that are kept at most; more than a destination lets wait are never needed.
const SPARE: usize = 64;

/// The buffers of one reader, of one capacity.
#[derive(Debug)]
pub(crate) struct Buffers {
    capacity: usize,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// A buffer that goes back to where it came from when the last view of it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    /// None yet; each will have room for `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        let spare = Mutex::default();
        Arc::new(Self { capacity, spare })
    }

    /// An empty buffer.
    pub(crate) fn take(self: &Arc<Self>) -> Buffer {
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        Buffer {
            bytes: spare.unwrap_or_else(|| Vec::with_capacity(self.capacity)),
            home: Arc::clone(self),
        }
    }
}

impl Buffer {
    /// The bytes, to be filled up to the capacity.
    pub(crate) const fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// How many bytes there is still room for.
    pub(crate) const fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    /// The bytes, to be shared.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut spare = self
            .home
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE && bytes.capacity() > 0 {
            spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_its_last_view_is_gone() {
        let buffers = Buffers::new(100);
        let mut buffer = buffers.take();
        buffer.bytes().extend_from_slice(b"first");
        let address = buffer.bytes().as_ptr();
        let whole = buffer.freeze();
        let view = whole.slice(1..3);
        drop(whole);
        assert_ne!(buffers.take().bytes().as_ptr(), address);
        assert_eq!(view, &b"ir"[..]);
        drop(view);
        let mut again = buffers.take();
        assert_eq!(again.bytes().as_ptr(), address);
        assert_eq!((again.as_ref().len(), again.room()), (0, 100));
    }
}
