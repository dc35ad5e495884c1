//! Decrypts what GnuPG and most others send: AES in CFB mode with an MDC (version 1 of the protected packet).
//!
//! Why not by the library: it decrypts block by block, each of which waits for the one before, and hashes with portable
//! code. Decryption in CFB mode needs no such waiting: all blocks of a chunk are given to the processor at once.
//!
//! Constraints: the last [`MDC_BYTES`] of the plaintext are the MDC, so that many are always held back. The end of the
//! stream is only reported after the MDC was found right and nothing followed the packet, and that it was is left in
//! [`Verdict`]: what reads a message must ask it, whatever else it has checked. An error is final.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use aes::{Aes128Enc, Aes192Enc, Aes256Enc, Block};
use aws_lc_rs::{constant_time, digest};
use pgp::composed::PacketBodyReader;
use pgp::crypto::sym::SymmetricKeyAlgorithm;
use zeroize::Zeroize as _;

/// A block of AES, in bytes.
const BLOCK_BYTES: usize = 16;
/// What the plaintext begins with: a block of random bytes, and the last two of them again.
const PREFIX_BYTES: usize = BLOCK_BYTES + 2;
/// A header of two bytes, and SHA-1 over the plaintext with that header.
const MDC_BYTES: usize = 22;
const MDC_HEADER: [u8; 2] = [0xd3, 0x14];
/// How much is decrypted at once: whole blocks.
const CHUNK_BYTES: usize = 32 * 1024;
/// How many blocks are given to the processor at once; their key stream stays in its first cache.
const STRIDE_BLOCKS: usize = 256;

enum Cipher {
    Aes128(Aes128Enc),
    Aes192(Aes192Enc),
    Aes256(Aes256Enc),
}

impl Cipher {
    fn new(algorithm: SymmetricKeyAlgorithm, key: &[u8]) -> Option<Self> {
        match algorithm {
            SymmetricKeyAlgorithm::AES128 => Aes128Enc::new_from_slice(key).ok().map(Self::Aes128),
            SymmetricKeyAlgorithm::AES192 => Aes192Enc::new_from_slice(key).ok().map(Self::Aes192),
            SymmetricKeyAlgorithm::AES256 => Aes256Enc::new_from_slice(key).ok().map(Self::Aes256),
            _ => None,
        }
    }

    fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            Self::Aes128(cipher) => cipher.encrypt_blocks(blocks),
            Self::Aes192(cipher) => cipher.encrypt_blocks(blocks),
            Self::Aes256(cipher) => cipher.encrypt_blocks(blocks),
        }
    }
}

/// Whether messages with this algorithm are read here.
pub(super) const fn reads(algorithm: SymmetricKeyAlgorithm) -> bool {
    matches!(
        algorithm,
        SymmetricKeyAlgorithm::AES128
            | SymmetricKeyAlgorithm::AES192
            | SymmetricKeyAlgorithm::AES256
    )
}

/// CFB mode: a block of plaintext is the block of ciphertext, and the one before encrypted, put together by XOR.
struct Cfb {
    cipher: Cipher,
    /// The last block of ciphertext.
    previous: Block,
    keystream: Vec<Block>,
}

impl Cfb {
    fn new(cipher: Cipher) -> Self {
        Self {
            cipher,
            previous: Block::default(),
            keystream: vec![Block::default(); STRIDE_BLOCKS],
        }
    }

    /// Decrypts whole blocks; only the last call of all may end in the middle of one.
    fn decrypt(&mut self, data: &mut [u8]) {
        for piece in data.chunks_mut(STRIDE_BLOCKS * BLOCK_BYTES) {
            let blocks = piece.len().div_ceil(BLOCK_BYTES);
            let Some(keystream) = self.keystream.get_mut(..blocks) else {
                return;
            };
            let mut ciphertext = piece.chunks_exact(BLOCK_BYTES);
            let mut previous = self.previous;
            for slot in keystream.iter_mut() {
                *slot = previous;
                if let Some(block) = ciphertext.next() {
                    previous.copy_from_slice(block);
                }
            }
            self.previous = previous;
            self.cipher.encrypt(keystream);
            let mut whole = piece.chunks_exact_mut(BLOCK_BYTES);
            for (block, key) in whole.by_ref().zip(keystream.iter()) {
                for (byte, key) in block.iter_mut().zip(key) {
                    *byte ^= key;
                }
            }
            let rest = whole.into_remainder();
            if let Some(key) = keystream.last() {
                for (byte, key) in rest.iter_mut().zip(key) {
                    *byte ^= key;
                }
            }
        }
    }
}

