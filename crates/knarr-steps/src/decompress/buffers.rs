//! Output buffers that are used again as soon as the consumer has let go of them.
//!
//! Constraints: two allocations of [`CHUNK_BYTES`] at most are remembered, each only while it
//! is out; small files get small buffers, because the first one is [`FIRST_BYTES`] and each
//! next one twice as large.

use bytes::Bytes;

use crate::step::CHUNK_BYTES;

const FIRST_BYTES: usize = 32 * 1024;

pub(super) struct Buffers {
    next_bytes: usize,
    lent: [Bytes; 2],
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            next_bytes: FIRST_BYTES,
            lent: [Bytes::new(), Bytes::new()],
        }
    }

    /// An empty buffer with room for 32 KiB to [`CHUNK_BYTES`].
    pub(super) fn get(&mut self) -> Vec<u8> {
        let wanted = self.next_bytes;
        self.next_bytes = (wanted * 2).min(CHUNK_BYTES);
        for slot in &mut self.lent {
            match std::mem::take(slot).try_into_mut() {
                Ok(mut unused) if unused.capacity() == CHUNK_BYTES => {
                    unused.clear();
                    return Vec::from(unused);
                }
                Ok(too_small) => drop(too_small),
                Err(still_used) => *slot = still_used,
            }
        }
        Vec::with_capacity(wanted)
    }

    /// Makes a chunk of a filled buffer, and remembers it to get the memory back.
    pub(super) fn lend(&mut self, filled: Vec<u8>) -> Bytes {
        let is_reusable = filled.capacity() == CHUNK_BYTES;
        let chunk = Bytes::from(filled);
        if is_reusable && let Some(slot) = self.lent.iter_mut().find(|slot| slot.is_empty()) {
            *slot = chunk.clone();
        }
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffers, CHUNK_BYTES, FIRST_BYTES};

    #[test]
    fn buffers_begin_small_grow_and_are_used_again_once_they_are_free() {
        let mut buffers = Buffers::new();
        let mut bytes = FIRST_BYTES;
        while bytes < CHUNK_BYTES {
            assert_eq!(buffers.get().capacity(), bytes);
            bytes *= 2;
        }
        let mut filled = buffers.get();
        filled.push(1);
        let address = filled.as_ptr();
        let kept = buffers.lend(filled);
        let other = buffers.get();
        assert_ne!(other.as_ptr(), address, "the consumer still reads it");
        assert_eq!(*kept, [1]);
        drop(kept);
        let again = buffers.get();
        assert_eq!(
            (again.as_ptr(), again.len(), again.capacity()),
            (address, 0, CHUNK_BYTES)
        );
    }
}
