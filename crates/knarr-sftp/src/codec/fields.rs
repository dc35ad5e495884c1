//! The fields that packets are made of.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::codec::{CodecError, HANDLE_LIMIT, LENGTH_BYTES};

/// Takes fields off the front of a body.
#[derive(Debug)]
pub(crate) struct Fields {
    left: Bytes,
}

impl Fields {
    pub(crate) fn new(body: Bytes) -> Self {
        Self { left: body }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    pub(crate) fn left_bytes(&self) -> usize {
        self.left.len()
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, CodecError> {
        self.left.try_get_u8().map_err(|_| self.truncated(field, 1))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, CodecError> {
        self.left
            .try_get_u32()
            .map_err(|_| self.truncated(field, 4))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, CodecError> {
        self.left
            .try_get_u64()
            .map_err(|_| self.truncated(field, 8))
    }

    pub(crate) fn string(&mut self, field: &'static str) -> Result<Bytes, CodecError> {
        let length = self.u32(field)?;
        match usize::try_from(length) {
            Ok(length) if length <= self.left.len() => Ok(self.left.split_to(length)),
            _ => Err(self.truncated(field, u64::from(length))),
        }
    }

    pub(crate) fn handle(&mut self) -> Result<Bytes, CodecError> {
        let handle = self.string("handle")?;
        if handle.len() > HANDLE_LIMIT {
            return Err(CodecError::HandleTooLong {
                bytes: handle.len(),
            });
        }
        Ok(handle)
    }

    pub(crate) fn rest(self) -> Bytes {
        self.left
    }

    fn truncated(&self, field: &'static str, needed_bytes: u64) -> CodecError {
        CodecError::Truncated {
            field,
            needed_bytes,
            left_bytes: self.left.len() as u64,
        }
    }
}

/// Appends a string. One that is too long for its length field ends in a packet over any limit, so
/// the wrong length is never sent.
pub(crate) fn put_string(out: &mut BytesMut, string: &[u8]) {
    out.put_u32(u32::try_from(string.len()).unwrap_or(u32::MAX));
    out.put_slice(string);
}

/// Appends a packet whose body is what `fill` appends; leaves `out` as it was if that is too large.
pub(crate) fn put_packet(
    out: &mut BytesMut,
    limit_bytes: usize,
    fill: impl FnOnce(&mut BytesMut),
) -> Result<(), CodecError> {
    let start = out.len();
    out.put_u32(0);
    fill(out);
    let bytes = out.len() - start - LENGTH_BYTES;
    match u32::try_from(bytes) {
        Ok(length) if bytes <= limit_bytes => {
            out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(CodecError::TooLarge { bytes, limit_bytes })
        }
    }
}
