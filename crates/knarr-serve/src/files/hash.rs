//! Hashes of files, for clients that verify without reading everything again.

use std::os::fd::BorrowedFd;

use aws_lc_rs::digest;
use knarr_sftp::server::{FileError, HashRange};
use md5::{Digest as _, Md5};

use crate::files::place::{failed, retrying};

/// The names of `check-file`, best first.
pub(crate) const ALGORITHMS: &[&str] = &["sha256", "sha512", "sha384", "md5"];

/// How much is read at a time, in bytes.
const READ_BYTES: usize = 256 * 1024;

enum Hasher {
    Sha2(digest::Context),
    Md5(Md5),
}

impl Hasher {
    fn new(algorithm: &str) -> Result<Self, FileError> {
        Ok(match algorithm {
            "sha256" => Self::Sha2(digest::Context::new(&digest::SHA256)),
            "sha384" => Self::Sha2(digest::Context::new(&digest::SHA384)),
            "sha512" => Self::Sha2(digest::Context::new(&digest::SHA512)),
            "md5" => Self::Md5(Md5::new()),
            _ => return Err(FileError::Unsupported),
        })
    }

    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha2(context) => context.update(data),
            Self::Md5(context) => context.update(data),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Sha2(context) => context.finish().as_ref().to_vec(),
            Self::Md5(context) => context.finalize().to_vec(),
        }
    }
}

/// The hashes of the blocks of `range`, one behind the other. A range that begins behind the end is refused, as
/// the draft has it.
pub(crate) fn hash(
    file: BorrowedFd<'_>,
    algorithm: &str,
    range: HashRange,
) -> Result<Vec<u8>, FileError> {
    let size = rustix::fs::fstat(file).map_err(failed)?.st_size;
    let size = u64::try_from(size).unwrap_or(0);
    if range.offset > size {
        return Err(FileError::Refused {
            reason: "the range begins behind the end of the file",
        });
    }
    let mut left = size - range.offset;
    if range.length != 0 {
        left = left.min(range.length);
    }
    let block = match range.block_bytes {
        0 => u64::MAX,
        bytes => u64::from(bytes),
    };
    let one = Hasher::new(algorithm)?.finish().len() as u64;
    if left.div_ceil(block).saturating_mul(one) > range.answer_bytes as u64 {
        return Err(FileError::Refused {
            reason: "that are more hashes than fit into an answer: ask for larger blocks",
        });
    }
    let mut offset = range.offset;
    let mut hashes = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let mut hasher = Hasher::new(algorithm)?;
        let mut in_block = block.min(left);
        while in_block > 0 {
            let wanted = usize::try_from(in_block)
                .unwrap_or(READ_BYTES)
                .min(READ_BYTES);
            let space = buffer.get_mut(..wanted).unwrap_or_default();
            let read_bytes =
                retrying(|| rustix::io::pread(file, &mut *space, offset)).map_err(failed)?;
            if read_bytes == 0 {
                // It became shorter meanwhile; what is there is what is hashed.
                left = 0;
                break;
            }
            hasher.update(space.get(..read_bytes).unwrap_or_default());
            let read_bytes = read_bytes as u64;
            offset += read_bytes;
            in_block -= read_bytes;
            left -= read_bytes;
        }
        hashes.extend(hasher.finish());
        if left == 0 {
            return Ok(hashes);
        }
    }
}