impl Drop for Cfb {
    fn drop(&mut self) {
        for block in &mut self.keystream {
            block.as_mut_slice().zeroize();
        }
    }
}

/// Whether the message was read to its end and found unchanged.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict(Arc<AtomicBool>);

impl Verdict {
    pub(super) fn is_good(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was read.
    Fresh,
    Reading,
    Ended,
    Failed,
}

/// The plaintext of a packet.
pub(super) struct Protected<R: BufRead> {
    source: PacketBodyReader<R>,
    cfb: Cfb,
    hash: Option<digest::Context>,
    /// Plaintext; what lies between `begin` and `end` can be read, behind that is what is held back.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    state: State,
    verdict: Verdict,
}

impl<R: BufRead> Protected<R> {
    /// Reads the packet behind its version byte. Nothing if the algorithm is not AES or the key does not fit it.
    pub(super) fn new(
        source: PacketBodyReader<R>,
        algorithm: SymmetricKeyAlgorithm,
        key: &[u8],
    ) -> Option<Self> {
        let cipher = Cipher::new(algorithm, key)?;
        Some(Self {
            source,
            cfb: Cfb::new(cipher),
            // The MDC is defined with it. It hides nothing that a collision could reveal.
            hash: Some(digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY)),
            buffer: vec![0; MDC_BYTES + CHUNK_BYTES],
            begin: 0,
            end: 0,
            state: State::Fresh,
            verdict: Verdict::default(),
        })
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    /// Decrypts the next chunk. What can be read afterwards is hashed already.
    fn advance(&mut self) -> io::Result<()> {
        let held = match self.state {
            State::Fresh => 0,
            State::Reading => MDC_BYTES,
            State::Ended | State::Failed => return Ok(()),
        };
        let first = self.state == State::Fresh;
        self.state = State::Failed;
        self.buffer.copy_within(self.end..self.end + held, 0);
        let chunk = self.buffer.get_mut(held..held + CHUNK_BYTES);
        let chunk = chunk.unwrap_or_default();
        let mut length = 0;
        while let Some(room) = chunk.get_mut(length..).filter(|room| !room.is_empty()) {
            match self.source.read(room)? {
                0 => break,
                read => length += read,
            }
        }
        let is_last = length < CHUNK_BYTES;
        self.cfb
            .decrypt(chunk.get_mut(..length).unwrap_or_default());
        let total = held + length;
        let begin = if first { PREFIX_BYTES } else { 0 };
        if total < begin + MDC_BYTES {
            let kind = io::ErrorKind::UnexpectedEof;
            return Err(io::Error::new(kind, "the packet is too short"));
        }
        self.begin = begin;
        self.end = total - MDC_BYTES;
        if let Some(hash) = &mut self.hash {
            hash.update(self.buffer.get(..self.end).unwrap_or_default());
        }
        if is_last {
            self.verify(total)?;
            self.state = State::Ended;
        } else {
            self.state = State::Reading;
        }
        Ok(())
    }

    fn verify(&mut self, total: usize) -> io::Result<()> {
        let changed = || io::Error::other(pgp::errors::Error::MdcError);
        let found = self.buffer.get(self.end..total).unwrap_or_default();
        let (header, found) = found
            .split_at_checked(MDC_HEADER.len())
            .ok_or_else(changed)?;
        let mut hash = self.hash.take().ok_or_else(changed)?;
        hash.update(&MDC_HEADER);
        let wanted = hash.finish();
        let is_header = constant_time::verify_slices_are_equal(header, &MDC_HEADER).is_ok();
        let is_hash = constant_time::verify_slices_are_equal(found, wanted.as_ref()).is_ok();
        if !is_header || !is_hash {
            return Err(changed());
        }
        // A reader between us and the file may hold it back from whoever looks there.
        if !self.source.get_mut().fill_buf()?.is_empty() {
            let kind = io::ErrorKind::InvalidInput;
            return Err(io::Error::new(
                kind,
                "something follows the encrypted packet",
            ));
        }
        self.verdict.0.store(true, Ordering::Release);
        Ok(())
    }
}

impl<R: BufRead> BufRead for Protected<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.state == State::Failed {
            return Err(io::Error::other("reading went on behind an error"));
        }
        // A first chunk may hold nothing but the prefix.
        while self.begin == self.end && self.state != State::Ended {
            self.advance()?;
        }
        Ok(self.buffer.get(self.begin..self.end).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.begin = self.end.min(self.begin + amount);
    }
}

impl<R: BufRead> Read for Protected<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        // Reading from a slice copies what fits and cannot fail.
        let length = available.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// Without what it decrypts.
impl<R: BufRead> fmt::Debug for Protected<R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Protected")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<R: BufRead> Drop for Protected<R> {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use pgp::packet::PacketHeader;
    use pgp::types::Tag;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    /// As the standard says it, block by block.
    fn encrypted(content: &[u8]) -> Vec<u8> {
        let mut plain: Vec<u8> = (1..=16).collect();
        plain.extend([15, 16]);
        plain.extend(content);
        plain.extend(MDC_HEADER);
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &plain);
        plain.extend(hash.as_ref());
        let cipher = Aes256Enc::new_from_slice(&KEY).unwrap();
        let mut previous = Block::default();
        for block in plain.chunks_mut(BLOCK_BYTES) {
            let mut keystream = previous;
            cipher.encrypt_block(&mut keystream);
            for (byte, key) in block.iter_mut().zip(&keystream) {
                *byte ^= key;
            }
            if block.len() == BLOCK_BYTES {
                previous.copy_from_slice(block);
            }
        }
        plain
    }

    fn protected(packet: &[u8], declared: usize) -> Protected<&[u8]> {
        let length = u32::try_from(declared).unwrap();
        let header = PacketHeader::new_fixed(Tag::SymEncryptedProtectedData, length);
        let body = PacketBodyReader::new(header, packet).unwrap();
        Protected::new(body, SymmetricKeyAlgorithm::AES256, &KEY).unwrap()
    }

    fn read(packet: &[u8], declared: usize) -> (io::Result<Vec<u8>>, bool) {
        let mut protected = protected(packet, declared);
        let mut content = Vec::new();
        let read = protected.read_to_end(&mut content).map(|_| content);
        let again = protected.fill_buf().is_err();
        assert_eq!(again, read.is_err(), "an error is final, and so is the end");
        (read, protected.verdict().is_good())
    }

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|number| (number % 251) as u8).collect()
    }

    #[test]
    fn content_of_any_length_comes_out_as_it_went_in() {
        let edge = CHUNK_BYTES - PREFIX_BYTES;
        let around = |edge: usize| edge - 45..edge + 5;
        let lengths = (0..70)
            .chain(around(edge))
            .chain(around(edge + CHUNK_BYTES));
        for length in lengths {
            let content = content(length);
            let packet = encrypted(&content);
            let (read, good) = read(&packet, packet.len());
            assert!(read.unwrap() == content, "{length} bytes");
            assert!(good, "{length} bytes");
        }
    }

    #[test]
    fn h21_a_changed_or_missing_byte_anywhere_is_an_error_and_no_verdict() {
        for length in [0, 1, 100, CHUNK_BYTES, CHUNK_BYTES + 30] {
            let packet = encrypted(&content(length));
            let step = (packet.len() / 40).max(1);
            for at in (0..packet.len()).step_by(step).chain([packet.len() - 1]) {
                let mut changed = packet.clone();
                changed[at] ^= 1;
                let (read_changed, good) = read(&changed, changed.len());
                assert!(read_changed.is_err() && !good, "byte {at} of {length}");
                let (cut, good) = read(&packet[..at], at);
                assert!(cut.is_err() && !good, "{at} bytes of {length}");
                let (cut, good) = read(&packet[..at], packet.len());
                assert!(cut.is_err() && !good, "{at} bytes of {length}, declared");
            }
        }
    }

    #[test]
    fn what_follows_the_packet_is_an_error() {
        let mut packet = encrypted(b"content");
        let declared = packet.len();
        packet.push(0);
        let (read, good) = read(&packet, declared);
        assert!(read.is_err() && !good);
    }

    #[test]
    fn a_key_that_does_not_fit_the_algorithm_is_not_taken() {
        let header = PacketHeader::new_fixed(Tag::SymEncryptedProtectedData, 0);
        for (algorithm, length) in [
            (SymmetricKeyAlgorithm::AES128, 32),
            (SymmetricKeyAlgorithm::AES256, 16),
            (SymmetricKeyAlgorithm::CAST5, 16),
        ] {
            let body = PacketBodyReader::new(header, &b""[..]).unwrap();
            let key = vec![0; length];
            assert!(Protected::new(body, algorithm, &key).is_none());
        }
    }
}
